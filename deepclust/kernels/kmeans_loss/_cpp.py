"""The loss and its gradients by csrc/kmeans_loss.cpp, which states the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust import _C
from deepclust.kernels._pointers import DTYPES, matrix, refuse


def forward(
    z: Tensor, centroids: Tensor, labels: Tensor, scale: float, needs_grad: bool, check: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), dz (N, D) and dmu (K, D), all times `scale`."""
    dtype = centroids.dtype
    rows, mu, labels = z.to(dtype), centroids.contiguous(), labels.contiguous()
    (n, d), k = z.shape, len(mu)
    loss = torch.empty((), dtype=dtype)
    dz = torch.empty(z.shape if needs_grad else 0, dtype=dtype)
    dmu = torch.empty(mu.shape if needs_grad else 0, dtype=dtype)
    bad = _C.kmeans_loss(
        matrix(rows),
        matrix(mu),
        n,
        d,
        k,
        DTYPES[dtype],
        labels.data_ptr(),
        scale,
        loss.data_ptr(),
        dz.data_ptr() if needs_grad else 0,
        dmu.data_ptr() if needs_grad else 0,
        torch.get_num_threads(),
        check,
    )
    refuse(bad, "z", "centroids", labels=labels, n_clusters=k)
    return loss, dz.to(z.dtype), dmu
