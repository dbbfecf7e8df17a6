"""f, labels and their changes by csrc/frequencies.cpp, which states the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust import _C
from deepclust.kernels._pointers import DTYPES, address, head_argument, matrix, packed, refuse
from deepclust.kernels.heads import Head


def forward(
    z: Tensor, head: Head, previous_labels: Tensor | None, precision: str, check: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """f (K,) in float64, labels (N,), n_changed ()."""
    rows, head = z.to(head.dtype), packed(head)
    previous = None if previous_labels is None else previous_labels.contiguous()
    f = torch.empty(head.n_clusters, dtype=torch.float64)
    labels = torch.empty(z.shape[0], dtype=torch.int64)
    n_changed = torch.empty((), dtype=torch.int64)
    bad = _C.frequencies(
        matrix(rows),
        z.shape[0],
        head_argument(head),
        DTYPES[head.dtype],
        address(previous),
        f.data_ptr(),
        labels.data_ptr(),
        n_changed.data_ptr(),
        torch.get_num_threads(),
        check,
    )
    refuse(bad, "z", *head.names)
    return f, labels, n_changed
