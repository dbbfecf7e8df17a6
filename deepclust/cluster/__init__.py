"""Estimators in the manner of scikit-learn, one file a method."""

from deepclust.cluster.dec import DEC
from deepclust.cluster.kmeans import KMeans

__all__ = ["DEC", "KMeans"]
