"""The discriminator: it tells two kinds of embeddings apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import index

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

# The paper's sizes and activations are lost from our copy of it; these are ours, kept here alone.
HIDDEN = (256, 256)
SLOPE = 0.2


class Discriminator(nn.Module):
    """A fully connected network from embeddings to one logit, that of "drawn from the clustering".

    Dis(z) = sigmoid(logit) in DCAN (Lim, 2024). Embeddings are centred and divided by one number
    first, so that learning rates do not depend on their scale.

    Args:
        n_features: D, the width of the embeddings.
        hidden: Widths of the hidden layers, whose activation is a leaky ReLU of slope 0.2.

    Attributes:
        origin: What is taken from embeddings (D,), 0 at first.
        scale: What they are then divided by, 1 at first.

    Raises:
        ValueError: If a width is below 1.

    Example:
        >>> import torch
        >>> Discriminator(10)(torch.zeros(5, 10)).shape
        torch.Size([5])
    """

    origin: Tensor
    scale: Tensor

    def __init__(self, n_features: int, hidden: Sequence[int] = HIDDEN) -> None:
        super().__init__()
        try:
            widths = (n_features, *(index(width) for width in hidden), 1)
        except TypeError:
            widths = (0,)
        if min(widths) < 1:
            raise ValueError(f"hidden: got {hidden!r}; it takes integers of at least 1")
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.register_buffer("origin", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def standardise(self, mean: Tensor, variances: Tensor) -> None:
        """Take the middle and the spread of embeddings, (D,) both, for those of all to come."""
        self.origin.copy_(mean)
        spread = variances.mean().sqrt()
        self.scale.copy_(torch.where(spread > 0, spread, 1))

    def forward(self, z: Tensor) -> Tensor:
        """Logits (n,) of embeddings z (n, D)."""
        h = (z - self.origin) / self.scale
        for layer in self.layers[:-1]:
            h = leaky_relu(layer(h), SLOPE, inplace=True)
        logits: Tensor = self.layers[-1](h)
        return logits.squeeze(1)
