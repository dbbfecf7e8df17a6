"""Several processes that share one set of rows, on torch.distributed.

Each process (a rank) runs the same program on its own rows; those of rank 0 come first, then those
of rank 1, and so on. Estimators take a `Shard` in the place of X:

    distributed.start()                                   # torchrun --nproc-per-node 4 program.py
    kmeans = KMeans(1000).fit(distributed.shard("big.npy"))
    kmeans.labels_                                        # of this rank's rows
    kmeans.cluster_centers_                               # the same in every process

What is found is that of one process with all rows, but for rounding. Numbers that decide something
are added in rank order, so that every rank has the same bits of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from deepclust import datasets

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Ranks", "Shard", "shard", "start"]

TIMEOUT = 600.0  # seconds: the slowest rank may read its rows from a disk


def start(timeout: float = TIMEOUT) -> Ranks:
    """Join the other processes that torchrun has started; without torchrun there are none.

    Sums of tensors on the CPU go over gloo, those on GPUs over NCCL. Each process takes the GPU of
    its place on its machine, where there is one, as "cuda".

    Args:
        timeout: Seconds that a rank waits for the others before it ends with an error.

    Returns:
        All processes, which hold no rows yet: `rank` is the number of this one, `size` theirs.

    Raises:
        RuntimeError: If the others do not come in that time.

    Example:
        >>> start().size
        1
    """
    if dist.is_available() and dist.is_torchelastic_launched() and not dist.is_initialized():
        place = int(os.environ["LOCAL_RANK"])
        if place < torch.cuda.device_count():
            torch.cuda.set_device(place)
        dist.init_process_group(timeout=timedelta(seconds=timeout))
    return Shard(np.empty((0, 1))).ranks()


class Shard:
    """The rows that this process holds of those that several processes share.

    Where torch.distributed has not been started, it is all rows.

    Args:
        rows: An array, memory map, tensor, sparse array or map-style Dataset, as estimators take
            them as X. There may be none of them: an array (0, D).
        group: The process group of those who share; by default all processes.

    Raises:
        TypeError: If rows are none of these.

    Example:
        >>> import numpy as np
        >>> from deepclust.cluster import KMeans
        >>> X = np.array([[0.0], [1.0], [9.0], [10.0]])
        >>> KMeans(n_clusters=2, random_state=0).fit(Shard(X)).labels_.tolist()
        [1, 1, 0, 0]
    """

    def __init__(self, rows: Any, group: dist.ProcessGroup | None = None) -> None:
        if not (hasattr(rows, "shape") or isinstance(rows, torch.utils.data.Dataset)):
            raise TypeError(
                f"rows: got {type(rows).__name__}; a Shard takes an array, memory map, tensor,"
                " sparse array or Dataset"
            )
        self.rows = rows
        self.group = group
        if group is None and dist.is_available() and dist.is_initialized():
            self.group = dist.group.WORLD

    def __len__(self) -> int:
        shape = getattr(self.rows, "shape", None)
        return len(self.rows) if shape is None else int(shape[0])

    def ranks(self) -> Ranks:
        """Who shares the rows, and how they are cut; all of them have to ask."""
        return Ranks(len(self), self.group)

    def gather(self, values: NDArray[Any]) -> NDArray[Any] | None:
        """What each rank has for its rows, such as labels, as one array in order, on rank 0.

        Args:
            values: One for each row of this rank (n, ...).

        Returns:
            The values (N, ...) on rank 0, None elsewhere.

        Example:
            >>> import numpy as np
            >>> Shard(np.zeros((2, 3))).gather(np.array([1, 0]))
            array([1, 0])
        """
        ranks = self.ranks()
        whole = ranks.gather(torch.from_numpy(np.ascontiguousarray(values)))
        return whole.numpy() if ranks.rank == 0 else None


def shard(source: Any, group: dist.ProcessGroup | None = None) -> Shard:
    """This process's part of rows that every process can read, cut evenly.

    Args:
        source: The path of a data set, as `datasets.load` takes it, or an array, memory map or
            sparse array. Of a `.npy` file or memory map each rank reads its own part alone.
        group: The process group of those who share; by default all processes.

    Returns:
        The part: rows from N rank / size to N (rank + 1) / size.

    Example:
        >>> import numpy as np
        >>> len(shard(np.zeros((5, 2))))
        5
    """
    rows = datasets.load(source).X if isinstance(source, (str, os.PathLike)) else source
    group = Shard(rows, group).group
    rank, size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    n = rows.shape[0]
    return Shard(rows[n * rank // size : n * (rank + 1) // size], group)


class Ranks:
    """The processes that share rows, and what they add up, compare and hand over.

    All ranks have to call the same functions in the same order. One process alone talks to nobody.

    Args:
        n: Rows that this rank holds.
        group: Its process group; None for one process alone.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
        start: The number of this rank's first row in the whole, and `stop` that after its last.
        total: N, the rows of all.
    """

    def __init__(self, n: int, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self._sizes: list[int] = self.objects(n)
        self.start = sum(self._sizes[: self.rank])
        self.stop = self.start + n
        self.total = sum(self._sizes)

    def own(self, rows: slice) -> slice:
        """Those among consecutive rows of the whole that are here, by their numbers here."""
        first, last = (min(max(row, self.start), self.stop) for row in (rows.start, rows.stop))
        return slice(first - self.start, last - self.start)

    def all(self, values: Tensor) -> list[Tensor]:
        """The values of each rank, which are of one shape and type, in rank order."""
        if self.group is None:
            return [values]
        sent = self._sendable(values)
        found = [torch.empty_like(sent) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(found, sent, group=self.group)
        return [part.to(values.device) for part in found]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks in float64, added in rank order: every rank has the same bits."""
        first, *others = self.all(values.double())
        for other in others:
            first = first + other
        return first

    def add(self, values: Tensor) -> Tensor:
        """The sum over all ranks in the type of the values, which may be overwritten by it."""
        if self.group is None:
            return values
        sent = self._sendable(values)
        with self._waiting():
            dist.all_reduce(sent, group=self.group)
        return sent.to(values.device)

    def objects(self, value: Any) -> list[Any]:
        """The small picklable values of each rank, in rank order."""
        if self.group is None:
            return [value]
        found = [None] * self.size
        with self._waiting():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def first(self, values: Tensor) -> Tensor:
        """The values of rank 0, on every rank, where they may overwrite these."""
        if self.group is None:
            return values
        sent = self._sendable(values)
        with self._waiting():
            dist.broadcast(sent, group=self.group, group_src=0)
        return sent.to(values.device)

    def gather(self, values: Tensor) -> Tensor:
        """What each rank has for its rows (n, ...), in order, on rank 0; elsewhere nothing new."""
        if self.group is None:
            return values
        sent = self._sendable(values)
        with self._waiting():
            if self.rank > 0:
                if len(sent):
                    dist.send(sent, group=self.group, group_dst=0)
                return values
            parts = [sent]
            for rank in range(1, self.size):
                part = sent.new_empty(self._sizes[rank], *sent.shape[1:])
                if len(part):
                    dist.recv(part, group=self.group, group_src=rank)
                parts.append(part)
        return torch.cat(parts).to(values.device)

    def pick(self, numbers: Tensor, take: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows by their numbers (m,) in the whole, on every rank; `take` gives this rank's own."""
        if self.group is None:
            return take(numbers)
        own = (numbers >= self.start) & (numbers < self.stop)
        held = take(numbers[own] - self.start)
        picked = held.new_zeros(len(numbers), *held.shape[1:])
        picked[own] = held
        return self.add(picked)  # each row and zeros

    def agree(self, **facts: Any) -> None:
        """Require that each of these is the same on all ranks.

        Raises:
            ValueError: On all of them, naming the first that is not.
        """
        if self.group is None:
            return
        first, *others = self.objects({name: repr(value) for name, value in facts.items()})
        for rank, other in enumerate(others, 1):
            for name in sorted(first.keys() | other.keys()):
                if first.get(name) != other.get(name):
                    raise ValueError(
                        f"Shard: {name} is {first.get(name)} on rank 0, but {other.get(name)} on"
                        f" rank {rank}; it takes the same on all ranks"
                    )

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in this block on one rank fails on all, which talk to nobody within it."""
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        failures = self.objects(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise RuntimeError(f"distributed: rank {rank} of {self.size} failed: {failure}")

    def _sendable(self, values: Tensor) -> Tensor:
        """The values where the group's backend takes them."""
        config = str(dist.get_backend_config(self.group))  # such as "cpu:gloo,cuda:nccl"
        backends = dict(part.split(":") for part in config.split(","))
        device = values.device
        if backends.get(device.type) in (None, "gloo"):
            device = torch.device("cuda" if "cpu" not in backends else "cpu")
        return values.detach().to(device).contiguous()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            first_line = str(error).partition("\n")[0]
            raise RuntimeError(
                f"distributed: rank {self.rank} of {self.size} lost another one, which has ended or"
                f" was silent for longer than the time-out of distributed.start: {first_line}"
            ) from error
