"""k-means: greedy k-means++, Lloyd's iterations, restarts, weights, empty clusters."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from deepclust import functional as F
from deepclust.kernels.kmeans_assign.op import assign_and_update

Array = np.ndarray[Any, Any]


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-means clustering by Lloyd's algorithm on the fused kernels.

    Minimises the inertia sum_i w_i min_j ||x_i - mu_j||^2 (Lloyd, 1982), started by greedy
    k-means++ (Arthur and Vassilvitskii, 2007). The same seed gives the same bits for any number of
    threads.

    Args:
        n_clusters: K, at most the number of distinct rows.
        init: "k-means++", "random" (distinct rows) or centroids (K, D).
        n_init: Restarts, of which the one of least inertia is kept; "auto" is 1 for "k-means++" and
            for given centroids, and 10 for "random".
        max_iter: Iterations of one start, at most.
        tol: A start ends when the centroids move by less than tol times the mean variance of the
            columns, in squared distance.
        random_state: Seed or RandomState.
        backend: "auto", "eager", "cpp" or "triton".
        verbose: 1 prints the inertia of each start.

    Attributes:
        cluster_centers_: Centroids (K, D).
        labels_: Labels (N,) int64 of the rows that were fitted.
        inertia_: The weighted sum of squared distances to the nearest centroid.
        n_iter_: Iterations of the start that was kept.

    Example:
        >>> import numpy as np
        >>> from deepclust.cluster import KMeans
        >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
        >>> KMeans(n_clusters=2, random_state=0).fit(X).cluster_centers_.round(1).ravel().tolist()
        [9.5, 0.5]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: Any = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
        backend: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.backend = backend
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """Find the centroids of X.

        Args:
            X: Rows (N, D): an array, or a tensor on any device.
            y: Not used; there for scikit-learn's conventions.
            sample_weight: Weights (N,), by default all 1.

        Returns:
            The estimator.

        Raises:
            ValueError: If X has fewer (distinct) rows than clusters, NaN or Inf, or a parameter is
                out of its range.
        """
        x = self._tensor(X, reset=True)
        n_init, given = self._check_parameters(x)
        weight = _weights(sample_weight, x)
        rng = check_random_state(self.random_state)
        origin = x.new_tensor(_column_means(x))
        tol = self.tol * float(np.mean(_column_means((x - origin) ** 2)))
        best: tuple[float, Tensor, Tensor, int, bool] | None = None
        for start in range(n_init):
            if given is not None:
                centroids = given
            elif self.init == "random":
                centroids = x[self._distinct_rows(x, weight, rng)]
            else:
                centroids = kmeans_plus_plus(x, self.n_clusters, weight, rng, self.backend)
            fitted = lloyd(x, centroids, weight, self.max_iter, tol, self.backend)
            if self.verbose:
                print(f"k-means start {start + 1}/{n_init}: inertia {fitted[0]:.6g}")
            if best is None or fitted[0] < best[0]:
                best = fitted
        assert best is not None
        inertia, centers, labels, n_iter, converged = best
        if not converged:
            warnings.warn(
                f"k-means stopped at max_iter={self.max_iter} before it converged",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.inertia_ = inertia
        self.cluster_centers_ = centers.cpu().numpy()
        self.labels_ = labels.cpu().numpy()
        self.n_iter_ = n_iter
        self._n_features_out = self.n_clusters
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Array:
        """Fit, and return the labels (N,)."""
        labels: Array = self.fit(X, sample_weight=sample_weight).labels_
        return labels

    def predict(self, X: Any) -> Array:
        """The nearest centroid of each row: labels (N,) int64."""
        labels, _ = self._assign(X)
        return labels.cpu().numpy()

    def transform(self, X: Any) -> Array:
        """Distances (N, K), not squared, from each row to each centroid."""
        check_is_fitted(self, "cluster_centers_")
        x = self._tensor(X, reset=False)
        distances = np.empty((x.shape[0], self.n_clusters), dtype=_numpy_dtype(x))
        for j, centroid in enumerate(torch.from_numpy(self.cluster_centers_).to(x)):
            _, sq_dist = F.kmeans_assign(
                x, centroid.unsqueeze(0), backend=self.backend, check=False
            )
            distances[:, j] = sq_dist.sqrt().cpu().numpy()
        return distances

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the inertia of X."""
        _, sq_dist = self._assign(X)
        return -_total(sq_dist * _weights(sample_weight, sq_dist))

    def _assign(self, X: Any) -> tuple[Tensor, Tensor]:
        check_is_fitted(self, "cluster_centers_")
        x = self._tensor(X, reset=False)
        centroids = torch.from_numpy(self.cluster_centers_).to(x)
        return F.kmeans_assign(x, centroids, backend=self.backend, check=False)

    def _tensor(self, X: Any, *, reset: bool) -> Tensor:
        if isinstance(X, Tensor):
            array = validate_data(
                self, X.detach().cpu().numpy(), reset=reset, dtype=[np.float64, np.float32]
            )
            x = torch.from_numpy(array)
            # What is on a GPU has been copied for the checks alone.
            return X.detach().to(x.dtype) if X.is_cuda else x.to(X.device)
        array = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], order="C")
        if not array.flags.writeable:
            array = array.copy()  # torch has no read-only tensors
        return torch.from_numpy(array)

    def _check_parameters(self, x: Tensor) -> tuple[int, Tensor | None]:
        n, d = x.shape
        check_n_clusters(self.n_clusters, n)
        if not isinstance(self.max_iter, (int, np.integer)) or self.max_iter < 1:
            raise ValueError(f"max_iter: got {self.max_iter!r}; it takes an integer of at least 1")
        if not self.tol >= 0:
            raise ValueError(f"tol: got {self.tol!r}; it takes a number of at least 0")
        given = None
        if not isinstance(self.init, str):
            given = torch.as_tensor(self.init).to(x)
            if given.shape != (self.n_clusters, d):
                raise ValueError(
                    f"init: got centroids of shape {tuple(given.shape)};"
                    f" it takes {(self.n_clusters, d)}"
                )
            if not bool(torch.isfinite(given).all()):
                raise ValueError("init: got NaN or Inf; it takes finite centroids")
        elif self.init not in ("k-means++", "random"):
            raise ValueError(
                f"init: got {self.init!r}; it takes 'k-means++', 'random' or an array of centroids"
            )
        if self.n_init == "auto":
            return (10 if given is None and self.init == "random" else 1), given
        if not isinstance(self.n_init, (int, np.integer)) or self.n_init < 1:
            raise ValueError(
                f"n_init: got {self.n_init!r}; it takes 'auto' or an integer of at least 1"
            )
        return (1 if given is not None else int(self.n_init)), given

    def _distinct_rows(self, x: Tensor, weight: Tensor, rng: np.random.RandomState) -> Tensor:
        p = weight.cpu().double().numpy()
        chosen = rng.choice(x.shape[0], self.n_clusters, replace=False, p=p / p.sum())
        return torch.from_numpy(chosen).to(x.device)


