"""Where k-means starts: greedy k-means++, rows at random, k-means||."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from deepclust.cluster._lloyd import lloyd
from deepclust.cluster._points import Points

Array = np.ndarray[Any, Any]

ROUNDS, OVERSAMPLING = 5, 2  # of k-means||: r, and l / K, as in the paper's experiments
RECLUSTER_ITERATIONS = 20


def plus_plus(points: Points, n_clusters: int, rng: RandomState) -> Tensor:
    """Centroids (K, D) by greedy k-means++ (Arthur and Vassilvitskii, 2007).

    The first row is drawn by weight, each further one by weight times squared distance to the
    nearest so far: the best of 2 + log K draws, which leaves the least inertia. Where K is more
    than there are distinct rows, the first one fills up.
    """
    chosen: list[int] = []
    nearest: Tensor | None = None
    drawn = draw(points.weight, len(points), 1, rng)
    while True:
        sq_dist, potentials = points.candidates(points.take(drawn), nearest)
        best = int(potentials.argmin())
        chosen.append(int(drawn[best]))
        if len(chosen) == n_clusters or not potentials[best] > 0:
            break
        nearest = sq_dist[best].clone()  # of the other candidates nothing is kept
        weight = points.weighted(nearest)
        drawn = draw(weight, len(points), 2 + int(np.log(n_clusters)), rng)
    chosen += chosen[:1] * (n_clusters - len(chosen))
    return points.take(np.array(chosen))


def random_rows(points: Points, n_clusters: int, rng: RandomState) -> Tensor:
    """K rows, drawn by weight one after the other, none twice.

    The K least of exponential variables of rate w_i are such a draw (Efraimidis and Spirakis,
    2006).
    """
    keys = rng.standard_exponential(len(points))
    if points.weight is not None:
        weight = points.weight.cpu().double().numpy()
        if (n := np.count_nonzero(weight)) < n_clusters:
            raise ValueError(
                f"sample_weight: got {n} weights above 0; init='random' takes"
                f" n_clusters={n_clusters} or more"
            )
        with np.errstate(divide="ignore"):
            keys /= weight
    chosen = np.argpartition(keys, n_clusters - 1)[:n_clusters]
    return points.take(chosen[np.argsort(keys[chosen])])


def scalable(points: Points, n_clusters: int, rng: RandomState) -> Tensor:
    """Centroids (K, D) by k-means|| (Bahmani et al., 2012).

    In each of a few rounds every row is drawn with probability min(1, l w_i d2_i / phi), d2_i its
    squared distance to the nearest row drawn before, phi = sum_i w_i d2_i. The rows drawn, each
    with the weight of the rows nearest to it, are then clustered: some passes over the data in the
    place of K.
    """
    drawn = draw(points.weight, len(points), 1, rng)
    found = points.take(drawn)
    _, nearest = points.assign(found)
    n_rounds = 0
    while n_rounds < ROUNDS or len(found) < n_clusters:
        potential = points.weighted(nearest).cpu().double().numpy()
        if not 0 < (phi := potential.sum()) < np.inf:
            break
        chance = OVERSAMPLING * n_clusters * potential / phi
        drawn = np.flatnonzero(rng.random_sample(len(points)) < chance)
        n_rounds += 1
        if len(drawn):
            more = points.take(drawn)
            nearest = torch.minimum(nearest, points.assign(more)[1])
            found = torch.cat([found, more])
    _, _, _, counts = points.assign_and_update(found)
    candidates = points.like(found, counts.to(points.dtype))
    start = plus_plus(candidates, n_clusters, rng)
    return lloyd(candidates, start, RECLUSTER_ITERATIONS, 0.0).centroids


SEEDINGS: dict[str, Callable[[Points, int, RandomState], Tensor]] = {
    "k-means++": plus_plus,
    "random": random_rows,
    "k-means||": scalable,
}


def draw(weight: Tensor | None, n: int, size: int, rng: RandomState) -> Array:
    """Numbers (size,) of rows, drawn once: see `Draw`."""
    return Draw(weight, n)(size, rng)


class Draw:
    """Draws rows, below n, in proportion to weight (n,), which by default is equal for all.

    Equal weights and none give the same draws.
    """

    def __init__(self, weight: Tensor | None, n: int) -> None:
        self._n = n
        self._cumulative: Array | None = None
        if weight is not None:  # on the host, as a GPU's running sums are not the same each time
            self._cumulative = torch.cumsum(weight.cpu(), 0, dtype=torch.float64).numpy()

    def __call__(self, size: int, rng: RandomState) -> Array:
        """Numbers (size,) of rows, the same one possibly again."""
        u = rng.random_sample(size)
        if self._cumulative is None:
            rows = (u * self._n).astype(np.int64)
        else:
            rows = np.searchsorted(self._cumulative, u * self._cumulative[-1], side="right")
        within: Array = np.minimum(rows, self._n - 1)
        return within
