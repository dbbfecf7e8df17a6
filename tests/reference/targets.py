"""Target distributions: DEC's and DEPICT's as their papers print them, and the general one."""

from __future__ import annotations

import numpy as np

from .assign import log_softmax


def dec_target(q: np.ndarray, frequencies: np.ndarray | None = None) -> np.ndarray:
    """DEC eq. 3: p_ij = (q_ij^2 / f_j) / sum_k (q_ik^2 / f_k), f_j = sum_i q_ij."""
    f = q.sum(axis=0) if frequencies is None else frequencies
    numerator = q**2 / f
    return numerator / numerator.sum(axis=1, keepdims=True)


def depict_target(
    q: np.ndarray, frequencies: np.ndarray | None = None, prior: np.ndarray | None = None
) -> np.ndarray:
    """DEPICT, what follows eq. 6: p_ij = q_ij (u_j/f_j)^(1/2) / sum_k q_ik (u_k/f_k)^(1/2).

    DEPICT writes p for q and q for p; its f is a mean and its u uniform: factors that cancel.
    """
    f = q.sum(axis=0) if frequencies is None else frequencies
    u = np.ones_like(f) if prior is None else prior
    numerator = q * np.sqrt(u / f)
    return numerator / numerator.sum(axis=1, keepdims=True)


def bracket(
    scores: np.ndarray, frequencies: np.ndarray, prior: np.ndarray | None = None
) -> np.ndarray:
    """s_ij - 1/2 log f_j + 1/2 log u_j (N, K), u uniform when not given."""
    k = scores.shape[1]
    u = np.full(k, 1.0 / k) if prior is None else prior
    return scores - 0.5 * np.log(frequencies)[None, :] + 0.5 * np.log(u)[None, :]


def frozen_target(
    scores: np.ndarray,
    frequencies: np.ndarray,
    *,
    power: float = 2.0,
    prior: np.ndarray | None = None,
) -> np.ndarray:
    """p = softmax_j(power (s - 1/2 log f + 1/2 log u)); a one-hot row where power is infinite."""
    t = bracket(scores, frequencies, prior)
    if np.isinf(power):
        return np.eye(scores.shape[1])[t.argmax(axis=1)]
    return np.exp(log_softmax(power * t))
