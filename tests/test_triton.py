"""What is particular to the Triton kernels: dispatch, precision, the order of programs.

Their values and gradients are in the tests of each primitive, which `TRITON_INTERPRET=1` runs over
them too; what they compile to is in test_inspect.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import deepclust
from deepclust import functional as F
from deepclust.kernels import _dispatch, _launch, _tiles
from tests import test_assign, test_frequencies, test_target_loss
from tests.cases import (
    DTYPES,
    HALVES,
    HEADS,
    ONE_OF_EACH,
    PRIMITIVES,
    SHAPES,
    gradients,
    make_case,
    random_target,
)
from tests.test_contract import CALLS, Call

KERNELS = [name for name in PRIMITIVES if name != "gaussian_kl"]
INTERPRETED = pytest.mark.skipif(
    not _dispatch.interprets_triton(), reason="runs where TRITON_INTERPRET=1"
)
COMPILED = pytest.mark.skipif(
    _dispatch.interprets_triton(), reason="runs where Triton does not interpret"
)
INSTALLED = pytest.mark.skipif(
    _dispatch.why_no_triton() is not None, reason="Triton is not installed"
)


@pytest.fixture
def fresh_dispatch() -> Iterator[None]:
    """Nothing that was found out before counts, nor what the test finds out after it."""
    cached = (
        _dispatch.triton_version,
        _dispatch.why_no_triton,
        _dispatch._why_not,
        _dispatch._resolve,
        _dispatch._warn_slow,
    )
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


# --- dispatch ----------------------------------------------------------------------------------


@INSTALLED
@pytest.mark.parametrize("primitive", KERNELS)
def test_a_gpu_gets_triton(primitive: str) -> None:
    assert _dispatch._resolve(primitive, "auto", "cuda") == "triton"
    assert _dispatch._resolve(primitive, "auto", "cpu") != "triton"
    assert _dispatch._resolve(primitive, "auto", "mps") == "eager"


@pytest.mark.usefixtures("fresh_dispatch")
@pytest.mark.parametrize(
    ("version", "words"),
    [(None, "not installed: pip install"), ("2.3.1", "2.3.1 is too old"), ("3.4.0", "too old")],
)
def test_without_a_fit_triton_a_gpu_gets_eager_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, version: str | None, words: str
) -> None:
    monkeypatch.setattr(_dispatch, "triton_version", lambda: version)
    with pytest.warns(RuntimeWarning, match=words) as caught:
        chosen = {_dispatch._resolve(primitive, "auto", "cuda") for primitive in KERNELS}
    assert chosen == {"eager"}
    assert len(caught) == 1
    for primitive in KERNELS:
        with pytest.raises(RuntimeError, match=rf"^backend='triton' cannot run .*{words}"):
            _dispatch._resolve(primitive, "triton", "cuda")
    assert words.split(":")[0] in deepclust.backends()["triton"]


@INSTALLED
@COMPILED
@pytest.mark.parametrize(
    "call", [c for c in CALLS.values() if c.primitive in KERNELS], ids=lambda call: call.primitive
)
def test_compiled_triton_refuses_cpu_tensors(call: Call) -> None:
    with pytest.raises(RuntimeError, match=r"^backend='triton' cannot run .*'cpu'.*TRITON_INTER"):
        call.run(**call.tensors(), backend="triton")


# --- the order of programs ---------------------------------------------------------------------


def results_of_a_head(kind: str, shape: tuple[int, int, int]) -> list[Tensor]:
    """All that a head's kernels give, and the targets of its q."""
    n, _, k = shape
    case = make_case(kind, shape).leaves()
    found = []
    for target in (
        random_target(n, k, torch.float32),
        F.freeze_target(case.z.detach(), case.head, frequencies=torch.ones(k), backend="eager"),
    ):
        loss = F.target_loss(case.z, case.head, target, backend="triton")
        found += [loss.detach(), *gradients(loss, case).values()]
    q = F.assign(case.z, case.head, backend="triton")
    found += [q.detach(), *gradients(q, case, torch.ones_like(q)).values()]
    found += F.frequencies(case.z.detach(), case.head, backend="triton")[:2]
    found.append(F.dec_target(q.detach(), backend="triton"))
    return found


def results_of_kmeans(shape: tuple[int, int, int]) -> list[Tensor]:
    z, k = make_case("student_t", shape).z, shape[2]
    labels, sq_dist = F.kmeans_assign(z, z[:k], backend="triton")
    candidates = F.kmeans_candidates(z, z[:5], sq_dist, backend="triton")
    return [labels, sq_dist, *candidates, *F.kmeans_update(z, labels, k, backend="triton")]


