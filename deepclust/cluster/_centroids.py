"""What KMeans and MiniBatchKMeans share: parameters, starts, and the use of fitted centroids."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.random import RandomState
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from deepclust import _files
from deepclust.cluster._checks import (
    as_device,
    check_at_least_zero,
    check_integer,
    check_n_clusters,
    check_out,
    either,
)
from deepclust.cluster._points import BLOCK_ELEMENTS, Points, as_points, unit_rows
from deepclust.cluster._saving import Saved, comparable
from deepclust.cluster._seeding import SEEDINGS
from deepclust.cluster._sources import is_sparse
from deepclust.kernels._dispatch import check_options

Array = np.ndarray[Any, Any]
Self = TypeVar("Self", bound="CentroidEstimator")

METRICS = ("euclidean", "cosine")

# Parameters in which processes that share the rows may differ.
_MAY_DIFFER = ("random_state", "device", "backend", "verbose", "copy_x")


class CentroidEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, Saved):
    """An estimator with one centroid a cluster, of which the nearest gives a row its label."""

    n_clusters: int
    init: Any
    n_init: Any
    max_iter: int
    tol: float
    verbose: int
    random_state: Any
    metric: str
    device: Any
    backend: str

    cluster_centers_: Array
    labels_: Array

    LEARNED: ClassVar[tuple[str, ...]] = (
        "cluster_centers_",
        "labels_",
        "inertia_",
        "n_iter_",
        "n_features_in_",
    )

    @abstractmethod
    def fit(self: Self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Find the centroids of X."""

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Array:
        """Fit, and return the labels (N,)."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def predict(self, X: Any) -> Array:
        """The nearest centroid of each row: labels (N,) int64.

        Args:
            X: Rows (N, D), as `fit` takes them.

        Raises:
            ValueError: If X has another width than the fitted one, NaN or Inf.
            NotFittedError: If there are no centroids yet.
        """
        check_is_fitted(self)
        points = self._points(X, reset=False)
        return points.assign(self._fitted(points)).labels.array()

    def transform(self, X: Any, *, out: Array | None = None) -> Array:
        """The distance (N, K) from each row to each centroid.

        ||x_i - mu_j||, or with metric="cosine" 1 - cos(x_i, mu_j).

        Args:
            X: Rows (N, D), as `fit` takes them.
            out: An array or memory map (N, K) of float32 or float64, into which distances are
                written block by block.

        Returns:
            `out`, or an array of the centroids' type.

        Raises:
            ValueError: If X has another width than the fitted one, NaN or Inf, or `out` another
                shape than (N, K), another type, or may not be written to.
            TypeError: If `out` is no array.
            NotFittedError: If there are no centroids yet.
        """
        check_is_fitted(self)
        points = self._points(X, reset=False)
        centroids = self._fitted(points)
        shape = (len(points), len(centroids))
        if out is None:
            out = np.empty(shape, self.cluster_centers_.dtype)
        check_out(out, shape)
        for rows, x in points.blocks(max(1, BLOCK_ELEMENTS // max(points.width, len(centroids)))):
            # By direct differences: the way of matrix products loses digits, and takes threads.
            found = torch.cdist(x, centroids, compute_mode="donot_use_mm_for_euclid_dist")
            out[rows] = (found.square() / 2 if points.unit else found).cpu().numpy()
            _files.give_back(out)
        return out

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the inertia of X: the higher, the better the centroids fit."""
        check_is_fitted(self)
        points = self._points(X, sample_weight, reset=False)
        return -self._inertia(points.inertia(self._fitted(points)))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "cluster_centers_")

    def _restore(self, tree: dict[str, Any]) -> None:
        self._n_features_out = len(self.cluster_centers_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _points(
        self,
        X: Any,
        sample_weight: Any = None,
        *,
        reset: bool,
        dtype: torch.dtype | None = None,
        check: bool = True,
    ) -> Points:
        if self.metric not in METRICS:
            raise ValueError(f"metric: got {self.metric!r}; it takes {either(METRICS)}")
        return as_points(
            self,
            X,
            sample_weight,
            device=None if self.device is None else as_device(self.device),
            dtype=dtype,
            unit=self.metric == "cosine",
            backend=self.backend,
            reset=reset,
            check=check,
        )

    def _shared_rng(self, points: Points) -> RandomState:
        """What draws at random, the same in all processes that share the rows; all ask alike."""
        parameters = self.get_params(deep=False).items()
        points.ranks.agree(
            **{name: comparable(value) for name, value in parameters if name not in _MAY_DIFFER}
        )
        rng = check_random_state(self.random_state)
        first: RandomState = points.ranks.objects(rng)[0]
        return rng if points.ranks.rank == 0 else first

    def _forget_labels(self) -> None:
        """Those of an earlier fit do not belong to the centroids of one that was interrupted."""
        for name in ("labels_", "inertia_"):
            if hasattr(self, name):
                delattr(self, name)

    def _fitted(self, points: Points) -> Tensor:
        return torch.tensor(self.cluster_centers_, dtype=points.dtype, device=points.device)

    def _inertia(self, total_sq_dist: float) -> float:
        """sum_i w_i times the distance: ||u - v||^2 = 2 - 2 cos(u, v) for unit vectors."""
        return total_sq_dist / 2 if self.metric == "cosine" else total_sq_dist

    def _check_parameters(self, points: Points, n_drawn: int) -> None:
        """Check what both take; n_drawn is n_init="auto" where all of the start is drawn."""
        check_options(self.backend, "exact")
        check_n_clusters(self.n_clusters, points.ranks.total)
        check_integer("max_iter", self.max_iter, 1)
        check_at_least_zero("tol", self.tol)
        if isinstance(self.init, str) and self.init not in SEEDINGS:
            raise ValueError(
                f"init: got {self.init!r}; it takes {either(SEEDINGS)}, an array of centroids, or a"
                " function of X, n_clusters and random_state"
            )
        self._tol = self.tol * points.variance() if self.tol > 0 else 0.0
        if isinstance(self.n_init, str) and self.n_init == "auto":
            by_chance = callable(self.init) or (not self._starts_given and self.init == "random")
            self._n_init = n_drawn if by_chance else 1
            return
        try:
            check_integer("n_init", self.n_init, 1)
        except ValueError as error:
            raise ValueError(f"{error}, or 'auto'") from None
        self._n_init = int(self.n_init)
        if self._starts_given and self._n_init != 1:
            warnings.warn(
                "Explicit initial center position passed: performing only one init, not"
                f" n_init={self._n_init}",
                RuntimeWarning,
                stacklevel=3,
            )
            self._n_init = 1

    @property
    def _starts_given(self) -> bool:
        """Whether `init` is centroids."""
        return not isinstance(self.init, str) and not callable(self.init)

    def _start(self, X: Any, points: Points, rng: RandomState) -> Tensor:
        """Centroids (K, D) to start from, by `init`."""
        if isinstance(self.init, str):
            return SEEDINGS[self.init](points, self.n_clusters, rng)
        given = self.init
        if callable(given):
            if points.ranks.size > 1:
                raise ValueError(
                    "init: got a function, which sees the rows of one process alone; with a Shard"
                    " it takes a name or an array of centroids"
                )
            given = given(X, self.n_clusters, random_state=rng)
        if is_sparse(given):
            given = given.toarray()
        if not isinstance(given, Tensor):
            try:
                given = np.asarray(given, dtype=np.float64)
            except (TypeError, ValueError):
                raise ValueError(
                    f"init: got {given!r}; it takes centroids {(self.n_clusters, points.width)}"
                ) from None
        # A copy: what the caller gave is the caller's.
        centroids = torch.tensor(given, dtype=points.dtype, device=points.device)
        if centroids.shape != (self.n_clusters, points.width):
            raise ValueError(
                f"init: got centroids of shape {tuple(centroids.shape)};"
                f" it takes {(self.n_clusters, points.width)}"
            )
        if not bool(torch.isfinite(centroids).all()):
            raise ValueError("init: got NaN or Inf; it takes finite centroids")
        return unit_rows(centroids) if points.unit else centroids
