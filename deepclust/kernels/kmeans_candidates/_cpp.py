"""Distances and potentials by csrc/kmeans_candidates.cpp, which states the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust import _C
from deepclust.kernels._pointers import DTYPES, address, matrix, refuse


def forward(
    x: Tensor,
    candidates: Tensor,
    nearest: Tensor | None,
    sample_weight: Tensor | None,
    check: bool,
    sq_dist: Tensor,
) -> Tensor:
    """Fills sq_dist (C, N); potentials (C,) in float64."""
    x = x.to(candidates.dtype)
    (n, d), k = x.shape, len(candidates)
    nearest = None if nearest is None else nearest.contiguous()
    weight = None if sample_weight is None else sample_weight.contiguous()
    potentials = torch.empty(k, dtype=torch.float64)
    bad = _C.kmeans_candidates(
        matrix(x),
        matrix(candidates),
        n,
        d,
        k,
        DTYPES[x.dtype],
        address(nearest),
        address(weight),
        sq_dist.data_ptr(),
        potentials.data_ptr(),
        torch.get_num_threads(),
        check,
    )
    refuse(bad, "x", "candidates")
    return potentials
