"""exp, log, log1p and 1/x of csrc/vector_math.h, on each instruction set: errors as it states."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.compiled import CXX, NEEDS_COMPILER, ONCE, ROOT, compile_all
from tests.test_isa import NAMES, NEEDS_C, REFUSED, cpp_of

STATED = {"exp": 2, "exp_above": 2, "log": 2, "log_near_1": 2, "log1p": 2, "inverse": 1}


@NEEDS_C
@ONCE
@NEEDS_COMPILER
@pytest.mark.parametrize("isa", NAMES)
def test_errors_are_as_stated(tmp_path: Path, isa: str) -> None:
    if REFUSED.search(cpp_of(isa)):
        pytest.skip(f"this processor does not run {isa}")
    made = compile_all([ROOT / "tests" / "cpp" / "vector_math.cpp"], isa, tmp_path)
    program = tmp_path / "vector_math"
    subprocess.run([str(CXX), *map(str, made), "-o", str(program)], check=True)
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=300)
    errors = [line.split() for line in ran.stdout.splitlines()]
    assert len(errors) == 2 * len(STATED)
    for type_, name, units in errors:
        assert float(units) <= STATED[name], f"{type_} {name}: {units} units in the last place"
