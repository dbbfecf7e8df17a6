"""docs/choosing.md, which method for which data, made of the results of experiments/run.py.

python -m experiments.choosing              writes the page
python -m experiments.choosing --check      exits 1 where the page is not what the results give
python -m experiments.choosing --measure    measures memory anew, then writes the page
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deepclust import _files
from experiments.out_of_core import of_process
from experiments.run import HERE
from experiments.tables import Runs, read, seconds, settle, spread

Results = dict[str, dict[str, Runs]]

HEAD = """\
# Which method for my data

Written by `python -m experiments.choosing` from the same runs as [Results](results.md), where each
has its command, spread and conditions.

**First k-means on the rows, always.** It takes seconds, has nothing to tune but K, and says what
the others have to beat. Then the line below that is most like your data. The number of clusters is
taken as known here, else see [Choosing K](choosing_k.md).

| your data | take | ACC % there | k-means on the rows | seconds |
|---|---|---|---|---|
"""

# What the rows are like; the call; the data and the setting that stand for it.
ADVICE = [
    (
        "images whose class stays when they are shifted or turned a little, thousands",
        '[`IDEC(augment="auto", image_shape=...)`](idec.md)',
        ("usps", "idec-views"),
    ),
    ("the same, tens of thousands", "the same, or [DEC](dec.md) so", ("mnist", "dec-views")),
    (
        "the same, clusters of like sizes, and time",
        '[`DEPICT(target="published-code", regularisers=[Balance()], augment="auto")`](depict.md)',
        ("mnist_test", "depict-balanced-views"),
    ),
    (
        "the same, where k-means on the codes mixes classes",
        "the same and `interventions=[SoftReset()]`",
        ("usps_11000", "depict-balanced-views-resets-long"),
    ),
    (
        "numbers or images of which no such views are known",
        "[`IDEC()`](idec.md)",
        ("optdigits", "idec"),
    ),
    (
        "the same, but minutes are too many",
        "spectral clustering of scikit-learn, to some ten thousand rows",
        ("optdigits", "spectral"),
    ),
    (
        "embeddings of a pre-trained network",
        "[`KMeans()`](kmeans.md), on rows of length 1",
        ("stackoverflow", "k-means"),
    ),
    (
        "counts of words, tf-idf",
        "little helps; `DEC(max_updates=0)`, an autoencoder and k-means",
        ("r8", "ae-k-means-gaussian"),
    ),
]

AFTER_ADVICE = """
Rows with one seed have no spread. *Seconds* are those of the autoencoder + those of the clustering,
on one thread of a busy machine of two cores: an upper bound. Which line is like your data is a
judgement, and each stands for one set of data. More rows than memory has:
[files](training.md), and [several processes](distributed.md) for k-means, DEC and IDEC. Labels of
some rows: only [DEPICT](depict.md) takes them. New rows later: all but spectral clustering predict
them.

**What we have not measured**: colour photographs, sound, tables with categories, more clusters than
20, clusters of very unlike sizes but for R8. Photographs want the embeddings of a pre-trained
network first, and are then the line on embeddings.

## All of them, on all of it

Accuracy in %, mean ± standard deviation (seeds). An empty cell has not been run. In each column a
method begins with the same autoencoders as those beside it that have the same network; *views* are
`augment="auto"`. ACAI and DEPICT have convolutional networks of their own. DCAN ran on smaller
networks, where ABC had more: [Adversarial training](adversarial.md).

"""

DATA = ("optdigits", "usps", "mnist", "r8", "stackoverflow", "usps_11000", "mnist_test")
MATRIX = {
    "k-means": "k-means",
    "spectral clustering": "spectral",
    "autoencoder + k-means": "ae-k-means-gaussian",
    "DEC": "dec",
    "IDEC": "idec",
    "DCN": "dcn",
    "ABC": "abc",
    "VaDE": "vade",
    "autoencoder + k-means, views": "ae-k-means-views",
    "DEC, views": "dec-views",
    "IDEC, views": "idec-views",
    "DCN, views": "dcn-views",
    "DEPICT, as published": "depict",
    "DEPICT, squared targets, balance, views": "depict-balanced-views",
    "the same with resets, four times as long": "depict-balanced-views-resets-long",
    "ACAI": "acai",
}

READING = """
How to read it:

- **The autoencoder decides.** On digits DEC, IDEC, DCN and ABC add 1 to 9 points to k-means on its
  codes, and views 8 to 18. Where k-means on the codes mixes two classes, they mostly stay mixed.
