"""Methods x data x seeds: one JSON file a run.

    python -m experiments.run --data-dir DIR --data optdigits --settings dec k-means --seeds 0-9

The data and settings are those of experiments/settings.py. A run writes OUT/DATA/SETTING/SEED.json
when it ends; one that is there already is skipped, and one that was interrupted goes on from its
checkpoint. Autoencoders are trained once for each seed and shared by all settings that begin with
the same. Checkpoints and autoencoders lie in the cache. Labels are read for the figures alone.
experiments/tables.py makes docs/results.md of the JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.cluster
import torch
from threadpoolctl import threadpool_limits

from deepclust import _files, backends, cluster, datasets, metrics
from experiments.settings import DATA, OF_THE_DATA, SETTINGS, Data, rules

HERE = Path(__file__).parent

# Methods that are not names of deepclust.cluster.
METHODS: dict[str, Any] = {
    "k-means": cluster.KMeans,
    "scikit-learn k-means": sklearn.cluster.KMeans,
    "spectral": sklearn.cluster.SpectralClustering,
    "autoencoder + k-means": cluster.DEC,
}

# The parameters of an estimator that its pre-training reads; of these it alone reads the last four.
PRETRAINING = (
    "preset",
    "network",
    "image_shape",
    "features",
    "hidden",
    "latent_dim",
    "scale",
    "batch_size",
    "optimizer",
    "autocast",
    "layer_updates",
    "dropout",
    "tune_updates",
    "pretrain_lr",
)

# The parameters that do not change what is computed, or differ between the runs of one setting.
NOT_CONFIG = (
    "backend",
    "callbacks",
    "checkpoint",
    "copy_x",
    "cuda_graphs",
    "device",
    "n_jobs",
    "pretrained",
    "random_state",
    "verbose",
)

POINTS = 40  # of a series, at most


class RefusedError(Exception):
    """A run that cannot begin; the message says why."""


@dataclass
class Job:
    """One run: what is fitted, and where its figures go."""

    data: str
    setting: str
    seed: int
    make: Callable[..., Any]  # keywords in addition -> the estimator
    pretrain: Callable[..., Any] | None  # the same for the estimator that trains the autoencoder
    config: dict[str, Any]
    file: Path
    cache: Path

    def __str__(self) -> str:
        return f"{self.data} {self.setting} seed {self.seed}"

    @property
    def done(self) -> bool:
        if not self.file.exists():
            return False
        if json.loads(self.file.read_text())["config"] != self.config:
            raise RefusedError(f"{self.file} holds a run of another configuration")
        return True

    @property
    def checkpoint(self) -> Path:
        return self.cache / f"{self.setting}-{_digest(self.config)}-seed{self.seed}.checkpoint"

    @property
    def network(self) -> Path:
        name = f"network-{_digest(self.config['pretraining'])}-seed{self.seed}"
        return self.cache / f"{name}.safetensors"


def plan(
    data: str,
    spec: Data,
    loaded: datasets.Dataset,
    name: str,
    setting: dict[str, Any],
    seed: int,
    out: Path,
    cache: Path,
) -> Job:
    """The run of a setting on loaded data."""
    method = setting["method"]
    kind = METHODS.get(method) or getattr(cluster, method, None)
    if kind is None:
        raise RefusedError(f"deepclust.cluster has no {method}")
    n, k = len(loaded), spec.n_clusters
    deep = method == "autoencoder + k-means" or method not in METHODS
    given = {name: value for name, value in setting.items() if name not in ("method", "subsample")}
    if deep:
        given = rules(setting, n, k) | given
    if given.get("image_shape") == OF_THE_DATA:
        if loaded.image_shape is None:
            raise RefusedError(f"it takes images, and {data} has none")
        given["image_shape"] = loaded.image_shape
    given["n_clusters"] = k
    subsample = setting.get("subsample", n)
    config = {
        "data": {
            "file": spec.file,
            "n_rows": n,
            "n_features": loaded.X.shape[1],
            "unit_rows": spec.unit_rows,
            "subsample": subsample if subsample < n else None,
        },
        "method": method,
        "given": given,
        "parameters": resolved(kind, given),
        "pretraining": None,
    }
    pretrain = None
    if deep:
        # One autoencoder serves every method but VaDE, whose encoder has a variance too.
        trainer = kind if method == "VaDE" else cluster.DEC
        start = {name: given[name] for name in PRETRAINING if name in given}
        start |= {"n_clusters": k, "max_updates": 0, "n_init": 1}
        values = resolved(trainer, start)
        config["pretraining"] = {"estimator": trainer.__name__} | {
            name: values[name] for name in PRETRAINING if name in values
        }
        for unread in PRETRAINING[-4:]:
            config["parameters"].pop(unread, None)

        def pretrain(**more: Any) -> Any:
            return trainer(**start, random_state=seed, **more)

    def make(**more: Any) -> Any:
        return kind(**_with_regularisers(given), random_state=seed, **more)

    config = json.loads(json.dumps(config))  # tuples as they will be read again
    return Job(data, name, seed, make, pretrain, config, out / data / name / f"{seed}.json", cache)


def resolved(kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """All parameters of an estimator, with those that its preset fills in."""
    known = inspect.signature(kind).parameters
    for name in given:
        if name not in known:
            raise RefusedError(f"{kind.__name__} has no parameter {name}")
    values = {name: parameter.default for name, parameter in known.items()} | given
    presets = getattr(inspect.getmodule(kind), "PRESETS", {})
    for name, value in presets.get(values.get("preset"), {}).items():
        if values.get(name) is None:
            values[name] = value
    return {name: value for name, value in values.items() if name not in NOT_CONFIG}


def _with_regularisers(given: dict[str, Any]) -> dict[str, Any]:
    if "regularisers" not in given:
        return given
    from deepclust.cluster import regularisers

    made = tuple(
        getattr(regularisers, name)(**values) for name, values in given["regularisers"].items()
    )
    return given | {"regularisers": made}


def run(job: Job, loaded: datasets.Dataset, device: str) -> dict[str, Any]:
    """Fit, and return what the JSON file holds of it."""
    X, y = loaded.X, loaded.y
    if job.config["data"]["subsample"] is not None:
        rng = np.random.default_rng(job.seed)
        rows = np.sort(rng.choice(len(X), job.config["data"]["subsample"], replace=False))
        X, y = X[rows], y[rows]
    start = time.perf_counter()
    if job.pretrain is None:
        dense = X.toarray() if hasattr(X, "toarray") else X
        estimator = job.make().fit(np.asarray(dense, np.float32))
        seconds, result = time.perf_counter() - start, {}
    else:
        trained = network(job, X, device)
        estimator = job.make(
            pretrained=trained["network"],
            callbacks=[figures(y)],
            checkpoint=job.checkpoint,
            device=device,
            verbose=int(sys.stderr.isatty()),
        )
        seconds = fit(estimator, X, job.checkpoint)
        result = {
            "pretraining": {name: trained[name] for name in ("seconds", "updates", "history")},
            "updates": estimator.n_iter_,
            "stopped": estimator.stop_reasons_,
            "history": thinned(estimator.history_),
        }
    sizes = np.bincount(estimator.labels_, minlength=job.config["given"]["n_clusters"])
    return scores(y, estimator.labels_) | {
        "sizes": sizes.tolist(),
        "seconds": round(seconds, 1),
        **result,
    }


def network(job: Job, X: Any, device: str) -> dict[str, Any]:
    """The autoencoder that the run begins with, from the cache or trained now."""
    kind = "pretrained network"
    if job.network.exists():
        tree: dict[str, Any] = _files.load_tree(job.network, kind=kind)
        return tree
    assert job.pretrain is not None
    checkpoint = job.network.with_suffix(".checkpoint")
    estimator = job.pretrain(checkpoint=checkpoint, device=device, verbose=int(sys.stderr.isatty()))
    seconds = fit(estimator, X, checkpoint)
    series = estimator.history_.items()
    tree = {
        "network": dict(estimator.network_.state_dict()),
        "seconds": round(seconds, 1),
        "updates": estimator.n_iter_,
        "history": thinned({name: s for name, s in series if not name.startswith("cluster/")}),
    }
    _files.save_tree(job.network, tree, kind=kind)
    return tree


def fit(estimator: Any, X: Any, checkpoint: Path) -> float:
    """Fit, or go on with a fit that was interrupted; the seconds that all of it took."""
    # A process that is killed leaves the time at which it began, and its checkpoint the time up to
    # which its work is kept.
    clock = checkpoint.with_suffix(".clock")
    before = 0.0
    if resume := checkpoint.exists():
        kept = json.loads(clock.read_text())
        before = kept["before"] + max(0.0, checkpoint.stat().st_mtime - kept["began"])
    _files.write_json(clock, {"before": before, "began": time.time()})
    start = time.perf_counter()
    estimator.fit(X, resume=resume)
    seconds = before + time.perf_counter() - start
    checkpoint.unlink(missing_ok=True)
    clock.unlink()
    return seconds


def figures(y: Any) -> Callable[[Any], None]:
    """A callback that adds accuracy and NMI at each refresh to the history."""

    def log(run: Any) -> None:
        if run.stage.name == "cluster" and run.refreshed:
            labels = run.state["labels"].cpu().numpy()
            run.log("acc", metrics.clustering_accuracy(y, labels))
            run.log("nmi", metrics.normalized_mutual_info(y, labels))

    return log


def scores(y: Any, labels: Any) -> dict[str, float]:
    found = {
        "acc": metrics.clustering_accuracy(y, labels),
        "nmi": metrics.normalized_mutual_info(y, labels),
        "ari": metrics.adjusted_rand(y, labels),
    }
    return {name: round(value, 6) for name, value in found.items()}


def thinned(history: dict[str, list[tuple[int, float]]]) -> dict[str, list[list[float]]]:
    """At most POINTS points of each series, the first and the last among them."""
    result = {}
    for name, series in history.items():
        which = np.unique(np.linspace(0, len(series) - 1, POINTS).round().astype(int))
        result[name] = [[series[i][0], float(f"{series[i][1]:.5g}")] for i in which]
    return result


def load(folder: Path, spec: Data) -> datasets.Dataset:
    loaded = datasets.load(folder / spec.file)
    if not spec.unit_rows:
        return loaded
    X = loaded.X / np.linalg.norm(loaded.X, axis=1, keepdims=True)
    return datasets.Dataset(X, loaded.y, loaded.image_shape, loaded.name)


def write(file: Path, record: dict[str, Any]) -> None:
    """JSON of one line a key: short, and readable in a diff."""
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    file.parent.mkdir(parents=True, exist_ok=True)
    _files.write_text(file, "{\n" + ",\n".join(lines) + "\n}\n")


def conditions(threads: int, device: str) -> dict[str, Any]:
    machine = f"{platform.machine()}, {backends()['cpp']}"
    if torch.device(device).type == "cuda":
        machine = torch.cuda.get_device_name(device)
    packages = ("deepclust", "torch", "scikit-learn")
    return {
        "versions": {name: metadata.version(name) for name in packages},
        "machine": machine,
        "threads": threads,
    }


def _digest(config: Any) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


def seeds(text: str) -> list[int]:
    """3 is one seed, and 0-9 are ten."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def jobs(
    args: argparse.Namespace, data: dict[str, Data], settings: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, Callable[[], Job], datasets.Dataset]]:
    """All runs that are asked for: name, what plans it, its data."""
    for where in args.data:
        loaded = load(args.data_dir, data[where])
        for seed in (seed for group in args.seeds for seed in group):
            for name in args.settings:
                fixed = (where, data[where], loaded, name, settings[name], seed)
                yield (
                    f"{where} {name} seed {seed}",
                    lambda fixed=fixed: plan(*fixed, args.out, args.cache / fixed[0]),
                    loaded,
                )


