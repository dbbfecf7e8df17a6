"""`deepclust fit`: train a method, and write a folder of results."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import deepclust
from deepclust import _files, datasets, distributed, report
from deepclust.cli import _config, _output, _results
from deepclust.cli._methods import METHODS

# Parameters with an option of their own (None: the command sets them itself).
_OPTIONS = {
    "n_clusters": "--n-clusters",
    "random_state": "--seed",
    "preset": "--preset",
    "device": "--device",
    "backend": "--backend",
    "verbose": "--verbose",
    "callbacks": None,
    "checkpoint": None,
}

_EXAMPLES = """\b
Examples:
  deepclust fit digits --n-clusters 10 --out demo
  deepclust fit points.csv --method kmeans -k 5 --out points
  deepclust fit X.npy --labels y.npy -k 20 --out run --set latent_dim=20
  deepclust fit --config run/config.toml --seed 1 --out run-1
"""


@click.command("fit", short_help="Cluster data and write a folder of results.", epilog=_EXAMPLES)
@click.argument("data")
@click.option(
    "-k",
    "--n-clusters",
    metavar="K",
    type=click.IntRange(min=1),
    required=True,
    help="How many clusters.",
)
@click.option(
    "-o",
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Result folder.",
)
@click.option(
    "--method",
    metavar="METHOD",
    type=click.Choice(list(METHODS)),
    default="dec",
    show_default=True,
    help=f"One of {', '.join(METHODS)}.",
)
@click.option(
    "--labels", metavar="FILE", help="True labels, for scores only: training never sees them."
)
@click.option("--preset", metavar="NAME", help="Lengths and rates: quick (the default) or paper.")
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of all that is drawn at random.",
)
@click.option(
    "--device", metavar="NAME", help="Where to train: cpu (the default), cuda, cuda:1, ..."
)
@click.option(
    "--backend",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Of the kernels: auto, eager, cpp or triton.",
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="CPU threads; by default torch's own.",
)
@click.option("--tsne", is_flag=True, help="Draw t-SNE of the embedding, not principal components.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other parameter of the method; the value is JSON or text. May be given again.",
)
@_config.config_option
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in the result folder.")
@click.option("--overwrite", is_flag=True, help="Replace the results that the folder holds.")
@click.option("--verbose/--quiet", default=None, help="Progress bars; by default on a terminal.")
@_output.json_option
@click.pass_context
def command(
    context: click.Context,
    *,
    data: str,
    n_clusters: int,
    out: Path,
    method: str,
    labels: str | None,
    preset: str | None,
    seed: int,
    device: str | None,
    backend: str,
    threads: int | None,
    tsne: bool,
    assignments: Sequence[str],
    resume: bool,
    overwrite: bool,
    verbose: bool | None,
    as_json: bool,
) -> None:
    """Cluster DATA and write labels, model, history and a report into a folder.

    DATA is a file (.npy, .npz, .csv, IDX), a folder of images, or a name: digits, which is at hand,
    or mnist, usps and fashion-mnist, which are downloaded.

    Ctrl-C keeps a checkpoint in the folder: the same command with --resume ends as if nothing had
    interrupted it. config.toml in the folder repeats the run.

    Started by torchrun, several processes share the data: see docs/distributed.md.
    """
    started, clock = time.monotonic(), time.time()
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("the report needs matplotlib: pip install 'deepclust[plots]'")
    signature = inspect.signature(METHODS[method]).parameters
    given = _config.given(assignments)
    _check_names(method, signature, given)
    parameters = dict(given)
    for name, value in {"preset": preset, "device": device}.items():
        if value is not None:
            if name not in signature:
                raise click.UsageError(f"{_OPTIONS[name]}: --method {method} has no such parameter")
            parameters[name] = value
    if resume and "checkpoint" not in signature:
        raise click.UsageError(f"--resume: --method {method} keeps no checkpoint")
    ranks = distributed.start()
    with ranks.together():
        if ranks.rank == 0:
            _check_folder(out, resume=resume, overwrite=overwrite)
    dataset = datasets.load(data, labels=labels)
    if n_clusters > len(dataset):
        raise click.UsageError(
            f"--n-clusters: got {n_clusters}, more than the {len(dataset)} samples of {data}"
        )
    if dataset.image_shape is not None and "image_shape" in signature:
        parameters.setdefault("image_shape", dataset.image_shape)
    if threads is not None:
        torch.set_num_threads(threads)
    X = dataset.X if ranks.size == 1 else distributed.shard(dataset.X)
    show = (sys.stderr.isatty() if verbose is None else verbose) and ranks.rank == 0
    estimator = METHODS[method](
        n_clusters, random_state=seed, backend=backend, verbose=int(show), **parameters
    )
    recorder = report.Recorder(dataset.y)
    checkpoint = out / _results.CHECKPOINT
    argv = context.obj or []
    settings = {
        "data": data if data in datasets.NAMES else _absolute(data),
        "labels": None if labels is None else _absolute(labels),
        "method": method,
        "n-clusters": n_clusters,
        "preset": preset,
        "seed": seed,
        "device": device,
        "backend": backend,
        "threads": threads,
        "tsne": tsne,
        "set": given,
    }
    try:
        with _results.made(out) if ranks.rank == 0 else nullcontext():
            if "checkpoint" in signature:
                estimator.set_params(callbacks=[recorder], checkpoint=checkpoint)
            with redirect_stdout(sys.stderr):  # k-means prints its iterations
                if resume:
                    # Interrupted after the last refresh, a run has none left that hands the state
                    # over.
                    state = _files.load_tree(checkpoint, kind="checkpoint")["state"]
                    recorder.state = state.get("recorder", recorder.state)
                    estimator.fit(X, resume=True)
                else:
                    estimator.fit(X)
            if isinstance(X, distributed.Shard):
                labels_of_all = X.gather(estimator.labels_)
                if labels_of_all is None:
                    return  # the first process writes
                estimator.labels_ = labels_of_all
            seconds = time.monotonic() - started
            found = _output.clusters(dataset, estimator.labels_, n_clusters)
            run: dict[str, Any] = {
                "recorder": recorder.state,
                "command": f"{_program()} {shlex.join(argv)}",
                "seconds": None if resume else seconds,
                "made_with": report.versions(estimator),
                "fingerprint": _results.fingerprint(dataset),
            }
            with _results.replaced(out) as folder:
                _write(folder, estimator, found["scores"], settings, run)
                report.write_report(
                    folder / _results.REPORT,
                    estimator=estimator,
                    dataset=dataset,
                    recorder=recorder,
                    command=run["command"],
                    seconds=run["seconds"],
                    tsne=tsne,
                )
            checkpoint.unlink(missing_ok=True)
    except KeyboardInterrupt:
        # --overwrite may have found the checkpoint of another run.
        kept = checkpoint.exists() and (resume or checkpoint.stat().st_mtime > clock)
        raise _output.Interrupted(_how_to_resume(argv) if kept else None) from None
    result = {
        "method": method,
        **found,
        "n_iter": estimator.n_iter_,
        "stop_reasons": getattr(estimator, "stop_reasons_", {}),
        "seconds": seconds,
        "resumed": resume,
        "out": str(out),
        "files": [name for name in _results.RESULTS if (out / name).exists()],
    }
    lines = [
        *_output.in_words(found),
        f"time: {report.duration(seconds)}{' since it was resumed' * resume}",
        f"report: {out / _results.REPORT}",
    ]
    _output.conclude("fit", result, lines, as_json)


def _check_names(method: str, signature: Iterable[str], given: Iterable[str]) -> None:
    """Refuse parameters that the method does not have, or that have an option of their own."""
    known = [name for name in signature if name not in _OPTIONS]
    for name in given:
        if name not in known:
            if option := _OPTIONS.get(name):
                raise click.UsageError(f"--set {name}: use {option}")
            hint = _config.nearest(name, known)
            raise click.UsageError(f"--set: {method} has no parameter {name!r}; {hint}")


def _check_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    interrupted = (out / _results.CHECKPOINT).exists()
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if out.exists() and not out.is_dir():
        raise click.UsageError(f"--out: {out} is a file; it takes a folder")
    if resume and not interrupted:
        raise click.UsageError(f"--resume: no interrupted run in {out} (no {_results.CHECKPOINT})")
    if not (resume or overwrite) and out.is_dir() and any(out.iterdir()):
        hint = "--resume goes on with its interrupted run, " * interrupted
        raise click.UsageError(
            f"--out: {out} is not empty; {hint}--overwrite replaces the results in it"
        )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _program() -> str:
    as_module = Path(sys.argv[0]).parts[-2:] == ("deepclust", "__main__.py")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']} -m deepclust"
    return "python -m deepclust" if as_module else "deepclust"


def _how_to_resume(argv: Sequence[str]) -> str:
    again = [word for word in argv if word not in ("--overwrite", "--resume")]
    return f"{_program()} {shlex.join([*again, '--resume'])}"


def _write(
    folder: Path,
    estimator: Any,
    scores: Mapping[str, float] | None,
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
) -> None:
    """Write everything but the report."""
    labels = estimator.labels_.astype(np.int64, copy=False)
    _files.write_npy(folder / _results.LABELS, labels)
    estimator.save(folder / _results.MODEL)
    if hasattr(estimator, "history_"):
        _files.write_json(folder / _results.HISTORY, estimator.history_)
    if scores is not None:
        _files.write_json(folder / _results.METRICS, scores, indent=2)
    chosen = {name: value for name, value in settings.items() if value not in (None, {})}
    head = (
        f"# deepclust {deepclust.__version__}; to repeat the run:"
        " deepclust fit --config config.toml --out OTHER\n"
    )
    _files.write_text(folder / _results.CONFIG, head + _config.toml(chosen))
    _files.save_tree(folder / _results.RUN, dict(run), kind="run")
