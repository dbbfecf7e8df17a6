"""Soft assignment: q = softmax_j(s)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepclust.kernels import _checks, _dispatch, _operators, heads
from deepclust.kernels._autograd import FirstOrder, apply, first_order_only, no_second_derivative
from deepclust.kernels._blocks import full_precision
from deepclust.kernels.heads import Head


def assign(
    z: Tensor,
    head: Head | Tensor,
    *,
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> Tensor:
    """Soft assignment of embeddings to clusters.

    q_ij = exp(s_ij) / sum_l exp(s_il), with the head's scores s; for StudentT this is eq. 1 of Xie
    et al. (2016).

    Args:
        z: Embeddings (N, D); float32 or float64, or a half type that is computed in float32.
        head: StudentT, Linear or Gaussian, or a tensor of centroids (K, D).
        backend: "auto", "eager", "cpp" or "triton".
        precision: "exact", or "fast" to permit reduced-precision products where a backend has them.
        check: Refuse NaN and Inf (on CPU; on CUDA that would wait for the device).

    Returns:
        q (N, K) in z's type (under autocast float32 for half types), rows summing to one, with
        gradients to z and the head's tensors.

    Raises:
        ValueError: If shapes or devices do not fit, or a row has NaN or Inf.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here, or a second or forward-mode
            derivative is asked of a backend other than "eager".

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> F.assign(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]]))
        tensor([[0.8333, 0.1667],
                [0.5000, 0.5000]])
    """
    head = heads.as_head(head)
    _dispatch.check_options(backend, precision)
    heads.check_inputs(z, head)
    z = _operators.widened(z)
    q: Tensor
    if backend == "eager" and not torch.compiler.is_compiling():
        kernel = _dispatch.kernel("assign", backend, z.device)
        head = head.to(_checks.compute_dtype(z.dtype))
        with full_precision(z):
            q = kernel.differentiable(z, head, _checks.wants_check(check, z))
    elif _operators.wanted():
        args = (z, list(head.params), head.form, backend, precision, check)
        q = _operators.run("assign", *args)
    else:
        q = apply(_Assign, z, head.form, backend, precision, check, *head.params)
    return q


def _forward(
    z: Tensor, params: Sequence[Tensor], form: str, backend: str, precision: str, check: bool
) -> Tensor:
    head = heads.head_of(form, params).to(_checks.compute_dtype(z.dtype))
    kernel = _dispatch.kernel("assign", backend, z.device)
    with full_precision(z):
        q: Tensor = kernel.forward(z, head, precision, _checks.wants_check(check, z))
    return q


def _backward(
    dq: Tensor,
    q: Tensor,
    z: Tensor,
    params: Sequence[Tensor],
    form: str,
    backend: str,
    precision: str,
) -> tuple[Tensor, list[Tensor]]:
    kernel = _dispatch.kernel("assign", backend, z.device)
    head = heads.head_of(form, params).to(_checks.compute_dtype(z.dtype))
    with full_precision(z):
        dz, dparams = kernel.backward(dq, q, z, head, precision)
    return dz, [g.to(p.dtype) for g, p in zip(dparams, params, strict=True)]


class _Assign(FirstOrder):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        form: str,
        backend: str,
        precision: str,
        check: bool,
        *params: Tensor,
    ) -> Tensor:
        q = _forward(z, params, form, backend, precision, check)
        ctx.save_for_backward(q, z, *params)
        ctx.settings, ctx.inputs = (form, backend, precision), (z, *params)
        return q

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dq: Tensor) -> tuple[Tensor | None, ...]:
        q, z, *params = ctx.saved_tensors
        dz, dparams = _backward(dq, q, z, params, *ctx.settings)
        return dz, *[None] * 4, *dparams


# The same two functions as operators, for compilers and transforms.
_operators.define(
    "assign(Tensor z, Tensor[] params, str form, str backend, str precision, bool check) -> Tensor",
    _forward,
    fake=lambda z, params, form, backend, precision, check: z.new_empty(
        z.shape[0], params[0].shape[0]
    ),
)
_operators.define(
    "assign_backward(Tensor dq, Tensor q, Tensor z, Tensor[] params, str form, str backend,"
    " str precision) -> (Tensor, Tensor[])",
    _backward,
    fake=lambda dq, q, z, params, form, backend, precision: (
        z.new_empty(z.shape),
        [param.new_empty(param.shape) for param in params],
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, params, *settings, _ = inputs
    ctx.settings = settings
    ctx.save_for_backward(output, z, *params)


def _operator_backward(ctx: Any, dq: Tensor) -> tuple[Any, ...]:
    q, z, *params = ctx.saved_tensors
    dz, dparams = _operators.run("assign_backward", dq, q, z, params, *ctx.settings)
    return dz, dparams, *[None] * 4


_operators.differentiate("assign", _setup, _operator_backward)
_operators.differentiate("assign_backward", lambda ctx, inputs, output: None, no_second_derivative)
