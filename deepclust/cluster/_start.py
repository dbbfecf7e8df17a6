"""Where clusters start: k-means with restarts on the embedded data, and a mixture from there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepclust import functional as F
from deepclust._files import parts
from deepclust.cluster._columns import Values, added, in_blocks
from deepclust.cluster._sources import as_tensor
from deepclust.cluster._trainer import Run
from deepclust.cluster.kmeans import KMeans

MIXTURE_ITERATIONS, MIXTURE_TOL = 100, 1e-4
MIXTURE_ROWS = 4096  # of one block
COVARIANCE_ELEMENTS = 1 << 23  # of clusters that one pass finds: 64 MB
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

    def __call__(self, run: Run, z: Values) -> tuple[Tensor, Values]:
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
            score, found = -kmeans.inertia_, _labels(run, kmeans.labels_, z.device)
            if gaussian:
                score = gaussian_likelihood(z, found, self.n_clusters, run.sum)
            if score > best:
                best, centroids, labels = score, kmeans.cluster_centers_, found
        return torch.from_numpy(centroids).to(z.device, z.dtype), labels


def _labels(run: Run, labels: np.ndarray[Any, Any], device: torch.device) -> Values:
    """Labels (N,) of k-means, which are a map of a file where embeddings lie in one."""
    if not isinstance(labels, np.memmap):
        return torch.from_numpy(labels).to(device)
    starts = itertools.accumulate(map(len, parts(labels)), initial=0)
    return run.collect(
        (slice(start, start + len(some)), as_tensor(some))
        for start, some in zip(starts, parts(labels), strict=False)
    )


def fit_mixture(z: Values, labels: Values, n_clusters: int, backend: str = "auto") -> F.Gaussian:
    """A mixture of axis-parallel Gaussians by expectation maximisation, from given labels.

    Responsibilities are computed block by block, so that no N x K numbers are held. It ends when
    the components' shares move by less than MIXTURE_TOL in all.

    Args:
        z: Embeddings (N, D).
        labels: The component (N,) that each row begins in.
        n_clusters: K.
        backend: Of the kernels.
    """
    origin, floor = moments(z)[0].to(z.dtype), variance_floor(z)
    shares: Tensor | None = None
    head: F.Gaussian | None = None
    for _ in range(MIXTURE_ITERATIONS):
        n = origin.new_zeros(n_clusters, dtype=torch.float64)
        first = origin.new_zeros(n_clusters, len(origin), dtype=torch.float64)
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
        head = F.Gaussian(*(found.to(z.dtype) for found in (means, variances.log(), shares.log())))
        if previous is not None and float((shares - previous).abs().sum()) < MIXTURE_TOL:
            break
    assert head is not None
    return F.Gaussian(head.means + origin, head.log_var, head.log_weights)


def moments(z: Values) -> tuple[Tensor, Tensor]:
    """The mean and the variances (D,) of embeddings z (N, D), in float64."""
    mean = torch.stack([some.double().sum(0) for _, some in in_blocks(z)]).sum(0) / len(z)
    squares = [(some - mean).square().sum(0) for _, some in in_blocks(z)]
    return mean, torch.stack(squares).sum(0) / len(z)


def variance_floor(z: Values) -> float:
    """The least variance of a cluster: of few rows, flat in some direction, it has none."""
    return _floor(moments(z)[1], z.dtype)


def _floor(variances: Tensor, dtype: torch.dtype) -> float:
    return max(1e-3 * float(variances.mean()), torch.finfo(dtype).tiny)


def cluster_sums(
    z: Values,
    labels: Values,
    n_clusters: int,
    of: Callable[[Tensor, Tensor], Tensor] = lambda some, labels: some,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """`kmeans_update` of all rows z (n, D), or of what `of` makes of some and their labels."""
    found = [
        F.kmeans_update(of(some, labels[rows]), labels[rows], n_clusters, **options)
        for rows, some in in_blocks(z)
    ]
    sums, n = (added(values) for values in zip(*found, strict=True))
    return sums, n


def within_variances(z: Values, centroids: Tensor, labels: Values, **options: Any) -> Tensor:
    """The variances (K, D) of the rows z (n, D) of each cluster around its centroid.

    They are 0 where nothing belongs to it; options are those of kmeans_update.
    """

    def squared(some: Tensor, labels: Tensor) -> Tensor:
        return (some - centroids[labels]).square()

    squares, n = cluster_sums(z, labels, len(centroids), squared, **options)
    return squares / n.clamp_min(1).unsqueeze(1)


def gaussian_likelihood(
    z: Values,
    labels: Values,
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
    width = z.shape[1]
    n = torch.zeros(n_clusters, dtype=torch.float64)
    sums = n.new_zeros(n_clusters, width)
    for rows, some in in_blocks(z):
        found = labels[rows].cpu()
        n += found.bincount(minlength=n_clusters)
        sums.index_add_(0, found, some.double().cpu())
    n, sums = add(n), add(sums)
    n_rows, mean = n.sum(), sums.sum(0) / n.sum()
    means = sums / n.clamp_min(1).unsqueeze(1)
    # sum_i (z_i - mean)(z_i - mean)^T over the columns alone, of which the diagonal is asked for.
    squares = n.new_zeros(width)
    for _, some in in_blocks(z):
        squares += (some.double().cpu() - mean).square().sum(0)
    ridge = _floor(add(squares) / n_rows, z.dtype) * torch.eye(width, dtype=n.dtype)
    total = 0.0
    size = max(1, COVARIANCE_ELEMENTS // width**2)
    for clusters in torch.arange(n_clusters).split(size):
        scatter = n.new_zeros(len(clusters), width, width)
        for rows, some in in_blocks(z):
            some, found = some.double().cpu(), labels[rows].cpu()
            for place, label in enumerate(clusters.tolist()):
                centred = some[found == label] - means[label]
                scatter[place] += centred.T @ centred
        for label, one in zip(clusters.tolist(), add(scatter), strict=True):
            if n[label]:
                share = float(n[label] / n_rows)
                covariance = one / n[label] + ridge
                total += share * (math.log(share) - float(torch.logdet(covariance)) / 2)
    return total
