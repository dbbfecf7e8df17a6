"""Lloyd's iterations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from deepclust.cluster._columns import Column
from deepclust.cluster._points import Nearest, Points, total, unit_rows


class Fit(NamedTuple):
    """What one start of k-means came to."""

    inertia: float  # sum_i w_i ||x_i - mu_{labels_i}||^2
    centroids: Tensor  # (K, D)
    labels: Column  # (N,), the nearest of these centroids
    n_iter: int
    converged: bool


def lloyd(
    points: Points,
    centroids: Tensor,
    max_iter: int,
    tol: float,
    *,
    verbose: bool = False,
    moved_to: Callable[[Tensor, int], None] = lambda centroids, n_iter: None,
) -> Fit:
    """Move centroids to the means of their rows, and rows to the nearest centroid, until they stay.

    Lloyd (1982). It ends when no centroid moves, which is when no label changes, when the squared
    distances that they move add up to tol or less, or after max_iter iterations.

    Args:
        points: The rows. Of unit rows the centroids are unit vectors too: the mean's direction
            (spherical k-means: Dhillon and Modha, 2001).
        centroids: Where to start (K, D).
        max_iter: Iterations, at most.
        tol: See above.
        verbose: Whether to print the inertia of each iteration, and why they end.
        moved_to: Is told the centroids after each iteration, and its number.
    """
    converged = False
    for n_iter in range(1, max_iter + 1):
        inertia, sums, counts, nearest = points.assign_and_update(centroids)
        if verbose:
            print(f"Iteration {n_iter - 1}, inertia {inertia:.6g}")
        empty = torch.nonzero(counts == 0).squeeze(1)
        if len(empty):
            nearest = nearest or points.assign(centroids)
            _relocate(points, nearest, empty)
            sums, counts = points.sums(nearest.labels, len(centroids))
        moved = means(sums, counts, centroids, unit=points.unit)
        shift = total(((moved - centroids) ** 2).flatten())
        centroids = moved
        moved_to(centroids, n_iter)
        if shift <= tol:
            if verbose:
                why = f"center shift {shift:.6g} within tolerance {tol:.6g}"
                why = why if shift > 0 else "strict convergence"
                print(f"Converged at iteration {n_iter - 1}: {why}")
            converged = True
            break
    if (
        nearest is None or shift > 0 or len(empty)
    ):  # else these are the nearest of the last ones too
        nearest = points.assign(centroids)
    return Fit(points.total(nearest.sq_dist), centroids, nearest.labels, n_iter, converged)


def means(sums: Tensor, counts: Tensor, centroids: Tensor, *, unit: bool) -> Tensor:
    """The means (K, D) of clusters, or their directions; what has none stays where it is."""
    counts = counts.unsqueeze(1)
    found = unit_rows(sums) if unit else sums / counts
    has_mean = found.any(1, keepdim=True) if unit else counts > 0
    return torch.where(has_mean, found.to(centroids.dtype), centroids)


def _relocate(points: Points, nearest: Nearest, empty: Tensor) -> None:
    """Give each empty cluster the row farthest from its centroid.

    The farthest row goes to the first empty cluster, and so on, as in scikit-learn. A row that lies
    on its centroid, or has no weight, goes nowhere: then rows are too few.
    """
    sq_dist = torch.empty(0, dtype=points.dtype, device=points.device)
    farthest = torch.empty(0, dtype=torch.int64, device=points.device)
    for rows, more in nearest.sq_dist.blocks():
        if points.weight is not None:
            more = torch.where(points.weight[rows] > 0, more, 0)
        some = torch.nonzero(more > 0).squeeze(1)
        if len(farthest) == len(empty):  # where rows tie, the first ones go
            some = some[more[some] > sq_dist[-1]]
        sq_dist = torch.cat([sq_dist, more[some]])
        farthest = torch.cat([farthest, rows.start + some])
        order = torch.argsort(sq_dist, descending=True, stable=True)[: len(empty)]
        sq_dist, farthest = sq_dist[order], farthest[order]
    if points.ranks.size > 1:
        # The farthest of the whole are among the farthest of the processes.
        parts = points.ranks.objects((sq_dist.cpu(), points.ranks.start + farthest.cpu()))
        sq_dist, farthest = (torch.cat(found) for found in zip(*parts, strict=True))
        farthest = farthest[torch.argsort(sq_dist, descending=True, stable=True)]
    for row, cluster in zip(farthest.tolist(), empty.split(1), strict=False):
        own = points.ranks.own(slice(row, row + 1))
        nearest.labels[own] = cluster[: own.stop - own.start]
