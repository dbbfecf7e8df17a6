"""How k-means grows with N and K: docs/scale.md, from runs that this measures.

    python -m experiments.scale --measure --folder /tmp     writes results/scale.json, then the page
    python -m experiments.scale                             writes the page alone

Every run is a fresh process that clusters a file of blobs, D = 16, by KMeans from rows drawn at
random, and reads the file in each pass. The projection to clusters of GPUs is arithmetic on figures
that are stated beside it; nobody has run it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepclust import _files
from experiments.out_of_core import write_blobs
from experiments.tables import HERE, settle

D, ITERATIONS = 16, 3
# (N, K): N at one K, then K at one N.
RUNS = [(10**5, 100), (10**6, 100), (10**7, 100), (10**8, 100)] + [
    (10**6, k) for k in (10, 1_000, 10_000, 100_000)
]
# One looks for NaN, one an iteration, and one finds the labels.
PASSES = ITERATIONS + 2

# Of one GPU (H100 SXM): bytes a second of its memory, of PCIe, of NVLink to others in the machine,
# of the network; and operations a second in TF32 that a streaming product reaches, half the peak.
# One in float32 takes three of these.
GPU = {"memory": 3.0e12, "PCIe": 5.5e10, "NVLink": 4.5e11, "network": 5.0e10}
OPERATIONS, PRODUCTS = 2.0e14, 3
PROJECTED = [(10**9, 128, 1_000, 8), (10**9, 128, 10**5, 8), (10**10, 128, 10**5, 64)]

HEAD = """\
# Scale

Written by `python -m experiments.scale` from `experiments/results/scale.json`; `--measure`
makes that anew. Each row is a fresh process: `KMeans(K, init="random", n_init=1,
max_iter={iterations}, tol=0)` of a file of blobs, D = {d}, float32, which is read {passes} times:
to look for NaN, for each iteration, and for the labels. *Peak* is the process's most resident
memory, of which {imported} MB are the imported libraries. *Cost* is the time of a pass over N K: of
one point and one centroid, reading and all.

{machine}

| N | K | file | seconds | peak MB | cost, ns |
|---|---|---|---|---|---|
"""
PROJECTION = """
## A projection to GPUs

Computed, not run. Each GPU holds its share of N in its memory where that has room (80 GB), else
the share crosses PCIe in every iteration. An iteration reads the share once, takes 2 N D K
operations {products} times over (float32 in products of TF32), and adds up K (D + 1) float64
numbers over all GPUs, which a ring sends twice: within a machine of eight over NVLink, between
machines over the network.

Assumed of one GPU: {gpu}; {operations:.0f} TFLOP/s of products in TF32, which is half of the
peak.

| N | D | K | GPUs | rows of one | read | product | sums | an iteration |
|---|---|---|---|---|---|---|---|---|"""
TAIL = """

An iteration takes the longer of reading and product, as one streams under the other, and then
the sums. Labels need 8 bytes a row on the host.
"""


def measure(folder: Path) -> dict[str, Any]:
    """All runs, and what they ran on."""
    import torch

    import deepclust

    path, runs = folder / "scale.npy", []
    written = 0
    try:
        for n, k in RUNS:
            if n != written:
                write_blobs(path, n, D)
                written = n
            parameters = {"n_clusters": k, "init": "random", "n_init": 1, "random_state": 0}
            parameters |= {"max_iter": ITERATIONS, "tol": 0.0}
            command = [sys.executable, "-W", "ignore", "-m", "experiments.out_of_core", "--fit"]
            command += [str(path), "KMeans", json.dumps(parameters)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append({**json.loads(done.stdout), "k": k})
            print(json.dumps(runs[-1]), flush=True)
    finally:
        path.unlink(missing_ok=True)
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    backend = deepclust.backends()["cpp"]
    return {
        "machine": f"On {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}, C++ kernels"
        f" {backend}; deepclust {deepclust.__version__}, torch {torch.__version__}.",
        "runs": runs,
    }


def page(measured: dict[str, Any]) -> str:
    runs = measured["runs"]
    imported = max(run["resident_mb_once_imported"] for run in runs)
    about = {"iterations": ITERATIONS, "d": D, "passes": PASSES, "machine": measured["machine"]}
    return HEAD.format(**about, imported=imported) + "\n".join([*rows(runs), *projection()]) + TAIL


def rows(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    for run in runs:
        n, k = run["n"], run["k"]
        cost = run["seconds"] / (PASSES - 1) / (n * k) * 1e9  # one pass computes nothing
        size = f"{4 * D * n / 1e9:.2f} GB"
        cells = [f"{n:,}", f"{k:,}", size, f"{run['seconds']:.2f}", str(run["peak_resident_mb"])]
        yield f"| {' | '.join([*cells, f'{cost:.2f}'])} |"
    # By least squares of relative errors: seconds = passes (a N + b N K).
    n, k, seconds = (np.array([run[name] for run in runs]) for name in ("n", "k", "seconds"))
    columns = (PASSES - 1) * np.stack([n, n * k], 1) / seconds[:, None]
    a, b = np.linalg.lstsq(columns, np.ones(len(runs)), rcond=None)[0]
    yield ""
    yield (
        f"Fitted to these, by relative error: a pass takes {1e9 * a:.0f} ns a row and"
        f" {1e9 * b:.2f} ns a point and centroid. Memory has a block, K D numbers a few times, and"
        " labels and distances, which go to a file where they are more than 64 MB."
    )


def projection() -> Iterator[str]:
    gpu = ", ".join(f"{name} {speed / 1e9:,.0f} GB/s" for name, speed in GPU.items())
    yield PROJECTION.format(gpu=gpu, operations=OPERATIONS / 1e12, products=PRODUCTS)
    for n, d, k, gpus in PROJECTED:
        share = 4 * n * d / gpus
        read = share / (GPU["memory"] if share < 7e10 else GPU["PCIe"])
        product = PRODUCTS * 2 * n * d * k / gpus / OPERATIONS
        link = GPU["NVLink"] if gpus <= 8 else GPU["network"]
        sums = 2 * 8 * k * (d + 1) * (gpus - 1) / gpus / link
        whole = max(read, product) + sums
        times = [f"{seconds:.3g} s" for seconds in (read, product, sums, whole)]
        yield f"| {n:,} | {d} | {k:,} | {gpus} | {share / 1e9:.0f} GB | {' | '.join(times)} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--measure", action="store_true", help="run all, for some minutes")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the file is written")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "scale.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "scale.md")
    args = parser.parse_args(argv)
    if args.measure:
        _files.write_text(args.results, json.dumps(measure(args.folder), indent=1) + "\n")
    measured = json.loads(args.results.read_text())
    return settle(args, page(measured), "experiments.scale")


if __name__ == "__main__":
    sys.exit(main())
