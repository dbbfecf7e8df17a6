"""Adam's step on a weight and the bfloat16 copy of it that is computed with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepclust.kernels._dispatch import extension


def available() -> bool:
    """Whether `adam_` runs here: it is compiled, and has no other form."""
    return not isinstance(extension(), str)


def adam_(
    weight: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    copy: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of Adam in float32, from a gradient in bfloat16, in one pass over the memory.

    Algorithm 1 of Kingma and Ba (2015), with t = `step` from 1 on and g the gradient:

        m <- beta1 m + (1 - beta1) g;    v <- beta2 v + (1 - beta2) g^2
        w <- w - lr m / (1 - beta1^t) / ((v / (1 - beta2^t))^(1/2) + eps);    copy <- w

    Args:
        weight: w, float32, contiguous, on the CPU; changed in place, as are the next two.
        first: m, like w.
        second: v, like w.
        gradient: g, bfloat16, of the same shape, contiguous.
        copy: w rounded to bfloat16, of the same shape, contiguous; written.
        step: t.
        lr: The learning rate.
        betas: beta1 and beta2.
        eps: Added to the root.

    Example:
        >>> w = torch.zeros(2)
        >>> m, v, copy = torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)
        >>> gradient = torch.tensor([1, -4], dtype=torch.bfloat16)
        >>> adam_(w, m, v, gradient, copy, step=1, lr=0.5, betas=(0.9, 0.999), eps=1e-8)
        >>> w, copy
        (tensor([-0.5000,  0.5000]), tensor([-0.5000,  0.5000], dtype=torch.bfloat16))
    """
    module = extension()
    if isinstance(module, str):
        raise RuntimeError(f"adam_ is compiled, and there is no such module here: {module}")
    beta1, beta2 = betas
    module.adam(
        *(t.data_ptr() for t in (weight, first, second, gradient, copy)),
        weight.numel(),
        lr / (1 - beta1**step),
        beta1,
        beta2,
        math.sqrt(1 - beta2**step),
        eps,
        torch.get_num_threads(),
    )
