"""Steps of mini-batch k-means in one call: those of the oracle, and of the way by parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust.cluster import MiniBatchKMeans
from deepclust.cluster._lloyd import means
from deepclust.cluster._points import Points
from deepclust.kernels.kmeans_assign.op import assign_and_update, kmeans_batch
from tests import budget, reference
from tests.cases import DTYPES, as_numpy, backends_for, lay_out

pytestmark = pytest.mark.skipif("cpp" not in backends_for("kmeans_assign"), reason="no extension")

dtypes = pytest.mark.parametrize("dtype", DTYPES)
weighted = pytest.mark.parametrize("weighted", [False, True])
picked = pytest.mark.parametrize("picked", [False, True])
# N, D, K of direct differences and of products, with sums beside the assignment and in a pass of
# their own, which takes 8,192 of them and D or more.
SHAPES = [
    (1, 1, 1),
    (3, 4, 9),
    (127, 11, 10),
    (300, 16, 1),
    (200, 17, 3),
    (90, 784, 10),
    (400, 3, 700),
    (150, 70, 130),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def make(
    shape: tuple[int, int, int], dtype: torch.dtype, *, shift: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x (M, D), the numbers (N,) of a batch, some of them twice, weights, centroids and counts.

    M is less than N, so that no batch is read in order. Of the centroids one has had no rows.
    """
    n, d, k = shape
    rng = torch.Generator().manual_seed(0)
    m = max(1, 2 * n // 3)
    mu = torch.randn(k, d, generator=rng, dtype=torch.float64) + shift
    x = torch.randn(m, d, generator=rng, dtype=torch.float64) + shift
    rows = torch.randint(m, (n,), generator=rng)
    weight = torch.rand(n, generator=rng, dtype=torch.float64) * 3
    weight[::7] = 0.0
    counts = torch.randint(9, (k,), generator=rng).double()
    counts[k // 2], mu[k // 2] = 0.0, mu[k // 2] + (10 if k > 1 else 0)
    return x.to(dtype), rows, weight.to(dtype), mu.to(dtype), counts


def step(
    x: Tensor, rows: Tensor | None, weight: Tensor | None, mu: Tensor, counts: Tensor
) -> tuple[float, Tensor, Tensor]:
    found = kmeans_batch(x, rows, weight, mu, counts, "cpp")
    assert found is not None
    return found


def assert_same(found: tuple[float, Tensor, Tensor], other: tuple[float, Tensor, Tensor]) -> None:
    assert found[0] == other[0]
    assert torch.equal(found[1], other[1])
    assert torch.equal(found[2], other[2])


@shapes
@dtypes
@weighted
def test_oracle(shape: tuple[int, int, int], dtype: torch.dtype, weighted: bool) -> None:
    x, rows, weight, mu, counts = make(shape, dtype)
    u, exact_mu = budget.roundoff(dtype), as_numpy(mu)
    if len(mu) > 1:  # rows so near to two centroids that rounding may choose are left out
        ranked = np.sort(reference.squared_distances(as_numpy(x[rows]), exact_mu), axis=1)
        slack = 2 * budget.Scores(as_numpy(x[rows]), reference.StudentT(exact_mu), u).ed2.max(1)
        certain = torch.from_numpy(ranked[:, 1] - ranked[:, 0] > slack)
        assert certain.double().mean() > 0.9
        rows, weight = rows[certain], weight[certain]
    before = mu.clone(), counts.clone()
    inertia, moved, after = step(x, rows, weight if weighted else None, mu, counts)
    assert torch.equal(mu, before[0])
    assert torch.equal(counts, before[1])
    assert moved.dtype == dtype

    args = as_numpy(x[rows]), exact_mu, as_numpy(counts), as_numpy(weight) if weighted else None
    expected = reference.kmeans_batch(*args)
    sums = (budget.growth(len(rows)) + 4) * budget.roundoff(torch.float64)
    distances = (budget.growth(shape[1]) + 4) * u
    np.testing.assert_allclose(inertia, expected[0], rtol=distances + sums)
    scale = np.abs(args[0]).max() + np.abs(exact_mu)  # of what the means are of
    assert (np.abs(as_numpy(moved) - expected[1]) <= (u + sums) * scale).all()
    np.testing.assert_allclose(as_numpy(after), expected[2], rtol=sums)
    without = as_numpy(after) == 0
    assert without.any() or len(mu) == 1
    np.testing.assert_array_equal(as_numpy(moved)[without], exact_mu[without])


@shapes
@dtypes
@weighted
@picked
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_same_bits_as_by_parts(
    shape: tuple[int, int, int], dtype: torch.dtype, weighted: bool, picked: bool, shift: float
) -> None:
    """What other rows than those in memory, and other backends, go through."""
    x, rows, weight, mu, counts = make(shape, dtype, shift=shift)
    batch, weight = x[rows], weight if weighted else torch.ones_like(weight)
    found = step(x, rows, weight, mu, counts) if picked else step(batch, None, weight, mu, counts)
    labels, sq_dist = torch.empty(len(rows), dtype=torch.int64), torch.empty(len(rows), dtype=dtype)
    sums, given = assign_and_update(batch, mu, weight, labels, sq_dist, "cpp")
    sums += counts.unsqueeze(1) * mu.double()
    assert torch.equal(found[1], means(sums, counts + given, mu, unit=False))
    assert torch.equal(found[2], counts + given)
    inertia = float((weight.double() * sq_dist.double()).sum())
    np.testing.assert_allclose(found[0], inertia, rtol=1e-13)


@pytest.mark.parametrize("shape", [(2100, 40, 5), (1100, 20, 700)], ids=str)
@dtypes
def test_rows_far_from_the_origin(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Where products round too much, which a look at some of the picked rows tells."""
    x, rows, weight, mu, counts = make(shape, dtype, shift=1e4)
    assert_same(step(x, rows, weight, mu, counts), step(x[rows].clone(), None, weight, mu, counts))


@pytest.mark.parametrize("layout", ["strided", "transposed", "offset"])
@pytest.mark.parametrize("shape", [(127, 11, 10), (200, 17, 3), (150, 70, 130)], ids=str)
@picked
def test_any_strides(shape: tuple[int, int, int], layout: str, picked: bool) -> None:
    x, rows, weight, mu, counts = make(shape, torch.float32)
    numbers, weight = (rows, weight) if picked else (None, weight[: len(x)])
    expected = step(x, numbers, weight, mu, counts)
    assert_same(step(lay_out(x, layout), numbers, weight, lay_out(mu, layout), counts), expected)


@pytest.mark.parametrize("shape", [(9001, 10, 10), (3001, 40, 30), (3001, 64, 256)], ids=str)
@dtypes
@weighted
def test_same_bits_for_any_number_of_threads(
    shape: tuple[int, int, int], dtype: torch.dtype, weighted: bool, threads: Callable[[int], None]
) -> None:
    x, rows, weight, mu, counts = make(shape, dtype)
    found = []
    for n_threads in (1, 2, 4):
        threads(n_threads)
        found.append(step(x, rows, weight if weighted else None, mu, counts))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_other_backends_have_none() -> None:
    x, rows, weight, mu, counts = make((127, 11, 10), torch.float32)
    assert kmeans_batch(x, rows, weight, mu, counts, "eager") is None


def rows_of(n: int, d: int, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, d)) + 4 * rng.normal(size=(9, d))[np.arange(n) % 9]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [5, 40])
@weighted
def test_fits_are_those_by_parts(
    dtype: type, d: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = rows_of(3000, d, dtype)
    weight = np.random.default_rng(1).random(3000) if weighted else None
    options = {"batch_size": 200, "max_iter": 2, "random_state": 0}
    eager = MiniBatchKMeans(9, backend="eager", **options).fit(X, sample_weight=weight)
    steps = []
    plain = Points.step

    def counted(self: Points, *args: Tensor) -> tuple[float, Tensor, Tensor] | None:
        steps.append(plain(self, *args))
        return steps[-1]

    monkeypatch.setattr(Points, "step", counted)
    made = MiniBatchKMeans(9, **options).fit(X, sample_weight=weight)
    assert len(steps) == made.n_steps_
    assert None not in steps
    monkeypatch.setattr(Points, "step", lambda self, *args: None)
    by_parts = MiniBatchKMeans(9, **options).fit(X, sample_weight=weight)
    assert made.n_steps_ == by_parts.n_steps_ == eager.n_steps_
    np.testing.assert_array_equal(made.cluster_centers_, by_parts.cluster_centers_)
    np.testing.assert_array_equal(made.labels_, by_parts.labels_)
    np.testing.assert_array_equal(made.labels_, eager.labels_)
    rtol = 1e-5 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(made.cluster_centers_, eager.cluster_centers_, rtol=rtol, atol=rtol)


def test_partial_fit_of_a_file_gives_the_bits_of_the_array(tmp_path: Path) -> None:
    X = rows_of(500, 6, np.float64)
    np.save(tmp_path / "X.npy", X)
    made, found = (MiniBatchKMeans(9, random_state=0) for _ in range(2))
    for _ in range(3):
        made.partial_fit(X)
        found.partial_fit(tmp_path / "X.npy")
    np.testing.assert_array_equal(found.cluster_centers_, made.cluster_centers_)


def test_large_batches_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X = rows_of(500, 6, np.float64)
    whole = MiniBatchKMeans(9, random_state=0).fit(X)
    monkeypatch.setattr("deepclust.cluster._points.BLOCK_ELEMENTS", 6 * 100)
    cut = MiniBatchKMeans(9, random_state=0).fit(X)
    np.testing.assert_allclose(cut.cluster_centers_, whole.cluster_centers_, rtol=1e-12)
