"""The modules: their values, and all that one does with a module."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from deepclust import functional as F
from deepclust.nn import (
    Assignment,
    DEPICTHead,
    GaussianAssignment,
    KMeansLoss,
    StudentTAssignment,
    TargetLoss,
)
from tests import reference
from tests.cases import HALVES, as_numpy, backends_for

N, D, K = 12, 3, 4
NU = 2.0
ASSIGNMENTS: dict[str, Callable[..., Assignment]] = {
    "student_t": lambda **o: StudentTAssignment(K, D, NU, **o),
    "gaussian": lambda **o: GaussianAssignment(K, D, **o),
    "depict": lambda **o: DEPICTHead(K, D, **o),
}
LABELS = torch.arange(N) % K


class Clustering(nn.Module):
    """An assignment and its loss, as a model holds them."""

    def __init__(self, assignment: Assignment, loss: TargetLoss) -> None:
        super().__init__()
        self.assignment, self.loss = assignment, loss

    def forward(self, z: Tensor, target: Any) -> Tensor:
        return self.loss(z, self.assignment, target)


@dataclass(frozen=True)
class Made:
    """A module, the inputs besides z, and what it is by the oracles, with its gradients."""

    primitive: str
    build: Callable[..., nn.Module]
    others: tuple[Tensor, ...]
    oracle: Callable[..., tuple[Any, dict[str, np.ndarray]]]

    def module(self, backend: str = "auto", dtype: torch.dtype = torch.float32) -> nn.Module:
        module = self.build(backend=backend).to(dtype)
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=rng) / 2)
        return module

    def inputs(self, dtype: torch.dtype = torch.float32, n: int = N) -> tuple[Tensor, ...]:
        z = torch.randn(n, D, generator=torch.Generator().manual_seed(1)).to(dtype)
        floats = (v.to(dtype) if v.is_floating_point() else v for v in self.others)
        return z, *(value.repeat(-(-n // N), *[1] * (value.ndim - 1))[:n] for value in floats)


def target() -> Tensor:
    return torch.rand(N, K, generator=torch.Generator().manual_seed(2)).softmax(1)


def oracle_head(module: nn.Module) -> reference.Head:
    arrays = {name: as_numpy(value) for name, value in module.named_parameters()}
    if "centroids" in arrays:
        return reference.StudentT(arrays["centroids"], NU)
    if "weight" in arrays:
        return reference.Linear(**arrays)
    weights = arrays.pop("log_weights")
    return reference.Gaussian(**arrays, log_weights=weights - np.log(np.exp(weights).sum()))


def chained(module: nn.Module, gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """To the mixture's log weights as they are stored: through their log-softmax."""
    if "log_weights" in gradients:
        g, w = gradients["log_weights"], np.exp(oracle_head(module).log_weights)
        gradients["log_weights"] = g - w * g.sum()
    return gradients


def seed(shape: tuple[int, ...]) -> Tensor:
    return torch.linspace(1, 2, int(np.prod(shape)), dtype=torch.float64).reshape(shape)


def oracle_of_assignment(module: nn.Module, z: np.ndarray) -> Any:
    head = oracle_head(module)
    dq = seed((len(z), K)).numpy()
    gradients = reference.assign_gradients(z, head, dq)
    return reference.assign(z, head), chained(module, gradients)


def oracle_of_target_loss(kind: str, reduction: str) -> Callable[..., Any]:
    def oracle(module: Any, z: np.ndarray, p: np.ndarray) -> Any:
        head = oracle_head(module.assignment)
        value = reference.target_loss(z, head, p, reduction=reduction, kind=kind)
        gradients = reference.target_loss_gradients(z, head, p, reduction=reduction)
        named = chained(module.assignment, gradients)
        return value, {n if n == "z" else f"assignment.{n}": g for n, g in named.items()}

    return oracle


def oracle_of_kmeans_loss(reduction: str) -> Callable[..., Any]:
    def oracle(module: Any, z: np.ndarray, labels: np.ndarray | None = None) -> Any:
        mu = as_numpy(module.centroids)
        value = reference.kmeans_loss(z, mu, labels, reduction=reduction)
        return value, reference.kmeans_loss_gradients(z, mu, labels, reduction=reduction)

    return oracle


