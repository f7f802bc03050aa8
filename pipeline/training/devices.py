"""What devices can do: the name of a GPU in, its dense peak and memory out; of a CPU, its measured matrix product.

Peaks are those without sparsity, of bf16 matrix products that sum in fp32, as NVIDIA's and AMD's data sheets give them; the
larger figures that stand beside them there are with sparsity, which training does not have. The table needs no torch.
"""

import re
import time
from typing import NamedTuple


class Gpu(NamedTuple):
    """A model of GPU: `peak` in floating-point operations a second (dense, bf16), `memory` in bytes."""

    peak: float
    memory: int


GIB = 1 << 30
GPUS = {  # by what device names have as a whole word; longer names first
    "H100 PCIe": Gpu(756e12, 80 * GIB),
    "H100 NVL": Gpu(835e12, 94 * GIB),
    "H200 NVL": Gpu(835e12, 141 * GIB),
    "A100": Gpu(312e12, 80 * GIB),
    "A800": Gpu(312e12, 80 * GIB),
    "H100": Gpu(989e12, 80 * GIB),
    "H800": Gpu(989e12, 80 * GIB),
    "H200": Gpu(989e12, 141 * GIB),
    "GH200": Gpu(989e12, 96 * GIB),
    "B200": Gpu(2250e12, 180 * GIB),
    "A30": Gpu(165e12, 24 * GIB),
    "A40": Gpu(149.7e12, 48 * GIB),
    "L4": Gpu(121e12, 24 * GIB),
    "L40S": Gpu(362e12, 48 * GIB),
    "MI250X": Gpu(383e12, 128 * GIB),
    "MI300X": Gpu(1307e12, 192 * GIB),
}


def find_gpu(name: str) -> Gpu | None:
    """The GPU of a device name such as "NVIDIA A100-SXM4-80GB"; None where it is not known, or a part of one (MIG)."""
    if re.search(r"\bMIG\b", name):
        return None
    return next((gpu for known, gpu in GPUS.items() if re.search(rf"\b{known}\b", name, re.IGNORECASE)), None)


def peak_flops(device: str, dtype: str) -> float | None:
    """Floating-point operations a second that a rank on `device` (cpu or cuda) can do at best in `dtype` (bf16 or fp32).

    Of a GPU its peak in the table, for bf16 alone. Of a CPU what the best of several products of matrices of 1024 x 1024 gives
    now, with this process's threads: it takes a fifth of a second. None where nothing is known.
    """
    import torch

    if device == "cuda":
        gpu = find_gpu(torch.cuda.get_device_name())
        return gpu.peak if gpu and dtype == "bf16" else None
    size = 1024
    matrix = torch.ones(size, size, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_memory(device: str) -> int:
    """Bytes that this process has had at most: on a GPU of its allocator, on a CPU resident (VmHWM of Linux)."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
