from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from tests import budget, reference
from tests.cases import DTYPES, LAYOUTS, SHAPES, as_numpy, backends_for, judge, lay_out

backends = pytest.mark.parametrize("backend", backends_for("kmeans_candidates"))
dtypes = pytest.mark.parametrize("dtype", DTYPES)
weighted = pytest.mark.parametrize("weighted", [False, True])


def make_rows(
    shape: tuple[int, int, int], dtype: torch.dtype, *, shift: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (N, D), candidates (K, D), distances that about half of them undercut, and weights."""
    n, d, k = shape
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=rng, dtype=torch.float64) + shift
    candidates = torch.randn(k, d, generator=rng, dtype=torch.float64) + shift
    nearest = 2 * d * torch.rand(n, generator=rng, dtype=torch.float64) * 2
    weight = torch.rand(n, generator=rng, dtype=torch.float64) * 3
    weight[::7] = 0.0
    return x.to(dtype), candidates.to(dtype), nearest.to(dtype), weight.to(dtype)


def check_against_oracle(
    x: Tensor, candidates: Tensor, nearest: Tensor | None, weight: Tensor | None, backend: str
) -> None:
    exact_nearest = np.full(len(x), np.inf) if nearest is None else as_numpy(nearest)
    exact_weight = np.ones(len(x)) if weight is None else as_numpy(weight)
    sq_dist, potentials = reference.kmeans_candidates(
        as_numpy(x), as_numpy(candidates), exact_nearest, exact_weight
    )

    def compute(backend: str) -> dict[str, Tensor]:
        found = F.kmeans_candidates(x, candidates, nearest, weight, backend=backend)
        assert all(value.dtype == x.dtype for value in found)
        return dict(zip(("sq_dist", "potentials"), found, strict=True))

    # Differences of the inputs round once, and their squares are of one sign.
    u = budget.roundoff(x.dtype)
    error = (budget.growth(x.shape[1]) + 4) * u * sq_dist
    judge(
        compute,
        backend,
        {"sq_dist": sq_dist, "potentials": potentials},
        {"sq_dist": error, "potentials": error @ exact_weight + 2 * u * potentials},
    )


@backends
@dtypes
@weighted
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_oracle(
    backend: str,
    dtype: torch.dtype,
    weighted: bool,
    first: bool,
    shape: tuple[int, int, int],
) -> None:
    x, candidates, nearest, weight = make_rows(shape, dtype)
    check_against_oracle(
        x, candidates, None if first else nearest, weight if weighted else None, backend
    )


@backends
@dtypes
@pytest.mark.parametrize("shape", [(300, 784, 7), (1501, 2, 3), (400, 33, 17)])
def test_far_from_the_origin(backend: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    x, candidates, nearest, weight = make_rows(shape, dtype, shift=100.0)
    check_against_oracle(x, candidates, nearest, weight, backend)


@backends
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(backend: str, layout: str) -> None:
    x, candidates, nearest, weight = make_rows((127, 11, 5), torch.float32)
    if layout == "expanded":
        x, nearest = x[:1].expand(127, 11), nearest[:1].expand(127)
        candidates, weight = candidates[:1].expand(5, 11), weight[1:2].expand(127)
    else:
        x, candidates = lay_out(x, layout), lay_out(candidates, layout)
        nearest, weight = lay_out(nearest, "strided"), lay_out(weight, "strided")
    check_against_oracle(x, candidates, nearest, weight, backend)


@backends
@dtypes
def test_a_candidate_is_on_itself(backend: str, dtype: torch.dtype) -> None:
    """Distances are direct differences: that of a row to itself is zero."""
    x, _, nearest, _ = make_rows((127, 40, 1), dtype, shift=1e3)
    sq_dist, _ = F.kmeans_candidates(x, x[5:9], nearest, backend=backend)
    assert torch.equal(sq_dist[:, 5:9].diagonal(), torch.zeros(4, dtype=dtype))


@backends
@dtypes
def test_one_candidate_is_what_hard_assignment_finds(backend: str, dtype: torch.dtype) -> None:
    x, candidates, _, _ = make_rows((127, 11, 1), dtype)
    sq_dist, potentials = F.kmeans_candidates(x, candidates, backend=backend)
    _, expected = F.kmeans_assign(x, candidates, backend=backend)
    torch.testing.assert_close(sq_dist[0], expected)
    torch.testing.assert_close(potentials[0], expected.sum())


@pytest.mark.large
@backends
def test_float32_potentials_stay_accurate_over_many_rows(backend: str) -> None:
    """A running float32 sum of 2,000,000 terms 0.1 is off by 6 %."""
    n = 2_000_000
    x = torch.full((n, 1), 0.1**0.5)
    _, potentials = F.kmeans_candidates(x, torch.zeros(1, 1), backend=backend)
    np.testing.assert_allclose(potentials.item(), n * float(x[0]) ** 2, rtol=1e-6)
