"""The manifest of scripts/gke_jobset.py: its fields as JobSet and Kubernetes name them, and its hosts and chips."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from bsjax import InvalidArgument

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "gke_jobset.py"
COMMAND = "python -m experiments.figure6 --multihost --workdir='/bucket/my runs'"
FLAGS = ["--accelerator=v5e", "--topology=4x4", "--image=example/bsjax:1", f"--command={COMMAND}"]
# Field: its type, or the fields of an object, or the fields of each object of a list. From the definitions of JobSet
# v1alpha2 (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2) and of batch/v1 and v1 of Kubernetes, as far as
# the manifest uses them; all of these are required here, others are not allowed.
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "ports": [{"containerPort": int}],
    "resources": {"requests": {"google.com/tpu": int}, "limits": {"google.com/tpu": int}},
}
POD = {
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {"cloud.google.com/gke-tpu-accelerator": str, "cloud.google.com/gke-tpu-topology": str},
    "containers": [CONTAINER],
}
JOB = {"completionMode": str, "parallelism": int, "completions": int, "backoffLimit": int, "template": {"spec": POD}}
SCHEMA = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": str}},
    "spec": {
        "network": {"enableDNSHostnames": bool},
        "successPolicy": {"operator": str},
        "failurePolicy": {"maxRestarts": int},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}


@pytest.fixture(scope="module")
def gke_jobset():
    spec = importlib.util.spec_from_file_location("gke_jobset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60)


def check(value, schema, path="manifest"):
    if isinstance(schema, dict):
        assert value.keys() == schema.keys(), path
        for key, inner in schema.items():
            check(value[key], inner, f"{path}.{key}")
    elif isinstance(schema, list):
        assert value, path
        for item in value:
            check(item, schema[0], f"{path}[]")
    else:
        assert type(value) is schema, path


def pod_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


def test_the_printed_manifest_has_the_fields_of_a_jobset():
    result = call(*FLAGS)
    assert (result.returncode, result.stderr) == (0, "")
    found = yaml.safe_load(result.stdout)
    check(found, SCHEMA)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"], job["completionMode"]) == (4, 4, 0, "Indexed")
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    [container] = pod["containers"]
    assert container["command"] == ["python", "-m", "experiments.figure6", "--multihost", "--workdir=/bucket/my runs"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    assert pod["restartPolicy"] == "Never"  # the JobSet restarts all pods together, not each its own


@pytest.mark.parametrize(
    ("accelerator", "topology", "hosts", "chips"),
    [
        ("v4", "2x2x1", 1, 4),
        ("v4", "4x4x16", 64, 4),  # v4-512: 256 chips
        ("v5e", "1x1", 1, 1),
        ("v5e", "2x4", 1, 8),
        ("v5e", "4x4", 4, 4),
        ("v5e", "16x16", 64, 4),
        ("v5p", "2x2x2", 2, 4),
        ("v5p", "16x16x24", 1536, 4),
        ("v6e", "8x16", 32, 4),
        ("tpu7x", "4x4x4", 16, 4),
    ],
)
def test_hosts_and_chips(gke_jobset, accelerator, topology, hosts, chips):
    found = gke_jobset.manifest("a", accelerator, topology, "image", "true")
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    limits = job["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (job["parallelism"], job["completions"], limits["google.com/tpu"]) == (hosts, hosts, chips)


def test_a_bucket_and_a_folder_of_the_host_are_mounted(gke_jobset):
    options = {"bucket": "my-bucket", "service_account": "trainer", "host_path": "/mnt/disks/data", "spot": True}
    template = pod_of(gke_jobset.manifest("a", "v6e", "2x2", "image", "true", **options))
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    pod = template["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["bucket"]["csi"]["volumeAttributes"] == {"bucketName": "my-bucket"}
    assert volumes["data"]["hostPath"] == {"path": "/mnt/disks/data", "type": "Directory"}
    mounts = pod["containers"][0]["volumeMounts"]
    assert {mount["name"]: mount["mountPath"] for mount in mounts} == {"bucket": "/bucket", "data": "/data"}
    assert pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    plain = pod_of(gke_jobset.manifest("a", "v6e", "2x2", "image", "true"))
    assert "metadata" not in plain
    assert "volumes" not in plain["spec"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"accelerator": "v5"}, "accelerator is 'v5'; it must be one of v4, v5e, v5p, v6e, tpu7x; nearest: v5"),
        ({"topology": "4x5"}, "topology is '4x5'; it must be one of 1x1, 2x2, .*, 16x16 for v5e; nearest: 16x16"),
        ({"topology": "4x4x4"}, "topology is '4x4x4'; it must be one of 1x1, .* for v5e"),
        ({"topology": "4×4"}, "topology is '4×4'; it must be"),
        (
            {"accelerator": "v4", "topology": "8x4x4"},
            "topology is '8x4x4'; .* multiples of 4, A <= B <= C and at most 4,096",
        ),
        ({"accelerator": "v4", "topology": "16x16x20"}, "topology is '16x16x20'; .* at most 4,096 chips for v4"),
        ({"accelerator": "v5p", "topology": "4x4"}, "topology is '4x4'; it must be one of 2x2x1, .* for v5p"),
        ({"name": "Run_1"}, "name is 'Run_1'; it must be 1 to 40 lower-case letters, digits and hyphens"),
        ({"name": "a" * 41}, "name is 'a{41}'; it must be 1 to 40"),
        ({"image": ""}, "image is ''; it must be not empty"),
        ({"command": " "}, "command is ' '; it must be not empty"),
        (
            {"command": "python -m experiments.train"},
            "command is .* given --multihost: 4 hosts run it; nearest: .*multihost",
        ),
        ({"host_path": "data"}, "host_path is 'data'; it must be an absolute path; nearest: /data"),
        ({"service_account": "a"}, "service_account is 'a'; it must be left out without a bucket"),
        ({"max_restarts": -1}, "max_restarts is -1; it must be"),
    ],
)
def test_what_cannot_run_is_refused(gke_jobset, changed, said):
    given = {"name": "a", "accelerator": "v5e", "topology": "4x4", "image": "image", "command": "true"}
    with pytest.raises(InvalidArgument) as refusal:
        gke_jobset.manifest(**given | changed)
    assert re.match(said, str(refusal.value)), str(refusal.value)


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--topology=3x3", "--topology is '3x3'; it must be "), ("4x4", "--argument is '4x4'; it must be a flag")],
)
def test_bad_flags_are_one_line(flag, said):
    result = call(*FLAGS, flag)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {said}")
    assert result.stderr.count("\n") == 1