def clustering(name: str, kind: str, reduction: str) -> Made:
    def build(**options: Any) -> nn.Module:
        loss = TargetLoss(kind, reduction=reduction, **options)
        return Clustering(ASSIGNMENTS[name](**options), loss)

    return Made("target_loss", build, (target(),), oracle_of_target_loss(kind, reduction))


MODULES = {
    **{name: Made("assign", a, (), oracle_of_assignment) for name, a in ASSIGNMENTS.items()},
    "target_loss-student_t": clustering("student_t", "kl", "mean"),
    "target_loss-gaussian": clustering("gaussian", "kl", "sum"),
    "target_loss-depict": clustering("depict", "ce", "mean"),
    "kmeans_loss": Made(
        "kmeans_loss", lambda **o: KMeansLoss(K, D, **o), (), oracle_of_kmeans_loss("mean")
    ),
    "kmeans_loss-labels": Made(
        "kmeans_loss",
        lambda **o: KMeansLoss(K, D, reduction="sum", **o),
        (LABELS,),
        oracle_of_kmeans_loss("sum"),
    ),
}
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
each_module = pytest.mark.parametrize("made", MODULES.values(), ids=MODULES.keys())
each_backend = pytest.mark.parametrize(
    ("made", "backend"),
    [
        pytest.param(made, backend, id=f"{name}-{backend}")
        for name, made in MODULES.items()
        for backend in backends_for(made.primitive)
    ],
)


def gradients(module: Callable[..., Tensor], owner: nn.Module, *inputs: Tensor) -> Any:
    """What the module gives, and the gradients to z and to the parameters."""
    z = inputs[0].detach().requires_grad_()
    found = module(z, *inputs[1:])
    value = (found * seed(tuple(found.shape)).to(found)).sum()
    wanted = {"z": z, **dict(owner.named_parameters())}
    each = torch.autograd.grad(value, list(wanted.values()))
    return found.detach(), dict(zip(wanted, each, strict=True))


# --- values ------------------------------------------------------------------------------------


@each_backend
def test_values_and_gradients(made: Made, backend: str) -> None:
    module, inputs = made.module(backend, torch.float64), made.inputs(torch.float64)
    found, of = gradients(module, module, *inputs)
    value, expected = made.oracle(module, *(as_numpy(value) for value in inputs))
    np.testing.assert_allclose(as_numpy(found), value, rtol=1e-12)
    assert of.keys() == expected.keys()
    for name, gradient in of.items():
        np.testing.assert_allclose(as_numpy(gradient), expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_target_loss_takes_snapshots_heads_and_centroids(name: str) -> None:
    made = MODULES[f"target_loss-{name}"]
    module: Any = made.module()
    (z, _), layer = made.inputs(), module.assignment
    snapshot = F.freeze_target(z, layer.head())
    expected = module(z, snapshot.probabilities())
    torch.testing.assert_close(module(z, snapshot), expected)
    rows = torch.tensor([0, 7, 3])
    alone = F.target_loss(
        z[rows], layer.head(), snapshot[rows], kind=module.loss.kind, reduction="sum"
    )
    loss = TargetLoss(module.loss.kind, reduction="sum")
    assert torch.equal(loss(z[rows], layer, snapshot[rows]), alone)
    assert torch.equal(loss(z[rows], layer.head(), snapshot[rows]), alone)
    if name == "student_t":
        bare = TargetLoss()(z, layer.centroids, snapshot)
        assert torch.equal(bare, F.target_loss(z, layer.centroids, snapshot))


def test_an_assignment_of_ones_own() -> None:
    """Two layers on one set of centroids."""

    class Tied(Assignment):
        def __init__(self, other: StudentTAssignment) -> None:
            super().__init__()
            self.other, self.backend = other, "auto"

        def head(self) -> F.Head:
            return F.StudentT(self.other.centroids, nu=1.0)

    other = StudentTAssignment(K, D, NU)
    nn.init.normal_(other.centroids)
    z = torch.randn(N, D)
    assert torch.equal(Tied(other)(z), F.assign(z, other.centroids))
    loss = TargetLoss()(z, Tied(other), target())
    assert torch.equal(loss, F.target_loss(z, other.centroids, target()))


def test_parameters_are_registered_once() -> None:
    model = Clustering(StudentTAssignment(K, D), TargetLoss())
    assert list(TargetLoss().state_dict()) == list(TargetLoss().parameters()) == []
    assert [name for name, _ in model.named_parameters()] == ["assignment.centroids"]
    assert list(model.state_dict()) == ["assignment.centroids"]


# --- what one does with a module ---------------------------------------------------------------


@each_module
def test_state_dict(made: Made) -> None:
    module, fresh = made.module(), made.build()
    state = module.state_dict()
    assert state.keys() == dict(module.named_parameters()).keys()
    assert not any(value.any() for value in fresh.state_dict().values())
    fresh.load_state_dict(state)
    inputs = made.inputs()
    assert torch.equal(fresh(*inputs), module(*inputs))


@each_module
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies(made: Made, how: str) -> None:
    module, inputs = made.module("eager"), made.inputs()
    if how == "deepcopy":
        copied = copy.deepcopy(module)
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    before = module(*inputs)
    assert repr(copied) == repr(module)
    assert torch.equal(copied(*inputs), before)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(torch.linspace(0, 1, parameter.numel()).view_as(parameter))
    assert torch.equal(module(*inputs), before)
    assert not torch.equal(copied(*inputs), before)


@each_module
@pytest.mark.parametrize("dtype", [torch.float64, *HALVES])
def test_to_another_type(made: Made, dtype: torch.dtype) -> None:
    module, inputs = made.module(dtype=dtype), made.inputs(dtype)
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    found, of = gradients(module, module, *inputs)
    wide = dtype if dtype == torch.float64 else torch.float32
    assert found.dtype == (dtype if made.primitive == "assign" else wide)
    assert {gradient.dtype for gradient in of.values()} == {dtype}
    exact = copy.deepcopy(module).to(wide)
    value = exact(*(v.to(wide) if v.is_floating_point() else v for v in inputs))
    # The mixture's log-softmax, too, is rounded to a half type.
    eps = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, value.to(found.dtype), rtol=eps, atol=eps)


