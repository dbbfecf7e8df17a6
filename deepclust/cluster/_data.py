"""The rows that a method is fitted to, whatever they lie in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from torch import Tensor

from deepclust.cluster._columns import Column, collected
from deepclust.cluster._sources import Dense, Items, ahead, converted, source_of
from deepclust.datasets import open_npy
from deepclust.distributed import Ranks, Shard
from deepclust.networks.images import image_size

# Data up to this size are held in memory as one float32 tensor; larger ones stay where they are and
# are read, and converted, batch by batch.
RESIDENT_BYTES = 4 << 30
# On a GPU the limit is this share of the memory that is free: the rest is for network and results.
RESIDENT_SHARE = 0.5
_CHANNELS = (1, 2, 3, 4)  # sizes that tell an axis of channels

# Rows that one step of a full pass reads: wide networks need 32 MB a layer for them.
BLOCK_ROWS = 4096


class Rows:
    """Rows (N, D) in float32 on a device, by number or block by block.

    Those that fit are held as one tensor. Others are read in each pass, in a thread that is a block
    ahead of the caller.

    Args:
        source: A dense array, memory map or tensor (N, D) of any real type, a sparse array, or a
            map-style Dataset whose items are rows, or tuples that begin with one.
        device: Where rows are wanted.
        ranks: The processes that share the data, of which these rows are a part.

    Attributes:
        is_shared: Whether processes, if only one, share the data.
    """

    def __init__(self, source: Any, device: torch.device, ranks: Ranks | None = None) -> None:
        # "cuda" without an index is equal to no tensor's device.
        self.device = torch.empty(0, device=device).device
        self._source = source_of(source)
        self._staging: Staging | None = None
        self.is_shared = ranks is not None
        self.ranks = Ranks(len(self)) if ranks is None else ranks
        self.n_features = self._source.shape[1]
        if self.on_device and self._source.dtype == torch.float32:
            return
        if self.device.type == "cuda" and not self.on_device:
            self._staging = Staging(self.device)
        if len(self) * self.n_features * 4 <= resident_bytes(self.device):
            whole = torch.empty(len(self), self.n_features, device=self.device)
            for rows, x in self.blocks():
                whole[rows] = x
            self._source, self._staging = Dense(whole), None

    def __len__(self) -> int:
        return self._source.shape[0]

    @property
    def on_device(self) -> bool:
        """Whether the rows are a tensor on the device: then it is there that `take` wants numbers.

        Numbers elsewhere are moved, for which the host waits.
        """
        return isinstance(self._source, Dense) and self._source.x.device == self.device

    def take(self, rows: slice | Tensor) -> Tensor:
        """The rows of these numbers, (n, D)."""
        if isinstance(self._source, Dense):
            x = self._source.x
            return self._placed(x[rows.to(x.device) if isinstance(rows, Tensor) else rows])
        if isinstance(rows, slice):
            numbers = np.arange(*rows.indices(len(self)))
        else:
            numbers = rows.cpu().numpy()
        return self._placed(converted(self._source.take(numbers), torch.float32))

    def _placed(self, x: Tensor) -> Tensor:
        """Rows, of any type, as they are wanted."""
        return x.to(self.device, torch.float32) if self._staging is None else self._staging.send(x)

    def pick(self, rows: slice | Tensor) -> Tensor:
        """The rows (n, D) of these numbers in the whole that processes share, on each of them."""
        if self.ranks.size == 1:
            return self.take(rows)
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(self.ranks.total))
        return self.ranks.pick(rows, self.take)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order: (which, their values, good until the next).

        Where there are none, it is an empty block. On a GPU nothing here waits for the work that
        the caller starts on a block, so that the next one is read meanwhile.
        """
        slices = [
            slice(start, min(start + BLOCK_ROWS, len(self)))
            for start in range(0, max(len(self), 1), BLOCK_ROWS)
        ]
        if isinstance(self._source, Dense) or not len(self):
            for rows in slices:
                yield rows, self.take(rows)
            return
        read = (converted(block, torch.float32) for block in self._source.blocks(BLOCK_ROWS))
        with closing(ahead(read)) as blocks:  # its thread ends here, not with the last traceback
            for rows, x in zip(slices, blocks, strict=True):
                yield rows, self._placed(x)

    def collect(self, parts: Iterable[tuple[slice, Tensor]]) -> Column:
        """What is found for all rows, part by part: in a file, where rows are not in memory.

        That is past some size, and on the CPU: a GPU has it in its memory.
        """
        spill = self.device.type == "cpu" and not isinstance(self._source, Dense)
        return collected(len(self), parts, spill=spill)

    def check_finite(self) -> None:
        """Refuse NaN and Inf, naming the first row that has one."""
        for rows, x in self.blocks():
            finite = torch.isfinite(x).all(1)
            if not bool(finite.all()):
                row = self.ranks.start + rows.start + int((~finite).nonzero()[0])
                raise ValueError(f"X: row {row} has NaN or Inf; it takes finite values")

    def n_distinct(self, enough: int) -> int:
        """How many distinct rows the whole has, counted up to `enough`."""
        return min(enough, len(set[bytes]().union(*self.ranks.objects(self._distinct(enough)))))

    def _distinct(self, enough: int) -> set[bytes]:
        """What tells distinct rows from each other, of up to `enough` of them."""
        seen: set[bytes] = set()
        for _, x in self.blocks():
            for row in x.cpu().numpy():
                seen.add(blake2b(row.tobytes(), digest_size=16).digest())
                if len(seen) == enough:
                    return seen
        return seen

    def fingerprint(self) -> dict[str, Any]:
        """What tells these rows from others: their number, width, and the sum of some of them."""
        n = self.ranks.total
        some = torch.linspace(0, n - 1, min(n, 1000)).long()
        x = self.pick(some).double().cpu().numpy()
        weights = 1 + np.arange(x.size).reshape(x.shape) % 1009
        found = {"n": n, "n_features": self.n_features, "sum": float((x * weights).sum())}
        # Their batches come in another order.
        return {**found, "Shard": True} if self.is_shared else found


