"""Networks: autoencoders, a user's own modules, and none; the features that are clustered."""

from deepclust.networks.acai import ACAI_WIDTHS, ACAIAutoencoder
from deepclust.networks.autoencoder import (
    Autoencoder,
    LayeredAutoencoder,
    features,
    features_width,
)
from deepclust.networks.conv import CONV_SHAPES, ConvAutoencoder
from deepclust.networks.critic import Critic
from deepclust.networks.discriminator import Discriminator
from deepclust.networks.mlp import MLPAutoencoder
from deepclust.networks.user import GivenEmbeddings, UserNetwork
from deepclust.networks.variational import VariationalAutoencoder

__all__ = [
    "ACAI_WIDTHS",
    "CONV_SHAPES",
    "ACAIAutoencoder",
    "Autoencoder",
    "ConvAutoencoder",
    "Critic",
    "Discriminator",
    "GivenEmbeddings",
    "LayeredAutoencoder",
    "MLPAutoencoder",
    "UserNetwork",
    "VariationalAutoencoder",
    "features",
    "features_width",
]
