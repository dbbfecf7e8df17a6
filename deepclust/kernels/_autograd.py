"""What the gradients of every primitive share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply`, which torch leaves untyped."""
    return function.apply(*args)


def transforming() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is at work here."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a forward is to make gradients, too: within transforms nobody can tell who asks."""
    asked = any(tensor.requires_grad for tensor in tensors) or transforming()
    return asked and torch.is_grad_enabled()


class FirstOrder(torch.autograd.Function):
    """A function whose gradient is made by a kernel: it has one derivative, in reverse."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Refuse forward-mode differentiation."""
        raise RuntimeError(
            "the fused kernels have no forward-mode derivative (jvp, jacfwd, hessian): call the"
            ' function with backend="eager", which has'
        )


def no_second_derivative(*_: Any) -> NoReturn:
    """Raise the error of those who ask for one; as a backward, too."""
    raise RuntimeError(
        "the fused kernels have no second derivative: call the function with "
        'backend="eager", which has'
    )


def first_order_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a backward without a derivative of its own: asking for one says where to go.

    The forward leaves its differentiable inputs in `ctx.inputs`.
    """

    def wrapped(ctx: Any, *gradients: Tensor) -> Any:
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        # create_graph=True: the results hang on all that they depend on, by a node that raises.
        inputs = (*ctx.inputs, *gradients)
        return tuple(
            apply(_NoSecondDerivative, g, *inputs) if isinstance(g, Tensor) else g for g in results
        )

    return wrapped


class _NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, *inputs: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        no_second_derivative()


def scaled(gradients: Sequence[Tensor], factor: Tensor) -> Sequence[Tensor]:
    """Gradients times what comes from above, in their own memory: nobody else may have them."""
    if factor.device.type == "cpu" and factor.item() == 1:
        return gradients
    return [gradient.mul_(factor) for gradient in gradients]


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, which keeps nothing but the tensors and is computed again in backward.

    Its gradient is torch's own, to any order. (torch.utils.checkpoint does this for whole
    networks; block after block, its bookkeeping left the heap hundreds of megabytes larger.)
    torch.func's transforms keep the history of all operations instead.
    """
    if transforming():
        return function(*tensors)
    result: Tensor = apply(_Recomputed, function, *tensors)
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        again = torch.is_grad_enabled()
        wanted = ctx.needs_input_grad[1:]
        tensors = [
            # Where a second derivative may follow, the tensors keep their own history.
            tensor if again or not wants else tensor.detach().requires_grad_()
            for tensor, wants in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            result = ctx.function(*tensors)
        inputs = [tensor for tensor, wants in zip(tensors, wanted, strict=True) if wants]
        found = iter(torch.autograd.grad(result, inputs, gradient, create_graph=again))
        return None, *(next(found) if wants else None for wants in wanted)
