"""How many instructions the kernels take for each point and cluster: no more than are on record.

Timings on shared machines waver by more than most slips cost; counts do not. They are callgrind's,
of the AVX2 kernels, which is the best instruction set that valgrind runs, and of the kernels' own
instructions: what libc takes to find memory depends on the heap, and so on the machine. After a
change that is meant to move them, put the new ones on record, and read the difference before it is
committed:

    DEEPCLUST_UPDATE_COUNTS=1 .venv/bin/python -m pytest -q tests/test_instructions.py
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.compiled import CSRC, CXX, NEEDS_COMPILER, ONCE, ROOT, compile_all, kernels

RECORD = Path(__file__).with_name("instructions.json")
UPDATE = bool(os.environ.get("DEEPCLUST_UPDATE_COUNTS"))
SLACK = 1.01


def compiler() -> str:
    asked = subprocess.run([str(CXX), "--version"], capture_output=True, text=True, check=True)
    return asked.stdout.splitlines()[0]


def build() -> Path:
    """The program to count, made again where anything it is made of is newer."""
    program = ROOT / "build" / "instructions" / "instructions"
    cpp = ROOT / "tests" / "cpp"
    made_of = [*CSRC.iterdir(), *cpp.iterdir(), ROOT / "setup.py", ROOT / "tests" / "compiled.py"]
    if not program.exists() or program.stat().st_mtime < max(f.stat().st_mtime for f in made_of):
        program.parent.mkdir(parents=True, exist_ok=True)
        own = [CSRC / "memory.cpp", CSRC / "parallel.cpp", cpp / "instructions.cpp"]
        # without OpenMP: one thread
        made = compile_all([*kernels(), *own], "avx2", program.parent, drop=["-fopenmp"])
        subprocess.run([str(CXX), *map(str, made), "-o", str(program)], check=True)
    return program


def own_instructions(dump: str, program: Path) -> int:
    """The instructions within the program itself, without the libraries that it calls.

    Of callgrind's format: ob=(number) names the object of the lines that follow, with its path the
    first time, as does cob=(number) for a called one; a line of a position and a number is a cost,
    and the one after calls= is the called function's.
    """
    paths: dict[str, str] = {}
    total, counts, called = 0, False, False
    for line in dump.splitlines():
        if named := re.match(r"(c?)ob=\((\d+)\)(?: (.+))?$", line):
            callee, number, path = named.groups()
            if path:
                paths[number] = path
            if not callee:
                counts = Path(paths[number]) == program
        elif line.startswith("calls="):
            called = True
        elif cost := re.match(r"[-+*\d]\S* (\d+)$", line):
            total += int(cost[1]) if counts and not called else 0
            called = False
    return total


def count(folder: Path) -> dict[str, float]:
    """Instructions for each point and cluster, by "primitive d k"."""
    program = build()
    found = folder / "counts"
    callgrind = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={found}"]
    marks = ["--zero-before=measured", "--dump-after=measured"]
    ran = subprocess.run(
        [*callgrind, *marks, str(program)], check=True, capture_output=True, text=True, timeout=300
    )
    totals = {}
    for i, line in enumerate(ran.stdout.splitlines(), start=1):
        name, n = line.rsplit(" ", 1)
        totals[name, int(n)] = own_instructions(Path(f"{found}.{i}").read_text(), program)
    counts = {}
    for (name, n), once in totals.items():
        if (name, 2 * n) in totals:
            k = int(name.split()[2])
            counts[name] = round((totals[name, 2 * n] - once) / (n * k), 3)
    return counts


@NEEDS_COMPILER
@ONCE
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the counts are of x86-64")
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind to count with")
def test_no_more_instructions_than_on_record(tmp_path: Path) -> None:
    if UPDATE:
        record = {"compiler": compiler(), "counts": count(tmp_path)}
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
        return
    record = json.loads(RECORD.read_text())
    if compiler() != record["compiler"]:
        pytest.skip(f"the counts on record are of {record['compiler']}, this is {compiler()}")
    counts = count(tmp_path)
    assert counts.keys() == record["counts"].keys()
    assert min(counts.values()) > 0
    more = [
        f"{name}: {counts[name]}, {allowed} on record"
        for name, allowed in record["counts"].items()
        if counts[name] > allowed * SLACK
    ]
    assert not more, "\n".join([*more, "meant so? DEEPCLUST_UPDATE_COUNTS=1 puts these on record"])
