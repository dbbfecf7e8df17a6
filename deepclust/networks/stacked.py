"""The stacked denoising autoencoder: an MLP that can be trained one layer at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout

from deepclust.networks.mlp import MLPAutoencoder


class StackedAutoencoder(MLPAutoencoder):
    """A fully connected autoencoder whose layers also work as denoising autoencoders of two layers.

    Layer l sees the clean output h of the layers below it (section 3.2 of Xie et al., 2016, eqs. 6
    to 9):

        x~ = dropout(h);   h' = g1(W1 x~ + b1);   h~ = dropout(h');   y = g2(W2 h~ + b2)

    and is trained to make y equal h. g1 is ReLU but in the last layer, whose code is linear; g2 is
    ReLU but in the first, whose output has values of either sign.

    Example:
        >>> import torch
        >>> network = StackedAutoencoder((64, 32, 10))
        >>> output, h = network.denoise(1, torch.zeros(5, 64), 0.2)
        >>> output.shape, h.shape
        (torch.Size([5, 32]), torch.Size([5, 32]))
    """

    @property
    def n_layers(self) -> int:
        """Layers of the encoder."""
        return len(self.encoder)

    def layer_parameters(self, layer: int) -> list[torch.nn.Parameter]:
        """The parameters of encoder layer `layer`, from 0, and of its mirror in the decoder."""
        mirror = self.decoder[self.n_layers - 1 - layer]
        return [*self.encoder[layer].parameters(), *mirror.parameters()]

    def denoise(self, layer: int, x: Tensor, corruption: float) -> tuple[Tensor, Tensor]:
        """What one layer makes of its dropped-out input, and the clean input h that it should be.

        Args:
            layer: The number of the layer, from 0.
            x: Rows (N, d_0) of the data.
            corruption: The share of values that dropout sets to zero, before and after the layer.
        """
        with torch.no_grad():
            h = x
            for below in self.encoder[:layer]:
                h = torch.relu(below(h))
        code = self.encoder[layer](dropout(h, corruption))
        if layer < self.n_layers - 1:
            code = torch.relu(code)
        output = self.decoder[self.n_layers - 1 - layer](dropout(code, corruption))
        return (torch.relu(output) if layer > 0 else output), h
