from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib", reason="the report's pictures need matplotlib")

from sklearn.exceptions import NotFittedError

from deepclust import _files, datasets, metrics, report
from deepclust import functional as F
from deepclust.cluster import DEC, KMeans
from deepclust.report import Recorder

N, D, K = 60, 4, 3
SMALL = {
    "hidden": (16,),
    "latent_dim": 3,
    "tune_updates": 20,
    "max_updates": 30,
    "update_interval": 10,
    "n_init": 1,
    "tol": 0.0,
    "random_state": 0,
}


class FakeRun:
    """What a callback sees of a run: the embedding is x plus the number of updates."""

    def __init__(self, n: int = N) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(n, D)
        self.centroids = torch.randn(K, D)
        self.stage = SimpleNamespace(name="cluster")
        self.stage_index, self.update, self.refreshed = 0, 0, True
        self.method = self
        self.state: dict[str, Any] = {}
        self.logged: list[tuple[str, int, float]] = []

    def __len__(self) -> int:
        return len(self.x)

    def pick(self, values: Tensor, numbers: Tensor) -> Tensor:
        return values[numbers]

    def gather(self, values: Tensor) -> Tensor:
        return values

    def take(self, rows: Tensor) -> Tensor:
        return self.x[rows]

    def embed(self, x: Tensor) -> Tensor:
        return x + self.update

    def head(self) -> F.StudentT:
        return F.StudentT(self.centroids + self.update, 1.0)

    def log(self, name: str, value: float) -> None:
        self.logged.append((name, self.update, float(value)))

    def refresh(self, recorder: Recorder, update: int) -> None:
        self.update = update
        z, head = self.embed(self.x), self.head()
        f, labels, _ = F.frequencies(z, head)
        self.state |= {"labels": labels, "snapshot": F.freeze_target(z, head, frequencies=f)}
        recorder(self)  # type: ignore[arg-type]


def test_nothing_is_recorded_before_there_are_clusters() -> None:
    run, recorder = FakeRun(), Recorder()
    recorder(run)  # type: ignore[arg-type]
    assert recorder.moments() == []
    assert run.state == {}


def test_a_moment_holds_the_embedding_and_the_clusters_of_its_time() -> None:
    run, recorder = FakeRun(), Recorder(max_rows=20)
    run.refresh(recorder, 0)
    run.refresh(recorder, 30)
    first, second = recorder.moments()
    rows = recorder.state["rows"]
    assert len(rows) == len(set(rows)) == 20
    assert (first.stage, first.update, second.update) == ("cluster", 0, 30)
    assert np.array_equal(second.z, run.x[rows].numpy() + 30)
    assert np.array_equal(second.labels, run.state["labels"].numpy()[rows])


def test_the_subset_depends_on_the_seed_alone() -> None:
    subsets = []
    for seed in (1, 1, 2):
        recorder = Recorder(max_rows=20, seed=seed)
        FakeRun().refresh(recorder, 0)
        subsets.append(recorder.state["rows"].tolist())
    assert subsets[0] == subsets[1] != subsets[2]


def test_moments_are_thinned_and_keep_the_first_and_the_last() -> None:
    run, recorder = FakeRun(), Recorder(max_moments=8)
    for i in range(203):
        run.refresh(recorder, 10 * i)
        assert len(recorder.state["moments"]) <= 8
        shown = [moment.update for moment in recorder.moments(99)]
        assert (shown[0], shown[-1]) == (0, 10 * i)
    assert len(np.unique(np.diff(shown[:-1]))) == 1
    five = [moment.update for moment in recorder.moments()]
    assert len(five) == 5
    assert (five[0], five[-1]) == (0, 2020)
    assert np.ptp(np.diff(five)) <= 320  # one stride


def test_wide_embeddings_take_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_NUMBERS", 10 * 8 * D)
    recorder = Recorder(max_moments=8)
    FakeRun().refresh(recorder, 0)
    assert len(recorder.state["rows"]) == 10


