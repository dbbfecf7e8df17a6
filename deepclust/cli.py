"""The command `deepclust`: fit a method to data and write a report, or list the backends.

Exit codes: 0; 2 for input that cannot be used, with one line on stderr; 130 after Ctrl-C.
"""

from __future__ import annotations

import difflib
import dis
import importlib.util
import inspect
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import click
import numpy as np
import torch

import deepclust
from deepclust import _files, datasets, distributed, metrics, plots, report
from deepclust.cluster import (
    ABC,
    ACAI,
    DCAN,
    DCN,
    DEC,
    DEPICT,
    IDEC,
    DeepClustering,
    KMeans,
    MiniBatchKMeans,
    VaDE,
)

METHODS: dict[str, Any] = {
    "dec": DEC,
    "idec": IDEC,
    "depict": DEPICT,
    "dcn": DCN,
    "abc": ABC,
    "vade": VaDE,
    "acai": ACAI,
    "dcan": DCAN,
    "deep-clustering": DeepClustering,
    "kmeans": KMeans,
    "mini-batch-kmeans": MiniBatchKMeans,
}
CHECKPOINT = "checkpoint.safetensors"
RESULTS = (
    "labels.npy",
    "model.safetensors",
    "centroids.npy",
    "history.json",
    "metrics.json",
    "report.html",
)
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
  deepclust fit mnist.npz --n-clusters 10 --preset paper --out mnist-dec
  deepclust fit points.csv --method kmeans --n-clusters 5 --out points
  deepclust fit X.npy --labels y.npy --n-clusters 20 --out run --set latent_dim=20
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    epilog=_EXAMPLES,
)
@click.version_option(deepclust.__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Deep clustering from the command line."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
def backends() -> None:
    """Show which backends run here, and why others do not."""
    threads = torch.get_num_threads()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = {
        "deepclust": deepclust.__version__,
        "torch": f"{torch.__version__}, {threads} thread{'s' * (threads != 1)}",
        "GPU": ", ".join(gpus) or "torch finds none",
        **deepclust.backends(),
    }
    for name, what in rows.items():
        click.echo(f"{name:<10} {what}")


@cli.command(epilog=_EXAMPLES)
@click.argument("data")
@click.option("-k", "--n-clusters", type=click.IntRange(min=1), required=True, help="Clusters, K.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Result folder.")
@click.option("--method", type=click.Choice(list(METHODS)), default="dec", show_default=True)
@click.option("--labels", help="File of true labels, for scores only: training never sees them.")
@click.option("--preset", help="Lengths and rates: quick (the default) or paper.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--device", help="Where to train: cpu (the default), cuda, cuda:1, ...")
@click.option("--backend", default="auto", show_default=True, help="auto, eager, cpp or triton.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default torch's own.")
@click.option("--tsne", is_flag=True, help="Draw t-SNE of the embedding, not principal components.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other parameter of the method; the value is JSON or text. May be given again.",
)
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in the result folder.")
@click.option("--overwrite", is_flag=True, help="Replace the results that the folder holds.")
@click.option("--verbose/--quiet", default=None, help="Progress bars; by default on a terminal.")
@click.pass_context
def fit(
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
) -> None:
    """Cluster DATA and write labels, model, history and a report into a folder.

    DATA is a file (.npy, .npz, .csv, IDX), a folder of images, or a name: digits, which is at hand,
    or mnist, usps and fashion-mnist, which are downloaded.

    Ctrl-C keeps a checkpoint in the folder: the same command with --resume ends as if nothing had
    interrupted it.

    Started by torchrun, several processes share the data: see docs/distributed.md.
    """
    started, clock = time.monotonic(), time.time()
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("the report needs matplotlib: pip install 'deepclust[plots]'")
    signature = inspect.signature(METHODS[method]).parameters
    parameters = _parameters(method, signature, assignments)
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
    checkpoint = out / CHECKPOINT
    argv = context.obj or []
    try:
        with _folder(out) if ranks.rank == 0 else nullcontext():
            if "checkpoint" in signature:
                estimator.set_params(callbacks=[recorder], checkpoint=checkpoint)
            if resume:
                # Interrupted after the last refresh, a run has none left that hands the state over.
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
            with _results(out) as folder:
                agreement = _write_numbers(folder, estimator, dataset)
                report.write_report(
                    folder / "report.html",
                    estimator=estimator,
                    dataset=dataset,
                    recorder=recorder,
                    command=f"{_program()} {shlex.join(argv)}",
                    seconds=None if resume else seconds,
                    tsne=tsne,
                )
            checkpoint.unlink(missing_ok=True)
    except KeyboardInterrupt:
        # --overwrite may have found the checkpoint of another run.
        kept = checkpoint.exists() and (resume or checkpoint.stat().st_mtime > clock)
        raise _InterruptedError(_how_to_resume(argv) if kept else "") from None
    _summarise(estimator, dataset, agreement)
    click.echo(f"time: {report.duration(seconds)}{' since it was resumed' * resume}")
    click.echo(f"report: {out / 'report.html'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0, 2 for input that cannot be used, 130 after Ctrl-C.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        deepclust ...
        0
    """
    args = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = cli.main(args, prog_name="deepclust", standalone_mode=False, obj=args)
        except _InterruptedError as error:
            click.echo(f"\ndeepclust: interrupted{error}", err=True)
            return 130
        except click.Abort:
            click.echo("\ndeepclust: interrupted", err=True)
            return 130
        except click.ClickException as error:
            return _fail(error.format_message())
        except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
            if not isinstance(error, OSError) and not _is_check(error):
                raise
            if isinstance(error, OSError) and error.strerror and error.filename:
                return _fail(f"{error.filename}: {error.strerror}")
            return _fail(str(error))
    return code if isinstance(code, int) else 0


class _InterruptedError(Exception):
    """Ctrl-C stopped a fit; the text says how to go on."""


def _fail(message: str) -> int:
    click.echo(f"deepclust: error: {' '.join(message.split())}", err=True)
    return 2


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    click.echo(f"deepclust: warning: {message}", err=True)


def _is_check(error: Exception) -> bool:
    """Whether a `raise` of this package, or of scikit-learn's validation, made the error.

    Any other error of these types is a bug, which needs its traceback.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    module = trace.tb_frame.f_globals.get("__name__", "")
    if not module.startswith(("deepclust.", "sklearn.utils.")):
        return False
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _parameters(
    method: str, signature: Iterable[str], assignments: Sequence[str]
) -> dict[str, Any]:
    """The parameters that --set gives, each value read as JSON where it is JSON, else as text."""
    known = [name for name in signature if name not in _OPTIONS]
    parameters: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set: got {assignment!r}; it takes NAME=VALUE")
        if name not in known:
            if option := _OPTIONS.get(name):
                raise click.UsageError(f"--set {name}: use {option}")
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise click.UsageError(f"--set: {method} has no parameter {name!r}; {hint}")
        try:
            parameters[name] = json.loads(text)
        except json.JSONDecodeError:
            parameters[name] = text
    return parameters


def _check_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if out.exists() and not out.is_dir():
        raise click.UsageError(f"--out: {out} is a file; it takes a folder")
    if resume and not (out / CHECKPOINT).exists():
        raise click.UsageError(f"--resume: no interrupted run in {out} (no {CHECKPOINT})")
    if not (resume or overwrite) and out.is_dir() and any(out.iterdir()):
        hint = "--resume goes on with its interrupted run, " * (out / CHECKPOINT).exists()
        raise click.UsageError(
            f"--out: {out} is not empty; {hint}--overwrite replaces the results in it"
        )


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make the folder and those above it; if the block fails, remove those that are left empty."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=out).close()  # learn before the training whether one may write
        yield
    except BaseException:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


@contextmanager
def _results(out: Path) -> Iterator[Path]:
    """A folder to write the results to, which replace those of `out` once all are written."""
    folder = Path(tempfile.mkdtemp(prefix=".deepclust-", dir=out))
    try:
        yield folder
        for name in RESULTS:
            if (folder / name).exists():
                os.replace(folder / name, out / name)
            else:
                (out / name).unlink(missing_ok=True)  # of an earlier run
    finally:
        shutil.rmtree(folder)


def _program() -> str:
    as_module = Path(sys.argv[0]).parts[-2:] == ("deepclust", "__main__.py")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']} -m deepclust"
    return "python -m deepclust" if as_module else "deepclust"


def _how_to_resume(argv: Sequence[str]) -> str:
    again = [word for word in argv if word not in ("--overwrite", "--resume")]
    return f"; to go on: {_program()} {shlex.join([*again, '--resume'])}"


def _write_numbers(folder: Path, estimator: Any, dataset: datasets.Dataset) -> dict[str, float]:
    """Write everything but the report; return the scores, none where there are no labels."""
    _files.write_npy(folder / "labels.npy", estimator.labels_.astype(np.int64, copy=False))
    if hasattr(estimator, "history_"):
        estimator.save(folder / "model.safetensors")
        _files.write_json(folder / "history.json", estimator.history_)
    else:
        _files.write_npy(folder / "centroids.npy", estimator.cluster_centers_)
    if dataset.y is None:
        return {}
    agreement = report.scores(dataset.y, estimator.labels_)
    _files.write_json(folder / "metrics.json", agreement, indent=2)
    return agreement


def _summarise(estimator: Any, dataset: datasets.Dataset, agreement: dict[str, float]) -> None:
    n, n_features = dataset.X.shape
    counts = metrics.count_labels(estimator.labels_, estimator.n_clusters)
    sizes = f"{estimator.n_clusters} clusters of {counts.min():,} to {counts.max():,}"
    click.echo(f"{dataset.name}: {n:,} samples of {n_features:,} features in {sizes}")
    if agreement:
        click.echo(", ".join(f"{plots.SCORES[k]} {100 * v:.1f} %" for k, v in agreement.items()))
