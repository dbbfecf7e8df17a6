"""k-means until it converges, beside scikit-learn, its Intel extension and faiss.

    python benches/kmeans_fits.py DATA.npz [--n-clusters 10 256] [--dtype float64] [--threads 2]
        [--out FITS.json]

DATA.npz holds X (N, ...). All begin with the same rows as centroids and are fitted in turn in this
one process; scikit-learn's classes and ours end at the same tolerance, faiss, which has none, after
as many iterations as ours. What is not installed is left out: `pip install faiss-cpu
scikit-learn-intelex` brings all. "ours, plain" keeps no bounds. In float32 rounding decides which
of many optima a fit with many clusters ends in; float64, which faiss does not take, hardly rounds.

CPU seconds are those of the whole process: on a shared machine they tell what a slow wall clock
does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.cluster
import torch
from threadpoolctl import threadpool_limits

import deepclust
from deepclust.cluster import KMeans, _lloyd

Array = np.ndarray[Any, Any]
Fit = Callable[[Array, Array], tuple[float, int]]  # X, centroids -> inertia, iterations

PEERS = ["numpy", "torch", "scikit-learn", "scikit-learn-intelex", "faiss-cpu"]


def estimator(made: Callable[..., Any], **options: Any) -> Fit:
    """Fits an estimator of scikit-learn's kind."""

    def fit(x: Array, centroids: Array) -> tuple[float, int]:
        model = made(len(centroids), init=centroids, n_init=1, **options).fit(x)
        return float(model.inertia_), int(model.n_iter_)

    return fit


def plain(x: Array, centroids: Array) -> tuple[float, int]:
    few, _lloyd._Passes.FEW = _lloyd._Passes.FEW, -1.0
    try:
        return estimator(KMeans)(x, centroids)
    finally:
        _lloyd._Passes.FEW = few


def contenders(n_iter: int, dtype: str) -> dict[str, Fit]:
    """What is installed and takes this type; faiss runs so many iterations."""
    found: dict[str, Fit] = {"ours": estimator(KMeans), "ours, plain": plain}
    for algorithm in ("lloyd", "elkan"):
        found[f"scikit-learn, {algorithm}"] = estimator(sklearn.cluster.KMeans, algorithm=algorithm)
    try:
        from sklearnex.cluster import KMeans as Accelerated

        found["scikit-learn-intelex"] = estimator(Accelerated)
    except ImportError:
        pass
    if dtype == "float64":
        return found
    try:
        import faiss

        def fit_faiss(x: Array, centroids: Array) -> tuple[float, int]:
            model = faiss.Kmeans(x.shape[1], len(centroids), niter=n_iter, seed=0)
            model.cp.max_points_per_centroid = len(x)  # else it draws some
            model.train(x, init_centroids=centroids)
            return float(model.index.search(x, 1)[0].sum(dtype=np.float64)), n_iter

        found["faiss"] = fit_faiss
    except ImportError:
        pass
    return found


def race(x: Array, k: int, repeats: int, seed: int) -> dict[str, list[dict[str, float]]]:
    centroids = x[np.random.default_rng(seed).choice(len(x), k, replace=False)].copy()
    _, n_iter = estimator(KMeans)(x, centroids)
    fits: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for name, fit in contenders(n_iter, str(x.dtype)).items():
            wall, cpu = time.perf_counter(), time.process_time()
            inertia, iterations = fit(x, centroids)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            found = {"wall": wall, "cpu": cpu, "inertia": inertia, "iterations": iterations}
            fits.setdefault(name, []).append(found)
            print(f"K = {k} {name}: {found}", file=sys.stderr)
    return fits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--n-clusters", nargs="+", type=int, default=[10, 256])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of iterations that end before they converge
    torch.set_num_threads(args.threads)
    with np.load(args.data) as data:
        x = data["X"].reshape(len(data["X"]), -1).astype(args.dtype)
    with threadpool_limits(args.threads):
        races = {k: race(x, k, args.repeats, args.seed) for k in args.n_clusters}
    print("| K | contender | iterations | inertia | wall s | CPU s |\n|---|---|---|---|---|---|")
    for k, fits in races.items():
        for name, runs in fits.items():
            cells = [str(k), name, f"{runs[0]['iterations']:.0f}", f"{runs[0]['inertia']:.7g}"]
            for kind in ("wall", "cpu"):
                seconds = statistics.median(run[kind] for run in runs)
                ratio = seconds / statistics.median(run[kind] for run in fits["ours"])
                cells.append(f"{seconds:.2f} ({ratio:.2f}x)")
            print("| " + " | ".join(cells) + " |")
    if args.out is not None:
        versions = {"deepclust": deepclust.__version__, "backend": deepclust.backends()["cpp"]}
        for name in PEERS:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        data: dict[str, Any] = {"data": args.data.name, "shape": x.shape, "dtype": args.dtype}
        report = {**data, "threads": args.threads}
        args.out.write_text(json.dumps({**report, "versions": versions, "fits": races}, indent=1))


if __name__ == "__main__":
    main()
