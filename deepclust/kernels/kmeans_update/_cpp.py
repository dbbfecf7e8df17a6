"""Sums and counts by csrc/kmeans_update.cpp, which states the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust import _C
from deepclust.kernels import _checks
from deepclust.kernels._pointers import DTYPES, address, matrix, refuse


def forward(
    x: Tensor, labels: Tensor, n_clusters: int, sample_weight: Tensor | None, check: bool
) -> tuple[Tensor, Tensor]:
    """sums (K, D) and counts (K,), in float64."""
    return _run(x, labels, None, n_clusters, sample_weight, check)


def changes(x: Tensor, labels: Tensor, before: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
    """What labels add to sums (K, D) and counts (K,) of those before, in float64."""
    return _run(x, labels, before.contiguous(), n_clusters, None, False)


def _run(
    x: Tensor,
    labels: Tensor,
    before: Tensor | None,
    n_clusters: int,
    sample_weight: Tensor | None,
    check: bool,
) -> tuple[Tensor, Tensor]:
    n, d = x.shape
    dtype = _checks.compute_dtype(x.dtype)
    rows, labels = x.to(dtype), labels.contiguous()
    weight = None if sample_weight is None else sample_weight.to(dtype).contiguous()
    sums = torch.empty(n_clusters, d, dtype=torch.float64)
    counts = torch.empty(n_clusters, dtype=torch.float64)
    bad = _C.kmeans_update(
        matrix(rows),
        n,
        d,
        n_clusters,
        DTYPES[dtype],
        labels.data_ptr(),
        address(before),
        address(weight),
        sums.data_ptr(),
        counts.data_ptr(),
        torch.get_num_threads(),
        check,
    )
    refuse(bad, "x", "sample_weight", labels=labels, before=before, n_clusters=n_clusters)
    return sums, counts