- **Where k-means on rows is as good**: embeddings. There each deep method cost accuracy.
- **Where nothing is good**: R8, half of whose rows are one class. DEC lost there what the codes
  had; k-means on a part of the same rows had 33 to 42 % with three seeds, so that differences of a
  few points say nothing.
- **One seed is one draw.** The 93.3 of DEPICT were 84.7 with the same seed on another processor.
- **Where each fails** is on its own page, under *When it fails*.

## What they take

| method | needs | ends by itself | memory beyond the rows, MB |
|---|---|---|---|
"""

NEEDS = {
    "KMeans": ("rows of any kind", "yes"),
    "DEC": ("a pre-training that is long enough", "when labels settle"),
    "IDEC": ("the same, and a decoder", "when labels settle"),
    "DCN": ("the same; `lam`", "no"),
    "ABC": ("the same; `lam`", "no"),
    "VaDE": ("the same", "no"),
    "DEPICT": ('images, or `network="mlp"`', "when targets settle"),
    "ACAI": ("a decoder; 2,500 updates or more", "no"),
    "DCAN": ("a decoder, unless it is to drift", "no"),
}

FOOT = """
Memory is the peak of resident memory beyond what the process had with its libraries and the rows,
in a fresh process for each: {n:,} x {d} float32 ({rows:.0f} MB), K = 10, {updates} + {updates}
updates, one thread (`python -m experiments.choosing --measure`). None holds N x K numbers.
"""

N, D, UPDATES = 20_000, 784, 5


def advice(results: Results) -> Iterator[str]:
    for kind, call, (data, setting) in ADVICE:
        runs, plain = results[data][setting], results[data]["k-means"]
        about = runs[0]["config"]["data"]
        k = runs[0]["config"]["given"]["n_clusters"]
        where = f"{data}, {about['n_rows']:,} x {about['n_features']:,}, K = {k}"
        cells = (f"{kind}: {where}", call, accuracy(runs), accuracy(plain), seconds(runs))
        yield f"| {' | '.join(cells)} |"


def matrix(results: Results) -> Iterator[str]:
    yield f"| | {' | '.join(DATA)} |"
    yield "|---" * (len(DATA) + 1) + "|"
    for name, setting in MATRIX.items():
        cells = (results[data].get(setting) for data in DATA)
        shown = (f"{accuracy(runs)} ({len(runs)})" if runs else "" for runs in cells)
        yield f"| {name} | {' | '.join(shown)} |"


def accuracy(runs: Runs) -> str:
    return spread([100 * run["acc"] for run in runs])


def page(results: Results, memory: dict[str, Any]) -> str:
    peaks = (
        f"| `{name}` | {needs} | {ends} | {memory['peaks'][name]:,} |"
        for name, (needs, ends) in NEEDS.items()
    )
    n, d = memory["n"], memory["d"]
    numbers = {"n": n, "d": d, "rows": 4 * n * d / 1e6, "updates": memory["updates"]}
    lines = [
        HEAD.rstrip("\n"),
        *advice(results),
        AFTER_ADVICE,
        *matrix(results),
        READING.rstrip("\n"),
    ]
    return "\n".join([*lines, *peaks, FOOT.format(**numbers)])


def peak(method: str) -> int:
    """Fit in this process; the MB that its peak lies above what it had before."""
    import numpy as np

    from deepclust import cluster

    X = np.random.default_rng(0).random((N, D), np.float32)
    common: dict[str, Any] = {"n_init": 1, "random_state": 0}
    kind = getattr(cluster, method)
    if method != "KMeans":
        common |= {"tune_updates": UPDATES, "max_updates": UPDATES}
    if method == "DEPICT":
        common |= {"image_shape": (28, 28), "warmup_updates": 0}
    before = of_process("status", "VmRSS")
    kind(10, **common).fit(X)
    return (of_process("status", "VmHWM") - before) * 1024 // 10**6


def measured() -> dict[str, Any]:
    peaks = {}
    for name in NEEDS:
        command = [sys.executable, "-m", "experiments.choosing", "--peak", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peaks[name] = int(done.stdout)
        print(f"{name}: {peaks[name]} MB", flush=True)
    return {"n": N, "d": D, "updates": UPDATES, "peaks": peaks}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--measure", action="store_true", help="measure memory anew")
    parser.add_argument("--peak", choices=NEEDS, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "choosing.md")
    args = parser.parse_args(argv)
    if args.peak:
        print(peak(args.peak))
        return 0
    memory = args.results / "memory.json"
    if args.measure:
        _files.write_text(memory, json.dumps(measured(), indent=1) + "\n")
    text = page(read(args.results), json.loads(memory.read_text()))
    return settle(args, text, "experiments.choosing")


if __name__ == "__main__":
    sys.exit(main())
