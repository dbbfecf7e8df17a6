"""Training in bfloat16 on a CPU: weights that are moved in float32 and computed with in bfloat16.

Under autocast each step rounds every weight anew, widens every gradient, and lets Adam read and
write both in float32, which together is a third of the time of a fully connected network's step.
Here a weight has a copy in bfloat16 that stands in for it while losses are computed; Adam reads the
copy's gradient and writes the copy as it moves the weight. The numbers are autocast's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deepclust.kernels import adam


class HalfWeights:
    """bfloat16 copies of the weights of a module's linear layers.

    There are copies on the CPU, where the optimisers are all plain Adam and its kernel is compiled;
    elsewhere there are none, and nothing here changes anything.

    Args:
        module: The module.
        optimizers: All optimisers that move its weights; without any there are no copies.
    """

    def __init__(self, module: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        optimizers = list(optimizers)
        moved = {
            weight
            for optimizer in optimizers
            for group in optimizer.param_groups
            for weight in group["params"]
            if weight.device.type == "cpu" and weight.dtype == torch.float32
        }
        if not adam.available() or not all(map(_is_plain_adam, optimizers)):
            moved = set()
        # Other layers are few numbers, or types that autocast leaves in float32.
        self._owners = [
            layer
            for layer in module.modules()
            if type(layer) is nn.Linear and layer.weight in moved
        ]
        self._copies = {
            layer.weight: layer.weight.detach().bfloat16().contiguous().requires_grad_()
            for layer in self._owners
        }
        self._versions = {weight: weight._version for weight in self._copies}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within it the layers compute with the copies."""
        for weight, version in self._versions.items():
            if weight._version != version:  # moved by somebody else: an intervention, a callback
                self._versions[weight] = weight._version
                with torch.no_grad():
                    self._copies[weight].copy_(weight)
        # Not setattr, which takes nothing but a Parameter.
        held: list[tuple[dict[str, Any], Tensor]]
        held = [(layer._parameters, layer.weight) for layer in self._owners]
        try:
            for parameters, weight in held:
                parameters["weight"] = self._copies[weight]
            yield
        finally:
            for parameters, weight in held:
                parameters["weight"] = weight

    def inputs(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """What gradients go to in the place of these parameters."""
        return [self._copies.get(parameter, parameter) for parameter in parameters]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of the optimiser on weights and their copies, and on all else that it moves."""
        for group in optimizer.param_groups:
            for weight in group["params"]:
                copy = self._copies.get(weight)
                if copy is None or copy.grad is None:
                    continue
                state = optimizer.state[weight]
                if not state:  # as torch's fused Adam begins
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(weight)
                    state["exp_avg_sq"] = torch.zeros_like(weight)
                state["step"] += 1
                adam.adam_(
                    weight,
                    state["exp_avg"],
                    state["exp_avg_sq"],
                    copy.grad,
                    copy,
                    step=int(state["step"]),
                    lr=float(group["lr"]),
                    betas=group["betas"],
                    eps=group["eps"],
                )
                copy.grad = None
        optimizer.step()


def _is_plain_adam(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer) is torch.optim.Adam and not any(
        group["weight_decay"] or group["amsgrad"] or group["maximize"]
        for group in optimizer.param_groups
    )
