"""Networks: autoencoders, a user's own modules, and none; the features that are clustered."""

from deepclust.networks.autoencoder import (
    Autoencoder,
    LayeredAutoencoder,
    features,
    features_width,
)
from deepclust.networks.conv import CONV_SHAPES, ConvAutoencoder
from deepclust.networks.mlp import MLPAutoencoder
from deepclust.networks.user import GivenEmbeddings, UserNetwork
from deepclust.networks.variational import VariationalAutoencoder

__all__ = [
    "CONV_SHAPES",
    "Autoencoder",
    "ConvAutoencoder",
    "GivenEmbeddings",
    "LayeredAutoencoder",
    "MLPAutoencoder",
    "UserNetwork",
    "VariationalAutoencoder",
    "features",
    "features_width",
]
