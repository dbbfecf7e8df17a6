"""Any number of threads gives the same bits: values and gradients of every compiled primitive.

The shapes lie on both sides of the switches in csrc/: sums in parts or in slabs (pull_back.h: about
32,768 sums), in parts or by columns (label_sums.h: 262,144), blocks of several panels or of one
(blocks.h: 2,048 clusters). All have a ragged last block, and work enough to wake all the threads:
a thread takes 2^18 multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.kernels import _dispatch
from deepclust.kernels.kmeans_assign.op import Rounded
from deepclust.kernels.kmeans_update.op import label_changes
from tests.cases import HEADS, Case, gradients, make_case, random_target

pytestmark = pytest.mark.skipif(
    "cpp" not in _dispatch.available("assign"), reason="deepclust._C is blocked or not built"
)

# N, D, K
PARTS = (9001, 10, 10)
WIDE_PARTS = (3001, 64, 100)
SLABS = (2603, 260, 131)
MANY_CLUSTERS = (707, 8, 2100)  # in slabs for the Gaussian head only
SHAPES = [PARTS, WIDE_PARTS, SLABS, MANY_CLUSTERS]
SOFT = [(kind, shape) for shape in SHAPES for kind in HEADS]
LABELLED = [(70_003, 40, 11), (600_011, 4, 50), (8009, 300, 1000)]  # parts, parts, columns

soft = pytest.mark.parametrize(("kind", "shape"), SOFT)
labelled = pytest.mark.parametrize("shape", LABELLED)
Threads = Callable[[int], None]


def assert_same_bits(compute: Callable[[], tuple[Tensor, ...]], threads: Threads) -> None:
    threads(1)
    expected = compute()
    assert all(value.isfinite().all() for value in expected)
    for n_threads in (2, 3, 5, 8):
        threads(n_threads)
        for i, (got, one) in enumerate(zip(compute(), expected, strict=True)):
            assert torch.equal(got, one), f"result {i} with {n_threads} threads"


def seed_of(case: Case) -> Tensor:
    size = (len(case.z), case.head.n_clusters)
    return torch.randn(size, generator=torch.Generator().manual_seed(3))


@soft
def test_assign(kind: str, shape: tuple[int, int, int], threads: Threads) -> None:
    case = make_case(kind, shape).leaves()
    seed = seed_of(case)

    def compute() -> tuple[Tensor, ...]:
        q = F.assign(case.z, case.head, backend="cpp")
        return (q.detach(), *gradients(q, case, seed).values())

    assert_same_bits(compute, threads)


@soft
def test_frequencies(kind: str, shape: tuple[int, int, int], threads: Threads) -> None:
    case = make_case(kind, shape)
    previous = torch.arange(shape[0]) % shape[2]

    def compute() -> tuple[Tensor, ...]:
        f, labels, n_changed = F.frequencies(
            case.z, case.head, previous_labels=previous, backend="cpp"
        )
        return f, labels, n_changed

    assert_same_bits(compute, threads)


@soft
@pytest.mark.parametrize("frozen", [False, True])
def test_target_loss(
    kind: str, shape: tuple[int, int, int], frozen: bool, threads: Threads
) -> None:
    case = make_case(kind, shape)
    if frozen:
        old = make_case(kind, shape, seed=7)
        target = F.freeze_target(old.z, old.head, backend="cpp")
    else:
        target = random_target(shape[0], shape[2], torch.float32)

    def compute() -> tuple[Tensor, ...]:
        leaves = case.leaves()
        loss = F.target_loss(leaves.z, leaves.head, target, backend="cpp")
        alone = F.target_loss(case.z, case.head, target, backend="cpp")  # without gradients
        return (loss.detach(), alone, *gradients(loss, leaves).values())

    assert_same_bits(compute, threads)


@pytest.mark.parametrize("shape", [(100_003, 12), (3001, 1500)])
@pytest.mark.parametrize("make", [F.dec_target, F.depict_target])
@pytest.mark.parametrize("given", [False, True])
def test_targets(
    shape: tuple[int, int], make: Callable[..., Tensor], given: bool, threads: Threads
) -> None:
    q = torch.rand(shape, generator=torch.Generator().manual_seed(0)).softmax(1)
    f = q.sum(0) if given else None
    assert_same_bits(lambda: (make(q, frequencies=f, backend="cpp"),), threads)


def labelled_rows(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, d, k = shape
    rng = torch.Generator().manual_seed(0)
    x, mu = torch.randn(n, d, generator=rng), torch.randn(k, d, generator=rng)
    return x, mu, torch.randint(k, (n,), generator=rng), torch.rand(n, generator=rng)


@labelled
@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_update(shape: tuple[int, int, int], weighted: bool, threads: Threads) -> None:
    x, _, labels, weight = labelled_rows(shape)
    if not weighted:
        weight = None
    assert_same_bits(lambda: F.kmeans_update(x, labels, shape[2], weight, backend="cpp"), threads)


@labelled
def test_label_changes(shape: tuple[int, int, int], threads: Threads) -> None:
    x, _, labels, weight = labelled_rows(shape)
    before = torch.where(weight < 0.2, (labels + 1) % shape[2], labels)
    assert_same_bits(lambda: label_changes(x, labels, before, shape[2], "cpp"), threads)


@labelled
def test_kmeans_candidates(shape: tuple[int, int, int], threads: Threads) -> None:
    x, mu, _, weight = labelled_rows(shape)
    nearest = x.square().sum(1)
    assert_same_bits(
        lambda: F.kmeans_candidates(x, mu[:7], nearest, weight, backend="cpp"), threads
    )


@labelled
def test_kmeans_loss(shape: tuple[int, int, int], threads: Threads) -> None:
    x, mu, labels, _ = labelled_rows(shape)

    def compute() -> tuple[Tensor, ...]:
        z, centroids = x.clone().requires_grad_(), mu.clone().requires_grad_()
        loss = F.kmeans_loss(z, centroids, labels, backend="cpp")
        return (loss.detach(), *torch.autograd.grad(loss, (z, centroids)))

    assert_same_bits(compute, threads)


@labelled
def test_kmeans_of_rounded_rows(shape: tuple[int, int, int], threads: Threads) -> None:
    x, mu, _, _ = labelled_rows(shape)

    def compute() -> tuple[Tensor, ...]:
        labels = torch.empty(len(x), dtype=torch.int64)
        found = Rounded(x, mu, labels, "cpp")
        return labels, found.sums, found.counts, torch.tensor(found.scatter, dtype=torch.float64)

    assert_same_bits(compute, threads)


@pytest.mark.parametrize("shape", SHAPES)
def test_kmeans_assign(shape: tuple[int, int, int], threads: Threads) -> None:
    x, mu, _, _ = labelled_rows(shape)
    assert_same_bits(lambda: F.kmeans_assign(x, mu, backend="cpp"), threads)
