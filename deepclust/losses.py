"""Losses beside the clustering loss, and the schedules that weigh them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# The weight of a loss: a constant, or a function of the number of updates done in the stage.
Schedule = float | Callable[[int], float]


def reconstruction(output: Tensor, x: Tensor) -> Tensor:
    """Squared error of a reconstruction.

    1/N sum_i ||x_i - x^_i||^2 / D: the least squares of the autoencoders (section 3.2 of Xie et
    al., 2016), divided by the width so that its size does not depend on it. Half types are computed
    in float32.

    Args:
        output: Reconstructions (N, D).
        x: What they should be (N, D).

    Returns:
        The mean over all elements, without dimensions.

    Example:
        >>> import torch
        >>> reconstruction(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
        tensor(5.)
    """
    # Under autocast both may be of a half type, in which squares and their mean would be rounded.
    wide = torch.promote_types(output.dtype, torch.float32)
    return (output.to(wide) - x).square().mean()


def ramp(start: float, end: float, updates: int) -> Schedule:
    """A weight that goes from `start` to `end` in a straight line over so many updates, and stays.

    Args:
        start: The weight at update 0.
        end: The weight from update `updates` on.
        updates: At least 1.

    Raises:
        ValueError: If updates is below 1.

    Example:
        >>> weight = ramp(0.0, 1.0, 10)
        >>> weight(0), weight(5), weight(50)
        (0.0, 0.5, 1.0)
    """
    if updates < 1:
        raise ValueError(f"updates: got {updates}; it takes an integer of at least 1")
    return lambda update: start + (end - start) * min(update / updates, 1.0)


def switch(before: float, after: float, update: int) -> Schedule:
    """A weight that changes once.

    Args:
        before: The weight before that update.
        after: The weight from that update on.
        update: At least 0.

    Raises:
        ValueError: If update is negative.

    Example:
        >>> weight = switch(0.0, 1.0, 100)
        >>> weight(99), weight(100)
        (0.0, 1.0)
    """
    if update < 0:
        raise ValueError(f"update: got {update}; it takes an integer of at least 0")
    return lambda now: before if now < update else after
