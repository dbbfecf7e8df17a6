"""Sizes one off the kernels' tiles, runs and blocks, in every layout: cpp against eager in float64.

`test_fuzz.py` holds small shapes to error budgets; these are larger, and a wrong lane is what they
look for, which no rounding hides.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepclust import functional as F
from deepclust.kernels import _dispatch
from tests.cases import DTYPES, HEADS, Case, gradients, lay_out, make_case, random_target

pytestmark = pytest.mark.skipif(
    "cpp" not in _dispatch.available("assign"), reason="deepclust._C is blocked or not built"
)

quick = settings(max_examples=300, deadline=None, derandomize=True, database=None)
# Of the largest magnitude. The slack over rounding is for scores of hundreds in an exponent.
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}

rows = st.builds(
    lambda tile, times, off: max(1, tile * times + off),
    st.sampled_from([4, 8, 16, 32, 64, 256]),
    st.integers(1, 3),
    st.sampled_from([-1, 0, 1]),
)
clusters = st.sampled_from(
    [*range(1, 10), 12, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257]
)
columns = st.sampled_from(
    [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 300]
)
shapes = st.tuples(rows, columns, clusters)
layouts = st.sampled_from(["contiguous", "strided", "transposed", "offset"])
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 1000)
cases = st.builds(make_case, st.sampled_from(HEADS), shapes, dtypes, layout=layouts, seed=seeds)


def assert_close(got: Tensor, exact: Tensor, name: str, scale: Tensor | None = None) -> None:
    """Within the tolerance of the largest of `scale`, or of `exact`."""
    assert got.shape == exact.shape, name
    largest = (exact if scale is None else scale).abs().max().item()
    error = (got.double() - exact).abs().max().item()
    # not <=: a NaN fails, too
    assert error <= TOLERANCE[got.dtype] * max(largest, 1e-30), f"{name}: {error} of {largest}"


def assert_same(got: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    # One cluster's gradients are rounding of nothing: what is small is held to the largest of all.
    scale = torch.stack([value.abs().max() for value in exact.values()]).max()
    for name, value in got.items():
        assert_close(value, exact[name], name, torch.maximum(scale * 1e-2, exact[name].abs().max()))


def normal(*size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def in_double(case: Case) -> Case:
    return case.map(lambda value: value.double().contiguous())


@quick
@given(cases, layouts, seeds)
def test_assign_edges(case: Case, layout: str, seed: int) -> None:
    dq = lay_out(normal(len(case.z), case.head.n_clusters, seed=seed).to(case.z.dtype), layout)

    def compute(case: Case, backend: str) -> dict[str, Tensor]:
        leaves = case.leaves()
        q = F.assign(leaves.z, leaves.head, backend=backend)
        return {"q": q.detach(), **gradients(q, leaves, dq.to(q.dtype))}

    assert_same(compute(case, "cpp"), compute(in_double(case), "eager"))


@quick
@given(cases)
def test_frequencies_edges(case: Case) -> None:
    f, labels, _ = F.frequencies(case.z, case.head, backend="cpp")
    exact = in_double(case)
    q = F.assign(exact.z, exact.head, backend="eager")
    error = (f.double() - q.sum(0)).abs().max().item()
    assert error <= TOLERANCE[case.z.dtype] * len(q)
    chosen = q.gather(1, labels[:, None]).squeeze(1)
    assert (chosen >= q.max(1).values * (1 - 10 * TOLERANCE[case.z.dtype])).all()


@quick
@given(rows, clusters, dtypes, layouts, st.booleans(), st.booleans(), seeds)
def test_targets_edges(
    n: int, k: int, dtype: torch.dtype, layout: str, dec: bool, given_f: bool, seed: int
) -> None:
    make = F.dec_target if dec else F.depict_target
    q = lay_out(normal(n, k, seed=seed).softmax(1).to(dtype), layout)
    f = q.sum(0) if given_f else None
    got = make(q, frequencies=f, backend="cpp")
    exact_f = None if f is None else f.double()
    exact = make(q.double().contiguous(), frequencies=exact_f, backend="eager")
    assert_close(got, exact, "p")


@quick
@given(
    cases,
    layouts,
    st.booleans(),
    st.sampled_from(["kl", "ce"]),
    st.sampled_from([0.5, 1.0, 2.0]),
    seeds,
)
def test_target_loss_edges(
    case: Case, layout: str, frozen: bool, kind: str, power: float, seed: int
) -> None:
    n, d = case.z.shape
    k, dtype = case.head.n_clusters, case.z.dtype
    if frozen:
        old = make_case(case.kind, (n, d, k), dtype, layout=layout, seed=seed + 1)
        exact_old = in_double(old)
        target = F.freeze_target(old.z, old.head, power=power, backend="cpp")
        exact_target = F.freeze_target(exact_old.z, exact_old.head, power=power, backend="eager")
    else:
        target = lay_out(random_target(n, k, dtype, seed), layout)
        exact_target = target.double().contiguous()

    def compute(case: Case, target: Tensor | F.Snapshot, backend: str) -> dict[str, Tensor]:
        leaves = case.leaves()
        loss = F.target_loss(
            leaves.z, leaves.head, target, reduction="sum", kind=kind, backend=backend
        )
        return {"loss": loss.detach(), **gradients(loss, leaves)}

    got, exact = compute(case, target, "cpp"), compute(in_double(case), exact_target, "eager")
    # The loss is a sum over points of what may cancel within one.
    assert abs(got["loss"].item() - exact["loss"].item()) <= TOLERANCE[dtype] * (
        abs(exact["loss"].item()) + n
    )
    del got["loss"], exact["loss"]
    assert_same(got, exact)


def points(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: str, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x, centroids and labels."""
    n, d, k = shape
    x, mu = normal(n, d, seed=seed, dtype=dtype), normal(k, d, seed=seed + 1, dtype=dtype)
    labels = torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))
    return lay_out(x, layout), lay_out(mu, layout), labels


