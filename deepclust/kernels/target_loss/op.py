"""The clustering loss of DEC and DEPICT: KL or cross-entropy from a target to the assignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepclust.kernels import _checks, _dispatch, _operators, heads
from deepclust.kernels._autograd import FirstOrder, apply, first_order_only, scaled, wants_gradient
from deepclust.kernels._blocks import full_precision
from deepclust.kernels.heads import Head
from deepclust.kernels.target_loss.snapshot import Snapshot, snapshot_of

KINDS = ("kl", "ce")
_GIVEN = "given"  # the target_form of a stored p


def target_loss(
    z: Tensor,
    head: Head | Tensor,
    target: Tensor | Snapshot,
    *,
    reduction: str = "mean",
    kind: str = "kl",
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> Tensor:
    """Divergence from a target to the soft assignment, with q and its gradient never stored.

    kind="kl": sum_ij p_ij log(p_ij / q_ij), the loss of DEC (eq. 2 of Xie et al., 2016);
    kind="ce": -sum_ij p_ij log q_ij, the loss of DEPICT (eq. 8 of Dizaji et al., 2017). Gradients
    are those of eqs. 4 and 5 of DEC, for any head, and are computed in the forward pass.

    Args:
        z: Embeddings (N, D).
        head: StudentT, Linear or Gaussian, or a tensor of centroids (K, D).
        target: p (N, K), whose rows need not sum to one (a row of zeros takes no part), or the
            Snapshot of these N rows. No gradient reaches it.
        reduction: "mean" over the N rows (0 where there are none) or "sum", in nats.
        kind: "kl" or "ce".
        backend: "auto", "eager", "cpp" or "triton"; "eager" has derivatives of any order.
        precision: "exact", or "fast" to permit reduced-precision products where a backend has them.
        check: Refuse NaN, Inf and negative targets (on CPU).

    Returns:
        The loss without dimensions, in float32 or float64.

    Raises:
        ValueError: If shapes or devices do not fit, or a row has NaN or Inf.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here, or a second or forward-mode
            derivative is asked of a backend other than "eager".

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> z = torch.tensor([[0.0], [2.0]], requires_grad=True)
        >>> centroids = torch.tensor([[0.0], [1.0]])
        >>> loss = F.target_loss(z, centroids, torch.eye(2))
        >>> loss.backward()
        >>> loss, z.grad
        (tensor(0.3710, grad_fn=<_TargetLossBackward>), tensor([[0.1667],
                [0.0286]]))
    """
    head = heads.as_head(head)
    _dispatch.check_options(backend, precision)
    heads.check_inputs(z, head)
    _checks.check_reduction(reduction)
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}; it takes 'kl' or 'ce'")
    _check_target(z, head, target)
    if isinstance(target, Snapshot):
        tensors, form = target.tensors, target.form
    else:
        tensors, form = [target.detach()], _GIVEN
    if backend == "eager" and not torch.compiler.is_compiling():
        kernel = _dispatch.kernel("target_loss", backend, z.device)
        dtype = _checks.compute_dtype(z.dtype)
        with full_precision(z):
            loss: Tensor = kernel.differentiable(
                z,
                head.to(dtype),
                _target(tensors, form),
                kind,
                _checks.scale_of(z, reduction),
                _checks.wants_check(check, z),
            ).to(dtype)
        return loss
    needs_grad = wants_gradient(z, *head.params)
    settings = (tensors, form, kind, reduction, needs_grad, backend, precision, check)
    if _operators.wanted():
        loss, _, _ = _operators.run("target_loss", z, list(head.params), head.form, *settings)
        return loss
    if not needs_grad:
        return _forward(z, head.params, head.form, *settings)[0]
    loss = apply(_TargetLoss, settings, head.form, z, *head.params)
    return loss


def _check_target(z: Tensor, head: Head, target: object) -> None:
    n, k = z.shape[0], head.n_clusters
    if isinstance(target, Snapshot):
        if len(target) != n or target.head.n_clusters != k:
            raise ValueError(
                f"target: got a snapshot of {len(target)} rows and {target.head.n_clusters}"
                f" clusters; it takes {n} and {k}"
            )
        _checks.check_same_device(z=z, target=target.bias)
        return
    if not isinstance(target, Tensor):
        raise _checks.no_tensor("target", target, "a Snapshot or a torch.Tensor (N, K)")
    _checks.check_probabilities("target", target, (n, k))
    _checks.check_together(z=z, target=target)


def _target(tensors: list[Tensor], form: str) -> Tensor | Snapshot:
    return tensors[0] if form == _GIVEN else snapshot_of(form, tensors)


def _forward(
    z: Tensor,
    params: Sequence[Tensor],
    form: str,
    target: list[Tensor],
    target_form: str,
    kind: str,
    reduction: str,
    needs_grad: bool,
    backend: str,
    precision: str,
    check: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    head = heads.head_of(form, params)
    dtype = _checks.compute_dtype(z.dtype)
    kernel = _dispatch.kernel("target_loss", backend, z.device)
    with torch.no_grad(), full_precision(z):
        loss, dz, dparams = kernel.forward(
            z,
            head.to(dtype),
            _target(target, target_form),
            kind,
            _checks.scale_of(z, reduction),
            needs_grad,
            precision,
            _checks.wants_check(check, z),
        )
    # zip also when dparams is empty: nothing is asked for then.
    return loss.to(dtype), dz, [g.to(p.dtype) for g, p in zip(dparams, params, strict=False)]


class _TargetLoss(FirstOrder):
    @staticmethod
    def forward(ctx: Any, settings: Any, form: str, z: Tensor, *params: Tensor) -> Tensor:
        loss, dz, dparams = _forward(z, params, form, *settings)
        ctx.gradients, ctx.settings, ctx.form = [dz, *dparams], settings, form
        ctx.inputs = (z, *params)
        ctx.save_for_backward(z, *params)
        return loss

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # they have been given away; the graph was retained
            z, *params = ctx.saved_tensors
            _, dz, dparams = _forward(z, params, ctx.form, *ctx.settings)
            gradients = [dz, *dparams]
        return None, None, *scaled(gradients, dloss)


def _fake(
    z: Tensor,
    params: list[Tensor],
    form: str,
    target: list[Tensor],
    target_form: str,
    kind: str,
    reduction: str,
    needs_grad: bool,
    backend: str,
    precision: str,
    check: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    loss = z.new_empty((), dtype=_checks.compute_dtype(z.dtype))
    if not needs_grad:
        return loss, z.new_empty(0), []
    return loss, z.new_empty(z.shape), [param.new_empty(param.shape) for param in params]


# The same function as an operator, for compilers and transforms.
_operators.define(
    "target_loss(Tensor z, Tensor[] params, str form, Tensor[] target, str target_form, str kind,"
    " str reduction, bool needs_grad, str backend, str precision, bool check)"
    " -> (Tensor, Tensor, Tensor[])",
    _forward,
    fake=_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    _, dz, dparams = output
    ctx.save_for_backward(dz, *dparams)
    ctx.n_target = len(inputs[3])


def _operator_backward(ctx: Any, dloss: Tensor) -> tuple[Any, ...]:
    dz, *dparams = (gradient * dloss.to(gradient.dtype) for gradient in ctx.saved_tensors)
    return dz, dparams, None, [None] * ctx.n_target, *[None] * 7


_operators.differentiate("target_loss", _setup, _operator_backward)
