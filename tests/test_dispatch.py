from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deepclust
from deepclust import functional as F
from deepclust.kernels import _dispatch
from tests.cases import PRIMITIVES
from tests.test_contract import CALLS, Call, leaves, scalar

ROOT = Path(__file__).parents[1]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_backends_says_what_runs_or_why_not() -> None:
    found = deepclust.backends()
    assert list(found) == ["eager", "cpp", "triton"]
    assert all(isinstance(text, str) and text and "\n" not in text for text in found.values())
    assert torch.__version__ in found["eager"]


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_eager_is_always_there_and_first(primitive: str) -> None:
    found = _dispatch.available(primitive)
    assert found[0] == "eager"
    assert set(found) <= {"eager", "cpp", "triton"}


@pytest.mark.parametrize("backend", ["cpp", "triton"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_backend_asked_for_by_name_runs_or_raises(call: Call, backend: str) -> None:
    """Never another one in its place."""
    if backend in _dispatch.available(call.primitive):
        if backend == "cpp":
            call.run(**call.tensors(), backend=backend)
        return
    with pytest.raises(RuntimeError, match=rf"^backend='{backend}' cannot run ") as caught:
        call.run(**call.tensors(), backend=backend)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_auto_is_the_default_and_the_compiled_kernel_where_there_is_one(call: Call) -> None:
    """To the last bit, of gradients too: the tests of a compiled primitive leave `auto` out."""

    def compute(**options: str) -> list[Tensor]:
        tensors = leaves(call.tensors(), call.gradients)
        results = call.results(tensors, **options)
        wanted = [tensors[name] for name in call.gradients]
        return [*results, *(torch.autograd.grad(scalar(results), wanted) if wanted else ())]

    default = compute()
    for backend in {"auto", "cpp"} & {"auto", *_dispatch.available(call.primitive)}:
        for named, found in zip(compute(backend=backend), default, strict=True):
            assert torch.equal(named, found)


def test_auto_takes_the_compiled_kernel_where_there_is_one() -> None:
    for primitive in PRIMITIVES:
        chosen = _dispatch.kernel(primitive, "auto", torch.device("cpu")).__name__
        expected = "cpp" if "cpp" in _dispatch.available(primitive) else "eager"
        assert chosen == f"deepclust.kernels.{primitive}._{expected}"


def test_cpp_refuses_tensors_that_are_not_on_the_cpu() -> None:
    compiled = [name for name in PRIMITIVES if "cpp" in _dispatch.available(name)]
    if not compiled:
        pytest.skip("no compiled kernels here")
    for name in compiled:
        with pytest.raises(RuntimeError, match=r"^backend='cpp' cannot run .*meta"):
            _dispatch.kernel(name, "cpp", torch.device("meta"))


SLOW = """
import warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import deepclust
    from deepclust import functional as F
    x = torch.zeros(3, 2)
    for _ in range(2):
        F.kmeans_assign(x, x)
        F.assign(x, x)
        F.kmeans_assign(x, x, backend="eager")
found = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
print(len(found), *found, sep="|")
print(deepclust.backends()["cpp"])
"""


def test_without_the_extension_everything_runs_and_says_so_once() -> None:
    """And triton absent too: the import must need neither."""
    block = "import sys; sys.modules['deepclust._C'] = sys.modules['triton'] = None\n"
    done = run_python(block + SLOW)
    assert done.returncode == 0, done.stderr
    warned, cpp = done.stdout.splitlines()
    assert warned.startswith("1|"), warned
    assert "PyTorch" in warned
    assert cpp


def test_importing_starts_nothing() -> None:
    """No Triton, no compiler, no CUDA context."""
    done = run_python(
        "import sys, torch; before = set(sys.modules)\n"
        "import deepclust\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new & {'triton', 'sklearn', 'matplotlib', 'scipy', 'tqdm', 'pandas'}))\n"
        "print(torch.cuda.is_initialized())"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["", "False"]


@pytest.mark.parametrize("option", [{}, {"backend": "eager"}])
def test_nothing_warns(option: dict[str, Any]) -> None:
    if not option and isinstance(_dispatch.extension(), str):
        pytest.skip("without the extension there is something to warn about")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in CALLS.values():
            call.run(**call.tensors(), **option)


def test_all_names_are_public_functions() -> None:
    for name in F.__all__:
        assert getattr(F, name).__doc__, name
