"""What every hand-written gradient shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply`, which torch leaves untyped."""
    return function.apply(*args)


def first_order_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a backward without a derivative of its own: asking for one says where to go."""

    def wrapped(ctx: Any, *gradients: Tensor) -> Any:
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        # create_graph=True: each result hangs on a node that raises if anybody differentiates it.
        anchor = torch.zeros((), requires_grad=True)
        return tuple(
            apply(_NoSecondDerivative, g, anchor) if isinstance(g, Tensor) else g for g in results
        )

    return wrapped


class _NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, anchor: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "the fused kernels have no second derivative: call the function with "
            'backend="eager", which has'
        )
