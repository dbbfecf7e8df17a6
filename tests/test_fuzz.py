"""Any small shape, layout and type: values and gradients against the oracles."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepclust import functional as F
from tests import (
    reference,
    test_assign,
    test_kmeans_assign,
    test_kmeans_candidates,
    test_kmeans_update,
)
from tests import test_gaussian_kl as gaussian
from tests import test_target_loss as target
from tests.cases import DTYPES, HEADS, as_numpy, backends_for, make_case, random_target

quick = settings(max_examples=50, deadline=None, derandomize=True, database=None)
layouts = st.sampled_from(["contiguous", "strided", "transposed", "offset"])
shapes = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 40))
cases = st.builds(
    make_case,
    st.sampled_from(HEADS),
    shapes,
    st.sampled_from(DTYPES),
    layout=layouts,
    shift=st.sampled_from([0.0, 10.0]),
    seed=st.integers(0, 1000),
)


def backends(primitive: str) -> st.SearchStrategy[str]:
    return st.sampled_from(backends_for(primitive))


@quick
@given(cases, backends("assign"))
def test_assign_fuzz(case, backend) -> None:
    test_assign.check_against_oracle(case, backend)


@quick
@given(cases, backends("frequencies"))
def test_frequencies_fuzz(case, backend) -> None:
    f, labels, _ = F.frequencies(case.z, case.head, backend=backend)
    q = F.assign(case.z, case.head, backend="eager")
    torch.testing.assert_close(f, q.sum(0), rtol=1e-4, atol=1e-6)
    best = q.max(1).values
    chosen = q.gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(chosen, best, rtol=1e-4, atol=0)


@quick
@given(cases, st.sampled_from([0.5, 1.0, 2.0]), st.booleans(), backends("target_loss"))
def test_target_loss_fuzz(case, power, frozen, backend) -> None:
    n, k = len(case.z), case.head.n_clusters
    if frozen:
        old = make_case(case.kind, (n, case.z.shape[1], k), case.z.dtype, seed=7)
        made = target.frozen_target(old, power=power)
    else:
        made = target.given_target(random_target(n, k, case.z.dtype))
    target.check_against_oracle(case, made, backend, reduction="sum")


@quick
@given(shapes, st.sampled_from(DTYPES), st.integers(0, 1000), backends("kmeans_assign"))
def test_kmeans_assign_fuzz(shape, dtype, seed, backend) -> None:
    x, centroids = test_kmeans_assign.make_points(shape, dtype, seed=seed)
    test_kmeans_assign.check_against_oracle(x, centroids, backend)


@quick
@given(shapes, st.sampled_from(DTYPES), st.booleans(), backends("kmeans_candidates"))
def test_kmeans_candidates_fuzz(shape, dtype, first, backend) -> None:
    x, candidates, nearest, weight = test_kmeans_candidates.make_rows(shape, dtype)
    test_kmeans_candidates.check_against_oracle(
        x, candidates, None if first else nearest, weight, backend
    )


@quick
@given(shapes, st.sampled_from(DTYPES), st.booleans(), backends("kmeans_update"))
def test_kmeans_update_fuzz(shape, dtype, weighted, backend) -> None:
    x, labels, weight = test_kmeans_update.make_rows(shape, dtype)
    test_kmeans_update.check_against_oracle(
        x, labels, shape[2], weight if weighted else None, backend
    )


@quick
@given(shapes, st.sampled_from(DTYPES), st.integers(0, 1000), backends("kmeans_loss"))
def test_kmeans_loss_fuzz(shape, dtype, seed, backend) -> None:
    z, centroids = test_kmeans_assign.make_points(shape, dtype, seed=seed)
    loss = F.kmeans_loss(z, centroids, backend=backend)
    exact = reference.kmeans_loss(as_numpy(z), as_numpy(centroids))
    torch.testing.assert_close(loss.item(), exact, rtol=1e-5, atol=0)


@quick
@given(shapes, st.sampled_from(DTYPES), backends("gaussian_kl"))
def test_gaussian_kl_fuzz(shape, dtype, backend) -> None:
    gaussian.check_against_oracle(gaussian.make_gaussians(*shape[:2], dtype), backend)
