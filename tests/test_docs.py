"""Every Python example of the README and of the docs runs, and every example of the command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from deepclust.cluster import ABC, ACAI, DCAN, DCN, DEC, DEPICT, IDEC, DeepClustering, VaDE
from deepclust.datasets import load_digits

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    )
]


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """The examples are about the calls, not about the lengths: a few updates of each stage do."""
    monkeypatch.chdir(tmp_path)
    for method in (ABC, ACAI, DCAN, DCN, DEC, DEPICT, IDEC, DeepClustering, VaDE):
        quick = method.PRESETS["quick"]
        lengths = quick.keys() & {"tune_updates", "warmup_updates", "max_updates"}
        monkeypatch.setitem(method.PRESETS, "quick", {**quick, **dict.fromkeys(lengths, 10)})


@pytest.mark.parametrize("block", EXAMPLES)
def test_example(block):
    if "clustpy" in block:
        pytest.importorskip("clustpy.deep", reason="this example needs ClustPy")
    exec(block, {"X": load_digits().X})


def test_there_are_examples():
    assert len(EXAMPLES) >= 4


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("page", ["README.md", "docs/terminal.md"])
def test_commands(page, monkeypatch):
    """One after the other, in a folder with the files that they name."""
    pytest.importorskip("click", reason="the command needs click")
    pytest.importorskip("matplotlib", reason="the command's report needs matplotlib")
    from deepclust import cli, report

    monkeypatch.setattr(report, "DPI", 20)
    classes = np.arange(200) % 4
    X = np.random.default_rng(0).normal(size=(200, 8)) + 5 * classes[:, None]
    np.save("X.npy", X.astype(np.float32))
    np.save("new.npy", X[:50].astype(np.float32))
    np.savetxt("points.csv", X[:, :2], delimiter=",")
    for name in ("y.npy", "points-y.npy"):
        np.save(name, classes)
    for text in blocks(page, "toml"):
        Path("run.toml").write_text(text)
    commands = [
        shlex.split(line, comments=True)[1:]
        for block in blocks(page, "sh")
        if block.startswith("deepclust")
        for line in block.splitlines()
    ]
    assert {command[0] for command in commands} == set(cli.cli.commands)
    for command in commands:
        assert cli.main(command) == 0, command
