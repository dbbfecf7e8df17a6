"""Where k-means starts: greedy k-means++, rows at random, k-means||."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import ArrayLike
from torch import Tensor

from deepclust.cluster._columns import BLOCK_ROWS, Column
from deepclust.cluster._lloyd import lloyd
from deepclust.cluster._points import Draw, Points, total

Array = np.ndarray[Any, Any]

PIECE_ROWS = 1 << 10
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
    n_drawn = 2 + int(np.log(n_clusters))
    room = None
    if points.held:
        room = torch.empty(n_drawn * len(points), dtype=points.dtype, device=points.device)
    drawn = _draw(points, None, 1, rng)
    while True:
        x = points.take(drawn)
        potentials = torch.zeros(len(x), dtype=torch.float64, device=points.device)
        held = []
        for rows, sq_dist, more in points.candidates(x, nearest, room):
            potentials += more
            if points.held:
                held.append((rows, sq_dist))
        potentials = points.ranks.sum(potentials)
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
        drawn = _draw(points, nearest, n_drawn, rng)
    chosen += chosen[:1] * (n_clusters - len(chosen))
    return points.take(np.array(chosen))


def random_rows(points: Points, n_clusters: int, rng: RandomState) -> Tensor:
    """K rows, drawn by weight one after the other, none twice.

    The K least of exponential variables of rate w_i are such a draw (Efraimidis and Spirakis,
    2006).
    """
    keys, chosen, n = np.empty(0), np.empty(0, np.int64), 0
    for rows, more in _numbers(points, rng.standard_exponential):
        if points.weight is not None:
            weight = points.weight[rows].cpu().double().numpy()
            n += int(np.count_nonzero(weight))
            with np.errstate(divide="ignore"):
                more = more / weight
        keys = np.concatenate([keys, more])
        chosen = np.concatenate([chosen, points.ranks.start + np.arange(rows.start, rows.stop)])
        keys, chosen = _least(keys, chosen, n_clusters)
    parts = points.ranks.objects((keys, chosen, n))
    keys, chosen = (np.concatenate(found) for found in list(zip(*parts, strict=True))[:2])
    keys, chosen = _least(keys, chosen, n_clusters)
    n = sum(part[2] for part in parts)
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
    found = points.take(_draw(points, None, 1, rng))
    nearest = points.assign(found).sq_dist
    n_rounds = 0
    while n_rounds < ROUNDS or len(found) < n_clusters:
        if not 0 < (phi := points.total(nearest)) < np.inf:
            break
        parts = []
        for rows, u in _numbers(points, rng.random_sample):
            potential = points.weighted(nearest[rows], rows).cpu().double().numpy()
            chance = OVERSAMPLING * n_clusters * potential / phi
            parts.append(points.ranks.start + rows.start + np.flatnonzero(u < chance))
        n_rounds += 1
        if len(drawn := np.concatenate(points.ranks.objects(np.concatenate(parts)))):
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


def _numbers(points: Points, sample: Callable[[int], Array]) -> Iterator[tuple[slice, Array]]:
    """Block by block a random number for each row: (which rows, their numbers).

    Each process draws those of all rows, so that they do not depend on who holds which.
    """
    ranks = points.ranks
    for start in range(0, ranks.total, BLOCK_ROWS):
        numbers = sample(min(BLOCK_ROWS, ranks.total - start))
        own = ranks.own(slice(start, start + len(numbers)))
        first = ranks.start + own.start - start
        yield own, numbers[first : first + own.stop - own.start]


def _least(keys: Array, rows: Array, n: int) -> tuple[Array, Array]:
    """The n least keys and their rows."""
    if len(keys) <= n:
        return keys, rows
    least = np.argpartition(keys, n - 1)[:n]
    return keys[least], rows[least]


def _draw(points: Points, values: Column | None, size: int, rng: RandomState) -> Array:
    """Numbers (size,) of rows, drawn in proportion to their weights times these values, if any."""
    if values is None and points.weight is None:
        return Draw(None, points.ranks.total)(size, rng)

    def weights_of(rows: slice) -> Tensor:
        if values is not None:
            return points.weighted(values[rows], rows)
        assert points.weight is not None
        return points.weight[rows]

    starts = range(0, len(points), BLOCK_ROWS)
    blocks = [slice(start, min(start + BLOCK_ROWS, len(points))) for start in starts]
    shares = points.ranks.objects([total(weights_of(rows)) for rows in blocks])
    before = sum(map(len, shares[: points.ranks.rank]))
    reached, left = _reached([share for part in shares for share in part], rng.random_sample(size))
    drawn = np.zeros(size, np.int64)
    for number, rows in enumerate(blocks, before):
        here = reached == number
        if here.any():
            found = _reached_row(weights_of(rows).cpu().numpy(), left[here])
            drawn[here] = points.ranks.start + rows.start + found
    return points.ranks.add(torch.from_numpy(drawn)).numpy()


def _reached(shares: ArrayLike, u: Array) -> tuple[Array, Array]:
    """Where these parts u (n,) of all shares are reached: (in which share, in which part of it)."""
    shares = np.asarray(shares, np.float64)
    ends = np.cumsum(shares)
    place = u * ends[-1]
    found = np.minimum(np.searchsorted(ends, place, side="right"), len(ends) - 1)
    with np.errstate(invalid="ignore"):  # sums past the type's range
        return found, (place - (ends[found] - shares[found])) / shares[found]


def _reached_row(weights: Array, u: Array) -> Array:
    """The rows at which these parts u (n,) of all weight are reached.

    By the sums of pieces first: running sums of all rows would take longer than a pass over X.
    """
    starts = np.arange(0, len(weights), PIECE_ROWS)
    pieces, u = _reached(np.add.reduceat(weights, starts, dtype=np.float64), u)
    found = [
        start + _reached(weights[start : start + PIECE_ROWS], u[i : i + 1])[0][0]
        for i, start in enumerate(starts[pieces])
    ]
    return np.array(found)
