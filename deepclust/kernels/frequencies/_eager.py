"""f_j = sum_i q_ij, labels_i = argmax_j s_ij and the number of changed labels, in one pass.

f is summed in float64, block by block in row order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels._blocks import row_blocks
from deepclust.kernels.heads import Head, check_values


def forward(
    z: Tensor, head: Head, previous_labels: Tensor | None, precision: str, check: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """f (K,) in float64, labels (N,), n_changed ()."""
    if check:
        check_values(z, head)
    n, k = z.shape[0], head.n_clusters
    f = torch.zeros(k, dtype=torch.float64, device=z.device)
    labels = torch.empty(n, dtype=torch.int64, device=z.device)
    for rows in row_blocks(n, max(z.shape[1], k)):
        s = head.scores(z[rows].to(head.dtype))
        f += torch.softmax(s, 1).sum(0, dtype=torch.float64)
        torch.argmax(s, 1, out=labels[rows])
    if previous_labels is None:
        return f, labels, torch.full((), n, dtype=torch.int64, device=z.device)
    return f, labels, (labels != previous_labels).sum()
