from __future__ import annotations

import math
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
    gradients,
    judge,
    lay_out,
    make_case,
    random_target,
)

backends = pytest.mark.parametrize("backend", backends_for("target_loss"))
dtypes = pytest.mark.parametrize("dtype", DTYPES)
heads = pytest.mark.parametrize("kind", HEADS)
each_head = pytest.mark.parametrize("kind", ONE_OF_EACH)
reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])
losses = pytest.mark.parametrize("loss", ["kl", "ce"])
EUCLIDEAN = [kind for kind in HEADS if not kind.startswith("linear")]

Target = Callable[[], tuple[Tensor | F.Snapshot, budget.Target]]


def check_against_oracle(
    case: Case, target: Target, backend: str, *, reduction: str = "mean", loss: str = "kl"
) -> None:
    """The loss and its gradients to z and to every parameter of the head."""
    z, head = case.oracle_z, case.oracle_head
    given, exact = target()
    options = {"reduction": reduction, "kind": loss}

    def compute(backend: str) -> dict[str, Tensor]:
        leaves = case.leaves()
        value = F.target_loss(leaves.z, leaves.head, given, **options, backend=backend)
        return {"loss": value, **gradients(value, leaves)}

    expected = {
        "loss": reference.target_loss(z, head, exact.p, **options),
        **reference.target_loss_gradients(z, head, exact.p, reduction=reduction),
    }
    u = budget.roundoff(case.z.dtype)
    judge(compute, backend, expected, budget.target_loss(z, head, exact, u, **options))


def given_target(p: Tensor) -> Target:
    return lambda: (p, budget.given(as_numpy(p)))


def frozen_target(
    old: Case,
    *,
    power: float = 2.0,
    prior: Tensor | None = None,
    frequencies: Tensor | None = None,
) -> Target:
    """A snapshot of another case, and what the formula makes of it."""

    def make() -> tuple[F.Snapshot, budget.Target]:
        snapshot = F.freeze_target(
            old.z, old.head, power=power, prior=prior, frequencies=frequencies, backend="eager"
        )
        z, head = old.oracle_z, old.oracle_head
        u = budget.roundoff(old.z.dtype)
        if frequencies is None:
            f, ef = reference.frequencies(z, head)[0], budget.frequencies(z, head, u)
        else:
            f, ef = as_numpy(frequencies), 0.0
        u_prior = None if prior is None else as_numpy(prior)
        return snapshot, budget.frozen(z, head, f, ef, power, u_prior, u)

    return make


def make_prior(k: int, dtype: torch.dtype) -> Tensor:
    rng = torch.Generator().manual_seed(7)
    return torch.randn(k, generator=rng, dtype=torch.float64).softmax(0).to(dtype)


# --- against the oracle ------------------------------------------------------------------------


@backends
@dtypes
@heads
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_given_target(
    backend: str, dtype: torch.dtype, kind: str, shape: tuple[int, int, int]
) -> None:
    case = make_case(kind, shape, dtype)
    target = given_target(random_target(shape[0], shape[2], dtype))
    check_against_oracle(case, target, backend)


@backends
@dtypes
@heads
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_snapshot(backend: str, dtype: torch.dtype, kind: str, shape: tuple[int, int, int]) -> None:
    case, old = make_case(kind, shape, dtype), make_case(kind, shape, dtype, seed=5)
    if shape[0] == 0:  # no rows have no frequencies: they come from elsewhere
        frequencies = torch.full((shape[2],), 2.0, dtype=dtype)
        check_against_oracle(case, frozen_target(old, frequencies=frequencies), backend)
    else:
        check_against_oracle(case, frozen_target(old), backend)


@backends
@each_head
@reductions
@losses
def test_reductions_and_kinds(backend: str, kind: str, reduction: str, loss: str) -> None:
    case, old = make_case(kind), make_case(kind, seed=5)
    options = {"reduction": reduction, "loss": loss}
    p = random_target(127, 10, torch.float32)
    check_against_oracle(case, given_target(p), backend, **options)
    check_against_oracle(case, frozen_target(old), backend, **options)


@backends
@dtypes
@pytest.mark.parametrize("kind", ["student_t_nu3", "linear", "gaussian"])
@pytest.mark.parametrize(
    "power",
    # Any finite power is the same factor in Triton's kernels: two are enough for the interpreter.
    [2.0, 0.5, math.inf, *(pytest.param(power, marks=pytest.mark.large) for power in (1.0, 3.5))],
)
@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_powers_and_prior(
    backend: str, dtype: torch.dtype, kind: str, power: float, loss: str
) -> None:
    case, old = make_case(kind, dtype=dtype), make_case(kind, dtype=dtype, seed=5)
    prior = make_prior(10, dtype)
    frequencies = 30 * make_prior(10, dtype).flip(0)
    for options in ({}, {"prior": prior}, {"prior": prior, "frequencies": frequencies}):
        target = frozen_target(old, power=power, **options)
        if math.isinf(power):  # the arg max must not be a matter of rounding
            exact = frozen_target(old, power=1.0, **options)()[1]
            best = np.sort(exact.t, axis=1)
            assert (best[:, -1] - best[:, -2] > 2 * exact.et.max(1)).all()
        check_against_oracle(case, target, backend, loss=loss)


