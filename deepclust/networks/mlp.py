"""The fully connected autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import index

from torch import nn

from deepclust.networks.autoencoder import LayeredAutoencoder


class MLPAutoencoder(LayeredAutoencoder):
    """A fully connected autoencoder.

    Encoder d_0-d_1-...-d_m; the decoder is its mirror image. With D-500-500-2000-10 it is the
    network of DEC (section 4.2 of Xie et al., 2016).

    Args:
        sizes: (d_0, ..., d_m): the width of the data, of the hidden layers, and of the code.
        activation: Of the hidden layers of both halves: "relu", "leaky_relu" (slope 0.01),
            "sigmoid" or "tanh".
        code: Of the code: "linear", "sigmoid" or "tanh".
        output: Of the reconstruction: "linear", "sigmoid" or "tanh".
        init_std: Weights are drawn from N(0, init_std^2), or, if "glorot", uniformly within
            sqrt(6 / (fan-in + fan-out)), and biases start at 0; by default both follow PyTorch's
            own rule, uniform within 1/sqrt(fan-in).

    Raises:
        ValueError: If there are fewer than two sizes, one is below 1, or another parameter is none
            of those above.

    Example:
        >>> import torch
        >>> network = MLPAutoencoder((64, 32, 10))
        >>> z = network.encode(torch.zeros(5, 64))
        >>> z.shape, network.decode(z).shape
        (torch.Size([5, 10]), torch.Size([5, 64]))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "relu",
        code: str = "linear",
        output: str = "linear",
        init_std: float | str | None = None,
    ) -> None:
        try:
            widths = tuple(index(size) for size in sizes)
        except TypeError:
            widths = ()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"sizes: got {sizes!r}; it takes two or more integers of at least 1")
        encoder = [nn.Linear(*pair) for pair in pairwise(widths)]
        decoder = [nn.Linear(*pair) for pair in pairwise(widths[::-1])]
        super().__init__(
            widths,
            encoder,
            decoder,
            activation=activation,
            code=code,
            output=output,
            init_std=init_std,
        )