def check_n_clusters(n_clusters: object, n: int) -> None:
    """Require 1 <= K <= N."""
    if (
        isinstance(n_clusters, bool)
        or not isinstance(n_clusters, (int, np.integer))
        or n_clusters < 1
    ):
        raise ValueError(f"n_clusters: got {n_clusters!r}; it takes an integer of at least 1")
    if n_clusters > n:
        raise ValueError(f"n_clusters: got {n_clusters}, more than the {n} rows of X")


def kmeans_plus_plus(
    x: Tensor, n_clusters: int, weight: Tensor, rng: np.random.RandomState, backend: str = "auto"
) -> Tensor:
    """Greedy k-means++: each centroid is the best of 2 + log K rows drawn by weighted distance."""
    n_candidates = 2 + int(np.log(n_clusters))

    def distances(row: int) -> Tensor:
        # With one centroid, hard assignment is a distance by direct differences, and its bits do
        # not depend on the number of threads, as those of a matrix product may.
        return F.kmeans_assign(x, x[row : row + 1], backend=backend, check=False)[1] * weight

    chosen = [int(_draw(weight, 1, rng)[0])]
    nearest = distances(chosen[0])
    while len(chosen) < n_clusters:
        if not bool((nearest > 0).any()):
            raise ValueError(
                f"n_clusters: got {n_clusters}, but X has only {len(chosen)} distinct rows"
            )
        best = None
        for row in _draw(nearest, n_candidates, rng):
            candidate = torch.minimum(nearest, distances(int(row)))
            potential = _total(candidate)
            if best is None or potential < best[0]:
                best = potential, int(row), candidate
        assert best is not None
        chosen.append(best[1])
        nearest = best[2]
    return x[torch.tensor(chosen, device=x.device)]


