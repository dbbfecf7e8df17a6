"""NumPy float64 oracles, each written from its paper's formula and nothing else.

They hold N x K (x D) arrays and know nothing of blocks, backends or torch. test_reference.py proves
them: against SciPy, against values worked out by hand, and their gradients by central differences.
"""

from __future__ import annotations

from .assign import assign, assign_gradients, log_softmax
from .frequencies import frequencies
from .gaussian_kl import gaussian_kl, gaussian_kl_gradients
from .heads import Gaussian, Head, Linear, StudentT
from .kmeans import (
    kmeans_assign,
    kmeans_batch,
    kmeans_candidates,
    kmeans_loss,
    kmeans_loss_gradients,
    kmeans_update,
    squared_distances,
)
from .target_loss import target_loss, target_loss_gradients
from .targets import bracket, dec_target, depict_target, frozen_target

__all__ = [
    "Gaussian",
    "Head",
    "Linear",
    "StudentT",
    "assign",
    "assign_gradients",
    "bracket",
    "dec_target",
    "depict_target",
    "frequencies",
    "frozen_target",
    "gaussian_kl",
    "gaussian_kl_gradients",
    "kmeans_assign",
    "kmeans_batch",
    "kmeans_candidates",
    "kmeans_loss",
    "kmeans_loss_gradients",
    "kmeans_update",
    "log_softmax",
    "squared_distances",
    "target_loss",
    "target_loss_gradients",
]
