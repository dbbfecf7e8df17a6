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
    _run(x, centroids, labels, sq_dist, check=check)
    return labels, sq_dist


def fill(
    x: Tensor, centroids: Tensor, precision: str, labels: Tensor, sq_dist: Tensor | None
) -> None:
    """Fills labels (N,) and, unless it is None, sq_dist (N,), unchecked."""
    _run(x, centroids, labels, sq_dist)


def forward_and_update(
    x: Tensor,
    centroids: Tensor,
    sample_weight: Tensor | None,
    precision: str,
    labels: Tensor,
    sq_dist: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fills these; sums (K, D) and counts (K,) in float64, in one pass where K D is small."""
    sums, counts = _room_for_sums(centroids)
    weight = None if sample_weight is None else sample_weight.to(centroids.dtype).contiguous()
    _run(x, centroids, labels, sq_dist, weight=weight, sums=sums, counts=counts)
    return sums, counts


def forward_and_changes(
    x: Tensor, centroids: Tensor, labels: Tensor, sq_dist: Tensor | None, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same without weights; since labels before (N,) what sums and counts gain, if given."""
    sums, counts = _room_for_sums(centroids)
    _run(x, centroids, labels, sq_dist, before=before, sums=sums, counts=counts)
    return sums, counts


def _room_for_sums(centroids: Tensor) -> tuple[Tensor, Tensor]:
    sums = torch.empty(centroids.shape, dtype=torch.float64)
    return sums, torch.empty(len(centroids), dtype=torch.float64)


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
    labels: Tensor,
    sq_dist: Tensor | None,
    *,
    weight: Tensor | None = None,
    before: Tensor | None = None,
    sums: Tensor | None = None,
    counts: Tensor | None = None,
    check: bool = False,
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
        address(before),
        address(sums),
        address(counts),
        torch.get_num_threads(),
        check,
    )
    refuse(bad, "x", "centroids")


def round_and_update(
    x: Tensor, centroids: Tensor, labels: Tensor
) -> tuple[Tensor, int, float, Tensor, Tensor]:
    """Rows as integers, as `nearest` takes them, and the first iteration of Lloyd's algorithm.

    Fills labels (N,). Returns the integers, how many rows these left open, the rows' scatter around
    their mean, sums (K, D) and counts (K,) in float64; in one pass where K D is small. By
    csrc/kmeans_rounded.cpp.
    """
    n, d, dtype = *x.shape, DTYPES[x.dtype]
    rounded = torch.empty(_C.kmeans_rounded_bytes(n, d, dtype), dtype=torch.uint8)
    sums, counts = _room_for_sums(centroids)
    n_open, scatter = _C.kmeans_round(
        matrix(x),
        matrix(centroids),
        n,
        d,
        len(centroids),
        dtype,
        rounded.data_ptr(),
        labels.data_ptr(),
        sums.data_ptr(),
        counts.data_ptr(),
        torch.get_num_threads(),
    )
    return rounded, n_open, scatter, sums, counts


def nearest(
    rounded: Tensor, x: Tensor, centroids: Tensor, labels: Tensor, sq_dist: Tensor | None
) -> int:
    """Fills labels (N,) and, unless it is None, sq_dist (N,); how many rows integers left open.

    By csrc/kmeans_rounded.cpp.
    """
    return _of_rounded(rounded, x, centroids, labels, sq_dist)


def nearest_and_changes(
    rounded: Tensor,
    x: Tensor,
    centroids: Tensor,
    labels: Tensor,
    sq_dist: Tensor | None,
    before: Tensor | None,
) -> tuple[int, Tensor, Tensor]:
    """The same, with sums (K, D) and counts (K,), as `forward_and_changes` has them."""
    sums, counts = _room_for_sums(centroids)
    n_open = _of_rounded(rounded, x, centroids, labels, sq_dist, before, sums, counts)
    return n_open, sums, counts


def _of_rounded(
    rounded: Tensor,
    x: Tensor,
    centroids: Tensor,
    labels: Tensor,
    sq_dist: Tensor | None,
    before: Tensor | None = None,
    sums: Tensor | None = None,
    counts: Tensor | None = None,
) -> int:
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
        address(before),
        address(sums),
        address(counts),
        torch.get_num_threads(),
    )
