"""The operators as torch.compile and torch.export see them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from deepclust import functional as F
from tests.cases import make_case, random_target
from tests.test_contract import CALLS, Call, leaves, scalar

N, D, K = 12, 3, 4
FORMS = {"student_t": "student_t:1.0", "linear": "linear", "gaussian": "gaussian"}

# Snapshots are made between compiled steps; taking one is tested below.
STEPS = {
    name: call
    for name, call in CALLS.items()
    if not name.startswith("freeze_") and not name.endswith("-snapshot")
}


def samples() -> dict[str, list[tuple[Any, ...]]]:
    """Arguments for every operator that the library registers."""
    case = make_case("student_t", (N, D, K)).leaves()
    x, mu = case.z.detach(), case.parameters["centroids"].detach()
    labels = torch.arange(N) % K
    q = torch.rand(N, K).softmax(1)
    found: dict[str, list[tuple[Any, ...]]] = {
        "frequencies": [
            (x, [mu], None, "student_t:1.0", "auto", "exact", True),
            (x, [mu], labels, "student_t:0.5", "auto", "exact", False),
        ],
        "kmeans_assign": [(x, mu, "auto", "exact", True)],
        "kmeans_candidates": [
            (x, mu, None, None, "auto", True),
            (x, mu, torch.rand(N), torch.rand(N), "auto", True),
        ],
        "kmeans_update": [
            (x, labels, K, None, "auto", True),
            (x, labels, K, torch.rand(N), "auto", True),
        ],
        "kmeans_loss": [
            (case.z, mu.clone().requires_grad_(), chosen, reduction, True, "auto", "exact", True)
            for chosen, reduction in ((None, "mean"), (labels, "sum"))
        ],
        "target": [
            (q, None, None, 2.0, "auto", True),
            (q, torch.rand(K), torch.rand(K).softmax(0), 1.0, "auto", True),
        ],
        "assign": [],
        "assign_backward": [],
        "target_loss": [],
    }
    for kind, form in FORMS.items():
        case = make_case(kind, (N, D, K)).leaves()
        plain = [value.detach() for value in case.parameters.values()]
        params = list(case.parameters.values())
        found["assign"].append((case.z, params, form, "auto", "exact", True))
        found["assign_backward"].append((q, q, case.z.detach(), plain, form, "auto", "exact"))
        snapshot = F.freeze_target(case.z, case.head, backend="eager")
        for target, target_form in (([q], "given"), (snapshot.tensors, snapshot.form)):
            for needs_grad in (True, False):
                inputs = (case.z, params) if needs_grad else (case.z.detach(), plain)
                settings = ("kl", "mean", needs_grad, "auto", "exact", True)
                found["target_loss"].append((*inputs, form, target, target_form, *settings))
    return found


SAMPLES = samples()


def test_every_operator_has_samples() -> None:
    registered = {
        re.sub(r"^deepclust::", "", name).partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("deepclust::")
    }
    assert registered == set(SAMPLES)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        pytest.param(name, args, id=f"{name}-{i}")
        for name, several in SAMPLES.items()
        for i, args in enumerate(several)
    ],
)
def test_opcheck(name: str, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(getattr(torch.ops.deepclust, name), args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("call", STEPS.values(), ids=STEPS.keys())
def test_compiled_is_eager(call: Call, dtype: torch.dtype) -> None:
    """Whole graphs, same types, same values, same gradients."""
    torch._dynamo.reset()
    tensors = leaves(call.tensors(dtype), call.gradients)
    compiled = torch.compile(call.run, fullgraph=True, backend="aot_eager")
    expected = call.results(tensors)
    found = compiled(**tensors)
    found = list(found) if isinstance(found, tuple) else [found]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    if call.gradients:
        wanted = [tensors[name] for name in call.gradients]
        torch.testing.assert_close(
            torch.autograd.grad(scalar(found), wanted),
            torch.autograd.grad(scalar(expected), wanted),
        )


class Model(nn.Module):
    """An encoder with a head of its own, as a training step has it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, D))
        self.kind = kind
        parameters = make_case(kind, (1, D, K)).parameters
        self.head = nn.ParameterDict(parameters)

    def forward(self, x: Tensor, target: Any) -> Tensor:
        z = self.encoder(x)
        if self.kind == "linear":
            head: Any = F.Linear(self.head["weight"], self.head["bias"])
            return F.target_loss(z, head, target, kind="ce")
        if self.kind == "gaussian":
            head = F.Gaussian(self.head["means"], self.head["log_var"], self.head["log_weights"])
        else:
            head = F.StudentT(self.head["centroids"], 1.0)
        return F.target_loss(z, head, target)


def make_step(kind: str) -> tuple[Model, Tensor, F.Snapshot]:
    model = Model(kind)
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    old = make_case(kind, (200, D, K), seed=3)
    return model, x, F.freeze_target(old.z, old.head, backend="eager")


def loss_and_gradients(model: Callable[..., Tensor], module: nn.Module, *args: Any) -> Any:
    module.zero_grad()
    loss = model(*args)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in module.named_parameters()}


def batches(frozen: bool, snapshot: F.Snapshot, sizes: tuple[int, ...]) -> Any:
    for start, size in enumerate(sizes):
        rows = torch.arange(start, start + size)
        p = random_target(200, K, torch.float32)
        yield rows, snapshot[rows] if frozen else p[rows]


@pytest.mark.parametrize("kind", ["student_t", "linear", "gaussian"])
@pytest.mark.parametrize("frozen", [False, True], ids=["given", "snapshot"])
def test_model_that_ends_in_target_loss(kind: str, frozen: bool) -> None:
    """Batches, then a ragged last one, then any size: one more compilation, and no third."""
    torch._dynamo.reset()
    model, x, snapshot = make_step(kind)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for rows, target in batches(frozen, snapshot, (64, 64, 37, 50, 21, 64, 5)):
        loss, gradients = loss_and_gradients(compiled, model, x[rows], target)
        expected, exact = loss_and_gradients(model, model, x[rows], target)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients, exact)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("frozen", [False, True], ids=["given", "snapshot"])
def test_new_snapshot_needs_no_new_compilation(frozen: bool) -> None:
    """The target is refreshed all through training."""
    torch._dynamo.reset()
    model, x, snapshot = make_step("student_t")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for seed in range(4):
        old = make_case("student_t", (200, D, K), seed=seed)
        snapshot = F.freeze_target(old.z, old.head, backend="eager")
        for rows, target in batches(frozen, snapshot, (64, 64)):
            loss, _ = loss_and_gradients(compiled, model, x[rows], target)
            expected, _ = loss_and_gradients(model, model, x[rows], target)
            torch.testing.assert_close(loss, expected)
    assert counter.frame_count == 1


def test_inductor_makes_the_same_step() -> None:
    """The default compiler, on the case that training runs."""
    torch._dynamo.reset()
    model, x, snapshot = make_step("student_t")
    compiled = torch.compile(model, fullgraph=True)
    for rows, target in batches(True, snapshot, (64, 37)):
        loss, gradients = loss_and_gradients(compiled, model, x[rows], target)
        expected, exact = loss_and_gradients(model, model, x[rows], target)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients, exact)


def test_export() -> None:
    model, x, _ = make_step("student_t")
    p = random_target(200, K, torch.float32)
    program = torch.export.export(model, (x, p))
    torch.testing.assert_close(program.module()(x, p), model(x, p))
