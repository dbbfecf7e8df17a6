"""DEC over seeds, beside k-means and autoencoder + k-means: accuracy, spread, wall time, curves.

    python experiments/dec.py DATA --seeds 0 1 2 3 4 --out FILE.json [--set name=value ...]
                              [--network CHECKPOINT]   (the autoencoder of another run, as it is)

One JSON file, written anew after each seed; seeds that it holds already are skipped, and a seed
that was interrupted goes on from its checkpoint beside the file. Labels are read for the figures
alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepclust import _files, backends, datasets, metrics
from deepclust.cluster import DEC, KMeans


def scores(y: Any, labels: Any) -> dict[str, float]:
    return {
        "acc": metrics.clustering_accuracy(y, labels),
        "nmi": metrics.normalized_mutual_info(y, labels),
        "ari": metrics.adjusted_rand(y, labels),
    }


class Curve:
    """Scores of the labels at each refresh of the clustering; its first point is k-means."""

    def __init__(self, y: Any) -> None:
        self.y, self.points = y, []  # type: ignore[var-annotated]

    def __call__(self, run: Any) -> None:
        if run.stage.name == "cluster" and run.refreshed:
            labels = run.state["labels"].cpu().numpy()
            point = {"update": run.update, "changed": run.state["changed"]}
            self.points.append(point | scores(self.y, labels))
            run.log("accuracy", self.points[-1]["acc"])


def run_seed(
    X: Any, y: Any, k: int, seed: int, restarts: int, settings: dict[str, Any], file: Path
) -> Any:
    start = time.perf_counter()
    kmeans = KMeans(k, n_init=restarts, random_state=seed).fit(np.asarray(X, np.float32))
    baseline = scores(y, kmeans.labels_) | {"seconds": time.perf_counter() - start}
    curve = Curve(y)
    checkpoint = file.with_suffix(f".seed{seed}.checkpoint")
    dec = DEC(k, random_state=seed, callbacks=[curve], checkpoint=checkpoint, verbose=1, **settings)
    start = time.perf_counter()
    dec.fit(X, resume=checkpoint.exists())
    seconds = time.perf_counter() - start
    checkpoint.unlink(missing_ok=True)
    return {
        "seed": seed,
        "k-means": baseline,
        "autoencoder + k-means": {n: curve.points[0][n] for n in ("acc", "nmi", "ari")},
        "dec": scores(y, dec.labels_) | {"seconds": seconds},
        "sizes": np.bincount(dec.labels_, minlength=k).tolist(),
        "updates": dec.n_iter_,
        "stopped": dec.stop_reasons_["cluster"],
        "curve": curve.points,
        "reconstruction": dec.history_.get("tune/reconstruction", [])[::5],
    }


def summary(runs: list[Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for method in ("k-means", "autoencoder + k-means", "dec"):
        for name in runs[0][method]:
            values = [run[method][name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            result.setdefault(method, {})[name] = {
                "mean": statistics.fmean(values),
                "std": spread,
                "min": min(values),
                "max": max(values),
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a name or a file that deepclust.datasets.load takes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--restarts", type=int, default=20, help="of k-means on the raw data")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--network", type=Path, help="skip the pre-training: take this run's")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {}
    for item in args.set:
        name, _, value = item.partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    shown = dict(settings)
    if args.network is not None:
        weights = _files.load_tree(args.network, kind="checkpoint")["method"]
        prefix = "network."
        settings["pretrained"] = {
            name.removeprefix(prefix): value
            for name, value in weights.items()
            if name.startswith(prefix)
        }
        shown["pretrained"] = args.network.name
    data = datasets.load(args.data)
    k = len(np.unique(data.y))
    config = {
        "data": data.name,
        "n": len(data),
        "n_features": data.X.shape[1],
        "n_clusters": k,
        "settings": shown,
        "k-means restarts": args.restarts,
        "threads": args.threads,
    }
    runs = []
    if args.out.exists():
        found = json.loads(args.out.read_text())
        if found["config"] != config:
            sys.exit(f"{args.out}: holds runs of another configuration")
        runs = found["runs"]
    for seed in args.seeds:
        if any(run["seed"] == seed for run in runs):
            continue
        runs.append(run_seed(data.X, data.y, k, seed, args.restarts, settings, args.out))
        report = {
            "command": f"python {shlex.join(sys.argv)}".replace(args.data, Path(args.data).name),
            "config": config,
            "versions": {
                name: metadata.version(name) for name in ("deepclust", "torch", "scikit-learn")
            },
            "machine": f"{platform.machine()}, {backends()['cpp']}",
            "summary": summary(runs),
            "runs": runs,
        }
        _files.write_json(args.out, report)
        done = summary(runs)["dec"]["acc"]
        print(f"seed {seed}: {runs[-1]['dec']}; mean accuracy {done['mean']:.4f}", flush=True)


if __name__ == "__main__":
    main()
