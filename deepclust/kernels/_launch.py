"""The one way in which Triton kernels are launched, and how their work is cut into parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepclust.kernels._tiles import Tiles, chip_of

# Bytes of partial sums that the programs of one launch may leave behind for the second stage.
PARTIAL_BYTES = 32 << 20
# Rows whose normalisers are kept between the kernels of one call: 16 MB of float64.
SEGMENT_ROWS = 1 << 21
# Programs that share the rows of a kernel whose sums stay in registers: whatever the number of
# processors, so that the bits do not depend on it; enough for seven on each of 132.
MAX_PROGRAMS = 1024


class Launch(NamedTuple):
    """A launch that was recorded instead of run."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]


_records: list[list[Launch]] = []


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Record launches instead of running them: what a chip that is not there would be given."""
    _records.append([])
    try:
        yield _records[-1]
    finally:
        _records.pop()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, tiles: Tiles, **constants: Any) -> None:
    """Run `kernel` over `grid` on the device and the current stream of its tensors."""
    if 0 in grid:
        return
    options = {
        **constants,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "enable_fp_fusion": True,
    }
    tensor = next(arg for arg in args if isinstance(arg, Tensor))
    if chip_of(tensor.device).is_nvidia:
        options["maxnreg"] = 255  # else ptxas would rather spill some than fit fewer programs
    if _records:
        _records[-1].append(Launch(kernel, grid, args, options))
        return
    # Triton launches on the current device, whichever the tensors are on.
    with torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext():
        kernel[grid](*args, **options)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def parts_of(n: int, block: int, bytes_each: int) -> int:
    """Into how many parts rows are cut whose partial sums take `bytes_each` a part."""
    return max(1, min(cdiv(n, block), MAX_PROGRAMS, PARTIAL_BYTES // max(bytes_each, 1)))


def row_segments(n: int) -> Iterator[slice]:
    """Cut n rows into slices of at most SEGMENT_ROWS."""
    for start in range(0, n, SEGMENT_ROWS):
        yield slice(start, min(start + SEGMENT_ROWS, n))
