"""Prints the manifest of a JobSet, which runs a command on all hosts of a slice of TPUs in GKE.

    .venv/bin/python scripts/gke_jobset.py --name=figure6 --accelerator=v5e --topology=16x16 \\
      --image=us-docker.pkg.dev/PROJECT/bsjax/bsjax --bucket=my-bucket \\
      --command="python -m experiments.figure6 --preset=imagenet --multihost --workdir=/bucket/runs/figure6" \\
      > jobset.yaml
    kubectl apply -f jobset.yaml

Each host has a pod, which takes all chips of the host. Inside, JAX finds the other processes by itself. If a pod ends
with an error, such as after a pre-emption, all pods are started again, and the run continues from its last checkpoint.
The cluster needs the JobSet controller (https://jobset.sigs.k8s.io/docs/installation) and a node pool of this topology.
"""

import math
import re
import shlex
import sys
from typing import Any, NamedTuple

import yaml  # comes with flax
from absl import app, flags

from bsjax.errors import InvalidArgument, check_choice, check_whole

_CHIPS_PER_HOST = 4  # of every slice with several hosts
_CUBE = 64  # chips; 3D slices of so many or more consist of cubes of 4x4x4
_GRACE_S = 120  # from SIGTERM to SIGKILL: for a checkpoint
_COORDINATOR_PORT = 8476  # of jax.distributed
_LONGEST_LINE = 10_000  # so that no image or path is folded


class Accelerator(NamedTuple):
    """A kind of TPU in GKE."""

    node_label: str  # of cloud.google.com/gke-tpu-accelerator
    topologies: tuple[str, ...]  # of 2D slices all; of 3D slices those below a cube
    max_chips: int
    chips_of_one_host: int  # the largest slice that may have a single host


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
# https://cloud.google.com/kubernetes-engine/docs/concepts/tpus
ACCELERATORS = {
    "v4": Accelerator("tpu-v4-podslice", _DEEP, 4096, 4),
    "v5e": Accelerator("tpu-v5-lite-podslice", _FLAT, 256, 8),
    "v5p": Accelerator("tpu-v5p-slice", _DEEP, 6144, 4),
    "v6e": Accelerator("tpu-v6e-slice", _FLAT, 256, 8),
    "tpu7x": Accelerator("tpu7x", _DEEP, 9216, 4),
}

_NAME = flags.DEFINE_string("name", "bsjax", "Of the JobSet: lower-case letters, digits and hyphens.")
_ACCELERATOR = flags.DEFINE_string("accelerator", None, f"One of {', '.join(ACCELERATORS)}.", required=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips along each side, such as 4x4 or 2x2x4.", required=True)
_IMAGE = flags.DEFINE_string("image", None, "Container image with bsjax and jax[tpu].", required=True)
_COMMAND = flags.DEFINE_string("command", None, "What each host runs.", required=True)
_BUCKET = flags.DEFINE_string("bucket", None, "Cloud Storage bucket that is mounted at /bucket, by Cloud Storage FUSE.")
_SERVICE_ACCOUNT = flags.DEFINE_string("service_account", None, "Of Kubernetes, with access to the bucket.")
_HOST_PATH = flags.DEFINE_string("host_path", None, "Folder on each host's disk that is mounted at /data, to read.")
_SPOT = flags.DEFINE_bool("spot", False, "Use Spot nodes.")
_MAX_RESTARTS = flags.DEFINE_integer("max_restarts", 100, "Restarts of all pods, before the JobSet fails.")


def slice_of(name: str, topology: str) -> tuple[int, int]:
    """Hosts of a slice, and chips of each.

    Args:
      name: of the accelerator.
      topology: such as 4x4.

    Raises:
      InvalidArgument: there is no such accelerator, or it has no such topology.

    >>> slice_of("v5e", "16x16"), slice_of("v4", "4x4x8"), slice_of("v6e", "2x4")
    ((64, 4), (32, 4), (1, 8))
    """
    accelerator = ACCELERATORS[check_choice("accelerator", name, ACCELERATORS)]
    sides = [int(side) for side in topology.split("x")] if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology) else []
    chips = math.prod(sides)
    if topology not in accelerator.topologies and not _is_of_cubes(accelerator, sides):
        allowed = f"one of {', '.join(accelerator.topologies)}"
        if accelerator.topologies == _DEEP:
            allowed += f", or AxBxC with multiples of 4, A <= B <= C and at most {accelerator.max_chips:,} chips"
        raise InvalidArgument("topology", topology, f"{allowed} for {name}", accelerator.topologies[-1])
    if chips <= accelerator.chips_of_one_host:
        return 1, chips
    return chips // _CHIPS_PER_HOST, _CHIPS_PER_HOST


