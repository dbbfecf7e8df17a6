"""The loss against a fixed target: KL(P||Q) (DEC eq. 2), cross-entropy (DEPICT)."""

from __future__ import annotations

import numpy as np

from .assign import log_softmax
from .heads import Head


def target_loss(
    z: np.ndarray, head: Head, p: np.ndarray, *, reduction: str = "mean", kind: str = "kl"
) -> float:
    """sum_ij p_ij log(p_ij / q_ij), or -sum_ij p_ij log q_ij; 0 log 0 = 0; the mean is over N rows.

    Rows of p are taken as they are: their sum need not be one.
    """
    log_q = log_softmax(head.scores(z))
    taken = p > 0
    total = -(p[taken] * log_q[taken]).sum()
    if kind == "kl":
        total += (p[taken] * np.log(p[taken])).sum()
    return float(total if reduction == "sum" else total / max(len(z), 1))


def target_loss_gradients(
    z: np.ndarray, head: Head, p: np.ndarray, *, reduction: str = "mean"
) -> dict[str, np.ndarray]:
    """dL/dz and dL/d(parameter), p held fixed: dL/ds_ij = (sum_k p_ik) q_ij - p_ij, both kinds."""
    q = np.exp(log_softmax(head.scores(z)))
    ds = p.sum(axis=1, keepdims=True) * q - p
    return head.pull_back(z, ds if reduction == "sum" else ds / max(len(z), 1))
