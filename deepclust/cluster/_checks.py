"""Checks of the parameters of estimators and parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from deepclust.cluster._trainer import Epochs, Length, Updates
from deepclust.kernels._checks import is_number


def as_length(name: str, value: Any, least: int) -> Length:
    """A number of updates, or of passes over the data, checked."""
    if isinstance(value, (Updates, Epochs)):
        check_integer(name, value.n, least)
        return value
    check_integer(name, value, least, " of updates, or Epochs(n)")
    return Updates(int(value))


def check_integer(name: str, value: Any, least: int, what: str = "") -> None:
    """Refuse what is no integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}: got {value!r}; it takes an integer of at least {least}{what}")


def check_above_zero(name: str, value: Any, others: str = "") -> None:
    """Refuse what is no finite number above 0."""
    if not (is_number(value) and 0 < value < float("inf")):
        raise ValueError(f"{name}: got {value!r}; it takes {others}a number above 0")


def check_at_least_zero(name: str, value: Any) -> None:
    """Refuse what is no finite number of at least 0."""
    if not (is_number(value) and 0 <= value < float("inf")):
        raise ValueError(f"{name}: got {value!r}; it takes a number of at least 0")


def either(names: Any) -> str:
    """The names that a parameter takes, for an error."""
    return " or ".join(repr(name) for name in names)


def as_device(value: Any) -> torch.device:
    """A device that is here, checked."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: got {value!r}; it takes 'cpu', 'cuda' or 'cuda:0'") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: got {value!r}, but torch finds no such GPU here")
    return device


def check_out(out: Any, shape: tuple[int, ...]) -> None:
    """Refuse what numbers (N, D) of this shape cannot be written to."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: got {type(out).__name__}; it takes an array or memory map {shape}")
    if out.dtype not in (np.float32, np.float64):
        raise ValueError(f"out: got {out.dtype}; it takes float32 or float64")
    if out.shape != shape:
        raise ValueError(f"out: got shape {out.shape}; it takes {shape}")
    if not out.flags.writeable:
        raise ValueError(
            "out: got a read-only array; it takes one that may be written to, such as a map opened"
            " with mode='r+'"
        )


def check_n_clusters(n_clusters: Any, n: int) -> None:
    """Require 1 <= K <= N."""
    check_integer("n_clusters", n_clusters, 1)
    if n_clusters > n:
        raise ValueError(f"n_clusters: got {n_clusters}, more than the {n} rows of X")
