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
        for name, size in (("n_clusters", n_clusters), ("n_features", n_features)):
            if size < 1:
                raise ValueError(f"{name}: got {size}; it takes an integer of at least 1")
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
