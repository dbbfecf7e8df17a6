"""KL divergence between Gaussians with axis-parallel variances."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels import _checks, _dispatch
from deepclust.kernels._blocks import full_precision
from deepclust.kernels.gaussian_kl import _eager


def gaussian_kl(
    mu: Tensor,
    log_var: Tensor,
    eta: Tensor,
    log_tau: Tensor,
    *,
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> Tensor:
    """KL divergence of one Gaussian from another, row by row.

    KL(N(mu, v) || N(eta, 1/tau)) = 1/2 sum_d [v_d tau_d + (mu_d - eta_d)^2 tau_d - 1 - log(v_d
    tau_d)]: the cluster term of the probabilistic form of ABC (Song et al., 2013), eta and tau
    being the mean and the precision of the cluster that each row is assigned to.

    Args:
        mu: Means (N, D).
        log_var: log v (N, D).
        eta: Means of the second Gaussian (N, D).
        log_tau: log tau (N, D), logarithms of the precisions of the second Gaussian.
        backend: "auto" or "eager": a few operations on each element, which torch does well and
            differentiates itself.
        precision: "exact" or "fast".
        check: Refuse NaN and Inf (on CPU).

    Returns:
        The divergences (N,), in nats, with gradients to all four.

    Raises:
        ValueError: If shapes or devices do not fit, or a row has NaN or Inf.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> zero = torch.zeros(1, 2)
        >>> F.gaussian_kl(zero, zero, zero + 3, zero)
        tensor([9.])
    """
    _dispatch.check_options(backend, precision)
    tensors = {"mu": mu, "log_var": log_var, "eta": eta, "log_tau": log_tau}
    for name, tensor in tensors.items():
        _checks.check_matrix(name, tensor)
        if tensor.shape != mu.shape:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}; mu has {tuple(mu.shape)}")
    _checks.check_together(**tensors)
    if not torch.compiler.is_compiling() and _checks.wants_check(check, mu):
        for name, tensor in tensors.items():
            _checks.check_finite(name, tensor)
    if backend not in ("auto", "eager"):
        _dispatch.kernel("gaussian_kl", backend, mu.device)  # raises, and says why
    dtype = _checks.compute_dtype(mu.dtype)
    with full_precision(mu):
        kl: Tensor = _eager.forward(*(tensor.to(dtype) for tensor in tensors.values()))
    return kl
