"""Critics: networks that look at rows and guess one number of each."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from deepclust.networks.autoencoder import Autoencoder, redraw


class Critic(nn.Module):
    """A number for each row: the mean over the outputs of an encoder of its own.

    The encoder has the form of a network's, as the critic of ACAI has that of the autoencoder whose
    output it sees (published code of Berthelot et al., 2018), and weights of its own. The code of
    a network of this package is linear in it.

    Args:
        network: The network whose encoder is copied; its layers draw their weights again by
            `reset_parameters`, as torch's own layers do.

    Example:
        >>> import torch
        >>> from deepclust.networks import MLPAutoencoder
        >>> Critic(MLPAutoencoder((64, 32, 10)))(torch.zeros(5, 64)).shape
        torch.Size([5])
    """

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_()
        for name, none in (("decoder", None), ("code", "linear")):
            if hasattr(self.network, name):
                setattr(self.network, name, none)
        redraw(self.network)

    def forward(self, x: Tensor) -> Tensor:
        """Numbers (N,) of rows x (N, n_features)."""
        return self.network.encode(x).mean(1)
