from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from tests import reference
from tests.budget import growth, roundoff
from tests.cases import DTYPES, LAYOUTS, as_numpy, backends_for, judge, lay_out

backends = pytest.mark.parametrize("backend", backends_for("targets"))
dtypes = pytest.mark.parametrize("dtype", DTYPES)
SHAPES = [(127, 10), (1, 1), (0, 4), (5, 1), (3, 9)]


def make_q(n: int, k: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return (2 * torch.randn(n, k, generator=rng, dtype=torch.float64)).softmax(1).to(dtype)


def make_prior(k: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(k, generator=rng, dtype=torch.float64).softmax(0).to(dtype)


def check_against_oracle(
    name: str, q: Tensor, backend: str, *, given: bool = False, prior: Tensor | None = None
) -> None:
    f = q.sum(0) * 3 + 1 if given else None
    options = {} if prior is None else {"prior": prior}
    oracle = {"dec": reference.dec_target, "depict": reference.depict_target}[name]
    with np.errstate(divide="ignore"):  # the frequencies of no rows
        expected = oracle(
            as_numpy(q),
            None if f is None else as_numpy(f),
            **{key: as_numpy(value) for key, value in options.items()},
        )
    function = {"dec": F.dec_target, "depict": F.depict_target}[name]
    # A few products and roots, the sum of f over rows, the sum of the row over clusters.
    n, k = q.shape
    u = roundoff(q.dtype)
    relative = 2 * (10 + growth(n) + growth(k)) * u

    def compute(backend: str) -> dict[str, Tensor]:
        return {"p": function(q, frequencies=f, backend=backend, **options)}

    smallest = torch.finfo(q.dtype).tiny
    judge(compute, backend, {"p": expected}, {"p": relative * expected + smallest})


@backends
@dtypes
@pytest.mark.parametrize("name", ["dec", "depict"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("given", [False, True])
def test_oracle(
    backend: str, dtype: torch.dtype, name: str, shape: tuple[int, int], given: bool
) -> None:
    check_against_oracle(name, make_q(*shape, dtype), backend, given=given)


@backends
@pytest.mark.parametrize("name", ["dec", "depict"])
def test_wide_rows(backend: str, name: str) -> None:
    check_against_oracle(name, make_q(3, 5000, torch.float32), backend)


@backends
@dtypes
def test_prior(backend: str, dtype: torch.dtype) -> None:
    prior = make_prior(10, dtype)
    check_against_oracle("depict", make_q(127, 10, dtype), backend, prior=prior)
    check_against_oracle("depict", make_q(127, 10, dtype), backend, prior=prior, given=True)


@backends
def test_uniform_prior_changes_nothing(backend: str) -> None:
    q = make_q(127, 10)
    uniform = torch.full((10,), 0.1, dtype=q.dtype)
    torch.testing.assert_close(
        F.depict_target(q, prior=uniform, backend=backend), F.depict_target(q, backend=backend)
    )


@backends
@pytest.mark.parametrize("name", ["dec", "depict"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(backend: str, name: str, layout: str) -> None:
    q = make_q(127, 10, torch.float32)
    q = q[:1].expand(127, 10) if layout == "expanded" else lay_out(q, layout)
    check_against_oracle(name, q, backend)


@backends
@dtypes
@pytest.mark.parametrize("function", [F.dec_target, F.depict_target])
def test_rows_sum_to_one_and_permute(backend: str, dtype: torch.dtype, function) -> None:
    q = make_q(40, 7, dtype)
    p = function(q, backend=backend)
    torch.testing.assert_close(p.sum(1), torch.ones(40, dtype=dtype))
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    torch.testing.assert_close(function(q[:, order], backend=backend), p[:, order])


@backends
@dtypes
@pytest.mark.parametrize("function", [F.dec_target, F.depict_target])
def test_a_cluster_that_nothing_belongs_to(backend: str, dtype: torch.dtype, function) -> None:
    """f_j = 0 is clamped at the smallest normal number: its column stays zero, nothing is NaN."""
    q = make_q(20, 5, dtype)
    q[:, 2] = 0.0
    q /= q.sum(1, keepdim=True)
    p = function(q, backend=backend)
    assert p.isfinite().all()
    assert not p[:, 2].any()
    others = [0, 1, 3, 4]
    torch.testing.assert_close(p[:, others], function(q[:, others], backend=backend))


@backends
def test_tiny_entries_do_not_underflow_into_nan(backend: str) -> None:
    q = torch.tensor([[1.0, 1e-30, 0.0], [1e-38, 1.0, 1e-25]])
    for function, oracle in (
        (F.dec_target, reference.dec_target),
        (F.depict_target, reference.depict_target),
    ):
        f = q.sum(0).clamp_min(torch.finfo(q.dtype).tiny)
        p = function(q, frequencies=f, backend=backend)
        # q^2 may lose what is below the smallest normal number, here divided by f = 1e-25.
        np.testing.assert_allclose(
            as_numpy(p), oracle(as_numpy(q), as_numpy(f)), rtol=1e-5, atol=1e-12
        )


@backends
def test_segments_with_global_frequencies_equal_the_whole(backend: str) -> None:
    q, f = make_q(100, 7), make_q(100, 7).sum(0)
    for function in (F.dec_target, F.depict_target):
        parts = [function(rows, frequencies=f, backend=backend) for rows in q.split(33)]
        torch.testing.assert_close(torch.cat(parts), function(q, backend=backend))


@backends
@pytest.mark.parametrize("function", [F.dec_target, F.depict_target])
def test_targets_carry_no_gradient(backend: str, function) -> None:
    q = make_q(20, 5).requires_grad_()
    assert not function(q, backend=backend).requires_grad
    f = q.detach().sum(0).requires_grad_()
    assert not function(q, frequencies=f, backend=backend).requires_grad


@pytest.mark.parametrize("function", [F.dec_target, F.depict_target])
def test_bad_frequencies(function) -> None:
    q = make_q(20, 5)
    for bad in (torch.ones(4).double(), torch.ones(5, 1).double()):
        with pytest.raises(ValueError, match=r"^frequencies"):
            function(q, frequencies=bad, backend="eager")
    with pytest.raises(TypeError, match=r"^frequencies"):
        function(q, frequencies=torch.ones(5, dtype=torch.int64), backend="eager")
    nan = torch.tensor([1.0, torch.nan, 1.0, 1.0, 1.0]).double()
    for bad in (nan, -torch.ones(5).double()):
        with pytest.raises(ValueError, match=r"^frequencies"):
            function(q, frequencies=bad, backend="eager")


def test_bad_prior() -> None:
    q = make_q(20, 5)
    for bad in (torch.ones(4).double() / 4, -torch.ones(5).double(), q.new_full((5,), torch.nan)):
        with pytest.raises(ValueError, match=r"^prior"):
            F.depict_target(q, prior=bad, backend="eager")
