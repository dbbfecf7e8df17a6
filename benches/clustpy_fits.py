"""What ClustPy's users gain by one line: an epoch of its clustering without and with our kernels.

    python benches/clustpy_fits.py [--methods DEC IDEC DCN] [--n-clusters 10 100] [--out FITS.json]

    from deepclust.integrations import clustpy
    clustpy.enable()    # the line

The rows are drawn, with the shape of MNIST's: 784 numbers. Network (784-500-500-2000-10, ClustPy's
default), batches of 256, seed and start are the same for both, which take turns in this one
process; the network is not trained before, which changes no cost. Timed is ClustPy's training for
clusters, all its epochs, without what comes before and after. Both must end at the same centres.

Most of an epoch is the network's, which is torch's in both. `--hidden` without numbers leaves one
layer 784-10, and so shows what the replaced functions are worth.

ClustPy needs torchvision, so an environment of its own:

    python -m venv ENV && ENV/bin/pip install torch torchvision clustpy && ENV/bin/pip install -e .
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import deepclust
from deepclust.integrations import clustpy as integration

try:
    import clustpy.deep
    from clustpy.deep.neural_networks import FeedforwardAutoencoder
except ImportError as problem:
    raise SystemExit(
        f"clustpy_fits: no ClustPy here ({problem}); the head of this file says how"
    ) from None

METHODS = {
    "DEC": clustpy.deep.dec._DEC_Module,
    "IDEC": clustpy.deep.dec._DEC_Module,
    "DCN": clustpy.deep.dcn._DCN_Module,
}
KINDS = ["ClustPy", "with the line"]
D, LATENT, BATCH = 784, 10, 256


@contextlib.contextmanager
def timed(module: type, spans: list[tuple[float, float]]) -> Iterator[None]:
    """Wall and CPU seconds of this module's training."""
    own = module.fit

    def fit(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter(), time.process_time()
        result = own(*args, **kwargs)
        spans.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        return result

    module.fit = fit
    try:
        yield
    finally:
        module.fit = own


def fit(method: str, k: int, kind: str, X: np.ndarray, args: Any) -> tuple[dict[str, float], Any]:
    """Seconds of an epoch, and the centres at the end."""
    torch.manual_seed(args.seed)
    network = FeedforwardAutoencoder([D, *args.hidden, LATENT])
    network.fitted = True
    estimator = getattr(clustpy.deep, method)(
        k,
        neural_network=network,
        batch_size=BATCH,
        embedding_size=LATENT,
        clustering_epochs=args.epochs,
        initial_clustering_params={"n_init": 1, "max_iter": 20},
        random_state=args.seed,
        device="cpu",
    )
    spans: list[tuple[float, float]] = []
    line = integration.enabled() if kind != "ClustPy" else contextlib.nullcontext()
    with line, timed(METHODS[method], spans), contextlib.redirect_stdout(io.StringIO()):
        estimator.fit(X)
    ((wall, cpu),) = spans
    centres = estimator.dcn_cluster_centers_ if method == "DCN" else estimator.dec_cluster_centers_
    return {"wall": wall / args.epochs, "cpu": cpu / args.epochs}, centres


def race(method: str, k: int, X: np.ndarray, args: Any) -> dict[str, list[dict[str, float]]]:
    fits: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for repeat in range(args.repeats):
        centres = {}
        for kind in KINDS[:: 1 if repeat % 2 else -1]:
            seconds, centres[kind] = fit(method, k, kind, X, args)
            fits[kind].append(seconds)
            print(f"{method}, K = {k}, {kind}: {seconds}", file=sys.stderr)
        np.testing.assert_allclose(*centres.values(), rtol=1e-3, atol=1e-3)
    return fits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--n-clusters", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--hidden", nargs="*", type=int, default=[500, 500, 2000])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random = np.random.default_rng(args.seed)
    X = random.random((args.n, D), dtype=np.float32)
    with threadpool_limits(args.threads):
        races = {(m, k): race(m, k, X, args) for m in args.methods for k in args.n_clusters}
    print(f"N = {args.n}, D = {D}, hidden {args.hidden}, {args.threads} threads, seconds an epoch:")
    print(
        f"| method | K | {KINDS[0]} | {KINDS[1]} | gain | {KINDS[0]}, CPU | with it, CPU | gain |"
    )
    print("|---" * 8 + "|")
    for (method, k), fits in races.items():
        cells = [method, str(k)]
        for clock in ("wall", "cpu"):
            own, ours = (statistics.median(run[clock] for run in fits[kind]) for kind in KINDS)
            cells += [f"{own:.3f}", f"{ours:.3f}", f"{own / ours:.2f}x"]
        print("| " + " | ".join(cells) + " |")
    if args.out is not None:
        libraries = ["torch", "clustpy", "numpy", "scikit-learn"]
        versions = {name: metadata.version(name) for name in libraries}
        report = {
            "shape": X.shape,
            "network": [D, *args.hidden, LATENT],
            "batch": BATCH,
            "threads": args.threads,
            "backend": deepclust.backends()["cpp"],
            "versions": {**versions, "deepclust": deepclust.__version__},
            "fits": {f"{method}, K = {k}": fits for (method, k), fits in races.items()},
        }
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
