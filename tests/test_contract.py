"""What every primitive promises alike: types, refusals, gradients, options."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from tests.cases import HALVES, backends_for, poisoned_buffers

N, D, K = 12, 3, 4


@dataclass(frozen=True)
class Call:
    """One public function: its tensors by argument name, and how to call it with them."""

    primitive: str
    shapes: dict[str, tuple[int, ...]]
    run: Callable[..., Any]
    gradients: tuple[str, ...] = ()
    # results that come in the input's type; the others add up, and stay in float32 for half types
    in_input_type: bool = False

    def tensors(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(seed)
        tensors = {
            name: torch.randn(shape, generator=rng, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }
        for name in ("q", "target"):
            if name in tensors:
                tensors[name] = tensors[name].softmax(1)
        for name in ("frequencies", "prior", "log_weights"):
            if name in tensors:
                tensors[name] = tensors[name].softmax(0)
        return {name: value.to(dtype) for name, value in tensors.items()}

    def results(self, tensors: dict[str, Tensor], **options: Any) -> list[Tensor]:
        found = self.run(**tensors, **options)
        if isinstance(found, F.Snapshot):
            return [found.probabilities()]
        return list(found) if isinstance(found, tuple) else [found]


Z, MU = (N, D), (K, D)
STUDENT = {"z": Z, "centroids": MU}
LINEAR = {"z": Z, "weight": MU, "bias": (K,)}
GAUSSIAN = {"z": Z, "means": MU, "log_var": MU, "log_weights": (K,)}
LABELS = torch.arange(N) % K
# calls that name one of these have its number of rows
N_ROWS = {"LABELS", "with_snapshot"}


def student(centroids: Tensor) -> F.StudentT:
    return F.StudentT(centroids, 2.0)


def with_snapshot(z: Tensor, head: Any, **options: Any) -> Tensor:
    """target_loss from a snapshot that is not itself under test."""
    wide = torch.float64 if getattr(z, "dtype", None) == torch.float64 else torch.float32
    return F.target_loss(z, head, old_snapshot(wide), **options)


@functools.cache
def old_snapshot(dtype: torch.dtype) -> F.Snapshot:
    rng = torch.Generator().manual_seed(5)
    old_z = torch.randn(N, D, generator=rng, dtype=torch.float64).to(dtype)
    old = torch.randn(K, D, generator=rng, dtype=torch.float64).to(dtype)
    return F.freeze_target(old_z, old, frequencies=torch.ones(K).to(dtype), backend="eager")


CALLS = {
    "assign-student_t": Call(
        "assign",
        STUDENT,
        lambda z, centroids, **o: F.assign(z, student(centroids), **o),
        ("z", "centroids"),
        in_input_type=True,
    ),
    "assign-linear": Call(
        "assign",
        LINEAR,
        lambda z, weight, bias, **o: F.assign(z, F.Linear(weight, bias), **o),
        ("z", "weight", "bias"),
        in_input_type=True,
    ),
    "assign-gaussian": Call(
        "assign",
        GAUSSIAN,
        lambda z, means, log_var, log_weights, **o: F.assign(
            z, F.Gaussian(means, log_var, log_weights), **o
        ),
        ("z", "means", "log_var", "log_weights"),
        in_input_type=True,
    ),
    "target_loss-student_t": Call(
        "target_loss",
        {**STUDENT, "target": (N, K)},
        lambda z, centroids, target, **o: F.target_loss(z, student(centroids), target, **o),
        ("z", "centroids"),
    ),
    "target_loss-linear-ce": Call(
        "target_loss",
        {**LINEAR, "target": (N, K)},
        lambda z, weight, bias, target, **o: F.target_loss(
            z, F.Linear(weight, bias), target, kind="ce", **o
        ),
        ("z", "weight", "bias"),
    ),
    "target_loss-gaussian-snapshot": Call(
        "target_loss",
        GAUSSIAN,
        lambda z, means, log_var, log_weights, **o: with_snapshot(
            z, F.Gaussian(means, log_var, log_weights), **o
        ),
        ("z", "means", "log_var", "log_weights"),
    ),
    "target_loss-student_t-snapshot": Call(
        "target_loss",
        STUDENT,
        lambda z, centroids, **o: with_snapshot(z, student(centroids), reduction="sum", **o),
        ("z", "centroids"),
    ),
    "kmeans_loss": Call(
        "kmeans_loss",
        STUDENT,
        lambda z, centroids, **o: F.kmeans_loss(z, centroids, **o),
        ("z", "centroids"),
    ),
    "kmeans_loss-labels": Call(
        "kmeans_loss",
        STUDENT,
        lambda z, centroids, **o: F.kmeans_loss(z, centroids, LABELS, reduction="sum", **o),
        ("z", "centroids"),
    ),
    "gaussian_kl": Call(
        "gaussian_kl",
        {"mu": Z, "log_var": Z, "eta": Z, "log_tau": Z},
        F.gaussian_kl,
        ("mu", "log_var", "eta", "log_tau"),
    ),
    "frequencies": Call(
        "frequencies",
        STUDENT,
        lambda z, centroids, **o: F.frequencies(z, student(centroids), **o),
    ),
    "frequencies-linear": Call(
        "frequencies",
        LINEAR,
        lambda z, weight, bias, **o: F.frequencies(z, F.Linear(weight, bias), **o),
    ),
    "freeze_target": Call(
        "frequencies",
        STUDENT,
        lambda z, centroids, **o: F.freeze_target(z, student(centroids), **o),
        in_input_type=True,
    ),
    "freeze_balanced_target": Call(
        "frequencies",
        LINEAR,
        lambda z, weight, bias, **o: F.freeze_balanced_target(z, F.Linear(weight, bias), **o),
        in_input_type=True,
    ),
    "dec_target": Call(
        "targets", {"q": (N, K), "frequencies": (K,)}, F.dec_target, in_input_type=True
    ),
    "depict_target": Call(
        "targets",
        {"q": (N, K), "frequencies": (K,), "prior": (K,)},
        F.depict_target,
        in_input_type=True,
    ),
    "kmeans_assign": Call("kmeans_assign", {"x": Z, "centroids": MU}, F.kmeans_assign),
    "kmeans_candidates": Call(
        "kmeans_candidates",
        {"x": Z, "candidates": MU, "nearest": (N,), "sample_weight": (N,)},
        F.kmeans_candidates,
    ),
    "kmeans_update": Call(
        "kmeans_update",
        {"x": Z, "sample_weight": (N,)},
        lambda x, sample_weight, **o: F.kmeans_update(x, LABELS, K, sample_weight, **o),
    ),
}
DIFFERENTIABLE = {name: call for name, call in CALLS.items() if call.gradients}


def each(calls: dict[str, Call], *, but_eager: bool = False) -> Any:
    """Parametrise over calls and the backends of each."""

    def pairs() -> Iterator[Any]:
        for name, call in calls.items():
            for backend in backends_for(call.primitive)[but_eager:]:
                yield pytest.param(call, backend, id=f"{name}-{backend}")

    return pytest.mark.parametrize(("call", "backend"), list(pairs()))


def each_argument(calls: dict[str, Call]) -> Any:
    """Parametrise over calls and the tensors of each."""
    return pytest.mark.parametrize(
        ("call", "name"),
        [
            pytest.param(call, argument, id=f"{name}-{argument}")
            for name, call in calls.items()
            for argument in call.shapes
        ],
    )


def leaves(tensors: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {n: value.detach().requires_grad_(n in names) for n, value in tensors.items()}


def scalar(results: list[Tensor]) -> Tensor:
    """A scalar with a gradient that differs from place to place."""
    value = results[0]
    return (value * torch.linspace(1, 2, value.numel(), dtype=value.dtype).view_as(value)).sum()


# --- types and values --------------------------------------------------------------------------


@each(CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_type_of_the_input(call: Call, backend: str, dtype: torch.dtype) -> None:
    for result in call.results(call.tensors(dtype), backend=backend):
        assert result.dtype in (dtype, torch.int64)
        assert not result.requires_grad


@each(CALLS)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_types_are_computed_in_float32(call: Call, backend: str, dtype: torch.dtype) -> None:
    half = call.tensors(dtype)
    single = {name: value.float() for name, value in half.items()}
    exact = call.results(single, backend=backend)
    for found, expected in zip(call.results(half, backend=backend), exact, strict=True):
        if expected.dtype == torch.int64:
            assert torch.equal(found, expected)
            continue
        assert found.dtype == (dtype if call.in_input_type else torch.float32)
        eps = torch.finfo(found.dtype).eps
        torch.testing.assert_close(found.float(), expected, rtol=2 * eps, atol=2 * eps)


@each(DIFFERENTIABLE)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_types_get_gradients_of_their_type(
    call: Call, backend: str, dtype: torch.dtype
) -> None:
    half = leaves(call.tensors(dtype), call.gradients)
    single = {name: value.detach().float() for name, value in half.items()}
    single = leaves(single, call.gradients)
    found, expected = [], []
    for tensors, gradients in ((half, found), (single, expected)):
        result = call.results(tensors, backend=backend)[0]
        # signs are exact in any type, so that nothing is rounded on the way in
        rng = torch.Generator().manual_seed(3)
        signs = torch.randint(2, result.shape, generator=rng).to(result.dtype) * 2 - 1
        wanted = [tensors[name] for name in call.gradients]
        gradients += torch.autograd.grad(result, wanted, signs)
    for gradient, exact in zip(found, expected, strict=True):
        assert gradient.dtype == dtype
        # a result in a half type is what the gradient may be made from: a few roundings, no more
        size = exact.abs().max().item()
        torch.testing.assert_close(
            gradient.float(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps * size
        )


@each(CALLS)
def test_inputs_stay_as_they_are(call: Call, backend: str) -> None:
    tensors = leaves(call.tensors(), call.gradients)
    before = {name: value.detach().clone() for name, value in tensors.items()}
    results = call.results(tensors, backend=backend)
    if call.gradients:
        scalar(results).backward()
    for name, value in tensors.items():
        assert torch.equal(value, before[name])
    shared = {value.data_ptr() for value in tensors.values()}
    assert not any(result.data_ptr() in shared for result in results)


@each({name: call for name, call in CALLS.items() if N_ROWS.isdisjoint(call.run.__code__.co_names)})
def test_no_rows(call: Call, backend: str) -> None:
    per_row = {name for name, shape in call.shapes.items() if shape[0] == N}
    tensors = {
        name: value[:0] if name in per_row else value for name, value in call.tensors().items()
    }
    for result in call.results(tensors, backend=backend):
        assert not result.isnan().any() if result.is_floating_point() else True
        assert result.shape[:1] in ((0,), (K,), ())


@each(CALLS)
def test_every_element_of_a_fresh_buffer_is_written(call: Call, backend: str) -> None:
    tensors = leaves(call.tensors(), call.gradients)
    with poisoned_buffers():
        results = call.results(tensors, backend=backend)
        if call.gradients:
            scalar(results).backward()
    for result in results:
        assert not result.isnan().any()
    for name in call.gradients:
        assert not tensors[name].grad.isnan().any()


@each(CALLS)
def test_fast_is_close_to_exact(call: Call, backend: str) -> None:
    tensors = call.tensors()
    exact = call.results(tensors, backend=backend)
    fast = call.results(tensors, backend=backend, precision="fast")
    for a, b in zip(fast, exact, strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


# --- refusals ----------------------------------------------------------------------------------


def refused(
    call: Call, tensors: dict[str, Any], error: Any, message: str, backend: str = "eager"
) -> None:
    with pytest.raises(error, match=message) as caught:
        call.run(**tensors, backend=backend)
    assert "\n" not in str(caught.value)


@each(CALLS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_name_the_first_bad_row(call: Call, backend: str, value: float) -> None:
    spoiled = {name: tensor.clone() for name, tensor in call.tensors().items()}
    for name, bad in spoiled.items():
        for row in (len(bad) - 1, 2):
            bad.view(len(bad), -1)[row, -1] = value
        tensors = {**call.tensors(), name: bad}
        refused(call, tensors, ValueError, f"^{name}: row 2 has NaN or Inf", backend)
    call.run(**spoiled, backend=backend, check=False)


@each_argument(CALLS)
def test_wrong_type(call: Call, name: str) -> None:
    tensor = call.tensors()[name]
    bad: Any
    for bad in (tensor.long(), tensor.bool(), tensor.to(torch.complex64), tensor.tolist(), 1.5):
        refused(call, {**call.tensors(), name: bad}, TypeError, f"^{name}: ")


@each_argument(CALLS)
def test_wrong_rank(call: Call, name: str) -> None:
    tensor = call.tensors()[name]
    for bad in (tensor[0], tensor[None]):
        refused(call, {**call.tensors(), name: bad}, ValueError, f"^{name}: ")


# The targets' frequencies and k-means' labels follow the first argument, whatever its width.
@each_argument(
    {name: c for name, c in CALLS.items() if c.primitive not in ("targets", "kmeans_update")}
)
def test_wrong_size(call: Call, name: str) -> None:
    """One column or one entry more than fits: the message names this argument or its partner."""
    tensor = call.tensors()[name]
    bad = torch.cat([tensor, tensor[..., :1]], dim=-1)
    partners = "|".join(call.shapes)
    refused(call, {**call.tensors(), name: bad}, ValueError, f"^({partners}): ")


@each_argument({name: call for name, call in CALLS.items() if len(call.shapes) > 1})
def test_mixed_types(call: Call, name: str) -> None:
    """float64 goes with float64; sums and shares of another width are taken as they are."""
    if call.primitive in ("targets", "kmeans_update"):
        call.run(**{**call.tensors(), name: call.tensors()[name].double()}, backend="eager")
        return
    partners = "|".join(call.shapes)
    bad = {**call.tensors(), name: call.tensors()[name].double()}
    refused(call, bad, TypeError, f"^({partners}): ")


@each_argument({name: call for name, call in CALLS.items() if len(call.shapes) > 1})
def test_mixed_devices(call: Call, name: str) -> None:
    bad = {**call.tensors(), name: call.tensors()[name].to("meta")}
    refused(call, bad, ValueError, r"^\w+: got device .*meta")


@each_argument(
    {
        name: call
        for name, call in CALLS.items()
        if {"centroids", "weight", "means", "candidates"} & set(call.shapes)
    }
)
def test_no_clusters_or_no_columns(call: Call, name: str) -> None:
    tensors = call.tensors()
    if name in ("centroids", "weight", "means", "candidates"):
        refused(call, {**tensors, name: tensors[name][:0]}, ValueError, f"^{name}: ")
    if tensors[name].ndim == 2:
        partners = "|".join(call.shapes)
        bad = {**tensors, name: tensors[name][:, :0]}
        refused(call, bad, ValueError, f"^({partners}): ")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_unknown_options(call: Call) -> None:
    for option, value in (("backend", "cuda"), ("backend", None), ("precision", "half")):
        with pytest.raises(ValueError, match=rf"^{option}: got ") as caught:
            call.run(**call.tensors(), **{option: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nu", [0.0, -1.0, math.nan, math.inf, "1", None])
def test_bad_nu(nu: Any) -> None:
    tensors = CALLS["assign-student_t"].tensors()
    with pytest.raises((TypeError, ValueError), match=r"^nu: "):
        F.StudentT(tensors["centroids"], nu)
    with pytest.raises((TypeError, ValueError), match=r"^nu: "):
        F.student_t_assignment(**tensors, nu=nu)


@pytest.mark.parametrize("head", [None, "student_t", [[0.0]], 3])
def test_bad_head(head: Any) -> None:
    z = torch.zeros(2, 1)
    for run in (F.assign, F.frequencies, F.freeze_target):
        with pytest.raises(TypeError, match=r"^head: "):
            run(z, head)
    with pytest.raises(TypeError, match=r"^head: "):
        F.target_loss(z, head, torch.ones(2, 1))


# --- gradients ---------------------------------------------------------------------------------


@each(DIFFERENTIABLE)
def test_gradcheck(call: Call, backend: str) -> None:
    tensors = leaves(call.tensors(torch.float64), call.gradients)
    assert torch.autograd.gradcheck(
        lambda *inputs: call.run(
            **{**tensors, **dict(zip(call.gradients, inputs, strict=True))}, backend=backend
        ),
        [tensors[name] for name in call.gradients],
        atol=1e-6,
        fast_mode=True,  # every entry is checked against the oracles
    )


@each(DIFFERENTIABLE)
def test_retained_graph_gives_the_same_gradients_in_new_tensors(call: Call, backend: str) -> None:
    tensors = leaves(call.tensors(), call.gradients)
    wanted = [tensors[name] for name in call.gradients]
    value = scalar(call.results(tensors, backend=backend))
    first = torch.autograd.grad(value, wanted, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.mul_(-7)
    second = torch.autograd.grad(value, wanted, retain_graph=True)
    for gradient, other, expected in zip(first, second, kept, strict=True):
        assert torch.equal(other, expected)
        assert other.data_ptr() != gradient.data_ptr()
    # each a tensor of its own, and 3 times the loss is 3 times the gradient
    assert len({gradient.data_ptr() for gradient in second}) == len(second)
    for tripled, expected in zip(torch.autograd.grad(3 * value, wanted), kept, strict=True):
        torch.testing.assert_close(tripled, 3 * expected)


@each(DIFFERENTIABLE)
def test_only_the_gradients_that_are_needed(call: Call, backend: str) -> None:
    everything = leaves(call.tensors(), call.gradients)
    value = scalar(call.results(everything, backend=backend))
    found = torch.autograd.grad(value, [everything[name] for name in call.gradients])
    for name, expected in zip(call.gradients, found, strict=True):
        alone = leaves(call.tensors(), (name,))
        value = scalar(call.results(alone, backend=backend))
        value.backward()
        torch.testing.assert_close(alone[name].grad, expected)
        assert all(alone[other].grad is None for other in alone if other != name)


@each(DIFFERENTIABLE)
def test_gradients_add_up_over_calls(call: Call, backend: str) -> None:
    tensors = leaves(call.tensors(), call.gradients)
    for _ in range(2):
        scalar(call.results(tensors, backend=backend)).backward()
    once = leaves(call.tensors(), call.gradients)
    scalar(call.results(once, backend=backend)).backward()
    for name in call.gradients:
        torch.testing.assert_close(tensors[name].grad, 2 * once[name].grad)


@each(DIFFERENTIABLE)
def test_without_a_graph(call: Call, backend: str) -> None:
    plain = call.tensors()
    expected = call.results(plain, backend=backend)[0]
    assert not expected.requires_grad
    tensors = leaves(plain, call.gradients)
    with_graph = call.results(tensors, backend=backend)[0]
    assert with_graph.requires_grad
    torch.testing.assert_close(with_graph.detach(), expected)
    with torch.no_grad():
        found = call.results(tensors, backend=backend)[0]
        assert not found.requires_grad
        assert torch.equal(found, expected)
    with torch.inference_mode():
        assert torch.equal(call.results(plain, backend=backend)[0], expected)


@pytest.mark.parametrize("call", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE.keys())
def test_eager_has_second_derivatives(call: Call) -> None:
    tensors = leaves(call.tensors(torch.float64), call.gradients)
    assert torch.autograd.gradgradcheck(
        lambda *inputs: call.run(
            **{**tensors, **dict(zip(call.gradients, inputs, strict=True))}, backend="eager"
        ),
        [tensors[name] for name in call.gradients],
        fast_mode=True,
    )


@each({n: c for n, c in DIFFERENTIABLE.items() if c.primitive != "gaussian_kl"}, but_eager=True)
def test_second_derivatives_of_the_others_say_what_to_do(call: Call, backend: str) -> None:
    """A gradient norm as in a penalty: right at first order, refused at second, never silent."""
    tensors = leaves(call.tensors(), call.gradients)
    wanted = [tensors[name] for name in call.gradients]
    value = scalar(call.results(tensors, backend=backend))
    found = torch.autograd.grad(value, wanted, create_graph=True)
    expected = torch.autograd.grad(value, wanted, retain_graph=True)
    for gradient, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, exact)
        penalty = (gradient**2).sum()
        with pytest.raises(RuntimeError, match='backend="eager"'):
            (value + penalty).backward(retain_graph=True)
        # asked for by name, the derivative must not come back without the penalty's part
        with pytest.raises(RuntimeError, match='backend="eager"'):
            torch.autograd.grad(value + penalty, wanted, retain_graph=True)
        with pytest.raises(RuntimeError, match='backend="eager"'):
            torch.autograd.grad(penalty, wanted, retain_graph=True, allow_unused=True)


@each(DIFFERENTIABLE)
def test_autocast_does_not_round_distances(call: Call, backend: str) -> None:
    tensors = leaves(call.tensors(), call.gradients)
    wanted = [tensors[name] for name in call.gradients]
    expected = call.results(tensors, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call.results(tensors, backend=backend)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(scalar(found), wanted), torch.autograd.grad(scalar(expected), wanted)
    )
