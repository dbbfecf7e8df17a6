"""Every Python example of the README and of the docs runs."""

from __future__ import annotations

import re
from pathlib import Path

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


@pytest.mark.parametrize("block", EXAMPLES)
def test_example(block, tmp_path, monkeypatch):
    if "clustpy" in block:
        pytest.importorskip("clustpy.deep", reason="this example needs ClustPy")
    monkeypatch.chdir(tmp_path)
    # The examples are about the calls, not about the lengths: a few updates of each stage do.
    for method in (ABC, ACAI, DCAN, DCN, DEC, DEPICT, IDEC, DeepClustering, VaDE):
        quick = method.PRESETS["quick"]
        lengths = quick.keys() & {"tune_updates", "warmup_updates", "max_updates"}
        monkeypatch.setitem(method.PRESETS, "quick", {**quick, **dict.fromkeys(lengths, 10)})
    exec(block, {"X": load_digits().X})


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
