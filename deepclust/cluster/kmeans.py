"""k-means: starts, Lloyd's iterations, restarts."""

from __future__ import annotations

import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from deepclust.cluster._centroids import CentroidEstimator
from deepclust.cluster._checks import either
from deepclust.cluster._data import opened
from deepclust.cluster._lloyd import Fit, lloyd

ALGORITHMS = ("lloyd", "elkan")


class KMeans(CentroidEstimator):
    """k-means clustering by Lloyd's algorithm on the fused kernels.

    Minimises the inertia sum_i w_i min_j ||x_i - mu_j||^2 (Lloyd, 1982), started by greedy
    k-means++ (Arthur and Vassilvitskii, 2007); or, with metric="cosine", the inertia
    sum_i w_i min_j (1 - cos(x_i, mu_j)) over unit centroids (Dhillon and Modha, 2001). The same
    seed gives the same bits for any number of threads. Parameters and attributes are those of
    scikit-learn's class, and three more.

    Args:
        n_clusters: K, at most the number of rows.
        init: "k-means++", "k-means||" (Bahmani et al., 2012: a few passes in the place of K, for
            large K), "random" (rows drawn by weight), centroids (K, D), or a function of X,
            n_clusters and random_state that gives them.
        n_init: Restarts, of which the one of least inertia is kept; "auto" is 10 for "random" and
            for a function, else 1.
        max_iter: Iterations of one start, at most.
        tol: A start ends when the centroids move by less than tol times the mean variance of the
            columns, in squared distance.
        verbose: 1 prints the inertia of each iteration.
        random_state: Seed or RandomState.
        copy_x: Taken so that scikit-learn's calls work: X is never written to, nor copied for the
            precision of distances.
        algorithm: "lloyd" or "elkan", which in scikit-learn are two ways to the same labels; here
            both are Lloyd's iterations.
        metric: "euclidean", or "cosine" (spherical k-means): rows and centroids are divided by
            their length.
        device: Where to compute, such as "cuda"; by default where X is.
        backend: "auto", "eager", "cpp" or "triton".

    Attributes:
        cluster_centers_: Centroids (K, D), in X's type where that is float32, else in float64.
        labels_: Labels (N,) int64 of the rows that were fitted; of more than 8 million rows of a
            file they are a read-only memory map of a temporary file without a name.
        inertia_: The weighted sum of the rows' distances, as above.
        n_iter_: Iterations of the start that was kept.
        n_features_in_: D.

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
        verbose: int = 0,
        random_state: Any = None,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        metric: str = "euclidean",
        device: Any = None,
        backend: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.metric = metric
        self.device = device
        self.backend = backend

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """Find the centroids of X.

        Args:
            X: Rows (N, D): an array, scipy sparse array, or tensor on any device; or, read block by
                block, a memory map, the path of a `.npy` file, or an iterable of blocks (n, D) that
                starts anew with each iter(), such as a list of arrays. Or a `distributed.Shard` of
                rows: then labels_ are of this process's rows, and all else is the same in all.
            y: Not used; there for scikit-learn's conventions.
            sample_weight: Weights (N,), by default all 1.

        Returns:
            The estimator.

        Raises:
            ValueError: If X has fewer rows than clusters, NaN or Inf, or, with metric="cosine", a
                row of zeros; if a file is no `.npy` file, or truncated; if blocks differ in width
                or type; or if a parameter is out of its range.
            OSError: If a file cannot be read, or labels that are kept in one cannot be written.
            KeyboardInterrupt: After Ctrl-C; the centroids are kept, as they are after OSError.

        Warns:
            ConvergenceWarning: If max_iter ends the iterations, or fewer than K clusters have rows.
        """
        X = opened(X)
        # Where no start has to be found, the first iteration is the first that reads X.
        points = self._points(X, sample_weight, reset=True, check=not self._starts_given)
        rng = self._shared_rng(points)
        self._check_parameters(points, n_drawn=10)
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm: got {self.algorithm!r}; it takes {either(ALGORITHMS)}")
        best: Fit | None = None
        latest: list[tuple[Tensor, int]] = []

        def keep(centroids: Tensor, n_iter: int) -> None:
            latest[:] = [(centroids, n_iter)]

        options: dict[str, Any] = {"verbose": bool(self.verbose), "moved_to": keep}
        try:
            for _ in range(self._n_init):
                centroids = self._start(X, points, rng)
                if self.verbose:
                    print("Initialization complete")
                found = lloyd(points, centroids, self.max_iter, self._tol, **options)
                # Of starts that end alike the first is kept, whatever rounding makes of the others.
                if best is None or found.inertia < (1 - 1e-9) * best.inertia:
                    best = found
        except (KeyboardInterrupt, OSError):
            if best is not None:
                self._adopt(best)
            elif latest:
                self._forget_labels()
                self._adopt_centroids(*latest[0])
            raise
        assert best is not None
        if not best.converged:
            warnings.warn(
                f"k-means stopped at max_iter={self.max_iter} before it converged",
                ConvergenceWarning,
                stacklevel=2,
            )
        if (n_found := int((best.counts > 0).sum())) < self.n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({n_found}) found smaller than n_clusters"
                f" ({self.n_clusters}). Possibly due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self._adopt(best)
        return self

    def _adopt(self, fit: Fit) -> None:
        self._adopt_centroids(fit.centroids, fit.n_iter)
        self.inertia_ = self._inertia(fit.inertia)
        self.labels_ = fit.labels.array()

    def _adopt_centroids(self, centroids: Tensor, n_iter: int) -> None:
        self.cluster_centers_ = centroids.cpu().numpy()
        self.n_iter_ = n_iter
        self._n_features_out = self.n_clusters
