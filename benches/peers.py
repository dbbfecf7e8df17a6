"""The same work as others do it.

Plain PyTorch, eager and compiled; on the CPU scikit-learn and faiss; on a GPU those of
flash-kmeans, flashlib and cuML that are installed.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# torch.compile takes tens of seconds a function: the quick setting leaves it out.
COMPILE = not os.environ.get("DEEPCLUST_BENCH_QUICK")
Function = Callable[..., Any]


def eager(functions: dict[str, Function]) -> dict[str, Function]:
    """Each function as it is."""
    return {f"torch {name}": function for name, function in functions.items()}


def forms(functions: dict[str, Function]) -> dict[str, Function]:
    """Each function as it is and, at full size, compiled."""
    if not COMPILE:
        return eager(functions)
    both = {}
    for name, function in functions.items():
        both[f"torch {name}"] = function
        both[f"torch.compile {name}"] = torch.compile(function, dynamic=False)
    return both


# Lists of what is installed must not import it, and no preparation is to be timed.


def lazily(make: Callable[[], Function]) -> Function:
    """The function that `make` returns; it is made at the first call, and fails there."""
    made = functools.cache(make)
    return lambda: made()()


def installed(makers: dict[str, Function], *args: Any) -> dict[str, Function]:
    """What the libraries among `makers` that are here make of `args`, by the libraries' names."""
    return {
        name: lazily(functools.partial(make, *args))
        for name, make in makers.items()
        if importlib.util.find_spec(name.lower().replace("-", "_")) is not None
    }


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
        loss, dmu, dz = z.new_zeros(()), torch.zeros_like(mu), torch.empty_like(z)
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


