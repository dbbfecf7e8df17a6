from __future__ import annotations

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
    gradients,
    judge,
    make_case,
)

backends = pytest.mark.parametrize("backend", backends_for("assign"))
dtypes = pytest.mark.parametrize("dtype", DTYPES)
heads = pytest.mark.parametrize("kind", HEADS)
each_head = pytest.mark.parametrize("kind", ONE_OF_EACH)
# On either side of the switch in csrc/assign.cpp between its two orders of work.
clusters = pytest.mark.parametrize("k", [10, 75])
EUCLIDEAN = [kind for kind in HEADS if not kind.startswith("linear")]


def check_against_oracle(case: Case, backend: str) -> None:
    """q, and the gradients of sum(dq * q) for a random dq."""
    z, head = case.oracle_z, case.oracle_head
    u = budget.roundoff(case.z.dtype)
    shape = reference.assign(z, head).shape
    rng = torch.Generator().manual_seed(9)
    dq = torch.randn(shape, generator=rng, dtype=torch.float64).to(case.z)

    def compute(backend: str) -> dict[str, Tensor]:
        leaves = case.leaves()
        q = F.assign(leaves.z, leaves.head, backend=backend)
        return {"q": q, **gradients(q, leaves, dq)}

    expected = {
        "q": reference.assign(z, head),
        **reference.assign_gradients(z, head, as_numpy(dq)),
    }
    allowed = {
        "q": budget.assign(z, head, u),
        **budget.assign_gradients(z, head, as_numpy(dq), u),
    }
    judge(compute, backend, expected, allowed)


@backends
@dtypes
@heads
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_oracle(backend: str, dtype: torch.dtype, kind: str, shape: tuple[int, int, int]) -> None:
    check_against_oracle(make_case(kind, shape, dtype), backend)


@backends
@each_head
@clusters
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(backend: str, kind: str, k: int, layout: str) -> None:
    check_against_oracle(make_case(kind, (127, 11, k), layout=layout), backend)


@backends
@pytest.mark.parametrize("kind", ["student_t", "gaussian", "linear"])
def test_width_past_the_direct_difference(backend: str, kind: str) -> None:
    check_against_oracle(make_case(kind, (65, 100, 33)), backend)


@backends
@pytest.mark.parametrize("kind", EUCLIDEAN)
@pytest.mark.parametrize("d", [3, 10, 64])
@clusters
def test_far_from_the_origin(backend: str, kind: str, d: int, k: int) -> None:
    """A hundred standard deviations away: the expanded square, uncentred, loses 3e-3 of q here."""
    case = make_case(kind, (200, d, k), torch.float32, shift=100.0)
    q = F.assign(case.z, case.head, backend=backend)
    error = np.abs(as_numpy(q) - reference.assign(case.oracle_z, case.oracle_head)).max()
    assert error < 1e-5
    check_against_oracle(case, backend)


@backends
@pytest.mark.parametrize("distance", [1e3, 1e6])
@clusters
def test_one_far_centroid_costs_the_others_no_digits(backend: str, distance: float, k: int) -> None:
    case = make_case("student_t", (200, 10, k), torch.float32)
    centroids = case.parameters["centroids"].clone()
    centroids[3] += distance
    far = Case("student_t", case.z, {**case.parameters, "centroids": centroids})
    q = F.assign(far.z, far.head, backend=backend)
    error = np.abs(as_numpy(q) - reference.assign(far.oracle_z, far.oracle_head)).max()
    assert error < 1e-6


@backends
@dtypes
@pytest.mark.parametrize("kind", EUCLIDEAN)
def test_translation_changes_nothing(backend: str, dtype: torch.dtype, kind: str) -> None:
    # eighths and a whole-numbered step: the move itself is exact in float32
    case = make_case(kind, dtype=dtype)
    name = "centroids" if kind.startswith("student_t") else "means"
    step = 512.0
    z, mu = (case.z * 8).round() / 8, (case.parameters[name] * 8).round() / 8
    here = Case(kind, z, {**case.parameters, name: mu})
    there = Case(kind, z + step, {**case.parameters, name: mu + step})
    allowed = 2 * budget.assign(here.oracle_z, here.oracle_head, budget.roundoff(dtype))
    moved = F.assign(there.z, there.head, backend=backend)
    error = np.abs(as_numpy(moved - F.assign(here.z, here.head, backend=backend)))
    assert (error <= allowed).all()


