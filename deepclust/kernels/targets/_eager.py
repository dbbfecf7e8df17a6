"""p_ij = (q_ij (u_j / f_j)^(1/2))^power, divided by its row sum: the target from a stored q.

DEC     power 2, u uniform     q^2 / f
DEPICT  power 1                q (u / f)^(1/2)
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels._blocks import row_blocks
from deepclust.kernels._checks import check_nonnegative


def forward(
    q: Tensor, frequencies: Tensor | None, prior: Tensor | None, power: float, check: bool
) -> Tensor:
    """p (N, K)."""
    if check:
        check_nonnegative("q", q)
    if frequencies is None:
        frequencies = torch.zeros(q.shape[1], dtype=torch.float64, device=q.device)
        for rows in row_blocks(q.shape[0], q.shape[1]):
            frequencies += q[rows].sum(0, dtype=torch.float64)
    tiny = torch.finfo(q.dtype).tiny
    factor = frequencies.double().clamp_min(tiny).rsqrt()
    if prior is not None:
        factor = factor * prior.double().sqrt()
    factor = factor.to(q.dtype)
    p = torch.empty_like(q, memory_format=torch.contiguous_format)
    for rows in row_blocks(q.shape[0], q.shape[1]):
        # q_ij <= f_j keeps this within 1; divided by the row's largest, no power underflows.
        ratio = q[rows] * factor
        weight = (ratio / ratio.amax(1, keepdim=True).clamp_min(tiny)).pow(power)
        p[rows] = weight / weight.sum(1, keepdim=True).clamp_min(tiny)
    return p
