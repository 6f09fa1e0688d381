"""Clusters that ImageNet's figures may be trained on, and what is assumed of them. No flags.

Nothing here was measured with this code. Prices change: look them up.
"""

from typing import NamedTuple

from bsjax.analysis.flops import peak_flops_per_s
from bsjax.analysis.time_model import AllReduce

# Share of the peak that the models reach: guesses, not measurements of this code. NVIDIA's own ResNet-50 trains at
# about 3,000 images/s on an H100, 0.07 of its peak, because batch norm and ReLU wait for the memory.
TPU_UTILISATION, GPU_UTILISATION = 0.35, 0.10
# Seconds per microbatch beyond its operations, and of the optimizer's step: those of experiments/scaling.
MICROBATCH_S, APPLY_UPDATE_S = 1e-3, 3e-4
LATENCY_S = 1e-5  # per message of an all-reduce
# JPEGs of 500×375 pixels decoded and cropped per second by a core of a host: less than half of what a core of one
# machine does (scripts/benchmark.py --part=input, docs/imagenet.md), because vendors count two threads of a core.
IMAGES_PER_CORE_S = 277.0


class Cluster(NamedTuple):
    """Devices of one kind, and their hosts."""

    name: str
    device_kind: str  # of `bsjax.analysis.flops`
    num_devices: int
    num_hosts: int
    cores_per_host: int  # as the vendor counts them: hardware threads
    bytes_per_s: float  # of a device in an all-reduce, in one direction
    utilisation: float
    price: float  # dollars per device and hour

    @property
    def flops_per_s(self) -> float:
        """What a device sustains."""
        peak = peak_flops_per_s(self.device_kind, "bfloat16")
        assert peak is not None, self.device_kind
        return self.utilisation * peak

    @property
    def all_reduce(self) -> AllReduce:
        return AllReduce(LATENCY_S, self.bytes_per_s)


# Hosts of 4 chips: https://cloud.google.com/tpu/docs/v5e and https://cloud.google.com/tpu/docs/v4. v4-512 counts
# TensorCores, of which a chip has two. Bandwidth of a TPU: a pod's all-reduce, by these pages 51.2 TB/s for 256 chips
# of v5e and 1.1 PB/s for 4,096 of v4, per chip; of an H200: half of NVLink's 900 GB/s, which count both directions
# (https://www.nvidia.com/en-us/data-center/h200/). Prices: on demand, as remembered of 2025, not looked up: us-central
# for the TPUs, an instance of eight H200 at $63.30 an hour (https://cloud.google.com/tpu/pricing,
# https://aws.amazon.com/ec2/pricing/on-demand).
CLUSTERS = {
    cluster.name: cluster
    for cluster in (
        Cluster("v5e-256", "TPU v5e", 256, 64, 112, 51.2e12 / 256, TPU_UTILISATION, 1.20),
        Cluster("v4-512", "TPU v4", 256, 64, 240, 1.1e15 / 4096, TPU_UTILISATION, 3.22),
        Cluster("8×H200", "NVIDIA H200", 8, 1, 192, 450e9, GPU_UTILISATION, 7.91),
    )
}