def lloyd(
    x: Tensor,
    centroids: Tensor,
    weight: Tensor,
    max_iter: int,
    tol: float,
    backend: str = "auto",
) -> tuple[float, Tensor, Tensor, int, bool]:
    """Lloyd's iterations: inertia, centroids, labels, number of iterations, whether converged."""
    previous = None
    converged = False
    n_iter = 0
    for n_iter in range(1, max_iter + 1):  # noqa: B007  the count is a result
        labels, sq_dist, sums, counts = assign_and_update(x, centroids, weight, backend)
        if previous is not None and torch.equal(labels, previous):
            converged = True  # these centroids are the means of these labels already
            break
        _fill_empty(sums, counts, x, weight, labels, sq_dist)
        moved = torch.where(counts.unsqueeze(1) > 0, sums / counts.unsqueeze(1), centroids)
        shift = _total((moved - centroids) ** 2)
        centroids, previous = moved, labels
        if shift <= tol:
            converged = True
            break
    labels, sq_dist = F.kmeans_assign(x, centroids, backend=backend, check=False)
    return _total(sq_dist * weight), centroids, labels, n_iter, converged


def _fill_empty(
    sums: Tensor, counts: Tensor, x: Tensor, weight: Tensor, labels: Tensor, sq_dist: Tensor
) -> None:
    """Give each empty cluster the row farthest from its centroid, as scikit-learn does."""
    empty = torch.nonzero(counts == 0).squeeze(1)
    if not len(empty):
        return
    farthest = torch.argsort(sq_dist, descending=True, stable=True)[: len(empty)]
    for cluster, row in zip(empty.tolist(), farthest.tolist(), strict=True):
        if sq_dist[row] == 0 or weight[row] == 0:
            continue  # fewer distinct rows than clusters: the centroid stays where it is
        old, mass = int(labels[row]), weight[row]
        sums[old] -= x[row] * mass
        counts[old] -= mass
        sums[cluster] = x[row] * mass
        counts[cluster] = mass


def _draw(weight: Tensor, n: int, rng: np.random.RandomState) -> Array:
    """Rows drawn with probability proportional to their weight."""
    cumulative = np.cumsum(weight.cpu().double().numpy())
    rows = np.searchsorted(cumulative, rng.random_sample(n) * cumulative[-1], side="right")
    within: Array = np.minimum(rows, len(cumulative) - 1)
    return within


def _total(values: Tensor) -> float:
    if values.is_cuda:
        return float(values.sum(dtype=torch.float64))
    # NumPy adds on one thread, so that the bits do not depend on torch's thread count.
    return float(values.cpu().numpy().sum(dtype=np.float64))


def _column_means(x: Tensor) -> Array:
    if x.is_cuda:
        means: Array = x.mean(0, dtype=torch.float64).cpu().numpy()
    else:
        means = x.numpy().mean(0, dtype=np.float64)
    return means


def _weights(sample_weight: Any, x: Tensor) -> Tensor:
    if sample_weight is None:
        return torch.ones(x.shape[0], dtype=x.dtype, device=x.device)
    if isinstance(sample_weight, Tensor):
        sample_weight = sample_weight.detach().cpu()
    array = _check_sample_weight(
        sample_weight, np.empty((x.shape[0], 1)), dtype=_numpy_dtype(x), ensure_non_negative=True
    )
    if not array.sum() > 0:  # scikit-learn below 1.8 lets it pass
        raise ValueError("sample_weight: got zeros; it takes at least one non-zero weight")
    return torch.from_numpy(array).to(x.device)


def _numpy_dtype(x: Tensor) -> Any:
    return np.float64 if x.dtype == torch.float64 else np.float32
