"""What rows lie in: each kind is read block by block, in order, and by number."""

from __future__ import annotations

import mmap
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, TypeVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from deepclust._files import parts, picked

Array = np.ndarray[Any, Any]
T = TypeVar("T")


class Source(ABC):
    """Rows (N, D) of any real type.

    Attributes:
        shape: (N, D); N is -1 as long as only a pass over the rows can tell.
        dtype: NumPy's or torch's.
        picks: Whether `take` reads only what is asked for.
    """

    shape: tuple[int, int]
    dtype: Any
    picks = True
    _kept: list[Array] | None = None

    @abstractmethod
    def blocks(self, size: int) -> Iterator[Array | Tensor]:
        """All rows in order, `size` at a time, of which the last block may have fewer.

        What a block holds is good until the one after the next is asked for.
        """

    def _buffers(self, size: int) -> list[Array]:
        """Two for blocks (size, D): one is filled while the caller works on the other.

        They stay for all passes, of which there is one at a time: memory that the threads of all
        passes ask for and let go would not soon be the system's again.
        """
        if self._kept is None or len(self._kept[0]) != size:
            self._kept = [np.empty((size, self.shape[1]), self.dtype) for _ in range(2)]
        return self._kept

    @abstractmethod
    def take(self, rows: Array) -> Array | Tensor:
        """The rows of these numbers, (n, D)."""


class Dense(Source):
    """A tensor."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.shape, self.dtype = (x.shape[0], x.shape[1]), x.dtype

    def blocks(self, size: int) -> Iterator[Tensor]:
        yield from self.x.split(size)

    def take(self, rows: Array) -> Tensor:
        return self.x.index_select(0, torch.from_numpy(rows).to(self.x.device))


class Picked(Source):
    """Rows of a tensor by number, copied when they are read.

    Attributes:
        x: The tensor.
        numbers: Of the rows (N,); others may take their place.
    """

    def __init__(self, x: Tensor, numbers: Tensor) -> None:
        self.x, self.numbers = x, numbers
        self.shape, self.dtype = (len(numbers), x.shape[1]), x.dtype

    def blocks(self, size: int) -> Iterator[Tensor]:
        for numbers in self.numbers.split(size):
            yield self.x.index_select(0, numbers)

    def take(self, rows: Array) -> Tensor:
        return self.x.index_select(0, self.numbers[torch.from_numpy(rows).to(self.x.device)])


class Slices(Source):
    """A sparse array, made dense by slices, or a memory map that read calls cannot follow."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.shape, self.dtype = source.shape, source.dtype

    def blocks(self, size: int) -> Iterator[Array]:
        for start in range(0, self.shape[0], size):
            yield self._dense(slice(start, start + size))

    def take(self, rows: Array) -> Array:
        return self._dense(rows)

    def _dense(self, rows: slice | Array) -> Array:
        if is_sparse(self._source):
            dense: Array = self._source[rows].toarray()
            return dense
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        return picked(self._source, rows)


class File(Source):
    """A file that holds the rows one after the other from some byte on, such as a `.npy`.

    It is read with read calls: touched pages of a map count as the process's memory, those of the
    system's cache do not.
    """

    def __init__(
        self, path: str, offset: int, shape: tuple[int, int], dtype: np.dtype[Any]
    ) -> None:
        self._path, self._offset = path, offset
        self.shape, self.dtype = shape, dtype
        self._row_bytes = shape[1] * dtype.itemsize

    def blocks(self, size: int) -> Iterator[Array]:
        n, buffers = self.shape[0], self._buffers(size)
        with open(self._path, "rb", buffering=0) as file:
            file.seek(self._offset)
            for number, start in enumerate(range(0, n, size)):
                block = buffers[number % 2][: n - start]
                self._read(file, start, block.reshape(-1).view(np.uint8).data)
                yield block

    def take(self, rows: Array) -> Array:
        size = self._row_bytes
        taken = np.empty((len(rows), self.shape[1]), self.dtype)
        into = taken.reshape(-1).view(np.uint8).data
        ordered = np.argsort(rows, kind="stable").tolist()
        places = (self._offset + rows * size).tolist()
        with open(self._path, "rb", buffering=0) as file:
            if len(rows) and (np.diff(rows) == 1).all():
                file.seek(places[0])
                self._read(file, int(rows[0]), into)
                return taken
            if hasattr(os, "posix_fadvise"):
                # All are asked for at once, so that the disk works on many of them at a time.
                for i in ordered:
                    os.posix_fadvise(file.fileno(), places[i], size, os.POSIX_FADV_WILLNEED)
            for i in ordered:
                file.seek(places[i])
                self._read(file, int(rows[i]), into[i * size : i * size + size])
        return taken

    def _read(self, file: IO[bytes], row: int, left: memoryview) -> None:
        """Fill `left` from where the file stands, which is the beginning of this row."""
        size = len(left)
        while left:
            n = file.readinto(left)  # type: ignore[attr-defined]  # a raw file has it
            if not n:
                row += (size - len(left)) // self._row_bytes
                raise ValueError(f"{self._path}: it ends before row {row} of {self.shape[0]} does")
            left = left[n:]


class Items(Source):
    """A map-style Dataset, whose items are rows, or tuples that begin with one."""

    dtype = np.dtype(np.float32)

    def __init__(self, items: Any) -> None:
        self._items = items
        self.shape = (len(items), len(_row(items[0])))

    def blocks(self, size: int) -> Iterator[Tensor]:
        for start in range(0, self.shape[0], size):
            yield self._rows(range(start, min(start + size, self.shape[0])))

    def take(self, rows: Array) -> Tensor:
        return self._rows(rows.tolist())

    def _rows(self, numbers: Sequence[int]) -> Tensor:
        none = torch.empty(0, self.shape[1])
        return torch.stack([_row(self._items[number]) for number in numbers]) if numbers else none


