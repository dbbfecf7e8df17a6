"""Autoencoders."""

from deepclust.networks.mlp import MLPAutoencoder
from deepclust.networks.stacked import StackedAutoencoder

__all__ = ["MLPAutoencoder", "StackedAutoencoder"]