@quick
@given(shapes, dtypes, layouts, seeds)
def test_kmeans_assign_edges(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: str, seed: int
) -> None:
    x, mu, _ = points(shape, dtype, layout, seed)
    labels, sq_dist = F.kmeans_assign(x, mu, backend="cpp")
    squared = torch.cdist(
        x.double(), mu.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    found = squared.gather(1, labels[:, None]).squeeze(1)
    slack = TOLERANCE[dtype] * squared.max(1).values
    assert (found <= squared.min(1).values + slack).all()
    assert ((sq_dist.double() - found).abs() <= slack).all()


@quick
@given(shapes, dtypes, layouts, st.booleans(), seeds)
def test_kmeans_update_edges(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: str, weighted: bool, seed: int
) -> None:
    x, _, labels = points(shape, dtype, layout, seed)
    weight = normal(len(x), seed=seed + 2, dtype=dtype).abs() if weighted else None
    sums, counts = F.kmeans_update(x, labels, shape[2], weight, backend="cpp")
    exact_weight = None if weight is None else weight.double()
    exact = F.kmeans_update(
        x.double().contiguous(), labels, shape[2], exact_weight, backend="eager"
    )
    assert_close(sums, exact[0], "sums")
    assert_close(counts, exact[1], "counts")


@quick
@given(shapes, dtypes, layouts, st.booleans(), seeds)
def test_kmeans_loss_edges(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: str, strided_labels: bool, seed: int
) -> None:
    x, mu, labels = points(shape, dtype, layout, seed)
    if strided_labels:
        labels = labels.repeat_interleave(2)[::2]

    def compute(x: Tensor, mu: Tensor, backend: str) -> dict[str, Tensor]:
        z, centroids = x.detach().requires_grad_(), mu.detach().requires_grad_()
        loss = F.kmeans_loss(z, centroids, labels, reduction="sum", backend=backend)
        dz, dmu = torch.autograd.grad(loss, (z, centroids))
        return {"loss": loss.detach(), "z": dz, "centroids": dmu}

    got = compute(x, mu, "cpp")
    exact = compute(x.double().contiguous(), mu.double().contiguous(), "eager")
    for name, value in got.items():
        assert_close(value, exact[name], name)
