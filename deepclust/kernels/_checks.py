"""Checks that all primitives share: an error names the argument, what it got and what it takes."""

from __future__ import annotations

import numbers

import numpy as np
import torch
from torch import Tensor

from deepclust.kernels._autograd import transforming

HALF = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, torch.float64, *HALF)


def check_matrix(name: str, value: object, n_columns: int | None = None) -> None:
    """Require a floating-point tensor (N, D), with D as given."""
    if not isinstance(value, Tensor):
        raise no_tensor(name, value, "a torch.Tensor (N, D)")
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name}: got {value.dtype}; it takes a floating-point tensor")
    if value.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; it takes two dimensions, (N, D)")
    if value.shape[1] == 0:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; it takes at least one column")
    if n_columns is not None and value.shape[1] != n_columns:
        raise ValueError(
            f"{name}: got {value.shape[1]} columns (shape {tuple(value.shape)});"
            f" it takes {n_columns}"
        )


def check_clusters(name: str, value: object, n_columns: int | None = None) -> None:
    """Require a floating-point tensor (K, D) with K at least 1."""
    check_matrix(name, value, n_columns)
    assert isinstance(value, Tensor)
    if value.shape[0] == 0:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; it takes at least one cluster")


def check_vector(name: str, value: object, length: int) -> None:
    """Require a floating-point tensor (length,)."""
    if not isinstance(value, Tensor):
        raise no_tensor(name, value, f"a torch.Tensor ({length},)")
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name}: got {value.dtype}; it takes a floating-point tensor")
    if value.ndim != 1 or value.shape[0] != length:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; it takes ({length},)")


def check_probabilities(name: str, value: object, shape: tuple[int, int] | None = None) -> None:
    """Require a floating-point tensor (N, K), K at least 1, of `shape` if that is given."""
    check_matrix(name, value)
    assert isinstance(value, Tensor)
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; it takes {tuple(shape)}")


def check_labels(name: str, value: object, n: int) -> None:
    """Require an int64 tensor (n,)."""
    if not isinstance(value, Tensor):
        raise no_tensor(name, value, f"an int64 torch.Tensor ({n},)")
    if value.dtype != torch.int64:
        raise TypeError(f"{name}: got {value.dtype}; it takes torch.int64")
    if value.ndim != 1 or value.shape[0] != n:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; it takes ({n},)")


def no_tensor(name: str, value: object, takes: str) -> TypeError:
    """The error for what is no tensor; of an array, how to make one."""
    makes = "from_numpy" if isinstance(value, np.ndarray) else "from_dlpack"
    hint = f": torch.{makes} makes one over its memory" if hasattr(value, "__dlpack__") else ""
    return TypeError(f"{name}: got {type(value).__name__}; it takes {takes}{hint}")


def check_together(**tensors: Tensor | None) -> None:
    """Require one device, and float64 nowhere or everywhere (half types go with float32)."""
    check_same_device(**tensors)
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first_name, first = given[0]
    for name, tensor in given[1:]:
        if (tensor.dtype == torch.float64) != (first.dtype == torch.float64):
            raise TypeError(f"{name}: got {tensor.dtype}; {first_name} has {first.dtype}")


def check_same_device(**tensors: Tensor | None) -> None:
    """Require one device."""
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first_name, first = given[0]
    for name, tensor in given[1:]:
        if tensor.device != first.device:
            raise ValueError(
                f"{name}: got device {tensor.device}; {first_name} is on {first.device}"
            )


def check_label_range(name: str, value: Tensor, n_clusters: int) -> None:
    """Require labels from 0 to K - 1."""
    if value.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(value))
    if low < 0 or high >= n_clusters:
        bad_label(name, low if low < 0 else high, n_clusters)


def bad_label(name: str, label: int, n_clusters: int) -> None:
    """Raise the error for a label out of range."""
    raise ValueError(f"{name}: got {label}; it takes labels from 0 to {n_clusters - 1}")


def check_reduction(reduction: str) -> None:
    """Require "mean" or "sum"."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: got {reduction!r}; it takes 'mean' or 'sum'")


def scale_of(z: Tensor, reduction: str) -> float:
    """What a sum over the rows of z is multiplied by; a mean over no rows is 0."""
    return 1.0 / max(z.shape[0], 1) if reduction == "mean" else 1.0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums and products are computed in: at least float32."""
    return torch.float32 if dtype in HALF else dtype


def check_finite(name: str, value: Tensor, first: int = 0) -> None:
    """Require finite values; the error names the first bad row, numbered from `first`.

    Reads the tensor once.
    """
    # A sum is NaN or Inf if any term is, and costs no boolean copy; only a hit looks closer.
    if value.numel() == 0 or bool(torch.isfinite(value.sum())):
        return
    finite = torch.isfinite(value)
    if bool(finite.all()):
        return  # finite values whose sum overflowed
    bad = ~finite.reshape(value.shape[0], -1).all(1) if value.ndim else ~finite.reshape(1)
    bad_row(name, first + int(bad.nonzero()[0]))


def check_nonnegative(name: str, value: Tensor) -> None:
    """Require finite values of at least 0; the error names the first bad row."""
    check_finite(name, value)
    if value.numel() and bool(value.min() < 0):
        row = int((value < 0).reshape(value.shape[0], -1).any(1).nonzero()[0])
        raise ValueError(f"{name}: row {row} has a negative value; it takes values of at least 0")


def bad_row(name: str, row: int) -> None:
    """Raise the error for a row with NaN or Inf."""
    raise ValueError(f"{name}: row {row} has NaN or Inf; it takes finite values")


def wants_check(check: bool, tensor: Tensor) -> bool:
    """Whether to look at values: on CUDA that would wait for the device, so never there.

    Nor within torch.func's transforms, where there may be none to look at.
    """
    return check and tensor.device.type == "cpu" and not transforming()


def is_number(value: object) -> bool:
    """Whether a parameter is a real number, and not True or False."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
