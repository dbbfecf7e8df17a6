"""Lloyd's iterations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepclust.cluster._points import Points, total, unit_rows


class Fit(NamedTuple):
    """What one start of k-means came to."""

    inertia: float  # sum_i w_i ||x_i - mu_{labels_i}||^2
    centroids: Tensor  # (K, D)
    labels: Tensor  # (N,), the nearest of these centroids
    n_iter: int
    converged: bool


def lloyd(
    points: Points, centroids: Tensor, max_iter: int, tol: float, *, verbose: bool = False
) -> Fit:
    """Move centroids to the means of their rows, and rows to the nearest centroid, until they stay.

    Lloyd (1982). It ends when no label changes, when the squared distances that the centroids move
    add up to tol or less, or after max_iter iterations.

    Args:
        points: The rows. Of unit rows the centroids are unit vectors too: the mean's direction
            (spherical k-means: Dhillon and Modha, 2001).
        centroids: Where to start (K, D).
        max_iter: Iterations, at most.
        tol: See above.
        verbose: Whether to print the inertia of each iteration, and why they end.
    """
    previous: Tensor | None = None
    converged = False
    for n_iter in range(1, max_iter + 1):
        labels, sq_dist, sums, counts = points.assign_and_update(centroids)
        if verbose:
            print(f"Iteration {n_iter - 1}, inertia {total(points.weighted(sq_dist)):.6g}")
        if previous is not None and torch.equal(labels, previous):
            if verbose:
                print(f"Converged at iteration {n_iter - 1}: strict convergence")
            # These centroids are the means of these labels already.
            return Fit(total(points.weighted(sq_dist)), centroids, labels, n_iter, True)
        previous = labels
        if bool((counts == 0).any()):
            sums, counts = points.sums(_relocated(points, labels, sq_dist, counts), len(centroids))
        moved = means(sums, counts, centroids, unit=points.unit)
        shift = total(((moved - centroids) ** 2).flatten())
        centroids = moved
        if shift <= tol:
            if verbose:
                print(
                    f"Converged at iteration {n_iter - 1}: center shift {shift:.6g} within"
                    f" tolerance {tol:.6g}"
                )
            converged = True
            break
    labels, sq_dist = points.assign(centroids)
    return Fit(total(points.weighted(sq_dist)), centroids, labels, n_iter, converged)


def means(sums: Tensor, counts: Tensor, centroids: Tensor, *, unit: bool) -> Tensor:
    """The means (K, D) of clusters, or their directions; what has none stays where it is."""
    counts = counts.unsqueeze(1)
    found = unit_rows(sums) if unit else sums / counts
    has_mean = found.any(1, keepdim=True) if unit else counts > 0
    return torch.where(has_mean, found.to(centroids.dtype), centroids)


def _relocated(points: Points, labels: Tensor, sq_dist: Tensor, counts: Tensor) -> Tensor:
    """Labels in which each empty cluster has the row farthest from its centroid.

    The farthest row goes to the first empty cluster, and so on, as in scikit-learn. A row that lies
    on its centroid, or has no weight, goes nowhere: then rows are too few.
    """
    empty = torch.nonzero(counts == 0).squeeze(1)
    if points.weight is not None:
        sq_dist = torch.where(points.weight > 0, sq_dist, 0)
    n = min(len(empty), len(points))
    # Those at least as far as the n-th farthest are more than n where rows tie: the first ones go.
    candidates = torch.nonzero(sq_dist >= torch.topk(sq_dist, n).values[-1]).squeeze(1)
    farthest = candidates[torch.argsort(sq_dist[candidates], descending=True, stable=True)][:n]
    farthest = farthest[sq_dist[farthest] > 0]
    labels = labels.clone()
    labels[farthest] = empty[: len(farthest)]
    return labels