@each_module
def test_to_another_device(made: Made) -> None:
    module = made.module().to("meta")
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    with pytest.raises(ValueError, match=r"^\w+: got device .*meta"):
        module(*made.inputs())


@pytest.mark.gpu
@no_gpu
@each_module
def test_to_a_gpu(made: Made) -> None:
    module, inputs = made.module(), made.inputs()
    expected = gradients(module, module, *inputs)
    module = module.to("cuda")
    found, of = gradients(module, module, *(value.to("cuda") for value in inputs))
    torch.testing.assert_close((found.cpu(), {n: g.cpu() for n, g in of.items()}), expected)


@each_backend
def test_compile(made: Made, backend: str) -> None:
    """Whole graphs; one more compilation for batches of another size, and no third."""
    torch._dynamo.reset()
    module = made.module(backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for n in (N, N, 7, 30):
        inputs = made.inputs(n=n)
        torch.testing.assert_close(
            gradients(compiled, module, *inputs), gradients(module, module, *inputs)
        )
    assert counter.frame_count <= 2


@each_module
def test_compile_by_the_default_compiler(made: Made) -> None:
    torch._dynamo.reset()
    module, inputs = made.module(), made.inputs()
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(
        gradients(compiled, module, *inputs), gradients(module, module, *inputs)
    )


@each_backend
def test_export(made: Made, backend: str) -> None:
    """For any number of rows, and through a file."""
    module, inputs = made.module(backend), made.inputs()
    rows = torch.export.Dim("rows")
    program = torch.export.export(
        module, inputs, dynamic_shapes=tuple({0: rows} for _ in inputs), strict=False
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for exported in (program, torch.export.load(file)):
        for n in (N, 5, 40):
            inputs = made.inputs(n=n)
            torch.testing.assert_close(exported.module()(*inputs), module(*inputs))


@pytest.mark.xfail(
    torch.__version__ < "2.7",
    raises=RuntimeError,
    reason="torch 2.6 exports such a program but does not call it",
)
def test_export_of_a_loss_alone() -> None:
    """Heads and snapshots are trees of tensors, which a program takes as arguments."""
    made = MODULES["target_loss-student_t"]
    module: Any = made.module()
    (z, _), layer = made.inputs(), module.assignment
    snapshot = F.freeze_target(z, layer.head())
    program = torch.export.export(TargetLoss(), (z, layer.head(), snapshot))
    found = program.module()(z, layer.head(), snapshot)
    torch.testing.assert_close(found, module(z, snapshot))


@each_module
def test_functional_call_and_vmap(made: Made) -> None:
    """An ensemble: several sets of parameters at once."""
    modules = [made.module() for _ in range(3)]
    with torch.no_grad():
        for i, module in enumerate(modules):
            for parameter in module.parameters():
                parameter.mul_(1 + i)
    state, _ = torch.func.stack_module_state(modules)
    inputs = made.inputs()
    found = torch.func.vmap(
        lambda parameters: torch.func.functional_call(modules[0], parameters, inputs)
    )(state)
    torch.testing.assert_close(found, torch.stack([module(*inputs) for module in modules]))


# --- autocast ----------------------------------------------------------------------------------


class Encoded(nn.Module):
    """An encoder, which autocast runs in a half type, and a module on its embeddings."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder, self.module = nn.Linear(D, D), module

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.module(self.encoder(x), *others)


def check_autocast(made: Made, device: str, dtype: torch.dtype) -> None:
    model = Encoded(made.module()).to(device)
    inputs = [value.to(device) for value in made.inputs()]
    with torch.autocast(device, dtype=dtype):
        found, of = gradients(model, model, *inputs)
        z = model.encoder(inputs[0])
    assert z.dtype == dtype
    assert found.dtype == torch.float32
    assert {gradient.dtype for gradient in of.values()} == {torch.float32}
    expected = model.module(z.float(), *inputs[1:])
    torch.testing.assert_close(found, expected.detach())


@each_module
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast(made: Made, dtype: torch.dtype) -> None:
    check_autocast(made, "cpu", dtype)


@pytest.mark.gpu
@no_gpu
@each_module
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_on_a_gpu(made: Made, dtype: torch.dtype) -> None:
    check_autocast(made, "cuda", dtype)


@each_module
def test_autocast_and_compile(made: Made) -> None:
    torch._dynamo.reset()
    model, inputs = Encoded(made.module()), made.inputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, of = gradients(compiled, model, *inputs)
        expected, exact = gradients(model, model, *inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(of, exact, rtol=2e-2, atol=2e-2)  # of bfloat16 in the encoder


# --- print and refusals ------------------------------------------------------------------------


def test_repr() -> None:
    assert repr(StudentTAssignment(3, 2)) == (
        "StudentTAssignment(n_clusters=3, n_features=2, nu=1.0)"
    )
    assert repr(GaussianAssignment(3, 2)) == "GaussianAssignment(n_clusters=3, n_features=2)"
    assert repr(TargetLoss("ce")) == "TargetLoss(kind='ce', reduction='mean')"
    assert repr(KMeansLoss(3, 2)) == "KMeansLoss(n_clusters=3, n_features=2, reduction='mean')"


@pytest.mark.parametrize("build", [*ASSIGNMENTS, "kmeans_loss"])
def test_bad_sizes(build: str) -> None:
    classes = {
        "student_t": StudentTAssignment,
        "gaussian": GaussianAssignment,
        "depict": DEPICTHead,
        "kmeans_loss": KMeansLoss,
    }
    with pytest.raises(ValueError, match=r"^n_clusters: got 0"):
        classes[build](0, 2)
    with pytest.raises(ValueError, match=r"^n_features: got 0"):
        classes[build](3, 0)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"^nu: got 0"):
        StudentTAssignment(3, 2, 0)
    with pytest.raises(ValueError, match=r"^kind: got 'js'"):
        TargetLoss("js")
    for build in (TargetLoss, lambda **o: KMeansLoss(3, 2, **o)):
        with pytest.raises(ValueError, match=r"^reduction: got 'none'"):
            build(reduction="none")
    with pytest.raises(TypeError, match="abstract"):
        Assignment()  # type: ignore[abstract]


def test_bad_inputs() -> None:
    z, p = torch.zeros(2, D), torch.ones(2, K)
    for bad in (nn.Linear(D, K), None, "student_t"):
        with pytest.raises(TypeError, match=f"^assignment: got {type(bad).__name__}; it takes"):
            TargetLoss()(z, bad, p)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^target: got shape"):
        TargetLoss()(z, StudentTAssignment(K, D), p[:1])
    with pytest.raises(ValueError, match=r"^labels: got 4"):
        KMeansLoss(K, D)(z, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"^z: got 2 columns"):
        KMeansLoss(K, D)(z[:, :2])
