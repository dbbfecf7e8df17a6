"""KL(P || Q) or cross-entropy between a target and the assignment, in plain torch, without N x K.

    t     = power * s_old + bias             p = softmax(t)       (or p is given)
    KL_i  = sum_j p_ij (t_ij - s_ij) - lse(t_i) + lse(s_i)
    CE_i  = lse(s_i) sum_j p_ij - sum_j p_ij s_ij
    ds_ij = q_ij sum_l p_il - p_ij           then the head's pullback to dz and the parameters

The forward computes the gradients too, one block of rows at a time; nothing is kept but them.
The loss is summed in float64.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from deepclust.kernels._autograd import recomputed
from deepclust.kernels._blocks import block_sizes, row_blocks
from deepclust.kernels._checks import check_nonnegative
from deepclust.kernels.heads import Head, check_values, head_of
from deepclust.kernels.target_loss.snapshot import Snapshot, probabilities


def forward(
    z: Tensor,
    head: Head,
    target: Tensor | Snapshot,
    kind: str,
    scale: float,
    needs_grad: bool,
    precision: str,
    check: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The loss (), dz (N, D) and the gradients to the head's parameters, all times `scale`."""
    if check:
        _check(z, head, target)
    loss = torch.zeros((), dtype=torch.float64, device=z.device)
    dz = (
        torch.empty_like(z, memory_format=torch.contiguous_format) if needs_grad else z.new_empty(0)
    )
    dparams = [torch.zeros_like(param) for param in head.params] if needs_grad else []
    for rows in row_blocks(z.shape[0], max(z.shape[1], head.n_clusters)):
        z_rows = z[rows].to(head.dtype)
        s = head.scores(z_rows)
        p, entropy = target_rows(target, rows, head.dtype, kind)
        mass = p.sum(1, keepdim=True)
        lse = torch.logsumexp(s, 1, keepdim=True)
        loss += (entropy + (lse * mass).squeeze(1) - (p * s).sum(1)).sum(dtype=torch.float64)
        if needs_grad:
            ds = scale * (torch.exp(s - lse) * mass - p)
            dz[rows], gradients = head.pullback(z_rows, ds)
            for total, gradient in zip(dparams, gradients, strict=True):
                total += gradient
    return scale * loss, dz, dparams


def differentiable(
    z: Tensor, head: Head, target: Tensor | Snapshot, kind: str, scale: float, check: bool
) -> Tensor:
    """The loss with torch's own derivative, to any order: the witness of all the others."""
    if check:
        _check(z, head, target)

    def block(rows: slice, z: Tensor, *params: Tensor) -> Tensor:
        s = head_of(head.form, params).scores(z.to(head.dtype))
        with torch.no_grad():
            p, entropy = target_rows(target, rows, head.dtype, kind)
        kl = entropy + p.sum(1) * torch.logsumexp(s, 1) - (p * s).sum(1)
        return kl.sum(dtype=torch.float64)

    sizes = block_sizes(z.shape[0], max(z.shape[1], head.n_clusters))
    if len(sizes) == 1:
        return scale * block(slice(None), z, *head.params)
    loss = torch.zeros((), dtype=torch.float64, device=z.device)
    start = 0
    for part in z.split(sizes):
        rows = slice(start, start := start + len(part))
        # N x K numbers would be kept for backward; each block is computed again there instead.
        loss = loss + recomputed(partial(block, rows), part, *head.params)
    return scale * loss


def _check(z: Tensor, head: Head, target: Tensor | Snapshot) -> None:
    check_values(z, head)
    if isinstance(target, Tensor):
        check_nonnegative("target", target)


def target_rows(
    target: Tensor | Snapshot, rows: slice, dtype: torch.dtype, kind: str
) -> tuple[Tensor, Tensor]:
    """p (rows, K), and sum_j p_ij log p_ij (rows,), which the cross-entropy leaves out."""
    if isinstance(target, Tensor):
        p = target[rows].to(dtype)
        entropy = torch.special.xlogy(p, p).sum(1) if kind == "kl" else p.new_zeros(p.shape[0])
        return p, entropy
    t = target.logits(rows, dtype)
    p = probabilities(t, target.power)
    if kind == "ce" or math.isinf(target.power):
        return p, p.new_zeros(p.shape[0])
    return p, (p * t).sum(1) - torch.logsumexp(t, 1)
