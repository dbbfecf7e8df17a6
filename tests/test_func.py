"""torch.func's transforms and autocast over the primitives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from deepclust import functional as F
from deepclust.kernels import _blocks
from tests.cases import HALVES
from tests.test_contract import CALLS, DIFFERENTIABLE, Call, each, leaves, old_snapshot, scalar

FUSED = {name: call for name, call in DIFFERENTIABLE.items() if call.primitive != "gaussian_kl"}
# What a transform may be inside of: functions without a gradient and with tensors as results.
CONSTANT = {
    name: call
    for name, call in CALLS.items()
    if not call.gradients and not name.startswith("freeze_")
}
B = 3
old_snapshot(torch.float64)  # drawn now, since transforms forbid it


def function(call: Call, backend: str, results: Any = scalar) -> tuple[Callable[..., Any], Any]:
    """The call on the tensors that have a gradient, and these tensors."""
    tensors = call.tensors(torch.float64)

    def run(*inputs: Tensor) -> Any:
        given = {**tensors, **dict(zip(call.gradients, inputs, strict=True))}
        return results(call.results(given, backend=backend))

    return run, tuple(tensors[name] for name in call.gradients)


def expected(call: Call, backend: str, *inputs: Tensor) -> list[Tensor]:
    """The gradients by torch.autograd."""
    run, _ = function(call, backend)
    inputs = tuple(value.detach().requires_grad_() for value in inputs)
    return list(torch.autograd.grad(run(*inputs), inputs))


def first(results: list[Tensor]) -> Tensor:
    return results[0]


def numbers(call: Call) -> tuple[int, ...]:
    return tuple(range(len(call.gradients)))


def batch(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Problems that differ in all that they depend on, along a dimension that is not the first."""
    return tuple(torch.stack([value * (1 + i / 4) for i in range(B)], 1) for value in inputs)


def along(inputs: tuple[Tensor, ...], i: int) -> tuple[Tensor, ...]:
    return tuple(value.select(1, i) for value in inputs)


# --- reverse mode and vmap ---------------------------------------------------------------------


@each(DIFFERENTIABLE)
def test_grad_and_vjp(call: Call, backend: str) -> None:
    run, inputs = function(call, backend)
    wanted = expected(call, backend, *inputs)
    torch.testing.assert_close(list(grad(run, numbers(call))(*inputs)), wanted)
    value, pull_back = vjp(run, *inputs)
    torch.testing.assert_close(value, run(*inputs))
    found = pull_back(torch.tensor(-2.0, dtype=value.dtype))  # after the transform is over
    torch.testing.assert_close(list(found), [-2 * gradient for gradient in wanted])


@each(DIFFERENTIABLE)
def test_jacrev(call: Call, backend: str) -> None:
    run, inputs = function(call, backend, first)
    torch.testing.assert_close(
        jacrev(run, numbers(call))(*inputs), torch.autograd.functional.jacobian(run, inputs)
    )


@each(DIFFERENTIABLE)
def test_vmap_is_a_loop(call: Call, backend: str) -> None:
    run, inputs = function(call, backend)
    several = batch(inputs)
    each_alone = [run(*along(several, i)) for i in range(B)]
    torch.testing.assert_close(vmap(run, in_dims=1)(*several), torch.stack(each_alone))
    # of one tensor alone, the others shared
    dims = (1, *[None] * (len(inputs) - 1))
    mixed = [run(several[0].select(1, i), *inputs[1:]) for i in range(B)]
    torch.testing.assert_close(vmap(run, in_dims=dims)(several[0], *inputs[1:]), torch.stack(mixed))


@each(DIFFERENTIABLE)
def test_vmap_and_grad_in_either_order(call: Call, backend: str) -> None:
    run, inputs = function(call, backend)
    several = batch(inputs)
    wanted = [expected(call, backend, *along(several, i)) for i in range(B)]
    stacked = [torch.stack(gradients) for gradients in zip(*wanted, strict=True)]
    found = vmap(grad(run, numbers(call)), in_dims=1)(*several)
    torch.testing.assert_close(list(found), stacked)

    def total(*several: Tensor) -> Tensor:
        return vmap(run, in_dims=1)(*several).sum()

    found = grad(total, numbers(call))(*several)
    torch.testing.assert_close([value.movedim(1, 0) for value in found], stacked)
    plain = [value.detach().requires_grad_() for value in several]
    found = torch.autograd.grad(total(*plain), plain)
    torch.testing.assert_close([value.movedim(1, 0) for value in found], stacked)


@pytest.mark.parametrize("call", CONSTANT.values(), ids=CONSTANT.keys())
def test_functions_without_gradient(call: Call) -> None:
    """They may stand anywhere within a transform, and count as constants there."""
    tensors = call.tensors(torch.float64)
    name = next(iter(call.shapes))
    several = torch.stack([tensors[name] * (1 + i / 4) for i in range(B)])

    def run(value: Tensor) -> list[Tensor]:
        return call.results({**tensors, name: value})

    alone = [run(value) for value in several]
    torch.testing.assert_close(
        vmap(run)(several), [torch.stack(results) for results in zip(*alone, strict=True)]
    )

    def weighted(value: Tensor) -> Tensor:
        return (run(value)[0].sum() * value).sum()

    constant = run(tensors[name])[0].sum().to(torch.float64)
    torch.testing.assert_close(
        grad(weighted)(tensors[name]), constant.expand_as(tensors[name]).contiguous()
    )
    _, tangent = jvp(weighted, (tensors[name],), (torch.ones_like(tensors[name]),))
    torch.testing.assert_close(tangent, constant * tensors[name].numel())


