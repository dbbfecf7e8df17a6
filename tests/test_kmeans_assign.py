from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from tests import budget, reference
from tests.cases import DTYPES, LAYOUTS, SHAPES, as_numpy, backends_for, judge, lay_out

backends = pytest.mark.parametrize("backend", backends_for("kmeans_assign"))
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def make_points(
    shape: tuple[int, int, int], dtype: torch.dtype, *, shift: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    n, d, k = shape
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=rng, dtype=torch.float64) + shift
    centroids = torch.randn(k, d, generator=rng, dtype=torch.float64) + shift
    return x.to(dtype), centroids.to(dtype)


def check_against_oracle(x: Tensor, centroids: Tensor, backend: str) -> None:
    """The label is nearest up to rounding; its distance is exact, by direct difference."""
    exact_x, exact_mu = as_numpy(x), as_numpy(centroids)
    n, d = exact_x.shape
    u = budget.roundoff(x.dtype)
    squared = reference.squared_distances(exact_x, exact_mu)
    nearest, _ = reference.kmeans_assign(exact_x, exact_mu)
    # What the choice may be off by: twice the error of a distance from centred products.
    slack = 2 * budget.Scores(exact_x, reference.StudentT(exact_mu), u).ed2.max(1)
    chosen: dict[str, Tensor] = {}

    def compute(backend: str) -> dict[str, Tensor]:
        chosen[backend], distance = F.kmeans_assign(x, centroids, backend=backend)
        return {"sq_dist": distance}

    compute(backend)
    labels = chosen[backend]
    assert labels.dtype == torch.int64
    assert labels.shape == (n,)
    found = squared[np.arange(n), as_numpy(labels)]
    assert (found <= squared.min(1) + slack).all()
    if squared.shape[1] > 1 and n:
        ranked = np.sort(squared, axis=1)
        certain = ranked[:, 1] - ranked[:, 0] > slack
        assert (as_numpy(labels) == nearest)[certain].all()
    # z - mu, its square, the sum: relative to the distance itself, wherever the points lie
    relative = (budget.growth(d) + 4) * u
    judge(
        lambda name: {"sq_dist": F.kmeans_assign(x, centroids, backend=name)[1]},
        backend,
        {"sq_dist": found},
        {"sq_dist": relative * found + float(torch.finfo(x.dtype).tiny)},
    )


@backends
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_oracle(
    backend: str, dtype: torch.dtype, shape: tuple[int, int, int], shift: float
) -> None:
    check_against_oracle(*make_points(shape, dtype, shift=shift), backend)


@backends
@dtypes
@pytest.mark.parametrize("shape", [(500, 2, 3), (300, 33, 70), (65, 200, 17), (1000, 8, 257)])
def test_more_shapes(backend: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    check_against_oracle(*make_points(shape, dtype), backend)


@backends
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(backend: str, layout: str) -> None:
    x, centroids = make_points((127, 11, 10), torch.float32)
    if layout == "expanded":
        x, layout = x[:1].expand(127, 11), "strided"
    else:
        x = lay_out(x, layout)
    check_against_oracle(x, lay_out(centroids, layout), backend)


@backends
def test_expanded_centroids(backend: str) -> None:
    x, centroids = make_points((50, 3, 4), torch.float32)
    labels, distance = F.kmeans_assign(x, centroids[:1].expand(6, 3), backend=backend)
    assert not labels.any()
    torch.testing.assert_close(distance, ((x - centroids[:1]) ** 2).sum(1))


@backends
@dtypes
@pytest.mark.parametrize("shape", [(400, 13, 37), (400, 2, 5), (100, 64, 130)])
def test_ties_go_to_the_lowest_index(
    backend: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    """Every centroid three times: the copies are equally near, bit for bit; the first one wins."""
    x, centroids = make_points(shape, dtype)
    labels, distance = F.kmeans_assign(x, centroids.repeat(3, 1), backend=backend)
    assert int(labels.max()) < shape[2]
    alone = F.kmeans_assign(x, centroids, backend=backend)
    assert torch.equal(labels, alone[0])
    assert torch.equal(distance, alone[1])


@backends
@dtypes
def test_halfway_is_a_tie(backend: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 7.0], [0.0, -1.0], [0.5, 0.0]], dtype=dtype)
    centroids = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]], dtype=dtype)
    labels, distance = F.kmeans_assign(x, centroids, backend=backend)
    assert labels.tolist() == [1, 1, 2]
    assert distance.tolist() == [50.0, 2.0, 0.25]


@backends
@dtypes
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_points_on_centroids_have_distance_zero(
    backend: str, dtype: torch.dtype, shift: float
) -> None:
    _, centroids = make_points((1, 12, 20), dtype, shift=shift)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    labels, distance = F.kmeans_assign(centroids[order], centroids, backend=backend)
    assert torch.equal(labels, order)
    assert not distance.any()


@backends
@dtypes
def test_huge_distances(backend: str, dtype: torch.dtype) -> None:
    x, centroids = make_points((6, 4, 3), dtype)
    x[0], x[1, 0] = 3e18, -3e18
    labels, distance = F.kmeans_assign(x, centroids, backend=backend)
    assert distance.isfinite().all()
    torch.testing.assert_close(distance[0], torch.tensor(3.6e37, dtype=dtype))
    assert ((labels >= 0) & (labels < 3)).all()


@backends
def test_permuting_centroids_permutes_labels(backend: str) -> None:
    x, centroids = make_points((127, 11, 10), torch.float64)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    labels, distance = F.kmeans_assign(x, centroids, backend=backend)
    moved, same = F.kmeans_assign(x, centroids[order], backend=backend)
    assert torch.equal(order[moved], labels)
    assert torch.equal(same, distance)


@backends
@dtypes
def test_translation_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    x, centroids = make_points((127, 11, 10), dtype)
    x, centroids = (x * 8).round() / 8, (centroids * 8).round() / 8
    labels, distance = F.kmeans_assign(x, centroids, backend=backend)
    moved, same = F.kmeans_assign(x + 512, centroids + 512, backend=backend)
    # the differences are the same numbers, so the winning distances are the same bits
    assert torch.equal(same, distance)
    squared = reference.squared_distances(as_numpy(x), as_numpy(centroids))
    rows = np.arange(127)
    assert (squared[rows, as_numpy(moved)] == squared[rows, as_numpy(labels)]).all()


@backends
def test_segments_equal_the_whole(backend: str) -> None:
    x, centroids = make_points((5000, 11, 10), torch.float32)
    labels, distance = F.kmeans_assign(x, centroids, backend=backend)
    parts = [F.kmeans_assign(rows, centroids, backend=backend) for rows in x.split(777)]
    assert torch.equal(torch.cat([part[0] for part in parts]), labels)
    assert torch.equal(torch.cat([part[1] for part in parts]), distance)


@pytest.mark.large
@backends
@dtypes
def test_same_bits_for_any_number_of_threads(
    backend: str, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    x, centroids = make_points((20_001, 10, 10), dtype)
    found = []
    for n_threads in (1, 2, 3):
        threads(n_threads)
        found.append(F.kmeans_assign(x, centroids, backend=backend))
    for labels, distance in found[1:]:
        assert torch.equal(labels, found[0][0])
        assert torch.equal(distance, found[0][1])


@pytest.mark.large
@backends
@dtypes
def test_many_rows_and_many_clusters(backend: str, dtype: torch.dtype) -> None:
    x, centroids = make_points((1000, 3, 700), dtype)
    check_against_oracle(x, centroids, backend)
