"""Rows that are not in memory: files, memory maps, blocks."""

from __future__ import annotations

import _thread
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.datasets import make_blobs

from deepclust import report
from deepclust.cluster import (
    ABC,
    ACAI,
    DCAN,
    DCN,
    DEC,
    DEPICT,
    IDEC,
    Balance,
    CollapseGuard,
    DeepClustering,
    KMeans,
    KMeansLoss,
    MiniBatchKMeans,
    SoftReset,
    VaDE,
)
from deepclust.cluster._columns import Column
from deepclust.cluster._sources import File, Slices, ahead, source_of

N, D = 1500, 6
ESTIMATORS = [KMeans, MiniBatchKMeans]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a hundred rows and columns in files, so that a few rows are many blocks."""
    monkeypatch.setattr("deepclust.cluster._points.BLOCK_ELEMENTS", 100 * D)
    monkeypatch.setattr("deepclust.cluster._columns.MEMORY_BYTES", 0)
    for module in ("_columns", "_seeding"):
        monkeypatch.setattr(f"deepclust.cluster.{module}.BLOCK_ROWS", 130)


@pytest.fixture(name="X")
def fixture_rows() -> np.ndarray:
    rows, _ = make_blobs(N, n_features=D, centers=7, cluster_std=3.0, random_state=0)
    return rows.astype(np.float32)


class Anew:
    """Blocks of some sizes, none of them the same, that an iter() starts anew."""

    def __init__(self, X: np.ndarray) -> None:
        self._blocks = np.split(X, [0, 1, 77, 340, 900])

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from self._blocks


def saved(X: np.ndarray, folder: Path) -> Path:
    np.save(folder / "X.npy", X)
    return folder / "X.npy"


def in_forms(X: np.ndarray, folder: Path) -> dict[str, Any]:
    path = saved(X, folder)
    mapped = np.load(path, mmap_mode="r")
    assert isinstance(source_of(mapped), File)
    np.save(folder / "F.npy", np.asfortranarray(X))
    columns = np.load(folder / "F.npy", mmap_mode="r")
    assert isinstance(source_of(columns), Slices)
    np.save(folder / "longer.npy", np.concatenate([X[:3], X, X[:5]]))
    part = np.load(folder / "longer.npy", mmap_mode="r")[3 : 3 + len(X)]
    assert isinstance(source_of(part), File)
    return {
        "path": str(path),
        "os.PathLike": path,
        "memory map": mapped,
        "by columns": columns,
        "part of a map": part,
        "list": [X[:200], X[200:201], X[201:]],
        "list of tensors": list(torch.from_numpy(X).split(333)),
        "list of sparse": [scipy.sparse.csr_array(X[:500]), scipy.sparse.csr_array(X[500:])],
        "iterable": Anew(X),
    }


def assert_same(found: Any, made: Any) -> None:
    np.testing.assert_array_equal(found.labels_, made.labels_)
    np.testing.assert_array_equal(found.cluster_centers_, made.cluster_centers_)
    assert found.cluster_centers_.dtype == made.cluster_centers_.dtype
    assert found.n_iter_ == made.n_iter_
    # That of rows in memory comes from sums, not from distances.
    digits = 1e-7 if made.cluster_centers_.dtype == np.float32 else 1e-13
    assert found.inertia_ == pytest.approx(made.inertia_, rel=digits, abs=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_whatever_rows_lie_in_the_bits_are_the_same(
    X: np.ndarray, init: str, metric: str, weighted: bool, tmp_path: Path, small: None
) -> None:
    weight = np.random.default_rng(1).random(N) if weighted else None
    options = {"init": init, "n_init": 2, "metric": metric, "random_state": 0}
    made = KMeans(9, **options).fit(X, sample_weight=weight)
    assert made.n_iter_ > 2
    for form, rows in in_forms(X, tmp_path).items():
        found = KMeans(9, **options).fit(rows, sample_weight=weight)
        assert_same(found, made)
        np.testing.assert_array_equal(found.predict(rows), made.labels_, err_msg=form)
        assert found.score(rows, sample_weight=weight) == made.score(X, sample_weight=weight)
        np.testing.assert_array_equal(found.transform(rows), made.transform(X))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8, ">f4"])
def test_other_types_are_converted_as_they_are_read(
    X: np.ndarray, dtype: Any, tmp_path: Path, small: None
) -> None:
    rows = X.round().astype(dtype)
    single = np.dtype(dtype).itemsize * (np.dtype(dtype).kind == "f") in (2, 4)
    made = KMeans(5, random_state=0).fit(rows.astype(np.float32 if single else np.float64))
    assert_same(KMeans(5, random_state=0).fit(saved(rows, tmp_path)), made)
    assert_same(KMeans(5, random_state=0).fit([rows[:700], rows[700:]]), made)


@pytest.mark.parametrize("weighted", [False, True])
def test_empty_clusters_get_the_farthest_rows_of_a_file(
    X: np.ndarray, weighted: bool, tmp_path: Path, small: None
) -> None:
    weight = np.random.default_rng(1).integers(0, 3, N) if weighted else None
    init = np.concatenate([X[:3], np.full((4, D), 1e3, np.float32)])
    made = KMeans(7, init=init).fit(X, sample_weight=weight)
    assert len(np.unique(made.labels_)) == 7
    assert_same(KMeans(7, init=init).fit(saved(X, tmp_path), sample_weight=weight), made)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_batches_of_a_file_are_those_of_the_array(
    X: np.ndarray, metric: str, weighted: bool, tmp_path: Path, small: None
) -> None:
    weight = np.random.default_rng(1).random(N) if weighted else None
    made = MiniBatchKMeans(9, metric=metric, random_state=0).fit(X, sample_weight=weight)
    forms = in_forms(X, tmp_path)
    for form in ("path", "memory map", "by columns", "part of a map"):
        found = MiniBatchKMeans(9, metric=metric, random_state=0)
        assert_same(found.fit(forms[form], sample_weight=weight), made)


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_of_blocks_come_in_order_however_they_are_cut(
    X: np.ndarray, weighted: bool, small: None
) -> None:
    weight = np.random.default_rng(1).random(N) if weighted else None
    options = {"batch_size": 140, "max_iter": 2, "init": X[:9], "reassignment_ratio": 0.0}
    made, found = (MiniBatchKMeans(9, **options, random_state=0) for _ in range(2))
    made.fit([X], sample_weight=weight)
    assert_same(found.fit(Anew(X), sample_weight=weight), made)
    stepwise = MiniBatchKMeans(9, **options, max_no_improvement=None)
    stepwise.fit([X], sample_weight=weight)
    by_hand = MiniBatchKMeans(9, **options)
    for start in [*range(0, N, 140), *range(0, N, 140)][: stepwise.n_steps_]:
        rows = slice(start, start + 140)
        by_hand.partial_fit(X[rows], sample_weight=None if weight is None else weight[rows])
    np.testing.assert_array_equal(stepwise.cluster_centers_, by_hand.cluster_centers_)
    drawn = MiniBatchKMeans(9, random_state=0).fit([X], sample_weight=weight)
    assert drawn.inertia_ < 1.3 * MiniBatchKMeans(9, random_state=0).fit(X, None, weight).inertia_


@pytest.mark.parametrize("Estimator", ESTIMATORS)
def test_a_function_gives_the_start_of_a_file(
    Estimator: Any, X: np.ndarray, tmp_path: Path
) -> None:
    def first_rows(rows: Any, n_clusters: int, random_state: Any) -> Any:
        return rows[:n_clusters]

    found = Estimator(6, init=first_rows, n_init=1, random_state=0).fit(saved(X, tmp_path))
    assert_same(found, Estimator(6, init=first_rows, n_init=1, random_state=0).fit(X))


SMALL: dict[str, Any] = {"hidden": (8,), "latent_dim": 3, "tune_updates": 4, "max_updates": 4}
SMALL |= {"batch_size": 64, "n_init": 2, "random_state": 0}
DEEP_METHODS = {
    "dec": (DEC, {"update_interval": 2, "tol": 0.0}),
    "dec in order": (DEC, {"preset": "paper", "layer_updates": 0, "update_interval": 2}),
    "idec": (IDEC, {}),
    "dcn": (DCN, {}),
    "abc": (ABC, {}),
    "abc gaussian": (ABC, {"form": "gaussian"}),
    "vade": (VaDE, {}),
    "depict": (DEPICT, {"network": "mlp", "update_interval": 2}),
    "depict exact": (DEPICT, {"network": "mlp", "update_interval": 2, "target": "exact"}),
    "acai": (ACAI, {"max_updates": 2}),
    "dcan": (DCAN, {}),
    "dcan mixture": (DCAN, {"clusters": "mixture"}),
    "frozen": (
        DeepClustering,
        {
            "clustering": "hardening",
            "freeze_encoder": True,
            "interventions": [CollapseGuard(least=0.9)],
            "regularisers": [Balance(momentum=0.5)],
        },
    ),
    "again": (
        DeepClustering,
        {"clustering": "k-means", "interventions": [SoftReset(every=2)], "recluster": True},
    ),
    "whitened": (
        DeepClustering,
        {"clustering": KMeansLoss(whiten=True), "freeze_encoder": True},
    ),
}


@pytest.fixture
def nothing_fits(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    """Rows stay in their file, and what they have goes to one; a few of them are many blocks."""
    monkeypatch.setattr("deepclust.cluster._data.RESIDENT_BYTES", 0)
    monkeypatch.setattr("deepclust.cluster._data.BLOCK_ROWS", 400)
    monkeypatch.setattr("deepclust.cluster._columns.BLOCK_ELEMENTS", 1000)


@pytest.mark.filterwarnings("ignore:update:RuntimeWarning")
@pytest.mark.parametrize("name", DEEP_METHODS)
def test_deep_methods_of_a_file_are_those_of_the_array(
    name: str, X: np.ndarray, tmp_path: Path, nothing_fits: None
) -> None:
    Estimator, more = DEEP_METHODS[name]
    kept: list[dict[str, str]] = []

    def keep(run: Any) -> None:
        state = {**run.state, "z": getattr(run.state.get("snapshot"), "z", None)}
        kept.append({name: type(value).__name__ for name, value in state.items()})

    made, found = (Estimator(4, **{**SMALL, **more}, callbacks=[keep]) for _ in range(2))
    made.fit(X)
    in_memory = kept.copy()
    path = saved(X, tmp_path)
    np.testing.assert_array_equal(found.fit(path).labels_, made.labels_)
    np.testing.assert_array_equal(found.cluster_centers_, made.cluster_centers_)
    assert found.history_ == made.history_
    assert len(kept) == 2 * len(in_memory)
    for state in kept[len(in_memory) :]:
        for field in {"labels", "z", "codes"} & state.keys():
            assert state[field] in ("Column", "NoneType"), field
    assert not any("Column" in state.values() for state in in_memory)
    for use in ("predict", "predict_proba", "transform"):
        result = getattr(found, use)(path)
        assert isinstance(result, np.memmap)
        np.testing.assert_array_equal(result, getattr(made, use)(X))


def test_a_deep_fit_of_a_file_goes_on_after_ctrl_c(
    X: np.ndarray, tmp_path: Path, nothing_fits: None
) -> None:
    def interrupt(run: Any) -> None:
        if run.stage.name == "cluster" and run.update == 2:
            raise KeyboardInterrupt

    path, (_, more) = saved(X, tmp_path), DEEP_METHODS["dec"]
    made = DEC(4, **{**SMALL, **more}).fit(X)
    for checkpoint in (None, tmp_path / "run.safetensors"):
        found = DEC(4, **{**SMALL, **more}, callbacks=[interrupt], checkpoint=checkpoint)
        with pytest.raises(KeyboardInterrupt):
            found.fit(path)
        found.set_params(callbacks=()).fit(path, resume=True)
        np.testing.assert_array_equal(found.labels_, made.labels_)
        assert found.history_ == made.history_


def test_what_a_callback_finds_of_a_file(X: np.ndarray, tmp_path: Path, nothing_fits: None) -> None:
    def look(run: Any) -> None:
        if run.refreshed:
            labels, z = run.state["labels"], run.map(run.method.embed)
            assert np.bincount(labels).sum() == len(labels) == N
            assert np.asarray(z, np.float64).shape == z.shape == (N, 3)
            assert sum(len(x) for _, x in run.rows()) == N
            seen.append(run.update)

    seen: list[int] = []
    recorder = report.Recorder(np.arange(N) % 4, max_rows=50)
    DEC(4, **SMALL, callbacks=[look, recorder]).fit(saved(X, tmp_path))
    assert seen == [0, 4]
    assert recorder.state["gradient"]["size"].shape == (50,)


@pytest.fixture(name="dec", scope="module")
def fixture_dec() -> tuple[np.ndarray, DEC]:
    rows = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    return rows, DEC(4, **SMALL).fit(rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_embeddings_are_written_to_what_is_given(
    dtype: Any, dec: tuple[np.ndarray, DEC], tmp_path: Path, nothing_fits: None
) -> None:
    rows, made = dec
    path, z = saved(rows, tmp_path), made.transform(rows)
    mapped = np.lib.format.open_memmap(tmp_path / "z.npy", "w+", dtype, (N, 3))
    for out in (mapped, np.empty((N, 3), dtype), np.empty((N, 6), dtype)[:, ::2]):
        assert made.transform(path, out=out) is out
        np.testing.assert_array_equal(out, z)
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), z)
    q = np.empty((N, 4), dtype)
    assert made.predict_proba(path, out=q) is q
    np.testing.assert_array_equal(q, made.predict_proba(rows))


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((N, 2), "f4"), ValueError, r"out: got shape \(1500, 2\); it takes \(1500, 3\)"),
        (np.empty((N - 1, 3), "f4"), ValueError, r"out: got shape \(1499, 3\)"),
        (np.empty((N, 3), int), ValueError, "out: got int64; it takes float32 or float64"),
        (np.empty((N, 3), "f2"), ValueError, "out: got float16; it takes float32 or float64"),
        (np.broadcast_to(np.float32(0), (N, 3)), ValueError, "out: got a read-only array"),
        ("z.npy", TypeError, "out: got str; it takes an array or memory map"),
    ],
)
def test_what_embeddings_cannot_be_written_to(
    out: Any, error: Any, message: str, dec: tuple[np.ndarray, DEC]
) -> None:
    rows, made = dec
    with pytest.raises(error, match=message):
        made.transform(rows, out=out)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, ">f4"])
def test_deep_methods_convert_other_types_as_they_are_read(
    dtype: Any, X: np.ndarray, tmp_path: Path, nothing_fits: None
) -> None:
    rows = np.abs(X).round().astype(dtype)
    made = DEC(4, **SMALL).fit(rows.astype(np.float32))
    path = saved(rows, tmp_path)
    np.save(tmp_path / "F.npy", np.asfortranarray(rows))
    for form in (path, np.load(tmp_path / "F.npy", mmap_mode="r"), np.load(path, mmap_mode="c")):
        found = DEC(4, **SMALL).fit(form)
        np.testing.assert_array_equal(found.labels_, made.labels_)
        assert found.history_ == made.history_


def test_same_bits_for_any_number_of_threads(X: np.ndarray, tmp_path: Path, threads: Any) -> None:
    path, fits = saved(np.repeat(X, 40, axis=0), tmp_path), []
    for n in (1, 3):
        threads(n)
        fits.append(KMeans(9, random_state=0).fit(path))
    assert_same(*fits)


def test_labels_of_a_file_are_a_map_without_a_name(
    X: np.ndarray, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    km = KMeans(5, random_state=0).fit(saved(X, tmp_path))
    assert isinstance(km.labels_, np.memmap)
    assert km.labels_.dtype == np.int64
    assert not km.labels_.flags.writeable
    assert not any(temporary.iterdir())
    assert type(KMeans(5, random_state=0).fit(X).labels_) is np.ndarray


# --- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("Estimator", ESTIMATORS)
class TestFiles:
    def test_no_such_file(self, Estimator: Any, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"none\.npy"):
            Estimator(2).fit(tmp_path / "none.npy")

    def test_a_file_that_may_not_be_read(
        self, Estimator: Any, X: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "folder.npy").mkdir()
        with pytest.raises(IsADirectoryError, match=r"folder\.npy"):
            Estimator(2).fit(tmp_path / "folder.npy")
        path = saved(X, tmp_path)
        path.chmod(0)
        if not os.access(path, os.R_OK):  # root reads it
            with pytest.raises(PermissionError, match=r"X\.npy"):
                Estimator(2).fit(path)

    def test_truncated(self, Estimator: Any, X: np.ndarray, tmp_path: Path) -> None:
        path = saved(X, tmp_path)
        os.truncate(path, 128 + 1000)
        says = r"X\.npy: cannot be read as \.npy: it is truncated: an array of shape \(1500, 6\)"
        with pytest.raises(ValueError, match=f"{says} .* takes 36,128 bytes, it has 1,128"):
            Estimator(2).fit(str(path))

    def test_cut_short_while_it_is_read(
        self, Estimator: Any, X: np.ndarray, tmp_path: Path
    ) -> None:
        source = source_of(np.load(saved(X, tmp_path), mmap_mode="r"))
        os.truncate(tmp_path / "X.npy", 128 + 24 * 700 + 5)
        with pytest.raises(ValueError, match=r"X\.npy: it ends before row 700 of 1500 does"):
            list(ahead(source.blocks(100)))
        with pytest.raises(ValueError, match=r"X\.npy: it ends before row 1400 of 1500 does"):
            source.take(np.array([1400, 3]))

    @pytest.mark.parametrize("text", [b"", b"1,2\n3,4\n", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
    def test_no_npy(self, Estimator: Any, text: bytes, tmp_path: Path) -> None:
        (tmp_path / "X.npy").write_bytes(text)
        with pytest.raises(ValueError, match=r"X\.npy: cannot be read as \.npy"):
            Estimator(2).fit(tmp_path / "X.npy")

    @pytest.mark.parametrize("form", ["path", "memory map", "list", "iterable"])
    def test_nan_in_the_middle(
        self, Estimator: Any, form: str, X: np.ndarray, tmp_path: Path, small: None
    ) -> None:
        X[[777, 1200], 2] = np.nan
        with pytest.raises(ValueError, match="X: row 777 has NaN or Inf"):
            Estimator(2).fit(in_forms(X, tmp_path)[form])

    def test_fewer_rows_than_clusters(self, Estimator: Any, X: np.ndarray, tmp_path: Path) -> None:
        for rows in (saved(X[:3], tmp_path), [X[:1], X[1:3]]):
            with pytest.raises(ValueError, match="n_clusters: got 4, more than the 3 rows of X"):
                Estimator(4).fit(rows)

    def test_another_width(self, Estimator: Any, X: np.ndarray, tmp_path: Path) -> None:
        made = Estimator(3, random_state=0).fit(X)
        for rows in (saved(X[:, 1:], tmp_path), [X[:, 1:]]):
            with pytest.raises(ValueError, match=r"X has 5 features, but .* is expecting 6"):
                made.predict(rows)


@pytest.mark.parametrize("Estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([np.ones((3, 2)), np.ones((3, 4))], "X: block 1 has 4 columns, the first 2"),
        ([np.ones((3, 2)), np.ones((3, 2), "f4")], "X: block 1 is of float32, the first float64"),
        ([np.ones((3, 2)), np.ones(3)], r"X: block 1 has shape \(3,\); it takes blocks \(n, D\)"),
        ([np.ones((3, 2)), [["a", "b"]]], "X: block 1 is of <U1; it takes real numbers"),
        ([np.ones((3, 0))], r"X: block 0 has shape \(3, 0\)"),
        ({}, "X: got no block; it takes at least one"),
        ((block for block in [np.ones((3, 2))]), "X: got a generator, which is read once"),
    ],
)
def test_bad_blocks(Estimator: Any, blocks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Estimator(2).fit(blocks)


class Fewer(Anew):
    """Blocks of which each pass but the first lacks one."""

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from self._blocks
        self._blocks = self._blocks[:4]


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_blocks_that_do_not_start_anew(X: np.ndarray, init: str) -> None:
    with pytest.raises(ValueError, match="X: the blocks had 1500 rows before, 340 now"):
        KMeans(2, init=init, random_state=0).fit(Fewer(X))


def n_readers() -> int:
    return sum(thread.name.startswith("deepclust-reader") for thread in threading.enumerate())


def test_the_reader_ends_with_the_loop() -> None:
    for _ in ahead(iter(range(1000))):
        assert n_readers() == 1
        break
    assert n_readers() == 0
    assert list(ahead(iter(range(1, 1000)))) == list(range(1, 1000))
    assert n_readers() == 0


def test_errors_of_the_reader_are_the_callers() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    numbers = ahead(broken())
    assert next(numbers) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(numbers)
    assert n_readers() == 0


class Interrupting(Anew):
    """Blocks in the middle of which, in one of the passes, someone presses Ctrl-C."""

    def __init__(self, X: np.ndarray, number: int) -> None:
        super().__init__(X)
        self.left = number

    def __iter__(self) -> Iterator[np.ndarray]:
        self.left -= 1
        yield from self._blocks[:3]
        if self.left == 0:
            _thread.interrupt_main()
        yield from self._blocks[3:]


@pytest.fixture
def terminal() -> Iterator[None]:
    """Ctrl-C is heard, as in a terminal: a shell's background jobs begin with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_after_ctrl_c_the_centroids_are_kept(X: np.ndarray, small: None, terminal: None) -> None:
    options: dict[str, Any] = {"init": X[:9], "tol": 0.0}
    # One pass looks at the first block, one looks for NaN, then each iteration is one.
    km = KMeans(9, **options).fit(X)
    with pytest.raises(KeyboardInterrupt):
        km.fit(Interrupting(X, 2 + 4))
    end = time.monotonic() + 60
    while n_readers():  # one that was just being started ends by itself
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.warns(match="max_iter=3"):
        three = KMeans(9, **options, max_iter=3).fit(X)
    np.testing.assert_array_equal(km.cluster_centers_, three.cluster_centers_)
    assert km.n_iter_ == 3
    assert not hasattr(km, "labels_")
    np.testing.assert_array_equal(km.predict(X), three.labels_)


