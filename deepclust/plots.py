"""Pictures of a clustering run, each returned as a matplotlib `Figure`.

No picture touches pyplot, so that all of them work without a display and none stays in memory.
matplotlib is the extra `plots`: it is imported when the first picture is drawn.

Colours: up to ten clusters take the sequence of ten colours that stay apart under the common forms
of colour blindness (Petroff, arXiv:2107.02270). Past ten the sequence comes again darker, then
lighter; past thirty colours repeat, and the numbers in the picture tell the clusters apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import numpy as np
from numpy.typing import NDArray

from deepclust.metrics import clustering_accuracy, confusion_matrix, count_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deepclust.metrics import Labels

    Array = NDArray[Any]
    History = Mapping[str, Sequence[tuple[int, float]]]

P = ParamSpec("P")

__all__ = [
    "Moment",
    "accuracy_curve",
    "changed_labels",
    "cluster_colors",
    "cluster_sizes",
    "confusion",
    "embedding",
    "gradient_against_q",
    "loss_curves",
    "top_samples",
]

MAX_POINTS = 5_000  # a scatter of more points is slower to draw and no clearer to read
FULL, HALF = 10.8, 5.3  # inches; at 100 CSS pixels an inch the report's column and half of it

_PETROFF = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
_INK, _MUTED, _GRID, _ACCENT, _SECOND = "#2b2f36", "#6b727c", "#e4e7eb", "#2470b8", "#c2410c"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": "#b8bec6",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "axes.facecolor": "white",
}
SCORES = {"accuracy": "ACC", "nmi": "NMI", "ari": "ARI"}


class Moment(NamedTuple):
    """The embedding of some rows after `update` updates of a stage.

    Attributes:
        stage: Name of the stage.
        update: Number of updates done in that stage; None where that says nothing.
        z: (n, D) embedding of the rows.
        labels: (n,) clusters of the rows at that moment.
    """

    stage: str
    update: int | None
    z: Array
    labels: Array


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run `draw` under this module's style, whatever the user's own settings are."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        try:
            import matplotlib as mpl
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "pictures need matplotlib: pip install 'deepclust[plots]'", name=error.name
            ) from None
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return styled


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def cluster_colors(n_clusters: int) -> Array:
    """One colour for each cluster, in the order of the clusters.

    Args:
        n_clusters: K, at least 1.

    Returns:
        (K, 3) float64, red, green and blue in [0, 1].

    Example:
        >>> cluster_colors(12).shape
        (12, 3)
    """
    base = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in _PETROFF]) / 255
    rounds = np.concatenate([base, 0.6 * base, 0.5 + 0.5 * base])
    return rounds[np.arange(n_clusters) % len(rounds)]


def _stages(history: History) -> dict[str, dict[str, Array]]:
    """Split "stage/quantity" series into {stage: {quantity: (n, 2) updates and values}}."""
    stages: dict[str, dict[str, Array]] = {}
    for name, series in history.items():
        stage, _, quantity = name.partition("/")
        if len(series):
            stages.setdefault(stage, {})[quantity] = np.asarray(series, dtype=np.float64)
    return stages


def _halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground="white")]


def _marker(points: Array) -> str | None:
    """Dots on a short curve: a single point would not be seen at all."""
    return "o" if len(points) < 40 else None


def _integer_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _no_data(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color=_MUTED, transform=axes.transAxes)
    axes.set_axis_off()


@_styled
def loss_curves(history: History) -> Figure:
    """Draw the losses of each stage, one panel a loss, over the updates of the stage.

    Args:
        history: "stage/quantity" -> (update, value) pairs, such as `estimator.history_`. Shares
            of changed labels and scores against true labels have their own pictures: not here.

    Example:
        >>> figure = loss_curves({"tune/reconstruction": [(0, 1.0), (10, 0.5)]})
        >>> [axes.get_title("left") for axes in figure.axes]
        ['tune']
    """
    panels = [
        (stage, quantity, points)
        for stage, series in _stages(history).items()
        for quantity, points in series.items()
        if quantity not in {"changed", *SCORES}
    ]
    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = _new_figure(HALF if columns == 1 else FULL, 0.4 + (2.3 if columns > 1 else 3) * rows)
    if not panels:
        _no_data(figure.add_subplot(), "no losses were recorded")
        return figure
    figure.suptitle("Loss by stage", x=0.008, ha="left")
    for place, (stage, quantity, points) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.grid(axis="y")
        axes.plot(points[:, 0], points[:, 1], color=_ACCENT, marker=_marker(points), markersize=3)
        axes.set_title(stage)
        axes.set_xlabel("updates")
        axes.set_ylabel(quantity)
        axes.margins(x=0.02)
        _integer_ticks(axes)
        if 0 < 30 * points[:, 1].min() < points[:, 1].max():
            axes.set_yscale("log")
    return figure


@_styled
def changed_labels(history: History, tol: float | None = None) -> Figure:
    """Draw the share of labels that changed from one refresh to the next.

    Args:
        history: "stage/changed" -> (update, share in [0, 1]) pairs, such as `estimator.history_`.
            Update 0 is left out.
        tol: Share below which the run stops, drawn as a line. None: no line.

    Example:
        >>> figure = changed_labels({"cluster/changed": [(30, 0.1), (60, 0.02)]}, tol=0.001)
        >>> figure.axes[0].get_yscale()
        'log'
    """
    from matplotlib.ticker import FuncFormatter

    figure = _new_figure(HALF, 3.4)
    axes = figure.add_subplot()
    stages = {s: q["changed"] for s, q in _stages(history).items() if "changed" in q}
    # Before the first update nothing has been trained that could change a label.
    stages = {s: points[points[:, 0] > 0] for s, points in stages.items() if points[-1, 0] > 0}
    if not stages:
        _no_data(axes, "no changes of labels were recorded")
        return figure
    axes.set_title("Labels that changed at each refresh")
    shares = np.concatenate([points[:, 1] for points in stages.values()])
    smallest = min([*shares[shares > 0], *([tol] if tol else []), 1.0])
    floor = smallest / 2  # where a share of zero is drawn: a logarithm has no place for it
    for (stage, points), color in zip(stages.items(), (_ACCENT, _SECOND, *_PETROFF), strict=False):
        none = points[:, 1] == 0
        axes.plot(
            points[:, 0],
            np.where(none, floor, points[:, 1]),
            color=color,
            label=stage if len(stages) > 1 else None,
            marker=_marker(points),
            markersize=3,
        )
        if none.any():
            floors = np.full(none.sum(), floor)
            axes.plot(points[none, 0], floors, "v", ms=5, color=color, label="none changed")
    if tol:
        line: dict[str, Any] = {"color": _SECOND, "linestyle": (0, (4, 3)), "linewidth": 1.2}
        axes.axhline(tol, label=f"tol: {100 * tol:.3g} %", **line)
    axes.set_yscale("log")
    axes.set_ylim(floor * 0.8, 1.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
    axes.set_ylabel("share of labels")
    axes.set_xlabel("updates")
    axes.grid(axis="y")
    _integer_ticks(axes)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper right")
    return figure


@_styled
def accuracy_curve(history: History) -> Figure:
    """Draw the scores against true labels that were logged during the run.

    Args:
        history: "stage/accuracy", "stage/nmi" and "stage/ari" -> (update, score in [0, 1]) pairs.
            A stage continues where the one before it ended.

    Example:
        >>> figure = accuracy_curve({"cluster/accuracy": [(0, 0.7), (30, 0.8)]})
        >>> figure.axes[0].get_ylabel()
        'score against true labels'
    """
    from matplotlib.ticker import PercentFormatter

    figure = _new_figure(HALF, 3.4)
    axes = figure.add_subplot()
    curves: dict[str, list[Array]] = {}
    start = 0.0
    for series in _stages(history).values():
        scores = {q: points for q, points in series.items() if q in SCORES}
        for quantity, points in scores.items():
            curves.setdefault(quantity, []).append(points + np.array([start, 0]))
        start += max((points[-1, 0] for points in scores.values()), default=0)
    if not curves:
        _no_data(axes, "no labels were given")
        return figure
    colors = {"accuracy": _ACCENT, "nmi": _SECOND, "ari": _PETROFF[4]}
    ends = []
    for quantity, parts in curves.items():
        points = np.concatenate(parts)
        axes.plot(points[:, 0], points[:, 1], color=colors[quantity], label=SCORES[quantity])
        ends.append((points[-1, 1], points[-1, 0], quantity))
    low = min(float(np.min(part[:, 1])) for parts in curves.values() for part in parts)
    axes.set_ylim(min(0.0, low) if low < 0.4 else np.floor(10 * low) / 10 - 0.05, 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    gap, above = 0.06 * np.ptp(axes.get_ylim()), -np.inf
    for value, update, quantity in sorted(ends):
        above = max(value, above + gap)  # names of lines that end together do not overlap
        axes.annotate(
            f"{SCORES[quantity]} {100 * value:.1f} %",
            (update, above),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colors[quantity],
            fontsize=9,
            annotation_clip=False,
        )
    axes.set_title("Scores against the true labels")
    axes.set_ylabel("score against true labels")
    axes.set_xlabel("updates")
    axes.grid(axis="y")
    _integer_ticks(axes)
    return figure


def _subsample(n: int, seed: int) -> NDArray[np.int64]:
    if n <= MAX_POINTS:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MAX_POINTS, replace=False))


def _principal_plane(z: Array) -> Array:
    """(n, 2): the rows on their first two principal components."""
    from sklearn.decomposition import PCA

    n, D = z.shape
    plane = np.zeros((n, 2))
    if rank := min(2, n - 1, D):
        plane[:, :rank] = PCA(rank, random_state=0).fit_transform(z)
    return plane


def _turned(plane: Array, onto: Array) -> Array:
    """`plane` turned or mirrored so that its points lie nearest to `onto`'s (Procrustes)."""
    left, _, right = np.linalg.svd(plane.T @ onto)
    turned: Array = plane @ (left @ right)
    return turned


