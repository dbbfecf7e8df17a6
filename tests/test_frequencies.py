from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from tests import budget, reference
from tests.cases import (
    DTYPES,
    HEADS,
    LAYOUTS,
    ONE_OF_EACH,
    SHAPES,
    Case,
    as_numpy,
    backends_for,
    judge,
    make_case,
)

backends = pytest.mark.parametrize("backend", backends_for("frequencies"))
dtypes = pytest.mark.parametrize("dtype", DTYPES)
heads = pytest.mark.parametrize("kind", HEADS)
each_head = pytest.mark.parametrize("kind", ONE_OF_EACH)


def check_against_oracle(case: Case, backend: str) -> None:
    z, head = case.oracle_z, case.oracle_head
    u = budget.roundoff(case.z.dtype)
    f, labels, _ = reference.frequencies(z, head)
    rng = torch.Generator().manual_seed(4)
    previous = torch.randint(case.head.n_clusters, (len(z),), generator=rng).to(case.z.device)

    # Labels are certain where the best score leads by more than both scores may err.
    scores = budget.Scores(z, head, u)
    if scores.s.shape[1] > 1 and len(z):
        ranked = np.sort(scores.s, axis=1)
        certain = ranked[:, -1] - ranked[:, -2] > 2 * scores.es.max(axis=1)
    else:
        certain = np.ones(len(z), bool)
    assert certain.mean() > 0.9 if len(z) else True

    def compute(backend: str) -> dict[str, Tensor]:
        f, found, changed = F.frequencies(
            case.z, case.head, previous_labels=previous, backend=backend
        )
        assert found.dtype == torch.int64
        assert found.shape == (len(z),)
        assert (as_numpy(found) == labels)[certain].all()
        assert changed.dtype == torch.int64
        assert changed.shape == ()
        assert int(changed) == int((found != previous).sum())
        return {"f": f}

    judge(compute, backend, {"f": f}, {"f": budget.frequencies(z, head, u)})


@backends
@dtypes
@heads
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_oracle(backend: str, dtype: torch.dtype, kind: str, shape: tuple[int, int, int]) -> None:
    check_against_oracle(make_case(kind, shape, dtype), backend)


@backends
@each_head
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(backend: str, kind: str, layout: str) -> None:
    check_against_oracle(make_case(kind, layout=layout), backend)


@backends
@pytest.mark.parametrize("kind", ["student_t", "gaussian"])
def test_far_from_the_origin(backend: str, kind: str) -> None:
    check_against_oracle(make_case(kind, shift=100.0), backend)


@backends
@pytest.mark.parametrize("n", [0, 1, 40])
def test_every_label_is_new_without_earlier_ones(backend: str, n: int) -> None:
    case = make_case("student_t", (n, 3, 4))
    f, labels, changed = F.frequencies(case.z, case.head, backend=backend)
    assert int(changed) == n
    again = F.frequencies(case.z, case.head, previous_labels=labels, backend=backend)
    assert int(again[2]) == 0
    assert torch.equal(again[0], f)
    assert torch.equal(again[1], labels)
    if n:
        previous = labels.clone()
        previous[-1] = 3 - previous[-1]
        changed = F.frequencies(case.z, case.head, previous_labels=previous, backend=backend)[2]
        assert int(changed) == 1


@backends
@dtypes
@each_head
def test_they_add_up_to_the_rows(backend: str, dtype: torch.dtype, kind: str) -> None:
    case = make_case(kind, (500, 5, 20), dtype)
    f = F.frequencies(case.z, case.head, backend=backend)[0]
    assert abs(float(f.double().sum()) - 500) <= 500 * 20 * torch.finfo(dtype).eps
    q = F.assign(case.z, case.head, backend=backend)
    torch.testing.assert_close(f, q.sum(0))


@backends
@each_head
def test_segments_equal_the_whole(backend: str, kind: str) -> None:
    case = make_case(kind, (1000, 5, 20), torch.float64)
    f, labels, _ = F.frequencies(case.z, case.head, backend=backend)
    parts = [F.frequencies(rows, case.head, backend=backend) for rows in case.z.split(300)]
    torch.testing.assert_close(sum(part[0] for part in parts), f, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)


@backends
@dtypes
def test_ties_go_to_the_lowest_index(backend: str, dtype: torch.dtype) -> None:
    # Each centroid four times, and a point halfway between the two places.
    centroids = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=dtype).repeat(4, 1)
    z = torch.tensor([[-1.0, 3.0], [1.0, -2.0], [0.0, 5.0]], dtype=dtype)
    f, labels, _ = F.frequencies(z, F.StudentT(centroids), backend=backend)
    assert labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(f.sum(), torch.tensor(3.0, dtype=dtype))
    linear = F.Linear(torch.zeros(5, 2, dtype=dtype))
    assert F.frequencies(z, linear, backend=backend)[1].tolist() == [0, 0, 0]


@pytest.mark.large
@backends
def test_many_blocks_of_rows(backend: str) -> None:
    """More rows than any block holds, against plain torch."""
    case = make_case("student_t", (70_001, 2, 6), torch.float64)
    f, labels, _ = F.frequencies(case.z, case.head, backend=backend)
    s = case.head.scores(case.z)
    torch.testing.assert_close(f, s.softmax(1).sum(0), rtol=1e-11, atol=0)
    assert torch.equal(labels, s.argmax(1))


@pytest.mark.large
@backends
def test_float32_sums_stay_accurate_over_many_rows(backend: str) -> None:
    """A running float32 sum of 300,000 equal terms would be off by 1e-3."""
    n = 300_000
    z = torch.full((n, 1), 0.3)
    centroids = torch.tensor([[0.0], [1.0], [5.0]])
    f = F.frequencies(z, centroids, backend=backend)[0]
    exact = n * reference.assign(as_numpy(z[:1]), reference.StudentT(as_numpy(centroids)))[0]
    np.testing.assert_allclose(as_numpy(f), exact, rtol=5e-6)


@pytest.mark.large
@backends
@dtypes
@each_head
def test_same_bits_for_any_number_of_threads(
    backend: str, dtype: torch.dtype, kind: str, threads: Callable[[int], None]
) -> None:
    case = make_case(kind, (20_001, 10, 20), dtype)
    found = []
    for n_threads in (1, 2, 3):
        threads(n_threads)
        found.append(F.frequencies(case.z, case.head, backend=backend))
    for f, labels, _ in found[1:]:
        assert torch.equal(f, found[0][0])
        assert torch.equal(labels, found[0][1])


@backends
def test_cluster_frequencies_is_frequencies(backend: str) -> None:
    case = make_case("student_t")
    centroids = case.parameters["centroids"]
    expected = F.frequencies(case.z, case.head, backend=backend)[0]
    assert torch.equal(F.cluster_frequencies(case.z, centroids, backend=backend), expected)
    expected = F.frequencies(case.z, F.StudentT(centroids, 4.0), backend=backend)[0]
    assert torch.equal(F.cluster_frequencies(case.z, centroids, 4.0, backend=backend), expected)


@pytest.mark.parametrize("previous", ["float", "short", "rank"])
def test_bad_previous_labels(previous: str) -> None:
    case = make_case("student_t", (5, 3, 4))
    labels = {
        "float": torch.zeros(5),
        "short": torch.zeros(4, dtype=torch.int64),
        "rank": torch.zeros(5, 1, dtype=torch.int64),
    }[previous]
    with pytest.raises(TypeError if previous == "float" else ValueError, match=r"^previous_labels"):
        F.frequencies(case.z, case.head, previous_labels=labels, backend="eager")