def main(
    argv: Sequence[str] | None = None,
    data: dict[str, Data] = DATA,
    settings: dict[str, dict[str, Any]] = SETTINGS,
) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--data", nargs="+", choices=data, default=list(data), metavar="DATA")
    parser.add_argument(
        "--settings", nargs="+", choices=settings, default=list(settings), metavar="SETTING"
    )
    parser.add_argument("--seeds", nargs="+", type=seeds, default=[[0]], help="such as 0-9")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    failed = 0
    for name, make, loaded in jobs(args, data, settings):
        try:
            job = make()
            if job.done:
                print(f"{name}: done already", flush=True)
                continue
            if args.dry_run:
                print(f"{name}: {'to go on' if job.checkpoint.exists() else 'to run'}", flush=True)
                continue
            job.cache.mkdir(parents=True, exist_ok=True)
            command = (
                f"python -m experiments.run --data-dir DIR --data {job.data}"
                f" --settings {job.setting} --seeds {job.seed} --threads {args.threads}"
                + (f" --device {args.device}" if args.device != "cpu" else "")
            )
            with threadpool_limits(args.threads):
                result = run(job, loaded, args.device)
        except RefusedError as error:
            print(f"{name}: {error}", flush=True)
            failed += 1
        except KeyboardInterrupt:
            print(f"{name}: interrupted; the same command goes on from there", flush=True)
            return 130
        except Exception:
            print(f"{name}: failed\n{traceback.format_exc()}", flush=True)
            failed += 1
        else:
            record = {"command": command, "config": job.config, "seed": job.seed}
            write(job.file, record | conditions(args.threads, args.device) | result)
            print(f"{name}: accuracy {result['acc']:.4f}, {result['seconds']} s", flush=True)
    if failed:
        print(f"{failed} failed", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
