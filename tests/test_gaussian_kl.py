from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from tests import budget, reference
from tests.cases import DTYPES, LAYOUTS, as_numpy, backends_for, judge, lay_out

backends = pytest.mark.parametrize("backend", backends_for("gaussian_kl"))
dtypes = pytest.mark.parametrize("dtype", DTYPES)
NAMES = ("mu", "log_var", "eta", "log_tau")


def make_gaussians(n: int, d: int, dtype: torch.dtype, shift: float = 0.0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    moves = {"mu": shift, "eta": shift}
    return {
        name: (torch.randn(n, d, generator=rng, dtype=torch.float64) + moves.get(name, 0)).to(dtype)
        for name in NAMES
    }


def check_against_oracle(tensors: dict[str, Tensor], backend: str) -> None:
    exact = {name: as_numpy(value) for name, value in tensors.items()}
    n, d = exact["mu"].shape
    dtype = tensors["mu"].dtype
    rng = torch.Generator().manual_seed(1)
    dkl = torch.randn(n, generator=rng, dtype=torch.float64).to(dtype)

    def compute(backend: str) -> dict[str, Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in tensors.items()}
        kl = F.gaussian_kl(**leaves, backend=backend)
        found = torch.autograd.grad(kl, list(leaves.values()), dkl)
        return {"kl": kl, **dict(zip(NAMES, found, strict=True))}

    u = budget.roundoff(dtype)
    sizes = np.abs(exact["log_var"]) + np.abs(exact["log_tau"])
    ratio = np.exp(exact["log_var"] + exact["log_tau"])
    tau = np.exp(exact["log_tau"])
    square = (exact["mu"] - exact["eta"]) ** 2 * tau
    slope = np.abs(exact["mu"] - exact["eta"]) * tau
    weight = np.abs(as_numpy(dkl))[:, None]
    # exp(a + b) carries the rounding of a + b; mu - eta is taken directly
    e_ratio = ratio * (sizes + 3) * u
    judge(
        compute,
        backend,
        {"kl": reference.gaussian_kl(**exact)}
        | reference.gaussian_kl_gradients(**exact, dkl=as_numpy(dkl)),
        {
            "kl": 0.5
            * (e_ratio + (budget.growth(d) + 9) * u * (sizes + 1 + ratio + square)).sum(1),
            "mu": 8 * u * weight * slope,
            "log_var": 0.5 * weight * (e_ratio + 4 * u * (ratio + 1)),
            "eta": 8 * u * weight * slope,
            "log_tau": 0.5 * weight * (e_ratio + 8 * u * (ratio + 1 + square)),
        },
    )


@backends
@dtypes
@pytest.mark.parametrize("shape", [(127, 11), (1, 1), (0, 3), (17, 1), (3, 200)])
def test_oracle(backend: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    check_against_oracle(make_gaussians(*shape, dtype), backend)


@backends
def test_far_from_the_origin(backend: str) -> None:
    check_against_oracle(make_gaussians(127, 11, torch.float32, shift=100.0), backend)


@backends
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "expanded"])
def test_any_strides(backend: str, layout: str) -> None:
    tensors = make_gaussians(127, 11, torch.float32)
    check_against_oracle({k: lay_out(v, layout) for k, v in tensors.items()}, backend)


@backends
def test_expanded(backend: str) -> None:
    """One centre and one precision for all rows, without copies of them."""
    tensors = make_gaussians(127, 11, torch.float32)
    for name in ("eta", "log_tau"):
        tensors[name] = tensors[name][:1].expand(127, 11)
    check_against_oracle(tensors, backend)


@backends
@dtypes
def test_unit_variances_are_half_the_squared_distance(backend: str, dtype: torch.dtype) -> None:
    tensors = make_gaussians(50, 4, dtype)
    zero = torch.zeros(50, 4, dtype=dtype)
    kl = F.gaussian_kl(tensors["mu"], zero, tensors["eta"], zero, backend=backend)
    expected = ((tensors["mu"] - tensors["eta"]) ** 2).sum(1) / 2
    torch.testing.assert_close(kl, expected)


@backends
@dtypes
def test_of_equal_distributions_is_zero(backend: str, dtype: torch.dtype) -> None:
    tensors = make_gaussians(50, 4, dtype)
    leaves = [tensors["mu"], tensors["log_var"], tensors["mu"].clone(), -tensors["log_var"]]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    kl = F.gaussian_kl(*leaves, backend=backend)
    assert kl.abs().max().item() <= 8 * torch.finfo(dtype).eps
    for gradient in torch.autograd.grad(kl.sum(), leaves):
        assert gradient.abs().max().item() <= 8 * torch.finfo(dtype).eps


@backends
@dtypes
def test_is_never_negative(backend: str, dtype: torch.dtype) -> None:
    """Nearly equal distributions, where 1 + a - exp(a) cancels."""
    rng = torch.Generator().manual_seed(0)
    small = 1e-4 * torch.randn(1000, 1, generator=rng, dtype=torch.float64).to(dtype)
    zero = torch.zeros_like(small)
    kl = F.gaussian_kl(zero, small, zero, zero, backend=backend)
    assert (kl >= -4 * torch.finfo(dtype).eps * small.abs().squeeze(1)).all()


@backends
@dtypes
def test_extreme_variances_that_cancel(backend: str, dtype: torch.dtype) -> None:
    """sigma^2 tau = 1 although sigma^2 overflows by itself."""
    big = torch.full((3, 2), 800.0, dtype=dtype)
    zero = torch.zeros(3, 2, dtype=dtype)
    leaves = [leaf.requires_grad_() for leaf in (zero, big, zero + 1, -big)]
    kl = F.gaussian_kl(*leaves, backend=backend)
    torch.testing.assert_close(kl, torch.zeros(3, dtype=dtype))
    assert all(g.isfinite().all() for g in torch.autograd.grad(kl.sum(), leaves))


@backends
@dtypes
def test_translation_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    tensors = make_gaussians(50, 4, dtype)
    mu, eta = ((tensors[name] * 8).round() / 8 for name in ("mu", "eta"))
    rest = {"log_var": tensors["log_var"], "log_tau": tensors["log_tau"], "backend": backend}
    here = F.gaussian_kl(mu=mu, eta=eta, **rest)
    assert torch.equal(F.gaussian_kl(mu=mu + 512, eta=eta + 512, **rest), here)


@pytest.mark.parametrize("name", NAMES[1:])
def test_shapes_must_agree(name: str) -> None:
    tensors = make_gaussians(20, 4, torch.float32)
    for bad in (tensors[name][:19], tensors[name][:, :3], tensors[name][0]):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            F.gaussian_kl(**{**tensors, name: bad}, backend="eager")
