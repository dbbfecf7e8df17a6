"""The stacked denoising autoencoder: an MLP that can be trained one layer at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from deepclust.networks.mlp import MLPAutoencoder


class StackedAutoencoder(MLPAutoencoder):
    """A fully connected autoencoder whose layers also work as denoising autoencoders of two layers.

    Layer l sees the clean output h of the layers below it (section 3.2 of Xie et al., 2016, eqs. 6
    to 9):

        x~ = dropout(h);   h' = g1(W1 x~ + b1);   h~ = dropout(h');   y = g2(W2 h~ + b2)

    and is trained to make y equal h. So g1 is the activation that made h', that of the code in the
    last layer, and g2 the one that made h: that of the layer below or, in the first layer, of the
    output. Arguments are those of `MLPAutoencoder`.

    Example:
        >>> import torch
        >>> network = StackedAutoencoder((64, 32, 10))
        >>> output, h = network.denoise(1, torch.zeros(5, 64), 0.2)
        >>> output.shape, h.shape
        (torch.Size([5, 32]), torch.Size([5, 32]))
    """

    def layer_parameters(self, layer: int) -> list[nn.Parameter]:
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
        h = x
        with torch.no_grad():
            for below in range(layer):
                h = self.encode_layer(below, h)
        code = self.encode_layer(layer, dropout(h, corruption))
        return self.decode_layer(layer, dropout(code, corruption)), h
