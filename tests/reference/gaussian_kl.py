"""KL between two diagonal Gaussians, the second one given by its precision (DCAN, eqs. 3-7)."""

from __future__ import annotations

import numpy as np


def gaussian_kl(
    mu: np.ndarray, log_var: np.ndarray, eta: np.ndarray, log_tau: np.ndarray
) -> np.ndarray:
    """KL(N(mu, sigma^2) || N(eta, 1/tau)) (N,) where sigma^2 = e^log_var and tau = e^log_tau.

    1/2 sum_d [log(tau^-1 / sigma^2) - 1 + (sigma^2 + (mu - eta)^2) tau]
    """
    tau = np.exp(log_tau)
    ratio = np.exp(log_var + log_tau)
    terms = -log_tau - log_var - 1.0 + ratio + (mu - eta) ** 2 * tau
    return 0.5 * terms.sum(axis=1)


def gaussian_kl_gradients(
    mu: np.ndarray, log_var: np.ndarray, eta: np.ndarray, log_tau: np.ndarray, dkl: np.ndarray
) -> dict[str, np.ndarray]:
    """Gradients to all four where dkl_i = dL/dKL_i."""
    tau = np.exp(log_tau)
    ratio = np.exp(log_var + log_tau)
    scale = dkl[:, None]
    return {
        "mu": scale * (mu - eta) * tau,
        "log_var": scale * 0.5 * (ratio - 1.0),
        "eta": -scale * (mu - eta) * tau,
        "log_tau": scale * 0.5 * (ratio + (mu - eta) ** 2 * tau - 1.0),
    }
