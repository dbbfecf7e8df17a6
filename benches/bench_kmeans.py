"""k-means: assignment, candidates, update, loss; starts, ten iterations, an epoch of batches."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benches import peers
from benches.race import BACKEND, ON_GPU, SHAPES, Contender, Race, tf32
from deepclust import functional as F
from deepclust.cluster import KMeans, MiniBatchKMeans
from deepclust.cluster._lloyd import lloyd
from deepclust.cluster._points import Points
from deepclust.cluster._seeding import plus_plus
from deepclust.cluster._sources import Dense

ITERATIONS = 10
CANDIDATES = 8  # as many as greedy k-means++ has for 1,000 clusters
BATCH = 4096
# On the CPU it is the libraries that are to be beaten.
FORMS = peers.forms if ON_GPU else peers.eager


def contenders(functions: dict[str, Any], *args: Any) -> list[Contender]:
    return [Contender(name, lambda f=f: f(*args)) for name, f in functions.items()]


def as_points(x: Tensor) -> Points:
    options = {"unit": False, "hold": True, "sample_weight": None, "backend": BACKEND}
    return Points(Dense(x), x.dtype, x.device, **options)


def bench_kmeans_assign(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    x, centroids = data
    n, d, k = SHAPES[shape]
    expected, _ = F.kmeans_assign(x.double(), centroids.double(), backend="eager")

    def mismatch(labels: object) -> float:
        found = torch.as_tensor(labels, device=expected.device)
        return float((found != expected).double().mean())

    functions = {"cdist": peers.nearest_cdist}
    if ON_GPU:
        functions["product"] = peers.nearest_product
        if d <= 16:
            functions["broadcast"] = peers.nearest_broadcast
    others = contenders(FORMS(functions), x, centroids)
    if ON_GPU:
        others += contenders({"torch product, TF32": tf32(peers.nearest_product)}, x, centroids)
        others += contenders(peers.installed(peers.ASSIGN_ON_GPU, x, centroids))
    else:
        others.append(Contender("scikit-learn", peers.assign_sklearn(x.numpy(), centroids.numpy())))
        if (search := peers.assign_faiss(x.numpy(), centroids.numpy())) is not None:
            others.append(Contender("faiss", search))
    race(
        "kmeans_assign",
        shape,
        Contender("deepclust", lambda: F.kmeans_assign(x, centroids, backend=BACKEND)[0]),
        others,
        error=mismatch,
        tolerance=1e-4,
        flops=2 * n * d * k,
        bytes=4 * n * d + 12 * n,
    )


def bench_kmeans_candidates(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    x = data[0]
    n, d, _ = SHAPES[shape]
    args = (x, x[:CANDIDATES].clone(), F.kmeans_assign(x, x[-1:])[1])
    expected = peers.candidates_cdist(*(arg.double() for arg in args))[1]
    race(
        "kmeans_candidates",
        shape,
        Contender("deepclust", lambda: F.kmeans_candidates(*args, backend=BACKEND)),
        contenders(FORMS({"cdist": peers.candidates_cdist}), *args),
        error=lambda r: float(((r[1].double() - expected) / expected).abs().max()),
        tolerance=1e-6,
        flops=3 * n * d * CANDIDATES,
        bytes=4 * n * (d + 1 + CANDIDATES),
    )


def bench_kmeans_update(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    x, centroids = data
    n, d, k = SHAPES[shape]
    labels, _ = F.kmeans_assign(x, centroids)
    expected, _ = peers.update_index_add(x.double(), labels, k)
    functions = {"index_add": peers.update_index_add}
    if ON_GPU:  # where few clusters make index_add's sums collide
        functions["one-hot"] = peers.update_one_hot
    race(
        "kmeans_update",
        shape,
        Contender("deepclust", lambda: F.kmeans_update(x, labels, k, backend=BACKEND)),
        contenders(FORMS(functions), x, labels, k),
        error=lambda r: float((r[0].double() - expected).abs().max() / expected.abs().max()),
        tolerance=1e-6,
        flops=n * d,
        bytes=4 * n * d + 8 * n,
    )


def bench_kmeans_loss(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    z, centroids = (t.clone().requires_grad_() for t in data)
    n, d, _ = SHAPES[shape]
    labels, _ = F.kmeans_assign(z.detach(), centroids.detach())

    def ours() -> tuple[Tensor, ...]:
        loss = F.kmeans_loss(z, centroids, labels, backend=BACKEND)
        return torch.autograd.grad(loss, (z, centroids))

    def plain(loss: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(z, centroids, labels), (z, centroids))

    expected = 2 * (z.detach().double() - centroids.detach().double()[labels]) / n
    race(
        "kmeans_loss",
        shape,
        Contender("deepclust", ours),
        [
            Contender(name, lambda f=f: plain(f))
            for name, f in FORMS({"gather": peers.loss_gather}).items()
        ],
        error=lambda g: float((g[0].double() - expected).abs().max() / expected.abs().max()),
        tolerance=1e-6,
        flops=3 * n * d,
        bytes=4 * 2 * n * d + 8 * n,
    )


def bench_lloyd(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    x, centroids = data[0], data[0][: SHAPES[shape][2]].clone()
    n, d, k = SHAPES[shape]
    rows = x if ON_GPU else x.numpy()
    options = {"init": centroids.cpu().numpy(), "max_iter": ITERATIONS, "tol": 0}
    model = KMeans(k, backend=BACKEND, **options)

    def ours() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ten iterations need not converge
            model.fit(rows)
        return model.cluster_centers_ if ON_GPU else float(model.inertia_)

    def inertia_of(result: Any) -> float:
        if isinstance(result, float):
            return result
        # The libraries for GPUs give centroids alone; what these cost is no part of the race.
        found = torch.as_tensor(result, device=x.device).double()
        return float(F.kmeans_assign(x.double(), found, backend="eager")[1].sum())

    if ON_GPU:
        steps = peers.forms({"index_add": peers.step_index_add, "one-hot": peers.step_one_hot})
        others = [
            Contender(name, lambda f=f: peers.iterated(f, x, centroids, ITERATIONS))
            for name, f in steps.items()
        ]
        others += contenders(peers.installed(peers.LLOYD_ON_GPU, x, centroids, ITERATIONS))
        # `fit` looks for NaN; the libraries check nothing.
        unchecked = partial(lloyd, as_points(x), centroids, ITERATIONS, 0.0)
        others.append(Contender("deepclust, unchecked", lambda: unchecked().centroids))
    else:
        arrays = (x.numpy(), centroids.numpy(), ITERATIONS)
        others = [
            Contender(f"scikit-learn, {name}", peers.lloyd_sklearn(*arrays, name))
            for name in ("lloyd", "elkan")
        ]
        for name, find in {"intelex": peers.lloyd_intelex, "faiss": peers.lloyd_faiss}.items():
            if (train := find(*arrays)) is not None:
                others.append(Contender(name, train))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if ON_GPU:
            expected = KMeans(k, backend="eager", **options).fit(x.double()).inertia_
        else:
            # Equal iterations from equal centroids: scikit-learn's inertia is the witness.
            expected = others[0].run()
    race(
        "kmeans, 10 iterations",
        shape,
        Contender("deepclust", ours),
        others,
        error=lambda result: abs(inertia_of(result) - expected) / expected,
        tolerance=1e-3,
        flops=ITERATIONS * 2 * n * d * k,
        bytes=4 * n * d,
        passes=ITERATIONS,
    )


def inertia_of(x: Tensor, centroids: Any) -> float:
    found = torch.as_tensor(centroids, device=x.device)
    return float(F.kmeans_assign(x, found)[1].double().sum())


def bench_plus_plus(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    x = data[0]
    n, d, k = SHAPES[shape]
    points, theirs = as_points(x), peers.plus_plus_sklearn(x.cpu().numpy(), k)

    expected = inertia_of(x, theirs())
    race(
        "k-means++",
        shape,
        Contender("deepclust", lambda: plus_plus(points, k, np.random.RandomState(0))),
        [] if ON_GPU else [Contender("scikit-learn", theirs)],
        error=lambda centroids: inertia_of(x, centroids) / expected - 1,
        tolerance=0.5,  # both are draws
        flops=3 * n * d * k * (2 + int(np.log(k))),
        bytes=4 * n * d,
        passes=k,
    )


def bench_mini_batches(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    """As many batches as make up X once, from given centroids, and the labels."""
    x, centroids = data[0], data[0][: SHAPES[shape][2]].clone()
    n, d, k = SHAPES[shape]
    options = {"init": centroids.cpu().numpy(), "batch_size": BATCH, "max_iter": 1}
    options |= {"max_no_improvement": None, "random_state": 0}
    rows, model = x if ON_GPU else x.numpy(), MiniBatchKMeans(k, backend=BACKEND, **options)
    theirs = peers.mini_batches_sklearn(x.cpu().numpy(), k, options)

    expected = inertia_of(x, theirs())
    race(
        "mini-batches, 1 epoch",
        shape,
        Contender("deepclust", lambda: model.fit(rows).cluster_centers_),
        [] if ON_GPU else [Contender("scikit-learn", theirs)],
        error=lambda centroids: inertia_of(x, centroids) / expected - 1,
        tolerance=0.2,  # both are draws, and A has one batch
        flops=2 * n * d * k,
        bytes=4 * n * d,
    )
