"""The one training loop: stages, phases, refreshes, stopping, history, checkpoints.

A method states its choices as stages and phases (below) and owns its networks; everything that
happens in time happens here.

    for each stage:   begin; then until its length, or until stop gives a reason:
        refresh when `every` says so, from update 0 on; callbacks; stop is asked
        one update: each phase in order, `repeats` times: batch, losses, backward, optimiser, after

Every position between two updates can be written to a checkpoint from which a run goes on to the
same end, bit for bit: the method, the optimisers, run.state, the generators and the order of
batches.
"""

from __future__ import annotations

import signal
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from deepclust import _files
from deepclust.cluster._columns import Column, Values, as_one, in_blocks
from deepclust.cluster._data import Rows
from deepclust.cluster._graphs import Capture, Graphs
from deepclust.cluster._half import HalfWeights
from deepclust.cluster._order import generator, shared_order
from deepclust.distributed import Shard
from deepclust.functional import Head, Snapshot
from deepclust.losses import Schedule, weight_at

CHECKPOINT_SECONDS = 60.0  # between two checkpoints of a run that nobody interrupts
ASK_EVERY = 10  # updates between two questions of several processes whether one is interrupted


@dataclass(frozen=True)
class Updates:
    """A length in updates."""

    n: int


@dataclass(frozen=True)
class Epochs:
    """A length in passes over the data."""

    n: int


Length = Updates | Epochs


@dataclass
class Batch:
    """What one step sees.

    Attributes:
        x: Rows (n, D).
        idx: Their numbers (n,) among the rows of this process, on the device; a slice where they
            are consecutive, unless the step is captured.
        y: Their labels (n,), -1 where there is none.
        view: Another view of the rows (n, D), from Stage.augment.
        companions: The rows (n, m, D) that Stage.companions names for them.
        companion_weights: What it gives with them (n, m).
        n_shared: Rows of the batch in all processes, where several share the data.
    """

    x: Tensor
    idx: slice | Tensor
    y: Tensor | None = None
    view: Tensor | None = None
    companions: Tensor | None = None
    companion_weights: Tensor | None = None
    n_shared: int | None = None


Losses = Callable[["Run", Batch], tuple[dict[str, Tensor], Any]]


@dataclass
class Phase:
    """One gradient step of an update: some parameters, an optimiser, some losses.

    Attributes:
        name: Names the optimiser in checkpoints.
        parameters: The parameters (or groups) that this phase moves.
        optimizer: Makes the optimiser from them.
        losses: (run, batch) -> (losses by name, anything that `after` needs); no host reads. In a
            captured step it is called once for each size of batch: only the batch, the parameters,
            buffers, and the tensors and Snapshots in run.state may then differ between updates.
        weights: The scheduled weight of each loss, 1 where none is given.
        schedule: Makes a learning-rate scheduler of the optimiser and the run, which steps with
            every update.
        after: (run, batch, aux): in-place changes after the step, without gradients.
        repeats: Steps in one update.
        batch: "same" for the batch of the update, "fresh" for the next one.
    """

    name: str
    parameters: Callable[[], Any]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    losses: Losses
    weights: dict[str, Schedule] = field(default_factory=dict)
    schedule: Callable[[torch.optim.Optimizer, Run], Any] | None = None
    after: Callable[[Run, Batch, Any], None] | None = None
    repeats: int = 1
    batch: Literal["same", "fresh"] = "same"


@dataclass
class Stage:
    """A stretch of training.

    Attributes:
        name: Prefix of its series in the history.
        phases: Each update runs all of them in order; a stage without phases only begins.
        length: How long it lasts at most.
        begin: Called once, before the optimisers are made: k-means, whitening.
        refresh: Full passes over the data between updates.
        every: When to refresh, from update 0 on; None for never.
        stop: Asked after each refresh: why the stage is over, or None.
        order: Batches from a new permutation for each pass, or in the order of the rows.
        augment: (x, generator) -> another view of the rows.
        companions: (run, idx) -> the numbers (n, m) of rows that go with the batch, and their
            weights (n, m).
    """

    name: str
    phases: tuple[Phase, ...] = ()
    length: Length = Updates(0)
    begin: Callable[[Run], None] | None = None
    refresh: Callable[[Run], None] | None = None
    every: Length | None = None
    stop: Callable[[Run], str | None] | None = None
    order: Literal["shuffle", "sequential"] = "shuffle"
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    companions: Callable[[Run, slice | Tensor], tuple[Tensor, Tensor]] | None = None


