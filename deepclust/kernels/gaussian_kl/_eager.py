"""KL_i = 1/2 sum_d [v tau + (mu - eta)^2 tau - 1 - log(v tau)] in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(mu: Tensor, log_var: Tensor, eta: Tensor, log_tau: Tensor) -> Tensor:
    """KL (N,), differentiable by torch to any order."""
    log_ratio = log_var + log_tau
    # expm1 keeps the digits of v tau - 1 where the variances nearly agree.
    return (torch.expm1(log_ratio) - log_ratio + (mu - eta) ** 2 * torch.exp(log_tau)).sum(1) / 2
