"""The losses beside the clustering loss: each formula, and the gradient that follows from it.

Means are over the rows but where a name says elements; 0 log 0 = 0. `..._gradients` gives dL / d
(argument) by its name.
"""

from __future__ import annotations

import numpy as np

from .assign import assign, assign_gradients, log_softmax
from .heads import Gaussian, StudentT
from .kmeans import squared_distances


def reconstruction(output: np.ndarray, x: np.ndarray) -> float:
    """1/(n D) sum_id (x^_id - x_id)^2, over elements."""
    return float(((output - x) ** 2).sum() / max(x.size, 1))


def reconstruction_gradients(output: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """dL/dx^ = 2 (x^ - x) / (n D)."""
    gradient = 2.0 * (output - x) / max(x.size, 1)
    return {"output": gradient, "x": -gradient}


def layer_reconstruction(
    outputs: list[np.ndarray], clean: list[np.ndarray], weights: list[float]
) -> float:
    """sum_l w_l 1/N sum_i ||z_i^l - z^^_i^l||^2 / |z_i^l| (Dizaji et al. 2017, eq. 11)."""
    total = 0.0
    for output, z, weight in zip(outputs, clean, weights, strict=True):
        size = z[0].size if len(z) else 1
        total += weight * ((z - output) ** 2).sum() / size / max(len(z), 1)
    return float(total)


def layer_reconstruction_gradients(
    outputs: list[np.ndarray], clean: list[np.ndarray], weights: list[float]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """dL/dz^^_l = 2 w_l (z^^_l - z_l) / (N |z^l|) = -dL/dz_l."""
    to_outputs = [
        2 * weight * (output - z) / max(z.size, 1)
        for output, z, weight in zip(outputs, clean, weights, strict=True)
    ]
    return to_outputs, [-gradient for gradient in to_outputs]


def critic_error(guess: np.ndarray, alpha: np.ndarray) -> float:
    """1/n sum_i (d_i - alpha_i)^2 (Berthelot et al. 2018)."""
    return float(((guess - alpha) ** 2).sum() / max(len(guess), 1))


def critic_error_gradients(guess: np.ndarray, alpha: np.ndarray) -> dict[str, np.ndarray]:
    """dL/dd = 2 (d - alpha) / n."""
    gradient = 2.0 * (guess - alpha) / max(len(guess), 1)
    return {"guess": gradient, "alpha": -gradient}


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-l)."""
    return np.exp(-np.logaddexp(0.0, -logits))


def binary_reconstruction(logits: np.ndarray, x: np.ndarray) -> float:
    """-1/(n D) sum_id [x log m + (1 - x) log(1 - m)], m = sigmoid(l), over elements."""
    log_m, log_not_m = -np.logaddexp(0.0, -logits), -np.logaddexp(0.0, logits)
    return float(-(x * log_m + (1.0 - x) * log_not_m).sum() / max(x.size, 1))


def binary_reconstruction_gradients(logits: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """dL/dl = (m - x) / (n D)."""
    return {"logits": (sigmoid(logits) - x) / max(x.size, 1)}


def balance(shares: np.ndarray, prior: np.ndarray | None = None) -> float:
    """KL(G || U) = sum_k g_k log(g_k / u_k), u_k = 1/K by default (Aljalbout et al. 2018)."""
    u = np.full(len(shares), 1.0 / len(shares)) if prior is None else prior
    taken = shares > 0
    return float((shares[taken] * np.log(shares[taken] / u[taken])).sum())


def balance_gradients(shares: np.ndarray, prior: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """dL/dg_k = log(g_k / u_k) + 1."""
    u = np.full(len(shares), 1.0 / len(shares)) if prior is None else prior
    return {"shares": np.log(shares / u) + 1.0}


def zipf(s: float, n: int) -> np.ndarray:
    """f(k; s, N) = (1/k^s) / sum_{n=1..N} (1/n^s), k = 1, ..., N."""
    return np.array([1 / k**s / sum(1 / j**s for j in range(1, n + 1)) for k in range(1, n + 1)])


def locality(z: np.ndarray, neighbours: np.ndarray, similarity: np.ndarray) -> float:
    """1/n sum_i sum_j s_ij ||z_i - z_j||^2 (Aljalbout et al. 2018, as a mean over i)."""
    squared = ((z[:, None, :] - neighbours) ** 2).sum(axis=2)
    return float((similarity * squared).sum() / max(len(z), 1))


def locality_gradients(
    z: np.ndarray, neighbours: np.ndarray, similarity: np.ndarray
) -> dict[str, np.ndarray]:
    """dL/dz_i = 2/n sum_j s_ij (z_i - z_j), and what is taken from each neighbour."""
    difference = z[:, None, :] - neighbours
    pairs = 2.0 * similarity[:, :, None] * difference / max(len(z), 1)
    squared = (difference**2).sum(axis=2)
    return {
        "z": pairs.sum(axis=1),
        "neighbours": -pairs,
        "similarity": squared / max(len(z), 1),
    }


def cosine_augmentation(z: np.ndarray, view: np.ndarray) -> float:
    """-1/n sum_i z_i . v_i / (||z_i|| ||v_i||) (Hu et al. 2017)."""
    cosine = (z * view).sum(1) / np.linalg.norm(z, axis=1) / np.linalg.norm(view, axis=1)
    return float(-cosine.sum() / max(len(z), 1))


def cosine_augmentation_gradients(z: np.ndarray, view: np.ndarray) -> dict[str, np.ndarray]:
    """dL/dz_i = -1/n (v^_i - (z^_i . v^_i) z^_i) / ||z_i||, z^ and v^ of length 1."""
    length_z = np.linalg.norm(z, axis=1, keepdims=True)
    length_v = np.linalg.norm(view, axis=1, keepdims=True)
    unit_z, unit_v = z / length_z, view / length_v
    cosine = (unit_z * unit_v).sum(1, keepdims=True)
    n = max(len(z), 1)
    return {
        "z": -(unit_v - cosine * unit_z) / length_z / n,
        "view": -(unit_z - cosine * unit_v) / length_v / n,
    }


def squared_augmentation(z: np.ndarray, view: np.ndarray) -> float:
    """1/n sum_i ||z_i - v_i||^2."""
    return float(((z - view) ** 2).sum() / max(len(z), 1))


def squared_augmentation_gradients(z: np.ndarray, view: np.ndarray) -> dict[str, np.ndarray]:
    """dL/dz = 2 (z - v) / n."""
    gradient = 2.0 * (z - view) / max(len(z), 1)
    return {"z": gradient, "view": -gradient}


def soft_kmeans(z: np.ndarray, head: StudentT) -> float:
    """1/n sum_i sum_k q_ik ||z_i - mu_k||^2, q the assignment of DEC."""
    return float((assign(z, head) * squared_distances(z, head.centroids)).sum() / max(len(z), 1))


def soft_kmeans_gradients(z: np.ndarray, head: StudentT) -> dict[str, np.ndarray]:
    """The product rule: q held fixed, 2/n q_ik (z_i - mu_k) a pair; d2 held fixed, dL/dq = d2/n."""
    n = max(len(z), 1)
    q, squared = assign(z, head), squared_distances(z, head.centroids)
    through_q = assign_gradients(z, head, squared / n)
    pairs = 2.0 * q[:, :, None] * (z[:, None, :] - head.centroids[None, :, :]) / n
    return {
        "z": through_q["z"] + pairs.sum(axis=1),
        "centroids": through_q["centroids"] - pairs.sum(axis=0),
    }


def centre_cross_entropy(z: np.ndarray, centres: np.ndarray) -> float:
    """-1/n sum_i sum_d c_id log z_id, as the published code of ABC has it."""
    return float(-(centres * np.log(z)).sum() / max(len(z), 1))


def centre_cross_entropy_gradients(z: np.ndarray, centres: np.ndarray) -> dict[str, np.ndarray]:
    """dL/dz = -c / z / n."""
    n = max(len(z), 1)
    return {"z": -centres / z / n, "centres": -np.log(z) / n}


def mixture_divergence(
    mean: np.ndarray, log_var: np.ndarray, gamma: np.ndarray, head: Gaussian
) -> float:
    """The terms of VaDE's lower bound (Jiang et al. 2017) but the reconstruction, sign reversed.

    1/n sum_i [ 1/2 sum_k gamma_ik sum_d (log s2_kd + s~2_id / s2_kd + (mu~_id - mu_kd)^2 / s2_kd)
                - sum_k gamma_ik log(pi_k / gamma_ik) - 1/2 sum_d (1 + log s~2_id) ]

    with pi = softmax(log_weights).
    """
    ratio = np.exp(log_var[:, None, :] - head.log_var[None, :, :])
    mahalanobis = (mean[:, None, :] - head.means[None, :, :]) ** 2 * np.exp(-head.log_var)[None]
    energy = 0.5 * (head.log_var[None, :, :] + ratio + mahalanobis).sum(axis=2)
    log_pi = log_softmax(head.log_weights[None, :])
    log_gamma = np.log(np.where(gamma > 0, gamma, 1.0))
    rows = (gamma * (energy + log_gamma - log_pi)).sum(1) - 0.5 * (1.0 + log_var).sum(1)
    return float(rows.sum() / max(len(mean), 1))


def mixture_divergence_gradients(
    mean: np.ndarray, log_var: np.ndarray, gamma: np.ndarray, head: Gaussian
) -> dict[str, np.ndarray]:
    """Gradients to the posterior, to gamma where it is above 0, and to the mixture.

    dL/dlog pi_k = -sum_i gamma_ik / n goes through the softmax that makes pi of log_weights.
    """
    n = max(len(mean), 1)
    precision = np.exp(-head.log_var)[None]
    difference = mean[:, None, :] - head.means[None, :, :]
    ratio = np.exp(log_var[:, None, :] - head.log_var[None, :, :])
    energy = 0.5 * (head.log_var[None, :, :] + ratio + difference**2 * precision).sum(axis=2)
    log_pi = log_softmax(head.log_weights[None, :])
    weight = gamma[:, :, None] / n
    pull = weight * difference * precision
    mass = gamma.sum(axis=0) / n
    return {
        "mean": pull.sum(axis=1),
        "log_var": 0.5 * ((weight * ratio).sum(axis=1) - 1.0 / n),
        "gamma": (energy + np.log(gamma) + 1.0 - log_pi) / n,
        "means": -pull.sum(axis=0),
        "mixture_log_var": (0.5 * weight * (1.0 - ratio - difference**2 * precision)).sum(axis=0),
        "log_weights": np.exp(log_pi[0]) * mass.sum() - mass,
    }
