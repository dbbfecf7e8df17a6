"""q_ij = softmax_j(s_ij), in plain torch.

    forward    q (N, K)
    backward   ds_ij = q_ij (dq_ij - sum_l q_il dq_il), then the head's pullback

Backward keeps z, the head and q; it holds a block of rows at a time beyond its results.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from deepclust.kernels._autograd import recomputed
from deepclust.kernels._blocks import block_sizes, row_blocks
from deepclust.kernels.heads import Head, check_values, head_of


def forward(z: Tensor, head: Head, precision: str, check: bool) -> Tensor:
    """q (N, K)."""
    if check:
        check_values(z, head)
    q = z.new_empty(z.shape[0], head.n_clusters)
    for rows in row_blocks(z.shape[0], max(z.shape[1], head.n_clusters)):
        q[rows] = torch.softmax(head.scores(z[rows].to(head.dtype)), 1)
    return q


def backward(
    dq: Tensor, q: Tensor, z: Tensor, head: Head, precision: str
) -> tuple[Tensor, list[Tensor]]:
    """dz (N, D) and the gradients to the head's parameters."""
    dz = torch.empty_like(z, memory_format=torch.contiguous_format)
    dparams = [
        torch.zeros_like(param, memory_format=torch.contiguous_format) for param in head.params
    ]
    for rows in row_blocks(z.shape[0], max(z.shape[1], head.n_clusters)):
        q_rows, dq_rows = q[rows].to(head.dtype), dq[rows].to(head.dtype)
        ds = q_rows * (dq_rows - (q_rows * dq_rows).sum(1, keepdim=True))
        dz[rows], gradients = head.pullback(z[rows].to(head.dtype), ds)
        for total, gradient in zip(dparams, gradients, strict=True):
            total += gradient
    return dz, dparams


def differentiable(z: Tensor, head: Head, check: bool) -> Tensor:
    """q (N, K) with torch's own derivative, to any order: the witness of all the others."""
    if check:
        check_values(z, head)
    block = partial(_block, head.form)
    sizes = block_sizes(z.shape[0], max(z.shape[1], head.n_clusters))
    if len(sizes) == 1:
        return block(z, *head.params)
    # What a block keeps for its backward is several times its q: compute it again there instead.
    return torch.cat([recomputed(block, rows, *head.params) for rows in z.split(sizes)])


def _block(form: str, z: Tensor, *params: Tensor) -> Tensor:
    head = head_of(form, params)
    return torch.softmax(head.scores(z.to(head.dtype)), 1).to(z.dtype)
