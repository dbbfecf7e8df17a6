"""What is published: one version, and types that are those of the extension."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepclust

try:
    from deepclust import _C
except ImportError:
    _C = None

ROOT = Path(__file__).parents[1]
NUMBER = r"\d+\.\d+\.\d+"


def order(version):
    return tuple(map(int, version.split(".")))


def test_what_is_built_has_the_version_of_the_package():
    said = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert said.stdout.split()[-1] == deepclust.__version__


def test_the_changelog_has_the_version():
    """A release is its newest entry and leaves nothing unreleased; between releases it is .dev0."""
    number, dev = re.fullmatch(rf"({NUMBER})(\.dev0)?", deepclust.__version__).groups()
    sections = re.split(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1:]
    headings, bodies = sections[::2], sections[1::2]
    assert headings[0] == "[Unreleased]"
    releases = [re.fullmatch(rf"\[({NUMBER})\] - \d{{4}}-\d\d-\d\d", h)[1] for h in headings[1:]]
    assert releases == sorted(set(releases), key=order, reverse=True)
    if dev:
        assert not releases or order(number) > order(releases[0])
    else:
        assert number == releases[0]
        assert not bodies[0].strip()


@pytest.mark.skipif(_C is None, reason="deepclust._C is blocked or not built")
def test_the_stub_has_the_functions_of_the_extension():
    stub = ast.parse((ROOT / "deepclust" / "_C.pyi").read_text())
    typed = {
        node.name: len(node.args.posonlyargs)
        for node in stub.body
        if isinstance(node, ast.FunctionDef)
    }
    compiled = {
        name: len(re.findall(r"\barg\d+: ", function.__doc__))
        for name, function in vars(_C).items()
        if callable(function) and not name.startswith("_")
    }
    assert typed == compiled
