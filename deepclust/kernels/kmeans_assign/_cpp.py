"""labels and squared distances by csrc/kmeans_assign.cpp, which states the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust import _C
from deepclust.kernels import _checks


def forward(x: Tensor, centroids: Tensor, check: bool) -> tuple[Tensor, Tensor]:
    """labels (N,), sq_dist (N,)."""
    x = x.to(centroids.dtype)
    n, d = x.shape
    labels = torch.empty(n, dtype=torch.int64)
    sq_dist = torch.empty(n, dtype=x.dtype)
    bad_row = _C.kmeans_assign(
        x.data_ptr(),
        (x.stride(0), x.stride(1)),
        centroids.data_ptr(),
        (centroids.stride(0), centroids.stride(1)),
        n,
        d,
        centroids.shape[0],
        "float64" if x.dtype == torch.float64 else "float32",
        labels.data_ptr(),
        sq_dist.data_ptr(),
        torch.get_num_threads(),
        check,
    )
    if bad_row >= 0:
        _checks.bad_row("x", bad_row)
    return labels, sq_dist
