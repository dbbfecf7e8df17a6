"""Steps that are captured once and replayed: what is static, what is copied, when to capture again.

A replay runs the kernels of the captured call on the addresses of the captured call, and no Python.
So whatever changes from one call to the next has to lie in memory that stays: inputs are copied
into buffers of their own, tensors of the run's state are given an address for good, and a number
of Python's counts as constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from deepclust.functional import Snapshot

# Runs a function and gives: what runs it again, and its outputs, which each such run overwrites.
Capture = Callable[[Callable[[], Any]], tuple[Callable[[], Any], Any]]

# What a step may take: a number and the bounds of a slice become tensors.
Input = Tensor | float | slice

WARM_UPS = 3  # runs before a capture, in which kernels are compiled and libraries set up


class Graphs:
    """The captured steps of a stage, one for each name and shape of inputs.

    Args:
        capture: How to capture: `cuda_capture`, with its device.
        device: Where inputs are kept.
        buffers: Tensors that a step may change, beside its outputs: a capture leaves them as they
            were, so that the first replay is the first call.
    """

    def __init__(
        self, capture: Capture, device: torch.device, buffers: Iterable[Tensor] = ()
    ) -> None:
        self._capture, self._device, self._buffers = capture, device, list(buffers)
        self._steps: dict[Any, tuple[dict[str, Tensor], Callable[[], Any], Any]] = {}
        self._held: dict[str, Tensor | Snapshot] = {}

    @torch.no_grad()
    def hold(self, state: dict[str, Any]) -> None:
        """Give the tensors and Snapshots of `state` addresses that stay.

        A value that is new is copied to where the one before it was, and replaced in `state` by
        that. Where it does not fit there, no captured step is valid any more.
        """
        for name, value in state.items():
            held = self._held.get(name)
            if value is held or not isinstance(value, (Tensor, Snapshot)):
                continue
            if held is None or not _copy_into(held, value):
                if held is not None:
                    self._steps.clear()
                held = _clone(value)
            state[name] = self._held[name] = held

    def __call__(
        self, name: str, step: Callable[[dict[str, Tensor]], Any], inputs: dict[str, Input]
    ) -> Any:
        """step(inputs), by a replay if it was captured for inputs of these shapes.

        Args:
            name: What tells this step from others.
            step: A function of tensors, without host reads, that gives tensors in lists, tuples and
                dicts. It is called to be captured, and must do the same each time.
            inputs: By name: tensors, numbers (given to the step in float64) and slices (given to it
                as the numbers of their elements).

        Returns:
            The outputs, which the next call for these shapes overwrites.
        """
        key = (name, *((field, _form(value)) for field, value in sorted(inputs.items())))
        if key not in self._steps:
            self._steps[key] = self._captured(step, inputs)
        buffers, replay, outputs = self._steps[key]
        for field, value in inputs.items():
            _fill(buffers[field], value)
        replay()
        return outputs

    def _captured(
        self, step: Callable[[dict[str, Tensor]], Any], inputs: dict[str, Input]
    ) -> tuple[dict[str, Tensor], Callable[[], Any], Any]:
        static = {field: _buffer(value, self._device) for field, value in inputs.items()}

        def run() -> Any:
            # Without their history: it would keep the captured call's own tensors alive.
            return _pytree.tree_map_only(Tensor, Tensor.detach, step(static))

        before = [buffer.clone() for buffer in self._buffers]
        # What the capture draws at random, the first replay draws again.
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            replay, outputs = self._capture(run)
        with torch.no_grad():
            for buffer, value in zip(self._buffers, before, strict=True):
                buffer.copy_(value)
        return static, replay, outputs


def cuda_capture(
    function: Callable[[], Any], device: torch.device
) -> tuple[Callable[[], Any], Any]:
    """Capture a function in a CUDA graph; it is run before, as such a capture needs."""
    with torch.cuda.device(device):
        present = torch.cuda.current_stream()
        stream = torch.cuda.Stream()
        stream.wait_stream(present)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function()
        present.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            outputs = function()
    return graph.replay, outputs


def _form(value: Input) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return value.stop - value.start if isinstance(value, slice) else None


def _buffer(value: Input, device: torch.device) -> Tensor:
    """A tensor of its own with this value."""
    if isinstance(value, slice):
        return torch.arange(value.start, value.stop, device=device)
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    return torch.full((), value, dtype=torch.float64, device=device)


def _fill(buffer: Tensor, value: Input) -> None:
    """Write the value; numbers go to the device as arguments of a kernel, without a copy."""
    if isinstance(value, slice):
        torch.arange(value.start, value.stop, out=buffer)
    elif isinstance(value, Tensor):
        buffer.copy_(value)
    else:
        buffer.fill_(value)


def _tensors(value: Tensor | Snapshot) -> list[Tensor]:
    return value.tensors if isinstance(value, Snapshot) else [value]


def _kind(value: Tensor | Snapshot) -> Any:
    form = value.form if isinstance(value, Snapshot) else None
    return form, [(tensor.shape, tensor.dtype, tensor.device) for tensor in _tensors(value)]


def _copy_into(held: Tensor | Snapshot, value: Tensor | Snapshot) -> bool:
    if _kind(held) != _kind(value):
        return False
    for old, new in zip(_tensors(held), _tensors(value), strict=True):
        old.copy_(new)
    return True


def _clone(value: Tensor | Snapshot) -> Tensor | Snapshot:
    if isinstance(value, Snapshot):
        tensors = [tensor.clone() for tensor in value.tensors]
        return Snapshot.from_state_dict({"form": value.form, "tensors": tensors})
    return value.clone()
