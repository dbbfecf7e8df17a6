"""The losses of a discriminator and of the encoder against it (DCAN, eq. 1), from logits l.

Dis = 1 / (1 + e^-l), so -log Dis = log(1 + e^-l) and -log(1 - Dis) = log(1 + e^l).
"""

from __future__ import annotations

import numpy as np

from .losses import sigmoid


def discriminator(positives: np.ndarray, negatives: np.ndarray) -> float:
    """-mean log Dis(c) - mean log(1 - Dis(z))."""
    to_clusters = np.logaddexp(0.0, -positives).sum() / max(len(positives), 1)
    return float(to_clusters + np.logaddexp(0.0, negatives).sum() / max(len(negatives), 1))


def discriminator_gradients(positives: np.ndarray, negatives: np.ndarray) -> dict[str, np.ndarray]:
    """(Dis(c) - 1) / m = -sigmoid(-l) / m, and Dis(z) / n."""
    return {
        "positives": -sigmoid(-positives) / max(len(positives), 1),
        "negatives": sigmoid(negatives) / max(len(negatives), 1),
    }


def encoder(negatives: np.ndarray, update: str) -> float:
    """Minimax: mean log(1 - Dis(z)); non-saturating: -mean log Dis(z)."""
    signed = -np.logaddexp(0.0, negatives) if update == "minimax" else np.logaddexp(0, -negatives)
    return float(signed.sum() / max(len(negatives), 1))


def encoder_gradients(negatives: np.ndarray, update: str) -> dict[str, np.ndarray]:
    """-Dis(z) / n, or -(1 - Dis(z)) / n."""
    signed = -sigmoid(negatives) if update == "minimax" else -sigmoid(-negatives)
    return {"negatives": signed / max(len(negatives), 1)}


def jensen_shannon(loss: float) -> float:
    """JSD = log 2 - L/2, from -L = -log 4 + 2 JSD (Lemma 2)."""
    return (np.log(4.0) - loss) / 2
