"""k-means in mini-batches: centroids are running means of the rows that were nearest to them."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from sklearn.utils import check_random_state
from torch import Tensor

from deepclust.cluster._centroids import CentroidEstimator
from deepclust.cluster._checks import check_at_least_zero, check_integer
from deepclust.cluster._data import opened
from deepclust.cluster._lloyd import means
from deepclust.cluster._points import Points, total
from deepclust.distributed import Shard


class MiniBatchKMeans(CentroidEstimator):
    """k-means clustering by steps on batches of rows, which see far less of X than Lloyd's do.

    A step assigns the rows of a batch to their nearest centroids, and moves each centroid to the
    mean of all rows that it was ever given, n_j of them (Sculley, 2010):

        mu_j <- mu_j + (sum_{i: labels_i = j} w_i x_i - m_j mu_j) / n_j,
        m_j = sum_{i: labels_i = j} w_i,   n_j <- n_j + m_j

    Centroids that got few rows are placed anew from time to time. The same seed gives the same bits
    for any number of threads. Parameters and attributes are those of scikit-learn's class, and
    three more.

    Args:
        n_clusters: K, at most the number of rows.
        init: As in `KMeans`; it sees `init_size` rows of X.
        max_iter: Passes over X, at most, counted in rows.
        batch_size: Rows of a batch, drawn by weight.
        verbose: 1 prints the inertia of each step.
        compute_labels: Whether a last pass over X finds `labels_` and the exact `inertia_`.
        random_state: Seed or RandomState.
        tol: `fit` ends when a step moves the centroids by tol times the mean variance of the
            columns or less, in squared distance; 0 does not look.
        max_no_improvement: `fit` ends after so many steps in a row in which the smoothed inertia of
            the batches reached no new low; None does not look.
        init_size: Rows drawn for the start; by default 3 batches, or 3 K if those are fewer than K.
        n_init: Starts that are tried on these rows, of which the one of least inertia is gone on
            with; "auto" is 3 for "random" and for a function, else 1.
        reassignment_ratio: A centroid whose n_j is below this share of the largest is placed on a
            random row of the batch.
        metric: "euclidean" or "cosine", as in `KMeans`.
        device: Where to compute, such as "cuda"; by default where X is.
        backend: "auto", "eager", "cpp" or "triton".

    Attributes:
        cluster_centers_: Centroids (K, D), in X's type where that is float32, else in float64.
        labels_: Labels (N,) int64 of the rows of `fit`, or of the last `partial_fit`.
        inertia_: The weighted sum of the distances of these rows; of `fit` without compute_labels,
            an estimate from the smoothed inertia of the batches.
        n_iter_: Passes over X that were begun.
        n_steps_: Steps.
        n_features_in_: D.

    Example:
        >>> import numpy as np
        >>> from deepclust.cluster import MiniBatchKMeans
        >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
        >>> MiniBatchKMeans(n_clusters=2, random_state=0).fit(X).labels_.tolist()
        [1, 1, 0, 0]
    """

    # What partial_fit goes on from, too.
    LEARNED = (*CentroidEstimator.LEARNED, "n_steps_", "_counts", "_n_since_reassignment")

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        max_iter: int = 100,
        batch_size: int = 1024,
        verbose: int = 0,
        compute_labels: bool = True,
        random_state: Any = None,
        tol: float = 0.0,
        max_no_improvement: int | None = 10,
        init_size: int | None = None,
        n_init: Any = "auto",
        reassignment_ratio: float = 0.01,
        metric: str = "euclidean",
        device: Any = None,
        backend: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.verbose = verbose
        self.compute_labels = compute_labels
        self.random_state = random_state
        self.tol = tol
        self.max_no_improvement = max_no_improvement
        self.init_size = init_size
        self.n_init = n_init
        self.reassignment_ratio = reassignment_ratio
        self.metric = metric
        self.device = device
        self.backend = backend

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Find centroids of X, in batches.

        Args:
            X: Rows (N, D), as `KMeans` takes them. Batches of an iterable of blocks are its rows in
                order, which should then be by chance; all others are drawn.
            y: Not used; there for scikit-learn's conventions.
            sample_weight: Weights (N,), by default all 1.

        Returns:
            The estimator.

        Raises:
            ValueError: If X has fewer rows than clusters, NaN or Inf, or, with metric="cosine", a
                row of zeros; if a file is no `.npy` file, or truncated; if blocks differ in width
                or type; or if a parameter is out of its range.
            OSError: If a file cannot be read, or labels that are kept in one cannot be written.
            KeyboardInterrupt: After Ctrl-C; the centroids are kept, as they are after any error.
        """
        X = opened(_unshared(X))
        # Where no start has to be found, rows are checked as they are read: all are, for labels.
        late = self._starts_given and self.compute_labels
        points = self._points(X, sample_weight, reset=True, check=not late)
        self._check_parameters(points, n_drawn=3)
        rng = check_random_state(self.random_state)
        state = _State(self._best_start(X, points, rng))
        progress = _Progress(self, len(points))
        n_steps = self.max_iter * len(points) // self._batch_size
        step = 0
        try:
            for batch in itertools.islice(points.batches(self._batch_size, rng), n_steps):
                before = state.centroids
                inertia = self._step(state, batch, rng, points) / batch.mass
                step += 1
                moved = 0.0
                if self._tol > 0:
                    moved = total((state.centroids - before).square().flatten())
                if progress.ends(step, n_steps, self._inertia(inertia), moved):
                    break
        finally:  # after Ctrl-C too
            self._forget_labels()
            self._adopt(state)
            self.n_steps_ = step
            self.n_iter_ = math.ceil(step * self._batch_size / len(points))
        if self.compute_labels:
            self._label(points)
        else:
            self.inertia_ = progress.smoothed * points.mass
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Take one step on X, a single batch; the first call starts on it.

        Args:
            X: Rows (n, D); in the first call at least K.
            y: Not used; there for scikit-learn's conventions.
            sample_weight: Weights (n,), by default all 1.

        Returns:
            The estimator.

        Raises:
            ValueError: As `fit`.
        """
        first = not hasattr(self, "cluster_centers_")
        dtype = None if first else torch.from_numpy(self.cluster_centers_).dtype
        points = self._points(_unshared(X), sample_weight, reset=first, dtype=dtype)
        if not hasattr(self, "_random_state"):
            self._random_state = check_random_state(self.random_state)
        if first:
            self._check_parameters(points, n_drawn=3)
            self.n_steps_ = 0
            state = _State(self._start_on_some(X, points, self._random_state))
        else:
            counts = torch.from_numpy(self._counts).to(points.device)
            state = _State(self._fitted(points), counts, self._n_since_reassignment)
        self._step(state, points, self._random_state, points)
        self._adopt(state)
        self.n_steps_ += 1
        if self.compute_labels:
            self._label(points)
        return self

    def _check_parameters(self, points: Points, n_drawn: int) -> None:
        super()._check_parameters(points, n_drawn)
        check_integer("batch_size", self.batch_size, 1)
        check_at_least_zero("reassignment_ratio", self.reassignment_ratio)
        if self.max_no_improvement is not None:
            check_integer("max_no_improvement", self.max_no_improvement, 0, ", or None")
        self._batch_size = min(self.batch_size, len(points))
        size = 3 * self._batch_size
        if self.init_size is not None:
            check_integer("init_size", self.init_size, 1, ", or None")
            size = self.init_size
            if size < self.n_clusters:
                warnings.warn(
                    f"init_size={size} should be larger than n_clusters={self.n_clusters}; it is"
                    f" {3 * self.n_clusters} here, or all rows",
                    RuntimeWarning,
                    stacklevel=3,
                )
        if size < self.n_clusters:
            size = 3 * self.n_clusters
        self._init_size = min(size, len(points))

    def _best_start(self, X: Any, points: Points, rng: RandomState) -> Tensor:
        """Of n_init starts the one of least inertia on rows drawn for the comparison."""
        starts = (self._start_on_some(X, points, rng) for _ in range(self._n_init))
        if self._n_init == 1:
            return next(starts)
        judges = points.subset(rng.randint(0, len(points), self._init_size))
        best: tuple[float, Tensor] | None = None
        for number, centroids in enumerate(starts, 1):
            inertia = judges.inertia(centroids)
            if self.verbose:
                print(f"Start {number}/{self._n_init}: inertia {self._inertia(inertia):.6g}")
            if best is None or inertia < best[0]:
                best = inertia, centroids
        assert best is not None
        return best[1]

    def _start_on_some(self, X: Any, points: Points, rng: RandomState) -> Tensor:
        # Given centroids need no rows.
        if self._init_size < len(points) and (isinstance(self.init, str) or callable(self.init)):
            rows = rng.randint(0, len(points), self._init_size)
            points = points.subset(rows)
            if callable(self.init):
                X = X[rows] if hasattr(X, "shape") else points.take(np.arange(len(points)))
        return self._start(X, points, rng)

    def _step(self, state: _State, batch: Points, rng: RandomState, points: Points) -> float:
        """Move the centroids by one batch of points; its inertia before that, in squared distances.

        Rows with NaN or Inf move nothing.
        """
        found = batch.step(state.centroids, state.counts) or _step_by_parts(batch, state)
        if not math.isfinite(found[0]):
            points.check()
        inertia, state.centroids, state.counts = found
        state.n_since_reassignment += len(batch)
        fewest, most = (float(count) for count in state.counts.aminmax())
        if fewest == 0 or state.n_since_reassignment >= 10 * self.n_clusters:
            state.n_since_reassignment = 0
            if fewest < self.reassignment_ratio * most:  # seldom, and the rest takes its time
                self._reassign(state, batch, rng)
        return inertia

    def _reassign(self, state: _State, batch: Points, rng: RandomState) -> None:
        """Place centroids that got few rows on rows of the batch, at most half as many as it has.

        They take the count of the least of the others, so that they are not placed anew at once.
        """
        counts = state.counts.cpu().numpy()
        few = counts < self.reassignment_ratio * counts.max()
        few[counts.argmax()] = False
        most = len(batch) // 2
        if few.sum() > most:
            few[np.argsort(counts, kind="stable")[most:]] = False
        if not few.any():
            return
        rows = rng.choice(len(batch), few.sum(), replace=False)
        if self.verbose:
            print(f"Placing {few.sum()} centroids anew")
        chosen = torch.from_numpy(few).to(batch.device)
        state.centroids[chosen] = batch.take(rows)
        state.counts[chosen] = float(counts[~few].min())

    def _state(self) -> dict[str, Any]:
        drawn = getattr(self, "_random_state", None)
        return {"random": None if drawn is None else drawn.get_state()}

    def _restore(self, tree: dict[str, Any]) -> None:
        super()._restore(tree)
        if tree["random"] is not None:
            self._random_state = RandomState()
            self._random_state.set_state(tree["random"])

    def _adopt(self, state: _State) -> None:
        self.cluster_centers_ = state.centroids.cpu().numpy()
        self._counts = state.counts.cpu().numpy()
        self._n_since_reassignment = state.n_since_reassignment
        self._n_features_out = self.n_clusters

    def _label(self, points: Points) -> None:
        labels, sq_dist = points.assign(self._fitted(points))
        inertia = points.total(sq_dist)
        if not math.isfinite(inertia):
            points.check()
        self.labels_ = labels.array()
        self.inertia_ = self._inertia(inertia)


def _unshared(X: Any) -> Any:
    if isinstance(X, Shard):
        raise TypeError(
            "X: got a Shard; MiniBatchKMeans takes all rows in one process; KMeans takes it"
        )
    return X


def _step_by_parts(batch: Points, state: _State) -> tuple[float, Tensor, Tensor]:
    """What `Points.step` gives, for any rows."""
    inertia, sums, counts, nearest = batch.assign_and_update(state.centroids)
    sums += state.counts.unsqueeze(1) * state.centroids.double()
    counts = state.counts + counts
    if nearest is not None:
        inertia = batch.total(nearest.sq_dist)
    assert inertia is not None
    return inertia, means(sums, counts, state.centroids, unit=batch.unit), counts


class _State:
    """What steps go on from: centroids (K, D), and the weight (K,) float64 that each was given."""

    def __init__(
        self, centroids: Tensor, counts: Tensor | None = None, n_since_reassignment: int = 0
    ) -> None:
        self.centroids = centroids
        if counts is None:
            counts = torch.zeros(len(centroids), dtype=torch.float64, device=centroids.device)
        self.counts = counts
        self.n_since_reassignment = n_since_reassignment  # rows


class _Progress:
    """Whether steps still help: the batches' inertia, smoothed over about one pass of rows."""

    def __init__(self, estimator: MiniBatchKMeans, n: int) -> None:
        self._estimator = estimator
        self._rate = min(1.0, 2 * estimator._batch_size / (n + 1))
        self.smoothed = math.inf  # the inertia of a row
        self._lowest = math.inf
        self._n_without = 0  # steps since the lowest

    def ends(self, step: int, n_steps: int, inertia: float, moved: float) -> bool:
        """Whether this step, the batch's mean inertia before it and how far it went, is the last.

        The first inertia is that of the start, which does not count.
        """
        estimator = self._estimator
        if step <= 2:
            self.smoothed = inertia
        else:
            self.smoothed += self._rate * (inertia - self.smoothed)
        if estimator.verbose:
            print(f"Step {step}/{n_steps}: inertia {inertia:.6g}, smoothed {self.smoothed:.6g}")
        if step == 1:
            return False
        reason = None
        if estimator._tol > 0 and moved <= estimator._tol:
            reason = "small centers change"
        self._n_without = 0 if self.smoothed < self._lowest else self._n_without + 1
        self._lowest = min(self._lowest, self.smoothed)
        most = estimator.max_no_improvement
        if reason is None and most is not None and self._n_without >= most:
            reason = "lack of improvement in inertia"
        if reason is not None and estimator.verbose:
            print(f"Converged ({reason}) at step {step}/{n_steps}")
        return reason is not None
