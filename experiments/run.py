"""Methods x data x seeds: one JSON file a run.

    python -m experiments.run --data-dir DIR --data optdigits --settings dec k-means --seeds 0-9

Data and settings are those of experiments/settings.py. A run that ends writes
OUT/DATA/SETTING/SEED.json; one that is there already is skipped, and one that was interrupted goes
on from its checkpoint. Autoencoders are trained once a seed and shared by all settings that begin
with the same; they, the checkpoints and the final embeddings lie in the cache. Labels are read for
the figures alone. `python -m experiments.tables` makes docs/results.md of the JSON, and
`python -m experiments.figures` pictures of the embeddings.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
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
from deepclust.cluster._composition import Part
from experiments import geometry
from experiments.settings import DATA, OF_THE_DATA, SETTINGS, Data, rules

HERE = Path(__file__).parent
POINTS = 40  # of a series in the JSON, at most


class DenoisedKMeans(cluster.DEPICT):
    """k-means on the codes of DEPICT's autoencoder, which is all that is trained."""

    def fit(self, X: Any, y: Any = None, *, resume: bool = False) -> DenoisedKMeans:
        """Train, then cluster."""
        super().fit(X, resume=resume)
        options = {"n_init": self.n_init, "random_state": self.random_state}
        self.kmeans_ = cluster.KMeans(self.n_clusters, **options).fit(self.transform(X))
        self.labels_ = self.kmeans_.labels_
        return self

    def predict(self, X: Any) -> Any:
        """The nearest centroid."""
        return self.kmeans_.predict(self.transform(X))


# Methods that are not names of deepclust.cluster.
METHODS: dict[str, Any] = {
    "k-means": cluster.KMeans,
    "scikit-learn k-means": sklearn.cluster.KMeans,
    "spectral": sklearn.cluster.SpectralClustering,
    "autoencoder + k-means": cluster.DEC,
    "DEPICT autoencoder + k-means": DenoisedKMeans,
}
SHALLOW = ("k-means", "scikit-learn k-means", "spectral")

# The parameters of an estimator that its pre-training reads, and those that nothing else does.
PRETRAINING_ALONE = ("layer_updates", "dropout", "tune_updates", "pretrain_lr")
PRETRAINING = (
    *("preset", "network", "image_shape", "features", "augment", "hidden", "latent_dim", "scale"),
    *("batch_size", "optimizer", "autocast"),
    *("corruption", "joint", "hidden_weight", "clean_gradient"),  # of DEPICT's
    *PRETRAINING_ALONE,
)
# Estimators that train their own autoencoder, and what it takes beside PRETRAINING. The others
# begin with DEC's, and the variances of VaDE's begin with its clustering.
OWN_PRETRAINING: dict[Any, tuple[str, ...]] = {
    cluster.DEPICT: (),
    cluster.ACAI: ("lam", "gamma", "critic_lr"),
}
# Those that do not change what is computed, or are no setting's own.
NOT_CONFIG = (
    *("backend", "callbacks", "checkpoint", "copy_x", "cuda_graphs", "device", "n_jobs"),
    *("compile", "pretrained", "random_state", "verbose"),
)


class RefusedError(Exception):
    """A run that cannot begin; the message says why."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        data, setting, seed: its names.
        config: what it computes, as JSON holds it.
        make: the estimator, with keywords in addition.
        pretrain: the same for the one that trains the autoencoder; None where there is none.
    """

    data: str
    setting: str
    seed: int
    config: dict[str, Any]
    make: Callable[..., Any]
    pretrain: Callable[..., Any] | None

    def file(self, out: Path) -> Path:
        return out / self.data / self.setting / f"{self.seed}.json"

    def checkpoint(self, cache: Path) -> Path:
        name = f"{self.setting}-{_digest(self.config)}-seed{self.seed}.checkpoint"
        return cache / self.data / name

    def codes(self, cache: Path) -> Path:
        return cache / self.data / f"{self.setting}-{_digest(self.config)}-seed{self.seed}.npy"

    def network(self, cache: Path) -> Path:
        name = f"network-{_digest(self.config['pretraining'])}-seed{self.seed}.safetensors"
        return cache / self.data / name


