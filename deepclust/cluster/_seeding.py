"""Where k-means starts: greedy k-means++, rows at random, k-means||."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from deepclust.cluster._columns import BLOCK_ROWS, Column
from deepclust.cluster._lloyd import lloyd
from deepclust.cluster._points import Draw, Points, total

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
    nearest: Column | None = None
    drawn = Draw(points.weight, len(points))(1, rng)
    while True:
        x = points.take(drawn)
        potentials = torch.zeros(len(x), dtype=torch.float64, device=points.device)
        held = []
        for rows, sq_dist, more in points.candidates(x, nearest):
            potentials += more
            if points.held:
                held.append((rows, sq_dist))
        best = int(potentials.argmin())
        chosen.append(int(drawn[best]))
        if len(chosen) == n_clusters or not potentials[best] > 0:
            break
        # Rows that are not held are read again: of their distances only one candidate's is kept.
        again = points.candidates(x[best : best + 1], nearest)
        if nearest is None:
            nearest = points.column(points.dtype)
        for rows, sq_dist in held:
            nearest[rows] = sq_dist[best]
        if not held:
            for rows, sq_dist, _ in again:
                nearest[rows] = sq_dist[0]
        drawn = _drawn_by(points, nearest, 2 + int(np.log(n_clusters)), rng)
    chosen += chosen[:1] * (n_clusters - len(chosen))
    return points.take(np.array(chosen))


def random_rows(points: Points, n_clusters: int, rng: RandomState) -> Tensor:
    """K rows, drawn by weight one after the other, none twice.

    The K least of exponential variables of rate w_i are such a draw (Efraimidis and Spirakis,
    2006).
    """
    keys, chosen, n = np.empty(0), np.empty(0, np.int64), 0
    for start in range(0, len(points), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(points)))
        more = rng.standard_exponential(rows.stop - start)
        if points.weight is not None:
            weight = points.weight[rows].cpu().double().numpy()
            n += int(np.count_nonzero(weight))
            with np.errstate(divide="ignore"):
                more /= weight
        keys = np.concatenate([keys, more])
        chosen = np.concatenate([chosen, np.arange(rows.start, rows.stop)])
        if len(keys) > n_clusters:
            least = np.argpartition(keys, n_clusters - 1)[:n_clusters]
            keys, chosen = keys[least], chosen[least]
    if points.weight is not None and n < n_clusters:
        raise ValueError(
            f"sample_weight: got {n} weights above 0; init='random' takes"
            f" n_clusters={n_clusters} or more"
        )
    return points.take(chosen[np.argsort(keys)])


def scalable(points: Points, n_clusters: int, rng: RandomState) -> Tensor:
    """Centroids (K, D) by k-means|| (Bahmani et al., 2012).

    In each of a few rounds every row is drawn with probability min(1, l w_i d2_i / phi), d2_i its
    squared distance to the nearest row drawn before, phi = sum_i w_i d2_i. The rows drawn, each
    with the weight of the rows nearest to it, are then clustered: some passes over the data in the
    place of K.
    """
    found = points.take(Draw(points.weight, len(points))(1, rng))
    nearest = points.assign(found).sq_dist
    n_rounds = 0
    while n_rounds < ROUNDS or len(found) < n_clusters:
        if not 0 < (phi := points.total(nearest)) < np.inf:
            break
        parts = []
        for rows, values in nearest.blocks():
            potential = points.weighted(values, rows).cpu().double().numpy()
            chance = OVERSAMPLING * n_clusters * potential / phi
            parts.append(rows.start + np.flatnonzero(rng.random_sample(len(chance)) < chance))
        n_rounds += 1
        if len(drawn := np.concatenate(parts)):
            more = points.take(drawn)
            for rows, _, sq_dist in points.nearest(more):
                nearest[rows] = torch.minimum(nearest[rows], sq_dist)
            found = torch.cat([found, more])
    counts = points.assign_and_update(found).counts
    candidates = points.like(found, counts.to(points.dtype))
    start = plus_plus(candidates, n_clusters, rng)
    return lloyd(candidates, start, RECLUSTER_ITERATIONS, 0.0).centroids


SEEDINGS: dict[str, Callable[[Points, int, RandomState], Tensor]] = {
    "k-means++": plus_plus,
    "random": random_rows,
    "k-means||": scalable,
}


def _drawn_by(points: Points, values: Column, size: int, rng: RandomState) -> Array:
    """Numbers (size,) of rows, drawn in proportion to their weights times these values."""
    blocks = [(rows, total(points.weighted(found, rows))) for rows, found in values.blocks()]
    ends = np.cumsum([share for _, share in blocks])
    place = rng.random_sample(size) * ends[-1]
    within = np.minimum(np.searchsorted(ends, place, side="right"), len(blocks) - 1)
    drawn = np.empty(size, np.int64)
    for number in np.unique(within):
        rows, share = blocks[number]
        here = within == number
        with np.errstate(invalid="ignore"):  # sums past the type's range
            u = (place[here] - (ends[number] - share)) / share
        weights = points.weighted(values[rows], rows)
        drawn[here] = rows.start + Draw(weights, len(weights)).at(u)
    return drawn
