"""What the compiled kernels take in the place of tensors: addresses, strides and names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepclust.kernels import _checks
from deepclust.kernels.heads import Head, StudentT

Matrix = tuple[int, int, int]
HeadArgument = tuple[str, float, int, int, list[int]]

DTYPES = {torch.float32: "float32", torch.float64: "float64"}

# csrc/matrix.h numbers the inputs: the points, then up to three parameters, then these.
TARGET, LABELS, BEFORE = 4, 5, 6


def matrix(tensor: Tensor) -> Matrix:
    """(address, row stride, column stride) of a tensor (N, D)."""
    rows, columns = tensor.stride()
    return tensor.data_ptr(), rows, columns


def address(vector: Tensor | None) -> int:
    """Where a contiguous tensor's numbers are; 0 for none."""
    return 0 if vector is None else vector.data_ptr()


def packed(head: Head) -> Head:
    """The same head with its numbers side by side, as the kernels read parameters."""
    if all(param.is_contiguous() for param in head.params):
        return head
    return head.with_params([param.contiguous() for param in head.params])


def head_argument(head: Head) -> HeadArgument:
    """A packed head, which has to outlive the call."""
    nu = head.nu if isinstance(head, StudentT) else 1.0
    k, d = head.params[0].shape
    return head.kind, nu, k, d, [param.data_ptr() for param in head.params]


def refuse(bad: tuple[int, int] | None, *names: str, **given: Any) -> None:
    """Raise the error for the row that a kernel refused, if it refused one.

    `names` are the points' and the parameters'; a target or labels are looked at again.
    """
    if bad is None:
        return
    number, row = bad
    if number == TARGET:
        _checks.check_nonnegative("target", given["target"])
    for name, asked in (("labels", LABELS), ("before", BEFORE)):
        if number == asked:
            _checks.bad_label(name, int(given[name][row]), given["n_clusters"])
    _checks.bad_row(names[number], row)
