"""Whole fits beside ClustPy's: the same networks, batches, learning rates and numbers of updates.

    python benches/fits.py DATA.npz [--methods dec idec dcn] [--out FITS.json]

DATA.npz holds X (N, ...) and y (N,). The contenders fit it in turn in this one process, each
`--repeats` times with seeds of its own: ours in float32, ours with autocast="bfloat16" (the same
updates, not the same arithmetic), and ClustPy's estimator of that name. ClustPy counts epochs, of
ceil(N / batch) updates each; ours are told that many updates and never to stop earlier. ClustPy
needs torchvision, so an environment of its own:

    python -m venv ENV && ENV/bin/pip install torch torchvision clustpy && ENV/bin/pip install -e .

What is not equal, because the methods are not: ClustPy's target of DEC and IDEC is that of the
batch, made anew for each; ours is that of all rows, as in the paper, for which every
`--update-interval` updates pass over the data. ClustPy's fit ends with a k-means of its own.

A phase ends where the next begins: "pretrain" with the autoencoder's last update, "k-means" where
clustering begins, "cluster" with the fit; the first encoding of all rows is in ClustPy's "pretrain"
and in our "k-means". CPU seconds are those of the whole process: on a shared
machine they tell what a slow wall clock does not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported

import numpy as np
import torch
from sklearn.cluster import KMeans

import deepclust
from deepclust import cluster
from deepclust.metrics import clustering_accuracy, normalized_mutual_info

try:
    from clustpy import deep as clustpy
    from clustpy.deep.neural_networks import FeedforwardAutoencoder
except ImportError as problem:
    raise SystemExit(f"fits: no ClustPy here ({problem}); the head of this file says how") from None

METHODS = ["dec", "idec", "dcn"]
PHASES = ["pretrain", "k-means", "cluster"]
HIDDEN, LATENT = [500, 500, 2000], 10
BATCH = 256
PRETRAIN_LR, CLUSTER_LR = 1e-3, 1e-4  # ClustPy's defaults
# ClustPy's losses as ours are: reconstruction as the mean of all elements, but in DCN, as in its
# paper, as the sum over a row's; the weights of the clustering loss.
LOSSES: dict[str, dict[str, Any]] = {
    "dec": {"ssl_loss_fn": torch.nn.functional.mse_loss},
    "idec": {"ssl_loss_fn": torch.nn.functional.mse_loss, "clustering_loss_weight": 0.1},
    "dcn": {"clustering_loss_weight": 1.0},
}


class Clock:
    """Wall and CPU time at each mark."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.mark()

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def phases(self) -> dict[str, dict[str, float]]:
        """Seconds of each phase and of all of them."""
        spans = dict(zip(PHASES, zip(self.marks, self.marks[1:], strict=False), strict=True))
        spans["whole"] = self.marks[0], self.marks[-1]
        return {
            name: {"wall": end[0] - start[0], "cpu": end[1] - start[1]}
            for name, (start, end) in spans.items()
        }


Result = dict[str, Any]


def result(clock: Clock, labels: Any, y: np.ndarray, **more: Any) -> Result:
    """What a fit took and found."""
    scores = {"acc": clustering_accuracy(y, labels), "nmi": normalized_mutual_info(y, labels)}
    return {"seconds": clock.phases(), **scores, **more}


def fit_ours(
    method: str, autocast: str | None, X: np.ndarray, y: np.ndarray, seed: int, args: Any
) -> Result:
    clock = Clock()
    ended: list[str] = []

    def watch(run: Any) -> None:
        # The autoencoder's stage has ended, or the clustering, k-means behind it, begins.
        if run.stage.name != "cluster" or (run.refreshed and run.update == 0):
            clock.mark()
            ended.append(run.stage.name)

    estimator = getattr(cluster, method.upper())(
        len(np.unique(y)),
        hidden=HIDDEN,
        latent_dim=LATENT,
        scale=None,
        layer_updates=0,
        tune_updates=args.pretrain_updates,
        max_updates=args.cluster_updates,
        batch_size=BATCH,
        optimizer="adam",
        pretrain_lr=PRETRAIN_LR,
        cluster_lr=CLUSTER_LR,
        n_init=args.n_init,
        init_criterion="inertia",  # as scikit-learn chooses among its restarts
        autocast=autocast,
        random_state=seed,
        callbacks=[watch],
    )
    if method != "dcn":  # which has neither targets nor a share of changed labels to stop at
        estimator.set_params(tol=0.0, update_interval=args.update_interval)
    estimator.fit(X)
    clock.mark()
    assert ended == ["tune", "cluster"], f"phases of {method}: {ended}"
    updates = args.pretrain_updates + args.cluster_updates
    assert estimator.n_iter_ == updates, f"{estimator.n_iter_} updates, not {updates}"
    return result(clock, estimator.labels_, y)


class _KMeans(KMeans):
    """ClustPy's first clustering, which says when it begins and ends."""

    clock: Clock

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.mark()
        fitted = super().fit(*args, **kwargs)
        self.clock.mark()
        return fitted


