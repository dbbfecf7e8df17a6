"""What commands say: text or one JSON object on stdout, all else on stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
import numpy as np

import deepclust
from deepclust import _files, datasets, metrics, plots, report

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Say what came out as one JSON object on stdout."
)


class Interrupted(Exception):  # noqa: N818  # it is no error
    """Ctrl-C stopped a fit.

    Attributes:
        resume: The command that goes on; None where nothing was kept to go on from.
    """

    def __init__(self, resume: str | None) -> None:
        super().__init__("interrupted")
        self.resume = resume


def colour() -> bool | None:
    """Whether there are colours: None is on a terminal; never where NO_COLOR is set."""
    return False if os.environ.get("NO_COLOR") else None


def say(line: str) -> None:
    """Print a line on stdout."""
    click.echo(line, color=colour())


def conclude(command: str, result: dict[str, Any], lines: Iterable[str], as_json: bool) -> None:
    """Print what a command has come to, as lines or as one JSON object."""
    if as_json:
        about = {"command": command, "version": deepclust.__version__}
        click.echo(_files.json_text({**about, **result}))
        return
    for line in lines:
        say(line)


def note(message: str) -> None:
    """Print a remark on stderr."""
    click.echo(f"deepclust: {message}", err=True, color=colour())


def warn(message: str) -> None:
    """Print a warning on stderr, in one line."""
    head = click.style("warning:", fg="yellow")
    click.echo(f"deepclust: {head} {message}", err=True, color=colour())


def fail(message: str, code: int, as_json: bool, **more: Any) -> int:
    """Say why a command ends: a line on stderr and, with --json, an object on stdout."""
    head = ""
    if code != 130:
        head, message = click.style("error: ", fg="red"), " ".join(message.split())
    click.echo(f"deepclust: {head}{message}", err=True, color=colour())
    if as_json:
        click.echo(json.dumps({"error": message, "exit_code": code, **more}))
    return code


def clusters(dataset: datasets.Dataset, labels: Any, n_clusters: int) -> dict[str, Any]:
    """What a clustering looks like, and how it agrees with the classes where they are known."""
    n, n_features = dataset.X.shape
    scores = None if dataset.y is None else report.scores(dataset.y, labels)
    return {
        "data": dataset.name,
        "n_samples": n,
        "n_features": n_features,
        "sizes": metrics.count_labels(labels, n_clusters),
        "scores": scores,
    }


def in_words(found: dict[str, Any]) -> list[str]:
    """The same as lines."""
    sizes = np.asarray(found["sizes"])
    lines = [
        f"{found['data']}: {found['n_samples']:,} samples of {found['n_features']:,} features in"
        f" {len(sizes)} clusters of {sizes.min():,} to {sizes.max():,}"
    ]
    if found["scores"]:
        scores = found["scores"].items()
        text = ", ".join(f"{plots.SCORES[name]} {100 * value:.1f} %" for name, value in scores)
        lines.append(click.style(text, bold=True))
    return lines