def test_scores_are_logged_at_refreshes_only() -> None:
    run = FakeRun()
    y = np.arange(N) % 4
    recorder = Recorder(y)
    run.refresh(recorder, 0)
    labels = run.state["labels"]
    expected = [
        ("accuracy", 0, metrics.clustering_accuracy(y, labels)),
        ("nmi", 0, metrics.normalized_mutual_info(y, labels)),
    ]
    assert run.logged == expected
    run.refreshed = False
    recorder(run)  # type: ignore[arg-type]
    assert run.logged == expected


def test_the_gradient_is_that_of_the_first_target_by_its_formula() -> None:
    run, recorder = FakeRun(), Recorder()
    run.update = 0
    z_old, old = run.x + 0.5, F.StudentT(run.centroids, 1.0)
    f, labels, _ = F.frequencies(z_old, old)
    run.state = {"labels": labels, "snapshot": F.freeze_target(z_old, old, frequencies=f)}
    recorder(run)  # type: ignore[arg-type]
    run.refresh(recorder, 10)  # the gradient of a later refresh is not taken

    z, mu = run.x.double().numpy(), run.centroids.double().numpy()
    similarity = 1 / (1 + ((z[:, None] - mu) ** 2).sum(2))
    q = similarity / similarity.sum(1, keepdims=True)
    old_q = F.assign(z_old, old).double().numpy()
    p = old_q**2 / old_q.sum(0)
    p /= p.sum(1, keepdims=True)
    w = 2 * (p - q) * similarity
    dz = w.sum(1, keepdims=True) * z - w @ mu
    gradient = recorder.state["gradient"]
    assert np.allclose(gradient["q"], q.max(1), atol=1e-6)
    assert np.allclose(gradient["size"], np.linalg.norm(dz, axis=1), atol=1e-5)


def test_a_resumed_run_continues_the_record(tmp_path: Path) -> None:
    whole, run = Recorder(max_moments=4), FakeRun()
    for i in range(23):
        run.refresh(whole, i)
    first, run = Recorder(max_moments=4), FakeRun()
    for i in range(11):
        run.refresh(first, i)
    record = {"recorder": run.state["recorder"]}
    _files.save_tree(tmp_path / "state", record, kind="checkpoint")
    second, run = Recorder(max_moments=4), FakeRun()
    run.state = _files.load_tree(tmp_path / "state", kind="checkpoint")
    for i in range(11, 23):
        run.refresh(second, i)
    assert second.state.keys() == whole.state.keys()
    for a, b in zip(second.moments(99), whole.moments(99), strict=True):
        assert a.update == b.update
        assert np.array_equal(a.z, b.z)
        assert np.array_equal(a.labels, b.labels)
    assert np.array_equal(second.state["gradient"]["size"], whole.state["gradient"]["size"])


def test_a_second_run_begins_a_new_record() -> None:
    recorder = Recorder()
    FakeRun().refresh(recorder, 7)
    FakeRun().refresh(recorder, 0)
    assert [moment.update for moment in recorder.moments()] == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_rows": 0}, "max_rows: got 0"), ({"max_moments": 1}, "max_moments: got 1")],
)
def test_recorder_refuses_sizes_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recorder(**options)


