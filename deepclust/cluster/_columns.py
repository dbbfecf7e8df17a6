"""One number for each row: labels, or distances."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 1 << 18  # that are looked at together

# Columns of rows that are not in memory are files from this size on.
MEMORY_BYTES = 64 << 20


class Column:
    """Numbers (N,), in memory or in a temporary file without a name.

    The file is written and read with plain calls: touched pages of a map count as the process's
    memory. It is gone when nothing refers to it, or when the process ends, in whatever way.

    Args:
        n: N.
        dtype: Of the numbers.
        device: Where they are, or are taken from.
        spill: Whether there is a file if they are more than MEMORY_BYTES.
    """

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device, *, spill: bool) -> None:
        self._n, self._dtype, self._device = n, dtype, device
        self._itemsize = dtype.itemsize
        self._values: Tensor | None = None
        if spill and n * self._itemsize > MEMORY_BYTES:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # as long as the column
        else:
            self._values = torch.empty(n, dtype=dtype, device=device)

    def __getitem__(self, rows: slice) -> Tensor:
        if self._values is not None:
            return self._values[rows]
        values = torch.empty(rows.stop - rows.start, dtype=self._dtype)
        self._file.seek(rows.start * self._itemsize)
        left = values.numpy().view(np.uint8).data
        while left:
            left = left[self._file.readinto(left) :]
        return values.to(self._device)

    def __setitem__(self, rows: slice, values: Tensor) -> None:
        if self._values is not None:
            self._values[rows] = values
            return
        left = values.cpu().contiguous().numpy().view(np.uint8).data
        try:
            self._file.seek(rows.start * self._itemsize)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            size = self._n * self._itemsize
            raise OSError(
                error.errno,
                f"{error.strerror}: the labels and distances of {self._n:,} rows are written there,"
                f" {size:,} bytes each; TMPDIR names another folder",
                tempfile.gettempdir(),
            ) from error

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All numbers in order: (which, their values)."""
        for start in range(0, self._n, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, self._n))
            yield rows, self[rows]

    def counts(self, n_clusters: int) -> Tensor:
        """How often each label below n_clusters is among these."""
        counts = torch.zeros(n_clusters, dtype=torch.int64, device=self._device)
        for _, labels in self.blocks():
            counts += torch.bincount(labels, minlength=n_clusters)
        return counts

    def array(self) -> np.ndarray[Any, Any]:
        """An array, or a read-only memory map of the file."""
        if self._values is not None:
            return self._values.cpu().numpy()
        return np.memmap(self._file, self._values_type(), mode="r", shape=(self._n,))

    def _values_type(self) -> np.dtype[Any]:
        return torch.empty(0, dtype=self._dtype).numpy().dtype