@INTERPRETED
@pytest.mark.parametrize("kind", [*ONE_OF_EACH, "kmeans"])
@pytest.mark.parametrize("shape", [(300, 5, 10), (200, 40, 70)], ids=["one_tile", "tiles"])
def test_triton_results_do_not_depend_on_the_order_of_programs(
    monkeypatch: pytest.MonkeyPatch, kind: str, shape: tuple[int, int, int]
) -> None:
    from triton.runtime import interpreter

    def results() -> list[Tensor]:
        return results_of_kmeans(shape) if kind == "kmeans" else results_of_a_head(kind, shape)

    forwards = results()
    grids: list[range] = []

    def reversed_range(*bounds: int) -> Iterator[int]:
        grids.append(range(*bounds))
        return reversed(grids[-1])

    # The grid's loops are the only ones in that file's `GridExecutor`.
    monkeypatch.setattr(interpreter, "range", reversed_range, raising=False)
    backwards = results()
    monkeypatch.undo()
    assert any(len(grid) > 1 for grid in grids)
    for a, b in zip(forwards, backwards, strict=True):
        assert torch.equal(a, b)


@INTERPRETED
def test_triton_cuts_long_inputs_into_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond SEGMENT_ROWS go through in another launch, with the same result."""
    case = make_case("gaussian", (150, 4, 70), torch.float64).leaves()
    q = torch.rand(150, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, cut = [], []
    for found, rows in ((whole, 1 << 21), (cut, 64)):
        monkeypatch.setattr(_launch, "SEGMENT_ROWS", rows)
        loss = F.target_loss(case.z, case.head, q, backend="triton")
        found += [loss.detach(), *gradients(loss, case).values()]
        assigned = F.assign(case.z, case.head, backend="triton")
        found += gradients(assigned, case, q).values()
        found += F.frequencies(case.z.detach(), case.head, backend="triton")[:2]
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Watch(TorchDispatchMode):
    """Refuses operations that would wait for a GPU, and notes the largest tensor that is made."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in self.WAITING
        found = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(found) if isinstance(value, Tensor)]
        self.largest = max([self.largest, *(value.numel() for value in made)])
        return found


@INTERPRETED
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_triton_waits_for_nothing_and_holds_nothing_of_n_times_k(kind: str) -> None:
    n, d, k = 260, 3, 150
    case, old = make_case(kind, (n, d, k)).leaves(), make_case(kind, (n, d, k), seed=5)
    options = {"backend": "triton", "check": False}
    labels = torch.arange(n) % k
    with Watch() as watch:
        f, _, _ = F.frequencies(old.z, old.head, previous_labels=labels, **options)
        snapshot = F.freeze_target(old.z, old.head, frequencies=f, **options)
        # The losses compute their gradients here; on the CPU, their backward looks at a number.
        F.target_loss(case.z, case.head, snapshot, **options)
    assert watch.largest < n * k / 2
    with Watch():
        q = F.assign(case.z, case.head, **options)
        F.dec_target(q.detach(), **options)
        q.sum().backward()


@INTERPRETED
def test_triton_kmeans_waits_for_nothing_and_holds_nothing_of_n_times_k() -> None:
    n, d, k = 260, 3, 150
    z = make_case("student_t", (n, d, k)).z
    options = {"backend": "triton", "check": False}
    with Watch() as watch:
        F.kmeans_loss(z.clone().requires_grad_(), z[:k], torch.arange(n) % k, **options)
        labels, nearest = F.kmeans_assign(z, z[:k], **options)
        F.kmeans_candidates(z, z[:5], nearest, **options)
        F.kmeans_update(z, labels, k, **options)
    assert watch.largest < n * k / 2


