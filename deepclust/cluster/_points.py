"""The weighted rows that k-means is fitted to, whatever they lie in."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

from deepclust import functional as F
from deepclust.cluster._data import as_tensor, check_tensor, is_sparse
from deepclust.kernels import _checks
from deepclust.kernels.kmeans_assign.op import assign_and_update
from deepclust.kernels.kmeans_update.op import label_sums

Array = np.ndarray[Any, Any]

# Of one block, where rows are converted as they are read: 8 MB in float32.
BLOCK_ELEMENTS = 1 << 21

_FLOATS = (np.float16, np.float32, np.float64)  # that torch takes where they are


class Points:
    """Rows (N, D) in float32 or float64 on a device, and their weights.

    Dense rows in memory are one tensor; so is a memory map of the wanted type, of which nothing is
    copied. Sparse rows and other memory maps are made dense block by block in each pass. Blocks are
    cut by sizes alone, so that results have the same bits for any number of threads.

    Args:
        source: A tensor, an array or a sparse array with rows.
        dtype: float32 or float64.
        device: Where rows are wanted.
        unit: Whether rows are divided by their length.
        hold: Whether converted rows are kept in memory, as those of dense arrays are.
        weight: w (N,), by default all 1.
        backend: Of the kernels.

    Raises:
        ValueError: If a row has NaN or Inf, or is zero where it is to be divided by its length.
    """

    def __init__(
        self,
        source: Any,
        dtype: torch.dtype,
        device: torch.device,
        *,
        unit: bool,
        hold: bool,
        weight: Tensor | None,
        backend: str,
    ) -> None:
        self._source = source
        self._n: int = source.shape[0]
        self.width: int = source.shape[1]
        self.dtype, self.device = dtype, device
        self.unit, self.weight, self.backend = unit, weight, backend
        self._whole: Tensor | None = None
        if isinstance(source, Tensor) and source.dtype == dtype and not unit:
            self._whole = source.to(device)
        whole = None
        if hold and self._whole is None:
            whole = torch.empty(self._n, self.width, dtype=dtype, device=device)
        for rows, x in self.blocks():
            _checks.check_finite("X", x, rows.start)
            if unit and not bool((nonzero := x.any(1)).all()):
                row = rows.start + int((~nonzero).nonzero()[0])
                raise ValueError(f"X: row {row} is zero; metric='cosine' takes rows of some length")
            if whole is not None:
                whole[rows] = x
        if whole is not None:
            self._whole = whole

    def __len__(self) -> int:
        return self._n

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order: (which, their values)."""
        size = max(1, BLOCK_ELEMENTS // self.width) if self._whole is None else self._n
        for start in range(0, self._n, size):
            rows = slice(start, min(start + size, self._n))
            yield rows, self.take(rows)

    def take(self, rows: slice | Array) -> Tensor:
        """The rows of these numbers, (n, D)."""
        source = self._source if self._whole is None else self._whole
        if isinstance(source, Tensor):
            if isinstance(rows, slice):
                x = source[rows]
            else:
                x = source.index_select(0, torch.from_numpy(rows).to(source.device))
            x = x.to(self.device, self.dtype)
        else:
            picked = source[rows].toarray() if is_sparse(source) else source[rows]
            dtype = np.float64 if self.dtype == torch.float64 else np.float32
            x = as_tensor(np.ascontiguousarray(picked, dtype=dtype)).to(self.device)
        return unit_rows(x) if self.unit and self._whole is None else x

    def subset(self, rows: Array) -> Points:
        """The rows of these numbers, with their weights, in memory."""
        weight = self.weight
        if weight is not None:
            weight = weight[torch.from_numpy(rows).to(self.device)]
        return self.like(self.take(rows), weight)

    def like(self, x: Tensor, weight: Tensor | None) -> Points:
        """Other rows (n, D), as `take` gives them, with weights (n,)."""
        other = copy.copy(self)
        other._whole, other._n, other.weight = x, len(x), weight
        return other

    def assign(self, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest centroid (N,) of each row, and the squared distance (N,) to it."""
        found = (
            F.kmeans_assign(x, centroids, backend=self.backend, check=False)
            for _, x in self.blocks()
        )
        labels, sq_dist = zip(*found, strict=True)
        return _joined(labels), _joined(sq_dist)

    def assign_and_update(self, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """These, and the sums (K, D) and counts (K,) of `sums`, in one pass over the rows."""
        labels, sq_dist = [], []
        sums, counts = self._zeros(len(centroids), self.width), self._zeros(len(centroids))
        for rows, x in self.blocks():
            found = assign_and_update(x, centroids, self._weight_of(rows), self.backend)
            labels.append(found[0])
            sq_dist.append(found[1])
            sums += found[2]
            counts += found[3]
        return _joined(labels), _joined(sq_dist), sums, counts

    def sums(self, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
        """Weighted sums (K, D) and counts (K,) of the rows of each cluster, in float64."""
        sums, counts = self._zeros(n_clusters, self.width), self._zeros(n_clusters)
        for rows, x in self.blocks():
            found = label_sums(x, labels[rows], n_clusters, self._weight_of(rows), self.backend)
            sums += found[0]
            counts += found[1]
        return sums, counts

    def candidates(self, candidates: Tensor, nearest: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `kmeans_candidates` says of these (C, D): distances (C, N) and potentials (C,)."""
        sq_dist, potentials = [], self._zeros(len(candidates))
        for rows, x in self.blocks():
            so_far = None if nearest is None else nearest[rows]
            found = F.kmeans_candidates(
                x, candidates, so_far, self._weight_of(rows), backend=self.backend, check=False
            )
            sq_dist.append(found[0])
            potentials += found[1]
        return _joined(sq_dist, 1), potentials

    def weighted(self, values: Tensor) -> Tensor:
        """Values (N,) times the weights."""
        return values if self.weight is None else values * self.weight

    def variance(self) -> float:
        """The mean of the columns' variances, each row counting the same."""
        alike = copy.copy(self)
        alike.weight = None
        labels = torch.zeros(self._n, dtype=torch.int64, device=self.device)
        mean = (alike.sums(labels, 1)[0] / self._n).to(self.dtype)
        return total(self.assign(mean)[1]) / (self._n * self.width)

    def _weight_of(self, rows: slice) -> Tensor | None:
        return None if self.weight is None else self.weight[rows]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self.device)


def as_points(
    estimator: BaseEstimator,
    X: Any,
    sample_weight: Any = None,
    *,
    device: torch.device | None,
    dtype: torch.dtype | None = None,
    unit: bool,
    backend: str,
    reset: bool,
) -> Points:
    """Check the data of fit (reset) or of predict as scikit-learn does, and read them as points.

    Args:
        estimator: Which remembers, or knows, how wide X is.
        X: An array, memory map or sparse array on the host, or a tensor on any device.
        sample_weight: Weights (N,), by default all 1.
        device: Where rows are wanted; None is where they are.
        dtype: float32 or float64; None is float32 for float32 and half types, else float64.
        unit: Whether rows are divided by their length.
        backend: Of the kernels.
        reset: Whether X tells how wide rows are.

    Raises:
        ValueError: If X is not (N, D), is empty, has another width than the fitted one, NaN or Inf;
            if weights are negative, or all zero.
    """
    hold = True
    if isinstance(X, Tensor):
        X = check_tensor(estimator, X, reset=reset)
        single = X.is_floating_point() and X.dtype != torch.float64
    else:
        mapped = isinstance(X, np.memmap)
        # A map is converted as it is read, not whole.
        kinds: dict[str, Any] = {"dtype": "numeric"}
        if not mapped:
            kinds = {"dtype": [np.float64, np.float32], "order": "C"}
        X = validate_data(
            estimator, X, reset=reset, accept_sparse="csr", ensure_all_finite=False, **kinds
        )
        single = X.dtype in (np.float16, np.float32)
        hold = not (mapped or is_sparse(X))
        if not is_sparse(X) and X.dtype.isnative and X.dtype in _FLOATS and min(X.strides) >= 0:
            X = as_tensor(X)
    dtype = dtype or (torch.float32 if single else torch.float64)
    device = device or (X.device if isinstance(X, Tensor) else torch.device("cpu"))
    weight = _weight(sample_weight, X.shape[0], dtype, device)
    options: dict[str, Any] = {"unit": unit, "hold": hold, "weight": weight, "backend": backend}
    return Points(X, dtype, device, **options)


def unit_rows(x: Tensor) -> Tensor:
    """Rows (n, D) divided by their length; those of zero stay as they are."""
    # First by the largest entry, of which the square can neither overflow nor vanish.
    x = x / _above_zero(x.abs().amax(1, keepdim=True))
    _, sq_norm = F.kmeans_assign(x, torch.zeros_like(x[:1]), check=False)
    return x / _above_zero(sq_norm.sqrt().unsqueeze(1))


def total(values: Tensor) -> float:
    """The sum of values (N,) in float64."""
    if values.is_cuda:
        return float(values.sum(dtype=torch.float64))
    # NumPy adds on one thread, so that the bits do not depend on torch's thread count.
    return float(values.numpy().sum(dtype=np.float64))


def _above_zero(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1)


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _weight(sample_weight: Any, n: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Tensor):
        sample_weight = sample_weight.detach().cpu()
    kind = np.float64 if dtype == torch.float64 else np.float32
    array = _check_sample_weight(
        sample_weight, np.empty((n, 1)), dtype=kind, ensure_non_negative=True
    )
    if not array.sum() > 0:  # scikit-learn below 1.8 lets it pass
        raise ValueError("sample_weight: got zeros; it takes at least one non-zero weight")
    return as_tensor(array).to(device)
