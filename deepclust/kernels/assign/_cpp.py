"""q and its gradients by csrc/assign.cpp, which states the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust import _C
from deepclust.kernels._pointers import DTYPES, head_argument, matrix, packed, refuse
from deepclust.kernels.heads import Head


def forward(z: Tensor, head: Head, precision: str, check: bool) -> Tensor:
    """q (N, K)."""
    rows, head = z.to(head.dtype), packed(head)
    q = torch.empty(z.shape[0], head.n_clusters, dtype=head.dtype)
    bad = _C.assign_forward(
        matrix(rows),
        z.shape[0],
        head_argument(head),
        DTYPES[head.dtype],
        q.data_ptr(),
        torch.get_num_threads(),
        check,
    )
    refuse(bad, "z", *head.names)
    return q.to(z.dtype)


def backward(
    dq: Tensor, q: Tensor, z: Tensor, head: Head, precision: str
) -> tuple[Tensor, list[Tensor]]:
    """dz (N, D) and the gradients to the head's parameters."""
    dtype, head = head.dtype, packed(head)
    rows, q, dq = z.to(dtype), q.to(dtype), dq.to(dtype)
    dz = torch.empty(z.shape, dtype=dtype)
    dparams = [torch.empty_like(param) for param in head.params]
    _C.assign_backward(
        matrix(dq),
        matrix(q),
        matrix(rows),
        z.shape[0],
        head_argument(head),
        DTYPES[dtype],
        dz.data_ptr(),
        [gradient.data_ptr() for gradient in dparams],
        torch.get_num_threads(),
    )
    return dz.to(z.dtype), dparams
