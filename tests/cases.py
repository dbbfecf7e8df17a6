"""Inputs that the tests of every primitive share, and the rule by which a result is judged.

The rule: `eager` stays within an error budget worked out from the formula, the type's unit roundoff
and the magnitudes at hand (`budget.py`); any other backend errs at most twice what `eager` errs at
the same type on the same input, plus rounding, or a quarter of the budget: on one input either may
be lucky, and `test_accuracy.py` compares the two over many. Errors are against the float64 oracles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.kernels import _dispatch
from tests import reference

DTYPES = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)

# N, D, K
AWKWARD = (127, 11, 10)
SHAPES = {
    "awkward": AWKWARD,
    "ones": (1, 1, 1),
    "empty": (0, 3, 4),
    "one_cluster": (5, 3, 1),
    "more_clusters_than_rows": (3, 4, 9),
    "one_wide": (17, 1, 5),
    "many_clusters": (37, 5, 75),
}
LAYOUTS = ("strided", "transposed", "offset", "expanded")

HEADS = ("student_t", "student_t_nu3", "student_t_nu_half", "linear", "linear_no_bias", "gaussian")
# One of each kind, for what does not depend on nu or on a bias.
ONE_OF_EACH = ("student_t", "linear", "gaussian")
NU = {"student_t": 1.0, "student_t_nu3": 3.0, "student_t_nu_half": 0.5}

PRIMITIVES = (
    "assign",
    "frequencies",
    "targets",
    "target_loss",
    "kmeans_assign",
    "kmeans_candidates",
    "kmeans_update",
    "kmeans_loss",
    "gaussian_kl",
)


def backends_for(primitive: str) -> tuple[str, ...]:
    """What runs `primitive` on the CPU here: `eager` first, and `auto` where nothing is compiled.

    `eager` by name is torch's own derivative, the witness; `auto` is the fused path that users get.
    Where there is a compiled kernel, `auto` is that one (test_dispatch.py), which runs by its name.
    Triton runs on the CPU in its interpreter only.
    """
    named = _dispatch.available(primitive)
    if not _dispatch.interprets_triton():
        named = tuple(name for name in named if name != "triton")
    return named if "cpp" in named else (*named, "auto")


@dataclass(frozen=True)
class Case:
    """Embeddings and the parameters of one head, as torch tensors of one type."""

    kind: str
    z: Tensor
    parameters: dict[str, Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"z": self.z, **self.parameters}

    @property
    def head(self) -> F.StudentT | F.Linear | F.Gaussian:
        if self.kind.startswith("student_t"):
            return F.StudentT(self.parameters["centroids"], NU[self.kind])
        if self.kind.startswith("linear"):
            return F.Linear(**self.parameters)
        return F.Gaussian(**self.parameters)

    @property
    def oracle_z(self) -> np.ndarray:
        return as_numpy(self.z)

    @property
    def oracle_head(self) -> reference.Head:
        arrays = {name: as_numpy(value) for name, value in self.parameters.items()}
        if self.kind.startswith("student_t"):
            return reference.StudentT(arrays["centroids"], NU[self.kind])
        if self.kind.startswith("linear"):
            return reference.Linear(**arrays)
        return reference.Gaussian(**arrays)

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        """The same case with every tensor changed."""
        parameters = {name: change(value) for name, value in self.parameters.items()}
        return replace(self, z=change(self.z), parameters=parameters)

    def leaves(self, names: tuple[str, ...] | None = None) -> Case:
        """The same case with fresh leaves, of which those named (all by default) want gradients."""

        def leaf(name: str, value: Tensor) -> Tensor:
            return value.detach().requires_grad_(names is None or name in names)

        parameters = {name: leaf(name, value) for name, value in self.parameters.items()}
        return replace(self, z=leaf("z", self.z), parameters=parameters)


def make_case(
    kind: str,
    shape: tuple[int, int, int] = AWKWARD,
    dtype: torch.dtype = torch.float32,
    *,
    layout: str = "contiguous",
    shift: float = 0.0,
    seed: int = 0,
) -> Case:
    """Normal z around clusters, all of it moved by `shift` from the origin."""
    n, d, k = shape
    rng = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    z = normal(n, d) + shift
    if kind.startswith("student_t"):
        parameters = {"centroids": normal(k, d) + shift}
    elif kind.startswith("linear"):
        parameters = {"weight": normal(k, d) / d**0.5}
        if kind == "linear":
            parameters["bias"] = normal(k)
    else:
        parameters = {
            "means": normal(k, d) + shift,
            "log_var": 0.3 * normal(k, d),
            "log_weights": normal(k).log_softmax(0),
        }
    case = Case(kind, z, parameters).map(lambda value: value.to(dtype))
    if layout == "expanded":
        strided = case.map(lambda value: lay_out(value, "strided"))
        return replace(strided, z=case.z[:1].expand(n, d))
    return case.map(lambda value: lay_out(value, layout))


def lay_out(value: Tensor, layout: str) -> Tensor:
    """The same values with other strides or another offset in memory."""
    if layout == "contiguous":
        return value
    if layout == "strided":
        steps = [slice(None, None, step) for step in (2, 3)[: value.ndim]]
        sizes = [size * step for size, step in zip(value.shape, (2, 3), strict=False)]
        strided = value.new_full(sizes, torch.nan)[tuple(steps)]
        return strided.copy_(value)
    if layout == "transposed":
        return value.t().contiguous().t()
    assert layout == "offset"
    memory = value.new_full((value.numel() + 1,), torch.nan)
    return memory[1:].view(value.shape).copy_(value)


def random_target(n: int, k: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """A given target with all that is allowed in one: exact zeros, a row of zeros, sums not one."""
    rng = torch.Generator().manual_seed(seed)
    p = torch.rand(n, k, generator=rng, dtype=torch.float64)
    p[p < 0.2] = 0.0
    p[2::5] = 0.0
    p[3::5] /= p[3::5].sum(1, keepdim=True).clamp_min(1e-3)
    return p.to(dtype)


def as_numpy(value: Tensor) -> np.ndarray:
    """The values as a float64 (or integer) array."""
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy().copy()


def gradients(output: Tensor, case: Case, seed: Tensor | None = None) -> dict[str, Tensor]:
    """d output / d input for every input of the case that wants a gradient."""
    wanted = {name: value for name, value in case.inputs.items() if value.requires_grad}
    found = torch.autograd.grad(output, list(wanted.values()), seed)
    return dict(zip(wanted, found, strict=True))


@contextlib.contextmanager
def poisoned_buffers() -> Iterator[None]:
    """Fresh torch buffers come filled with NaN, so that an element never written is seen."""
    mode = torch.get_deterministic_debug_mode()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def judge(
    compute: Callable[[str], dict[str, Tensor]],
    backend: str,
    expected: dict[str, np.ndarray | float],
    budget: dict[str, np.ndarray | float],
) -> None:
    """Hold `compute(backend)` to the rule at the top of this file, in poisoned memory."""
    with poisoned_buffers():
        got = compute(backend)
        eager = got if backend == "eager" else compute("eager")
    assert set(got) == set(expected) == set(budget)
    for name, value in got.items():
        exact = np.asarray(expected[name])
        assert tuple(value.shape) == exact.shape, f"{name}: shape {tuple(value.shape)}"
        error = np.abs(as_numpy(value) - exact)
        assert np.isfinite(error).all(), f"{name}: not finite"
        if backend == "eager":
            allowed = np.asarray(budget[name])
        else:
            rounding = 4 * torch.finfo(value.dtype).eps * np.abs(exact).max(initial=0.0)
            of_eager = np.abs(as_numpy(eager[name]) - exact).max(initial=0.0)
            allowed = np.maximum(2 * of_eager + rounding, np.asarray(budget[name]) / 4)
            if backend == "auto":
                # Eager's own gradient by hand, where nothing compiled exists: as good as the budget
                # of the formula, though no better than that where torch's derivative got lucky.
                allowed = np.maximum(allowed, budget[name])
        worst = (error - allowed).max(initial=0.0)
        assert worst <= 0, f"{name}: error {error.max():.3g}, {worst:.3g} above what is allowed"
