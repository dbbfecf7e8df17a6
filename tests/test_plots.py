from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

mpl = pytest.importorskip("matplotlib", reason="pictures need matplotlib")

from matplotlib.colors import to_rgba  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from deepclust import plots  # noqa: E402
from deepclust.plots import Moment  # noqa: E402

HISTORY = {
    "pretrain-1/reconstruction": [(10, 500.0), (20, 2.0), (30, 1.0)],
    "joint/reconstruction": [(10, 0.9), (20, 0.8)],
    "joint/kl": [(10, 0.1), (20, 0.3)],
    "joint/changed": [(0, 0.5), (10, 0.25), (20, 0.0), (30, 0.01)],
    "joint/accuracy": [(0, 0.6), (10, 0.7), (30, 0.8)],
    "joint/nmi": [(0, 0.5), (10, 0.6), (30, 0.79)],
}


def title(axes: Any) -> str:
    return str(axes.get_title("left"))


def panels(figure: Figure) -> list[Any]:
    """The axes that show data: those of a legend or of a strip of images are switched off."""
    return [axes for axes in figure.axes if axes.axison]


def drawn(figure: Figure) -> Figure:
    figure.canvas.draw()  # layout, ticks and text are only made here
    return figure


def blobs(n: int, K: int, D: int = 5, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n)
    return 4 * rng.normal(size=(K, D))[labels] + rng.normal(size=(n, D)), labels


def test_every_loss_has_a_panel_with_its_values() -> None:
    figure = plots.loss_curves(HISTORY)
    shown = [(title(axes), axes.get_ylabel()) for axes in figure.axes]
    assert shown == [
        ("pretrain-1", "reconstruction"),
        ("joint", "reconstruction"),
        ("joint", "kl"),
    ]
    for axes, name in zip(figure.axes, HISTORY, strict=False):
        (line,) = axes.lines
        assert np.array_equal(line.get_xydata(), HISTORY[name])
        assert axes.get_xlabel() == "updates"
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]


def test_a_single_value_is_seen() -> None:
    (axes,) = plots.loss_curves({"tune/reconstruction": [(10, 0.5)]}).axes
    assert axes.lines[0].get_marker() == "o"


def test_loss_curves_say_when_there_is_none() -> None:
    (axes,) = plots.loss_curves({"cluster/changed": [(0, 0.1)], "a/kl": []}).axes
    assert "no losses" in axes.texts[0].get_text()


def test_changed_labels_are_logarithmic_and_show_zeros_as_marks() -> None:
    (axes,) = drawn(plots.changed_labels(HISTORY, tol=0.002)).axes
    assert axes.get_yscale() == "log"
    curve, zeros, line = axes.lines
    assert curve.get_xdata().tolist() == [10, 20, 30]  # not update 0
    assert curve.get_ydata().tolist() == [0.25, 0.001, 0.01]
    assert zeros.get_xdata().tolist() == [20]
    assert zeros.get_marker() == "v"
    assert line.get_ydata()[0] == 0.002
    low, high = axes.get_ylim()
    assert low < 0.001
    assert high > 1
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["none changed", "tol: 0.2 %"]


@pytest.mark.parametrize("history", [{}, {"cluster/changed": [(0, 0.0)]}])
def test_changed_labels_say_when_there_is_none(history: Any) -> None:
    (axes,) = plots.changed_labels(history, tol=0.1).axes
    assert "no changes" in axes.texts[0].get_text()


def test_scores_are_drawn_and_named_at_their_ends() -> None:
    (axes,) = drawn(plots.accuracy_curve(HISTORY)).axes
    assert [line.get_label() for line in axes.lines] == ["ACC", "NMI"]
    assert np.array_equal(axes.lines[0].get_xydata(), HISTORY["joint/accuracy"])
    texts = {text.get_text(): text.xy[1] for text in axes.texts}
    assert set(texts) == {"ACC 80.0 %", "NMI 79.0 %"}
    gap = texts["ACC 80.0 %"] - texts["NMI 79.0 %"]
    assert gap >= 0.05 * np.ptp(axes.get_ylim())  # the names do not lie over one another


def test_scores_of_a_second_stage_continue_the_first() -> None:
    history = {"warm/accuracy": [(0, 0.2), (50, 0.3)], "joint/accuracy": [(0, 0.3), (10, 0.4)]}
    (axes,) = plots.accuracy_curve(history).axes
    assert axes.lines[0].get_xdata().tolist() == [0, 50, 50, 60]


