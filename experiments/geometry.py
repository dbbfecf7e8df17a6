"""The shape of an embedding, in a few numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

Array = np.ndarray[Any, Any]

ROWS = 5_000  # drawn by the seed where there are more: distances of all pairs are taken


def describe(z: Array, labels: Array, y: Array, seed: int) -> dict[str, float]:
    """What is told of embeddings z (N, D), their clusters and their classes (N,).

    silhouette: mean over rows of (b - a) / max(a, b), a the mean distance to the rows of the same
    cluster and b to those of the nearest other one; absent where there is one cluster.
    separation: the share of the variance that lies between classes.
    participation, nearest: see the functions below.
    Of an embedding that has collapsed to a point or two nothing is told.
    """
    if len(z) > ROWS:
        rows = np.random.default_rng(seed).choice(len(z), ROWS, replace=False)
        z, labels, y = z[rows], labels[rows], y[rows]
    z = z.astype(np.float64)
    if len(np.unique(z, axis=0)) < 3:
        return {}
    found = {
        "separation": separation(z, y),
        "participation": participation(z),
        "nearest": nearest(z),
    }
    if len(np.unique(labels)) > 1:
        found["silhouette"] = silhouette_score(z, labels)
    return {name: round(float(value), 4) for name, value in found.items()}


def separation(z: Array, y: Array) -> float:
    """The share of the variance of z (N, D) that lies between classes y (N,), from 0 to 1."""
    centred = z - z.mean(0)
    between = sum(
        (y == label).sum() * np.square(centred[y == label].mean(0)).sum() for label in np.unique(y)
    )
    return float(between / np.square(centred).sum())


def participation(z: Array) -> float:
    """(sum_d v_d)^2 / sum_d v_d^2, v_d the eigenvalues of the covariance of z (N, D).

    It is D where the variance is the same in all directions, and 1 where there is one direction.
    """
    variances = np.linalg.eigvalsh(np.cov(z.T))
    return float(variances.sum() ** 2 / np.square(variances).sum())


def nearest(z: Array) -> float:
    """The dimension of z (N, D) from each row's distances to its two nearest (Facco et al., 2017).

    r2 / r1 is distributed as a power law whose exponent is the dimension; this is its estimate of
    greatest likelihood, N / sum_i log(r2 / r1). Of equal rows one is kept.
    """
    z = np.unique(z, axis=0)
    distances, _ = NearestNeighbors(n_neighbors=3).fit(z).kneighbors(z)
    return float(len(z) / np.log(distances[:, 2] / distances[:, 1]).sum())
