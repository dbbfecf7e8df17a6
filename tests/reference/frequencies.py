"""Cluster frequencies f_j = sum_i q_ij (DEC eq. 3), labels and how many of them changed."""

from __future__ import annotations

import numpy as np

from .assign import assign
from .heads import Head


def frequencies(
    z: np.ndarray, head: Head, previous_labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """f (K,), labels (N,) = argmax_j s_ij with ties to the lowest index, and the changed count.

    Without earlier labels every label counts as changed.
    """
    labels = head.scores(z).argmax(axis=1)
    changed = len(z) if previous_labels is None else int((labels != previous_labels).sum())
    return assign(z, head).sum(axis=0), labels, changed
