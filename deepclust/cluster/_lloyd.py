"""Lloyd's iterations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from deepclust.cluster._columns import Column
from deepclust.cluster._points import Nearest, Pass, Points, total, unit_rows
from deepclust.kernels.kmeans_assign.op import Following, Rounded, assign_and_change
from deepclust.kernels.kmeans_update.op import label_changes


class Fit(NamedTuple):
    """What one start of k-means came to."""

    inertia: float  # sum_i w_i ||x_i - mu_{labels_i}||^2
    centroids: Tensor  # (K, D)
    labels: Column  # (N,), the nearest of these centroids
    counts: Tensor  # (K,), of the labels
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
    passes = _Passes(points, len(centroids), distances=verbose)
    for n_iter in range(1, max_iter + 1):
        inertia, sums, counts, nearest = passes.assign_and_update(centroids)
        if verbose:
            if inertia is None:
                inertia = points.total((nearest or passes.assign(centroids)).sq_dist)
            print(f"Iteration {n_iter - 1}, inertia {inertia:.6g}")
        empty = torch.nonzero(counts == 0).squeeze(1)
        if len(empty):
            nearest = nearest or passes.assign(centroids)
            sums, counts = passes.relocate(nearest, empty, len(centroids))
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
    stayed = shift == 0 and not len(empty)
    inertia, labels, counts = passes.end(centroids, nearest, stayed=stayed)
    return Fit(inertia, centroids, labels, counts, n_iter, converged)


class _Passes:
    """The passes of one start over its rows.

    Of rows in memory only the first pass adds up all: the sums of the others are those of the pass
    before, less and plus the rows whose label changed. Nor are all read for their labels: while
    many change, integers tell most of them (`Rounded`), and once few do, bounds tell which may
    change (`Following`). Labels are the same; sums are, up to rounding in float64.

    Args:
        points: The rows.
        n_clusters: K.
        distances: Whether each pass gives those of all rows, if they are in memory.
    """

    FEW = 0.03  # of the rows: bounds cost more than they spare where many change
    FEW_CLUSTERS = 16  # integers cost less than bounds: 51 iterations on MNIST, K = 10, 9 % less
    MOST_SCATTER = 16  # times the inertia, of which else too few digits are left

    def __init__(self, points: Points, n_clusters: int, *, distances: bool) -> None:
        self._points, self._distances = points, distances
        # Weights are not whole numbers, of which nothing would be left when a cluster gets empty. A
        # GPU would have to tell the host how many rows changed, which waits for it.
        by_changes = points.weight is None and points.device.type == "cpu"
        self._x = points.in_memory if by_changes else None
        if points.over_all(self._x is None) > 0:  # all processes add up changes, or none
            self._x = None
        self._may_round = self._x is not None and Rounded.runs(self._x, points.backend)
        pays = not self._may_round or n_clusters > self.FEW_CLUSTERS
        runs = pays and self._x is not None and Following.runs(self._x, points.backend)
        self._may_follow = points.over_all(not runs) == 0
        if not self._may_round:
            points.check()
        self._following: Following | None = None
        # Of the last pass; and labels of the one before, whose room the next one takes.
        self._last: Nearest | None = None
        self._spare: Column | None = None
        self._sums, self._counts = torch.empty(0), torch.empty(0)

    def assign_and_update(self, centroids: Tensor) -> Pass:
        """What that of points gives, but inertia and maybe distances of rows in memory."""
        points, before = self._points, self._last
        if self._x is None:
            found = points.assign_and_update(centroids, before)
            self._last, self._sums, self._counts = found.nearest, found.sums, found.counts
            return found
        labels = self._spare or points.column(torch.int64)
        self._last = Nearest(labels, before.sq_dist if before else points.column(points.dtype))
        rows = slice(0, len(points))
        sq_dist = self._last.sq_dist[rows] if self._distances else None
        last_labels = before.labels[rows] if before else None
        more = self._assign_and_change(self._x, centroids, labels[rows], sq_dist, last_labels)
        sums, counts = (points.ranks.sum(part) for part in more)
        if before is None:
            self._sums, self._counts = sums, counts
        else:
            self._sums, self._counts = self._sums + sums, self._counts + counts
            self._spare = before.labels
            if self._may_follow and self._following is None:
                self._follow_if_calm(self._x, centroids, labels[rows], before.labels[rows])
        return Pass(None, self._sums, self._counts, self._last if self._distances else None)

    def assign(self, centroids: Tensor) -> Nearest:
        """The nearest of the last pass's centroids; when all passes are done, of any."""
        if self._last is None:
            self._last = self._points.unfilled()
        rounded = self._points.rounded
        if self._following is None and rounded is None:
            return self._points.assign(centroids, self._last)
        rows = slice(0, len(self._points))
        labels, sq_dist = self._last.labels[rows], self._last.sq_dist[rows]
        if self._following is not None:
            self._follow(self._following, centroids, labels, sq_dist)
        elif rounded is not None:
            rounded.nearest(centroids, labels, sq_dist)
        return self._last

    def end(
        self, centroids: Tensor, nearest: Nearest | None, *, stayed: bool
    ) -> tuple[float, Column, Tensor]:
        """The inertia, labels and counts (K,) of the nearest of these centroids.

        nearest: Those of the last pass, if distances are known.
        stayed: Whether they are of these centroids too.
        """
        points, scatter = self._points, self._points.scatter
        if scatter is not None:  # distances need not be known, unless most of its digits cancel
            inertia = scatter.within(self._sums, self._counts, centroids)
            if inertia * self.MOST_SCATTER > scatter.sq_dist:
                if not stayed:
                    self.assign_and_update(centroids)
                    inertia = scatter.within(self._sums, self._counts, centroids)
                assert self._last is not None
                return inertia, self._last.labels, self._counts
        if nearest is None or not stayed:
            nearest = self.assign(centroids)
        counts = points.ranks.sum(nearest.labels.counts(len(centroids)))
        return points.total(nearest.sq_dist), nearest.labels, counts

    def relocate(self, nearest: Nearest, empty: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
        """Fill empty clusters, from the nearest of the last pass; sums (K, D) and counts (K,)."""
        _relocate(self._points, nearest, empty)
        self._sums, self._counts = self._points.sums(nearest.labels, n_clusters)
        return self._sums, self._counts

    def _assign_and_change(
        self,
        x: Tensor,
        centroids: Tensor,
        labels: Tensor,
        sq_dist: Tensor | None,
        before: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What the function of that name gives, in the way that costs least."""
        points = self._points
        if self._following is not None and before is not None:
            self._follow(self._following, centroids, labels, sq_dist)
            return label_changes(x, labels, before, len(centroids), points.backend)
        if self._may_round and before is None:
            rounded = points.round(centroids, labels)
            if rounded is not None:
                if sq_dist is not None:
                    rounded.nearest(centroids, labels, sq_dist)
                return rounded.sums, rounded.counts
        if points.rounded is not None:
            return points.rounded.assign_and_change(centroids, labels, sq_dist, before)
        return assign_and_change(x, centroids, labels, sq_dist, before, points.backend)

    def _follow_if_calm(self, x: Tensor, centroids: Tensor, labels: Tensor, before: Tensor) -> None:
        n_changed = self._points.over_all(int(torch.count_nonzero(labels != before)))
        if n_changed < self.FEW * self._points.ranks.total:
            self._following = Following(x, centroids, labels.clone(), self._points.backend)

    @staticmethod
    def _follow(
        following: Following, centroids: Tensor, labels: Tensor, sq_dist: Tensor | None
    ) -> None:
        following.to(centroids)
        labels.copy_(following.labels)
        if sq_dist is not None:
            sq_dist.copy_(following.sq_dist())


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