def _row(item: Any) -> Tensor:
    if isinstance(item, (tuple, list)):
        item = item[0]
    return torch.as_tensor(item, dtype=torch.float32).flatten()


class Blocks(Source):
    """An iterable of blocks (n, D) of any n, arrays or tensors, that starts anew with each iter().

    It is cut again into blocks of the size that is asked for, so that its own cut changes no bit of
    what is computed.
    """

    picks = False

    def __init__(self, blocks: Iterable[Any]) -> None:
        if iter(blocks) is blocks:
            raise ValueError(
                f"X: got a {type(blocks).__name__}, which is read once; it takes an iterable of"
                " blocks that starts anew with each iter(), such as a list"
            )
        self._blocks = blocks
        first = next(iter(blocks), None)
        if first is None:
            raise ValueError("X: got no block; it takes at least one, (n, D)")
        first = _block(0, first)
        self.shape, self.dtype = (-1, first.shape[1]), first.dtype

    def blocks(self, size: int) -> Iterator[Array]:
        buffers = self._buffers(size)
        turn = filled = 0
        for _, whole in self._checked():
            for block in parts(whole):
                while len(block):
                    some = block[: size - filled]
                    buffers[turn][filled : filled + len(some)] = some
                    block, filled = block[len(some) :], filled + len(some)
                    if filled == size:
                        yield buffers[turn]
                        turn, filled = 1 - turn, 0
        if filled:
            yield buffers[turn][:filled]

    def take(self, rows: Array) -> Array:
        taken = np.empty((len(rows), self.shape[1]), self.dtype)
        last = rows.max(initial=-1)
        for start, block in self._checked():
            within = (rows >= start) & (rows < start + len(block))
            taken[within] = picked(block, rows[within] - start)
            if last < start + len(block):
                break
        return taken

    def _checked(self) -> Iterator[tuple[int, Array]]:
        """The blocks, each with the number of its first row."""
        start = 0
        for number, given in enumerate(self._blocks):
            block = _block(number, given)
            if block.shape[1] != self.shape[1]:
                raise ValueError(
                    f"X: block {number} has {block.shape[1]} columns, the first {self.shape[1]}"
                )
            if block.dtype != self.dtype:
                raise ValueError(f"X: block {number} is of {block.dtype}, the first {self.dtype}")
            yield start, block
            start += len(block)
        if self.shape[0] not in (-1, start):
            raise ValueError(
                f"X: the blocks had {self.shape[0]} rows before, {start} now; it takes an iterable"
                " that starts anew with each iter()"
            )
        self.shape = (start, self.shape[1])


def _block(number: int, given: Any) -> Array:
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    elif is_sparse(given):
        given = given.toarray()
    block: Array = given if isinstance(given, np.ndarray) else np.asarray(given)
    if block.ndim != 2 or block.shape[1] == 0:
        raise ValueError(f"X: block {number} has shape {block.shape}; it takes blocks (n, D)")
    if block.dtype.kind not in "biuf":
        raise ValueError(f"X: block {number} is of {block.dtype}; it takes real numbers")
    return block


def is_blocks(X: Any) -> bool:
    """Whether X is an iterable of blocks; a list is one if its items have two dimensions."""
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and getattr(X[0], "ndim", 0) == 2
    return isinstance(X, Iterable) and not (hasattr(X, "shape") or hasattr(X, "__array__"))


def is_sparse(source: Any) -> bool:
    """Whether this is one of scipy's sparse arrays."""
    return bool(sparse.issparse(source))


def as_tensor(array: Array) -> Tensor:
    """The array as a tensor on the same memory."""
    with warnings.catch_warnings():
        # A read-only map stays read-only: nothing here writes to the data.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(array)


def converted(rows: Array | Tensor, dtype: torch.dtype) -> Tensor:
    """Rows as a source gives them, in the wanted type."""
    if isinstance(rows, np.ndarray):
        rows = as_tensor(rows.astype(rows.dtype.newbyteorder("="), copy=False))
    return rows.to(dtype)


def source_of(X: Any) -> Source:
    """What rows X (N, D) lie in: a tensor, array, memory map, sparse array or Dataset."""
    if isinstance(X, Source):
        return X
    if isinstance(X, Tensor):
        return Dense(X)
    if isinstance(X, np.memmap):
        return _file_of(X) or Slices(X)
    if is_sparse(X):
        return Slices(X)
    return Dense(as_tensor(X)) if isinstance(X, np.ndarray) else Items(X)


def _file_of(X: np.memmap[Any, Any]) -> File | None:
    """The part of a file that a map shows, if it shows rows as they lie there."""
    mapped = X._mmap  # type: ignore[attr-defined]  # where the map's first byte is, nothing else tells
    written = X.mode == "c"  # what is written to such a map is not in the file
    if mapped is None or X.filename is None or written or not X.flags.c_contiguous:
        return None
    begin = X.offset - X.offset % mmap.ALLOCATIONGRANULARITY
    offset = begin + X.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    path = str(X.filename)
    if not os.path.isfile(path) or os.path.getsize(path) < offset + X.nbytes:
        return None  # another one has its name by now
    return File(path, offset, (X.shape[0], X.shape[1]), X.dtype)


def ahead(blocks: Iterator[T]) -> Generator[T]:
    """The same, each made in a thread while the caller works on the one before.

    The thread ends with the loop, however that ends; its errors are raised in the caller.
    """
    with ThreadPoolExecutor(1, "deepclust-reader") as reader:
        following = reader.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = reader.submit(next, blocks, None)
            yield block
