"""The report of a run: one HTML file with its numbers and pictures, which needs nothing beside it.

`Recorder` is a callback that keeps what the pictures need while an estimator is fitted;
`write_report` draws them and writes the page. The page loads nothing: pictures are in it as PNG.
"""

from __future__ import annotations

import base64
import inspect
import io
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

import deepclust
from deepclust import _files, metrics, plots
from deepclust import functional as F
from deepclust.plots import Moment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from deepclust.cluster._trainer import Run
    from deepclust.datasets import Dataset
    from deepclust.metrics import Labels

    Array = NDArray[Any]

__all__ = ["Recorder", "duration", "scores", "versions", "write_report"]

MAX_NUMBERS = 1 << 24  # of all moments together: 64 MB
DPI = 200  # twice a screen's 100 CSS pixels an inch: sharp where two pixels make one


def scores(labels_true: Labels, labels_pred: Labels) -> dict[str, float]:
    """Accuracy, normalized mutual information and adjusted Rand index of a clustering.

    Args:
        labels_true: Classes (N,).
        labels_pred: Clusters (N,).

    Returns:
        The scores under "accuracy", "nmi" and "ari".

    Raises:
        ValueError: Where the lengths differ, labels are not one-dimensional, or one is missing.

    Example:
        >>> scores([0, 0, 1, 1], [1, 1, 0, 0])
        {'accuracy': 1.0, 'nmi': 1.0, 'ari': 1.0}
    """
    return {
        "accuracy": metrics.clustering_accuracy(labels_true, labels_pred),
        "nmi": metrics.normalized_mutual_info(labels_true, labels_pred),
        "ari": metrics.adjusted_rand(labels_true, labels_pred),
    }