def test_embedding_has_a_panel_for_each_moment_and_a_legend() -> None:
    z, labels = blobs(300, 4)
    labels[labels == 2] = 0  # an empty cluster
    moments = [Moment("cluster", 40 * i, z * (1 + i), labels) for i in range(5)]
    figure = plots.embedding(moments, 4)
    assert [title(axes) for axes in panels(figure)] == [
        f"cluster, update {40 * i}" for i in range(5)
    ]
    colors = [to_rgba(c, 0.75) for c in plots.cluster_colors(4)]
    for axes in panels(figure):
        points = axes.collections[0]
        assert len(points.get_offsets()) == 300
        found = {tuple(c) for c in np.round(points.get_facecolors(), 6)}
        assert found == {tuple(np.round(colors[j], 6)) for j in (0, 1, 3)}
        assert [text.get_text() for text in axes.texts] == ["0", "1", "3"]
    legend = figure.axes[-1].get_legend()
    counts = np.bincount(labels, minlength=4)
    assert [t.get_text() for t in legend.get_texts()] == [f"{j}: {counts[j]}" for j in range(4)]


def test_embedding_without_a_legend_has_panels_alone() -> None:
    z, labels = blobs(60, 3)
    moments = [Moment("a", i, z, labels) for i in range(2)]
    figures = [plots.embedding(moments, 3, legend=legend) for legend in (True, False)]
    assert [len(figure.axes) for figure in figures] == [3, 2]
    assert 3 * figures[1].get_figwidth() == pytest.approx(2 * figures[0].get_figwidth())


def test_panels_of_turned_embeddings_look_the_same() -> None:
    z, labels = blobs(200, 3, D=4)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    figure = plots.embedding([Moment("a", 0, z @ turn, labels), Moment("a", 1, z, labels)], 3)
    first, second = (axes.collections[0].get_offsets() for axes in panels(figure))
    assert np.allclose(first, second)


def test_large_embeddings_are_drawn_from_the_same_5000_rows_everywhere() -> None:
    z, labels = blobs(7000, 3, D=2)
    moments = [Moment("a", i, z, labels) for i in range(2)]
    offsets = [axes.collections[0].get_offsets() for axes in panels(plots.embedding(moments, 3))]
    assert all(len(o) == 5000 for o in offsets)
    assert np.allclose(offsets[0], offsets[1])
    again = panels(plots.embedding(moments, 3))[0].collections[0].get_offsets()
    assert np.array_equal(offsets[0], again)


@pytest.mark.parametrize(("n", "D"), [(1, 3), (2, 1), (3, 2), (20, 1)])
@pytest.mark.parametrize("tsne", [False, True])
def test_embedding_of_few_rows_or_columns(n: int, D: int, tsne: bool) -> None:
    z, labels = blobs(n, 2, D)
    drawn(plots.embedding([Moment("a", 0, z, labels), Moment("a", 9, z, labels)], 2, tsne=tsne))


def test_tsne_replaces_the_components() -> None:
    z, labels = blobs(60, 3)
    moments = [Moment("a", 0, z, labels)]
    plain, tsne = plots.embedding(moments, 3), plots.embedding(moments, 3, tsne=True)
    assert "t-SNE" in tsne.get_suptitle()
    assert "t-SNE" not in plain.get_suptitle()
    offsets = [panels(figure)[0].collections[0].get_offsets() for figure in (plain, tsne)]
    assert not np.allclose(*offsets)


@pytest.mark.parametrize("sizes", [[], [5, 6]])
def test_embedding_refuses_moments_of_other_rows(sizes: list[int]) -> None:
    moments = [Moment("a", i, np.ones((n, 2)), np.zeros(n, int)) for i, n in enumerate(sizes)]
    with pytest.raises(ValueError, match="moments: takes one moment or more of the same rows"):
        plots.embedding(moments, 2)


def test_sizes_are_bars_by_number_and_empty_clusters_are_counted() -> None:
    (axes,) = drawn(plots.cluster_sizes(np.array([0, 0, 3, 3, 3, 0]), 5)).axes
    assert [bar.get_height() for bar in axes.patches] == [3, 0, 0, 3, 0]
    assert title(axes) == "Sizes of the 5 clusters: 3 are empty"
    assert axes.lines[0].get_ydata()[0] == pytest.approx(6 / 5)
    assert [text.get_text() for text in axes.texts] == ["3", "0", "0", "3", "0"]


def test_sizes_of_many_clusters_are_in_falling_order() -> None:
    labels = np.repeat(np.arange(60), np.arange(60) % 7 + 1)
    (axes,) = plots.cluster_sizes(labels, 60).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == sorted(np.bincount(labels).tolist(), reverse=True)
    assert "largest" in axes.get_xlabel()


def test_top_samples_are_in_order_of_their_score() -> None:
    # Image i is a single white pixel at place i, so that the mosaic tells which image is where.
    X = np.eye(36)[:24]
    labels = np.array([0] * 12 + [2] * 3 + [3] * 9)
    scores = np.random.default_rng(0).permutation(24).astype(float)
    figure = plots.top_samples(X, (6, 6), labels, scores, 4)
    (axes,) = figure.axes
    mosaic = np.asarray(axes.images[0].get_array())
    cell = 6 + 1
    for line in range(4):
        members = np.flatnonzero(labels == line)
        best = members[np.argsort(-scores[members])][:10]
        for column in range(10):
            tile = mosaic[line * cell : line * cell + 6, column * cell : column * cell + 6, 0]
            if column < len(best):
                assert tile.argmax() == best[column]
                assert tile.sum() == 1
            else:
                assert (tile == 1).all()
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "0  (n=12)",
        "1  (empty)",
        "2  (n=3)",
        "3  (n=9)",
    ]


