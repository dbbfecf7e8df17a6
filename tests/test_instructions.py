"""How many instructions the kernels take for each point and cluster: no more than are on record.

Timings on shared machines waver by more than most slips cost; counts do not. They are callgrind's,
of the AVX2 kernels, which is the best instruction set that valgrind runs. After a change that is
meant to move them, put the new ones on record, and read the difference before it is committed:

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
SLACK = 1.03  # other versions of libc copy and clear memory otherwise


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
        dump = Path(f"{found}.{i}").read_text()
        counted = re.search(r"^(?:summary|totals): (\d+)", dump, flags=re.MULTILINE)
        assert counted, f"callgrind wrote no count for {line}"
        name, n = line.rsplit(" ", 1)
        totals[name, int(n)] = int(counted[1])
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
