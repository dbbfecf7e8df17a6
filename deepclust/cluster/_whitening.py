"""Centroids among whitened features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepclust.cluster._columns import Values, in_blocks
from deepclust.cluster._start import moments
from deepclust.kernels._blocks import full_precision
from deepclust.nn import StudentTAssignment


class Whitened(StudentTAssignment):
    """Centroids among features that are made uncorrelated and of unit variance.

    z_w = (z - mean) V diag(1 / s), C = V diag(s^2) V^T the covariance of the features: of N rows,
    sqrt(N) times the left singular vectors of the centred features, which k-means tells apart as it
    does these themselves. Along a direction in which the features do not vary, but for the
    rounding of their values, z_w is 0.

    Args:
        n_clusters: K.
        n_features: D.
        *args: As those of `StudentTAssignment`.
        **options: The same.

    Attributes:
        mean: (D,), at first 0.
        matrix: V diag(1 / s) (D, D), at first the identity.

    Example:
        >>> layer = Whitened(2, 2)
        >>> layer.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> layer.project(torch.tensor([[3.0, 5.0]])).abs()
        tensor([[0., 1.]])
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, n_clusters: int, n_features: int, *args: Any, **options: Any) -> None:
        super().__init__(n_clusters, n_features, *args, **options)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("matrix", torch.eye(n_features))

    def project(self, z: Tensor) -> Tensor:
        """Features (N, D), whitened."""
        with full_precision(z):
            return (z.to(self.mean.dtype) - self.mean) @ self.matrix

    def forget(self) -> None:
        """Leave features as they are."""
        self.mean.zero_()
        torch.nn.init.eye_(self.matrix)

    def fit(self, z: Values) -> None:
        """Whiten by the mean and covariance of features z (N, D)."""
        mean, _ = moments(z)
        covariance = mean.new_zeros(len(mean), len(mean))
        largest = 0.0
        for _, some in in_blocks(z):
            centred = some - mean
            covariance += centred.T @ centred / len(z)
            largest = max(largest, float(some.abs().max()))
        variances, directions = torch.linalg.eigh(covariance)
        # Values are rounded by so much, and a sum of D of them by D times as much.
        rounding = z.shape[1] * torch.finfo(z.dtype).eps * largest
        scale = torch.where(variances > rounding**2, variances, torch.inf).rsqrt()
        self.mean.copy_(mean)
        self.matrix.copy_(directions * scale)
