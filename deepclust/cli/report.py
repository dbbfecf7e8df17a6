"""`deepclust report`: the report of a run anew."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from deepclust import _files, datasets, report
from deepclust.cli import _config, _output, _results
from deepclust.cli._methods import name_of

_EXAMPLES = """\b
Examples:
  deepclust report run --labels y.npy
  deepclust report run --tsne
  deepclust report run --data /elsewhere/X.npy --out report.html
"""


@click.command("report", short_help="Write the report of a run anew.", epilog=_EXAMPLES)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data", metavar="DATA", help="What the run was fitted to; by default as its config.toml says."
)
@click.option("--labels", metavar="FILE", help="True labels; by default those of the run.")
@click.option(
    "--tsne/--no-tsne",
    default=None,
    help="Draw t-SNE of the embedding, or principal components; by default as the fit did.",
)
@click.option("--title", metavar="TEXT", help="Heading of the page.")
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The page to write; by default DIR/report.html.",
)
@_output.json_option
def command(
    *,
    folder: Path,
    data: str | None,
    labels: str | None,
    tsne: bool | None,
    title: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write the report of a run anew, from the result folder DIR and the data.

    With labels that the fit did not have, metrics.json is written too, and the report gets scores
    and the confusion matrix; only their curve over the training is not to be had: for that the fit
    needs --labels.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("the report needs matplotlib: pip install 'deepclust[plots]'")
    if not folder.is_dir():
        raise click.UsageError(f"{folder}: no such folder; it takes one that deepclust fit wrote")
    estimator = _results.model_of(folder)
    settings = _config.read_settings(folder / _results.CONFIG)
    data = data or settings.get("data")
    if data is None:
        raise click.UsageError(
            f"{folder / _results.CONFIG}: no data in it; --data says where that is"
        )
    dataset = datasets.load(
        data,
        labels=settings.get("labels") if labels is None else labels,
    )
    run: dict[str, Any] = _files.load_tree(folder / _results.RUN, kind="run")
    if _results.fingerprint(dataset) != run["fingerprint"]:
        raise click.UsageError(
            f"{dataset.name}: it is not what the run was fitted to; --data says where that is"
        )
    estimator.labels_ = datasets.open_npy(folder / _results.LABELS)
    recorder = report.Recorder(dataset.y)
    recorder.state = run["recorder"]
    out = out or folder / _results.REPORT
    report.write_report(
        out,
        estimator=estimator,
        dataset=dataset,
        recorder=recorder,
        title=title,
        command=run["command"],
        seconds=run["seconds"],
        made_with=run["made_with"],
        tsne=settings.get("tsne", False) if tsne is None else tsne,
    )
    found = _output.clusters(dataset, estimator.labels_, estimator.n_clusters)
    if found["scores"] is not None:
        _files.write_json(folder / _results.METRICS, found["scores"], indent=2)
    missing = []
    history = getattr(estimator, "history_", {})
    if found["scores"] and history and not any(name.endswith("/accuracy") for name in history):
        missing.append("the scores over the training: for these the fit needs --labels")
    for what in missing:
        _output.note(f"the report is without {what}")
    result = {"method": name_of(estimator), **found, "missing": missing, "out": str(out)}
    _output.conclude("report", result, [*_output.in_words(found), f"report: {out}"], as_json)
