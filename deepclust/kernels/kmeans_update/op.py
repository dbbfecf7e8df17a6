"""Centroid update: the sum and the weight of the rows of each cluster."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels import _checks, _dispatch, _operators
from deepclust.kernels._arrays import Array, on_tensors


def kmeans_update(
    x: Array,
    labels: Array,
    n_clusters: int,
    sample_weight: Array | None = None,
    *,
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> tuple[Array, Array]:
    """Weighted sums and counts of the rows of each cluster.

    sums_j = sum_{i: labels_i = j} w_i x_i and counts_j = sum_{i: labels_i = j} w_i; the update step
    of Lloyd's algorithm (1982) is sums / counts. Nothing here carries a gradient.

    Args:
        x: Rows (N, D): a tensor, or an array of NumPy or with DLPack, and so are the results.
        labels: Labels (N,) int64, from 0 to K - 1.
        n_clusters: K, at least 1.
        sample_weight: w (N,), by default all 1.
        backend: "auto", "eager", "cpp" or "triton".
        precision: "exact" or "fast".
        check: Refuse NaN and Inf, and labels out of range (on CPU).

    Returns:
        sums (K, D) and counts (K,), added up in float64 and given in x's type (float32 for half
        types).

    Raises:
        ValueError: If shapes, devices or values do not fit.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> x, labels = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> F.kmeans_update(x, labels, 3)
        (tensor([[3.],
                [5.],
                [0.]]), tensor([2., 1., 0.]))
    """
    found: tuple[Array, Array] = on_tensors(
        _kmeans_update, x, labels, n_clusters, sample_weight, backend, precision, check
    )
    return found


def _kmeans_update(
    x: Tensor,
    labels: Tensor,
    n_clusters: int,
    sample_weight: Tensor | None,
    backend: str,
    precision: str,
    check: bool,
) -> tuple[Tensor, Tensor]:
    _dispatch.check_options(backend, precision)
    if isinstance(n_clusters, bool) or not isinstance(n_clusters, int) or n_clusters < 1:
        raise ValueError(f"n_clusters: got {n_clusters!r}; it takes an integer of at least 1")
    _checks.check_matrix("x", x)
    _checks.check_labels("labels", labels, x.shape[0])
    if sample_weight is not None:
        _checks.check_vector("sample_weight", sample_weight, x.shape[0])
    _checks.check_same_device(x=x, labels=labels, sample_weight=sample_weight)
    args = (x, labels, n_clusters, sample_weight, backend, check)
    if _operators.wanted():
        compiled: tuple[Tensor, Tensor] = _operators.run("kmeans_update", *args)
        return compiled
    return _forward(*args)


def _forward(
    x: Tensor,
    labels: Tensor,
    n_clusters: int,
    sample_weight: Tensor | None,
    backend: str,
    check: bool,
) -> tuple[Tensor, Tensor]:
    sums, counts = label_sums(x, labels, n_clusters, sample_weight, backend, check=check)
    dtype = _checks.compute_dtype(x.dtype)
    return sums.to(dtype), counts.to(dtype)


@torch.no_grad()
def label_sums(
    x: Tensor,
    labels: Tensor,
    n_clusters: int,
    sample_weight: Tensor | None,
    backend: str,
    *,
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sums (K, D) and counts (K,) as they were added up, in float64."""
    kernel = _dispatch.kernel("kmeans_update", backend, x.device)
    found: tuple[Tensor, Tensor] = kernel.forward(
        x, labels, n_clusters, sample_weight, _checks.wants_check(check, x)
    )
    return found


@torch.no_grad()
def label_changes(
    x: Tensor, labels: Tensor, before: Tensor, n_clusters: int, backend: str
) -> tuple[Tensor, Tensor]:
    """What sums (K, D) and counts (K,) gain as labels (N,) take the place of those before (N,).

    label_sums(x, labels) - label_sums(x, before) without weights, in float64, of which the rows
    that kept their label are no part. Unchecked but for labels out of range.
    """
    kernel = _dispatch.kernel("kmeans_update", backend, x.device)
    if hasattr(kernel, "changes"):
        found: tuple[Tensor, Tensor] = kernel.changes(x, labels, before, n_clusters)
        return found
    changed = torch.nonzero(labels != before).squeeze(1)
    rows = x[changed]
    more = label_sums(rows, labels[changed], n_clusters, None, backend)
    less = label_sums(rows, before[changed], n_clusters, None, backend)
    return more[0] - less[0], more[1] - less[1]


_operators.define(
    "kmeans_update(Tensor x, Tensor labels, int n_clusters, Tensor? sample_weight, str backend,"
    " bool check) -> (Tensor, Tensor)",
    _forward,
    fake=lambda x, labels, n_clusters, sample_weight, backend, check: (
        x.new_empty(n_clusters, x.shape[1], dtype=_checks.compute_dtype(x.dtype)),
        x.new_empty(n_clusters, dtype=_checks.compute_dtype(x.dtype)),
    ),
)
