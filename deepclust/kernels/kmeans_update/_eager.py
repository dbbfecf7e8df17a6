"""sums_j = sum of w_i x_i and counts_j = sum of w_i over the rows with label j, in plain torch.

Summed in float64 in row order, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels import _checks
from deepclust.kernels._blocks import row_blocks


def forward(
    x: Tensor, labels: Tensor, n_clusters: int, sample_weight: Tensor | None, check: bool
) -> tuple[Tensor, Tensor]:
    """sums (K, D) and counts (K,), in float64."""
    if check:
        _checks.check_finite("x", x)
        _checks.check_label_range("labels", labels, n_clusters)
        if sample_weight is not None:
            _checks.check_finite("sample_weight", sample_weight)
    sums = torch.zeros(n_clusters, x.shape[1], dtype=torch.float64, device=x.device)
    counts = torch.zeros(n_clusters, dtype=torch.float64, device=x.device)
    for rows in row_blocks(x.shape[0], x.shape[1]):
        x_rows = x[rows].double()
        if sample_weight is None:
            w = torch.ones_like(labels[rows], dtype=torch.float64)
        else:
            w = sample_weight[rows].double()
            x_rows = x_rows * w.unsqueeze(1)
        if x.is_cuda:
            # index_add_ would use atomics there; a sorted index_put_ adds in row order.
            sums.index_put_((labels[rows],), x_rows, accumulate=True)
            counts.index_put_((labels[rows],), w, accumulate=True)
        else:
            sums.index_add_(0, labels[rows], x_rows)
            counts.index_add_(0, labels[rows], w)
    return sums, counts
