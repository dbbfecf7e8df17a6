"""p_ij = q_ij^power (u_j / f_j)^(power/2), divided by its row sum: the target from a stored q.

DEC     power 2, u uniform     q^2 / f
DEPICT  power 1                q (u / f)^(1/2)
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels._blocks import row_blocks


def forward(q: Tensor, frequencies: Tensor | None, prior: Tensor | None, power: float) -> Tensor:
    """P (N, K)."""
    if frequencies is None:
        frequencies = torch.zeros(q.shape[1], dtype=torch.float64, device=q.device)
        for rows in row_blocks(q.shape[0], q.shape[1]):
            frequencies += q[rows].sum(0, dtype=torch.float64)
    ratio = 1 / frequencies.clamp_min(torch.finfo(q.dtype).tiny)
    if prior is not None:
        ratio = ratio * prior
    # The row sum cancels any common factor, and a largest factor of 1 keeps float32 in its range.
    factor = (ratio / ratio.max()).pow(power / 2).to(q.dtype)
    p = torch.empty_like(q, memory_format=torch.contiguous_format)
    tiny = torch.finfo(q.dtype).tiny
    for rows in row_blocks(q.shape[0], q.shape[1]):
        # Scaled by the row's largest q, so that the power of a small q does not underflow.
        scaled = q[rows] / q[rows].amax(1, keepdim=True).clamp_min(tiny)
        weighted = scaled.pow(power) * factor
        torch.div(weighted, weighted.sum(1, keepdim=True).clamp_min(tiny), out=p[rows])
    return p
