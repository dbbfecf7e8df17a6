"""The k-means loss: squared distance to the nearest, or to the given, centroid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepclust.kernels import _checks, _dispatch, _operators
from deepclust.kernels._autograd import FirstOrder, apply, first_order_only, scaled, wants_gradient
from deepclust.kernels._blocks import full_precision
from deepclust.kernels.kmeans_assign.op import kmeans_assign


def kmeans_loss(
    z: Tensor,
    centroids: Tensor,
    labels: Tensor | None = None,
    *,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> Tensor:
    """Squared distance of embeddings to their centroids, with gradients to both.

    L = sum_i ||z_i - mu_{labels_i}||^2: the clustering term of DCN (eq. 5 of Yang et al., 2017) but
    for its weight.

    Args:
        z: Embeddings (N, D).
        centroids: mu (K, D).
        labels: The centroid of each row (N,) int64; by default the nearest one.
        reduction: "mean" over the N rows (0 where there are none) or "sum".
        backend: "auto", "eager", "cpp" or "triton"; "eager" has derivatives of any order.
        precision: "exact" or "fast".
        check: Refuse NaN and Inf, and labels out of range (on CPU).

    Returns:
        The loss without dimensions, in float32 or float64.

    Raises:
        ValueError: If shapes, devices or values do not fit.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here, or a second or forward-mode
            derivative is asked of a backend other than "eager".

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> F.kmeans_loss(torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [2.0]]))
        tensor(0.5000)
    """
    _dispatch.check_options(backend, precision)
    _checks.check_clusters("centroids", centroids)
    _checks.check_matrix("z", z, centroids.shape[1])
    _checks.check_together(z=z, centroids=centroids)
    _checks.check_reduction(reduction)
    if labels is not None:
        _checks.check_labels("labels", labels, z.shape[0])
        _checks.check_same_device(z=z, labels=labels)
    if backend == "eager" and not torch.compiler.is_compiling():
        labels, check = _labels(z, centroids, labels, backend, precision, check)
        kernel = _dispatch.kernel("kmeans_loss", backend, z.device)
        dtype = _checks.compute_dtype(z.dtype)
        with full_precision(z):
            loss: Tensor = kernel.differentiable(
                z, centroids.to(dtype), labels, _checks.scale_of(z, reduction), check
            ).to(dtype)
        return loss
    needs_grad = wants_gradient(z, centroids)
    args = (z, centroids, labels, reduction, needs_grad, backend, precision, check)
    if _operators.wanted():
        loss, _, _ = _operators.run("kmeans_loss", *args)
        return loss
    if not needs_grad:
        return _forward(*args)[0]
    loss = apply(_KMeansLoss, *args)
    return loss


def _labels(
    z: Tensor, centroids: Tensor, labels: Tensor | None, backend: str, precision: str, check: bool
) -> tuple[Tensor, bool]:
    """The labels, given or found, and whether the values are still to be looked at."""
    if labels is None:
        try:
            found, _ = kmeans_assign(
                z.detach(), centroids.detach(), backend=backend, precision=precision, check=check
            )
        except ValueError as error:  # it calls the rows x
            raise ValueError(str(error).replace("x:", "z:", 1)) from None
        return found, False
    return labels, _checks.wants_check(check, z)


def _forward(
    z: Tensor,
    centroids: Tensor,
    labels: Tensor | None,
    reduction: str,
    needs_grad: bool,
    backend: str,
    precision: str,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _checks.compute_dtype(z.dtype)
    kernel = _dispatch.kernel("kmeans_loss", backend, z.device)
    with torch.no_grad(), full_precision(z):
        labels, check = _labels(z, centroids, labels, backend, precision, check)
        loss, dz, dmu = kernel.forward(
            z, centroids.to(dtype), labels, _checks.scale_of(z, reduction), needs_grad, check
        )
    return loss.to(dtype), dz, dmu.to(centroids.dtype)


class _KMeansLoss(FirstOrder):
    @staticmethod
    def forward(ctx: Any, z: Tensor, centroids: Tensor, *settings: Any) -> Tensor:
        loss, dz, dmu = _forward(z, centroids, *settings)
        ctx.gradients, ctx.settings = [dz, dmu], settings
        ctx.inputs = (z, centroids)
        ctx.save_for_backward(z, centroids)
        return loss

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # they have been given away; the graph was retained
            z, centroids = ctx.saved_tensors
            gradients = _forward(z, centroids, *ctx.settings)[1:]
        return *scaled(gradients, dloss), *[None] * 6


def _fake(
    z: Tensor,
    centroids: Tensor,
    labels: Tensor | None,
    reduction: str,
    needs_grad: bool,
    backend: str,
    precision: str,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = z.new_empty((), dtype=_checks.compute_dtype(z.dtype))
    if not needs_grad:
        return loss, z.new_empty(0), centroids.new_empty(0)
    return loss, z.new_empty(z.shape), centroids.new_empty(centroids.shape)


# The same function as an operator, for compilers and transforms.
_operators.define(
    "kmeans_loss(Tensor z, Tensor centroids, Tensor? labels, str reduction, bool needs_grad,"
    " str backend, str precision, bool check) -> (Tensor, Tensor, Tensor)",
    _forward,
    fake=_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, dz, dmu = output
    ctx.save_for_backward(dz, dmu)


def _operator_backward(ctx: Any, dloss: Tensor) -> tuple[Any, ...]:
    dz, dmu = ctx.saved_tensors
    return dz * dloss.to(dz.dtype), dmu * dloss.to(dmu.dtype), *[None] * 6


_operators.differentiate("kmeans_loss", _setup, _operator_backward)
