"""Scores that round: 16-bit integers in csrc/integers.h, products in csrc/row_dots.h.

Labels are as certain as by direct differences.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.kernels.kmeans_assign.op import Rounded
from deepclust.kernels.kmeans_update.op import label_changes, label_sums
from tests import budget, reference
from tests.cases import DTYPES, as_numpy, backends_for

cpp = pytest.mark.parametrize("backend", [b for b in backends_for("kmeans_assign") if b == "cpp"])
dtypes = pytest.mark.parametrize("dtype", DTYPES)
# More than 16 numbers, rows and products enough that integers are worth it; odd widths, long rows,
# more centroids than a tile has, a last panel of one row, more rows than a block. Then few
# centroids of wide rows.
shapes = pytest.mark.parametrize(
    "shape",
    [
        *((600, 33, 40), (513, 200, 37), (1100, 64, 260), (520, 785, 32), (512, 1027, 50)),
        *((600, 785, 7), (513, 64, 16), (97, 1027, 10), (33, 200, 1)),
    ],
)


def gaussian(n: int, d: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(n, d)), rng.normal(size=(k, d))


def halfway(
    n: int, d: int, k: int, rng: np.random.Generator, digits: tuple[float, float] = (2, 8)
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are nearly as far from one centroid as from another, by less and less."""
    mu = rng.normal(size=(k, d))
    pairs = rng.integers(0, k, size=(n, 2))
    step = 10.0 ** -rng.uniform(*digits, size=(n, 1)) * rng.choice([-1, 1], size=(n, 1))
    x = (mu[pairs[:, 0]] + mu[pairs[:, 1]]) / 2 + step * (mu[pairs[:, 0]] - mu[pairs[:, 1]])
    return x, mu


