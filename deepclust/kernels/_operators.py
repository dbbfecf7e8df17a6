"""The primitives as operators of torch.library, for torch.compile, torch.export and torch.func.

Called plainly, a primitive goes to its kernel by a shorter way (`op.py` of each).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from deepclust.kernels._autograd import FirstOrder, apply, no_second_derivative, transforming
from deepclust.kernels._checks import HALF

# One namespace for every operator; the folders define theirs on it when they are imported.
_LIBRARY = torch.library.Library("deepclust", "DEF")
_GRADIENTS: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {}


def define(schema: str, implementation: Callable[..., Any], *, fake: Callable[..., Any]) -> None:
    """Register an operator `deepclust::...` for any device, with its shapes for tracing.

    Under autocast it runs in float32, as torch's own distances, soft-max and losses do.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"deepclust::{name}", fake, lib=_LIBRARY)
    for device in ("cpu", "cuda"):

        def widen(*args: Any, device: str = device) -> Any:
            args = _pytree.tree_map_only(Tensor, widened, args)
            with torch.autocast(device, enabled=False):
                return _operator(name)(*args)

        _LIBRARY.impl(name, widen, f"Autocast{device.upper()}")


def differentiate(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register the gradient of an operator's first result; the others have none."""
    _GRADIENTS[name] = setup, backward
    torch.library.register_autograd(
        f"deepclust::{name}",
        lambda ctx, first, *_: backward(ctx, first),
        setup_context=setup,
        lib=_LIBRARY,
    )


def wanted() -> bool:
    """Whether somebody looks on, who has to be shown an operator: a compiler or a transform."""
    return torch.compiler.is_compiling() or transforming()


def run(name: str, *args: Any) -> Any:
    """The operator `deepclust::<name>`, under a compiler or under torch.func's transforms."""
    if torch.compiler.is_compiling():
        return _operator(name)(*args)
    if name not in _GRADIENTS:
        args = _pytree.tree_map_only(Tensor, Tensor.detach, args)
    call = _Call(name, args)
    results: Any = _pytree.tree_unflatten(apply(_Transformed, call, *call.leaves), call.results)
    return results


def widened(tensor: Tensor) -> Tensor:
    """A tensor of a half type in float32 where autocast is on; anything else as it is."""
    if tensor.dtype in HALF and torch.is_autocast_enabled(tensor.device.type):
        return tensor.float()
    return tensor


def _operator(name: str) -> Callable[..., Any]:
    operator: Callable[..., Any] = getattr(torch.ops.deepclust, name)
    return operator


class _Call:
    """An operator's name, and its arguments and results as trees, which lists of tensors are."""

    results: _pytree.TreeSpec

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name = name
        self.leaves, self.arguments = _pytree.tree_flatten(args)

    def __call__(self, *leaves: Any) -> tuple[Tensor, ...]:
        found = _operator(self.name)(*_pytree.tree_unflatten(leaves, self.arguments))
        flat, self.results = _pytree.tree_flatten(found)
        return tuple(flat)


class _Transformed(FirstOrder):
    """A call in the form that torch.func's transforms take, each at its own level."""

    @staticmethod
    def forward(call: _Call, *leaves: Any) -> tuple[Tensor, ...]:
        return call(*leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, *leaves = inputs
        ctx.call = call
        ctx.set_materialize_grads(False)
        if call.name in _GRADIENTS:
            setup, _ = _GRADIENTS[call.name]
            args = _pytree.tree_unflatten(leaves, call.arguments)
            setup(ctx, args, _pytree.tree_unflatten(output, call.results))

    @staticmethod
    def backward(ctx: Any, first: Tensor | None, *others: Tensor | None) -> Any:
        # The other results are gradients: who wants theirs wants a second derivative.
        if any(other is not None for other in others):
            no_second_derivative()
        if first is None:
            return (None,) * (1 + len(ctx.call.leaves))
        _, backward = _GRADIENTS[ctx.call.name]
        return None, *_pytree.tree_leaves(backward(ctx, first))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: _Call, *leaves: Any) -> tuple[Any, int]:
        """One problem after the other: each fills the machine by its own rows."""
        each = [
            apply(
                _Transformed,
                call,
                *(
                    leaf if dim is None else leaf.select(dim, i)
                    for leaf, dim in zip(leaves, in_dims[1:], strict=True)
                ),
            )
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(results) for results in zip(*each, strict=True)), 0
