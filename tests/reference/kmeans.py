"""k-means (Lloyd 1982; MacQueen 1967): nearest centroid, centroid sums, and the loss."""

from __future__ import annotations

import numpy as np


def squared_distances(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """||x_i - mu_j||^2 (N, K), by direct difference."""
    return ((x[:, None, :] - centroids[None, :, :]) ** 2).sum(axis=2)


def kmeans_assign(x: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """labels (N,) = argmin_j ||x_i - mu_j||^2, ties to the lowest index, and that distance (N,)."""
    squared = squared_distances(x, centroids)
    return squared.argmin(axis=1), squared.min(axis=1)


def kmeans_candidates(
    x: np.ndarray, candidates: np.ndarray, nearest: np.ndarray, sample_weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """sq_dist_ci = min(nearest_i, ||x_i - c||^2) (C, N) and sum_i w_i sq_dist_ci (C,)."""
    squared = np.minimum(squared_distances(candidates, x), nearest)
    return squared, squared @ sample_weight


def kmeans_update(
    x: np.ndarray, labels: np.ndarray, n_clusters: int, sample_weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """sums_j = sum_{i: label_i = j} w_i x_i (K, D) and counts_j = sum_{i: label_i = j} w_i (K,)."""
    weight = np.ones(len(x)) if sample_weight is None else sample_weight
    sums = np.zeros((n_clusters, x.shape[1]))
    counts = np.zeros(n_clusters)
    for row, label, w in zip(x, labels, weight, strict=True):
        sums[label] += w * row
        counts[label] += w
    return sums, counts


def kmeans_batch(
    x: np.ndarray,
    centroids: np.ndarray,
    counts: np.ndarray,
    sample_weight: np.ndarray | None = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """A step of mini-batch k-means (Sculley 2010): inertia before it, centroids and counts after.

    counts_j (K,) is the weight of the rows that mu_j is the mean of.
    """
    weight = np.ones(len(x)) if sample_weight is None else sample_weight
    labels, squared = kmeans_assign(x, centroids)
    moved, after = centroids.copy(), counts.copy()
    for row, label, w in zip(x, labels, weight, strict=True):
        if w > 0:
            after[label] += w
            moved[label] += w / after[label] * (row - moved[label])
    return float(weight @ squared), moved, after


def kmeans_loss(
    z: np.ndarray,
    centroids: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    reduction: str = "mean",
) -> float:
    """sum_i ||z_i - mu_{label_i}||^2, to the nearest centroid without labels; mean: over N."""
    chosen = kmeans_assign(z, centroids)[0] if labels is None else labels
    total = ((z - centroids[chosen]) ** 2).sum()
    return float(total if reduction == "sum" else total / max(len(z), 1))


def kmeans_loss_gradients(
    z: np.ndarray,
    centroids: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    reduction: str = "mean",
) -> dict[str, np.ndarray]:
    """dL/dz_i = 2 (z_i - mu_{label_i}), dL/dmu_j = -2 sum_{i: label_i = j} (z_i - mu_j)."""
    chosen = kmeans_assign(z, centroids)[0] if labels is None else labels
    dz = 2.0 * (z - centroids[chosen])
    if reduction == "mean":
        dz = dz / max(len(z), 1)
    return {"z": dz, "centroids": -kmeans_update(dz, chosen, len(centroids))[0]}
