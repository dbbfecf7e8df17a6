"""Where clusters start: k-means with restarts on the embedded data, and a mixture from there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.cluster._trainer import Run
from deepclust.cluster.kmeans import KMeans

MIXTURE_ITERATIONS, MIXTURE_TOL = 100, 1e-4
MIXTURE_ROWS = 4096  # of one block
START_BELOW = 2.0  # how far a variational encoder's log-variances start below the clusters'


@dataclass(frozen=True)
class Start:
    """k-means with restarts.

    Attributes:
        n_clusters: K.
        init: "k-means++", "random", or centroids (K, D).
        n_init: Restarts; from given centroids there is one, as k-means always ends the same.
        criterion: Which to keep: that of least "inertia", or that in which one "gaussian" a cluster
            explains the embedding best. Where clusters start again it is that of least inertia.
        backend: Of the kernels.
    """

    n_clusters: int
    init: Any
    n_init: int
    criterion: str
    backend: str

    def __call__(self, run: Run, z: Tensor) -> tuple[Tensor, Tensor]:
        """Centroids (K, D) and labels (n,) of embeddings z (n, D), this process's rows."""
        best = -math.inf
        # Codes have clusters of any form. Embeddings that a clustering has trained have tight ones,
        # some of hardly a width in some directions, which are then all that a Gaussian counts.
        first = run.stage.name == "cluster" and run.update == 0
        gaussian = self.criterion == "gaussian" and first
        for _ in range(self.n_init if isinstance(self.init, str) else 1):
            kmeans = KMeans(
                self.n_clusters,
                init=self.init,
                n_init=1,
                random_state=run.seed("k-means"),
                backend=self.backend,
            ).fit(run.shared(z))
            score = -kmeans.inertia_
            if gaussian:
                score = gaussian_likelihood(z, kmeans.labels_, self.n_clusters, run.sum)
            if score > best:
                best = score
                centroids, labels = kmeans.cluster_centers_, kmeans.labels_
        return torch.from_numpy(centroids).to(z), torch.from_numpy(labels).to(z.device)


def fit_mixture(z: Tensor, labels: Tensor, n_clusters: int, backend: str = "auto") -> F.Gaussian:
    """A mixture of axis-parallel Gaussians by expectation maximisation, from given labels.

    Responsibilities are computed block by block, so that no N x K numbers are held. It ends when
    the components' shares move by less than MIXTURE_TOL in all.

    Args:
        z: Embeddings (N, D).
        labels: The component (N,) that each row begins in.
        n_clusters: K.
        backend: Of the kernels.
    """
    origin, floor = z.mean(0), variance_floor(z)
    shares: Tensor | None = None
    head: F.Gaussian | None = None
    for _ in range(MIXTURE_ITERATIONS):
        n = z.new_zeros(n_clusters, dtype=torch.float64)
        first = z.new_zeros(n_clusters, z.shape[1], dtype=torch.float64)
        second = first.clone()
        for start in range(0, len(z), MIXTURE_ROWS):
            x = z[start : start + MIXTURE_ROWS] - origin
            if head is None:
                r = torch.nn.functional.one_hot(labels[start : start + len(x)], n_clusters)
            else:
                r = F.assign(x, head, backend=backend, check=False)
            r, x = r.double(), x.double()
            n += r.sum(0)
            first += r.T @ x
            second += r.T @ x.square()
        n = n.clamp_min(torch.finfo(z.dtype).tiny)
        means = first / n.unsqueeze(1)
        variances = (second / n.unsqueeze(1) - means.square()).clamp_min(floor)
        previous, shares = shares, n / n.sum()
        head = F.Gaussian(means.to(z), variances.log().to(z), shares.log().to(z))
        if previous is not None and float((shares - previous).abs().sum()) < MIXTURE_TOL:
            break
    assert head is not None
    return F.Gaussian(head.means + origin, head.log_var, head.log_weights)


def variance_floor(z: Tensor) -> float:
    """The least variance of a cluster: of few rows, flat in some direction, it has none."""
    return _floor(z.double().var(0, correction=0), z.dtype)


def _floor(variances: Tensor, dtype: torch.dtype) -> float:
    return max(1e-3 * float(variances.mean()), torch.finfo(dtype).tiny)


def within_variances(z: Tensor, centroids: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """The variances (K, D) of the rows z (n, D) of each cluster around its centroid.

    They are 0 where nothing belongs to it; options are those of kmeans_update.
    """
    squares, n = F.kmeans_update(
        (z - centroids[labels]).square(), labels, len(centroids), **options
    )
    return squares / n.clamp_min(1).unsqueeze(1)


def gaussian_likelihood(
    z: Tensor,
    labels: np.ndarray[Any, Any],
    n_clusters: int,
    add: Callable[[Tensor], Tensor] = Tensor.double,
) -> float:
    """How well K Gaussians, one a cluster, explain the embedding: to tell ends of k-means apart.

    sum_j n_j/N (log(n_j/N) - 1/2 log det C_j), C_j the covariance of cluster j: the classification
    likelihood of Celeux and Govaert (1992), but for constants. A cluster that joins two classes has
    a large determinant whichever way it lies, which inertia, blind to shape, hardly sees.

    Args:
        z: Embeddings (n, D), of this process's rows.
        labels: Their clusters (n,).
        n_clusters: K.
        add: Gives the sum of a tensor over all processes.
    """
    z = z.double().cpu()

    def moments(rows: Tensor) -> tuple[int, Tensor]:
        """How many rows there are, and their covariance (D, D)."""
        n = int(add(torch.tensor(len(rows))))
        centred = rows - add(rows.sum(0)) / n
        return n, add(centred.T @ centred) / n

    n_rows, whole = moments(z)
    ridge = _floor(whole.diagonal(), z.dtype) * torch.eye(z.shape[1], dtype=z.dtype)
    total = 0.0
    for label in range(n_clusters):
        n, covariance = moments(z[torch.from_numpy(labels == label)])
        if n:
            share = n / n_rows
            total += share * (math.log(share) - float(torch.logdet(covariance + ridge)) / 2)
    return total
