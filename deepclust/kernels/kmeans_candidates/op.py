"""Candidates for a further centroid: what k-means++ asks of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels import _checks, _dispatch, _operators
from deepclust.kernels._arrays import Array, on_tensors


def kmeans_candidates(
    x: Array,
    candidates: Array,
    nearest: Array | None = None,
    sample_weight: Array | None = None,
    *,
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> tuple[Array, Array]:
    """How near each row is to a centroid if this or that candidate becomes one.

    sq_dist_ci = min(nearest_i, ||x_i - m_c||^2) and potentials_c = sum_i w_i sq_dist_ci: greedy
    k-means++ (Arthur and Vassilvitskii, 2007) takes the candidate of least potential. Nothing here
    carries a gradient.

    Args:
        x: Rows (N, D): a tensor, or an array of NumPy or with DLPack, and so are the results.
        candidates: m (C, D), a few.
        nearest: Squared distances (N,) to the nearest centroid so far; None where there is none.
        sample_weight: w (N,), by default all 1.
        backend: "auto", "eager", "cpp" or "triton".
        precision: "exact" or "fast": both are direct differences.
        check: Refuse NaN and Inf (on CPU).

    Returns:
        sq_dist (C, N) and potentials (C,), added up in float64, both in x's type (float32 for half
        types).

    Raises:
        ValueError: If shapes or devices do not fit, or a row has NaN or Inf.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> x = torch.tensor([[0.0], [1.0], [5.0]])
        >>> F.kmeans_candidates(x, x[1:], nearest=torch.tensor([0.0, 1.0, 25.0]))
        (tensor([[ 0.,  0., 16.],
                [ 0.,  1.,  0.]]), tensor([16.,  1.]))
    """
    found: tuple[Array, Array] = on_tensors(
        _kmeans_candidates, x, candidates, nearest, sample_weight, backend, precision, check
    )
    return found


def _kmeans_candidates(
    x: Tensor,
    candidates: Tensor,
    nearest: Tensor | None,
    sample_weight: Tensor | None,
    backend: str,
    precision: str,
    check: bool,
) -> tuple[Tensor, Tensor]:
    _dispatch.check_options(backend, precision)
    _checks.check_clusters("candidates", candidates)
    _checks.check_matrix("x", x, candidates.shape[1])
    for name, vector in (("nearest", nearest), ("sample_weight", sample_weight)):
        if vector is not None:
            _checks.check_vector(name, vector, x.shape[0])
    _checks.check_together(x=x, candidates=candidates, nearest=nearest, sample_weight=sample_weight)
    args = (x, candidates, nearest, sample_weight, backend, check)
    if _operators.wanted():
        compiled: tuple[Tensor, Tensor] = _operators.run("kmeans_candidates", *args)
        return compiled
    return _forward(*args)


@torch.no_grad()
def _forward(
    x: Tensor,
    candidates: Tensor,
    nearest: Tensor | None,
    sample_weight: Tensor | None,
    backend: str,
    check: bool,
) -> tuple[Tensor, Tensor]:
    check, dtype = _checks.wants_check(check, x), _checks.compute_dtype(x.dtype)
    for name, vector in (("nearest", nearest), ("sample_weight", sample_weight)):
        if check and vector is not None:
            _checks.check_finite(name, vector)
    sq_dist = x.new_empty(len(candidates), x.shape[0], dtype=dtype)
    potentials = fill_candidates(x, candidates, nearest, sample_weight, sq_dist, backend, check)
    return sq_dist, potentials.to(dtype)


@torch.no_grad()
def fill_candidates(
    x: Tensor,
    candidates: Tensor,
    nearest: Tensor | None,
    sample_weight: Tensor | None,
    sq_dist: Tensor,
    backend: str,
    check: bool = False,
) -> Tensor:
    """`kmeans_candidates` into sq_dist (C, N): memory that is new each time costs as much as they.

    Returns the potentials (C,) in float64, so that those of several blocks add up as those of one.
    """
    kernel = _dispatch.kernel("kmeans_candidates", backend, x.device)
    dtype = sq_dist.dtype
    potentials: Tensor = kernel.forward(
        x,
        candidates.to(dtype),
        None if nearest is None else nearest.to(dtype),
        None if sample_weight is None else sample_weight.to(dtype),
        check,
        sq_dist,
    )
    return potentials


_operators.define(
    "kmeans_candidates(Tensor x, Tensor candidates, Tensor? nearest, Tensor? sample_weight,"
    " str backend, bool check) -> (Tensor, Tensor)",
    _forward,
    fake=lambda x, candidates, nearest, sample_weight, backend, check: (
        x.new_empty(len(candidates), x.shape[0], dtype=_checks.compute_dtype(x.dtype)),
        x.new_empty(len(candidates), dtype=_checks.compute_dtype(x.dtype)),
    ),
)
