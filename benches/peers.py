"""The same work as others do it: plain PyTorch, eager and compiled, scikit-learn, faiss."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# torch.compile takes tens of seconds a function: the quick setting leaves it out.
COMPILE = not os.environ.get("DEEPCLUST_BENCH_QUICK")
Function = Callable[..., Any]


def forms(**functions: Function) -> dict[str, Function]:
    """Each function as it is and, at full size, compiled."""
    named = {name.replace("_", " "): function for name, function in functions.items()}
    if not COMPILE:
        return {f"torch {name}": function for name, function in named.items()}
    both = {}
    for name, function in named.items():
        both[f"torch {name}"] = function
        both[f"torch.compile {name}"] = torch.compile(function, dynamic=False)
    return both


# Soft assignment, three ways to write the distances.


def q_cdist(z: Tensor, mu: Tensor) -> Tensor:
    return _student(torch.cdist(z, mu).square())


def q_product(z: Tensor, mu: Tensor) -> Tensor:
    return _student(_squared(z, mu))


def q_broadcast(z: Tensor, mu: Tensor) -> Tensor:
    return _student((z.unsqueeze(1) - mu).square().sum(2))


def _squared(z: Tensor, mu: Tensor) -> Tensor:
    return (z.square().sum(1, keepdim=True) + mu.square().sum(1) - 2 * z @ mu.T).clamp_min(0)


def _student(d2: Tensor) -> Tensor:
    q = 1 / (1 + d2)
    return q / q.sum(1, keepdim=True)


def target(q: Tensor) -> Tensor:
    weight = q.square() / q.sum(0)
    return weight / weight.sum(1, keepdim=True)


# The loss of DEC with its gradients, from a given p.


def loss_product(z: Tensor, mu: Tensor, p: Tensor) -> Tensor:
    q = q_product(z, mu)
    return torch.nn.functional.kl_div(q.log(), p, reduction="sum") / len(z)


def loss_cdist(z: Tensor, mu: Tensor, p: Tensor) -> Tensor:
    q = q_cdist(z, mu)
    return torch.nn.functional.kl_div(q.log(), p, reduction="sum") / len(z)


def backward_of(loss: Function) -> Function:
    """(z, mu, p) -> (loss, dz, dmu) by autograd."""

    def run(z: Tensor, mu: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, mu = z.detach().requires_grad_(), mu.detach().requires_grad_()
        value = loss(z, mu, p)
        dz, dmu = torch.autograd.grad(value, (z, mu))
        return value.detach(), dz, dmu

    return run


def chunked(gradient: Function, rows: int = 2000) -> Function:
    """A hand-written gradient, over chunks that stay in cache."""

    def run(z: Tensor, mu: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, dmu, dz = torch.zeros(()), torch.zeros_like(mu), torch.empty_like(z)
        for start in range(0, len(z), rows):
            part = slice(start, start + rows)
            value, dz[part], step = gradient(z[part], mu, p[part])
            loss += value
            dmu += step
        return loss / len(z), dz / len(z), dmu / len(z)

    return run


def hand_gradient(z: Tensor, mu: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d2 = _squared(z, mu)
    q = _student(d2)
    w = 2 * (p - q) / (1 + d2)
    loss = (torch.xlogy(p, p) - p * q.log()).sum()
    return loss, w.sum(1, keepdim=True) * z - w @ mu, w.sum(0).unsqueeze(1) * mu - w.T @ z


# k-means.


def assign_sklearn(x: np.ndarray, centroids: np.ndarray) -> Function:
    from sklearn.cluster import KMeans

    model = KMeans(len(centroids), init=centroids, n_init=1, max_iter=1).fit(
        x[: 2 * len(centroids)]
    )
    model.cluster_centers_ = np.ascontiguousarray(centroids)
    return lambda: model.predict(x)


def assign_faiss(x: np.ndarray, centroids: np.ndarray) -> Function | None:
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(centroids)
    return lambda: index.search(x, 1)[1].ravel()


def lloyd_sklearn(x: np.ndarray, centroids: np.ndarray, iterations: int) -> Function:
    from sklearn.cluster import KMeans

    def run() -> float:
        model = KMeans(
            len(centroids), init=centroids, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd"
        )
        return float(model.fit(x).inertia_)

    return run


def lloyd_faiss(x: np.ndarray, centroids: np.ndarray, iterations: int) -> Function | None:
    try:
        import faiss
    except ImportError:
        return None

    def run() -> float:
        k, d = centroids.shape
        model = faiss.Kmeans(
            d, k, niter=iterations, max_points_per_centroid=len(x), min_points_per_centroid=1
        )
        model.train(x, init_centroids=centroids)
        distances, _ = model.index.search(x, 1)
        return float(distances.sum(dtype=np.float64))

    return run