class Recorder:
    """A callback that keeps the embedding as it changes, for `write_report`.

    Of a fixed random subset of the rows it keeps the embedding and the clusters at some refreshes:
    when `max_moments` are kept, every second one goes and from then on every second refresh is left
    out, so that memory does not grow with the length of the run. The last refresh is always kept.
    With classes it logs "accuracy" and "nmi" at each refresh. At the first refresh with a target it
    keeps ||dL_i/dz_i||, the gradient of each point's loss, beside the q_ij of its cluster.

    What it keeps is in `run.state`, hence in checkpoints: a resumed run continues it.

    Args:
        y: Classes (N,) of the rows; None where unknown.
        max_rows: Rows of the subset, at most; fewer where the embedding is very wide.
        max_moments: Moments that are kept, at most.
        seed: Seed of the subset.

    Attributes:
        state: What is kept: "rows" (n,), the subset; "moments", a list of dicts with "stage",
            "update", "z" (n, D) and "labels" (n,); "gradient", a dict with "q" and "size" (n,).

    Raises:
        ValueError: If max_rows is below 1 or max_moments below 2.

    Example:
        >>> recorder = Recorder(max_rows=500)  # DEC(10, callbacks=[recorder]).fit(X)
        >>> recorder.moments()
        []
    """

    def __init__(
        self, y: Labels | None = None, *, max_rows: int = 2000, max_moments: int = 32, seed: int = 0
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows: got {max_rows}; it takes at least 1")
        if max_moments < 2:
            raise ValueError(f"max_moments: got {max_moments}; it takes at least 2")
        self.y = y
        self.max_rows = max_rows
        self.max_moments = max_moments
        self.seed = seed
        self.state: dict[str, Any] = {"moments": []}

    def __call__(self, run: Run) -> None:
        """Record this moment of `run`, if there are clusters yet."""
        if "labels" not in run.state:
            return
        if "recorder" not in run.state:
            run.state["recorder"] = self._new_state(len(run), run.method.head().n_features)
        self.state = run.state["recorder"]
        if run.refreshed and self.y is not None:
            labels = run.gather(run.state["labels"])
            if labels is not None:
                run.log("accuracy", metrics.clustering_accuracy(self.y, labels))
                run.log("nmi", metrics.normalized_mutual_info(self.y, labels))
        rows = torch.from_numpy(self.state["rows"])
        with torch.no_grad():
            z, head = run.method.embed(run.take(rows)), run.method.head()
            # Not those of run.state: at the end of a stage they may be older than z.
            _, labels, _ = F.frequencies(z, head)
        if "gradient" not in self.state and "snapshot" in run.state:
            snapshot = run.state["snapshot"]
            z_old = run.pick(snapshot.z, rows.to(snapshot.z.device))
            target = F.Snapshot(z_old, snapshot.head, snapshot.bias, snapshot.power)
            self.state["gradient"] = _gradient(z, head, target, labels)
        self._keep(run.stage.name, run.update, z.float().cpu().numpy(), labels.cpu().numpy())

    def moments(self, n: int = 5) -> list[Moment]:
        """Some of the moments, evenly spaced, with the first and the last among them.

        Args:
            n: Their number, at most.
        """
        kept = self.state["moments"]
        chosen = np.linspace(0, len(kept) - 1, min(n, len(kept))).round().astype(int)
        return [Moment(*(kept[i][field] for field in Moment._fields)) for i in chosen]

    def _new_state(self, n: int, n_features: int) -> dict[str, Any]:
        size = min(n, self.max_rows, max(1, MAX_NUMBERS // (self.max_moments * n_features)))
        rows = np.random.default_rng(self.seed).choice(n, size, replace=False)
        return {"rows": np.sort(rows), "moments": [], "seen": 0, "stride": 1}

    def _keep(self, stage: str, update: int, z: Array, labels: Array) -> None:
        """Add a moment, and thin out: those at multiples of the stride stay, and the last one."""
        state, moments = self.state, self.state["moments"]
        if moments and moments[-1]["number"] % state["stride"]:
            moments.pop()
        moment = {"stage": stage, "update": update, "z": z, "labels": labels}
        moments.append({"number": state["seen"], **moment})
        state["seen"] += 1
        if len(moments) > self.max_moments:
            state["stride"] *= 2
            moments[:-1] = [m for m in moments[:-1] if m["number"] % state["stride"] == 0]


def _gradient(z: Tensor, head: F.Head, target: F.Snapshot, labels: Tensor) -> dict[str, Array]:
    """q_ij of each point's cluster, and the norm of the gradient of its loss KL(p_i || q_i)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        # Each point's loss depends on its own z alone: the gradient of the sum holds all of theirs.
        (dz,) = torch.autograd.grad(F.target_loss(z, head, target, reduction="sum"), z)
    with torch.no_grad():
        q = F.assign(z, head).gather(1, labels.unsqueeze(1)).squeeze(1)
    return {"q": q.float().cpu().numpy(), "size": dz.norm(dim=1).float().cpu().numpy()}


class _Picture(NamedTuple):
    figure: Figure
    alt: str
    caption: str


def write_report(
    path: str | os.PathLike[str],
    *,
    estimator: Any,
    dataset: Dataset,
    recorder: Recorder | None = None,
    title: str | None = None,
    command: str | None = None,
    seconds: float | None = None,
    made_with: Mapping[str, str] | None = None,
    tsne: bool = False,
) -> None:
    """Write the report of a fitted estimator: one HTML file with numbers and pictures.

    Args:
        path: The file; it appears whole or not at all.
        estimator: A fitted estimator of `deepclust.cluster`.
        dataset: What it was fitted to. Pictures of samples need `image_shape`, scores need `y`.
        recorder: The callback that was given to the estimator. None: the embedding at the end only.
        title: Heading of the page; by default the names of the method and of the data.
        command: The command line that made the run.
        seconds: Wall time of the run, in seconds; None where it is not known.
        made_with: What the run was made with, as `versions` gives it; by default what is here now.
        tsne: Whether to draw t-SNE of the embedding in place of its principal components.

    Raises:
        NotFittedError: If the estimator is not fitted.
        ValueError: If the data are not those that the estimator was fitted to.
        ModuleNotFoundError: If matplotlib is missing.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from deepclust import datasets
        >>> from deepclust.cluster import KMeans
        >>> digits = datasets.load_digits()
        >>> kmeans = KMeans(n_clusters=10, random_state=0).fit(digits.X)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(Path(folder) / "report.html", estimator=kmeans, dataset=digits)
        ...     (Path(folder) / "report.html").read_text().count("<figure")
        4
    """
    check_is_fitted(estimator)
    labels = np.asarray(estimator.labels_)
    if len(labels) != len(dataset):
        raise ValueError(
            f"dataset: got {len(dataset)} samples; the estimator was fitted to {len(labels)}"
        )
    method = type(estimator).__name__
    title = title or f"{method} on {dataset.name}"
    agreement = {} if dataset.y is None else scores(dataset.y, labels)
    clusters = list(_cluster_pictures(estimator, dataset, recorder or Recorder(), tsne))
    training = list(_training_pictures(estimator, dataset, recorder or Recorder()))
    reasons: dict[str, str] = getattr(estimator, "stop_reasons_", {})
    body = [
        f"<h1>{escape(title)}</h1>",
        _tiles(_headline(estimator, dataset, agreement, seconds)),
        f"<p class=reason>{escape(_ending(reasons))}</p>" if reasons else "",
        _section("Clusters", clusters),
        _section("Training", training) if training else "",
        "<h2>Run</h2>",
        f"<pre>{escape(command)}</pre>" if command else "",
        "<div class=tables>",
        _table("Parameters (*: not the default)", _parameters(estimator)),
        _table("Versions", (made_with or versions(estimator)).items()),
        "</div>",
    ]
    page = _PAGE.format(title=escape(title), style=_CSS, body="\n".join(filter(None, body)))
    _files.write_text(path, page)


def versions(estimator: Any) -> dict[str, str]:
    """The software and hardware that an estimator runs on here.

    Args:
        estimator: An estimator of `deepclust.cluster`, which says on which device.

    Returns:
        Versions and names, for the report of a run.

    Example:
        >>> from deepclust.cluster import KMeans
        >>> sorted(versions(KMeans()))[0]
        'Python'
    """
    found = {"deepclust": deepclust.__version__, "Python": platform.python_version()}
    for name in ("torch", "numpy", "scipy", "scikit-learn", "matplotlib"):
        found[name] = metadata.version(name)
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["threads"] = str(torch.get_num_threads())
    found.update({f"backend {name}": what for name, what in deepclust.backends().items()})
    device = torch.device(getattr(estimator, "device", None) or "cpu")
    if device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(device)
    return found


def _headline(
    estimator: Any, dataset: Dataset, agreement: Mapping[str, float], seconds: float | None
) -> Iterator[tuple[str, str]]:
    for name, value in agreement.items():
        yield plots.SCORES[name], f"{100 * value:.1f} %"
    yield "samples, N", f"{dataset.X.shape[0]:,}"
    yield "features", f"{dataset.X.shape[1]:,}"
    yield "clusters, K", f"{estimator.n_clusters:,}"
    yield "updates" if hasattr(estimator, "history_") else "iterations", f"{estimator.n_iter_:,}"
    if seconds is not None:
        yield "wall time", duration(seconds)


def duration(seconds: float) -> str:
    """Seconds in words.

    Args:
        seconds: A time in seconds.

    Example:
        >>> duration(4.21), duration(125), duration(7322)
        ('4.2 s', '2 min 5 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _ending(reasons: Mapping[str, str]) -> str:
    ends = [f"{stage} ({why})" for stage, why in reasons.items()]
    return f"Why each stage ended: {', '.join(ends)}."


def _cluster_pictures(
    estimator: Any, dataset: Dataset, recorder: Recorder, tsne: bool
) -> Iterator[_Picture]:
    labels, K = np.asarray(estimator.labels_), int(estimator.n_clusters)
    if dataset.image_shape is not None:
        figure = plots.top_samples(
            dataset.X, dataset.image_shape, labels, _own_scores(estimator, dataset.X), K
        )
        yield _Picture(
            figure,
            f"Grid of images: the ten highest-scoring samples of each of {K} clusters, a row each.",
            "A good cluster's row shows one kind of image; a row of mixed kinds is a cluster that "
            "joins several, and two rows of one kind are a cluster that was split.",
        )
    if dataset.y is not None:
        yield _Picture(
            plots.confusion(dataset.y, labels),
            "Matrix of counts: true classes in rows, clusters in columns.",
            "A second dark cell in a row is a class that was split, a second one in a column is a "
            "cluster that joins classes; the shade is the share of the class.",
        )
    moments = recorder.moments() or [_present_moment(estimator, dataset)]
    purpose, axes = "Clusters should be dense and apart", "the first two principal components"
    if len(moments) > 1:
        purpose = "As training goes on, each cluster should grow denser and farther from the others"
        axes += " of each moment, turned to match the panel after it, each at its own scale"
    if tsne:
        axes = f"those of t-SNE, started from {axes}"
    yield _Picture(
        plots.embedding(moments, K, tsne=tsne),
        f"Scatter plots of samples in two dimensions at {len(moments)} moments of the training, "
        f"coloured by their cluster of {K}.",
        f"{purpose}; axes are {axes}.",
    )
    counts = metrics.count_labels(estimator.labels_, K)
    yield _Picture(
        plots.cluster_sizes(estimator.labels_, K),
        f"Bar chart of the {K} clusters' sizes, from {counts.min():,} to {counts.max():,} samples.",
        "An empty cluster, or one that holds most samples, is the sign of a collapse.",
    )


def _training_pictures(estimator: Any, dataset: Dataset, recorder: Recorder) -> Iterator[_Picture]:
    history: dict[str, Any] = getattr(estimator, "history_", {})
    if not history:
        return
    yield _Picture(
        plots.loss_curves(history),
        f"Line charts of the training losses: {', '.join(sorted(history))}.",
        "A loss that is still falling steeply at the end of its stage asks for a longer stage; "
        "the clustering loss may rise at first, because its target sharpens with each refresh.",
    )
    if any(name.endswith("/changed") for name in history):
        yield _Picture(
            plots.changed_labels(history, tol=getattr(estimator, "tol", None)),
            "Line chart of the share of labels that changed at each refresh.",
            "The curve should fall; the run has converged when it goes below the dashed line.",
        )
    if any(name.endswith("/accuracy") for name in history):
        yield _Picture(
            plots.accuracy_curve(history),
            "Line chart of the accuracy and the mutual information over the clustering stage.",
            "Training never sees the true labels: a rise shows that it sharpens real structure, "
            "a fall that it sharpens mistakes of its start.",
        )
    gradient = recorder.state.get("gradient")
    if gradient is not None:
        images = None if dataset.image_shape is None else _dense(dataset.X, recorder.state["rows"])
        yield _Picture(
            plots.gradient_against_q(
                gradient["q"], gradient["size"], images=images, image_shape=dataset.image_shape
            ),
            "Scatter plot of the size of each point's gradient against its soft assignment.",
            "At the start of clustering, points of high q should pull hardest: "
            "then confident samples lead, and doubtful ones follow.",
        )


def _own_scores(estimator: Any, X: Any) -> Array:
    """The score (N,) of each row in its cluster: q_ij, or minus the distance to the centroid."""
    labels = np.asarray(estimator.labels_)
    result = np.empty(len(labels))
    soft = hasattr(estimator, "predict_proba")
    size = max(1, 4_000_000 // (estimator.n_clusters if soft else X.shape[1]))
    for start in range(0, len(result), size):
        rows = np.arange(start, min(start + size, len(result)))
        own = labels[rows]
        if soft:
            q = estimator.predict_proba(X[rows[0] : rows[-1] + 1])
            result[rows] = q[np.arange(len(rows)), own]
        else:
            difference = _dense(X, rows) - estimator.cluster_centers_[own]
            result[rows] = -np.linalg.norm(difference, axis=1)
    return result


def _present_moment(estimator: Any, dataset: Dataset) -> Moment:
    """The embedding of a fitted estimator; for one without a network, the data themselves."""
    n = dataset.X.shape[0]
    # All of them, or some drawn without an array of n numbers.
    size = min(n, plots.MAX_POINTS)
    rows = np.sort(np.random.default_rng(0).choice(n, size, replace=False))
    x = _dense(dataset.X, rows)
    deep = hasattr(estimator, "network_")
    z = estimator.transform(x) if deep else x
    name = "the embedding at the end" if deep else "the data"
    return Moment(name, None, z, _files.picked(estimator.labels_, rows))


def _dense(X: Any, rows: Array) -> Array:
    x = _files.picked(X, rows)
    dense: Array = x.toarray() if hasattr(x, "toarray") else np.asarray(x)
    return dense


def _parameters(estimator: Any) -> Iterator[tuple[str, str]]:
    defaults = inspect.signature(type(estimator)).parameters
    parameters = estimator.get_params(deep=False)
    presets = getattr(type(estimator), "PRESETS", {})
    preset = presets.get(parameters.get("preset"), {})
    for name, value in parameters.items():
        if name in ("callbacks", "checkpoint", "verbose"):
            continue
        if value is None and name in preset:
            yield name, f"{preset[name]!r}, by preset"
            continue
        text = repr(value)
        if isinstance(value, torch.nn.Module):
            text = type(value).__name__
        elif getattr(value, "ndim", 0):
            text = f"array of shape {tuple(value.shape)}"
        mark = "" if text == repr(defaults[name].default) else " *"
        yield name, (text if len(text) <= 200 else text[:200] + "...") + mark


def _tiles(pairs: Iterator[tuple[str, str]]) -> str:
    tiles = [f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs]
    return f"<dl class=tiles>{''.join(tiles)}</dl>"


def _table(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    rows = [f"<tr><th scope=row>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in pairs]
    return f"<table><caption>{escape(title)}</caption>{''.join(rows)}</table>"


def _section(title: str, pictures: Sequence[_Picture]) -> str:
    return f"<h2>{escape(title)}</h2><div class=pictures>{''.join(map(_figure, pictures))}</div>"


def _figure(picture: _Picture) -> str:
    width, height = (round(100 * inches) for inches in picture.figure.get_size_inches())
    buffer = io.BytesIO()
    picture.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    wide = " class=wide" if width > 100 * plots.HALF else ""
    return (
        f'<figure{wide}><img src="data:image/png;base64,{data}" width={width} height={height} '
        f'alt="{escape(picture.alt)}"><figcaption>{escape(picture.caption)}</figcaption></figure>'
    )


_PAGE = """<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_CSS = """
:root { color-scheme: light dark; --ink: #2b2f36; --muted: #5c636d; --paper: #f6f7f9;
  --card: #fff; --line: #dfe3e8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --muted: #a3abb5; --paper: #16181c; --card: #1f2227; --line: #363b43; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1.2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .8rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0; }
.tiles div { flex: 1 1 7rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .55rem .8rem; }
dt { color: var(--muted); font-size: .82rem; }
dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.reason { color: var(--muted); font-size: .9rem; margin: .8rem 0 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
/* Pictures have a white ground of their own, in the dark too. */
figure { flex: 1 1 480px; min-width: 0; display: flex; flex-direction: column; margin: 0;
  background: #fff; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
figure.wide { flex-basis: 100%; }
figure img { display: block; max-width: 100%; height: auto; margin: auto;
  padding: .8rem .6rem .5rem; }
figcaption { background: var(--card); border-top: 1px solid var(--line); padding: .6rem .9rem;
  color: var(--muted); font-size: .9rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 0 0 1rem;
  padding: .7rem .9rem; font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr));
  gap: 1rem; align-items: start; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; background: var(--card);
  border: 1px solid var(--line); }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .7rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--muted); white-space: nowrap; }
"""
