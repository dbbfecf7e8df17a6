"""What each row has: a label, a distance, an embedding."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepclust._files import give_back, picked
from deepclust.cluster._sources import Array, Source, as_tensor

BLOCK_ROWS = 1 << 18  # whose numbers are looked at together
BLOCK_ELEMENTS = 1 << 20  # of embeddings that are: 4 MB in float32

# Columns of rows that are not in memory are files from this size on.
MEMORY_BYTES = 64 << 20


class Column:
    """Numbers (N,), or rows of them (N, ...), in memory or in a temporary file without a name.

    The file is written and read with plain calls, or its pages are given back at once: touched
    pages of a map count as the process's memory. It is gone when nothing refers to it, or when the
    process ends, in whatever way.

    Args:
        n: N.
        dtype: Of the numbers.
        device: Where they are, or are taken from.
        row_shape: The shape of what each row has; () for a number.
        spill: Whether there is a file if they are more than MEMORY_BYTES.

    Attributes:
        shape: (N, *row_shape).
    """

    def __init__(
        self,
        n: int,
        dtype: torch.dtype,
        device: torch.device,
        row_shape: tuple[int, ...] = (),
        *,
        spill: bool,
    ) -> None:
        self.shape, self.dtype, self.device = (n, *row_shape), dtype, device
        self._row_bytes = math.prod(row_shape) * dtype.itemsize
        self._values: Tensor | None = None
        if spill and n * self._row_bytes > MEMORY_BYTES:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # as long as the column
            self._lock = Lock()  # a block may be read ahead while rows are picked
        else:
            self._values = torch.empty(self.shape, dtype=dtype, device=device)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def values(self) -> Values:
        """A tensor, where the numbers are in memory, else this column."""
        return self if self._values is None else self._values

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        if self._values is not None:
            return self._values[rows]
        if isinstance(rows, Tensor):
            return torch.from_numpy(picked(self._map, rows.cpu().numpy())).to(self.device)
        start, stop, _ = rows.indices(len(self))
        values = torch.empty(stop - start, *self.shape[1:], dtype=self.dtype)
        self.read(start, values.numpy())
        return values.to(self.device)

    def read(self, start: int, into: Array) -> None:
        """Fill an array (n, ...) with what rows have in the file, from this one on."""
        left = into.reshape(-1).view(np.uint8).data
        with self._lock:
            self._file.seek(start * self._row_bytes)
            while left:
                left = left[self._file.readinto(left) :]

    def __setitem__(self, rows: slice | Tensor, values: Tensor) -> None:
        if self._values is not None:
            self._values[rows] = values
            return
        if isinstance(rows, Tensor):  # which have been written before: the disk has room for them
            self._map[rows.cpu().numpy()] = values.cpu().numpy()
            give_back(self._map)
            return
        left = values.cpu().contiguous().numpy().reshape(-1).view(np.uint8).data
        try:
            with self._lock:
                self._file.seek(rows.start * self._row_bytes)
                while left:
                    left = left[self._file.write(left) :]
        except OSError as error:
            size = len(self) * self._row_bytes
            raise OSError(
                error.errno,
                f"{error.strerror}: the labels, distances and embeddings of {len(self):,} rows are"
                f" written there, here {size:,} bytes; TMPDIR names another folder",
                tempfile.gettempdir(),
            ) from error

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All numbers in order: (which, their values)."""
        for start in range(0, len(self), BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, len(self)))
            yield rows, self[rows]

    def counts(self, n_clusters: int) -> Tensor:
        """How often each label below n_clusters is among these."""
        counts = torch.zeros(n_clusters, dtype=torch.int64, device=self.device)
        for _, labels in self.blocks():
            counts += torch.bincount(labels, minlength=n_clusters)
        return counts

    def array(self) -> Array:
        """An array, or a read-only memory map of the file."""
        if self._values is not None:
            return self._values.cpu().numpy()
        return self._mapped("r")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.array(), dtype)

    @cached_property
    def _map(self) -> np.memmap[Any, Any]:
        return self._mapped("r+")

    def _mapped(self, mode: Any) -> np.memmap[Any, Any]:
        kind = torch.empty(0, dtype=self.dtype).numpy().dtype
        with self._lock:
            return np.memmap(self._file, kind, mode=mode, shape=self.shape)


# What each row has: the rows of a tensor, in memory, or of a column in a file.
Values = Tensor | Column


class Embeddings(Source):
    """Rows (N, D) that lie in the file of a column."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self.shape = (column.shape[0], column.shape[1])
        self.dtype = torch.empty(0, dtype=column.dtype).numpy().dtype

    def blocks(self, size: int) -> Iterator[Array]:
        n, buffers = self.shape[0], self._buffers(size)
        for number, start in enumerate(range(0, n, size)):
            block = buffers[number % 2][: n - start]
            self._column.read(start, block)
            yield block

    def take(self, rows: Array) -> Tensor:
        return self._column[torch.from_numpy(rows)]


def collected(n: int, parts: Iterable[tuple[slice, Tensor]], *, spill: bool) -> Column:
    """What is found for all n rows, part by part: (which rows, what they have)."""
    column: Column | None = None
    for rows, values in parts:
        if column is None:
            kind = (values.dtype, values.device, tuple(values.shape[1:]))
            column = Column(n, *kind, spill=spill)
        column[rows] = values
    assert column is not None
    return column


def in_blocks(values: Values) -> Iterator[tuple[slice, Tensor]]:
    """All rows in order: (which, what they have); an empty block where there are none.

    On the CPU they are cut by their width alone, so that sums have the same bits whatever rows lie
    in. A GPU is the busier the more it has at once.
    """
    n, width = len(values), math.prod(values.shape[1:])
    size = max(1, n if values.device.type == "cuda" else BLOCK_ELEMENTS // max(1, width))
    for start in range(0, max(n, 1), size):
        rows = slice(start, min(start + size, n))
        yield rows, values[rows]


def mapped(function: Callable[[Tensor], Tensor], values: Values) -> Values:
    """`function` of all rows, block by block."""
    parts = ((rows, function(some)) for rows, some in in_blocks(values))
    return collected(len(values), parts, spill=isinstance(values, Column)).values


def added(parts: Iterable[Tensor]) -> Tensor:
    """The sum of what blocks give, added in float64, in their type."""
    first, *others = parts
    total = first.double()
    for other in others:
        total = total + other
    return total.to(first.dtype)


def as_one(values: Values) -> Tensor:
    """One tensor, over a map of the file where they lie in one."""
    return as_tensor(values.array()) if isinstance(values, Column) else values