def test_after_ctrl_c_the_best_start_is_kept(X: np.ndarray, small: None, terminal: None) -> None:
    options: dict[str, Any] = {"init": "random", "random_state": 0, "tol": 0.0}
    one = KMeans(9, **options, n_init=1).fit(X)
    km = KMeans(9, **options, n_init=2)
    # Rows are picked for either start in a pass of their own, and each start ends with one.
    with pytest.raises(KeyboardInterrupt):
        km.fit(Interrupting(X, 2 + (1 + one.n_iter_ + 1) + 2))
    assert_same(km, one)


def test_after_ctrl_c_mini_batches_are_kept(X: np.ndarray, small: None, terminal: None) -> None:
    options: dict[str, Any] = {"init": X[:9], "batch_size": 150, "max_no_improvement": None}
    made = MiniBatchKMeans(9, **options, max_iter=2)
    with pytest.raises(KeyboardInterrupt):
        made.fit(Interrupting(X, 2 + 2))
    assert 10 <= made.n_steps_ < 20
    assert len(made.predict(X)) == N


def test_a_full_disk_leaves_the_centroids_and_no_file(
    X: np.ndarray, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, temporary = saved(X, tmp_path), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for Estimator in ESTIMATORS:
        made = Estimator(5, init=X[:5])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * N, limits[1]))
        try:
            with pytest.raises(OSError, match=r"the labels, distances and .* 1,500 rows") as caught:
                made.fit(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.filename == str(temporary)
        assert not any(temporary.iterdir())
        assert made.predict(X).shape == (N,)


def test_a_full_disk_is_named_by_a_deep_method(
    X: np.ndarray, tmp_path: Path, nothing_fits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, temporary = saved(X, tmp_path), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * N, limits[1]))
    try:
        with pytest.raises(OSError, match=r"embeddings of 1,500 rows .* 18,000 bytes") as caught:
            DEC(4, **SMALL).fit(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(temporary)
    # torch makes a folder there, the first time.
    assert not any(path.is_file() for path in temporary.rglob("*"))


def test_nan_in_the_middle_of_a_file_of_a_deep_method(
    X: np.ndarray, tmp_path: Path, nothing_fits: None
) -> None:
    X[777, 2] = np.nan
    with pytest.raises(ValueError, match="X: row 777 has NaN or Inf"):
        DEC(4, **SMALL).fit(saved(X, tmp_path))


def test_columns_of_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepclust.cluster._columns.MEMORY_BYTES", 100)
    values = torch.arange(60.0).reshape(30, 2)
    for spill in (False, True):
        column = Column(30, torch.float32, torch.device("cpu"), (2,), spill=spill)
        for start in (20, 0, 10):
            column[start : start + 10] = values[start : start + 10]
        assert column.shape == (30, 2)
        assert isinstance(column.values, Column) == spill
        assert torch.equal(column[:0], values[:0])
        assert torch.equal(column[28:40], values[28:])
        some = torch.tensor([7, 29, 7, 0])
        assert torch.equal(column[some], values[some])
        column[some[:2]] = -values[some[:2]]
        assert torch.equal(column[5:9], torch.cat([values[5:7], -values[7:8], values[8:9]]))
        np.testing.assert_array_equal(np.asarray(column)[29], -values[29])


def test_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepclust.cluster._columns.MEMORY_BYTES", 100)
    monkeypatch.setattr("deepclust.cluster._columns.BLOCK_ROWS", 7)
    for n, spill in ((30, False), (12, True), (30, True)):
        column = Column(n, torch.int64, torch.device("cpu"), spill=spill)
        for start in (20, 0, 10):
            column[start : min(start + 10, n)] = torch.arange(n)[start : start + 10] % 4
        assert torch.equal(
            torch.cat([values for _, values in column.blocks()]), torch.arange(n) % 4
        )
        assert isinstance(column.array(), np.memmap) == (8 * n > 100 and spill)
        np.testing.assert_array_equal(column.array(), np.arange(n) % 4)
        assert column.counts(6).count_nonzero() == 4


# --- memory ------------------------------------------------------------------------------------

PEAK = """
import re, sys
from pathlib import Path
import numpy as np

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
"""

FIT = (
    PEAK
    + """
from deepclust.cluster import KMeans, MiniBatchKMeans, _columns

path, method, init = sys.argv[1:]
_columns.MEMORY_BYTES = 1 << 20

def fit(path, out):
    if method == "predict":
        from deepclust import cli
        from deepclust.cluster import _centroids, _points

        # 4 MB: what is computed of a block comes to the two of them.
        _points.BLOCK_ELEMENTS = _centroids.BLOCK_ELEMENTS = 1 << 20
        KMeans(8, max_iter=2, random_state=0).fit(np.load(path, mmap_mode="r")[:1000]).save(out)
        for result in ([out + ".npy"], [out + ".z.npy", "--transform"]):
            assert cli.main(["predict", out, path, "--out", *result]) == 0
    elif method == "command":
        from deepclust import cli

        options = ["n_init=1", "max_iter=2", f"init={init}"]
        options = [word for option in options for word in ("--set", option)]
        assert cli.main(["fit", path, "-k8", "--method=kmeans", "--out", out, *options]) == 0
    elif method == "KMeans":
        KMeans(8, init=init, n_init=1, max_iter=2, random_state=0).fit(path)
    else:
        rows = [np.load(path, mmap_mode="r")]
        MiniBatchKMeans(8, init=init, batch_size=1 << 16, max_iter=1, random_state=0).fit(rows)

np.save(path + ".some.npy", np.random.rand(20_000, 16).astype("f4"))
fit(path + ".some.npy", path + ".first")
before = peak()
fit(path, path + ".out")
print("grown by", peak() - before)
"""
)

DEEP = (
    PEAK
    + """
from deepclust.cluster import DEC, _columns, _data, _points

_columns.MEMORY_BYTES, _data.RESIDENT_BYTES = 1 << 20, 0
# Both files have several blocks of embeddings, 1 MB each.
_columns.BLOCK_ELEMENTS = _points.BLOCK_ELEMENTS = 1 << 18
path, width = sys.argv[1], 64
sizes = {"hidden": (8,), "latent_dim": 8, "batch_size": 64, "n_init": 1}
dec = DEC(2, **sizes, tune_updates=20, max_updates=20, update_interval=10, random_state=0)

def use(path):
    dec.fit(path)
    assert len(dec.predict(path)) == len(dec.labels_)
    form = {"mode": "w+", "dtype": "f4", "shape": (len(dec.labels_), 8)}
    dec.transform(path, out=np.lib.format.open_memmap(path + ".z.npy", **form))

np.save(path + ".some.npy", np.load(path, mmap_mode="r")[:50_000])
use(path + ".some.npy")
before = peak()
use(path)
print("grown by", peak() - before)
"""
)


def written(path: Path, some: np.ndarray, copies: int) -> Path:
    """A `.npy` file of these rows, again and again."""
    with open(path, "wb") as file:
        shape = (len(some) * copies, some.shape[1])
        form = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, form)
        for _ in range(copies):
            file.write(some.tobytes())
    return path