@backends
@dtypes
@each_head
@pytest.mark.parametrize("k", [50, 131])
def test_rows_sum_to_one(backend: str, dtype: torch.dtype, kind: str, k: int) -> None:
    case = make_case(kind, (300, 7, k), dtype)
    q = F.assign(case.z, case.head, backend=backend)
    assert (q >= 0).all()
    assert (q.sum(1) - 1).abs().max() <= k * torch.finfo(dtype).eps


@backends
@each_head
def test_permuting_clusters_permutes_columns(backend: str, kind: str) -> None:
    case = make_case(kind, dtype=torch.float64)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    permuted = Case(kind, case.z, {name: p[order] for name, p in case.parameters.items()})
    torch.testing.assert_close(
        F.assign(permuted.z, permuted.head, backend=backend),
        F.assign(case.z, case.head, backend=backend)[:, order],
        rtol=1e-12,
        atol=1e-15,
    )


@backends
@each_head
def test_segments_equal_the_whole(backend: str, kind: str) -> None:
    case = make_case(kind, dtype=torch.float64)
    whole = F.assign(case.z, case.head, backend=backend)
    parts = [F.assign(rows, case.head, backend=backend) for rows in case.z.split(50)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-15)


@backends
@dtypes
@pytest.mark.parametrize("kind", ["student_t", "student_t_nu3", "gaussian"])
@pytest.mark.parametrize("k", [3, 75])
def test_huge_distances(backend: str, dtype: torch.dtype, kind: str, k: int) -> None:
    """Distances whose squares are near the largest float32: no NaN, and q still a distribution."""
    case = make_case(kind, (6, 4, k), dtype)
    name = "centroids" if kind.startswith("student_t") else "means"
    z = case.z.clone()
    z[0] = 3e18
    z[1, 0] = -3e18
    leaves = Case(kind, z, case.parameters).leaves()
    q = F.assign(leaves.z, leaves.head, backend=backend)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(6, dtype=dtype))
    if kind != "gaussian":  # equally far from all of them
        torch.testing.assert_close(q[0], torch.full((k,), 1 / k, dtype=dtype))
    found = gradients(q, leaves, torch.randn_like(q))
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert name in found


@backends
@dtypes
@pytest.mark.parametrize("kind", EUCLIDEAN)
def test_points_on_centroids(backend: str, dtype: torch.dtype, kind: str) -> None:
    """d2 = 0 exactly: finite and, for z and centroids equal by twos, symmetric."""
    case = make_case(kind, (4, 3, 4), dtype)
    name = "centroids" if kind.startswith("student_t") else "means"
    case = Case(kind, case.parameters[name].clone(), case.parameters)
    check_against_oracle(case, backend)
    same = Case(
        kind,
        torch.ones(5, 3, dtype=dtype),
        {**case.parameters, name: torch.ones(4, 3, dtype=dtype)},
    )
    check_against_oracle(same, backend)
    if kind != "gaussian":
        q = F.assign(same.z, same.head, backend=backend)
        torch.testing.assert_close(q, torch.full((5, 4), 0.25, dtype=dtype))


@backends
@clusters
@pytest.mark.parametrize("row", [0, 31, 32, 128])
def test_a_bad_row_among_many(backend: str, k: int, row: int) -> None:
    case = make_case("student_t", (129, 11, k), torch.float32)
    case.z[row, 10] = torch.nan
    with pytest.raises(ValueError, match=f"^z: row {row} has NaN or Inf"):
        F.assign(case.z, case.head, backend=backend)


@backends
@dtypes
def test_student_t_assignment_is_assign(backend: str, dtype: torch.dtype) -> None:
    case = make_case("student_t", dtype=dtype)
    centroids = case.parameters["centroids"]
    expected = F.assign(case.z, F.StudentT(centroids, 2.0), backend=backend)
    assert torch.equal(F.student_t_assignment(case.z, centroids, 2.0, backend=backend), expected)
    expected = F.assign(case.z, case.head, backend=backend)
    assert torch.equal(F.student_t_assignment(case.z, centroids, backend=backend), expected)
    assert torch.equal(F.assign(case.z, centroids, backend=backend), expected)


@heads
def test_scores_are_the_formula(kind: str) -> None:
    case = make_case(kind, dtype=torch.float64)
    exact = case.oracle_head.scores(case.oracle_z)
    np.testing.assert_allclose(as_numpy(case.head.scores(case.z)), exact, rtol=1e-11, atol=1e-12)
    assert case.head.n_clusters == 10
    assert case.head.n_features == 11
