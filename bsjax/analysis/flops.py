"""The peak rates of devices, in floating-point operations per second."""

# Dense matrix products, in FLOP/s, by `jax.Device.device_kind`: (bfloat16 and float16, float32). The float32 rate is
# that of JAX's default precision, which rounds the factors: to TF32 on NVIDIA's tensor cores, to bfloat16 on TPUs.
# Sources: the vendors' pages, as below. NVIDIA's list most rates with sparsity, which are twice as large.
#   A100 https://www.nvidia.com/en-us/data-center/a100/
#   H100 https://www.nvidia.com/en-us/data-center/h100/
#   H200 https://www.nvidia.com/en-us/data-center/h200/
#   TPU https://cloud.google.com/tpu/docs/v4, and the same for v5e, v5p, v6e
_PEAKS = {
    "NVIDIA A100-SXM4-40GB": (312e12, 156e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 156e12),
    "NVIDIA A100-PCIE-40GB": (312e12, 156e12),
    "NVIDIA A100 80GB PCIe": (312e12, 156e12),
    "NVIDIA H100 80GB HBM3": (989.4e12, 494.7e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA H200": (989.4e12, 494.7e12),
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5e": (197e12, 197e12),
    "TPU v5": (459e12, 459e12),
    "TPU v5p": (459e12, 459e12),
    "TPU v6 lite": (918e12, 918e12),
    "TPU v6e": (918e12, 918e12),
}
_COLUMNS = {"bfloat16": 0, "float16": 0, "float32": 1}


def has_peak(device_kind: str) -> bool:
    """Whether the peak of such a device is known."""
    return device_kind in _PEAKS


def peak_flops_per_s(device_kind: str, dtype: str | None) -> float | None:
    """The peak of a device in dense matrix products, by its vendor; None where it is not known.

    Args:
      device_kind: of a `jax.Device`.
      dtype: of the factors.

    >>> peak_flops_per_s("NVIDIA H200", "bfloat16"), peak_flops_per_s("cpu", "float32")
    (989400000000000.0, None)
    """
    if dtype not in _COLUMNS or device_kind not in _PEAKS:
        return None
    return _PEAKS[device_kind][_COLUMNS[dtype]]
