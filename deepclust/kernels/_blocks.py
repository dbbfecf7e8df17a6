"""Rows in blocks, so that plain torch never holds N x K numbers at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Elements of one (rows, K) or (rows, D) temporary: 2 MB in float32, so that the handful that are
# alive at a time stay in the outer caches and far inside the budget of 64 MB.
BLOCK_ELEMENTS = 1 << 19


def row_blocks(n: int, width: int) -> Iterator[slice]:
    """Cut n rows into slices of at most BLOCK_ELEMENTS // width rows, at least one row each."""
    rows = max(1, BLOCK_ELEMENTS // max(1, width))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def block_sizes(n: int, width: int) -> list[int]:
    """The lengths of these slices; one of 0 for no rows, so that a result keeps its gradient."""
    return [rows.stop - rows.start for rows in row_blocks(n, width)] or [0]


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off: a clustering loss must not round its distances to half precision."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
