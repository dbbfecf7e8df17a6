"""Cluster frequencies, labels and how many of these changed: the full pass between targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepclust.kernels import _checks, _dispatch, _operators, heads
from deepclust.kernels._arrays import Array, on_tensors
from deepclust.kernels._blocks import full_precision
from deepclust.kernels.heads import Head


def frequencies(
    z: Array,
    head: Head | Array,
    *,
    previous_labels: Array | None = None,
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> tuple[Array, Array, Array]:
    """Soft cluster sizes, hard labels and how many labels changed, in one pass without storing q.

    f_j = sum_i q_ij, the frequencies in eq. 3 of Xie et al. (2016), and labels_i = argmax_j q_ij.
    Nothing here carries a gradient.

    Args:
        z: Embeddings (N, D): a tensor, or an array of NumPy or with DLPack, and so are the results.
        head: StudentT, Linear or Gaussian, or a tensor of centroids (K, D).
        previous_labels: Labels (N,) int64 to compare with.
        backend: "auto", "eager", "cpp" or "triton".
        precision: "exact", or "fast" to permit reduced-precision products where a backend has them.
        check: Refuse NaN and Inf (on CPU).

    Returns:
        f (K,), summed in float64 and given in z's type (float32 for half types); labels (N,) int64,
        ties to the lowest index; n_changed, an int64 tensor without dimensions, which is N where
        there are no previous labels.

    Raises:
        ValueError: If shapes or devices do not fit, or a row has NaN or Inf.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> z, centroids = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0]])
        >>> F.frequencies(z, centroids, previous_labels=torch.tensor([0, 0, 0]))
        (tensor([1.5000, 1.5000]), tensor([0, 0, 1]), tensor(1))
    """
    found: tuple[Array, Array, Array] = on_tensors(
        _frequencies, z, head, previous_labels, backend, precision, check
    )
    return found


def _frequencies(
    z: Tensor,
    head: Head | Tensor,
    previous_labels: Tensor | None,
    backend: str,
    precision: str,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    head = heads.as_head(head)
    _dispatch.check_options(backend, precision)
    heads.check_inputs(z, head)
    if previous_labels is not None:
        _checks.check_labels("previous_labels", previous_labels, z.shape[0])
        _checks.check_same_device(z=z, previous_labels=previous_labels)
    args = (z, list(head.params), previous_labels, head.form, backend, precision, check)
    if _operators.wanted():
        compiled: tuple[Tensor, Tensor, Tensor] = _operators.run("frequencies", *args)
        return compiled
    return _forward(*args)


@torch.no_grad()
def _forward(
    z: Tensor,
    params: Sequence[Tensor],
    previous_labels: Tensor | None,
    form: str,
    backend: str,
    precision: str,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    head = heads.head_of(form, params)
    dtype = _checks.compute_dtype(z.dtype)
    kernel = _dispatch.kernel("frequencies", backend, z.device)
    with full_precision(z):
        f, labels, n_changed = kernel.forward(
            z, head.to(dtype), previous_labels, precision, _checks.wants_check(check, z)
        )
    return f.to(dtype), labels, n_changed


_operators.define(
    "frequencies(Tensor z, Tensor[] params, Tensor? previous_labels, str form, str backend,"
    " str precision, bool check) -> (Tensor, Tensor, Tensor)",
    _forward,
    fake=lambda z, params, previous_labels, form, backend, precision, check: (
        z.new_empty(params[0].shape[0], dtype=_checks.compute_dtype(z.dtype)),
        z.new_empty(z.shape[0], dtype=torch.int64),
        z.new_empty((), dtype=torch.int64),
    ),
)
