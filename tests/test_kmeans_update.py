from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.kernels import _tiles
from deepclust.kernels.kmeans_assign.op import assign_and_change, assign_and_update
from deepclust.kernels.kmeans_update.op import label_changes, label_sums
from tests import budget, reference
from tests.cases import DTYPES, LAYOUTS, SHAPES, as_numpy, backends_for, judge, lay_out

backends = pytest.mark.parametrize("backend", backends_for("kmeans_update"))
dtypes = pytest.mark.parametrize("dtype", DTYPES)
interpreted = pytest.mark.skipif(
    "triton" not in backends_for("kmeans_update"), reason="Triton's interpreter is off"
)
weighted = pytest.mark.parametrize("weighted", [False, True])


def make_rows(
    shape: tuple[int, int, int], dtype: torch.dtype, *, shift: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    n, d, k = shape
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=rng, dtype=torch.float64) + shift
    labels = torch.randint(k, (n,), generator=rng)
    weight = torch.rand(n, generator=rng, dtype=torch.float64) * 3
    weight[::7] = 0.0
    return x.to(dtype), labels, weight.to(dtype)


def check_against_oracle(
    x: Tensor, labels: Tensor, k: int, weight: Tensor | None, backend: str
) -> None:
    exact_x, exact_labels = as_numpy(x), as_numpy(labels)
    exact_weight = None if weight is None else as_numpy(weight)
    sums, counts = reference.kmeans_update(exact_x, exact_labels, k, exact_weight)
    sizes, _ = reference.kmeans_update(np.abs(exact_x), exact_labels, k, exact_weight)

    def compute(backend: str) -> dict[str, Tensor]:
        found = F.kmeans_update(x, labels, k, weight, backend=backend)
        assert all(value.dtype == x.dtype for value in found)
        return dict(zip(("sums", "counts"), found, strict=True))

    step = (budget.growth(len(x)) + 2) * budget.roundoff(x.dtype)
    judge(
        compute,
        backend,
        {"sums": sums, "counts": counts},
        {"sums": step * sizes, "counts": step * counts if weight is not None else 0 * counts},
    )


@backends
@dtypes
@weighted
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_oracle(
    backend: str, dtype: torch.dtype, weighted: bool, shape: tuple[int, int, int]
) -> None:
    x, labels, weight = make_rows(shape, dtype)
    check_against_oracle(x, labels, shape[2], weight if weighted else None, backend)


