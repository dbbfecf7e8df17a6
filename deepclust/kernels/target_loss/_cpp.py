"""The loss and its gradients by csrc/target_loss.cpp, which states the mathematics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepclust import _C
from deepclust.kernels._pointers import DTYPES, head_argument, matrix, packed, refuse
from deepclust.kernels.heads import Head
from deepclust.kernels.target_loss.snapshot import Snapshot


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
    dtype, head = head.dtype, packed(head)
    rows = z.to(dtype)
    if isinstance(target, Tensor):
        p = target.to(dtype)
        argument: tuple[Any, ...] = (matrix(p),)
        named = {"target": target}
    else:
        named = {}
        old_z, old_head = target.z.to(dtype), packed(target.head.to(dtype))
        bias = target.bias.to(dtype)
        argument = (matrix(old_z), head_argument(old_head), bias.data_ptr(), target.power)
    loss = torch.empty((), dtype=dtype)
    dz = torch.empty(z.shape if needs_grad else 0, dtype=dtype)
    dparams = [torch.empty_like(param) for param in head.params] if needs_grad else []
    bad = _C.target_loss(
        matrix(rows),
        z.shape[0],
        head_argument(head),
        argument,
        kind == "kl",
        scale,
        DTYPES[dtype],
        loss.data_ptr(),
        dz.data_ptr() if needs_grad else 0,
        [gradient.data_ptr() for gradient in dparams],
        torch.get_num_threads(),
        check,
    )
    refuse(bad, "z", *head.names, **named)
    return loss, dz.to(z.dtype), dparams
