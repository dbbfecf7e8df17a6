"""ACAI (Berthelot et al. 2018): the terms of the autoencoder's loss and of its critic's.

Layers are pairs (W, b); hidden ones are ReLUs, the code, the rows and what the critic says are
linear.
"""

from __future__ import annotations

import numpy as np

Layers = list[tuple[np.ndarray, np.ndarray]]


def passed(h: np.ndarray, layers: Layers) -> np.ndarray:
    """h through the layers."""
    for number, (weight, bias) in enumerate(layers):
        h = h @ weight.T + bias
        if number < len(layers) - 1:
            h = np.maximum(h, 0.0)
    return h


def interpolation(z: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """alpha_i z_i + (1 - alpha_i) z_j, j = n + 1 - i."""
    return np.array([a * z[i] + (1 - a) * z[len(z) - 1 - i] for i, a in enumerate(alpha)])


def terms(
    x: np.ndarray,
    alpha: np.ndarray,
    gamma: float,
    encoder: Layers,
    decoder: Layers,
    critic: Layers,
) -> dict[str, float]:
    """Every mean square of both losses, by the name that it has in the history."""
    z = passed(x, encoder)
    output, between = passed(z, decoder), passed(interpolation(z, alpha), decoder)
    guess = passed(between, critic).mean(axis=1)
    on_rows = passed(gamma * x + (1 - gamma) * output, critic).mean(axis=1)
    return {
        "reconstruction": float(((output - x) ** 2).mean()),
        "interpolation": float((guess**2).mean()),
        "critic": float(((guess - alpha) ** 2).mean()),
        "critic on rows": float((on_rows**2).mean()),
    }
