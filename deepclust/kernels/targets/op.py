"""Target distributions from a stored q: DEC's and DEPICT's, one formula with two powers."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels import _checks, _dispatch, _operators
from deepclust.kernels._arrays import Array, on_tensors


def dec_target(
    q: Array,
    frequencies: Array | None = None,
    *,
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> Array:
    """The target distribution of DEC, which sharpens q and divides out the cluster sizes.

    p_ij = (q_ij^2 / f_j) / sum_l (q_il^2 / f_l), f_j = sum_i q_ij: eq. 3 of Xie et al. (2016).
    For a target that is never stored, see `freeze_target`.

    Args:
        q: Soft assignment (N, K): a tensor, or an array of NumPy or with DLPack, and so is p.
        frequencies: f (K,) of the whole data, where q is a part of it; by default q's column sums.
        backend: "auto", "eager", "cpp" or "triton".
        precision: "exact" or "fast".
        check: Refuse NaN, Inf and negative values (on CPU).

    Returns:
        p (N, K) in q's type, without a gradient. A row of zeros stays one.

    Raises:
        ValueError: If shapes or devices do not fit, or values are not finite or negative.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> F.dec_target(torch.tensor([[0.8, 0.2], [0.4, 0.6]]))
        tensor([[0.9143, 0.0857],
                [0.2286, 0.7714]])
    """
    p: Array = on_tensors(_target, q, frequencies, None, 2.0, backend, precision, check)
    return p


def depict_target(
    q: Array,
    frequencies: Array | None = None,
    prior: Array | None = None,
    *,
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> Array:
    """The target distribution of DEPICT: q with its columns normalised, then its rows.

    p_ij = q_ij (u_j / f_j)^(1/2) / sum_l q_il (u_l / f_l)^(1/2), f_j = sum_i q_ij: eq. 7 of Dizaji
    et al. (2017), whose letters are the other way round (their P is the prediction, q here). The
    code that its authors published uses the square instead: that is `dec_target`.

    Args:
        q: Soft assignment (N, K): a tensor, or an array of NumPy or with DLPack, and so is p.
        frequencies: f (K,) of the whole data, where q is a part of it; by default q's column sums.
        prior: u (K,), the expected share of each cluster; by default all alike.
        backend: "auto", "eager", "cpp" or "triton".
        precision: "exact" or "fast".
        check: Refuse NaN, Inf and negative values (on CPU).

    Returns:
        p (N, K) in q's type, without a gradient. A row of zeros stays one.

    Raises:
        ValueError: If shapes or devices do not fit, or values are not finite or negative.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> F.depict_target(torch.tensor([[0.8, 0.2], [0.4, 0.6]]))
        tensor([[0.7656, 0.2344],
                [0.3525, 0.6475]])
    """
    p: Array = on_tensors(_target, q, frequencies, prior, 1.0, backend, precision, check)
    return p


def _target(
    q: Tensor,
    frequencies: Tensor | None,
    prior: Tensor | None,
    power: float,
    backend: str,
    precision: str,
    check: bool,
) -> Tensor:
    _dispatch.check_options(backend, precision)
    _checks.check_probabilities("q", q)
    for name, vector in (("frequencies", frequencies), ("prior", prior)):
        if vector is not None:
            _checks.check_vector(name, vector, q.shape[1])
    _checks.check_same_device(q=q, frequencies=frequencies, prior=prior)
    args = (_operators.widened(q), frequencies, prior, power, backend, check)
    if _operators.wanted():
        compiled: Tensor = _operators.run("target", *args)
        return compiled
    return _forward(*args)


@torch.no_grad()
def _forward(
    q: Tensor,
    frequencies: Tensor | None,
    prior: Tensor | None,
    power: float,
    backend: str,
    check: bool,
) -> Tensor:
    check = _checks.wants_check(check, q)
    if check:
        for name, vector in (("frequencies", frequencies), ("prior", prior)):
            if vector is not None:
                _checks.check_nonnegative(name, vector)
    dtype = _checks.compute_dtype(q.dtype)
    kernel = _dispatch.kernel("targets", backend, q.device)
    p: Tensor = kernel.forward(q.to(dtype), frequencies, prior, power, check)
    return p.to(q.dtype)


_operators.define(
    "target(Tensor q, Tensor? frequencies, Tensor? prior, float power, str backend, bool check)"
    " -> Tensor",
    _forward,
    fake=lambda q, frequencies, prior, power, backend, check: q.new_empty(q.shape),
)