@backends
@dtypes
@pytest.mark.parametrize("shape", [(3001, 10, 300), (3001, 2, 2), (200, 784, 10)])
def test_more_shapes(backend: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    x, labels, weight = make_rows(shape, dtype, shift=10.0)
    check_against_oracle(x, labels, shape[2], weight, backend)


@backends
@weighted
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(backend: str, weighted: bool, layout: str) -> None:
    x, labels, weight = make_rows((127, 11, 10), torch.float32)
    strided = torch.zeros(127, 2, dtype=torch.int64)
    strided[:, 1] = labels
    if layout == "expanded":
        x, weight = x[:1].expand(127, 11), weight[1:2].expand(127)
    else:
        x = lay_out(x, layout)
        weight = lay_out(weight, "strided")
    check_against_oracle(x, strided[:, 1], 10, weight if weighted else None, backend)


@backends
@dtypes
def test_a_cluster_with_most_of_the_rows(backend: str, dtype: torch.dtype) -> None:
    x, labels, weight = make_rows((3001, 5, 100), dtype)
    labels[500:] = 42
    check_against_oracle(x, labels, 100, weight, backend)


@backends
@dtypes
def test_counts_are_exact_and_empty_clusters_are_zero(backend: str, dtype: torch.dtype) -> None:
    x, labels, _ = make_rows((500, 3, 4), dtype)
    sums, counts = F.kmeans_update(x, labels, 7, backend=backend)
    assert torch.equal(counts, torch.bincount(labels, minlength=7).to(dtype))
    assert not sums[4:].any()


@backends
@dtypes
def test_permuting_labels_permutes_clusters(backend: str, dtype: torch.dtype) -> None:
    x, labels, weight = make_rows((127, 11, 10), dtype)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    sums, counts = F.kmeans_update(x, labels, 10, weight, backend=backend)
    moved, same = F.kmeans_update(x, order[labels], 10, weight, backend=backend)
    assert torch.equal(moved[order], sums)
    assert torch.equal(same[order], counts)


@backends
@weighted
def test_segments_add_up_to_the_whole(backend: str, weighted: bool) -> None:
    x, labels, weight = make_rows((1000, 5, 6), torch.float64)
    total = F.kmeans_update(x, labels, 6, weight if weighted else None, backend=backend)
    parts = [
        F.kmeans_update(x[r], labels[r], 6, weight[r] if weighted else None, backend=backend)
        for r in (slice(0, 300), slice(300, 1000))
    ]
    for whole, *pieces in zip(total, *parts, strict=True):
        torch.testing.assert_close(sum(pieces), whole, rtol=1e-12, atol=1e-12)


@backends
def test_unit_weights_change_nothing(backend: str) -> None:
    x, labels, _ = make_rows((127, 11, 10), torch.float32)
    plain = F.kmeans_update(x, labels, 10, backend=backend)
    ones = F.kmeans_update(x, labels, 10, torch.ones(127), backend=backend)
    for a, b in zip(plain, ones, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.large
@backends
def test_float32_sums_stay_accurate_over_many_rows(backend: str) -> None:
    """A running float32 sum of 2,000,000 terms 0.1 is off by 6 %; and counts pass 2^24 exactly."""
    n = 2_000_000
    x, labels = torch.full((n, 1), 0.1), torch.zeros(n, dtype=torch.int64)
    sums, counts = F.kmeans_update(x, labels, 1, backend=backend)
    np.testing.assert_allclose(sums.item(), n * float(x[0]), rtol=1e-6)
    assert counts.item() == n


@pytest.mark.large
@backends
@dtypes
def test_same_bits_for_any_number_of_threads(
    backend: str, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    x, labels, weight = make_rows((100_001, 10, 10), dtype)
    found = []
    for n_threads in (1, 2, 3):
        threads(n_threads)
        found.append(F.kmeans_update(x, labels, 10, weight, backend=backend))
    for sums, counts in found[1:]:
        assert torch.equal(sums, found[0][0])
        assert torch.equal(counts, found[0][1])


@pytest.mark.parametrize("value", [-1, 10])
@backends
def test_labels_out_of_range(backend: str, value: int) -> None:
    x, labels, _ = make_rows((127, 11, 10), torch.float32)
    labels[5] = value
    with pytest.raises(ValueError, match=rf"^labels: .*{value}"):
        F.kmeans_update(x, labels, 10, backend=backend)


@interpreted
@pytest.mark.parametrize("k", [10, 100])
def test_labels_out_of_range_belong_nowhere(k: int) -> None:
    """On a GPU nothing looks at labels; those that are none must not be written to, either."""
    x, labels, weight = make_rows((127, 11, k), torch.float32)
    expected = F.kmeans_update(x[3:], labels[3:], k, weight[3:], backend="triton")
    labels[:3] = torch.tensor([-1, k, (1 << 33) + 3])
    found = F.kmeans_update(x, labels, k, weight, backend="triton", check=False)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@interpreted
@pytest.mark.parametrize("chip", ["sm_80", "gfx942"])
@pytest.mark.parametrize("k", [10, 33, 100])
def test_tiles_of_a_chip(chip: str, k: int) -> None:
    x, labels, weight = make_rows((300, 11, k), torch.float32)
    with _tiles.pretend(_tiles.CHIPS[chip]):
        check_against_oracle(x, labels, k, weight, "triton")


def test_bad_arguments() -> None:
    x, labels, weight = make_rows((127, 11, 10), torch.float32)
    for bad, error in (
        (labels[:5], ValueError),
        (labels[:, None], ValueError),
        (labels.float(), TypeError),
        (labels.tolist(), TypeError),
    ):
        with pytest.raises(error, match=r"^labels: "):
            F.kmeans_update(x, bad, 10, backend="eager")
    for bad, error in (
        (weight[:5], ValueError),
        (weight[:, None], ValueError),
        (weight.long(), TypeError),
        (weight.numpy(), TypeError),
    ):
        with pytest.raises(error, match=r"^sample_weight: "):
            F.kmeans_update(x, labels, 10, bad, backend="eager")
    weight[3] = torch.nan
    with pytest.raises(ValueError, match=r"^sample_weight: row 3 has NaN or Inf"):
        F.kmeans_update(x, labels, 10, weight, backend="eager")
    for k in (0, -2, 2.5, "3"):
        with pytest.raises((TypeError, ValueError), match=r"^n_clusters: "):
            F.kmeans_update(x, labels, k, backend="eager")


@backends
@dtypes
@weighted
@pytest.mark.parametrize(
    "shape",
    [
        *SHAPES.values(),
        (301, 16, 3),
        *(
            pytest.param(shape, marks=pytest.mark.large)
            for shape in (
                (3001, 10, 300),
                (3001, 15, 3),
                (3001, 16, 3),
                (700, 64, 256),
                (500, 784, 400),
            )
        ),
    ],
)
def test_one_pass_is_two(
    backend: str, dtype: torch.dtype, weighted: bool, shape: tuple[int, int, int]
) -> None:
    """The assignment's pass gives the sums that the update gives of its labels."""
    x, _, weight = make_rows(shape, dtype)
    weight = weight if weighted else torch.ones_like(weight)
    for rows in (x, torch.stack([x, x], 2)[:, :, 0]):
        centroids = make_rows((shape[2], shape[1], 1), dtype, shift=0.1)[0]
        found = F.kmeans_assign(x, centroids, backend=backend)
        labels, sq_dist = (torch.empty_like(value) for value in found)
        sums, counts = assign_and_update(rows, centroids, weight, labels, sq_dist, backend)
        assert torch.equal(labels, found[0])
        assert torch.equal(sq_dist, found[1])
        exact = [as_numpy(value) for value in (x, labels, weight)]
        expected = reference.kmeans_update(exact[0], exact[1], shape[2], exact[2])
        sizes, _ = reference.kmeans_update(np.abs(exact[0]), exact[1], shape[2], exact[2])
        step = (budget.growth(len(x)) + 2) * budget.roundoff(dtype)
        assert (np.abs(as_numpy(sums) - expected[0]) <= step * sizes).all()
        assert (np.abs(as_numpy(counts) - expected[1]) <= step * expected[1]).all()


def changed_rows(
    shape: tuple[int, int, int], dtype: torch.dtype, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, labels, and those before, of which about this share is another."""
    x, labels, _ = make_rows(shape, dtype)
    rng = torch.Generator().manual_seed(1)
    others = torch.randint(shape[2], (len(x),), generator=rng)
    return x, labels, torch.where(torch.rand(len(x), generator=rng) < share, others, labels)


def check_changes(x: Tensor, labels: Tensor, before: Tensor, k: int, backend: str) -> None:
    sums, counts = label_changes(x, labels, before, k, backend)
    assert sums.dtype == counts.dtype == torch.float64
    changed = labels != before
    rows, *both = (as_numpy(value[changed]) for value in (x, labels, before))
    (more, came), (less, left) = (reference.kmeans_update(rows, which, k) for which in both)
    sizes = sum(reference.kmeans_update(np.abs(rows), which, k)[0] for which in both)
    u = budget.roundoff(torch.float32 if backend == "triton" else torch.float64)
    step = (budget.growth(2 * len(rows)) + 2) * u
    assert (np.abs(as_numpy(sums) - (more - less)) <= step * sizes).all()
    np.testing.assert_array_equal(as_numpy(counts), came - left)


@backends
@dtypes
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    "shape",
    [
        *SHAPES.values(),
        (301, 16, 5),
        *(
            pytest.param(shape, marks=pytest.mark.large)
            for shape in ((3001, 2, 2), (5000, 40, 300), (2100, 200, 10), (300, 3000, 4))
        ),
    ],
)
def test_changes(
    backend: str, dtype: torch.dtype, share: float, shape: tuple[int, int, int]
) -> None:
    check_changes(*changed_rows(shape, dtype, share), shape[2], backend)


@backends
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d", [11, 40])
def test_changes_of_any_strides(backend: str, layout: str, d: int) -> None:
    x, labels, before = changed_rows((127, d, 10), torch.float32, 0.3)
    strided = torch.stack([labels, before], 1)
    x = x[:1].expand(127, d) if layout == "expanded" else lay_out(x, layout)
    check_changes(x, strided[:, 0], strided[:, 1], 10, backend)


@backends
@dtypes
@pytest.mark.parametrize("shape", [(301, 10, 10), (500, 40, 300)])
def test_changes_lead_from_sums_to_sums(
    backend: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    """Whole numbers, of which all sums are exact."""
    x, labels, before = changed_rows(shape, dtype, 0.2)
    x, k = (8 * x).round(), shape[2]
    options = {"sample_weight": None, "backend": backend}
    found = [
        was + more
        for was, more in zip(
            label_sums(x, before, k, **options),
            label_changes(x, labels, before, k, backend),
            strict=True,
        )
    ]
    for a, b in zip(found, label_sums(x, labels, k, **options), strict=True):
        assert torch.equal(a, b)


@backends
@dtypes
@pytest.mark.parametrize("distances", [True, False])
@pytest.mark.parametrize("shape", [(301, 10, 10), (170, 200, 7), (90, 40, 300)])
def test_labels_and_what_changed_since(
    backend: str, dtype: torch.dtype, distances: bool, shape: tuple[int, int, int]
) -> None:
    """The labels of one call, and the changes of another; from none before, the sums."""
    x, _, before = changed_rows(shape, dtype, 0.2)
    x, k = (8 * x).round(), shape[2]
    centroids = (8 * make_rows((k, shape[1], 1), dtype, shift=0.1)[0]).round()
    expected = F.kmeans_assign(x, centroids, backend=backend)
    for rows in (x, torch.stack([x, x], 2)[:, :, 0]):
        for last in (before, None):
            labels, sq_dist = torch.full_like(before, -1), expected[1].new_full((len(x),), -1)
            room = sq_dist if distances else None
            found = assign_and_change(rows, centroids, labels, room, last, backend)
            assert torch.equal(labels, expected[0])
            assert torch.equal(sq_dist, expected[1]) == distances
            if last is None:
                sums = label_sums(x, labels, k, None, backend)
            else:
                sums = label_changes(x, labels, last, k, backend)
            for a, b in zip(found, sums, strict=True):
                assert torch.equal(a, b)


@backends
def test_rows_that_keep_their_label_are_not_read(backend: str) -> None:
    x, labels, before = changed_rows((301, 10, 10), torch.float32, 0.1)
    expected = label_changes(x, labels, before, 10, backend)
    x[labels == before] = torch.nan
    for a, b in zip(label_changes(x, labels, before, 10, backend), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["labels", "before"])
@pytest.mark.parametrize("value", [-1, 10])
@pytest.mark.skipif("cpp" not in backends_for("kmeans_update"), reason="no extension")
def test_changed_labels_out_of_range(name: str, value: int) -> None:
    x, labels, before = changed_rows((127, 11, 10), torch.float32, 0.1)
    {"labels": labels, "before": before}[name][5] = value
    with pytest.raises(ValueError, match=rf"^{name}: got {value}; it takes labels from 0 to 9"):
        label_changes(x, labels, before, 10, "cpp")