@backends
@pytest.mark.parametrize(("kind", "old_kind"), [("linear", "student_t"), ("gaussian", "linear")])
def test_snapshot_of_another_head_and_width(backend: str, kind: str, old_kind: str) -> None:
    case, old = make_case(kind), make_case(old_kind, (127, 4, 10), seed=5)
    check_against_oracle(case, frozen_target(old), backend)


@backends
@each_head
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(backend: str, kind: str, layout: str) -> None:
    case = make_case(kind, layout=layout)
    p = random_target(127, 10, torch.float32)
    laid_out = p[:1].expand(127, 10) if layout == "expanded" else lay_out(p, layout)
    check_against_oracle(case, given_target(laid_out), backend)
    check_against_oracle(case, frozen_target(make_case(kind, layout=layout, seed=5)), backend)


@backends
@pytest.mark.parametrize("kind", ["student_t", "gaussian", "linear"])
def test_width_past_the_direct_difference(backend: str, kind: str) -> None:
    case, old = make_case(kind, (65, 100, 33)), make_case(kind, (65, 100, 33), seed=5)
    check_against_oracle(case, frozen_target(old), backend)


@backends
@pytest.mark.parametrize("kind", EUCLIDEAN)
def test_far_from_the_origin(backend: str, kind: str) -> None:
    case, old = make_case(kind, shift=100.0), make_case(kind, shift=100.0, seed=5)
    check_against_oracle(case, frozen_target(old), backend)
    check_against_oracle(case, given_target(random_target(127, 10, torch.float32)), backend)


# --- properties --------------------------------------------------------------------------------


@backends
@each_head
def test_one_snapshot_of_itself_is_dec(backend: str, kind: str) -> None:
    """The usual call: the target of the same z and head, and the papers' own two steps."""
    case = make_case(kind, dtype=torch.float64)
    snapshot = F.freeze_target(case.z, case.head, backend="eager")
    p = F.dec_target(F.assign(case.z, case.head, backend="eager"), backend="eager")
    torch.testing.assert_close(
        F.target_loss(case.z, case.head, snapshot, backend=backend),
        F.target_loss(case.z, case.head, p, backend=backend),
        rtol=1e-10,
        atol=1e-13,
    )


@backends
@each_head
@losses
def test_segments_add_up_to_the_whole(backend: str, kind: str, loss: str) -> None:
    case = make_case(kind, dtype=torch.float64).leaves()
    snapshot = F.freeze_target(case.z, case.head, backend="eager")
    options = {"reduction": "sum", "kind": loss, "backend": backend}
    whole = F.target_loss(case.z, case.head, snapshot, **options)
    parts = [
        F.target_loss(case.z[rows], case.head, snapshot[rows], **options)
        for rows in (slice(0, 50), slice(50, 51), slice(51, 127))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-11, atol=1e-13)
    of_whole, of_parts = gradients(whole, case), gradients(sum(parts), case)
    for name in of_whole:
        torch.testing.assert_close(of_parts[name], of_whole[name], rtol=1e-10, atol=1e-12)


@pytest.mark.large
@backends
@pytest.mark.parametrize("kind", ["student_t", "gaussian", "linear"])
def test_many_blocks_of_rows(backend: str, kind: str) -> None:
    """More rows than any block holds, against plain torch."""
    case = make_case(kind, (60_001, 3, 20), torch.float64).leaves()
    snapshot = F.freeze_target(case.z, case.head, backend="eager")
    loss = F.target_loss(case.z, case.head, snapshot, backend=backend)
    log_q = case.head.scores(case.z).log_softmax(1)
    q = log_q.detach().exp()
    p = q**2 / q.sum(0)
    p /= p.sum(1, keepdim=True)
    plain = (p * (p.log() - log_q)).sum(1).mean()
    torch.testing.assert_close(loss, plain, rtol=1e-9, atol=0)
    found, expected = gradients(loss, case), gradients(plain, case)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-8, atol=1e-14)