class Page(HTMLParser):
    """The parts of a report that the tests ask about."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"

    def values(self) -> dict[str, str]:
        pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", self.source)
        return dict(pairs)


@pytest.fixture(scope="module")
def fitted() -> tuple[DEC, datasets.Dataset, Recorder]:
    dataset = datasets.load_digits()
    recorder = Recorder(dataset.y)
    estimator = DEC(10, callbacks=[recorder], **SMALL)
    return estimator.fit(dataset.X), dataset, recorder


@pytest.fixture(scope="module")
def page(fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    estimator, dataset, recorder = fitted
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write_report(
        path,
        estimator=estimator,
        dataset=dataset,
        recorder=recorder,
        title='A <b>bold</b> & "quoted" title',
        command="deepclust fit <script>alert(1)</script>",
        seconds=75.0,
    )
    return Page(path)


def test_the_report_has_every_picture_with_alt_text_and_caption(page: Page) -> None:
    assert page.tags.count("figure") == page.tags.count("figcaption") == len(page.images) == 8
    for image in page.images:
        assert image["alt"]
        assert image["src"] is not None
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        png = base64.b64decode(data, validate=True)
        assert png.startswith(b"\x89PNG")
        width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
        assert (width, height) == (2 * int(image["width"] or 0), 2 * int(image["height"] or 0))


def test_the_report_has_the_numbers(page: Page, fitted: Any) -> None:
    estimator, dataset, _ = fitted
    values = page.values()
    accuracy = metrics.clustering_accuracy(dataset.y, estimator.labels_)
    assert values["ACC"] == f"{100 * accuracy:.1f} %"
    assert {"NMI", "ARI"} < values.keys()
    assert values["samples, N"] == "1,797"
    assert values["features"] == "64"
    assert values["clusters, K"] == "10"
    assert values["updates"] == "50"
    assert values["wall time"] == "1 min 15 s"
    assert "cluster (length of 30 updates)" in page.text
    assert "tune_updates" in page.text
    assert "20 *" in page.text
    assert "'adam', by preset" in page.text
    assert torch.__version__ in page.text


def test_the_report_loads_nothing(page: Page) -> None:
    outside_images = re.sub(r'src="data:[^"]*"', "", page.source)
    assert not re.search(r"https?:|//|url\(|@import|src=", outside_images)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_the_report_escapes_what_users_give(page: Page) -> None:
    assert "deepclust fit <script>alert(1)</script>" in page.text
    assert 'A <b>bold</b> & "quoted" title' in page.text
    assert "b" not in page.tags


def test_without_labels_and_images_their_pictures_are_left_out(fitted: Any, tmp_path: Path) -> None:
    estimator, dataset, _ = fitted
    plain = datasets.Dataset(dataset.X, None, None, "<i>rows</i>")
    report.write_report(tmp_path / "r.html", estimator=estimator, dataset=plain)
    page = Page(tmp_path / "r.html")
    assert "ACC" not in page.values()
    # Without the recorder, only the end of the embedding is known.
    alts = [str(image["alt"]) for image in page.images]
    assert [alt.split()[0] for alt in alts[:2]] == ["Scatter", "Bar"]
    assert not any("true classes" in alt or "images" in alt for alt in alts)
    assert "i" not in page.tags


def test_kmeans_has_a_report_too(tmp_path: Path) -> None:
    dataset = datasets.load_digits()
    estimator = KMeans(5, random_state=0).fit(dataset.X)
    report.write_report(tmp_path / "r.html", estimator=estimator, dataset=dataset)
    page = Page(tmp_path / "r.html")
    assert len(page.images) == 4
    assert "iterations" in page.values()
    assert "Training" not in page.text


def test_a_report_of_the_same_run_has_the_same_pictures(
    page: Page, fitted: Any, tmp_path: Path
) -> None:
    estimator, dataset, recorder = fitted
    report.write_report(
        tmp_path / "r.html", estimator=estimator, dataset=dataset, recorder=recorder
    )
    assert Page(tmp_path / "r.html").images == page.images


def test_a_report_of_an_unfitted_estimator_or_other_data_is_refused(
    fitted: Any, tmp_path: Path
) -> None:
    estimator, dataset, _ = fitted
    with pytest.raises(NotFittedError):
        report.write_report(tmp_path / "r.html", estimator=DEC(3), dataset=dataset)
    other = datasets.Dataset(dataset.X[:9], None, None, "nine")
    with pytest.raises(
        ValueError, match="dataset: got 9 samples; the estimator was fitted to 1797"
    ):
        report.write_report(tmp_path / "r.html", estimator=estimator, dataset=other)
    assert list(tmp_path.iterdir()) == []