def plan(
    data: str, name: str, seed: int, spec: Data, setting: dict[str, Any], loaded: datasets.Dataset
) -> Job:
    """The run of a setting on loaded data."""
    method = setting["method"]
    kind = METHODS.get(method) or getattr(cluster, method, None)
    if kind is None:
        raise RefusedError(f"deepclust.cluster has no {method}")
    n, k = len(loaded) - spec.held_out, spec.n_clusters
    if spec.held_out and not hasattr(kind, "predict"):
        raise RefusedError(f"{method} cannot predict the rows that are held out")
    given = {key: value for key, value in setting.items() if key not in ("method", "subsample")}
    ruled = {} if method in SHALLOW else rules(setting, n, k)
    given |= {key: value for key, value in ruled.items() if key not in given}
    given["n_clusters"] = k
    if given.get("image_shape") == OF_THE_DATA:
        if loaded.image_shape is None:
            raise RefusedError("the setting takes images, which these data are not")
        given["image_shape"] = loaded.image_shape
    subsample = setting.get("subsample", n)
    config = {
        "data": {
            "file": spec.file,
            "n_rows": n,
            "n_features": loaded.X.shape[1],
            "unit_rows": spec.unit_rows,
            "subsample": subsample if subsample < n else None,
            **{name: value for name in ("pool", "held_out") if (value := getattr(spec, name))},
        },
        "method": method,
        "given": given,
        "parameters": resolved(kind, given),
        "pretraining": None,
    }
    pretrain = None
    if method not in SHALLOW:
        trainer = next((own for own in OWN_PRETRAINING if issubclass(kind, own)), cluster.DEC)
        names = (*PRETRAINING, *OWN_PRETRAINING.get(trainer, ()))
        start = {key: given[key] for key in names if key in given}
        if kind is cluster.DCAN:
            start.pop("preset", None)  # they differ in the clustering alone
        start |= {"n_clusters": k, "max_updates": 0, "n_init": 1}
        values = resolved(trainer, start)
        config["pretraining"] = {key: values[key] for key in names if key in values}
        parts = given.get("regularisers", {})
        if parts := {name: parts[name] for name in parts if extends_pretraining(name)}:
            start["regularisers"] = config["pretraining"]["regularisers"] = parts
        for key in PRETRAINING_ALONE:
            config["parameters"].pop(key, None)

        def pretrain(**more: Any) -> Any:
            return trainer(**_with_parts(start), random_state=seed, **more)

    def make(**more: Any) -> Any:
        return kind(**_with_parts(given), random_state=seed, **more)

    config = json.loads(json.dumps(config, default=repr))  # as it will be read again
    return Job(data, name, seed, config, make, pretrain)