@backends
@each_head
def test_permuting_clusters_changes_no_loss(backend: str, kind: str) -> None:
    case = make_case(kind, dtype=torch.float64).leaves()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    moved = Case(kind, case.z, {name: p.detach()[order] for name, p in case.parameters.items()})
    moved = moved.leaves()
    p = random_target(127, 10, torch.float64)
    loss = F.target_loss(case.z, case.head, p, backend=backend)
    same = F.target_loss(moved.z, moved.head, p[:, order], backend=backend)
    torch.testing.assert_close(same, loss, rtol=1e-12, atol=0)
    here, there = gradients(loss, case), gradients(same, moved)
    torch.testing.assert_close(there.pop("z"), here.pop("z"), rtol=1e-9, atol=1e-13)
    for name in here:
        torch.testing.assert_close(there[name], here[name][order], rtol=1e-9, atol=1e-13)


@backends
@dtypes
@losses
def test_rows_of_zeros_take_no_part(backend: str, dtype: torch.dtype, loss: str) -> None:
    case = make_case("student_t", (20, 3, 4), dtype).leaves()
    p = random_target(20, 4, dtype)
    p[::2] = 0.0
    options = {"reduction": "sum", "kind": loss, "backend": backend}
    value = F.target_loss(case.z, case.head, p, **options)
    part = F.target_loss(case.z[1::2], case.head, p[1::2], **options)
    torch.testing.assert_close(value, part)
    dz = gradients(value, case)["z"]
    assert not dz[::2].any()
    assert dz[1::2].any()


@backends
@dtypes
def test_target_equal_to_the_assignment(backend: str, dtype: torch.dtype) -> None:
    """KL(Q || Q) = 0 and so is its gradient; power 1 with equal frequencies is q itself."""
    case = make_case("student_t", dtype=dtype).leaves()
    equal = torch.ones(10, dtype=dtype)
    snapshot = F.freeze_target(case.z, case.head, power=1.0, frequencies=equal, backend="eager")
    for target in (snapshot, F.assign(case.z, case.head, backend="eager")):
        loss = F.target_loss(case.z, case.head, target, backend=backend)
        eps = torch.finfo(dtype).eps
        assert abs(loss.item()) < 20 * eps
        assert all(g.abs().max().item() < 20 * eps for g in gradients(loss, case).values())


@backends
@dtypes
@pytest.mark.parametrize("kind", ["student_t", "student_t_nu3", "gaussian"])
@pytest.mark.parametrize("frozen", [False, True])
def test_huge_distances(backend: str, dtype: torch.dtype, kind: str, frozen: bool) -> None:
    case = make_case(kind, (6, 4, 3), dtype)
    z = case.z.clone()
    z[0], z[1, 0] = 3e18, -3e18
    case = Case(kind, z, case.parameters).leaves()
    target: Tensor | F.Snapshot = random_target(6, 3, dtype)
    if frozen:
        target = F.freeze_target(case.z, case.head, backend="eager")
    loss = F.target_loss(case.z, case.head, target, backend=backend)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, case).values())


@backends
@dtypes
@pytest.mark.parametrize("kind", EUCLIDEAN)
def test_points_on_centroids(backend: str, dtype: torch.dtype, kind: str) -> None:
    case = make_case(kind, (4, 3, 4), dtype)
    name = "centroids" if kind.startswith("student_t") else "means"
    on = Case(kind, case.parameters[name].clone(), case.parameters)
    ones = {**case.parameters, name: torch.ones(4, 3, dtype=dtype)}
    same = Case(kind, torch.ones(4, 3, dtype=dtype), ones)
    for coincident in (on, same):
        check_against_oracle(coincident, given_target(random_target(4, 4, dtype)), backend)
        check_against_oracle(coincident, frozen_target(coincident), backend)


@backends
@dtypes
def test_frozen_target_with_an_empty_cluster(backend: str, dtype: torch.dtype) -> None:
    """f_j = 0 is clamped at the smallest normal float32: a strong pull to it, and no NaN."""
    case = make_case("student_t", (20, 3, 4), dtype)
    frequencies = torch.tensor([10.0, 0.0, 6.0, 4.0], dtype=dtype)
    snapshot = F.freeze_target(case.z, case.head, frequencies=frequencies, backend="eager")
    clamped = frequencies.clamp_min(torch.finfo(torch.float32).tiny)
    p = reference.frozen_target(case.oracle_head.scores(case.oracle_z), as_numpy(clamped))
    np.testing.assert_allclose(as_numpy(snapshot.probabilities()), p, rtol=2e-5, atol=1e-30)
    check_against_oracle(case, lambda: (snapshot, budget.given(p)), backend)


@backends
@each_head
def test_no_gradient_reaches_a_given_target(backend: str, kind: str) -> None:
    case = make_case(kind, (20, 3, 4)).leaves()
    p = random_target(20, 4, torch.float32).requires_grad_()
    loss = F.target_loss(case.z, case.head, p, backend=backend)
    assert torch.autograd.grad(loss, p, allow_unused=True) == (None,)
    nothing = F.target_loss(case.z.detach(), make_case(kind, (20, 3, 4)).head, p, backend=backend)
    assert not nothing.requires_grad