def fit_clustpy(method: str, X: np.ndarray, y: np.ndarray, seed: int, args: Any) -> Result:
    network = {"layers": [X.shape[1], *HIDDEN, LATENT], "activation_fn": torch.nn.ReLU}
    clock = _KMeans.clock = Clock()
    with contextlib.redirect_stdout(io.StringIO()):
        estimator = getattr(clustpy, method.upper())(
            len(np.unique(y)),
            batch_size=BATCH,
            pretrain_optimizer_params={"lr": PRETRAIN_LR},
            clustering_optimizer_params={"lr": CLUSTER_LR},
            pretrain_epochs=args.pretrain_epochs,
            clustering_epochs=args.cluster_epochs,
            optimizer_class=torch.optim.Adam,
            **LOSSES[method],
            neural_network=(FeedforwardAutoencoder, network),
            embedding_size=LATENT,
            initial_clustering_class=_KMeans,
            initial_clustering_params={"n_init": args.n_init},
            device="cpu",
            random_state=seed,
        ).fit(X)
    clock.mark()
    own = getattr(estimator, f"{method.replace('idec', 'dec')}_labels_")
    return result(clock, own, y, acc_of_final_kmeans=clustering_accuracy(y, estimator.labels_))


# What is raced, in turn: name, and (method, X, y, seed, args) -> Result.
CONTENDERS: dict[str, Callable[..., Result]] = {
    "ClustPy": fit_clustpy,
    "ours": lambda method, *rest: fit_ours(method, None, *rest),
    "ours, bfloat16": lambda method, *rest: fit_ours(method, "bfloat16", *rest),
}


def race(method: str, X: np.ndarray, y: np.ndarray, args: Any) -> dict[str, list[Any]]:
    fits: dict[str, list[Any]] = {name: [] for name in CONTENDERS}
    for repeat in range(args.repeats):
        for name, fit in CONTENDERS.items():
            found = fit(method, X, y, args.seed + repeat, args)
            fits[name].append(found)
            whole = found["seconds"]["whole"]
            print(
                f"{method} seed {args.seed + repeat} {name}: {whole['wall']:.1f} s,"
                f" ACC {found['acc']:.4f}, NMI {found['nmi']:.4f}",
                file=sys.stderr,
            )
    return fits


def table(races: dict[str, dict[str, list[Any]]]) -> Iterator[str]:
    """Median seconds, how many times faster than ClustPy, and the scores of all repeats."""
    names = [*PHASES, "whole"]
    yield "| method | contender | " + " | ".join(names) + " | whole, CPU | ACC | NMI |"
    yield "|---" * (len(names) + 5) + "|"
    for method, fits in races.items():
        for name, results in fits.items():
            spans = [(phase, "wall") for phase in names] + [("whole", "cpu")]
            cells = []
            for span in spans:
                seconds, peer = median(results, *span), median(fits["ClustPy"], *span)
                ratio = "" if name == "ClustPy" else f" ({peer / seconds:.2f}x)"
                cells.append(f"{seconds:.2f}{ratio}")
            for score in ("acc", "nmi"):
                cells.append(" ".join(f"{result[score]:.4f}" for result in results))
            yield f"| {method} | {name} | " + " | ".join(cells) + " |"


def median(results: list[Any], phase: str, kind: str) -> float:
    return statistics.median(result["seconds"][phase][kind] for result in results)


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of mean square one, as DEC's paper scales them, for all contenders; and the classes."""
    with np.load(path) as data:
        X, y = data["X"].reshape(len(data["X"]), -1).astype(np.float32), data["y"]
    return X / np.sqrt(np.square(X).mean()), y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--pretrain-epochs", type=int, default=20)
    parser.add_argument("--cluster-epochs", type=int, default=20)
    parser.add_argument("--update-interval", type=int, help="updates between our targets")
    parser.add_argument("--n-init", type=int, default=20, help="restarts of the first k-means")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    X, y = load(args.data)
    per_epoch = math.ceil(len(X) / BATCH)
    args.pretrain_updates = args.pretrain_epochs * per_epoch
    args.cluster_updates = args.cluster_epochs * per_epoch
    races = {}
    for method in args.methods:
        if not hasattr(cluster, method.upper()):
            print(f"{method}: skipped, deepclust.cluster has no {method.upper()}", file=sys.stderr)
            continue
        races[method] = race(method, X, y, args)
    libraries = ["torch", "clustpy", "numpy", "scikit-learn"]
    report = {
        "data": args.data.name,
        "shape": X.shape,
        "network": [X.shape[1], *HIDDEN, LATENT],
        "batch": BATCH,
        "learning_rates": [PRETRAIN_LR, CLUSTER_LR],
        "updates": {"pretrain": args.pretrain_updates, "cluster": args.cluster_updates},
        "update_interval": args.update_interval,
        "n_init": args.n_init,
        "threads": args.threads,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "backend": deepclust.backends()["cpp"],
        "versions": {name: metadata.version(name) for name in libraries}
        | {"deepclust": deepclust.__version__},
        "fits": races,
    }
    print(f"{args.data.name}: {X.shape}, updates {report['updates']}, {args.threads} threads")
    print("\n".join(table(races)))
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
