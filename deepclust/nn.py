"""Modules that own the parameters of a head."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust import functional as F


class StudentTAssignment(torch.nn.Module):
    """Soft assignment with trainable centroids, the clustering layer of DEC.

    q_ij = (1 + ||z_i - mu_j||^2/nu)^(-(nu+1)/2), rows normalised to one: eq. 1 of Xie et al.
    (2016).

    Args:
        n_clusters: K.
        n_features: D.
        nu: Degrees of freedom, above 0.
        backend: "auto", "eager", "cpp" or "triton".

    Attributes:
        centroids: mu (K, D), a parameter that starts at zero: copy centroids of k-means into it.

    Raises:
        ValueError: If nu is not above 0, or a size is below 1.

    Example:
        >>> import torch
        >>> layer = StudentTAssignment(3, 2)
        >>> layer(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self, n_clusters: int, n_features: int, nu: float = 1.0, *, backend: str = "auto"
    ) -> None:
        super().__init__()
        _check_sizes(n_clusters, n_features)
        self.centroids = torch.nn.Parameter(torch.zeros(n_clusters, n_features))
        self.nu = nu
        self.backend = backend
        self.head()  # refuses a bad nu now rather than at the first call

    def head(self) -> F.StudentT:
        """The head on the present centroids, for the functions of `deepclust.functional`."""
        return F.StudentT(self.centroids, self.nu)

    def forward(self, z: Tensor) -> Tensor:
        """Soft assignment q (N, K) of embeddings z (N, D)."""
        return F.assign(z, self.head(), backend=self.backend)

    def extra_repr(self) -> str:
        """The sizes, for print."""
        k, d = self.centroids.shape
        return f"n_clusters={k}, n_features={d}, nu={self.nu}"


class GaussianAssignment(torch.nn.Module):
    """Soft assignment to the components of a trainable mixture of diagonal Gaussians.

    q_ij ∝ pi_j N(z_i; mu_j, diag(sigma_j^2)), rows normalised to one: p(c | z) of VaDE (eq. 16 of
    Jiang et al., 2017).

    Args:
        n_clusters: K.
        n_features: D.
        backend: "auto", "eager", "cpp" or "triton".

    Attributes:
        means: mu (K, D), a parameter that starts at zero.
        log_var: log sigma^2 (K, D), a parameter that starts at zero.
        log_weights: log pi (K,) up to a constant, a parameter that starts at zero.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch
        >>> layer = GaussianAssignment(3, 2)
        >>> layer(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(self, n_clusters: int, n_features: int, *, backend: str = "auto") -> None:
        super().__init__()
        _check_sizes(n_clusters, n_features)
        self.means = torch.nn.Parameter(torch.zeros(n_clusters, n_features))
        self.log_var = torch.nn.Parameter(torch.zeros(n_clusters, n_features))
        self.log_weights = torch.nn.Parameter(torch.zeros(n_clusters))
        self.backend = backend

    def head(self) -> F.Gaussian:
        """The head on the present mixture, for the functions of `deepclust.functional`."""
        return F.Gaussian(self.means, self.log_var, torch.log_softmax(self.log_weights, 0))

    def forward(self, z: Tensor) -> Tensor:
        """Soft assignment q (N, K) of embeddings z (N, D)."""
        return F.assign(z, self.head(), backend=self.backend)

    def extra_repr(self) -> str:
        """The sizes, for print."""
        k, d = self.means.shape
        return f"n_clusters={k}, n_features={d}"


class DEPICTHead(torch.nn.Module):
    """Soft assignment by a trainable soft-max layer, the clustering layer of DEPICT.

    q_ij = exp(theta_j . z_i + b_j), rows normalised to one: eq. 1 of Dizaji et al. (2017), with a
    bias.

    Args:
        n_clusters: K.
        n_features: D.
        backend: "auto", "eager", "cpp" or "triton".

    Attributes:
        weight: theta (K, D), a parameter that starts at zero: copy directions of clusters into it.
        bias: b (K,), a parameter that starts at zero.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch
        >>> layer = DEPICTHead(3, 2)
        >>> layer(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(self, n_clusters: int, n_features: int, *, backend: str = "auto") -> None:
        super().__init__()
        _check_sizes(n_clusters, n_features)
        self.weight = torch.nn.Parameter(torch.zeros(n_clusters, n_features))
        self.bias = torch.nn.Parameter(torch.zeros(n_clusters))
        self.backend = backend

    def head(self) -> F.Linear:
        """The head on the present layer, for the functions of `deepclust.functional`."""
        return F.Linear(self.weight, self.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Soft assignment q (N, K) of embeddings z (N, D)."""
        return F.assign(z, self.head(), backend=self.backend)

    def extra_repr(self) -> str:
        """The sizes, for print."""
        k, d = self.weight.shape
        return f"n_clusters={k}, n_features={d}"


def _check_sizes(n_clusters: int, n_features: int) -> None:
    for name, size in (("n_clusters", n_clusters), ("n_features", n_features)):
        if size < 1:
            raise ValueError(f"{name}: got {size}; it takes an integer of at least 1")