class Method(torch.nn.Module, ABC):
    """Networks, head and buffers of a deep clustering method; no loops."""

    # Tensors in run.state with a row for each row of the data, of which each process has its own;
    # Snapshots are such too.
    row_state: tuple[str, ...] = ()

    def why_alone(self) -> str | None:
        """Why several processes cannot train it; None where they can."""
        return f"{type(self).__name__} takes all rows in one process"

    @abstractmethod
    def stages(self) -> list[Stage]:
        """What is trained, in order."""

    @abstractmethod
    def head(self) -> Head:
        """The head that defines predict, predict_proba and labels_."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (n, D) of rows, clean."""


Callback = Callable[["Run"], None]


@dataclass
class Settings:
    """What a run needs beside the method and the data."""

    batch_size: int = 256
    seed: int = 0
    callbacks: Sequence[Callback] = ()
    checkpoint: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)  # a checkpoint of another is refused
    y: Tensor | None = None
    autocast: torch.dtype | None = None
    capture: Capture | None = None  # captures the phases' steps, which are then replayed
    progress: bool = False


class Run:
    """A fit under way: what refreshes, hooks and callbacks see.

    Attributes:
        method: The method that is trained.
        stage: The present stage, and `stage_index` its number.
        update: Updates done in this stage, and `epoch` passes over the data.
        total_updates: Updates done in all stages.
        refreshed: Whether this moment follows a refresh (else it is the end of a stage).
        state: Results of refreshes by name: tensors, Snapshots, numbers; kept in checkpoints. What
            has a row for each row of the data, of which the data are not in memory, is a Column in
            a file past some size. Where steps are captured, what replaces a tensor is written into
            it.
        history: Series by "stage/name": pairs of an update and a value.
        reasons: Why each finished stage ended, by its name.
    """

    def __init__(self, method: Method, rows: Rows, settings: Settings) -> None:
        self.method, self.settings = method, settings
        self._rows, self._ranks = rows, rows.ranks
        self.state: dict[str, Any] = {}
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.reasons: dict[str, str] = {}
        self._stages = method.stages()
        self.stage_index, self.update, self.epoch, self.total_updates = 0, 0, 0, 0
        self.refreshed = False
        self._begun = False
        self._permutation: Tensor | None = None
        self._moved_permutation: Tensor | None = None  # the same on the device
        self._places: Tensor | None = None  # of its rows in the order of all processes' rows
        self._position = 0
        self._generators: dict[str, torch.Generator] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._schedulers: dict[str, Any] = {}
        self._pending: dict[str, tuple[Tensor, int]] = {}
        self._graphs: Graphs | None = None
        self._half_weights = HalfWeights(method, ())
        # States of torch's global generators while the loop does not run; others draw from them.
        self._torch_rng: dict[str, Tensor] | None = None
        self._saved_at = time.monotonic()

    # What hooks call.

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return self._stages[self.stage_index]

    @property
    def device(self) -> torch.device:
        """Where rows and networks are."""
        return self._rows.device

    @property
    def updates_per_epoch(self) -> int:
        """Batches in one pass over the data."""
        return -(-len(self) // self.settings.batch_size)

    @property
    def n_updates(self) -> int:
        """Updates that the present stage lasts at most."""
        return self.in_updates(self.stage.length)

    def __len__(self) -> int:
        return self._ranks.total

    def take(self, idx: slice | Tensor) -> Tensor:
        """Rows (n, D) by number in the whole data, in float32 on the device."""
        return self._rows.pick(idx)

    def pick(self, values: Values, numbers: Tensor) -> Tensor:
        """What there is for rows (m,) by number in the whole data, of values (n, ...) for rows."""
        return self._ranks.pick(numbers, values.__getitem__)

    def gather(self, values: Values) -> Tensor | None:
        """Values (N, ...) for all rows, in the first process, of values (n, ...) for those here."""
        whole = self._gathered(values)
        return whole if self._ranks.rank == 0 else None

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows of this process in order: (which, their values, good until the next)."""
        return self._rows.blocks()

    def collect(self, parts: Iterable[tuple[slice, Tensor]]) -> Values:
        """What is found for all rows of this process, part by part: (which rows, what they have).

        It is a tensor, or, past some size, where the data are not in memory, a Column in a file.
        """
        return self._rows.collect(parts).values

    def shared(self, values: Values) -> Any:
        """Values (n, D) for this process's rows as an X: a Shard where processes share data."""
        return Shard(values, self._ranks.group) if self._rows.is_shared else values

    def map(self, function: Callable[[Tensor], Tensor], out: Any = None) -> Any:
        """`function` of this process's rows, block by block, in evaluation mode, without gradients.

        `out` may be an array or memory map (N, ...) that is filled; by default it is as `collect`
        has it.
        """
        found = map_rows(self.method, self._rows, function, out, self.settings.autocast)
        return found.values if isinstance(found, Column) else found

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in float64."""
        return self._ranks.sum(values)

    def rng(self, name: str) -> torch.Generator:
        """A generator of this run's own for each purpose; its state is kept in checkpoints."""
        if name not in self._generators:
            self._generators[name] = generator(self.settings.seed, zlib.crc32(name.encode()))
        return self._generators[name]

    def seed(self, name: str) -> int:
        """A seed drawn from rng(name), for libraries that take one."""
        return int(torch.randint(2**31 - 1, (1,), generator=self.rng(name)))

    def log(self, name: str, value: Tensor | float) -> None:
        """Add a value to the series "stage/name"; values between two readings are averaged."""
        tensor = torch.as_tensor(value, dtype=torch.float64).detach()
        total, count = self._pending.get(name, (0.0, 0))
        self._pending[name] = (total + tensor, count + 1)

    def forget(self, parameters: Iterable[Tensor]) -> None:
        """Set what the optimisers keep of these parameters (moments) to 0, as it is at first."""
        for parameter in parameters:
            for optimizer in self._optimizers.values():
                # Not dropped: fused SGD takes moments of all parameters or of none.
                for moment in optimizer.state.get(parameter, {}).values():
                    moment.zero_()

    # The loop.

    def train(self) -> None:
        """Run all stages to their end, from wherever this run is."""
        # Dropout draws from torch's global generators: the run has its own state of them.
        devices = [self.device] if self.device.type == "cuda" else []
        if self.settings.y is not None:
            self.settings.y = self.settings.y.to(self.device)  # it is indexed there
        with torch.random.fork_rng(devices), _Interrupt() as interrupt:
            self._restore_torch_rng()
            try:
                while self.stage_index < len(self._stages):
                    self._pause_if(interrupt)
                    self._train_stage(interrupt)
                    self._leave_stage()
            finally:
                self._torch_rng = self._present_torch_rng()
        # Labels after the last stage come from it.
        self.stage_index = len(self._stages) - 1

    def _leave_stage(self) -> None:
        self.stage_index += 1
        self.update, self.epoch, self._begun, self.refreshed = 0, 0, False, False
        self._permutation, self._position = None, 0
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)  # captured gradients keep a graph's memory
        self._optimizers, self._schedulers, self._graphs = {}, {}, None
        self._half_weights = HalfWeights(self.method, ())

    def _train_stage(self, interrupt: _Interrupt) -> None:
        stage = self.stage
        if not self._begun:
            if stage.begin is not None:
                self.method.eval()
                with torch.no_grad():
                    stage.begin(self)
            self._begun = True
        if not self._optimizers:
            self._make_optimizers()
        if self.settings.capture is not None:
            self._graphs = Graphs(self.settings.capture, self.device, self.method.buffers())
        total = self.n_updates
        read_every = max(self.updates_per_epoch, 10)
        reason = f"length of {total} updates"
        with tqdm(
            total=total,
            initial=self.update,
            desc=stage.name,
            unit="update",
            disable=not (self.settings.progress and total and self._ranks.rank == 0),
        ) as bar:
            while True:
                if not self.refreshed and self._refresh_is_due():
                    why = self._refresh(interrupt)
                    if why is not None:
                        reason = why
                        break
                    self._pause_if(interrupt)
                if self.update >= total:
                    break
                self._step()
                bar.update()
                if self.update % read_every == 0:
                    self._read_log()
                    self._show(bar)
                    if self._any(time.monotonic() - self._saved_at > CHECKPOINT_SECONDS):
                        self.save_checkpoint()
                if self._ranks.size == 1 or self.update % ASK_EVERY == 0:
                    self._pause_if(interrupt)
        self._read_log()
        self.reasons[stage.name] = reason
        if not self.refreshed:
            self._call_back(interrupt)

    def _refresh_is_due(self) -> bool:
        stage = self.stage
        if stage.refresh is None or stage.every is None:
            return False
        # The last update is followed by a refresh too, so that what is reported belongs to it.
        at_end = self.update == self.n_updates
        return self.update % self.in_updates(stage.every) == 0 or at_end

    def _refresh(self, interrupt: _Interrupt) -> str | None:
        stage = self.stage
        assert stage.refresh is not None
        self._read_log()
        self.method.eval()
        with torch.no_grad():
            stage.refresh(self)
            why = stage.stop(self) if stage.stop is not None else None
        self.refreshed = True
        self._call_back(interrupt)
        self._read_log()
        return why

    def _call_back(self, interrupt: _Interrupt) -> None:
        self.method.eval()
        for callback in self.settings.callbacks:
            try:
                callback(self)
            except KeyboardInterrupt:
                interrupt.asked = True

    def _step(self) -> None:
        stage = self.stage
        self.method.train()
        batch = None
        for phase in stage.phases:
            for _ in range(phase.repeats):
                if batch is None or phase.batch == "fresh":
                    batch = self._next_batch()
                self._step_phase(phase, batch)
        self.update += 1
        self.total_updates += 1
        self.refreshed = False

    def _step_phase(self, phase: Phase, batch: Batch) -> None:
        weights = {
            name: weight_at(weight, self.update, name) for name, weight in phase.weights.items()
        }
        if self._graphs is None:
            losses, aux = self._gradients(phase, batch, weights)
        else:
            losses, aux = self._replayed_gradients(self._graphs, phase, batch, weights)
        if batch.n_shared is not None:
            losses = self._shared_gradients(phase, batch, losses)
        for name, value in losses.items():
            self.log(name, value)
        # Not in the graph, where the learning rate would be fixed: fused, it is a launch or two.
        self._half_weights.step(self._optimizers[phase.name])
        if phase.name in self._schedulers:
            self._schedulers[phase.name].step()
        if phase.after is not None:
            with torch.no_grad(), _autocast(self.device, self.settings.autocast):
                phase.after(self, batch, aux)

    def _gradients(
        self, phase: Phase, batch: Batch, weights: Mapping[str, float | Tensor]
    ) -> tuple[dict[str, Tensor], Any]:
        """The losses and aux; gradients of the weighted sum of the losses go to the parameters."""
        with _autocast(self.device, self.settings.autocast), self._half_weights.in_use():
            losses, aux = phase.losses(self, batch)
        loss = torch.zeros((), device=self.device)
        for name, value in losses.items():
            weight = weights.get(name, 1.0)
            if isinstance(weight, Tensor):
                weight = weight.to(value.dtype)  # as a number would be
            loss = loss + weight * value
        self._optimizers[phase.name].zero_grad(set_to_none=True)
        # Only into this phase's parameters: a critic's loss passes through the encoder too.
        loss.backward(inputs=self._half_weights.inputs(self._parameters(phase)))
        return losses, aux

    @torch.no_grad()
    def _shared_gradients(
        self, phase: Phase, batch: Batch, losses: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The losses of the whole batch; gradients and losses are added in one all-reduce.

        They are means over rows: that of the whole is the sum of the parts' by their shares.
        """
        assert batch.n_shared is not None
        inputs = self._half_weights.inputs(self._parameters(phase))
        parts = [parameter.grad for parameter in inputs if parameter.grad is not None]
        parts += [value.detach() for value in losses.values()]
        flat = torch.cat([part.flatten().float() for part in parts])
        if len(batch.x):
            flat *= len(batch.x) / batch.n_shared
        else:
            flat.zero_()  # a mean over no rows may be NaN
        pieces = self._ranks.add(flat).split([part.numel() for part in parts])
        n = len(parts) - len(losses)
        for part, piece in zip(parts[:n], pieces[:n], strict=True):
            part.copy_(piece.view(part.shape))
        return {name: piece.squeeze() for name, piece in zip(losses, pieces[n:], strict=True)}

    def _replayed_gradients(
        self, graphs: Graphs, phase: Phase, batch: Batch, weights: dict[str, float]
    ) -> tuple[dict[str, Tensor], Any]:
        """The same, captured when it is first called for batches of this size."""
        fields = {name: value for name, value in vars(batch).items() if value is not None}
        parameters = self._parameters(phase)

        def step(inputs: dict[str, Tensor]) -> Any:
            static_fields: dict[str, Any] = {name: inputs[name] for name in fields}
            static = Batch(**static_fields)
            losses, aux = self._gradients(
                phase, static, {name: inputs[f"weight of {name}"] for name in weights}
            )
            return losses, aux, [p.grad for p in parameters]

        graphs.hold(self.state)
        scalars = {f"weight of {name}": weight for name, weight in weights.items()}
        losses, aux, gradients = graphs(phase.name, step, {**fields, **scalars})
        # Another batch size, or phase, may have left the parameters with gradients of its own.
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return losses, aux

    def _parameters(self, phase: Phase) -> list[Tensor]:
        groups = self._optimizers[phase.name].param_groups
        return [parameter for group in groups for parameter in group["params"]]

    def _next_batch(self) -> Batch:
        stage, n = self.stage, len(self)
        if self._position >= n:
            self._position, self._permutation = 0, None
            self.epoch += 1
        which = slice(self._position, min(self._position + self.settings.batch_size, n))
        self._position = which.stop
        idx: slice | Tensor
        numbers: slice | Tensor
        if stage.order == "sequential":
            idx = numbers = self._ranks.own(which)
        else:
            if self._permutation is None:
                self._permute()
            assert self._permutation is not None
            if self._moved_permutation is None:
                # Once a pass: moving the numbers of each batch would hold up the host each time.
                self._moved_permutation = self._permutation.to(self.device, non_blocking=True)
                if self.device.type == "cuda":
                    self._moved_permutation = self._moved_permutation.long()  # here, not each time
            places = which
            if self._places is not None:
                ends = torch.tensor([which.start, which.stop])
                places = slice(*torch.searchsorted(self._places, ends).tolist())
            idx = self._moved_permutation[places].long()
            numbers = idx if self._rows.on_device else self._permutation[places].long()
        batch = Batch(self._rows.take(numbers), idx)
        if self._ranks.size > 1:
            batch.n_shared = which.stop - which.start
        if self.settings.y is not None:
            batch.y = self.settings.y[idx]
        if stage.augment is not None:
            batch.view = stage.augment(batch.x, self.rng("augment"))
        if stage.companions is not None:
            numbers, batch.companion_weights = stage.companions(self, idx)
            batch.companions = self.take(numbers.flatten()).unflatten(0, numbers.shape)
        return batch

    def _permute(self) -> None:
        """The order of this process's rows in the present pass."""
        # The one before goes first: the two need not be held side by side.
        self._permutation = self._moved_permutation = None
        if self._rows.is_shared:
            seed = (self.settings.seed, self.stage_index, self.epoch)
            self._places, self._permutation = shared_order(self._ranks, *seed)
        else:
            # Half the memory, and the same order.
            kind = torch.int32 if len(self) < 2**31 else torch.int64
            self._permutation = torch.randperm(len(self), generator=self.rng("batches"), dtype=kind)

    def _make_optimizers(self) -> None:
        for phase in self.stage.phases:
            optimizer = phase.optimizer(phase.parameters())
            self._optimizers[phase.name] = optimizer
            if phase.schedule is not None:
                self._schedulers[phase.name] = phase.schedule(optimizer, self)
        if self.settings.autocast == torch.bfloat16 and self.settings.capture is None:
            self._half_weights = HalfWeights(self.method, self._optimizers.values())

    def in_updates(self, length: Length) -> int:
        return length.n if isinstance(length, Updates) else length.n * self.updates_per_epoch

    def _read_log(self) -> None:
        for name, (total, count) in self._pending.items():
            value = float(total) / count
            self.history.setdefault(f"{self.stage.name}/{name}", []).append((self.update, value))
            if not np.isfinite(value):
                raise RuntimeError(
                    f"{self.stage.name}/{name} is {value} at update {self.update}: the training has"
                    " diverged; try a smaller learning rate, and look at the scale of X"
                )
        self._pending = {}

    def _show(self, bar: Any) -> None:
        prefix = f"{self.stage.name}/"
        last = {
            name.removeprefix(prefix): f"{series[-1][1]:.4g}"
            for name, series in self.history.items()
            if name.startswith(prefix)
        }
        bar.set_postfix(last, refresh=False)

    # Checkpoints.

    def _pause_if(self, interrupt: _Interrupt) -> None:
        if self._any(interrupt.asked):
            self.save_checkpoint()
            raise KeyboardInterrupt

    def _any(self, asked: bool) -> bool:
        """Whether this is so in any process; all of them ask at the same update."""
        return asked if self._ranks.size == 1 else bool(self.sum(torch.tensor(float(asked))))

    def save_checkpoint(self) -> None:
        """Write the whole run to settings.checkpoint, atomically; without a path, do nothing.

        Several processes do so together, and the first one writes.
        """
        self._saved_at = time.monotonic()
        if self.settings.checkpoint is not None:
            tree = self.state_dict()
            if self._ranks.rank == 0:
                _files.save_tree(self.settings.checkpoint, tree, kind="checkpoint")

    def state_dict(self) -> dict[str, Any]:
        """The run as a tree of tensors and plain values; in the first process, that of all rows."""
        return {
            "identity": self.settings.identity,
            "data": self._rows.fingerprint(),
            "stage_index": self.stage_index,
            "update": self.update,
            "epoch": self.epoch,
            "total_updates": self.total_updates,
            "begun": self._begun,
            "refreshed": self.refreshed,
            # What several processes share is made anew from the seed, whoever they are then.
            "permutation": None if self._rows.is_shared else self._permutation,
            "position": self._position,
            "method": dict(self.method.state_dict()),
            "optimizers": {name: o.state_dict() for name, o in self._optimizers.items()},
            "schedulers": {name: s.state_dict() for name, s in self._schedulers.items()},
            "state": {name: self._to_tree(name, value) for name, value in self.state.items()},
            "generators": {name: g.get_state() for name, g in self._generators.items()},
            "torch_rng": self._torch_rng or self._present_torch_rng(),
            "pending": {name: [total, count] for name, (total, count) in self._pending.items()},
            "history": self.history,
            "reasons": self.reasons,
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Put the run where `tree` left it.

        Raises:
            ValueError: If it is the checkpoint of other data or other parameters.
        """
        _compare("data", tree["data"], self._rows.fingerprint())
        _compare("parameters", tree["identity"], self.settings.identity)
        for name in ("stage_index", "update", "epoch", "total_updates", "refreshed"):
            setattr(self, name, tree[name])
        self.history, self.reasons = tree["history"], tree["reasons"]
        self._begun, self._permutation = tree["begun"], tree["permutation"]
        self._moved_permutation, self._position = None, tree["position"]
        self.method.load_state_dict(tree["method"])
        self.state = {name: self._from_tree(name, value) for name, value in tree["state"].items()}
        for name, state in tree["generators"].items():
            self.rng(name).set_state(state)
        if self._begun:
            self._make_optimizers()
            for name, optimizer in self._optimizers.items():
                optimizer.load_state_dict(tree["optimizers"][name])
            for name, scheduler in self._schedulers.items():
                scheduler.load_state_dict(tree["schedulers"][name])
        self._pending = {name: (total, count) for name, (total, count) in tree["pending"].items()}
        self._torch_rng = tree["torch_rng"]

    def _to_tree(self, name: str, value: Any) -> Any:
        if isinstance(value, Snapshot):
            tensors = [self._gathered(value.z), *value.tensors[1:]]
            return {"__snapshot__": {"form": value.form, "tensors": tensors}}
        return self._gathered(value) if name in self.method.row_state else value

    def _from_tree(self, name: str, value: Any) -> Any:
        if isinstance(value, dict) and "__snapshot__" in value:
            state = value["__snapshot__"]
            z, *others = state["tensors"]
            tensors = [self._part(z), *(tensor.to(self.device) for tensor in others)]
            return Snapshot.from_state_dict({**state, "tensors": tensors})
        if name in self.method.row_state:
            return self._part(value)
        return value.to(self.device) if isinstance(value, Tensor) else value

    def _gathered(self, values: Values) -> Tensor:
        """Values (N, ...) for all rows, in the first process; elsewhere nothing new."""
        return self._ranks.gather(as_one(values))

    def _part(self, values: Tensor) -> Values:
        """What belongs to this process's rows, of values (N, ...) for all rows."""
        own = values[self._ranks.start : self._ranks.stop]
        return self.collect((rows, some.to(self.device)) for rows, some in in_blocks(own))

    def _present_torch_rng(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _restore_torch_rng(self) -> None:
        torch.manual_seed(self.settings.seed)
        if self._torch_rng is not None:
            torch.set_rng_state(self._torch_rng["cpu"])
            # A run may go on elsewhere than where it began.
            if "cuda" in self._torch_rng and self.device.type == "cuda":
                torch.cuda.set_rng_state(self._torch_rng["cuda"], self.device)
        self._torch_rng = None
        if self._ranks.rank:
            # Dropout and views of each process are its own; those of the first are in checkpoints.
            own = (self.settings.seed, self._ranks.rank, self.total_updates)
            torch.manual_seed(generator(*own, 0).initial_seed())
            self._generators["augment"] = generator(*own, 1)


def map_rows(
    method: torch.nn.Module,
    rows: Rows,
    function: Callable[[Tensor], Tensor],
    out: Any = None,
    autocast: torch.dtype | None = None,
) -> Any:
    """`function` of all rows, block by block, in evaluation mode and without gradients.

    It fills `out`, an array, memory map or tensor, or a Column that is made.
    """

    def parts() -> Iterator[tuple[slice, Tensor]]:
        for which, x in rows.blocks():
            values = function(x)
            widened = autocast is not None and values.is_floating_point()
            yield which, values.float() if widened else values

    training = method.training
    method.eval()
    with torch.no_grad(), _autocast(rows.device, autocast):
        if out is None:
            out = rows.collect(parts())
        else:
            for which, values in parts():
                out[which] = values if isinstance(out, Tensor) else values.cpu().numpy()
                if isinstance(out, np.ndarray):
                    _files.give_back(out)
    method.train(training)
    return out


def _autocast(device: torch.device, kind: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, kind, enabled=kind is not None)


class _Interrupt:
    """Ctrl-C asks the loop to stop between two updates; a second one stops it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _compare(what: str, saved: dict[str, Any], present: dict[str, Any]) -> None:
    for name in sorted(saved.keys() | present.keys()):
        if saved.get(name) != present.get(name):
            raise ValueError(
                f"the checkpoint is of a run with other {what}: {name} was {saved.get(name)!r}"
                f" and is {present.get(name)!r} now"
            )
