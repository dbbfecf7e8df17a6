"""DEPICT (Dizaji et al. 2017): what its targets cost, and the whole loss of its network.

Its letters P and Q are the other way round: here q is the prediction and p the target. Layers are
pairs (W, b); hidden ones are leaky ReLUs of slope 0.01, the code and the rows are tanh.
"""

from __future__ import annotations

import numpy as np

from .assign import log_softmax

Layers = list[tuple[np.ndarray, np.ndarray]]
SMALLEST = float(np.finfo(np.float32).tiny)


def balance_objective(
    scores: np.ndarray, log_p: np.ndarray, prior: np.ndarray | None = None
) -> float:
    """Eq. 4: 1/N sum_ij p_ij log(p_ij / q_ij) + sum_j f_j log(f_j / u_j), f_j = 1/N sum_i p_ij.

    0 log 0 = 0; a share of 0 counts as the smallest normal float32.
    """
    p = np.exp(log_p)
    taken = p > 0
    divergence = (p[taken] * (log_p - log_softmax(scores))[taken]).sum() / len(p)
    f = p.mean(axis=0)
    ratio = np.log(np.maximum(f, np.finfo(float).tiny)) - log_shares(prior, len(f))
    return float(divergence + (f * ratio).sum())


def balance_derivative(
    scores: np.ndarray, log_p: np.ndarray, prior: np.ndarray | None = None
) -> np.ndarray:
    """N times its derivative by p_ij, less 1: log(p_ij / q_ij) + log(f_j / u_j).

    f_j below the smallest normal float32 counts as that too.
    """
    log_f = np.log(np.maximum(np.exp(log_p).mean(axis=0), SMALLEST))
    return log_p - log_softmax(scores) + (log_f - log_shares(prior, len(log_f)))[None, :]


def log_shares(prior: np.ndarray | None, k: int) -> np.ndarray:
    """log u_j, uniform where there is none."""
    return np.log(np.full(k, 1 / k) if prior is None else np.maximum(prior, SMALLEST))


def pathway(
    x: np.ndarray, encoder: Layers, masks: list[np.ndarray] | None = None
) -> list[np.ndarray]:
    """Eq. 9, z^0 to z^L: z^l = g(W^l (m^l z^(l-1)) + b^l), m the dropout; without masks eq. 10."""
    layers = [x]
    for number, (weight, bias) in enumerate(encoder):
        seen = layers[-1] if masks is None else masks[number] * layers[-1]
        h = seen @ weight.T + bias
        layers.append(np.tanh(h) if number == len(encoder) - 1 else leaky(h))
    return layers


def decoded(z: np.ndarray, decoder: Layers) -> list[np.ndarray]:
    """z^^0 to z^^(L-1), from the code z~^L; the layers of the decoder from the code on."""
    outputs: list[np.ndarray] = []
    for number, (weight, bias) in enumerate(decoder):
        h = z @ weight.T + bias
        z = np.tanh(h) if number == len(decoder) - 1 else leaky(h)
        outputs.insert(0, z)
    return outputs


def leaky(h: np.ndarray) -> np.ndarray:
    """The leaky ReLU."""
    return np.where(h > 0, h, 0.01 * h)


def network_losses(
    x: np.ndarray,
    p: np.ndarray,
    encoder: Layers,
    decoder: Layers,
    head: tuple[np.ndarray, np.ndarray],
    masks: list[np.ndarray],
    clean_encoder: Layers,
    hidden_weight: float = 1.0,
) -> tuple[float, float]:
    """Eq. 11: -1/N sum_ij p_ij log q~_ij, and 1/N sum_i sum_l ||z_i^l - z^^_i^l||^2 / |z_i^l|.

    The clean encoder is given by itself, so that it may be held fixed.
    """
    code = pathway(x, encoder, masks)[-1]
    weight, bias = head
    cross_entropy = -(p * log_softmax(code @ weight.T + bias)).sum() / len(x)
    clean = pathway(x, clean_encoder)[:-1]
    reconstruction = 0.0
    for number, (output, layer) in enumerate(zip(decoded(code, decoder), clean, strict=True)):
        term = ((output - layer) ** 2).sum() / layer.shape[1] / len(x)
        reconstruction += term if number == 0 else hidden_weight * term
    return float(cross_entropy), float(reconstruction)
