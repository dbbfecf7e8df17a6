"""Every example of the README and of the docs runs, and what they name is there."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from deepclust.cluster import ABC, ACAI, DCAN, DCN, DEC, DEPICT, IDEC, DeepClustering, KMeans, VaDE
from deepclust.datasets import load_digits

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in (ROOT / "README.md", *DOCS)}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
# Their examples follow from one another: they are run as one.
SESSIONS = ("docs/start.md", "docs/add_a_method.md")


def examples(name):
    blocks = BLOCK.findall(PAGES[name])
    return ["\n".join(blocks)] if name in SESSIONS else blocks


EXAMPLES = [
    pytest.param(block, id=f"{Path(name).name}-{number}")
    for name in PAGES
    for number, block in enumerate(examples(name))
]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The examples are about the calls, not about the lengths: a few updates of each stage do."""
    monkeypatch.chdir(tmp_path)
    for method in (ABC, ACAI, DCAN, DCN, DEC, DEPICT, IDEC, DeepClustering, VaDE):
        quick = method.PRESETS["quick"]
        lengths = quick.keys() & {"tune_updates", "warmup_updates", "max_updates"}
        monkeypatch.setitem(method.PRESETS, "quick", {**quick, **dict.fromkeys(lengths, 10)})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("block", EXAMPLES)
def test_example(block):
    if "clustpy" in block:
        pytest.importorskip("clustpy.deep", reason="this example needs ClustPy")
    exec(block, {"X": load_digits().X})


def test_there_are_examples():
    assert len(EXAMPLES) >= 30


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGES[page], re.M | re.S)


@pytest.mark.usefixtures("small")
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


METHODS = {
    "kmeans": KMeans,
    "dec": DEC,
    "idec": IDEC,
    "dcn": DCN,
    "abc": ABC,
    "vade": VaDE,
    "depict": DEPICT,
    "acai": ACAI,
    "dcan": DCAN,
    "deep_clustering": DeepClustering,
}
PARAMETER = re.compile(r"^\| `(\w+)` \| `(.+?)` \|", re.M)


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_a_method_has_its_picture_and_true_defaults(name):
    page, method = PAGES[f"docs/{name}.md"], METHODS[name]
    assert f"](figures/method-{name}.png)" in page
    assert f"python -m experiments.gallery {name}" in page
    known = inspect.signature(method).parameters
    quick = getattr(method, "PRESETS", {}).get("quick", {})
    defaults = {
        key: quick.get(key) if parameter.default is None else parameter.default
        for key, parameter in known.items()
    }
    told = dict(PARAMETER.findall(page))
    assert len(told) >= 3
    assert told == {key: repr(defaults[key]) for key in told}


def test_the_overview_has_every_method():
    for name in METHODS:
        assert f"({name}.md" in PAGES["docs/methods.md"]


FOLDERS = "benches|csrc|deepclust|docs|experiments|tests"
FILE = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w/?(?![\w<])")
MODULE = re.compile(rf"python -m ((?:{FOLDERS})[\w.]*\w)")


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md"])
def test_files_that_a_page_names_are_there(name):
    text = (ROOT / name).read_text()
    for path in FILE.findall(text):
        assert (ROOT / path).exists(), path
    for module in MODULE.findall(text):
        where = module.replace(".", "/")
        assert any((ROOT / f"{where}{end}").exists() for end in (".py", "/__main__.py")), module
    for link in re.findall(r"\]\((?!\w+:)([^)#]+)", text):
        assert (ROOT / name).parent.joinpath(link).exists(), link


@pytest.mark.parametrize(
    "name",
    [
        *("functional", "nn", "cluster", "networks", "losses", "transforms", "metrics", "datasets"),
        *("distributed", "plots", "report", "integrations.clustpy"),
    ],
)
def test_every_public_name_is_on_the_page_of_the_api(name):
    module = importlib.import_module(f"deepclust.{name}")
    own = [key for key, value in vars(module).items() if is_of(value, module) and key[0] != "_"]
    members = rf"^::: deepclust\.{re.escape(name)}\n    options:\n      members: \[(.*)\]"
    (listed,) = re.findall(members, PAGES["docs/api.md"], re.M)
    assert sorted(listed.split(", ")) == sorted(getattr(module, "__all__", own))


def is_of(value, module):
    return getattr(value, "__module__", None) == module.__name__