def _tsne(plane: Array, z: Array, seed: int) -> Array:
    """t-SNE of `z` that starts from `plane`, so that successive moments resemble each other."""
    from sklearn.manifold import TSNE

    start = 1e-4 * plane / max(plane[:, 0].std(), np.finfo(np.float32).tiny)
    perplexity = min(30.0, (len(z) - 1) / 3)
    # Half the usual iterations: from this start the layout has settled by then.
    options = {"perplexity": perplexity, "max_iter": 500, "random_state": seed}
    model = TSNE(2, init=start.astype(np.float32), **options)
    result: Array = model.fit_transform(z)
    return result


@_styled
def embedding(
    moments: Sequence[Moment],
    n_clusters: int,
    *,
    tsne: bool = False,
    seed: int = 0,
    legend: bool = True,
) -> Figure:
    """Draw the embedding in two dimensions, coloured by cluster, one panel a moment.

    Each panel shows the first two principal components of its own moment: those of the last moment
    would hide how the points were spread before. Components have no orientation of their own, so
    each panel is turned or mirrored to match the one after it. With `tsne`, t-SNE starts there.

    Args:
        moments: The moments in order, all of the same rows. At most 5,000 rows are drawn, the same
            random ones in each panel.
        n_clusters: K, which fixes the colours.
        tsne: Whether to draw t-SNE (through scikit-learn) in place of the principal components.
        seed: Seed of t-SNE and of the choice of rows.
        legend: Whether a panel more says how many points each cluster has; only beside several
            moments, of up to 30 clusters.

    Raises:
        ValueError: There is no moment, or the moments have different numbers of rows.

    Example:
        >>> import numpy as np
        >>> z = np.random.default_rng(0).normal(size=(60, 4))
        >>> figure = embedding([Moment("cluster", 0, z, np.arange(60) % 3)], n_clusters=3)
        >>> figure.axes[0].get_title("left")
        'cluster, update 0'
    """
    if not moments or len({len(m.z) for m in moments}) > 1:
        raise ValueError(
            "moments: takes one moment or more of the same rows, "
            f"got row counts {[len(m.z) for m in moments]}"
        )
    rows = _subsample(len(moments[0].z), seed)
    planes = [_principal_plane(np.asarray(m.z[rows], dtype=np.float64)) for m in moments]
    for i in reversed(range(len(planes) - 1)):
        planes[i] = _turned(planes[i], planes[i + 1])
    if tsne and len(rows) > 3:
        planes = [_tsne(plane, m.z[rows], seed) for plane, m in zip(planes, moments, strict=True)]

    legend = legend and n_clusters <= 30 and len(moments) > 1
    columns = min(3, len(moments) + legend)
    lines = -(-(len(moments) + legend) // columns)
    side = FULL / 3 if len(moments) > 1 else HALF
    figure = _new_figure(columns * side, lines * side * 0.92 + 0.3)
    what = "t-SNE" if tsne else "Principal plane"
    figure.suptitle(
        f"{what} of the samples, by cluster", x=0.008, ha="left", fontsize=12, color=_INK
    )
    colors = cluster_colors(n_clusters)
    # Points are drawn in random order: in the order of the clusters the last would cover the rest.
    order = np.random.default_rng(seed).permutation(len(rows))
    size = float(np.clip(6_000 / max(len(rows), 1), 2.5, 18))
    for place, (moment, plane) in enumerate(zip(moments, planes, strict=True), start=1):
        axes = figure.add_subplot(lines, columns, place)
        labels = np.asarray(moment.labels)[rows]
        x, y = plane[order].T
        axes.scatter(x, y, s=size, c=colors[labels[order]], alpha=0.75, linewidths=0)
        if n_clusters <= 40:
            _name_clusters(axes, plane, labels)
        update = "" if moment.update is None else f", update {moment.update:,}"
        axes.set_title(f"{moment.stage}{update}")
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
    if legend:
        axes = figure.add_subplot(lines, columns, len(moments) + 1)
        axes.set_axis_off()
        counts = np.bincount(np.asarray(moments[-1].labels)[rows], minlength=n_clusters)
        for j, color in enumerate(colors):
            axes.scatter([], [], s=36, color=color, label=f"{j}: {counts[j]:,}")
        axes.legend(
            loc="center",
            ncols=1 + (n_clusters > 6) + (n_clusters > 20),
            title=f"cluster: points shown of {len(rows):,},\nat the last moment",
            title_fontsize=9,
            alignment="left",
            handletextpad=0.3,
        )
    return figure


def _name_clusters(axes: Axes, plane: Array, labels: Array) -> None:
    """Write each cluster's number at the median of its points."""
    bold: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", "path_effects": _halo()}
    for j in np.unique(labels):
        x, y = np.median(plane[labels == j], axis=0)
        axes.text(x, y, str(j), ha="center", va="center", **bold)


@_styled
def cluster_sizes(labels: Array, n_clusters: int) -> Figure:
    """Draw how many samples each cluster has.

    Args:
        labels: (N,) int, the clusters of the samples.
        n_clusters: K. Up to 40 clusters are drawn by number, more by size in falling order.

    Example:
        >>> figure = cluster_sizes([0, 0, 1], n_clusters=3)
        >>> [int(bar.get_height()) for bar in figure.axes[0].patches]
        [2, 1, 0]
    """
    figure = _new_figure(FULL, 2.6)
    axes = figure.add_subplot()
    counts = count_labels(labels, n_clusters)
    empty = int((counts == 0).sum())
    few = n_clusters <= 40
    heights = (counts if few else np.sort(counts)[::-1]).astype(float)
    colors = cluster_colors(n_clusters) if few else _ACCENT
    bars = axes.bar(np.arange(n_clusters), heights, color=colors, width=0.8 if few else 1.0)
    if n_clusters * len(f"{counts.max():,}") <= 110:  # or the numbers would overlap
        texts = [f"{count:,}" for count in counts]
        axes.bar_label(bars, texts, color=_MUTED, fontsize=8.5, padding=1, path_effects=_halo())
    if few:
        axes.set_xticks(np.arange(n_clusters))
    else:
        _integer_ticks(axes)
    mean = len(labels) / n_clusters
    equal = f"equal sizes: {mean:,.1f}"
    axes.axhline(mean, color=_MUTED, linestyle=(0, (4, 3)), linewidth=1, label=equal, zorder=0.5)
    axes.legend(loc="upper right")
    title = f"Sizes of the {n_clusters} clusters" if n_clusters > 1 else "Size of the one cluster"
    if empty:
        title += f": {empty} {'is' if empty == 1 else 'are'} empty"
    axes.set_title(title)
    axes.set_xlabel("cluster" if few else "clusters from the largest to the smallest")
    axes.set_ylabel("samples")
    axes.set_ylim(0, 1.25 * max(1.0, float(heights.max())))  # room for the legend
    return figure


def _as_image(row: Array, shape: Sequence[int]) -> Array:
    """(H, W, 3) in [0, 1] from the values of an image (H, W) or (H, W, C)."""
    image = np.asarray(row, dtype=np.float64).reshape(*shape[:2], -1)
    image = image[:, :, :3] if image.shape[2] > 2 else image[:, :, :1]
    image = image - image.min()
    image = image / max(float(image.max()), np.finfo(np.float64).tiny)
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _top_rows(labels: Array, scores: Array, j: int, n: int) -> NDArray[np.int64]:
    members = np.flatnonzero(labels == j)
    return members[np.argsort(-scores[members], kind="stable")[:n]]


@_styled
def top_samples(
    X: Any, image_shape: Sequence[int], labels: Array, scores: Array, n_clusters: int
) -> Figure:
    """Draw the ten highest-scoring samples of each cluster, one row of images a cluster.

    As in the figure of top-scoring elements of Xie, Girshick and Farhadi, "Unsupervised deep
    embedding for clustering analysis" (ICML 2016).

    Args:
        X: (N, D) samples that are images.
        image_shape: (H, W) or (H, W, C). Each image is stretched to its own range of values.
        labels: (N,) clusters of the samples.
        scores: (N,) score of each sample in its own cluster, such as q_ij; higher is better.
        n_clusters: K. Of more than 60 clusters the 60 largest are drawn.

    Example:
        >>> import numpy as np
        >>> X, labels = np.random.default_rng(0).random((30, 16)), np.arange(30) % 3
        >>> figure = top_samples(X, (4, 4), labels, X[:, 0], n_clusters=3)
        >>> len(figure.axes)
        1
    """
    per_row, most = 10, 60
    labels, scores = np.asarray(labels), np.asarray(scores)
    counts = np.bincount(labels, minlength=n_clusters)
    shown = np.arange(n_clusters)
    if n_clusters > most:
        shown = np.sort(np.argsort(-counts, kind="stable")[:most])
    blocks = np.array_split(shown, -(-len(shown) // 20))
    height, width = _as_image(X[0], image_shape).shape[:2]
    gap = max(1, round(0.06 * height))

    texts = {j: f"{j}  (n={counts[j]:,})" if counts[j] else f"{j}  (empty)" for j in shown}
    # Laid out by hand, in inches: a mosaic of a fixed shape leaves nothing to adapt.
    names, title_height = 0.2 + 0.08 * max(map(len, texts.values())), 0.45
    figure_width = FULL if len(blocks) > 1 else HALF
    block_width = figure_width / len(blocks)
    lines = max(len(block) for block in blocks)
    side = (block_width - names - 0.1) / per_row
    mosaic_height = lines * side * (height + gap) / (width + gap)
    figure = _new_figure(figure_width, mosaic_height + title_height + 0.1)
    figure.set_layout_engine("none")
    which = "each cluster" if n_clusters <= most else f"the {most} largest of {n_clusters} clusters"
    title = f"The ten highest-scoring samples of {which}"
    figure.suptitle(title, x=0.008, ha="left", y=1 - 0.1 / figure.get_figheight(), va="top")
    for place, block in enumerate(blocks):
        inches = np.array([place * block_width + names, 0.1, side * per_row, mosaic_height])
        axes = figure.add_axes(tuple(inches / np.tile(figure.get_size_inches(), 2)))
        mosaic = np.ones((lines * (height + gap), per_row * (width + gap), 3))
        for line, j in enumerate(block):
            for column, i in enumerate(_top_rows(labels, scores, int(j), per_row)):
                top, left = line * (height + gap), column * (width + gap)
                mosaic[top : top + height, left : left + width] = _as_image(X[i], image_shape)
        axes.imshow(mosaic, interpolation="nearest", aspect="auto")
        axes.set_yticks(
            np.arange(len(block)) * (height + gap) + (height - 1) / 2,
            [texts[j] for j in block],
        )
        axes.set_xticks([])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


@_styled
def gradient_against_q(
    q: Array,
    size: Array,
    *,
    images: Array | None = None,
    image_shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Figure:
    """Draw the size of each point's gradient against its assignment, at the start of clustering.

    The size is ||dL_i/dz_i|| for the point's own loss L_i = KL(p_i || q_i); the assignment is q_ij
    of its own cluster j. As in the figure of gradients of Xie, Girshick and Farhadi (ICML 2016):
    points close to a centre should pull harder than doubtful ones.

    Args:
        q: (n,) q_ij of each point's own cluster, in [0, 1].
        size: (n,) norm of the gradient to the point's embedding.
        images: (n, ...) samples of the points; ten of them, the middle one of each tenth of the
            points in order of q, are drawn below. None: no images.
        image_shape: Shape of an image, as for `top_samples`; given together with `images`.
        seed: Seed of the choice of points, of which at most 5,000 are drawn.

    Example:
        >>> import numpy as np
        >>> q = np.linspace(0.2, 0.9, 50)
        >>> figure = gradient_against_q(q, q**2)
        >>> figure.axes[0].get_title("left")
        'Gradient against q at the start: rank correlation 1.00'
    """
    from scipy.stats import rankdata

    q, size = np.asarray(q, dtype=np.float64), np.asarray(size, dtype=np.float64)
    figure = _new_figure(HALF, 3.4 if images is None else 4.0)
    if not len(q):
        _no_data(figure.add_subplot(), "no gradient was recorded")
        return figure
    tenths = np.array_split(np.argsort(q, kind="stable"), min(10, len(q)))
    if images is None or image_shape is None:
        axes = figure.add_subplot()
    else:
        axes, strip = figure.subplots(2, 1, height_ratios=[1, 0.16])
        pictures = [_as_image(images[tenth[len(tenth) // 2]], image_shape) for tenth in tenths]
        framed = [np.pad(p, ((0, 0), (1, 1), (0, 0)), constant_values=1.0) for p in pictures]
        strip.imshow(np.concatenate(framed, axis=1), interpolation="nearest")
        strip.set_xticks([])
        strip.set_yticks([])
        strip.spines[:].set_visible(False)
        strip.set_xlabel("one sample of each tenth, from low to high q", fontsize=9)
    rows = _subsample(len(q), seed)
    alpha = float(np.clip(400 / len(rows), 0.15, 0.7))
    axes.scatter(q[rows], size[rows], s=9, color=_ACCENT, alpha=alpha, linewidths=0)
    axes.plot(
        [np.median(q[tenth]) for tenth in tenths],
        [np.median(size[tenth]) for tenth in tenths],
        color=_SECOND,
        marker="o",
        markersize=4,
        label="median of each tenth",
    )
    varied = np.ptp(q) > 0 and np.ptp(size) > 0
    rank = f"{np.corrcoef(rankdata(q), rankdata(size))[0, 1]:.2f}" if varied else "undefined"
    axes.set_title(f"Gradient against q at the start: rank correlation {rank}")
    axes.set_xlabel("q$_{ij}$ of the point's own cluster")
    axes.set_ylabel(r"$\|\partial L_i / \partial z_i\|$")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.legend()
    return figure


@_styled
def confusion(labels_true: Labels, labels_pred: Labels) -> Figure:
    """Draw how the true classes spread over the clusters: the counts of `confusion_matrix`.

    Columns are in the order of the classes that their clusters are matched to by the Hungarian
    method, clusters left over come last, and empty ones are not drawn. Shades are shares of a row.

    Args:
        labels_true: (N,) true classes: any values.
        labels_pred: (N,) clusters.

    Raises:
        ValueError: Where the lengths differ, labels are not one-dimensional, or one is missing.

    Example:
        >>> figure = confusion(["a", "a", "b"], [1, 1, 0])
        >>> [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        ['1', '0']
    """
    counts, classes, clusters = confusion_matrix(labels_true, labels_pred)
    accuracy = clustering_accuracy(labels_true, labels_pred)
    n_classes, n_clusters = counts.shape
    side = HALF if max(counts.shape) <= 12 else 0.75 * FULL
    shape = float(np.clip(n_classes / max(n_clusters, 1), 0.3, 1.3))
    figure = _new_figure(side, shape * side + 0.3)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Where K is larger, a class that is shared out evenly is as dark as one that is not elsewhere.
    darkest = max(float(shares.max()), min(1.0, n_classes / n_clusters))
    square = 0.5 * n_clusters <= n_classes <= 2 * n_clusters
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=darkest, aspect="equal" if square else "auto")
    if max(counts.shape) <= 15:
        for (r, c), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[r, c] > 0.55 * darkest else _INK
                axes.text(c, r, f"{count}", ha="center", va="center", color=color, fontsize=8)
    for axis, names, most in ((axes.xaxis, clusters, 20), (axes.yaxis, classes, 40)):
        step = 1 if len(names) <= 40 else -(-len(names) // most)
        axis.set_ticks(np.arange(0, len(names), step), [str(name) for name in names[::step]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"Classes against clusters: accuracy {100 * accuracy:.1f} %")
    axes.set_xlabel("cluster, matched to the classes")
    axes.set_ylabel("true class")
    return figure
