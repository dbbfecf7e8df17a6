"""The instruction sets: the lower ones compute the same, and none leaks into another's code."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deepclust
from tests.compiled import NEEDS_COMPILER, ONCE, ROOT, compile_all

try:
    from deepclust import _C
except ImportError:
    _C = None

NEEDS_C = pytest.mark.skipif(_C is None, reason="deepclust._C is blocked or not built")
NAMES = ("avx512vnni", "avx512", "avx2", "baseline")
FILES = [f"tests/test_{name}.py" for name in (
    "assign", "frequencies", "targets", "target_loss", "kmeans_assign", "kmeans_batch",
    "kmeans_candidates", "kmeans_update", "kmeans_loss", "half", "integers",
)]  # fmt: skip
REFUSED = re.compile(r"DEEPCLUST_ISA: got '(\w+)', this processor takes ([\w, ]+)")


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"DEEPCLUST_ISA": isa},
        capture_output=True,
        text=True,
        timeout=300,
    )


def cpp_of(isa: str) -> str:
    """What deepclust.backends() says of the extension where DEEPCLUST_ISA is `isa`."""
    found = run(isa, "-c", "import deepclust; print(deepclust.backends()['cpp'])")
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@NEEDS_C
@ONCE
@pytest.mark.parametrize("isa", NAMES)
def test_every_instruction_set_computes_the_same(isa: str) -> None:
    """The tests of all primitives, in a process of its own; this one runs the best set's."""
    if isa == _C.isa():
        pytest.skip("it is the one that all other tests run")
    said = cpp_of(isa)
    if REFUSED.search(said):
        pytest.skip(f"this processor does not run {isa}")
    assert said == f"{isa} ({platform.machine()})"
    options = ("-q", "-x", "-p", "no:cacheprovider", "-k", "cpp")
    tests = run(isa, "-m", "pytest", *options, *FILES)
    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-1000:]
    counted = re.search(r"(\d+) passed", tests.stdout)
    assert counted, tests.stdout[-1000:]
    assert int(counted[1]) > 500


@NEEDS_C
def test_backends_names_the_instruction_set() -> None:
    assert deepclust.backends()["cpp"] == f"{_C.isa()} ({platform.machine()})"


@NEEDS_C
def test_an_unknown_instruction_set_is_refused() -> None:
    refused = REFUSED.search(cpp_of("avx1024"))
    assert refused
    assert refused[1] == "avx1024"
    takes = refused[2].split(", ")
    assert takes == [name for name in NAMES if name in takes]  # best first
    assert takes[-1] == "baseline"
    assert _C.isa() in takes


@NEEDS_C
def test_the_refusal_reaches_whoever_calls() -> None:
    call = "import torch, deepclust.functional as F; x = torch.ones(2, 2); F.kmeans_assign(x, x{})"
    by_name = run("avx1024", "-c", call.format(", backend='cpp'"))
    assert by_name.returncode != 0
    assert REFUSED.search(by_name.stderr)
    auto = run("avx1024", "-c", call.format(""))
    assert auto.returncode == 0, auto.stderr
    assert "RuntimeWarning" in auto.stderr
    assert REFUSED.search(auto.stderr)


@NEEDS_COMPILER
@ONCE
@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set only")
@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
def test_no_function_is_shared_between_instruction_sets(tmp_path: Path) -> None:
    """Of a function that several object files define, the linker keeps one for all of them.

    Compiled for AVX-512 and kept, it would end the process on any lesser processor. -O3 as in the
    real build: without inlining there are far more functions.
    """
    sources = ["target_loss.cpp", "assign.cpp", "kmeans_assign.cpp", "kmeans_update.cpp"]
    seen = 0
    for made in compile_all(sources, "avx512", tmp_path):
        command = ["nm", "--defined-only", str(made)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for _, name in re.findall(r"^\S* +([WVu]) (\S+)$", listed, flags=re.MULTILINE):
            # The namespace anywhere in a mangled name, in a template's argument say, makes it ours.
            ours = "6avx512" in name
            assert ours or name.startswith(("DW.ref.", "_ZTI", "_ZTS")), f"{made.name}: {name}"
            seen += ours
    assert seen > 10