@INTERPRETED
@pytest.mark.parametrize("d", [3, 40])
def test_triton_strides_may_pass_the_range_of_int32(tmp_path: Path, d: int) -> None:
    """Columns far apart, as of a transposed matrix of a billion rows."""
    step = (1 << 32) // d
    file = np.memmap(tmp_path / "sparse", np.float32, "w+", shape=(step * (d - 1) + 8,))
    z = torch.from_numpy(file).as_strided((5, d), (1, step))
    case = make_case("student_t", (5, d, 4))
    z.copy_(case.z)
    for found, expected in zip(
        (F.assign(z, case.head, backend="triton"), *F.kmeans_assign(z, case.z, backend="triton")),
        (F.assign(case.z, case.head), *F.kmeans_assign(case.z, case.z)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@INTERPRETED
@pytest.mark.parametrize("chip", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_triton_tiles_of_other_chips(kind: str, chip: str) -> None:
    """The table's other lines cut the same work otherwise; the numbers stay."""
    for shape in ((100, 20, 12), (70, 40, 70)):
        case = make_case(kind, shape).leaves()
        p = random_target(shape[0], shape[2], torch.float32)
        loss = F.target_loss(case.z, case.head, p, backend="eager")
        expected = [loss.detach(), *gradients(loss, case).values()]
        with _tiles.pretend(_tiles.CHIPS[chip]):
            loss = F.target_loss(case.z, case.head, p, backend="triton")
            found = [loss.detach(), *gradients(loss, case).values()]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@INTERPRETED
def test_torch_compile_takes_triton_kernels_whole() -> None:
    case = make_case("student_t", (60, 5, 7))
    snapshot = F.freeze_target(case.z, case.head, backend="triton")

    def loss(z: Tensor, centroids: Tensor) -> Tensor:
        return F.target_loss(z, centroids, snapshot, backend="triton", precision="fast")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, expected = [], []
    for function, results in ((compiled, found), (loss, expected)):
        leaves = case.leaves()
        value = function(leaves.z, leaves.parameters["centroids"])
        results += [value.detach(), *gradients(value, leaves).values()]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# --- precision: what the interpreter cannot show ------------------------------------------------


def parts(x: np.ndarray, bits: int, count: int) -> list[np.ndarray]:
    """x as a sum of `count` numbers of `bits` significant bits each, and what is left goes."""
    found = []
    rest = x.astype(np.float64)
    for _ in range(count):
        mantissa, exponent = np.frexp(rest)
        found.append(np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits))
        rest = rest - found[-1]
    return found


def product_error(bits: int, count: int) -> float:
    """The largest error of a product of such parts, the smallest terms left out, over its size."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((64, 128)).astype(np.float32).astype(float) for _ in range(2))
    split_x, split_y = parts(x, bits, count), parts(y, bits, count)
    product = sum(
        split_x[i] @ split_y[j].T for i in range(count) for j in range(count) if i + j < count
    )
    size = np.abs(x) @ np.abs(y).T
    return float((np.abs(product - x @ y.T) / size).max())


def test_exact_products_are_of_the_grade_of_float32() -> None:
    """3xTF32 errs as float32's own rounding does; TF32 and bf16x3 do not, and are not exact."""
    u = 2.0**-24
    assert product_error(11, 2) < 2 * u  # TF32 has 11 bits: two parts, three products
    assert product_error(11, 1) > 100 * u
    assert product_error(8, 2) > 10 * u  # bfloat16 has 8: two parts, three products (bf16x3)


@pytest.mark.parametrize("chip", _tiles.CHIPS.values(), ids=lambda chip: chip.name)
def test_precision_is_what_the_chip_has(chip: _tiles.Chip) -> None:
    exact = _tiles.precision_for("exact", chip, torch.float32)
    assert exact == ("tf32x3" if chip.is_nvidia else "ieee")
    assert _tiles.precision_for("fast", chip, torch.float64) == "ieee"


# --- tiles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in _tiles.TABLE}))
@pytest.mark.parametrize(
    "chip",
    [*_tiles.CHIPS.values(), _tiles.INTERPRETER, _tiles.Chip("sm_75", 48 << 10)],
    ids=lambda chip: chip.name,
)
def test_tiles_fit(kind: str, chip: _tiles.Chip) -> None:
    for d in (1, 10, 64, 5000):
        for k in (1, 10, 5000):
            for itemsize in (4, 8):
                tiles = _tiles.tiles_for(kind, chip, d, k, itemsize)
                assert tiles.stages * (tiles.n + tiles.k) * tiles.d * itemsize <= chip.shared
                sizes = tiles[:3] if tiles.k else (16, tiles.d)  # none of clusters
                assert all(math.log2(size) % 1 == 0 for size in (*sizes, tiles.warps))
                assert min(sizes) >= 16  # of matrix instructions


# --- where there is a GPU ------------------------------------------------------------------------

ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GPU_SHAPES = {**SHAPES, "wide": (500, 200, 70), "tiles": (3000, 64, 300)}


def gpu(test: Any) -> Any:
    for mark in ON_A_GPU:
        test = mark(test)
    return test


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("shape", GPU_SHAPES.values(), ids=GPU_SHAPES.keys())
def test_heads_on_a_gpu(kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = make_case(kind, shape, dtype).map(Tensor.cuda)
    test_assign.check_against_oracle(case, "triton")
    test_frequencies.check_against_oracle(case, "triton")
    p = random_target(shape[0], shape[2], dtype).cuda()
    test_target_loss.check_against_oracle(case, test_target_loss.given_target(p), "triton")
    if shape[0]:
        old = make_case(kind, shape, dtype, seed=5).map(Tensor.cuda)
        target = test_target_loss.frozen_target(old)
        test_target_loss.check_against_oracle(case, target, "triton")


@gpu
@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@pytest.mark.parametrize("name", [name for name, c in CALLS.items() if c.primitive in KERNELS])
def test_every_call_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    call = CALLS[name]
    tensors = {name: value.cuda() for name, value in call.tensors(dtype).items()}
    found = call.results(tensors, backend="triton")
    exact = call.results(tensors, backend="eager")
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)
    assert all(torch.equal(a, b) for a, b in zip(found, call.results(tensors), strict=True))
