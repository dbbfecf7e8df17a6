"""labels and squared distances by csrc/kmeans_assign.cpp, which states the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust import _C
from deepclust.kernels._pointers import DTYPES, matrix, refuse


def forward(x: Tensor, centroids: Tensor, check: bool) -> tuple[Tensor, Tensor]:
    """labels (N,), sq_dist (N,)."""
    x = x.to(centroids.dtype)
    n, d = x.shape
    labels = torch.empty(n, dtype=torch.int64)
    sq_dist = torch.empty(n, dtype=x.dtype)
    bad = _C.kmeans_assign(
        matrix(x),
        matrix(centroids),
        n,
        d,
        centroids.shape[0],
        DTYPES[x.dtype],
        labels.data_ptr(),
        sq_dist.data_ptr(),
        torch.get_num_threads(),
        check,
    )
    refuse(bad, "x", "centroids")
    return labels, sq_dist