def _is_of_cubes(accelerator: Accelerator, sides: list[int]) -> bool:
    is_deep = accelerator.topologies == _DEEP and len(sides) == 3
    ordered = sides == sorted(sides) and all(side % 4 == 0 for side in sides)
    return is_deep and ordered and _CUBE <= math.prod(sides) <= accelerator.max_chips


def manifest(
    name: str,
    accelerator: str,
    topology: str,
    image: str,
    command: str,
    bucket: str | None = None,
    service_account: str | None = None,
    host_path: str | None = None,
    spot: bool = False,
    max_restarts: int = 100,
) -> dict[str, Any]:
    """The JobSet, see the flags.

    Raises:
      InvalidArgument: an argument is not what it should be.
    """
    num_hosts, chips = slice_of(accelerator, topology)
    # The names of its pods, NAME-hosts-0-63-abcde, are at most 63 characters long.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise InvalidArgument("name", name, "1 to 40 lower-case letters, digits and hyphens, a letter first", "bsjax")
    for argument, value in {"image": image, "command": command}.items():
        if not value.strip():
            raise InvalidArgument(argument, value, "not empty")
    if num_hosts > 1 and "experiments." in command and "--multihost" not in command:
        raise InvalidArgument(
            "command", command, f"given --multihost: {num_hosts} hosts run it", f"{command} --multihost"
        )
    if host_path is not None and not host_path.startswith("/"):
        raise InvalidArgument("host_path", host_path, "an absolute path", f"/{host_path}")
    if service_account is not None and bucket is None:
        raise InvalidArgument("service_account", service_account, "left out without a bucket")
    check_whole("max_restarts", max_restarts, 0)
    pod = _pod(ACCELERATORS[accelerator].node_label, topology, chips, image, command, spot)
    annotations = _mount(pod["spec"], bucket, service_account, host_path)
    if annotations:
        pod = {"metadata": {"annotations": annotations}, **pod}
    job = {"completionMode": "Indexed", "parallelism": num_hosts, "completions": num_hosts, "backoffLimit": 0}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "network": {"enableDNSHostnames": True},
            "successPolicy": {"operator": "All"},
            "failurePolicy": {"maxRestarts": max_restarts},
            "replicatedJobs": [{"name": "hosts", "replicas": 1, "template": {"spec": {**job, "template": pod}}}],
        },
    }


def _pod(node_label: str, topology: str, chips: int, image: str, command: str, spot: bool) -> dict[str, Any]:
    """The template of a host's pod."""
    container = {
        "name": "bsjax",
        "image": image,
        "command": shlex.split(command),
        "ports": [{"containerPort": _COORDINATOR_PORT}],
        "resources": {kind: {"google.com/tpu": chips} for kind in ("requests", "limits")},
    }
    selector = {"cloud.google.com/gke-tpu-accelerator": node_label, "cloud.google.com/gke-tpu-topology": topology}
    if spot:
        selector["cloud.google.com/gke-spot"] = "true"
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": _GRACE_S, "nodeSelector": selector}
    return {"spec": {**spec, "containers": [container]}}


def _mount(
    pod: dict[str, Any], bucket: str | None, service_account: str | None, host_path: str | None
) -> dict[str, str]:
    """Adds the bucket and the host's folder to a pod; returns the annotations that it needs for them."""
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if bucket is not None:
        driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": {"bucketName": bucket}}
        volumes.append({"name": "bucket", "csi": driver})
        mounts.append({"name": "bucket", "mountPath": "/bucket"})
    if service_account is not None:
        pod["serviceAccountName"] = service_account
    if host_path is not None:
        volumes.append({"name": "data", "hostPath": {"path": host_path, "type": "Directory"}})
        mounts.append({"name": "data", "mountPath": "/data", "readOnly": True})
    if volumes:
        pod["volumes"], pod["containers"][0]["volumeMounts"] = volumes, mounts
    return {"gke-gcsfuse/volumes": "true"} if bucket is not None else {}


def main(argv: list[str]) -> None:
    """Prints the manifest of the flags; bad input exits with 2, after one line."""
    chosen: tuple[Any, ...] = (_NAME, _ACCELERATOR, _TOPOLOGY, _IMAGE, _COMMAND, _BUCKET, _SERVICE_ACCOUNT, _HOST_PATH)
    try:
        if len(argv) > 1:
            raise InvalidArgument("argument", argv[1], "a flag, such as --topology=4x4")
        found = manifest(**{flag.name: flag.value for flag in (*chosen, _SPOT, _MAX_RESTARTS)})
    except InvalidArgument as error:
        print(f"error: --{error}", file=sys.stderr)
        sys.exit(2)
    print(yaml.safe_dump(found, sort_keys=False, width=_LONGEST_LINE), end="")


if __name__ == "__main__":
    app.run(main)
