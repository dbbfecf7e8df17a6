"""Modules for models of your own: assignments that own the parameters of a head, and losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from deepclust import functional as F

__all__ = [
    "Assignment",
    "DEPICTHead",
    "GaussianAssignment",
    "KMeansLoss",
    "StudentTAssignment",
    "TargetLoss",
]


class Assignment(torch.nn.Module, ABC):
    """Soft assignment to clusters, of which a subclass says by what head.

    q_ij = exp(s_ij) / sum_l exp(s_il), with the head's scores s.

    Attributes:
        backend: "auto", "eager", "cpp" or "triton".

    Example:
        >>> isinstance(StudentTAssignment(3, 2), Assignment)
        True
    """

    backend: str

    @abstractmethod
    def head(self) -> F.Head:
        """The head on the present parameters, for the functions of `deepclust.functional`."""

    def forward(self, z: Tensor) -> Tensor:
        """Soft assignment q (N, K) of embeddings z (N, D)."""
        return F.assign(z, self.head(), backend=self.backend)

    def extra_repr(self) -> str:
        """The sizes, for print."""
        head = self.head()
        return f"n_clusters={head.n_clusters}, n_features={head.n_features}"


class StudentTAssignment(Assignment):
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

    def extra_repr(self) -> str:
        """The sizes and nu, for print."""
        return f"{super().extra_repr()}, nu={self.nu}"


class GaussianAssignment(Assignment):
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


class DEPICTHead(Assignment):
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


class TargetLoss(torch.nn.Module):
    """Divergence from a target to the soft assignment of an `Assignment`, with q never stored.

    kind="kl": sum_ij p_ij log(p_ij / q_ij), the loss of DEC (eq. 2 of Xie et al., 2016);
    kind="ce": -sum_ij p_ij log q_ij, the loss of DEPICT (eq. 8 of Dizaji et al., 2017).

    As torch's own losses it owns nothing: it is called with the assignment, whose parameters are
    then registered once, wherever the model has them.

    Args:
        kind: "kl" or "ce".
        reduction: "mean" over the N rows (0 where there are none) or "sum", in nats.
        backend: "auto", "eager", "cpp" or "triton".

    Raises:
        ValueError: If kind or reduction is another one.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> layer, loss = StudentTAssignment(2, 1), TargetLoss()
        >>> z = torch.tensor([[0.0], [2.0]])
        >>> with torch.no_grad():
        ...     _ = layer.centroids.copy_(torch.tensor([[0.0], [1.0]]))
        >>> loss(z, layer, F.dec_target(layer(z)))
        tensor(0.0531, grad_fn=<_TargetLossBackward>)
    """

    def __init__(self, kind: str = "kl", *, reduction: str = "mean", backend: str = "auto") -> None:
        super().__init__()
        self.kind, self.reduction, self.backend = kind, reduction, backend
        # Refuses a bad kind or reduction now rather than at the first call.
        nothing = torch.zeros(0, 1)
        options: Any = {"reduction": reduction, "kind": kind, "backend": "eager"}
        F.target_loss(nothing, torch.zeros(1, 1), nothing, **options)

    def forward(
        self, z: Tensor, assignment: Assignment | F.Head | Tensor, target: Tensor | F.Snapshot
    ) -> Tensor:
        """The loss, with gradients to z and to the assignment's parameters.

        Args:
            z: Embeddings (N, D).
            assignment: An `Assignment`, a head, or a tensor of centroids (K, D).
            target: p (N, K), or the Snapshot of these N rows. No gradient reaches it.

        Returns:
            The loss without dimensions, in float32 or float64.

        Raises:
            ValueError: If shapes, devices or values do not fit.
            TypeError: If types do not fit.
        """
        head = assignment.head() if isinstance(assignment, Assignment) else assignment
        if not isinstance(head, (F.Head, Tensor)):
            raise TypeError(
                f"assignment: got {type(assignment).__name__}; it takes an Assignment, a head or a"
                " tensor of centroids"
            )
        return F.target_loss(
            z, head, target, reduction=self.reduction, kind=self.kind, backend=self.backend
        )

    def extra_repr(self) -> str:
        """The settings, for print."""
        return f"kind={self.kind!r}, reduction={self.reduction!r}"


class KMeansLoss(torch.nn.Module):
    """Squared distance of embeddings to trainable centroids, the clustering term of DCN.

    L = sum_i ||z_i - mu_{labels_i}||^2 (eq. 5 of Yang et al., 2017, but for its weight).

    Args:
        n_clusters: K.
        n_features: D.
        reduction: "mean" over the N rows (0 where there are none) or "sum".
        backend: "auto", "eager", "cpp" or "triton".

    Attributes:
        centroids: mu (K, D), a parameter that starts at zero: copy centroids of k-means into it.

    Raises:
        ValueError: If reduction is another one, or a size is below 1.

    Example:
        >>> import torch
        >>> loss = KMeansLoss(2, 1)
        >>> with torch.no_grad():
        ...     _ = loss.centroids.copy_(torch.tensor([[0.0], [2.0]]))
        >>> z = torch.tensor([[0.0], [3.0]])
        >>> loss(z).item(), loss(z, torch.tensor([0, 0])).item()
        (0.5, 4.5)
    """

    def __init__(
        self,
        n_clusters: int,
        n_features: int,
        *,
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _check_sizes(n_clusters, n_features)
        self.centroids = torch.nn.Parameter(torch.zeros(n_clusters, n_features))
        self.reduction, self.backend = reduction, backend
        # Refuses a bad reduction now rather than at the first call.
        F.kmeans_loss(torch.zeros(0, 1), torch.zeros(1, 1), reduction=reduction, backend="eager")

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss, with gradients to z and to the centroids.

        Args:
            z: Embeddings (N, D).
            labels: The centroid of each row (N,) int64; by default the nearest one.

        Returns:
            The loss without dimensions, in float32 or float64.

        Raises:
            ValueError: If shapes, devices or values do not fit.
            TypeError: If types do not fit.
        """
        return F.kmeans_loss(
            z, self.centroids, labels, reduction=self.reduction, backend=self.backend
        )

    def extra_repr(self) -> str:
        """The sizes and the reduction, for print."""
        k, d = self.centroids.shape
        return f"n_clusters={k}, n_features={d}, reduction={self.reduction!r}"


def _check_sizes(n_clusters: int, n_features: int) -> None:
    for name, size in (("n_clusters", n_clusters), ("n_features", n_features)):
        if size < 1:
            raise ValueError(f"{name}: got {size}; it takes an integer of at least 1")
