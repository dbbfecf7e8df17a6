from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree

from deepclust import functional as F
from tests import budget, reference
from tests.cases import DTYPES, HALVES, HEADS, ONE_OF_EACH, Case, as_numpy, make_case

heads = pytest.mark.parametrize("kind", HEADS)
each_head = pytest.mark.parametrize("kind", ONE_OF_EACH)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def freeze(case: Case, **options: Any) -> F.Snapshot:
    return F.freeze_target(case.z, case.head, backend="eager", **options)


def make_prior(k: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(7)
    return torch.randn(k, generator=rng, dtype=torch.float64).softmax(0)


@dtypes
@heads
@pytest.mark.parametrize("power", [2.0, 1.0, 0.5, math.inf])
def test_probabilities_are_the_formula(dtype: torch.dtype, kind: str, power: float) -> None:
    case = make_case(kind, dtype=dtype)
    prior = make_prior(10).to(dtype)
    z, head = case.oracle_z, case.oracle_head
    f = reference.frequencies(z, head)[0]
    u = budget.roundoff(dtype)
    allowed = budget.frozen(z, head, f, budget.frequencies(z, head, u), power, as_numpy(prior), u)
    p = freeze(case, power=power, prior=prior).probabilities()
    assert p.dtype == dtype
    assert (np.abs(as_numpy(p) - allowed.p) <= allowed.ep).all()


@each_head
def test_probabilities_are_the_papers_targets(kind: str) -> None:
    case = make_case(kind, dtype=torch.float64)
    q = F.assign(case.z, case.head, backend="eager")
    prior = make_prior(10)
    close = {"rtol": 1e-9, "atol": 1e-15}
    torch.testing.assert_close(
        freeze(case).probabilities(), F.dec_target(q, backend="eager"), **close
    )
    torch.testing.assert_close(
        freeze(case, power=1.0).probabilities(), F.depict_target(q, backend="eager"), **close
    )
    torch.testing.assert_close(
        freeze(case, power=1.0, prior=prior).probabilities(),
        F.depict_target(q, prior=prior, backend="eager"),
        **close,
    )


def test_infinite_power_is_one_hot_with_ties_to_the_lowest() -> None:
    z = torch.tensor([[-1.0], [0.0], [1.0], [5.0]])
    centroids = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    snapshot = F.freeze_target(
        z, centroids, power=math.inf, frequencies=torch.ones(4), backend="eager"
    )
    assert snapshot.probabilities().argmax(1).tolist() == [0, 0, 1, 1]
    assert snapshot.probabilities().sum(1).tolist() == [1.0] * 4


@each_head
@pytest.mark.parametrize("power", [2.0, math.inf])
def test_rows(kind: str, power: float) -> None:
    snapshot = freeze(make_case(kind), power=power)
    whole = snapshot.probabilities()
    mask = torch.zeros(127, dtype=torch.bool)
    mask[[3, 50, 126]] = True
    for rows in (
        slice(2, 5),
        slice(None, None, 3),
        slice(120, 500),
        slice(4, 4),
        torch.tensor([5, 0, 126, 5]),
        torch.tensor([], dtype=torch.int64),
        mask,
        [7, 8],
        np.array([9, 3]),
    ):
        part = snapshot[rows]
        assert isinstance(part, F.Snapshot)
        assert len(part) == len(whole[rows])
        torch.testing.assert_close(part.probabilities(), whole[rows])
    assert len(snapshot) == 127
    twice = snapshot[20:60][torch.tensor([0, 39])]
    torch.testing.assert_close(twice.probabilities(), whole[[20, 59]])


def test_rows_out_of_range_raise() -> None:
    snapshot = freeze(make_case("student_t"))
    with pytest.raises(IndexError):
        snapshot[torch.tensor([127])]
    with pytest.raises(IndexError):
        snapshot[torch.ones(5, dtype=torch.bool)]


@each_head
def test_memory_map_is_the_same_as_memory(kind: str, tmp_path: Path) -> None:
    case = make_case(kind, (3000, 11, 10))
    path = tmp_path / "z.npy"
    np.save(path, case.z.numpy())
    batch = torch.tensor([2999, 0, 17])
    in_memory = freeze(case)
    for mode in ("r", "r+"):
        z = np.load(path, mmap_mode=mode)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            snapshot = F.freeze_target(z, case.head, backend="eager")
            assert torch.equal(snapshot.probabilities(), in_memory.probabilities())
            loss = F.target_loss(case.z[batch], case.head, snapshot[batch], backend="eager")
        expected = F.target_loss(case.z[batch], case.head, in_memory[batch], backend="eager")
        assert torch.equal(loss, expected)
    assert np.array_equal(np.load(path), case.z.numpy())


def test_rows_of_a_memory_map_are_copies(tmp_path: Path) -> None:
    """Rows handed to a backend must be writable memory, or torch warns at every batch."""
    path = tmp_path / "z.npy"
    case = make_case("student_t")
    np.save(path, case.z.numpy())
    snapshot = F.freeze_target(np.load(path, mmap_mode="r"), case.head, backend="eager")
    rows = snapshot[torch.tensor([1, 2])]
    rows.z.add_(0)


@pytest.mark.parametrize("memory", ["strided", "fortran"])
def test_numpy_array_with_strides(memory: str) -> None:
    case = make_case("student_t")
    z = case.z.numpy()
    z = np.asfortranarray(z) if memory == "fortran" else np.repeat(z, 2, axis=0)[::2]
    snapshot = F.freeze_target(z, case.head, backend="eager")
    torch.testing.assert_close(snapshot.probabilities(), freeze(case).probabilities())


@each_head
def test_global_frequencies_from_outside(kind: str) -> None:
    """What one process of several does: its rows, and the frequencies summed over all."""
    case = make_case(kind, dtype=torch.float64)
    f = F.frequencies(case.z, case.head, backend="eager")[0]
    whole = freeze(case).probabilities()
    for rows in (slice(0, 40), slice(40, 127)):
        part = F.freeze_target(case.z[rows], case.head, frequencies=f, backend="eager")
        torch.testing.assert_close(part.probabilities(), whole[rows], rtol=1e-12, atol=1e-15)


@heads
@pytest.mark.parametrize("power", [2.0, 0.3, math.inf])
def test_state_dict_round_trip(kind: str, power: float, tmp_path: Path) -> None:
    case = make_case(kind)
    snapshot = freeze(case, power=power, prior=make_prior(10).float())
    path = tmp_path / "snapshot.pt"
    torch.save(snapshot.state_dict(), path)
    loaded = F.Snapshot.from_state_dict(torch.load(path, weights_only=True))
    assert len(loaded) == len(snapshot)
    assert torch.equal(loaded.probabilities(), snapshot.probabilities())
    loss = F.target_loss(case.z, case.head, loaded, backend="eager")
    assert torch.equal(loss, F.target_loss(case.z, case.head, snapshot, backend="eager"))


@each_head
def test_is_a_pytree_of_tensors(kind: str) -> None:
    snapshot = freeze(make_case(kind), power=0.3)
    leaves, spec = _pytree.tree_flatten(snapshot)
    assert leaves
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = _pytree.tree_unflatten(leaves, spec)
    assert isinstance(again, F.Snapshot)
    assert torch.equal(again.probabilities(), snapshot.probabilities())
    doubled = _pytree.tree_map(lambda leaf: leaf.double(), snapshot)
    assert doubled.probabilities().dtype == torch.float64


@each_head
@pytest.mark.parametrize("kind_of_tensor", ["plain", "parameter"])
def test_later_changes_to_the_head_do_not_reach_it(kind: str, kind_of_tensor: str) -> None:
    case = make_case(kind)
    if kind_of_tensor == "parameter":
        parameters = {n: torch.nn.Parameter(p.clone()) for n, p in case.parameters.items()}
        case = Case(kind, case.z, parameters)
    snapshot = freeze(case)
    before = snapshot.probabilities()
    with torch.no_grad():
        for parameter in case.parameters.values():
            parameter.mul_(3).add_(1)
    assert torch.equal(snapshot.probabilities(), before)
    assert not before.requires_grad


def test_later_changes_to_prior_and_frequencies_do_not_reach_it() -> None:
    case = make_case("student_t", dtype=torch.float64)
    prior, frequencies = make_prior(10), make_prior(10) * 127
    snapshot = freeze(case, prior=prior, frequencies=frequencies)
    before = snapshot.probabilities()
    prior.fill_(0.1)
    frequencies.fill_(1.0)
    assert torch.equal(snapshot.probabilities(), before)


def test_keeps_embeddings_without_a_copy() -> None:
    case = make_case("student_t")
    snapshot = freeze(case)
    leaves = _pytree.tree_leaves(snapshot)
    assert any(leaf.data_ptr() == case.z.data_ptr() for leaf in leaves)
    assert snapshot[5:9].z.data_ptr() == case.z[5:].data_ptr()


@each_head
def test_from_a_graph_it_holds_no_graph(kind: str) -> None:
    case = make_case(kind).leaves()
    z = case.z * 2
    snapshot = F.freeze_target(z, case.head, backend="eager")
    assert not any(leaf.requires_grad for leaf in _pytree.tree_leaves(snapshot))


@each_head
def test_a_common_factor_of_the_frequencies_changes_nothing(kind: str) -> None:
    case = make_case(kind, dtype=torch.float64)
    f = F.frequencies(case.z, case.head, backend="eager")[0]
    counts, shares = freeze(case, frequencies=f), freeze(case, frequencies=f / f.sum())
    torch.testing.assert_close(counts.probabilities(), shares.probabilities())


@pytest.mark.parametrize("dtype", HALVES)
@each_head
def test_half_types_are_computed_in_float32(dtype: torch.dtype, kind: str) -> None:
    """Only the result is rounded: what lies between, the column bias too, stays in float32."""
    half = make_case(kind, dtype=dtype)
    single = half.map(lambda value: value.float())
    eps = torch.finfo(dtype).eps
    for frequencies in (None, torch.logspace(-2, 4, 10)):
        frozen, exact = (freeze(case, frequencies=frequencies) for case in (half, single))
        torch.testing.assert_close(
            frozen.probabilities().float(), exact.probabilities(), rtol=2 * eps, atol=eps**2
        )
        loss = F.target_loss(half.z, half.head, frozen, backend="eager")
        torch.testing.assert_close(
            loss.float(),
            F.target_loss(single.z, single.head, exact, backend="eager"),
            rtol=2 * eps,
            atol=1e-6,
        )


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_rows_of_any_backend(backend: str) -> None:
    case = make_case("student_t")
    snapshot = F.freeze_target(case.z, case.head, backend=backend)
    torch.testing.assert_close(snapshot.probabilities(), freeze(case).probabilities())


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0, -1.0, math.nan, "2", None])
def test_bad_power(power: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^power: "):
        freeze(make_case("student_t"), power=power)


@pytest.mark.parametrize("given", [False, True])
def test_bad_prior(given: bool) -> None:
    case = make_case("student_t", dtype=torch.float64)
    options = {"frequencies": torch.ones(10).double()} if given else {}
    nan = make_prior(10)
    nan[3] = torch.nan
    for bad in (make_prior(9), make_prior(10)[:, None], -make_prior(10), make_prior(10) * 2, nan):
        with pytest.raises(ValueError, match=r"^prior: "):
            freeze(case, prior=bad, **options)
    with pytest.raises(TypeError, match=r"^prior: "):
        freeze(case, prior=[0.1] * 10, **options)


def test_bad_frequencies() -> None:
    case = make_case("student_t")
    nan, negative = torch.ones(10), torch.ones(10)
    nan[3], negative[4] = torch.nan, -1.0
    for bad in (torch.ones(9), torch.ones(10, 1), nan, negative):
        with pytest.raises(ValueError, match=r"^frequencies: "):
            freeze(case, frequencies=bad)
    with pytest.raises(TypeError, match=r"^frequencies: "):
        freeze(case, frequencies=np.ones(10))


@pytest.mark.parametrize("given", [False, True])
def test_bad_embeddings(given: bool) -> None:
    """The same refusals whether or not the frequencies come from outside."""
    case = make_case("student_t", (20, 3, 4))
    options: dict[str, Any] = {"backend": "eager"}
    if given:
        options["frequencies"] = torch.ones(4)
    z = case.z.clone()
    z[7, 1] = torch.nan
    with pytest.raises(ValueError, match=r"^z: row 7 has NaN or Inf"):
        F.freeze_target(z, case.head, **options)
    with pytest.raises(ValueError, match=r"^z: row 7 has NaN or Inf"):
        F.freeze_target(z.numpy(), case.head, **options)
    F.freeze_target(z, case.head, check=False, **options)
    for bad, error in (
        (case.z[:, :2], ValueError),
        (case.z[0], ValueError),
        (case.z.numpy().astype(np.int64), TypeError),
        (case.z.tolist(), TypeError),
    ):
        with pytest.raises(error, match=r"^z: "):
            F.freeze_target(bad, case.head, **options)
    with pytest.raises(TypeError, match=r"^(z|centroids): got torch.float"):
        F.freeze_target(case.z.double(), case.head, **options)
    for options_ in ({"backend": "cuda"}, {"precision": "half"}):
        name = next(iter(options_))
        with pytest.raises(ValueError, match=rf"^{name}: "):
            F.freeze_target(case.z, case.head, **{**options, **options_})
