"""Labels that follow centroids as they move: those of kmeans_assign, for less work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.cluster import KMeans, _lloyd
from deepclust.kernels.kmeans_assign.op import Following, Rounded
from tests import reference
from tests.cases import as_numpy, backends_for

pytestmark = pytest.mark.skipif("cpp" not in backends_for("kmeans_assign"), reason="no extension")

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
# From fewer than a vector's lanes to several panels in a group, and d that fill no vector.
SHAPES = [(300, 17, 1), (300, 20, 3), (500, 64, 40), (257, 33, 300), (120, 300, 17), (40, 24, 90)]


def make(
    kind: str, shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Rows, and where centroids start."""
    n, d, k = shape
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, d, generator=rng, dtype=torch.float64)
    if kind == "whole numbers":  # many equal distances
        x = (noise * 1.5).round()
    elif kind == "far":  # products round more than centroids lie apart
        x = (
            noise
            + 1000 * torch.randn(3, d, generator=rng, dtype=torch.float64)[torch.arange(n) % 3]
        )
    else:
        x = noise + 4 * torch.randn(k, d, generator=rng, dtype=torch.float64)[torch.arange(n) % k]
    start = x[torch.randperm(max(n, k), generator=rng)[:k] % n]
    return x.to(dtype), start.to(dtype)


def walks(x: Tensor, centroids: Tensor, n_steps: int) -> list[Tensor]:
    """Centroids after each iteration of Lloyd's, with a jump of some of them on the way."""
    after = []
    for step in range(n_steps):
        after.append(centroids)
        labels, _ = F.kmeans_assign(x, centroids)
        sums, counts = F.kmeans_update(x, labels, len(centroids))
        means = (sums / counts.unsqueeze(1)).to(x.dtype)
        centroids = torch.where(counts.unsqueeze(1) > 0, means, centroids)
        if step == n_steps // 2:
            centroids = centroids.clone()
            centroids[::3] = x[step : step + len(centroids[::3])].mean(0)
    return after


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["blobs", "whole numbers", "far"])
def test_labels_are_those_of_assignment_at_every_step(
    kind: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    x, start = make(kind, shape, dtype)
    following = None
    for centroids in walks(x, start, 8):
        if following is None:
            guesses = torch.arange(len(x)) % len(centroids)
            following = Following(x, centroids, guesses, "cpp")
        else:
            following.to(centroids)
        labels, sq_dist = F.kmeans_assign(x, centroids, backend="cpp")
        assert torch.equal(following.labels, labels)
        assert torch.equal(following.sq_dist(), sq_dist)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["blobs", "far"])
