"""Soft assignment: q_ij = exp(s_ij) / sum_k exp(s_ik) (DEC eq. 1, DEPICT eq. 1)."""

from __future__ import annotations

import numpy as np

from .heads import Head


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """log q from s, each row shifted by its largest score, which changes nothing but overflow."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def assign(z: np.ndarray, head: Head) -> np.ndarray:
    """q (N, K)."""
    return np.exp(log_softmax(head.scores(z)))


def assign_gradients(z: np.ndarray, head: Head, dq: np.ndarray) -> dict[str, np.ndarray]:
    """dL/dz and dL/d(parameter) where dq_ij = dL/dq_ij.

    Softmax: dL/ds_ij = q_ij (dq_ij - sum_k q_ik dq_ik).
    """
    q = assign(z, head)
    ds = q * (dq - (q * dq).sum(axis=1, keepdims=True))
    return head.pull_back(z, ds)