@backends
@each_head
def test_no_gradient_reaches_a_snapshot(backend: str, kind: str) -> None:
    case, old = make_case(kind, (20, 3, 4)).leaves(), make_case(kind, (20, 3, 4), seed=5).leaves()
    snapshot = F.freeze_target(old.z, old.head, backend="eager")
    loss = F.target_loss(case.z, case.head, snapshot, backend=backend)
    found = torch.autograd.grad(loss, list(old.inputs.values()), allow_unused=True)
    assert all(gradient is None for gradient in found)


@backends
@reductions
def test_no_rows(backend: str, reduction: str) -> None:
    case = make_case("gaussian", (0, 3, 4)).leaves()
    loss = F.target_loss(case.z, case.head, torch.zeros(0, 4), reduction=reduction, backend=backend)
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in gradients(loss, case).values())


# --- one-line forms ----------------------------------------------------------------------------


@backends
@reductions
def test_dec_loss_is_target_loss(backend: str, reduction: str) -> None:
    case = make_case("student_t")
    centroids = case.parameters["centroids"]
    snapshot = F.freeze_target(case.z, case.head, backend="eager")
    options = {"reduction": reduction, "backend": backend}
    for target in (snapshot, random_target(127, 10, torch.float32)):
        expected = F.target_loss(case.z, F.StudentT(centroids, 3.0), target, **options)
        assert torch.equal(F.dec_loss(case.z, centroids, target, 3.0, **options), expected)
        expected = F.target_loss(case.z, case.head, target, **options)
        assert torch.equal(F.dec_loss(case.z, centroids, target, **options), expected)
        assert torch.equal(F.target_loss(case.z, centroids, target, **options), expected)


@backends
@reductions
def test_soft_cross_entropy_is_target_loss(backend: str, reduction: str) -> None:
    case = make_case("linear")
    p = random_target(127, 10, torch.float32)
    weight, bias = case.parameters.values()
    options = {"reduction": reduction, "backend": backend}
    for b in (bias, None):
        expected = F.target_loss(case.z, F.Linear(weight, b), p, kind="ce", **options)
        assert torch.equal(F.soft_cross_entropy(case.z, weight, b, p, **options), expected)
    # with rows that sum to one it is torch's own
    p = F.assign(case.z, case.head, backend="eager")
    torch.testing.assert_close(
        F.soft_cross_entropy(case.z, weight, bias, p, **options),
        torch.nn.functional.cross_entropy(case.z @ weight.T + bias, p, reduction=reduction),
    )


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda p: p[:19], ValueError),
        (lambda p: p[:, :3], ValueError),
        (lambda p: p[0], ValueError),
        (lambda p: p.double(), TypeError),
        (lambda p: p.long(), TypeError),
        (lambda p: p.numpy(), TypeError),
        (lambda p: None, TypeError),
        (lambda p: p.to("meta"), ValueError),
        (lambda p: p - 1, ValueError),
    ],
    ids=["rows", "columns", "rank", "float64", "int64", "numpy", "None", "device", "negative"],
)
def test_bad_target(change: Callable[[Tensor], object], error: type[Exception]) -> None:
    case = make_case("student_t", (20, 3, 4))
    with pytest.raises(error, match=r"^target: ") as caught:
        F.target_loss(case.z, case.head, change(torch.ones(20, 4) / 4), backend="eager")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@backends
def test_target_with_nan(backend: str, value: float) -> None:
    case = make_case("student_t", (20, 3, 4))
    p = torch.ones(20, 4) / 4
    p[7, 2] = value
    with pytest.raises(ValueError, match=r"^target: row 7 has NaN or Inf"):
        F.target_loss(case.z, case.head, p, backend=backend)
    F.target_loss(case.z, case.head, p, backend=backend, check=False)


def test_snapshot_of_other_rows_or_clusters() -> None:
    case = make_case("student_t", (20, 3, 4))
    snapshot = F.freeze_target(case.z, case.head, backend="eager")
    with pytest.raises(ValueError, match=r"^target: "):
        F.target_loss(case.z, case.head, snapshot[:19], backend="eager")
    with pytest.raises(ValueError, match=r"^target: "):
        F.target_loss(case.z, case.parameters["centroids"][:3], snapshot, backend="eager")


@pytest.mark.parametrize(("name", "value"), [("reduction", "none"), ("kind", "js")])
def test_bad_settings(name: str, value: str) -> None:
    case = make_case("student_t", (20, 3, 4))
    with pytest.raises(ValueError, match=rf"^{name}: got '{value}'"):
        F.target_loss(case.z, case.head, torch.ones(20, 4) / 4, backend="eager", **{name: value})