class Staging:
    """Two pinned buffers through which rows reach a GPU: one is filled while the other is copied.

    The host never waits for the GPU's work on rows, only, before it fills a buffer again, for the
    copy of what was in it two calls ago.

    Args:
        device: Where rows go. On one that is not a GPU copies are plain ones.
        dtype: What they become there.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._device = device
        self._buffers = [torch.empty(0, dtype=dtype), torch.empty(0, dtype=dtype)]
        self._copied: list[Any] = [None, None]
        self._turn = 0
        # Of its own, so that a copy need not wait for the kernels that were started before it.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, values: Tensor) -> Tensor:
        """These rows (n, D), of any type, on the device in the type that is wanted there."""
        turn = self._turn
        self._turn = 1 - turn
        if self._copied[turn] is not None:
            self._copied[turn].synchronize()
        if self._buffers[turn].numel() < values.numel():
            pinned = self._stream is not None
            dtype = self._buffers[turn].dtype
            self._buffers[turn] = torch.empty(values.numel(), dtype=dtype, pin_memory=pinned)
        buffer = self._buffers[turn][: values.numel()].view(values.shape)
        buffer.copy_(values)
        moved, self._copied[turn] = self._copy(buffer)
        return moved

    def _copy(self, buffer: Tensor) -> tuple[Tensor, Any]:
        """The buffer on the device, and an event that follows the copy."""
        if self._stream is None:
            return buffer.to(self._device, copy=True), None
        present = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            moved = buffer.to(self._device, non_blocking=True)
            copied = self._stream.record_event()
        present.wait_event(copied)
        # The memory belongs to the copying stream, which must not use it again before the caller's
        # stream is done with the rows.
        moved.record_stream(present)
        return moved, copied


def resident_bytes(device: torch.device) -> int:
    """How large data may be that are held on the device."""
    if device.type != "cuda":
        return RESIDENT_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * RESIDENT_SHARE)


def opened(X: Any) -> Any:
    """The array that a path names, as a memory map; anything else as it is."""
    return open_npy(X) if isinstance(X, (str, os.PathLike)) else X


def as_rows(estimator: BaseEstimator, X: Any, device: torch.device, *, reset: bool) -> Rows:
    """Check the data of fit (reset) or of predict as scikit-learn does, and read them as rows.

    Raises:
        ValueError: If X is not (N, D), is empty, has another width than the fitted one, NaN or Inf,
            or is a Shard that is not like those of other processes.
        TypeError: If X holds complex numbers or objects.
    """
    if not isinstance(X, Shard):
        rows = Rows(_checked(estimator, X, reset=reset, least=1), device)
        rows.check_finite()
        return rows
    ranks = X.ranks()
    with ranks.together():
        rows = Rows(_checked(estimator, X.rows, reset=reset, least=0), device, ranks)
        rows.check_finite()
    ranks.agree(**{"the width of X": rows.n_features, "the type of X": shared_type(X)})
    return rows


def shared_type(shard: Shard) -> str:
    """The type of a Shard's values, as one to compare."""
    return str(getattr(shard.rows, "dtype", None)).removeprefix("torch.")