def grown_by(program: str, *args: str) -> int:
    """By how many bytes a fresh process says that it has grown."""
    command = [sys.executable, "-W", "ignore", "-c", program, *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
@pytest.mark.parametrize(
    ("method", "init"),
    [
        ("KMeans", "k-means++"),
        ("KMeans", "k-means||"),
        ("command", "random"),
        ("predict", "random"),
        ("MiniBatchKMeans", "k-means++"),
    ],
)
def test_resident_memory_does_not_grow_with_the_file(
    method: str, init: str, tmp_path: Path
) -> None:
    some = np.random.default_rng(0).normal(size=(1 << 16, 16)).astype(np.float32)  # 4 MB
    peaks = []
    for copies in (10, 100):
        path = written(tmp_path / f"{copies}.npy", some, copies)
        peaks.append(grown_by(FIT, str(path), method, init))
    # Two blocks of 16 MB, and what the kernels and the allocator have beside them.
    assert max(peaks) < 100 << 20, peaks
    # Whether a block is read while another is used is a matter of chance: two of them. The labels
    # of the larger file would be 47 MB more.
    assert peaks[1] - peaks[0] < 32 << 20, peaks


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_resident_memory_of_a_deep_fit_does_not_grow_with_the_file(tmp_path: Path) -> None:
    some, _ = make_blobs(1 << 14, n_features=64, centers=2, random_state=0)  # 4 MB
    some = some.astype(np.float32)
    peaks = []
    for copies in (12, 100):
        peaks.append(grown_by(DEEP, str(written(tmp_path / f"{copies}.npy", some, copies))))
    # Blocks, the order of the larger file's rows in a pass (6 MB), and the allocator's.
    assert max(peaks) < 64 << 20, peaks
    # The larger file is 369 MB more; its embeddings of two refreshes, and labels, would be 115 MB.
    assert peaks[1] - peaks[0] < 40 << 20, peaks
