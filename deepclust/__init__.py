"""Deep clustering on fused kernels: the primitives, and the methods built on them.

from deepclust import functional as F      primitives: assign, target_loss, kmeans_assign, ...
from deepclust.cluster import DEC, KMeans  estimators in the manner of scikit-learn
deepclust.backends()                       what runs here, and why something does not
"""

from __future__ import annotations

from deepclust import functional, nn
from deepclust.kernels._dispatch import backends

__all__ = ["__version__", "backends", "functional", "nn"]
__version__ = "0.1.0.dev0"  # the only place that says it
