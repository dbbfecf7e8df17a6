"""Compiles csrc/ with the flags of setup.py, for tests that look at what comes out."""

from __future__ import annotations

import functools
import os
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
CXX = shutil.which(os.environ.get("CXX") or "g++")
# What is compiled or run in a process of its own is the same in each of `make test`'s runs.
ONCE = pytest.mark.skipif(
    bool(os.environ.get("DEEPCLUST_TEST_BLOCK")), reason="runs where no module is blocked"
)
NEEDS_COMPILER = pytest.mark.skipif(CXX is None, reason="there is no g++")


@functools.cache
def flags(isa: str) -> tuple[str, ...]:
    """What setup.py compiles the kernels of `isa` with."""
    pytest.importorskip("pybind11")
    with mock.patch("setuptools.setup") as setup:
        made = runpy.run_path(str(ROOT / "setup.py"))
    (extension,) = setup.call_args.kwargs["ext_modules"]
    if isa not in made["ISAS"]:
        pytest.skip(f"this processor's kind knows no {isa}")
    return (*extension.extra_compile_args, *made["ISAS"][isa], "-fPIC", f"-DDEEPCLUST_ISA={isa}")


def kernels() -> list[str]:
    """The names of the sources that are compiled once for each instruction set."""
    inside = "\nnamespace deepclust::DEEPCLUST_ISA"
    return sorted(path.name for path in CSRC.glob("*.cpp") if inside in path.read_text())


def compile_all(
    sources: Sequence[Path | str], isa: str, folder: Path, *extra: str, drop: Sequence[str] = ()
) -> list[Path]:
    """The object files of `sources` (a name without a folder is one of csrc/), two at a time."""

    def compile_one(source: Path | str) -> Path:
        path = CSRC / source
        made = folder / f"{path.stem}.{isa}.o"
        chosen = [flag for flag in flags(isa) if flag not in drop]
        command = [str(CXX), *chosen, *extra, f"-I{CSRC}", "-c", str(path), "-o", str(made)]
        subprocess.run(command, check=True, timeout=300)
        return made

    flags(isa)  # here, since it may skip the test
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))