def on_centroids(n: int, d: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mu = rng.normal(size=(k, d))
    return mu[rng.integers(0, k, size=n)], mu


def close_centroids(
    n: int, d: int, k: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids that integers of their length hardly tell apart."""
    return rng.normal(size=(n, d)), 3 + rng.normal(size=(1, d)) + 1e-4 * rng.normal(size=(k, d))


def binary(n: int, d: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers that are all rounded alike."""
    return 1.0 * (rng.random((n, d)) < 0.2), 1.0 * (rng.random((k, d)) < 0.2)


def one_number(n: int, d: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows as long as their only number, and rows of zeros."""
    x = np.zeros((n, d))
    x[np.arange(n), rng.integers(0, d, size=n)] = 100 * rng.normal(size=n)
    x[::5] = 0
    return x, np.resize(x, (k, d)) + 0.1 * rng.normal(size=(k, d))


def outliers(n: int, d: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x, mu = gaussian(n, d, k, rng)
    x[::7] *= 1e6
    x[1::7] *= 1e-6
    mu[::3] *= 1e4
    return x, mu


def tiny(n: int, d: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x, mu = gaussian(n, d, k, rng)
    return 1e-16 * x, 1e-16 * mu


def large(n: int, d: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x, mu = gaussian(n, d, k, rng)
    return 1e14 * x, 1e14 * mu


KINDS = (
    gaussian,
    halfway,
    on_centroids,
    close_centroids,
    binary,
    one_number,
    outliers,
    tiny,
    large,
)


def strided(x: Tensor) -> Tensor:
    wide = x.new_full((2 * x.shape[0], 3 * x.shape[1]), torch.nan)
    view = wide[1::2, 2::3]
    view.copy_(x)
    return view


@cpp
@dtypes
@shapes
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_label_is_the_nearest_up_to_the_rounding_of_direct_differences(
    backend: str, dtype: torch.dtype, shape: tuple[int, int, int], kind: Callable[..., object]
) -> None:
    """Which is far less than that of products, let alone of integers."""
    x, mu = (torch.from_numpy(a).to(dtype) for a in kind(*shape, np.random.default_rng(0)))
    labels, sq_dist = F.kmeans_assign(x, mu, backend=backend)
    squared = reference.squared_distances(as_numpy(x), as_numpy(mu))
    found = squared[np.arange(len(squared)), as_numpy(labels)]
    error = (budget.growth(shape[1]) + 4) * budget.roundoff(dtype)
    smallest = float(torch.finfo(dtype).tiny)
    assert (found <= squared.min(1) * (1 + 3 * error) + smallest).all()
    np.testing.assert_allclose(as_numpy(sq_dist), found, rtol=error, atol=smallest)


@cpp
def test_what_integers_lose_is_known(backend: str) -> None:
    """So many close decisions that for some rows the losses add up, as the bound says they may."""
    rng = np.random.default_rng(0)
    x, mu = (torch.from_numpy(a) for a in halfway(100_000, 24, 64, rng, digits=(5, 6)))
    # As few as are not asked first whether integers tell them apart.
    labels = torch.cat([F.kmeans_assign(rows, mu, backend=backend)[0] for rows in x.split(1000)])
    assert torch.equal(labels, F.kmeans_assign(x, mu, backend="eager")[0])  # in float64


@cpp
@dtypes
@shapes
def test_ties_go_to_the_lowest_index(
    backend: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    x, mu = (torch.from_numpy(a).to(dtype) for a in gaussian(*shape, np.random.default_rng(0)))
    alone = F.kmeans_assign(x, mu, backend=backend)
    thrice = F.kmeans_assign(x, mu.repeat(3, 1), backend=backend)
    assert torch.equal(thrice[0], alone[0])
    assert torch.equal(thrice[1], alone[1])


@cpp
@dtypes
@pytest.mark.parametrize(
    "shape",
    [
        (1001, 10, 10),
        (40, 1, 1),
        (3, 17, 9),
        (0, 5, 2),
        (1100, 64, 260),
        (700, 785, 7),
        (99, 64, 16),
    ],
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_rows_rounded_once(
    backend: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    kind: Callable[..., object],
    threads: Callable[[int], None],
) -> None:
    """Centroids move, and the rows stay: labels and distances are those of rows in full."""
    rng = np.random.default_rng(0)
    x, mu = (torch.from_numpy(a).to(dtype) for a in kind(*shape, rng))
    rows, before = strided(x), torch.full((len(x),), -1)
    rounded = Rounded(rows, mu, before, backend)
    sums, counts = label_sums(rows, before, len(mu), None, backend)
    assert_near(rounded.sums, sums, x)
    assert torch.equal(rounded.counts, counts)
    assert_scatter(rounded.scatter, x)
    for n_threads in (1, 2, 3):
        threads(n_threads)
        labels = torch.full((len(x),), -1)
        rounded.nearest(mu, labels, None)
        if n_threads == 1:
            assert torch.equal(labels, before)
        squared = reference.squared_distances(as_numpy(x), as_numpy(mu))
        found = squared[np.arange(len(squared)), as_numpy(labels)]
        error = (budget.growth(shape[1]) + 4) * budget.roundoff(dtype)
        smallest = float(torch.finfo(dtype).tiny)
        assert (found <= squared.min(1) * (1 + 3 * error) + smallest).all()
        again, sq_dist = torch.full((len(x),), -1), x.new_full((len(x),), torch.nan)
        rounded.nearest(mu, again, sq_dist)
        assert torch.equal(again, labels)
        np.testing.assert_allclose(as_numpy(sq_dist), found, rtol=error, atol=smallest)
        for distances in (None, sq_dist):
            again = torch.full((len(x),), -1)
            more = rounded.assign_and_change(mu, again, distances, before)
            assert torch.equal(again, labels)
            sums, counts = label_changes(rows, labels, before, len(mu), backend)
            assert_near(more[0], sums, x)
            assert torch.equal(more[1], counts)
        before = labels
        mu = 3 * mu + torch.from_numpy(rng.normal(size=mu.shape)).to(dtype) * mu.abs().mean()


def assert_scatter(found: float, x: Tensor) -> None:
    """Of squared distances to a point that is nearer to the mean than 256 rows' own distances."""
    exact = float((x.double() - x.double().mean(0)).square().sum()) if len(x) else 0.0
    error = (budget.growth(x.shape[1]) + 4) * budget.roundoff(x.dtype)
    assert found == pytest.approx(exact, rel=error * (1 + len(x) / 256), abs=1e-300)


def assert_near(found: Tensor, expected: Tensor, x: Tensor) -> None:
    """Sums of the same rows in float64, in another order."""
    error = budget.growth(2 * len(x)) * budget.roundoff(torch.float64)
    assert (found - expected).abs().max() <= error * float(x.abs().double().sum(0).max())


@cpp
def test_rounded_rows_say_whether_they_are_worth_it(backend: str) -> None:
    x, mu = (torch.from_numpy(a) for a in gaussian(500, 30, 20, np.random.default_rng(0)))
    labels = torch.empty(500, dtype=torch.int64)
    rounded = Rounded(x, mu, labels, backend)
    assert rounded.worth
    rounded.nearest(mu[:1] + 1e-9 * mu, labels, None)
    assert not rounded.worth
    assert torch.equal(labels, F.kmeans_assign(x, mu[:1] + 1e-9 * mu, backend=backend)[0])
    assert not Rounded(x, mu[:1] + 1e-9 * mu, labels, backend).worth


@cpp
@dtypes
@pytest.mark.parametrize("shape", [(600, 40, 50), (600, 70, 11)])
def test_what_is_not_finite(backend: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """It is refused with its row; unchecked it spoils no other row."""
    x, mu = (torch.from_numpy(a).to(dtype) for a in gaussian(*shape, np.random.default_rng(0)))
    clean = F.kmeans_assign(x, mu, backend=backend)
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = x.clone()
        bad[123, 17] = value
        with pytest.raises(ValueError, match=r"^x: row 123 "):
            F.kmeans_assign(bad, mu, backend=backend)
        labels, sq_dist = F.kmeans_assign(bad, mu, backend=backend, check=False)
        others = torch.arange(600) != 123
        assert torch.equal(labels[others], clean[0][others])
        assert torch.equal(sq_dist[others], clean[1][others])
        assert 0 <= int(labels[123]) < shape[2]


@cpp
@dtypes
@pytest.mark.parametrize("shape", [(3000, 50, 40), (3000, 70, 11)])
def test_any_strides_and_threads(
    backend: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    threads: Callable[[int], None],
) -> None:
    x, mu = (torch.from_numpy(a).to(dtype) for a in gaussian(*shape, np.random.default_rng(0)))
    threads(1)
    labels, sq_dist = F.kmeans_assign(x, mu, backend=backend)
    for n_threads in (1, 2, 3):
        threads(n_threads)
        for rows, centroids in ((x, mu), (strided(x), strided(mu)), (x.T.contiguous().T, mu)):
            found = F.kmeans_assign(rows, centroids, backend=backend)
            assert torch.equal(found[0], labels)
            assert torch.equal(found[1], sq_dist)