def test_of_very_many_clusters_the_largest_are_shown() -> None:
    labels = np.concatenate([np.arange(200), np.arange(100, 160)])
    figure = plots.top_samples(np.zeros((260, 4)), (2, 2), labels, np.zeros(260), 200)
    assert len(figure.axes) == 3
    names = [t.get_text().split()[0] for axes in figure.axes for t in axes.get_yticklabels()]
    assert [int(name) for name in names] == list(range(100, 160))
    assert "60 largest of 200" in figure.get_suptitle()


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3), (4, 4, 4), (2, 8, 2)])
def test_images_of_any_number_of_channels(shape: tuple[int, ...]) -> None:
    X = np.random.default_rng(0).integers(0, 255, (30, int(np.prod(shape)))).astype(np.uint8)
    figure = plots.top_samples(X, shape, np.arange(30) % 2, np.arange(30.0), 2)
    mosaic = figure.axes[0].images[0].get_array()
    assert mosaic.shape == (2 * (shape[0] + 1), 10 * (shape[1] + 1), 3)
    assert mosaic.min() == 0
    assert mosaic.max() == 1


def test_gradient_has_points_and_the_median_of_each_tenth() -> None:
    q = np.linspace(0.1, 0.9, 200)
    size = q**2
    (axes,) = plots.gradient_against_q(q, size).axes
    assert np.allclose(axes.collections[0].get_offsets(), np.stack([q, size], 1))
    medians = axes.lines[0].get_xydata()
    assert len(medians) == 10
    assert np.allclose(medians[0], [np.median(q[:20]), np.median(size[:20])])
    assert title(axes).endswith("rank correlation 1.00")


def test_gradient_shows_ten_samples_from_low_to_high_q() -> None:
    q = np.random.default_rng(0).permutation(100) / 100
    images = np.eye(100)
    figure = plots.gradient_against_q(q, q, images=images, image_shape=(10, 10))
    strip = np.asarray(figure.axes[1].images[0].get_array())[:, :, 0]
    tiles = strip.reshape(10, 10, 12)[:, :, 1:11]
    shown = [int(tiles[:, i].argmax()) for i in range(10)]
    assert q[shown].tolist() == pytest.approx(np.arange(0.05, 1, 0.1).tolist())


@pytest.mark.parametrize("n", [0, 1, 3])
def test_gradient_of_few_points(n: int) -> None:
    drawn(plots.gradient_against_q(np.full(n, 0.5), np.zeros(n)))


def test_confusion_matches_columns_and_writes_counts() -> None:
    true = np.array(["a"] * 5 + ["b"] * 4 + ["c"] * 3)
    pred = np.array([2] * 5 + [0] * 3 + [1] + [1] * 3)
    (axes,) = drawn(plots.confusion(true, pred)).axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["2", "0", "1"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "c"]
    counts = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}
    assert counts == {(0, 0): "5", (1, 1): "3", (1, 2): "1", (2, 2): "3"}
    assert np.allclose(axes.images[0].get_array()[1], [0, 0.75, 0.25])
    assert title(axes).endswith(f"accuracy {100 * 11 / 12:.1f} %")


@pytest.mark.parametrize("K", [1, 2, 10, 31, 200])
def test_all_pictures_can_be_drawn_for_any_number_of_clusters(K: int) -> None:
    n = 3 * K + 5
    z, labels = blobs(n, K)
    labels[labels == K // 2] = 0
    moments = [Moment("cluster", i, z, labels) for i in range(5)]
    drawn(plots.embedding(moments, K))
    drawn(plots.cluster_sizes(labels, K))
    drawn(plots.top_samples(np.abs(z[:, :4]), (2, 2), labels, z[:, 0], K))
    drawn(plots.confusion(np.arange(n) % K, labels))


def test_the_first_thirty_colors_differ() -> None:
    colors = plots.cluster_colors(30)
    assert colors.shape == (30, 3)
    assert colors.min() >= 0
    assert colors.max() <= 1
    assert len(np.unique(colors.round(6), axis=0)) == 30
    assert np.array_equal(plots.cluster_colors(10), colors[:10])
    assert plots.cluster_colors(200).shape == (200, 3)


def test_the_users_own_style_does_not_reach_the_pictures_nor_theirs_the_user() -> None:
    with mpl.rc_context({"axes.titlesize": 40, "axes.grid": True, "lines.linewidth": 9}):
        before = dict(mpl.rcParams)
        (axes,) = plots.accuracy_curve(HISTORY).axes
        assert dict(mpl.rcParams) == before
    assert axes.title.get_fontsize() < 15
    assert axes.lines[0].get_linewidth() < 3


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'deepclust\[plots\]'"):
        plots.loss_curves(HISTORY)
