"""k-means: assignment, update, loss, and ten iterations from given centroids."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from benches import peers
from benches.race import SHAPES, Contender, Race
from deepclust import functional as F
from deepclust.cluster import KMeans

ITERATIONS = 10


def bench_kmeans_assign(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    x, centroids = data
    n, d, k = SHAPES[shape]
    expected, _ = F.kmeans_assign(x.double(), centroids.double(), backend="eager")

    def mismatch(labels: object) -> float:
        return float((torch.as_tensor(labels) != expected).double().mean())

    contenders = [
        Contender("torch cdist", lambda: torch.cdist(x, centroids).argmin(1)),
        Contender("scikit-learn", peers.assign_sklearn(x.numpy(), centroids.numpy())),
    ]
    if (search := peers.assign_faiss(x.numpy(), centroids.numpy())) is not None:
        contenders.append(Contender("faiss", search))
    race(
        "kmeans_assign",
        shape,
        Contender("deepclust", lambda: F.kmeans_assign(x, centroids)[0]),
        contenders,
        error=mismatch,
        tolerance=1e-4,
        flops=2 * n * d * k,
        bytes=4 * n * d + 12 * n,
    )


def bench_kmeans_update(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    x, centroids = data
    n, d, k = SHAPES[shape]
    labels, _ = F.kmeans_assign(x, centroids)
    expected = torch.zeros(k, d, dtype=torch.float64).index_add_(0, labels, x.double())

    def plain() -> tuple[Tensor, Tensor]:
        sums = torch.zeros(k, d).index_add_(0, labels, x)
        return sums, torch.bincount(labels, minlength=k)

    race(
        "kmeans_update",
        shape,
        Contender("deepclust", lambda: F.kmeans_update(x, labels, k)),
        [Contender("torch index_add", plain)],
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
        return torch.autograd.grad(F.kmeans_loss(z, centroids, labels), (z, centroids))

    def plain() -> tuple[Tensor, ...]:
        loss = (z - centroids[labels]).square().sum() / n
        return torch.autograd.grad(loss, (z, centroids))

    expected = 2 * (z.detach().double() - centroids.detach().double()[labels]) / n
    race(
        "kmeans_loss",
        shape,
        Contender("deepclust", ours),
        [Contender("torch gather", plain)],
        error=lambda g: float((g[0].double() - expected).abs().max() / expected.abs().max()),
        tolerance=1e-6,
        flops=3 * n * d,
        bytes=4 * 2 * n * d + 8 * n,
    )


def bench_lloyd(race: Race, shape: str, data: tuple[Tensor, Tensor]) -> None:
    x, centroids = data[0], data[0][: SHAPES[shape][2]].clone()
    n, d, k = SHAPES[shape]
    model = KMeans(k, init=centroids.numpy(), max_iter=ITERATIONS, tol=0)

    def ours() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ten iterations need not converge
            return float(model.fit(x.numpy()).inertia_)

    contenders = [
        Contender("scikit-learn", peers.lloyd_sklearn(x.numpy(), centroids.numpy(), ITERATIONS))
    ]
    if (train := peers.lloyd_faiss(x.numpy(), centroids.numpy(), ITERATIONS)) is not None:
        contenders.append(Contender("faiss", train))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Equal iterations from equal centroids: scikit-learn's inertia is the witness.
        expected = contenders[0].run()
    race(
        "kmeans, 10 iterations",
        shape,
        Contender("deepclust", ours),
        contenders,
        error=lambda inertia: abs(inertia - expected) / expected,
        tolerance=1e-3,
        flops=ITERATIONS * 2 * n * d * k,
        bytes=ITERATIONS * 4 * n * d,
    )
