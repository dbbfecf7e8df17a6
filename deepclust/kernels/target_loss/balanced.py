"""The target that DEPICT's objective has in truth, found without storing it, and the objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepclust.kernels import _checks, heads
from deepclust.kernels._arrays import Array, on_tensors
from deepclust.kernels._blocks import full_precision, row_blocks
from deepclust.kernels.frequencies.op import frequencies
from deepclust.kernels.heads import Head
from deepclust.kernels.target_loss.op import target_loss
from deepclust.kernels.target_loss.snapshot import Snapshot, freeze_target, probabilities

_MOST_PASSES = 200


def freeze_balanced_target(
    z: Array,
    head: Head,
    *,
    prior: Array | None = None,
    tol: float = 1e-6,
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> Snapshot:
    """Freeze the target of least KL(P || Q) + KL(f || u), without storing it.

    The objective of Dizaji et al. (2017), eq. 4, per row and with f_j = 1/N sum_i p_ij, is strictly
    convex in P. Where its derivative, log(p_ij / q_ij) + log(f_j / u_j) + 1, is the same along each
    row,

        p_ij = softmax_j(s_ij + b_j),    b_j = log u_j - log f_j(b),

    K equations for K numbers. The paper's closed form (eq. 7, `freeze_target` with power 1) takes
    b = (log u - log f(0)) / 2 instead. Here b <- (b + log u - log f(b)) / 2, one pass over z each:
    the derivative of log f(b) has eigenvalues from 0 to 1, so that an error at least halves. Shares
    below the smallest normal float32 count as that.

    Args:
        z: Embeddings (N, D), kept by reference: a tensor, or an array of NumPy (of a memory map a
            block at a time is read) or with DLPack.
        head: Linear or Gaussian, whose scores have a term for each cluster; copied.
        prior: u (K,), the expected share of each cluster, summing to one; by default all alike.
        tol: The passes end when the derivatives along a row differ by no more than this, or than
            what the head's type can tell.
        backend: "auto", "eager", "cpp" or "triton", for the passes.
        precision: "exact" or "fast".
        check: Refuse NaN and Inf (on CPU).

    Returns:
        The target, for `target_loss`.

    Raises:
        ValueError: If shapes, devices or values do not fit.
        TypeError: If types do not fit, or the head is another one.
        RuntimeError: If the backend that was asked for cannot run here.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> z, head = torch.tensor([[0.0], [1.0], [2.0]]), F.Linear(torch.tensor([[0.0], [1.0]]))
        >>> closed = F.freeze_target(z, head, power=1)
        >>> exact = F.freeze_balanced_target(z, head)
        >>> bool(F.balance_objective(exact) < F.balance_objective(closed))
        True
    """
    snapshot: Snapshot = on_tensors(
        _freeze_balanced_target, z, head, prior, tol, backend, precision, check
    )
    return snapshot


def _freeze_balanced_target(
    z: Tensor,
    head: Head,
    prior: Tensor | None,
    tol: float,
    backend: str,
    precision: str,
    check: bool,
) -> Snapshot:
    if not isinstance(head, (heads.Linear, heads.Gaussian)):
        raise TypeError(
            f"head: got {type(head).__name__}; it takes Linear or Gaussian, whose scores have a"
            " term for each cluster"
        )
    options: Any = {"backend": backend, "precision": precision}
    # It checks all arguments, and where b starts is the paper's closed form.
    target = freeze_target(z, head, power=1.0, prior=prior, check=check, **options)
    if len(target) == 0:
        return target
    log_u = _log_shares(_uniform(head) if prior is None else prior)
    bias = target.bias
    eps = torch.finfo(head.dtype).eps
    for _ in range(_MOST_PASSES):
        f, _, _ = frequencies(target.z, head.biased(bias.to(head.dtype)), check=False, **options)
        wanted = log_u.to(bias.device) - _log_shares(f / len(target))
        gap = bias - wanted
        # A shift of all b changes no p; and b has no more digits than its type.
        if float(gap.max() - gap.min()) <= max(tol, 4 * eps * float(bias.abs().max())):
            break
        bias = (bias + wanted).div(2)
        bias = (bias - bias.median()).to(target.bias.dtype)
    return Snapshot(target.z, target.head, bias, 1.0)


def balance_objective(
    target: Snapshot, prior: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """What a target costs by DEPICT's objective.

    1/N sum_ij p_ij log(p_ij / q_ij) + sum_j f_j log(f_j / u_j), f_j = 1/N sum_i p_ij (eq. 4 of
    Dizaji et al., 2017, whose letters P and Q are the other way round), q the assignment of the
    target's own head.

    Args:
        target: The snapshot of the whole data.
        prior: u (K,), summing to one; by default all alike. 0 counts as the smallest normal number.
        backend: "auto", "eager", "cpp" or "triton".

    Returns:
        The objective without dimensions, in float64, in nats; 0 for no rows.

    Raises:
        ValueError: If the prior does not have K shares.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> z, head = torch.tensor([[-1.0], [1.0]]), F.Linear(torch.tensor([[-1.0], [1.0]]))
        >>> closed = F.freeze_target(z, head, power=1)  # balanced as it is, so that P = Q
        >>> abs(float(F.balance_objective(closed))) < 1e-6
        True
    """
    head = target.head
    if prior is None:
        prior = _uniform(head)
    _checks.check_vector("prior", prior, head.n_clusters)
    if len(target) == 0:
        return torch.zeros((), dtype=torch.float64)
    dtype = target.bias.dtype
    f = torch.zeros(head.n_clusters, dtype=torch.float64, device=target.bias.device)
    with torch.no_grad(), full_precision(target.bias):
        for rows in row_blocks(len(target), max(target.z.shape[1], head.n_clusters)):
            f += probabilities(target.logits(rows, dtype), target.power).sum(0).double()
    f /= len(target)
    z = target.z.to(target.bias.device, head.dtype)
    divergence = target_loss(z, head, target, backend=backend, check=False)
    ratio = f.clamp_min(torch.finfo(torch.float64).tiny).log() - _log_shares(prior.to(f.device))
    return divergence.double() + (f * ratio).sum()


def _uniform(head: Head) -> Tensor:
    return torch.full((head.n_clusters,), 1 / head.n_clusters, dtype=torch.float64)


def _log_shares(shares: Tensor) -> Tensor:
    return shares.double().clamp_min(torch.finfo(torch.float32).tiny).log()
