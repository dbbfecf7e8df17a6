"""The fully connected autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import index

import torch
from torch import Tensor, nn


class MLPAutoencoder(nn.Module):
    """A fully connected autoencoder with a linear code and a linear output.

    Encoder d_0-d_1-...-d_m, ReLU between the layers; the decoder is its mirror image. With
    D-500-500-2000-10 it is the network of DEC (section 4.2 of Xie et al., 2016).

    Args:
        sizes: (d_0, ..., d_m): the width of the data, of the hidden layers, and of the code.
        init_std: Weights are drawn from N(0, init_std^2), biases start at 0; by default both follow
            PyTorch's own rule, uniform within 1/sqrt(fan-in).

    Raises:
        ValueError: If there are fewer than two sizes, or one is below 1.

    Example:
        >>> import torch
        >>> network = MLPAutoencoder((64, 32, 10))
        >>> z = network.encode(torch.zeros(5, 64))
        >>> z.shape, network.decode(z).shape
        (torch.Size([5, 10]), torch.Size([5, 64]))
    """

    def __init__(self, sizes: Sequence[int], *, init_std: float | None = None) -> None:
        super().__init__()
        try:
            self.sizes = tuple(index(size) for size in sizes)
        except TypeError:
            self.sizes = ()
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(
                f"sizes: got {tuple(sizes)}; it takes two or more integers of at least 1"
            )
        self.encoder = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(self.sizes))
        self.decoder = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(self.sizes[::-1]))
        if init_std is not None:
            for layer in (*self.encoder, *self.decoder):
                nn.init.normal_(layer.weight, std=init_std)
                nn.init.zeros_(layer.bias)

    def encode(self, x: Tensor) -> Tensor:
        """Codes z (N, d_m) of rows x (N, d_0)."""
        return _through(self.encoder, x)

    def decode(self, z: Tensor) -> Tensor:
        """Reconstructions (N, d_0) of codes z (N, d_m)."""
        return _through(self.decoder, z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (N, d_m) and reconstructions (N, d_0)."""
        z = self.encode(x)
        return z, self.decode(z)


def _through(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for number, layer in enumerate(layers, 1):
        x = layer(x)
        if number < len(layers):
            x = torch.relu(x)
    return x
