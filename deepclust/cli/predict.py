"""`deepclust predict`: the labels that a fitted model gives to rows."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from deepclust import _files, datasets, report
from deepclust.cli import _config, _output, _results
from deepclust.cli._methods import name_of

_EXAMPLES = """\b
Examples:
  deepclust predict run X.npy --out labels.npy
  deepclust predict run/model.safetensors new.npy --out z.npy --transform
  deepclust predict run new.npy --out q.npy --proba
  deepclust predict run digits --out labels.npy --overwrite --json
"""


@click.command("predict", short_help="Label data by a fitted model.", epilog=_EXAMPLES)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data")
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="The file to write, a .npy.",
)
@click.option("--proba", is_flag=True, help="Write the soft assignment (N, K), not labels.")
@click.option(
    "--transform",
    is_flag=True,
    help="Write the embedding (N, D), of k-means the distances (N, K), not labels.",
)
@click.option("--labels", metavar="FILE", help="True labels, for scores; by default DATA's own.")
@click.option(
    "--device", metavar="NAME", help="Where to compute; by default where the model was fitted."
)
@click.option(
    "--backend", metavar="NAME", help="auto, eager, cpp or triton; by default as in the fit."
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="CPU threads; by default torch's own.",
)
@_config.config_option
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@_output.json_option
def command(
    *,
    model: Path,
    data: str,
    out: Path,
    proba: bool,
    transform: bool,
    labels: str | None,
    device: str | None,
    backend: str | None,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Label DATA by the nearest cluster of MODEL, and write a .npy file.

    MODEL is the folder that `deepclust fit` wrote, or the file model.safetensors in it. DATA is
    what fit takes, with as many features; a large .npy is read, and its result written, block by
    block.

    The file holds labels (N,) int64; with --proba or --transform float32 (k-means: the type of its
    centroids). It appears whole or not at all.
    """
    started = time.monotonic()
    if proba and transform:
        raise click.UsageError("--proba and --transform exclude each other")
    if labels is not None and (proba or transform):
        raise click.UsageError(
            "--labels: scores are those of labels; leave out --proba and --transform"
        )
    if out.suffix != ".npy":
        raise click.UsageError(f"--out: got {out}; it takes a name that ends in .npy")
    if out.exists() and not overwrite:
        raise click.UsageError(f"--out: {out} exists; --overwrite replaces it")
    estimator = _results.model_of(model, device, backend)
    if proba and not hasattr(estimator, "predict_proba"):
        raise click.UsageError(
            f"--proba: {name_of(estimator)} has no soft assignment; --transform gives distances"
        )
    dataset = datasets.load(data, labels=labels)
    if threads is not None:
        torch.set_num_threads(threads)
    what = "proba" if proba else "transform" if transform else "labels"
    with _files.atomic_path(out) as temporary, redirect_stdout(sys.stderr):
        shape = _write(temporary, estimator, dataset.X, what)
        found: dict[str, Any] = {}
        if what == "labels":
            written = datasets.open_npy(temporary)
            found = _output.clusters(dataset, written, estimator.n_clusters)
    seconds = time.monotonic() - started
    result = {
        "method": name_of(estimator),
        "data": dataset.name,
        "n_samples": dataset.X.shape[0],
        "n_features": dataset.X.shape[1],
        **found,
        "wrote": what,
        "shape": shape,
        "seconds": seconds,
        "out": str(out),
    }
    lines = _output.in_words(found) if found else []
    size = " x ".join(f"{n:,}" for n in shape)
    lines += [f"time: {report.duration(seconds)}", f"{what}: {out} ({size})"]
    _output.conclude("predict", result, lines, as_json)


def _write(path: Path, estimator: Any, X: Any, what: str) -> tuple[int, ...]:
    """Write what is asked for, block by block where X is a file; its shape."""
    if what == "labels":
        _files.write_npy(path, estimator.predict(X).astype(np.int64, copy=False))
        return (X.shape[0],)
    if what == "proba":
        function, width = estimator.predict_proba, estimator.n_clusters
    else:
        function, width = estimator.transform, len(estimator.get_feature_names_out())
    dtype = estimator.cluster_centers_.dtype if not hasattr(estimator, "network_") else np.float32
    shape = (X.shape[0], width)
    with _files.npy_to_fill(path, shape, np.dtype(dtype).name) as array:
        function(X, out=array)
    return shape
