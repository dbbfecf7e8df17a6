"""p from a stored q by csrc/targets.cpp, which states the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust import _C
from deepclust.kernels import _checks
from deepclust.kernels._pointers import DTYPES, address, matrix


def forward(
    q: Tensor, frequencies: Tensor | None, prior: Tensor | None, power: float, check: bool
) -> Tensor:
    """p (N, K)."""
    n, k = q.shape
    f = None if frequencies is None else frequencies.double().contiguous()
    u = None if prior is None else prior.double().contiguous()
    p = torch.empty(n, k, dtype=q.dtype)
    bad = _C.targets(
        matrix(q),
        n,
        k,
        DTYPES[q.dtype],
        address(f),
        address(u),
        power,
        p.data_ptr(),
        torch.get_num_threads(),
        check,
    )
    if bad is not None:
        _checks.check_nonnegative("q", q)
    return p
