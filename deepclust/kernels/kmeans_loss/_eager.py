"""sum_i ||z_i - mu_{labels_i}||^2 in plain torch.

    dz_i = 2 (z_i - mu_{labels_i})          dmu_j = -sum of dz_i over the rows with label j

The forward computes the gradients too; the loss is summed in float64.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from deepclust.kernels._autograd import recomputed
from deepclust.kernels._blocks import block_sizes, row_blocks
from deepclust.kernels._checks import check_finite, check_label_range


def forward(
    z: Tensor, centroids: Tensor, labels: Tensor, scale: float, needs_grad: bool, check: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), dz (N, D) and dmu (K, D), all times `scale`."""
    if check:
        _check(z, centroids, labels)
    loss = torch.zeros((), dtype=torch.float64, device=z.device)
    dz = (
        torch.empty_like(z, memory_format=torch.contiguous_format) if needs_grad else z.new_empty(0)
    )
    dmu = torch.zeros_like(centroids) if needs_grad else centroids.new_empty(0)
    for rows in row_blocks(z.shape[0], z.shape[1]):
        difference = z[rows].to(centroids.dtype) - centroids[labels[rows]]
        loss += (difference**2).sum(dtype=torch.float64)
        if needs_grad:
            gradient = 2 * scale * difference
            dz[rows] = gradient
            if z.is_cuda:
                # index_add_ would use atomics there; a sorted index_put_ adds in row order.
                dmu.index_put_((labels[rows],), -gradient, accumulate=True)
            else:
                dmu.index_add_(0, labels[rows], gradient, alpha=-1)
    return scale * loss, dz, dmu


def _check(z: Tensor, centroids: Tensor, labels: Tensor) -> None:
    check_finite("z", z)
    check_finite("centroids", centroids)
    check_label_range("labels", labels, len(centroids))


def differentiable(
    z: Tensor, centroids: Tensor, labels: Tensor, scale: float, check: bool
) -> Tensor:
    """The loss with torch's own derivative, to any order: the witness of all the others."""
    if check:
        _check(z, centroids, labels)

    def block(labels: Tensor, z: Tensor, centroids: Tensor) -> Tensor:
        difference = z.to(centroids.dtype) - centroids[labels]
        return difference.square().sum(dtype=torch.float64)

    sizes = block_sizes(z.shape[0], z.shape[1])
    loss = torch.zeros((), dtype=torch.float64, device=z.device)
    for part, labels_part in zip(z.split(sizes), labels.split(sizes), strict=True):
        loss = loss + recomputed(partial(block, labels_part), part, centroids)
    return scale * loss
