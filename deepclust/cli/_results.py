"""The folder that a fit writes, and what other commands find in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import click
import numpy as np

from deepclust import _files, datasets
from deepclust.cluster import load

LABELS = "labels.npy"
MODEL = "model.safetensors"
HISTORY = "history.json"
METRICS = "metrics.json"
CONFIG = "config.toml"
RUN = "report.safetensors"  # what the report is made of, beside the model and the data
REPORT = "report.html"
RESULTS = (LABELS, MODEL, HISTORY, METRICS, CONFIG, RUN, REPORT)
CHECKPOINT = "checkpoint.safetensors"

_ROWS = 1000  # that tell a data set from others


@contextmanager
def made(out: Path) -> Iterator[None]:
    """Make the folder and those above it; if the block fails, remove those that are left empty."""
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=out).close()  # learn before the training whether one may write
        yield
    except BaseException:
        for folder in new:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
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


def model_of(path: Path, device: str | None = None, backend: str | None = None) -> Any:
    """The estimator of a model file, or of a result folder."""
    if path.is_dir():
        if not (path / MODEL).exists():
            raise click.UsageError(f"{path}: no {MODEL} in it; `deepclust fit` writes one")
        path = path / MODEL
    estimator = load(path, device=device)
    return estimator if backend is None else estimator.set_params(backend=backend)


def fingerprint(dataset: datasets.Dataset) -> str:
    """What tells data from others: their size, and some rows."""
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), _ROWS)).astype(np.intp)
    some: Any = _files.picked(dataset.X, rows)  # type: ignore[arg-type]  # sparse ones, too
    some = some.toarray() if hasattr(some, "toarray") else some
    about = f"{dataset.X.shape} {some.dtype}"
    return blake2b(
        about.encode() + np.ascontiguousarray(some).tobytes(), digest_size=16
    ).hexdigest()
