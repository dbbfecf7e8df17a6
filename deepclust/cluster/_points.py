"""The weighted rows that k-means is fitted to, whatever they lie in."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

from deepclust import functional as F
from deepclust.cluster._columns import Column, Embeddings
from deepclust.cluster._data import (
    Staging,
    check_tensor,
    check_width,
    opened,
    resident_bytes,
    shared_type,
)
from deepclust.cluster._sources import (
    Blocks,
    Dense,
    Picked,
    Source,
    ahead,
    as_tensor,
    converted,
    is_blocks,
    source_of,
)
from deepclust.distributed import Ranks, Shard
from deepclust.kernels import _checks
from deepclust.kernels.kmeans_assign.op import (
    Rounded,
    assign_and_update,
    fill_nearest,
    kmeans_batch,
)
from deepclust.kernels.kmeans_candidates.op import fill_candidates
from deepclust.kernels.kmeans_update.op import label_sums

Array = np.ndarray[Any, Any]

# Of one block: 16 MB in float32. Larger ones are no faster, nor are all rows at once.
BLOCK_ELEMENTS = 1 << 22


# Types of which the rows are computed in float32.
_SINGLE = (np.float16, np.float32, torch.float16, torch.bfloat16, torch.float32)


class Pass(NamedTuple):
    """What one pass over the rows finds for given centroids."""

    inertia: float | None  # sum_i w_i ||x_i - mu_{labels_i}||^2, unless distances tell it
    sums: Tensor  # (K, D) and
    counts: Tensor  # (K,), of the weighted rows of each cluster, in float64
    nearest: Nearest | None  # of rows that are held


class Nearest(NamedTuple):
    """The nearest centroid of each row, and the squared distance to it."""

    labels: Column
    sq_dist: Column


class Scatter(NamedTuple):
    """How far all rows lie from their mean."""

    mean: Tensor  # (D,) in float64
    sq_dist: float  # sum_i ||x_i - mean||^2

    def within(self, sums: Tensor, counts: Tensor, centroids: Tensor) -> float:
        """The inertia, of sums (K, D) and counts (K,) of the rows of each label.

        sum_i ||x_i - mu_{labels_i}||^2 = sq_dist + sum_j m_j . (n_j m_j - 2 (S_j - n_j mean)), with
        m_j = mu_j - mean.
        """
        m, n = centroids.double() - self.mean, counts.unsqueeze(1)
        return self.sq_dist + float((m * (n * m - 2 * (sums - n * self.mean))).sum())


class Points:
    """Rows (N, D) in float32 or float64 on a device, and their weights.

    Rows that are held lie in memory as they are wanted: dense ones, and on a GPU whatever half of
    its free memory can hold. Others are read in each pass, in a thread that is a block ahead of the
    kernels. Sums are added up block by block, and blocks on the CPU are cut by the width alone, so
    that results have the same bits whatever the rows lie in, and for any number of threads. Lloyd's
    sums alone, which come from changes where rows are in memory, and the inertia, which comes from
    them, are a file's up to rounding.

    Args:
        source: What the rows lie in.
        dtype: float32 or float64.
        device: Where rows are wanted.
        unit: Whether rows are divided by their length.
        hold: Whether converted rows are kept in memory.
        sample_weight: w (N,), by default all 1.
        backend: Of the kernels.
        ranks: The processes that share the rows, of which these are a part. What is found in all
            rows is then that of the whole, and rows have its numbers.
        check: Whether rows that lie in memory as they are wanted, on the CPU, are checked now; else
            `check` does so, or `round` in the pass that it makes.

    Attributes:
        scatter: Of all rows, once it is known.

    Raises:
        ValueError: If a row has NaN or Inf, or is zero where it is to be divided by its length; if
            weights are negative.
    """

    def __init__(
        self,
        source: Source,
        dtype: torch.dtype,
        device: torch.device,
        *,
        unit: bool,
        hold: bool,
        sample_weight: Any,
        backend: str,
        ranks: Ranks | None = None,
        check: bool = True,
    ) -> None:
        self._source = source
        self.width = source.shape[1]
        self.dtype, self.device = dtype, device
        self.unit, self.backend = unit, backend
        self.held = isinstance(source, Dense) and source.dtype == dtype and not unit
        if isinstance(source, Dense) and self.held:
            self._source = Dense(source.x.to(device))
        whole = None
        if hold and not self.held:
            whole = torch.empty(source.shape, dtype=dtype, device=device)
        self._n = source.shape[0] if self.held else 0
        self._checked = check or not self.held or device.type != "cpu"
        first = 0 if ranks is None else ranks.start
        for rows, x in self.blocks() if self._checked else ():
            self._n = rows.stop
            _checks.check_finite("X", x, first + rows.start)
            if unit and not bool((nonzero := x.any(1)).all()):
                row = first + rows.start + int((~nonzero).nonzero()[0])
                raise ValueError(f"X: row {row} is zero; metric='cosine' takes rows of some length")
            if whole is not None:
                whole[rows] = x
        if whole is not None:
            self._source, self.held = Dense(whole), True
        self._rounded: Rounded | None = None
        self._worth_rounding = True
        self.scatter: Scatter | None = None
        self.ranks = Ranks(self._n) if ranks is None else ranks
        self.weight = _weight(sample_weight, self._n, dtype, device, ranks is not None)

    def __len__(self) -> int:
        return self._n

    def blocks(self, size: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, `size` at a time: (which, their values, good until the next)."""
        if size is None:
            size = max(1, BLOCK_ELEMENTS // self.width)
            if self.held and self.device.type == "cuda":
                size = max(1, self._source.shape[0])  # a GPU is the busier the more it has at once
        blocks: Any = self._source.blocks(size)
        if not self.held:
            staging = Staging(self.device, self.dtype) if self.device.type == "cuda" else None
            blocks = ahead(converted(block, self.dtype) for block in blocks)
        start = 0
        with closing(blocks):  # its thread ends here, not when the last traceback goes
            for x in blocks:
                if not self.held:
                    x = self._placed(x if staging is None else staging.send(x))
                yield slice(start, start + len(x)), x
                start += len(x)

    def check(self) -> None:
        """Refuse NaN and Inf, where that was left for later."""
        if not self._checked:
            for rows, x in self.blocks():
                _checks.check_finite("X", x, self.ranks.start + rows.start)
            self._checked = True

    def round(self, centroids: Tensor, labels: Tensor) -> Rounded | None:
        """Round all rows to integers, and meanwhile assign them, check them and see their scatter.

        Not where they were rounded before, or it was not worth it.
        """
        x = self.in_memory
        if self._rounded is not None or not self._worth_rounding or x is None:
            return None
        found = Rounded(x, centroids, labels, self.backend)
        if math.isfinite(found.scatter):
            self._checked = True
            if self.ranks.size == 1:
                self.scatter = Scatter(found.sums.sum(0) / len(x), found.scatter)
        self.check()
        self._rounded = found
        return found

    @property
    def rounded(self) -> Rounded | None:
        """All rows as integers, if they were rounded and it is still worth it."""
        if self._rounded is not None and not self._rounded.worth:
            self._rounded, self._worth_rounding = None, False
        return self._rounded

    @property
    def in_memory(self) -> Tensor | None:
        """All rows, where they are held."""
        return self._source.x if isinstance(self._source, Dense) and self.held else None

    def batches(self, size: int, rng: np.random.RandomState) -> Iterator[Points]:
        """Batches of `size` rows without end, drawn by weight, so that rows of one count alike.

        Each is good until the next. Where rows are not picked by number they come in order, with
        their weights.
        """
        if self._source.picks:
            draw, x = Draw(self.weight, self._n), self.in_memory
            if x is None:
                while True:
                    yield self.like(self.take(draw(size, rng)), None)
            source = Picked(x, torch.empty(size, dtype=torch.int64))
            batch = self.like(source, None)
            while True:
                source.numbers = torch.from_numpy(draw(size, rng)).to(x.device)
                yield batch
        while True:
            for rows, x in self.blocks(size):
                yield self.like(x, self._weight_of(rows))

    def take(self, rows: Array) -> Tensor:
        """The rows of these numbers, (n, D)."""
        if self.ranks.size == 1:
            return self._take(rows)
        return self.ranks.pick(torch.from_numpy(rows), lambda own: self._take(own.numpy()))

    def _take(self, rows: Array) -> Tensor:
        picked = self._source.take(rows)
        if self.held:
            assert isinstance(picked, Tensor)
            return picked
        return self._placed(converted(picked, self.dtype).to(self.device))

    def _placed(self, x: Tensor) -> Tensor:
        """Rows of the wanted type and device as they are worked with."""
        return unit_rows(x) if self.unit else x

    def subset(self, rows: Array) -> Points:
        """The rows of these numbers, with their weights, in memory."""
        weight = self.weight
        if weight is not None:
            weight = weight[torch.from_numpy(rows).to(self.device)]
        return self.like(self.take(rows), weight)

    def like(self, x: Tensor | Picked, weight: Tensor | None) -> Points:
        """Other rows (n, D), as `take` gives them or by number, with weights (n,)."""
        other = copy.copy(self)
        other._source = Dense(x) if isinstance(x, Tensor) else x
        other._n, other.held, other.weight = other._source.shape[0], True, weight
        other._rounded, other._worth_rounding, other.scatter = None, True, None
        other.ranks = Ranks(other._n)
        return other

    def column(self, dtype: torch.dtype) -> Column:
        """Room for a number for each row."""
        return Column(self._n, dtype, self.device, spill=not self.held)

    def unfilled(self) -> Nearest:
        """Room for the nearest centroid of each row, and its distance."""
        return Nearest(self.column(torch.int64), self.column(self.dtype))

    def nearest(self, centroids: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Block by block: (which rows, their nearest centroids, squared distances to these)."""
        for rows, x in self.blocks():
            yield rows, *F.kmeans_assign(x, centroids, backend=self.backend, check=False)

    def assign(self, centroids: Tensor, room: Nearest | None = None) -> Nearest:
        """The same of all rows, into the room of an earlier pass, if there is one."""
        found = room or self.unfilled()
        if not self.held:
            for rows, labels, sq_dist in self.nearest(centroids):
                found.labels[rows], found.sq_dist[rows] = labels, sq_dist
            return found
        for rows, x in self.blocks(len(self)):  # rows do not depend on each other
            fill_nearest(x, centroids, found.labels[rows], found.sq_dist[rows], self.backend)
        return found

    def inertia(self, centroids: Tensor) -> float:
        """The weighted sum of these squared distances."""
        return self.over_all(
            sum(total(self.weighted(sq_dist, rows)) for rows, _, sq_dist in self.nearest(centroids))
        )

    def total(self, values: Column) -> float:
        """The weighted sum of values (N,)."""
        return self.over_all(
            sum(total(self.weighted(some, rows)) for rows, some in values.blocks())
        )

    def assign_and_update(self, centroids: Tensor, room: Nearest | None = None) -> Pass:
        """What `assign` gives, where rows are held, and what `sums` gives of it, in one pass.

        Into the room of an earlier pass, if there is one.
        """
        sums, counts = self._zeros(len(centroids), self.width), self._zeros(len(centroids))
        inertia, nearest = 0.0, None
        if self.held:
            nearest = room or self.unfilled()
        # Of processes some may hold their rows, and others not.
        wanted = nearest is None or self.ranks.size > 1
        for rows, x in self.blocks():
            if nearest is not None:
                labels, sq_dist = nearest.labels[rows], nearest.sq_dist[rows]
            else:
                labels = torch.empty(len(x), dtype=torch.int64, device=self.device)
                sq_dist = torch.empty(len(x), dtype=self.dtype, device=self.device)
            weight = self._weight_of(rows)
            more = assign_and_update(x, centroids, weight, labels, sq_dist, self.backend)
            if wanted:
                inertia += total(self.weighted(sq_dist, rows))
            sums += more[0]
            counts += more[1]
        found = self.over_all(inertia) if wanted else None
        return Pass(found, self.ranks.sum(sums), self.ranks.sum(counts), nearest)

    def step(self, centroids: Tensor, counts: Tensor) -> tuple[float, Tensor, Tensor] | None:
        """What `kmeans_batch` gives, where the backend has it and the rows are one block in memory.

        The bits are those of `assign_and_update` and `means`.
        """
        source = self._source
        if not self.held or self.unit or self._n * self.width > BLOCK_ELEMENTS:
            return None
        assert isinstance(source, (Dense, Picked))
        rows = source.numbers if isinstance(source, Picked) else None
        return kmeans_batch(source.x, rows, self.weight, centroids, counts, self.backend)

    def sums(self, labels: Column, n_clusters: int) -> tuple[Tensor, Tensor]:
        """Weighted sums (K, D) and counts (K,) of the rows of each cluster, in float64."""
        sums, counts = self._zeros(n_clusters, self.width), self._zeros(n_clusters)
        for rows, x in self.blocks():
            found = label_sums(x, labels[rows], n_clusters, self._weight_of(rows), self.backend)
            sums += found[0]
            counts += found[1]
        return self.ranks.sum(sums), self.ranks.sum(counts)

    def candidates(
        self, candidates: Tensor, nearest: Column | None, room: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Block by block what `kmeans_candidates` says of these (C, D), from what was the nearest.

        (Which rows, distances (C, n), potentials (C,)). The distances lie in the room (C N,), if
        there is one.
        """
        n_candidates = len(candidates)
        for rows, x in self.blocks():
            so_far = None if nearest is None else nearest[rows]
            if room is None:
                sq_dist = candidates.new_empty(n_candidates * len(x))
            else:
                sq_dist = room[n_candidates * rows.start : n_candidates * rows.stop]
            sq_dist = sq_dist.view(n_candidates, len(x))
            options = self._weight_of(rows), sq_dist, self.backend
            yield rows, sq_dist, fill_candidates(x, candidates, so_far, *options)

    def weighted(self, values: Tensor, rows: slice) -> Tensor:
        """Values of these rows times their weights."""
        return values if self.weight is None else values * self.weight[rows]

    @property
    def mass(self) -> float:
        """The sum of the weights."""
        return float(self.ranks.total) if self.weight is None else self.over_all(total(self.weight))

    def variance(self) -> float:
        """The mean of the columns' variances, each row counting the same."""
        alike = copy.copy(self)
        alike.weight = None
        mean = self._zeros(1, self.width)
        for _, x in alike.blocks():
            labels = torch.zeros(len(x), dtype=torch.int64, device=self.device)
            mean += label_sums(x, labels, 1, None, self.backend)[0]
        n = self.ranks.total
        return alike.inertia((self.ranks.sum(mean) / n).to(self.dtype)) / (n * self.width)

    def _weight_of(self, rows: slice) -> Tensor | None:
        return None if self.weight is None else self.weight[rows]

    def over_all(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.ranks.size == 1:
            return value
        return float(self.ranks.sum(torch.tensor(value, dtype=torch.float64)))

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
    check: bool = True,
) -> Points:
    """Check the data of fit (reset) or of predict as scikit-learn does, and read them as points.

    Args:
        estimator: Which remembers, or knows, how wide X is.
        X: An array, memory map or sparse array on the host, a tensor on any device, or a Shard of
            these.
        sample_weight: Weights (N,), by default all 1.
        device: Where rows are wanted; None is where they are.
        dtype: float32 or float64; None is float32 for float32 and half types, else float64.
        unit: Whether rows are divided by their length.
        backend: Of the kernels.
        reset: Whether X tells how wide rows are.
        check: Whether NaN and Inf are refused now, or may be later: see `Points.check`.

    Raises:
        ValueError: If X is not (N, D), is empty, has another width than the fitted one, NaN or Inf,
            or is a Shard that is not like those of other processes; if weights are negative, or all
            zero.
    """
    options: dict[str, Any] = {"device": device, "unit": unit, "backend": backend, "reset": reset}
    if isinstance(X, Shard):
        ranks = X.ranks()
        with ranks.together():
            points = _points_of(estimator, X.rows, sample_weight, dtype, ranks=ranks, **options)
        ranks.agree(
            **{
                "the width of X": points.width,
                "the type of X": shared_type(X),
                "whether there is a sample_weight": points.weight is not None,
            }
        )
    else:
        points = _points_of(estimator, X, sample_weight, dtype, check=check, **options)
    if points.weight is not None and not points.mass > 0:
        raise ValueError("sample_weight: got zeros; it takes at least one non-zero weight")
    return points


def _points_of(
    estimator: BaseEstimator,
    X: Any,
    sample_weight: Any,
    dtype: torch.dtype | None,
    *,
    device: torch.device | None,
    unit: bool,
    backend: str,
    reset: bool,
    ranks: Ranks | None = None,
    check: bool = True,
) -> Points:
    least = 1 if ranks is None else 0  # of this process's rows
    X = opened(X)
    hold = False
    source: Source
    if is_blocks(X):
        source = Blocks(X)
        check_width(estimator, source.shape[1], reset)
    elif isinstance(X, Column):
        source = Embeddings(X)
        check_width(estimator, source.shape[1], reset)
    elif isinstance(X, Tensor):
        source, hold = source_of(check_tensor(estimator, X, reset=reset, least=least)), True
    else:
        mapped = isinstance(X, np.memmap)
        # A map is converted as it is read, not whole, and stays a map: an array of it is checked.
        kinds: dict[str, Any] = {"dtype": "numeric", "ensure_min_samples": least}
        if not mapped:
            kinds.update(dtype=[np.float64, np.float32], order="C")
        checked = validate_data(
            estimator, X, reset=reset, accept_sparse="csr", ensure_all_finite=False, **kinds
        )
        source = source_of(X if mapped and X.dtype == checked.dtype else checked)
        hold = isinstance(source, Dense)
    device = device or (source.x.device if isinstance(source, Dense) else torch.device("cpu"))
    if dtype is None:
        kind = source.dtype
        if isinstance(kind, np.dtype):
            kind = kind.newbyteorder("=")
        dtype = torch.float32 if kind in _SINGLE else torch.float64
    if device.type == "cuda" and not isinstance(source, Blocks):
        hold = hold or math.prod(source.shape) * dtype.itemsize <= resident_bytes(device)
    return Points(
        source,
        dtype,
        device,
        unit=unit,
        hold=hold,
        sample_weight=sample_weight,
        backend=backend,
        ranks=ranks,
        check=check,
    )


def unit_rows(x: Tensor) -> Tensor:
    """Rows (n, D) divided by their length; those of zero stay as they are."""
    # First by the largest entry, of which the square can neither overflow nor vanish.
    x = x / _above_zero(x.abs().amax(1, keepdim=True))
    _, sq_norm = F.kmeans_assign(x, x.new_zeros(1, x.shape[1]), check=False)
    return x / _above_zero(sq_norm.sqrt().unsqueeze(1))


def total(values: Tensor) -> float:
    """The sum of values (N,) in float64."""
    if values.is_cuda:
        return float(values.sum(dtype=torch.float64))
    # NumPy adds on one thread, so that the bits do not depend on torch's thread count.
    return float(values.numpy().sum(dtype=np.float64))


class Draw:
    """Draws rows, below n, in proportion to weight (n,), which by default is equal for all.

    Equal weights and none give the same draws.
    """

    def __init__(self, weight: Tensor | None, n: int) -> None:
        self._n = n
        self._cumulative: Array | None = None
        if weight is not None:  # on the host, as a GPU's running sums are not the same each time
            self._cumulative = torch.cumsum(weight.cpu(), 0, dtype=torch.float64).numpy()

    def __call__(self, size: int, rng: np.random.RandomState) -> Array:
        """Numbers (size,) of rows, the same one possibly again."""
        u = rng.random_sample(size)
        if self._cumulative is None:
            rows = (u * self._n).astype(np.int64)
        else:
            rows = np.searchsorted(self._cumulative, u * self._cumulative[-1], side="right")
        within: Array = np.minimum(rows, self._n - 1)
        return within


def _above_zero(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1)


def _weight(
    sample_weight: Any, n: int, dtype: torch.dtype, device: torch.device, shared: bool
) -> Tensor | None:
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Tensor):
        sample_weight = sample_weight.detach().cpu()
    if shared and np.shape(sample_weight) == (n,) and not np.any(sample_weight):
        return torch.zeros(n, dtype=dtype, device=device)  # other processes may have some
    kind = np.float64 if dtype == torch.float64 else np.float32
    array = _check_sample_weight(
        sample_weight, np.empty((n, 1)), dtype=kind, ensure_non_negative=True
    )
    return as_tensor(array).to(device)