def hand_gradient_at_once(z: Tensor, mu: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of all rows, divided by their number where torch.compile can do it in passing."""
    loss, dz, dmu = hand_gradient(z, mu, p)
    return loss / len(z), dz / len(z), dmu / len(z)


# k-means in plain torch.


def nearest_cdist(x: Tensor, centroids: Tensor) -> Tensor:
    return torch.cdist(x, centroids).argmin(1)


def nearest_product(x: Tensor, centroids: Tensor) -> Tensor:
    # ||x||^2 is the same for all clusters.
    return torch.addmm(centroids.square().sum(1), x, centroids.T, alpha=-2).argmin(1)


def nearest_broadcast(x: Tensor, centroids: Tensor) -> Tensor:
    return (x.unsqueeze(1) - centroids).square().sum(2).argmin(1)


def candidates_cdist(x: Tensor, candidates: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    sq_dist = torch.minimum(torch.cdist(candidates, x) ** 2, nearest)
    return sq_dist, sq_dist.sum(1)


def update_index_add(x: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    sums = x.new_zeros(k, x.shape[1]).index_add_(0, labels, x)
    return sums, torch.bincount(labels, minlength=k)


def update_one_hot(x: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    one_hot = (labels.unsqueeze(1) == torch.arange(k, device=x.device)).to(x.dtype)
    return one_hot.T @ x, one_hot.sum(0)


def step_index_add(x: Tensor, centroids: Tensor) -> Tensor:
    labels = nearest_product(x, centroids)
    sums = torch.zeros_like(centroids).index_add_(0, labels, x)
    # bincount would wait for the device.
    counts = x.new_zeros(len(centroids)).index_add_(0, labels, x.new_ones(len(x)))
    return _means(sums, counts, centroids)


def step_one_hot(x: Tensor, centroids: Tensor) -> Tensor:
    sums, counts = update_one_hot(x, nearest_product(x, centroids), len(centroids))
    return _means(sums, counts, centroids)


def _means(sums: Tensor, counts: Tensor, centroids: Tensor) -> Tensor:
    counts = counts.unsqueeze(1)
    return torch.where(counts > 0, sums / counts, centroids)


def iterated(step: Function, x: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        centroids = step(x, centroids)
    return centroids


def loss_gather(z: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    return (z - centroids[labels]).square().sum() / len(z)


# k-means of libraries for the CPU.


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


def lloyd_sklearn(
    x: np.ndarray, centroids: np.ndarray, iterations: int, algorithm: str = "lloyd"
) -> Function:
    from sklearn.cluster import KMeans

    return lambda: _fitted(KMeans, x, centroids, iterations, algorithm=algorithm)


def lloyd_intelex(x: np.ndarray, centroids: np.ndarray, iterations: int) -> Function | None:
    try:
        from sklearnex.cluster import KMeans
    except ImportError:
        return None
    return lambda: _fitted(KMeans, x, centroids, iterations)


def _fitted(
    made: Function, x: np.ndarray, centroids: np.ndarray, iterations: int, **options: Any
) -> float:
    model = made(len(centroids), init=centroids, n_init=1, max_iter=iterations, tol=0, **options)
    return float(model.fit(x).inertia_)


def plus_plus_sklearn(x: np.ndarray, k: int) -> Function:
    from sklearn.cluster import kmeans_plusplus

    return lambda: kmeans_plusplus(x, k, random_state=0)[0]


def mini_batches_sklearn(x: np.ndarray, k: int, options: dict[str, Any]) -> Function:
    from sklearn.cluster import MiniBatchKMeans

    return lambda: MiniBatchKMeans(k, **options).fit(x).cluster_centers_


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


# k-means of libraries for GPUs. Hard assignment gives labels, Lloyd's iterations give centroids.


def assign_flash_kmeans(x: Tensor, centroids: Tensor) -> Function:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    x, centroids = x.unsqueeze(0), centroids.unsqueeze(0)
    norms = x.square().sum(2)  # its iterations compute them once
    return lambda: euclid_assign_triton(x, centroids, norms)[0]


def lloyd_flash_kmeans(x: Tensor, centroids: Tensor, iterations: int) -> Function:
    from flash_kmeans import batch_kmeans_Euclid

    def run() -> Tensor:
        _, found, _ = batch_kmeans_Euclid(
            x.unsqueeze(0),
            len(centroids),
            max_iters=iterations,
            tol=0.0,
            init_centroids=centroids.unsqueeze(0),
        )
        return found[0]

    return run


def assign_flashlib(x: Tensor, centroids: Tensor) -> Function:
    from flashlib.primitives.kmeans import euclid_assign_triton

    x, centroids = x.unsqueeze(0), centroids.unsqueeze(0)
    return lambda: euclid_assign_triton(x, centroids)[0]


def lloyd_flashlib(x: Tensor, centroids: Tensor, iterations: int) -> Function:
    from flashlib import flash_kmeans

    def run() -> Tensor:
        # It writes over the centroids that it is given.
        given = centroids.clone().unsqueeze(0)
        options = {"max_iters": iterations, "tol": 0.0, "init_centroids": given}
        return flash_kmeans(x, len(centroids), **options)[1]

    return run


def assign_cuml(x: Tensor, centroids: Tensor) -> Function:
    import cupy

    # A centroid is the mean of the rows nearest to it, where these are the centroids themselves.
    model = _cuml(centroids, 1).fit(cupy.from_dlpack(centroids))
    rows = cupy.from_dlpack(x)
    return lambda: model.predict(rows)


def lloyd_cuml(x: Tensor, centroids: Tensor, iterations: int) -> Function:
    import cupy

    rows = cupy.from_dlpack(x)
    return lambda: _cuml(centroids, iterations).fit(rows).cluster_centers_


def _cuml(centroids: Tensor, iterations: int) -> Any:
    import cupy
    from cuml.cluster import KMeans

    return KMeans(
        n_clusters=len(centroids),
        init=cupy.from_dlpack(centroids).copy(),  # some versions write over it
        n_init=1,
        max_iter=iterations,
        tol=float(np.finfo(np.float32).tiny),  # it takes no 0
        output_type="cupy",
    )


# Imported as their names say, in small letters and with an underscore.
ASSIGN_ON_GPU = {
    "flash-kmeans": assign_flash_kmeans,
    "flashlib": assign_flashlib,
    "cuML": assign_cuml,
}
LLOYD_ON_GPU = {
    "flash-kmeans": lloyd_flash_kmeans,
    "flashlib": lloyd_flashlib,
    "cuML": lloyd_cuml,
}
