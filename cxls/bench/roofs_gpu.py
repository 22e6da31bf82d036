"""What a GPU can do, measured where there is one: copies to it, its memory, products of matrices."""

import torch

from cxls.bench import roofs
from cxls.bench.report import Figure

NOT_MEASURED = "not measured on a GPU"
_COPY_BYTES = 64 << 20
_MEMORY_BYTES = 1 << 30
_MATRIX = 8192
_NAMES = (
    ("PCIe: pinned memory to the GPU", "GB/s"),
    ("PCIe: GPU to pinned memory", "GB/s"),
    ("GPU: memory copied, read and written", "GB/s"),
    ("GPU: product of matrices, bfloat16", "GFLOP/s"),
)


def measure() -> list[Figure]:
    """Best of some rounds of each; without a GPU the rows say so."""
    if not torch.cuda.is_available():
        return [Figure(name, unit, None, note=NOT_MEASURED) for name, unit in _NAMES]
    host = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    near = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    source, target = (torch.empty(_MEMORY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    values = (
        _gb_s(near, host, _COPY_BYTES),
        _gb_s(host, near, _COPY_BYTES),
        _gb_s(target, source, 2 * _MEMORY_BYTES),
        roofs.matmul_gflop_s("cuda", torch.bfloat16, _MATRIX),
    )
    device = torch.cuda.get_device_name()
    return [Figure(name, unit, value, note=device) for (name, unit), value in zip(_NAMES, values, strict=True)]


def _gb_s(target: torch.Tensor, source: torch.Tensor, moved: int) -> float:
    def work() -> None:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()

    return moved / roofs.best_s(work) / 1e9
