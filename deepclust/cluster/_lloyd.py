"""Lloyd's iterations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from deepclust.cluster._columns import Column
from deepclust.cluster._points import Nearest, Pass, Points, total, unit_rows
from deepclust.kernels.kmeans_assign.op import Following
from deepclust.kernels.kmeans_update.op import label_sums


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
    passes = _Passes(points)
    for n_iter in range(1, max_iter + 1):
        inertia, sums, counts, nearest = passes.assign_and_update(centroids)
        if verbose:
            if inertia is None:
                inertia = points.total((nearest or passes.assign(centroids)).sq_dist)
            print(f"Iteration {n_iter - 1}, inertia {inertia:.6g}")
        empty = torch.nonzero(counts == 0).squeeze(1)
        if len(empty):
            nearest = nearest or passes.assign(centroids)
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
    # If nothing moved, these are the nearest of the last centroids too.
    if nearest is None or shift > 0 or len(empty):
        nearest = passes.assign(centroids)
    return Fit(points.total(nearest.sq_dist), centroids, nearest.labels, n_iter, converged)


class _Passes:
    """The passes of one start over its rows.

    Once few rows change their cluster, rows in memory are no longer all read: bounds tell which may
    have changed (`Following`), and the sums are those of the iteration before, less and plus the
    rows that did. Labels are the same; in float64 the sums are, up to rounding.

    Args:
        points: The rows.
    """

    FEW = 0.03  # of the rows: bounds cost more than they spare where many change

    def __init__(self, points: Points) -> None:
        self._points = points
        # Weights are not whole numbers, of which nothing would be left when a cluster gets empty.
        self._x = points.in_memory if points.weight is None else None
        if self._x is not None and not Following.runs(self._x, points.backend):
            self._x = None
        if points.over_all(self._x is None) > 0:  # all processes follow, or none
            self._x = None
        self._following: Following | None = None
        # Of the last pass, and of the one before, whose room the next one takes.
        self._last: Nearest | None = None
        self._spare: Nearest | None = None
        self._sums, self._counts = torch.empty(0), torch.empty(0)

    def assign_and_update(self, centroids: Tensor) -> Pass:
        """What that of points gives, but for the inertia and, when rows are not all read, rows'."""
        if self._following is not None:
            self._follow(centroids)
            return Pass(None, self._sums, self._counts, None)
        found = self._points.assign_and_update(centroids, self._spare)
        if self._x is not None and found.nearest is not None and self._last is not None:
            rows = slice(0, len(self._points))
            labels, last = found.nearest.labels[rows], self._last.labels[rows]
            n_changed = self._points.over_all(int(torch.count_nonzero(labels != last)))
            if n_changed < self.FEW * self._points.ranks.total:
                options = labels.clone(), self._points.backend
                self._following = Following(self._x, centroids, *options)
                self._sums, self._counts = found.sums, found.counts
        self._last, self._spare = found.nearest, self._last
        return found

    def assign(self, centroids: Tensor) -> Nearest:
        """The nearest centroids of all rows."""
        if self._following is None:
            return self._points.assign(centroids)
        self._follow(centroids)
        found = self._points.unfilled()
        rows = slice(0, len(self._points))
        found.labels[rows], found.sq_dist[rows] = self._following.labels, self._following.sq_dist()
        return found

    def _follow(self, centroids: Tensor) -> None:
        assert self._following is not None
        assert self._x is not None
        before = self._following.labels.clone()
        self._following.to(centroids)
        after = self._following.labels
        changed = torch.nonzero(after != before).squeeze(1)
        x, k, ranks = self._x[changed], len(centroids), self._points.ranks
        more = label_sums(x, after[changed], k, None, self._points.backend)
        less = label_sums(x, before[changed], k, None, self._points.backend)
        self._sums = self._sums + ranks.sum(more[0] - less[0])
        self._counts = self._counts + ranks.sum(more[1] - less[1])


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