def test_bounds_hold_in_float64(kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, start = make(kind, shape, dtype)
    rows = np.arange(len(x))
    following = Following(x, start, torch.zeros(len(x), dtype=torch.int64), "cpp")
    for centroids in walks(x, start, 6):
        following.to(centroids)
        distance = np.sqrt(reference.squared_distances(as_numpy(x), as_numpy(centroids)))
        labels = as_numpy(following.labels)
        assert (as_numpy(following._upper) >= distance[rows, labels]).all()
        others = distance.copy()
        others[rows, labels] = np.inf
        lower = as_numpy(following._lower)
        assert (lower.min(1) <= others.min(1)).all()
        assert (lower <= others.max(1, keepdims=True)).all()


def test_rows_that_are_settled_are_not_read() -> None:
    x, centroids = make("blobs", (500, 64, 40), torch.float32)
    following = Following(x, centroids, torch.zeros(500, dtype=torch.int64), "cpp")
    expected = following.labels.clone()
    x.fill_(torch.nan)
    following.to(centroids)
    assert torch.equal(following.labels, expected)


def test_no_more_bounds_than_an_eighth_of_the_rows() -> None:
    for d, k in [(17, 5000), (64, 256), (784, 1000), (20, 1)]:
        x = torch.randn(3, d)
        following = Following(x, torch.randn(k, d), torch.zeros(3, dtype=torch.int64), "cpp")
        assert 1 <= following._lower.shape[1] <= max(1, d // 8)


@pytest.mark.parametrize("layout", ["columns", "steps"])
def test_strided_rows(layout: str) -> None:
    x, start = make("blobs", (300, 40, 20), torch.float32)
    strided = (
        x.T.contiguous().T if layout == "columns" else torch.stack([x, x], 2).flatten(1)[:, ::2]
    )
    assert not strided.is_contiguous()
    following = Following(
        strided, start.T.contiguous().T, torch.zeros(300, dtype=torch.int64), "cpp"
    )
    for centroids in walks(x, start, 4):
        following.to(centroids)
        assert torch.equal(following.labels, F.kmeans_assign(x, centroids, backend="cpp")[0])


def test_same_bits_for_any_number_of_threads() -> None:
    x, start = make("blobs", (5000, 40, 60), torch.float32)
    path = walks(x, start, 4)
    found = []
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            following = Following(x, start, torch.zeros(5000, dtype=torch.int64), "cpp")
            for centroids in path:
                following.to(centroids)
            found.append((following.labels, following._upper, following._lower))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_distances_past_the_largest_number() -> None:
    x = torch.full((20, 20), 3e38)
    x[10:] = -3e38
    centroids = x[[0, 10]].clone()
    following = Following(x, centroids, torch.zeros(20, dtype=torch.int64), "cpp")
    assert torch.equal(following.labels, F.kmeans_assign(x, centroids, backend="cpp")[0])


def fit(x: Tensor, few: float, monkeypatch: pytest.MonkeyPatch, **options: object) -> KMeans:
    """k-means that follows centroids once less than this share of the rows change."""
    monkeypatch.setattr(_lloyd._Passes, "FEW", few)
    return KMeans(random_state=0, init="random", n_init=1, backend="cpp", **options).fit(x)


@dtypes
@pytest.mark.parametrize(("d", "k"), [(40, 20), (20, 100), (200, 3)])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_kmeans_is_the_same_with_bounds(
    d: int, k: int, metric: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2000, d, generator=torch.Generator().manual_seed(0), dtype=dtype) + 0.3
    n_followed = 0
    to = Following.to

    def count(self: Following, centroids: Tensor) -> None:
        nonlocal n_followed
        n_followed += 1
        to(self, centroids)

    monkeypatch.setattr(Following, "to", count)
    options = {"n_clusters": k, "metric": metric, "tol": 0.0}
    plain = fit(x, -1.0, monkeypatch, **options)
    assert n_followed == 0
    found = fit(x, 0.1, monkeypatch, **options)
    if k <= _lloyd._Passes.FEW_CLUSTERS:  # then only where there is no room for integers
        assert n_followed == 0
        monkeypatch.setattr(Rounded, "MOST_BYTES", 0)
        found = fit(x, 0.1, monkeypatch, **options)
    assert n_followed > 3
    assert found.n_iter_ == plain.n_iter_
    np.testing.assert_array_equal(found.labels_, plain.labels_)
    accuracy = torch.finfo(dtype).eps
    np.testing.assert_allclose(
        found.cluster_centers_, plain.cluster_centers_, rtol=8 * accuracy, atol=8 * accuracy
    )
    assert found.inertia_ == pytest.approx(plain.inertia_, rel=8 * accuracy)


def test_clusters_that_get_empty_while_followed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 20, generator=rng)
    start = torch.cat([x[:30], x[:10] + 50]).numpy()  # ten that nothing is near to
    options = {"n_clusters": 40, "tol": 0.0, "verbose": 1}
    monkeypatch.setattr(_lloyd._Passes, "FEW", 2.0)
    found = KMeans(init=start, n_init=1, backend="cpp", **options).fit(x)
    said = capsys.readouterr().out
    monkeypatch.setattr(_lloyd._Passes, "FEW", -1.0)
    plain = KMeans(init=start, n_init=1, backend="cpp", **options).fit(x)
    np.testing.assert_array_equal(found.labels_, plain.labels_)
    assert said == capsys.readouterr().out
