"""labels_i = argmin_j ||x_i - mu_j||^2 and that smallest squared distance, in plain torch.

The argmin needs only |mu_j|^2 - 2 x_i . mu_j, around the middle of the centroids; the distance of
the winner is computed again by direct difference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels import _checks
from deepclust.kernels._blocks import row_blocks
from deepclust.kernels.heads import origin_of


def forward(x: Tensor, centroids: Tensor, precision: str, check: bool) -> tuple[Tensor, Tensor]:
    """labels (N,), sq_dist (N,)."""
    if check:
        _checks.check_finite("x", x)
        _checks.check_finite("centroids", centroids)
    n, dtype = x.shape[0], centroids.dtype
    labels = torch.empty(n, dtype=torch.int64, device=x.device)
    sq_dist = torch.empty(n, dtype=dtype, device=x.device)
    origin = origin_of(centroids)
    mu = centroids - origin
    half_norms = (mu**2).sum(1) / 2
    # Libraries round the columns of a product each in its own way, so that equal ones may differ.
    _, which = torch.unique(centroids, dim=0, return_inverse=True)
    numbers = torch.arange(len(centroids), device=x.device)
    first = numbers.scatter_reduce(0, which, numbers, "amin", include_self=False)[which]
    for rows in row_blocks(n, max(x.shape[1], centroids.shape[0])):
        x_rows = x[rows].to(dtype)
        half_sq_dist = torch.addmm(half_norms, x_rows - origin, mu.T, alpha=-1)
        labels[rows] = first[half_sq_dist.argmin(1)]
        torch.sum((x_rows - centroids[labels[rows]]) ** 2, 1, out=sq_dist[rows])
    return labels, sq_dist
