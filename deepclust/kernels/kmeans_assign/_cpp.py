"""labels and squared distances by csrc/kmeans_assign.cpp, which states the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust import _C
from deepclust.kernels._pointers import DTYPES, address, matrix, refuse


def forward(x: Tensor, centroids: Tensor, precision: str, check: bool) -> tuple[Tensor, Tensor]:
    """labels (N,), sq_dist (N,)."""
    labels = torch.empty(len(x), dtype=torch.int64)
    sq_dist = torch.empty(len(x), dtype=centroids.dtype)
    _run(x, centroids, None, labels, sq_dist, None, None, check)
    return labels, sq_dist


def fill(
    x: Tensor, centroids: Tensor, precision: str, labels: Tensor, sq_dist: Tensor | None
) -> None:
    """Fills labels (N,) and, unless it is None, sq_dist (N,), unchecked."""
    _run(x, centroids, None, labels, sq_dist, None, None, False)


def forward_and_update(
    x: Tensor,
    centroids: Tensor,
    sample_weight: Tensor | None,
    precision: str,
    labels: Tensor,
    sq_dist: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fills these; sums (K, D) and counts (K,) in float64, in one pass where K D is small."""
    sums = torch.empty(centroids.shape, dtype=torch.float64)
    counts = torch.empty(centroids.shape[0], dtype=torch.float64)
    weight = None if sample_weight is None else sample_weight.to(centroids.dtype).contiguous()
    _run(x, centroids, weight, labels, sq_dist, sums, counts, False)
    return sums, counts


def batch(
    x: Tensor,
    rows: Tensor | None,
    sample_weight: Tensor | None,
    centroids: Tensor,
    counts: Tensor,
) -> tuple[float, Tensor, Tensor]:
    """inertia, centroids (K, D) and counts (K,) after a step, by csrc/kmeans_batch.cpp."""
    moved, given = torch.empty(centroids.shape, dtype=centroids.dtype), torch.empty_like(counts)
    k, d = centroids.shape
    inertia = _C.kmeans_batch(
        matrix(x),
        address(rows),
        matrix(centroids),
        len(x) if rows is None else len(rows),
        d,
        k,
        DTYPES[x.dtype],
        address(sample_weight),
        counts.data_ptr(),
        moved.data_ptr(),
        given.data_ptr(),
        torch.get_num_threads(),
    )
    return inertia, moved, given


def n_bounds(d: int, k: int, dtype: torch.dtype) -> int:
    """Lower bounds of a row that `step` keeps."""
    return _C.kmeans_step_groups(d, k, DTYPES[dtype])


def step(
    x: Tensor,
    centroids: Tensor,
    moved: Tensor,
    labels: Tensor,
    upper: Tensor,
    lower: Tensor,
    sq_dist: Tensor | None,
) -> None:
    """labels (N,) and bounds (N,), (N, n_bounds) go on to other centroids, in place.

    By csrc/kmeans_step.cpp. moved (K,) is how far each centroid moved, or more; sq_dist (N,) is
    filled, unless it is None.
    """
    n, d = x.shape
    _C.kmeans_step(
        matrix(x),
        matrix(centroids),
        n,
        d,
        len(centroids),
        DTYPES[x.dtype],
        moved.data_ptr(),
        labels.data_ptr(),
        upper.data_ptr(),
        lower.data_ptr(),
        address(sq_dist),
        torch.get_num_threads(),
    )


def _run(
    x: Tensor,
    centroids: Tensor,
    weight: Tensor | None,
    labels: Tensor,
    sq_dist: Tensor | None,
    sums: Tensor | None,
    counts: Tensor | None,
    check: bool,
) -> None:
    x = x.to(centroids.dtype)
    n, d = x.shape
    bad = _C.kmeans_assign(
        matrix(x),
        matrix(centroids),
        n,
        d,
        centroids.shape[0],
        DTYPES[x.dtype],
        labels.data_ptr(),
        address(sq_dist),
        address(weight),
        address(sums),
        address(counts),
        torch.get_num_threads(),
        check,
    )
    refuse(bad, "x", "centroids")


def round_rows(x: Tensor) -> Tensor:
    """Rows as integers: what `nearest` takes."""
    n, d, dtype = *x.shape, DTYPES[x.dtype]
    rounded = torch.empty(_C.kmeans_rounded_bytes(n, d, dtype), dtype=torch.uint8)
    _C.kmeans_round(matrix(x), n, d, dtype, rounded.data_ptr(), torch.get_num_threads())
    return rounded


def nearest(
    rounded: Tensor, x: Tensor, centroids: Tensor, labels: Tensor, sq_dist: Tensor | None
) -> int:
    """Fills labels (N,) and, unless it is None, sq_dist (N,); how many rows integers left open.

    By csrc/kmeans_rounded.cpp.
    """
    n, d = x.shape
    return _C.kmeans_rounded(
        rounded.data_ptr(),
        matrix(x),
        matrix(centroids),
        n,
        d,
        len(centroids),
        DTYPES[x.dtype],
        labels.data_ptr(),
        address(sq_dist),
        torch.get_num_threads(),
    )