def _checked(estimator: BaseEstimator, X: Any, *, reset: bool, least: int) -> Any:
    """Rows as Rows take them, of which there are `least` or more."""
    X = opened(X)
    if getattr(estimator, "takes_images", False):
        X = _flattened(estimator, X, reset)
    if isinstance(X, Tensor):
        return check_tensor(estimator, X, reset=reset, least=least)
    if isinstance(X, torch.utils.data.Dataset):
        if len(X) == 0:  # type: ignore[arg-type]  # map-style data sets have a length
            raise ValueError("X: got a Dataset without rows; it takes at least one")
        items = Items(X)
        check_width(estimator, items.shape[1], reset)
        return items
    if isinstance(X, np.ndarray) and X.ndim > 2:
        raise ValueError(
            f"X: got shape {X.shape}, {X.ndim} dimensions, but expected <= 2:"
            " it takes (N, D), and X.reshape(len(X), -1) flattens images"
        )
    checked = validate_data(
        estimator,
        X,
        reset=reset,
        accept_sparse="csr",
        dtype="numeric",
        ensure_all_finite=False,
        ensure_min_samples=least,
    )
    if isinstance(X, np.memmap) and X.dtype == checked.dtype:
        return X  # what is checked is an array, whose pages would count as the process's memory
    X = checked
    if isinstance(X, np.ndarray) and (X.dtype.byteorder == ">" or min(X.strides, default=0) < 0):
        X = np.ascontiguousarray(X, dtype=X.dtype.newbyteorder("="))  # torch takes no other
    return X


def check_tensor(estimator: BaseEstimator, X: Tensor, *, reset: bool, least: int = 1) -> Tensor:
    """Check the shape and type of a tensor of rows as scikit-learn does those of an array."""
    if X.ndim != 2:
        raise ValueError(
            f"X: got shape {tuple(X.shape)}; it takes (N, D): X.reshape(len(X), -1) flattens images"
        )
    if X.is_complex():
        raise ValueError(f"X: got {X.dtype}; complex data not supported")
    if X.shape[0] < least or X.shape[1] == 0:
        raise ValueError(f"X: got shape {tuple(X.shape)}; it takes at least one row and one column")
    check_width(estimator, X.shape[1], reset)
    return X.detach()


def _flattened(estimator: Any, X: Any, reset: bool) -> Any:
    """Images (N, H, W) or (N, H, W, C) as rows; anything else as it is."""
    given = estimator.image_shape
    if given is None:
        given = getattr(estimator.network, "image_size", None)  # a module of the user's knows it
    if reset:
        estimator.image_shape_ = given
    if not isinstance(X, (np.ndarray, Tensor)) or X.ndim not in (3, 4):
        return X
    shape = tuple(X.shape[1:])
    if reset and given is None:
        if len(shape) == 3 and shape[0] in _CHANNELS and shape[2] not in _CHANNELS:
            raise ValueError(
                f"X: got images {shape}, which look like channels first; it takes (N, H, W, C):"
                " move the axis, or say image_shape"
            )
        estimator.image_shape_ = shape
    if image_size(shape) != image_size(estimator.image_shape_):
        raise ValueError(
            f"X: got images {shape}; it takes {tuple(estimator.image_shape_)}, channels last"
        )
    return X.reshape(len(X), -1)


def check_width(estimator: BaseEstimator, n_features: int, reset: bool) -> None:
    """Check how wide the rows of predict are, or remember how wide those of fit (reset) are."""
    if reset:
        estimator.n_features_in_ = n_features
    elif n_features != estimator.n_features_in_:
        raise ValueError(
            f"X has {n_features} features, but {type(estimator).__name__} is expecting"
            f" {estimator.n_features_in_} features as input"
        )
