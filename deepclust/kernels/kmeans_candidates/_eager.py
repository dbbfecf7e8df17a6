"""sq_dist_ci = min(nearest_i, ||x_i - m_c||^2), potentials_c = sum_i w_i sq_dist_ci, in torch.

By direct differences, a block of rows and a candidate at a time; potentials are added up in
float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels import _checks
from deepclust.kernels._blocks import row_blocks


def forward(
    x: Tensor,
    candidates: Tensor,
    nearest: Tensor | None,
    sample_weight: Tensor | None,
    check: bool,
    sq_dist: Tensor,
) -> Tensor:
    """Fills sq_dist (C, N); potentials (C,) in float64."""
    if check:
        _checks.check_finite("x", x)
        _checks.check_finite("candidates", candidates)
    potentials = candidates.new_zeros(len(candidates), dtype=torch.float64)
    for rows in row_blocks(x.shape[0], x.shape[1]):
        x_rows = x[rows].to(candidates.dtype)
        for c, m in enumerate(candidates):
            found = torch.sum((x_rows - m) ** 2, 1, out=sq_dist[c, rows])
            if nearest is not None:
                torch.minimum(found, nearest[rows], out=found)
            weight = 1 if sample_weight is None else sample_weight[rows]
            potentials[c] += (found.double() * weight).sum()
    return potentials