def test_gradients_of_each_row_of_a_module() -> None:
    """functional_call: a gradient of the centroids for each row of z."""
    torch.manual_seed(0)
    layer = torch.nn.ParameterDict({"centroids": torch.randn(4, 3)})
    z, p = torch.randn(6, 3), torch.rand(6, 4).softmax(1)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, z: Tensor, p: Tensor) -> Tensor:
            return F.target_loss(z, self.layer["centroids"], p)

    loss = Loss()
    parameters = dict(loss.named_parameters())

    def of_row(parameters: dict[str, Tensor], z: Tensor, p: Tensor) -> Tensor:
        return torch.func.functional_call(loss, parameters, (z[None], p[None]))

    (found,) = vmap(grad(of_row), in_dims=(None, 0, 0))(parameters, z, p).values()
    for i in range(len(z)):
        value = loss(z[i : i + 1], p[i : i + 1])
        (wanted,) = torch.autograd.grad(value, layer["centroids"])
        torch.testing.assert_close(found[i], wanted)


@each(FUSED, but_eager=True)
def test_values_are_looked_at_within_transforms(call: Call, backend: str) -> None:
    run, inputs = function(call, backend)
    name = call.gradients[0]
    inputs[0][2] = torch.nan
    with pytest.raises(ValueError, match=f"^{name}: row 2 has NaN or Inf"):
        grad(run)(*inputs)
    with pytest.raises(ValueError, match=f"^{name}: row 2 has NaN or Inf"):
        vmap(run, in_dims=1)(*batch(inputs))


@each({name: call for name, call in DIFFERENTIABLE.items() if call.primitive != "gaussian_kl"})
def test_several_blocks_of_rows(call: Call, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, inputs = function(call, backend)
    wanted = expected(call, backend, *inputs)
    monkeypatch.setattr(_blocks, "BLOCK_ELEMENTS", 20)
    torch.testing.assert_close(list(grad(run, numbers(call))(*inputs)), wanted)


# --- forward mode and second derivatives -------------------------------------------------------


@pytest.mark.parametrize("call", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE.keys())
def test_eager_has_forward_mode_and_second_derivatives(call: Call) -> None:
    run, inputs = function(call, "eager")
    wanted = torch.autograd.functional.hessian(lambda z: run(z, *inputs[1:]), inputs[0])
    torch.testing.assert_close(hessian(run)(*inputs), wanted)
    torch.testing.assert_close(jacrev(grad(run))(*inputs), wanted)
    torch.testing.assert_close(jacfwd(run)(*inputs), expected(call, "eager", *inputs)[0])


@each(FUSED, but_eager=True)
def test_forward_mode_of_the_others_says_what_to_do(call: Call, backend: str) -> None:
    run, inputs = function(call, backend)
    for refused in (jacfwd(run), hessian(run), lambda *v: jvp(run, v, v)):
        with pytest.raises(RuntimeError, match=r'forward-mode.* backend="eager"'):
            refused(*inputs)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs[0], inputs[0])
        with pytest.raises(RuntimeError, match=r'forward-mode.* backend="eager"'):
            run(dual, *inputs[1:])


@each(FUSED, but_eager=True)
def test_second_derivatives_of_the_others_say_what_to_do(call: Call, backend: str) -> None:
    run, inputs = function(call, backend)
    several = tuple(value.requires_grad_() for value in batch(inputs))

    def penalty(*inputs: Tensor) -> Tensor:
        return grad(run)(*inputs).square().sum()

    for refused in (jacrev(grad(run)), grad(penalty)):
        with pytest.raises(RuntimeError, match=r'second derivative.* backend="eager"'):
            refused(*inputs)
    with pytest.raises(RuntimeError, match=r'second derivative.* backend="eager"'):
        vmap(grad(penalty), in_dims=1)(*several)
    value = vmap(run, in_dims=1)(*several).sum()
    (gradient,) = torch.autograd.grad(value, several[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r'second derivative.* backend="eager"'):
        gradient.square().sum().backward()


# --- autocast ----------------------------------------------------------------------------------


@each({name: call for name, call in CALLS.items() if not name.startswith("freeze_")})
@pytest.mark.parametrize("dtype", HALVES)
def test_half_types_become_float32_under_autocast(
    call: Call, backend: str, dtype: torch.dtype
) -> None:
    """As torch's own distances, soft-max and losses: results in float32, gradients as inputs."""
    half = call.tensors(dtype)
    tensors = leaves(half, call.gradients)
    wide = leaves({name: value.float() for name, value in half.items()}, call.gradients)
    exact = call.results(wide, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call.results(tensors, backend=backend)
    for result, value in zip(found, exact, strict=True):
        assert result.dtype == value.dtype
        torch.testing.assert_close(result, value)
    if call.gradients:
        wanted = torch.autograd.grad(scalar(exact), [wide[name] for name in call.gradients])
        inputs = [tensors[name] for name in call.gradients]
        for gradient, value in zip(torch.autograd.grad(scalar(found), inputs), wanted, strict=True):
            assert gradient.dtype == dtype
            torch.testing.assert_close(gradient, value.to(dtype))


def test_half_embeddings_with_float32_centroids_under_autocast() -> None:
    """What an encoder under autocast hands to a layer: centroids are not rounded."""
    torch.manual_seed(0)
    z, centroids = torch.randn(6, 3, dtype=torch.bfloat16), torch.randn(4, 3)
    compiled = torch.compile(F.assign, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for run in (F.assign, compiled):
            q = run(z, centroids)
            assert q.dtype == torch.float32
            torch.testing.assert_close(q, F.assign(z.float(), centroids), rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_operator_has_a_rule_for_autocast(device: str) -> None:
    names = [
        name.partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("deepclust::")
    ]
    assert len(names) > 5
    key = f"Autocast{device.upper()}"
    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for name in names)
