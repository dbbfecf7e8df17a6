"""The primitives as functions: heads, soft and hard assignment, targets, losses.

Letters: N samples, K clusters, D width; `z` (N, D) embeddings, `centroids` (K, D), `nu` degrees of
freedom, `q` (N, K) soft assignment, `p` (N, K) target, `f` (K,) cluster frequencies, `labels` (N,)
int64. A head scores each pair of an embedding and a cluster; q is the softmax of the scores.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepclust.kernels._arrays import Array, on_tensors
from deepclust.kernels.assign.op import assign
from deepclust.kernels.frequencies.op import frequencies
from deepclust.kernels.gaussian_kl.op import gaussian_kl
from deepclust.kernels.heads import Gaussian, Head, Linear, StudentT
from deepclust.kernels.kmeans_assign.op import kmeans_assign
from deepclust.kernels.kmeans_candidates.op import kmeans_candidates
from deepclust.kernels.kmeans_loss.op import kmeans_loss
from deepclust.kernels.kmeans_update.op import kmeans_update
from deepclust.kernels.target_loss.balanced import balance_objective, freeze_balanced_target
from deepclust.kernels.target_loss.op import target_loss
from deepclust.kernels.target_loss.snapshot import Snapshot, freeze_target
from deepclust.kernels.targets.op import dec_target, depict_target

__all__ = [
    "Gaussian",
    "Head",
    "Linear",
    "Snapshot",
    "StudentT",
    "assign",
    "balance_objective",
    "cluster_frequencies",
    "dec_loss",
    "dec_target",
    "depict_target",
    "freeze_balanced_target",
    "freeze_target",
    "frequencies",
    "gaussian_kl",
    "kmeans_assign",
    "kmeans_candidates",
    "kmeans_loss",
    "kmeans_update",
    "soft_cross_entropy",
    "student_t_assignment",
    "target_loss",
]


def student_t_assignment(z: Tensor, centroids: Tensor, nu: float = 1.0, **options: Any) -> Tensor:
    """The soft assignment of DEC: `assign(z, StudentT(centroids, nu))`.

    q_ij = (1 + ||z_i - mu_j||^2/nu)^(-(nu+1)/2) / sum_l (1 + ||z_i - mu_l||^2/nu)^(-(nu+1)/2), eq.
    1 of Xie et al. (2016).

    Args:
        z: Embeddings (N, D).
        centroids: mu (K, D).
        nu: Degrees of freedom, above 0.
        **options: `backend`, `precision` and `check`, as in `assign`.

    Returns:
        q (N, K), with gradients to z and centroids.

    Raises:
        ValueError: If shapes, devices or values do not fit.
        TypeError: If types do not fit.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> F.student_t_assignment(torch.tensor([[0.0]]), torch.tensor([[0.0], [2.0]]))
        tensor([[0.8333, 0.1667]])
    """
    return assign(z, StudentT(centroids, nu), **options)


def cluster_frequencies(z: Array, centroids: Array, nu: float = 1.0, **options: Any) -> Array:
    """The soft cluster sizes of DEC: the first result of `frequencies(z, StudentT(centroids, nu))`.

    f_j = sum_i q_ij, as in eq. 3 of Xie et al. (2016).

    Args:
        z: Embeddings (N, D): a tensor, or an array of NumPy or with DLPack, and so is the result.
        centroids: mu (K, D).
        nu: Degrees of freedom, above 0.
        **options: `backend`, `precision` and `check`, as in `frequencies`.

    Returns:
        f (K,), without a gradient.

    Raises:
        ValueError: If shapes, devices or values do not fit.
        TypeError: If types do not fit.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> F.cluster_frequencies(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]]))
        tensor([1.3333, 0.6667])
    """

    def on_head(z: Tensor, centroids: Tensor) -> Tensor:
        f: Tensor = frequencies(z, StudentT(centroids, nu), **options)[0]
        return f

    f: Array = on_tensors(on_head, z, centroids)
    return f


def dec_loss(
    z: Tensor,
    centroids: Tensor,
    target: Tensor | Snapshot,
    nu: float = 1.0,
    *,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """The loss of DEC: `target_loss(z, StudentT(centroids, nu), target)`.

    KL(P || Q) = sum_ij p_ij log(p_ij / q_ij), eq. 2 of Xie et al. (2016).

    Args:
        z: Embeddings (N, D).
        centroids: mu (K, D).
        target: p (N, K), or the Snapshot of these N rows.
        nu: Degrees of freedom, above 0.
        reduction: "mean" over the N rows, or "sum".
        **options: `backend`, `precision` and `check`, as in `target_loss`.

    Returns:
        The loss without dimensions, with gradients to z and centroids.

    Raises:
        ValueError: If shapes, devices or values do not fit.
        TypeError: If types do not fit.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> z, centroids = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]])
        >>> F.dec_loss(z, centroids, F.dec_target(F.assign(z, centroids)))
        tensor(0.0531)
    """
    return target_loss(z, StudentT(centroids, nu), target, reduction=reduction, **options)


def soft_cross_entropy(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Snapshot,
    *,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """The loss of DEPICT: `target_loss(z, Linear(weight, bias), target, kind="ce")`.

    -sum_ij p_ij log q_ij with q = softmax(z theta^T + b), eq. 8 of Dizaji et al. (2017), whose
    letters p and q are the other way round.

    Args:
        z: Embeddings (N, D).
        weight: theta (K, D).
        bias: b (K,), or None.
        target: p (N, K), or the Snapshot of these N rows.
        reduction: "mean" over the N rows, or "sum".
        **options: `backend`, `precision` and `check`, as in `target_loss`.

    Returns:
        The loss without dimensions, with gradients to z, weight and bias.

    Raises:
        ValueError: If shapes, devices or values do not fit.
        TypeError: If types do not fit.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> F.soft_cross_entropy(torch.zeros(1, 2), torch.eye(2), None, torch.tensor([[1.0, 0.0]]))
        tensor(0.6931)
    """
    return target_loss(z, Linear(weight, bias), target, reduction=reduction, kind="ce", **options)