def resolved(kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """All parameters of an estimator, with those that its preset fills in."""
    known = inspect.signature(kind).parameters
    for name in given:
        if name not in known:
            raise RefusedError(f"{kind.__name__} has no parameter {name}")
    values = {name: parameter.default for name, parameter in known.items()} | given
    presets = getattr(kind, "PRESETS", {})
    for name, value in presets.get(values.get("preset"), {}).items():
        if values.get(name) is None:
            values[name] = value
    return {name: value for name, value in values.items() if name not in NOT_CONFIG}


def extends_pretraining(regulariser: str) -> bool:
    """Whether the autoencoder is trained with this regulariser before there are clusters too."""
    return getattr(cluster, regulariser).extend_pretraining is not Part.extend_pretraining


def _with_parts(given: dict[str, Any]) -> dict[str, Any]:
    parts = {
        name: tuple(getattr(cluster, part)(**values) for part, values in given[name].items())
        for name in ("regularisers", "interventions")
        if name in given
    }
    return given | parts


def is_done(job: Job, file: Path) -> bool:
    """Whether the file holds this run; another one is not written over."""
    if not file.exists():
        return False
    was, now = _flat(json.loads(file.read_text())["config"]), _flat(job.config)
    changed = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    if changed:
        raise RefusedError(
            f"{file} holds a run of another configuration: "
            + "; ".join(f"{name} was {was.get(name)}, is {now.get(name)}" for name in changed)
        )
    return True


def _flat(config: dict[str, Any]) -> dict[str, str]:
    flat = {}
    for part, values in config.items():
        for name, value in (values if isinstance(values, dict) else {"": values}).items():
            flat[f"{part} {name}".strip()] = json.dumps(value)
    return flat


def run(job: Job, loaded: datasets.Dataset, cache: Path, device: str) -> dict[str, Any]:
    """Fit, and return what JSON holds of the result."""
    X: Any = loaded.X
    y: Any = loaded.y
    n = job.config["data"]["n_rows"]
    (X, later), (y, later_y) = ((values[:n], values[n:]) for values in (X, y))
    if job.config["data"]["subsample"] is not None:
        rng = np.random.default_rng(job.seed)
        rows = np.sort(rng.choice(n, job.config["data"]["subsample"], replace=False))
        X, y = X[rows], y[rows]
    result: dict[str, Any] = {}
    if job.pretrain is None:
        X, later = (
            np.asarray(rows.toarray() if hasattr(rows, "toarray") else rows, np.float32)
            for rows in (X, later)
        )
        start = time.perf_counter()
        estimator = job.make().fit(X)
        seconds = time.perf_counter() - start
    else:
        trained = network(job, X, cache, device)
        checkpoint = job.checkpoint(cache)
        estimator = job.make(
            pretrained=trained["network"],
            callbacks=[handed_on(trained.get("opponents", {})), figures(y)],
            checkpoint=checkpoint,
            device=device,
            verbose=int(sys.stderr.isatty()),
        )
        seconds = fit(estimator, X, checkpoint)
        codes = estimator.transform(X)
        _files.write_npy(job.codes(cache), codes)
        result = {
            "embedding": geometry.describe(codes, estimator.labels_, y, job.seed),
            "pretraining": {name: trained[name] for name in ("seconds", "updates", "history")},
            "updates": estimator.n_iter_,
            "stopped": estimator.stop_reasons_,
            "history": thinned(estimator.history_),
        }
    sizes = np.bincount(estimator.labels_, minlength=job.config["given"]["n_clusters"])
    if len(later_y):
        result["held_out"] = scores(later_y, estimator.predict(later))
    return {
        **scores(y, estimator.labels_),
        "sizes": sizes.tolist(),
        "seconds": round(seconds, 1),
        **result,
    }


def scores(y: Any, labels: Any) -> dict[str, float]:
    """Accuracy, NMI and ARI."""
    found = {
        "acc": metrics.clustering_accuracy(y, labels),
        "nmi": metrics.normalized_mutual_info(y, labels),
        "ari": metrics.adjusted_rand(y, labels),
    }
    return {name: round(value, 6) for name, value in found.items()}


def network(job: Job, X: Any, cache: Path, device: str) -> dict[str, Any]:
    """The autoencoder that the run begins with, and its opponents: cached, or trained now."""
    file, kind = job.network(cache), "pretrained network"
    if file.exists():
        tree: dict[str, Any] = _files.load_tree(file, kind=kind)
        return tree
    assert job.pretrain is not None
    checkpoint = file.with_suffix(".checkpoint")
    estimator = job.pretrain(checkpoint=checkpoint, device=device, verbose=int(sys.stderr.isatty()))
    seconds = fit(estimator, X, checkpoint)
    series = estimator.history_.items()
    tree = {
        "network": dict(estimator.network_.state_dict()),
        "opponents": dict(estimator._method.opponents.state_dict()),
        "seconds": round(seconds, 1),
        "updates": estimator.n_iter_,
        "history": thinned({name: s for name, s in series if not name.startswith("cluster/")}),
    }
    _files.save_tree(file, tree, kind=kind)
    return tree


def fit(estimator: Any, X: Any, checkpoint: Path) -> float:
    """Fit, or go on with a fit that was interrupted; the seconds that went into the result."""
    # Of a process that was killed we know when it began, and from the checkpoint's own time how
    # long it had worked for what is kept.
    clock = checkpoint.with_suffix(".clock")
    before = 0.0
    if resume := checkpoint.exists():
        last = json.loads(clock.read_text())
        before = last["before"] + max(0.0, checkpoint.stat().st_mtime - last["began"])
    _files.write_json(clock, {"before": before, "began": time.time()})
    start = time.perf_counter()
    estimator.fit(X, resume=resume)
    seconds = before + time.perf_counter() - start
    checkpoint.unlink(missing_ok=True)
    clock.unlink()
    return seconds


def handed_on(opponents: dict[str, Any]) -> Callable[[Any], None]:
    """A callback that lets the critic, as the network, go on from its pre-training."""

    def load(run: Any) -> None:
        if opponents and run.stage.name == "cluster" and run.update == 0:
            # Not strict: a variational encoder's critic has a layer more, which it does not use.
            unknown = run.method.opponents.load_state_dict(opponents, strict=False).unexpected_keys
            assert not unknown, unknown

    return load


def figures(y: Any) -> Callable[[Any], None]:
    """A callback that adds accuracy and NMI to the history at each refresh of the clustering."""

    def log(run: Any) -> None:
        if run.stage.name == "cluster" and run.refreshed:
            labels = run.state["labels"].cpu().numpy()
            run.log("acc", metrics.clustering_accuracy(y, labels))
            run.log("nmi", metrics.normalized_mutual_info(y, labels))

    return log


def thinned(history: dict[str, list[tuple[int, float]]]) -> dict[str, list[list[float]]]:
    """At most POINTS points of each series, the first and the last among them."""
    result = {}
    for name, series in history.items():
        which = np.unique(np.linspace(0, len(series) - 1, POINTS).round().astype(int))
        result[name] = [[series[i][0], float(f"{series[i][1]:.5g}")] for i in which]
    return result


def load(folder: Path, spec: Data) -> datasets.Dataset:
    loaded = datasets.load(folder / spec.file)
    X: Any = loaded.X
    y: Any = loaded.y
    shape = loaded.image_shape
    if spec.last is not None:
        X, y = X[-spec.last :], y[-spec.last :]
    if spec.pool:
        height, width = (side // spec.pool for side in shape[:2])
        blocks = X.reshape(len(X), height, spec.pool, width, spec.pool)
        X, shape = blocks.mean((2, 4), dtype=np.float32).reshape(len(X), -1), (height, width)
    if spec.unit_rows:
        X = X / np.linalg.norm(X, axis=1, keepdims=True)
    return datasets.Dataset(X, y, shape, loaded.name)


def conditions(threads: int, device: str) -> dict[str, Any]:
    on_gpu = torch.device(device).type == "cuda"
    cpu = f"{platform.machine()} of {os.cpu_count()} cores, C++ kernels {backends()['cpp']}"
    packages = ("deepclust", "torch", "scikit-learn")
    return {
        "versions": {name: metadata.version(name) for name in packages},
        "machine": f"{torch.cuda.get_device_name(device)}, {cpu}" if on_gpu else cpu,
        "device": device,
        "threads": threads,
    }


def command(
    data: str, settings: Sequence[str], seeds: Sequence[int], threads: int, device: str
) -> str:
    """What gives these runs; where the data lie is the reader's affair."""
    return (
        f"python -m experiments.run --data-dir DIR --data {data} --settings {' '.join(settings)}"
        f" --seeds {' '.join(spans(seeds))} --threads {threads}"
        + (f" --device {device}" if device != "cpu" else "")
    )


def spans(seeds: Sequence[int]) -> Iterator[str]:
    """Seeds as --seeds takes them: 0-9, or 3."""
    seeds = sorted(seeds)
    first = 0
    for i, seed in enumerate(seeds):
        if i + 1 == len(seeds) or seeds[i + 1] > seed + 1:
            yield f"{seeds[first]}-{seed}" if first < i else str(seed)
            first = i + 1


def _seeds(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def _digest(config: Any) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


def write(file: Path, record: dict[str, Any]) -> None:
    """JSON with a line a key: short, and readable in a diff."""
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    file.parent.mkdir(parents=True, exist_ok=True)
    _files.write_text(file, "{\n" + ",\n".join(lines) + "\n}\n")


def advance(job: Job, loaded: datasets.Dataset, args: argparse.Namespace) -> str:
    """Do what is left to do of a run; says what that was."""
    file, checkpoint = job.file(args.out), job.checkpoint(args.cache)
    if is_done(job, file):
        return "done already"
    if args.dry_run:
        return "interrupted, to go on" if checkpoint.exists() else "to run"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(args.threads):
        result = run(job, loaded, args.cache, args.device)
    line = command(job.data, [job.setting], [job.seed], args.threads, args.device)
    record = {"command": line, "config": job.config, "seed": job.seed}
    write(file, record | conditions(args.threads, args.device) | result)
    return f"accuracy {result['acc']:.4f}, {result['seconds']} s"


def main(
    argv: Sequence[str] | None = None,
    data: dict[str, Data] = DATA,
    settings: dict[str, dict[str, Any]] = SETTINGS,
) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="the folder of data sets")
    add("--data", nargs="+", choices=data, default=list(data), metavar="DATA")
    add("--settings", nargs="+", choices=settings, default=list(settings), metavar="SETTING")
    add("--seeds", nargs="+", type=_seeds, default=[[0]], help="such as 0-9", metavar="SEED")
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--out", type=Path, default=HERE / "results")
    add("--cache", type=Path, default=HERE / "cache")
    add("--dry-run", action="store_true", help="only say what would run")
    args = parser.parse_args(argv)
    for name in args.data:
        if not (args.data_dir / data[name].file).exists():
            parser.error(f"--data-dir: {args.data_dir} has no {data[name].file}")
    torch.set_num_threads(args.threads)
    failures = 0
    for where in args.data:
        loaded = load(args.data_dir, data[where])
        for seed in (seed for span in args.seeds for seed in span):
            for name in args.settings:
                try:
                    job = plan(where, name, seed, data[where], settings[name], loaded)
                    outcome = advance(job, loaded, args)
                except KeyboardInterrupt:
                    print(f"{where} {name} seed {seed}: interrupted; the same command goes on")
                    return 130
                except RefusedError as error:
                    outcome, failures = f"refused: {error}", failures + 1
                except Exception:
                    outcome, failures = f"failed\n{traceback.format_exc()}", failures + 1
                print(f"{where} {name} seed {seed}: {outcome}", flush=True)
    if failures:
        print(f"{failures} refused or failed")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
