"""The harness of the results, experiments/, on data of a few rows."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import make_blobs

from deepclust import cluster
from deepclust.datasets import load_digits
from experiments import adversarial, choosing, figures, gallery, geometry, run, scale, tables
from experiments.published import PUBLISHED, SOURCES, Published
from experiments.settings import DATA, OF_THE_DATA, SETTINGS, Data, rules

TINY = {"hidden": (8,), "latent_dim": 2, "batch_size": 32, "autocast": None, "tune_updates": 20}
GRID = {
    "k-means": {"method": "k-means", "n_init": 2},
    "ae": {"method": "autoencoder + k-means", "init_criterion": "inertia", **TINY},
    "dec": {"method": "DEC", "max_updates": 20, "update_interval": 5, "tol": 0.0, **TINY},
}
BLOBS = {"blobs": Data("blobs.npz", 3)}


def go(folder, *names, settings=GRID, data=BLOBS, seeds="0", more=()):
    """Run settings of a grid on the data of a folder; returns the exit status."""
    folders = ("--data-dir", folder, "--out", folder / "out", "--cache", folder / "cache")
    asked = ("--settings", *names, "--seeds", *seeds.split(), *more)
    return run.main([str(word) for word in (*folders, *asked)], data, settings)


def write_blobs(folder):
    X, y = make_blobs(120, centers=3, n_features=6, random_state=0)
    np.savez(folder / "blobs.npz", X=X.astype(np.float32), y=y)


@pytest.fixture
def grid(tmp_path, threads):
    """`go` on 120 points."""
    write_blobs(tmp_path)
    return partial(go, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the results of two settings and three seeds."""
    folder, before = tmp_path_factory.mktemp("finished"), torch.get_num_threads()
    write_blobs(folder)
    assert go(folder, "k-means", "dec", seeds="0-2") == 0
    torch.set_num_threads(before)
    return folder


@pytest.fixture
def fits(monkeypatch):
    """What each fit of DEC was asked for."""
    asked = []
    fit = cluster.DEC.fit

    def spy(self, X, y=None, **more):
        asked.append({"pretrained": self.pretrained, "y": y, **more})
        return fit(self, X, y, **more)

    monkeypatch.setattr(cluster.DEC, "fit", spy)
    return asked


def result(folder, setting, seed=0):
    return json.loads((folder / "out" / "blobs" / setting / f"{seed}.json").read_text())


def test_a_run_writes_its_figures_and_how_to_repeat_it(finished):
    found = result(finished, "dec", seed=1)
    assert found["command"] == (
        "python -m experiments.run --data-dir DIR --data blobs --settings dec --seeds 1 --threads 1"
    )
    assert (found["seed"], found["threads"], found["device"]) == (1, 1, "cpu")
    assert found["versions"].keys() == {"deepclust", "torch", "scikit-learn"}
    assert sum(found["sizes"]) == 120
    assert all(0 <= found[score] <= 1 for score in ("acc", "nmi", "ari"))
    config = found["config"]
    assert config["parameters"]["hidden"] == [8]
    assert config["parameters"]["cluster_lr"] == 1e-3  # the preset's
    assert config["pretraining"]["tune_updates"] == 20
    assert "tune_updates" not in config["parameters"]
    assert "random_state" not in config["parameters"]
    assert [update for update, _ in found["history"]["cluster/acc"]] == [0, 5, 10, 15, 20]
    assert found["history"]["cluster/acc"][-1][1] == pytest.approx(found["acc"], abs=1e-4)
    assert found["pretraining"]["history"].keys() == {"tune/reconstruction"}
    assert (found["pretraining"]["updates"], found["updates"]) == (20, 20)
    assert result(finished, "k-means")["config"]["pretraining"] is None
    assert not list(finished.glob("cache/blobs/*.c*"))  # checkpoints, clocks


def test_a_finished_run_is_skipped(grid, tmp_path, fits, capsys):
    grid("k-means", "dec")
    before = [file.stat().st_mtime_ns for file in tmp_path.glob("out/*/*/*")]
    del fits[:]
    assert grid("k-means", "dec") == 0
    assert not fits
    assert [file.stat().st_mtime_ns for file in tmp_path.glob("out/*/*/*")] == before
    assert capsys.readouterr().out.count("done already") == 2


def test_a_run_of_another_configuration_is_not_written_over(grid, tmp_path, capsys):
    grid("k-means")
    before = result(tmp_path, "k-means")
    changed = {**GRID, "k-means": {**GRID["k-means"], "n_init": 3}}
    assert grid("k-means", "ae", settings=changed) == 1
    out = capsys.readouterr().out
    assert "another configuration: given n_init was 2, is 3; parameters n_init was 2, is 3" in out
    assert result(tmp_path, "k-means") == before
    assert result(tmp_path, "ae")  # the rest goes on


def test_settings_of_one_network_share_it_and_labels_stay_outside(grid, tmp_path, fits):
    longer = {**GRID, "longer": {**GRID["dec"], "tune_updates": 21}}
    assert grid("ae", "dec", "longer", settings=longer) == 0
    trained = [asked["pretrained"] is None for asked in fits]
    assert trained == [True, False, False, True, False]
    assert all(asked["y"] is None for asked in fits)
    assert len(list(tmp_path.glob("cache/blobs/network-*"))) == 2
    ae, dec, other = (result(tmp_path, name) for name in ("ae", "dec", "longer"))
    assert ae["pretraining"] == dec["pretraining"] != other["pretraining"]
    for name, value in fits[1]["pretrained"].items():
        assert np.array_equal(value, fits[2]["pretrained"][name])


@pytest.mark.parametrize("when", [("tune", 20), ("cluster", 10)])
def test_an_interrupted_run_goes_on_to_the_same_end(
    when, grid, tmp_path, fits, monkeypatch, capsys
):
    assert grid("dec") == 0
    whole = result(tmp_path, "dec")
    (tmp_path / "out").rename(tmp_path / "uninterrupted")
    for file in tmp_path.glob("cache/blobs/*"):
        file.unlink()

    def stop(at):
        if (at.stage.name, at.update) == when:
            raise KeyboardInterrupt

    def interrupted(estimator, X, checkpoint, *, fit=run.fit):
        estimator.callbacks = (*estimator.callbacks, stop)
        return fit(estimator, X, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", interrupted)
        assert grid("dec") == 130
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob("cache/blobs/*.checkpoint"))) == 1
    capsys.readouterr()
    grid("dec", more=["--dry-run"])
    expected = "to run" if when[0] == "tune" else "interrupted, to go on"
    assert capsys.readouterr().out == f"blobs dec seed 0: {expected}\n"
    del fits[:]
    assert grid("dec") == 0
    assert [asked["resume"] for asked in fits] == ([True, False] if when[0] == "tune" else [True])
    found = result(tmp_path, "dec")
    for name in ("config", "acc", "nmi", "ari", "sizes", "updates", "stopped", "history"):
        assert found[name] == whole[name]
    assert found["pretraining"]["history"] == whole["pretraining"]["history"]


def test_seconds_of_an_interrupted_fit_count_up_to_its_checkpoint(tmp_path):
    class Estimator:
        def fit(self, X, *, resume):
            self.resumed = resume

    checkpoint, clock = tmp_path / "a.checkpoint", tmp_path / "a.clock"
    assert run.fit(estimator := Estimator(), None, checkpoint) < 1
    assert not estimator.resumed
    checkpoint.touch()
    os.utime(checkpoint, (1000, 1000))
    clock.write_text('{"before": 30, "began": 960}')
    assert 70 <= run.fit(estimator, None, checkpoint) < 71
    assert estimator.resumed
    assert not checkpoint.exists()
    assert not clock.exists()


def test_a_failure_is_shown_and_the_rest_goes_on(grid, tmp_path, capsys):
    settings = {
        "bad": {**GRID["dec"], "tol": -1},
        "absent": {"method": "NoSuchMethod"},
        "unknown": {**GRID["dec"], "no_such_parameter": 1},
        "images": {**GRID["dec"], "image_shape": OF_THE_DATA},
        "k-means": GRID["k-means"],
    }
    assert grid(*settings, settings=settings) == 1
    out = capsys.readouterr().out
    for line in (
        "bad seed 0: failed\nTraceback",
        "tol: got -1",
        "absent seed 0: refused: deepclust.cluster has no NoSuchMethod",
        "unknown seed 0: refused: DEC has no parameter no_such_parameter",
        "images seed 0: refused: the setting takes images",
        "k-means seed 0: accuracy",
        "4 refused or failed",
    ):
        assert line in out
    assert [file.parent.name for file in tmp_path.glob("out/*/*/*")] == ["k-means"]


def test_a_dry_run_writes_nothing(grid, tmp_path, capsys):
    assert grid("k-means", "dec", seeds="0 2-3", more=["--dry-run"]) == 0
    assert capsys.readouterr().out.count("to run") == 6
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_missing_data_are_named(grid, capsys):
    with pytest.raises(SystemExit):
        grid("k-means", data={"gone": Data("gone.npz", 2)})
    assert "has no gone.npz" in capsys.readouterr().err


def test_sparse_and_unit_rows_and_subsamples(grid, tmp_path):
    X, y = make_blobs(90, centers=3, n_features=6, random_state=0)
    sparse.save_npz(tmp_path / "sparse.npz", sparse.csr_matrix(X))
    with np.load(tmp_path / "sparse.npz") as stored:
        np.savez(tmp_path / "sparse.npz", y=y, **stored)
    np.savez(tmp_path / "blobs.npz", X=X, y=y)
    unit = run.load(tmp_path, Data("blobs.npz", 3, unit_rows=True))
    np.testing.assert_allclose(np.linalg.norm(unit.X, axis=1), 1, rtol=1e-12)
    spectral = {"method": "spectral", "affinity": "nearest_neighbors", "n_neighbors": 5}
    settings = {**GRID, "some": {**spectral, "subsample": 60}, "all": {**spectral, "subsample": 90}}
    data = {"blobs": Data("sparse.npz", 3)}
    assert grid("some", "all", "k-means", "dec", settings=settings, data=data) == 0
    assert sum(result(tmp_path, "some")["sizes"]) == 60
    assert sum(result(tmp_path, "all")["sizes"]) == 90
    page = tables.page(tables.read(tmp_path / "out"))
    assert "| `some`, 60 rows drawn | 1 |" in page
    assert "| `all` | 1 |" in page


def test_regularisers_are_made_from_their_names(grid, tmp_path):
    extended = {**GRID["dec"], "regularisers": {"Reconstruction": {"weight": 0.5}}}
    assert grid("dec", settings={"dec": extended}) == 0
    assert "cluster/reconstruction" in result(tmp_path, "dec")["history"]


def test_long_series_are_thinned_to_their_shape():
    series = [(i, float(i)) for i in range(1000)]
    points = run.thinned({"a": series, "b": series[:7]})
    assert len(points["a"]) == run.POINTS
    assert (points["a"][0], points["a"][-1]) == ([0, 0.0], [999, 999.0])
    assert points["b"] == [[i, float(i)] for i in range(7)]


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    assert run.conditions(1, "cuda:1")["machine"].startswith("GPU cuda:1, ")
    assert run.command("blobs", ["dec"], [0], 1, "cuda:1").endswith("--threads 1 --device cuda:1")


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2], [0, 2, 3, 4, 9], [7, 5]])
def test_seeds_are_written_as_they_are_read(seeds):
    spans = list(run.spans(seeds))
    assert [seed for span in spans for seed in run._seeds(span)] == sorted(seeds)


@pytest.mark.parametrize(
    ("n", "tune", "more"),
    [
        (100, 500, {}),
        (5_620, 2_500, {}),
        (9_298, 4_000, {}),
        (20_000, 9_000, {}),
        (70_000, 14_000, {"max_updates": 7_000, "update_interval": 140}),
    ],
)
def test_lengths_follow_from_the_rows(n, tune, more):
    common = {"latent_dim": 10, "autocast": "bfloat16"}
    assert rules({"method": "DEC"}, n, 8) == {**common, "tune_updates": tune, **more}
    assert rules({"method": "DEC", "preset": "paper"}, n, 20) == {**common, "latent_dim": 20}
    assert rules({"method": "autoencoder + k-means"}, n, 8)["max_updates"] == 0
    depict = {"tune_updates": 2_500, **common}
    assert rules({"method": "DEPICT"}, n, 8) == {**depict, "max_updates": 2_000}
    assert rules({"method": "ACAI"}, n, 8) == {**common, "tune_updates": tune, "max_updates": 0}
    assert rules({"method": "DCAN", "preset": "paper"}, n, 8)["tune_updates"] == tune
    only = rules({"method": "DEPICT autoencoder + k-means"}, n, 8)
    assert only == {**depict, "max_updates": 0}


SMALL_DEPICT = {
    **{"network": "mlp", "hidden": (8,), "batch_size": 32, "autocast": None},
    **{"tune_updates": 10, "max_updates": 8, "warmup_updates": 4},
}
DEPICTS = {
    "depict": {"method": "DEPICT", **SMALL_DEPICT},
    "depict-exact": {"method": "DEPICT", **SMALL_DEPICT, "target": "exact"},
    "depict-not-joint": {"method": "DEPICT", **SMALL_DEPICT, "joint": False},
    "depict-ae-k-means": {
        "method": "DEPICT autoencoder + k-means",
        **SMALL_DEPICT,
        "max_updates": 0,
    },
}


def test_depicts_autoencoder_is_shared_by_settings_that_train_it_alike(grid, tmp_path):
    data = {"blobs": Data("blobs.npz", 3, last=100)}
    assert grid(*DEPICTS, settings=DEPICTS, data=data) == 0
    assert len(list(tmp_path.glob("cache/blobs/network-*.safetensors"))) == 2  # joint and not
    for name in DEPICTS:
        found = result(tmp_path, name)
        assert found["config"]["data"]["n_rows"] == sum(found["sizes"]) == 100
        assert found["updates"] == (0 if "k-means" in name else 8)
    [codes] = [np.load(file) for file in tmp_path.glob("cache/blobs/depict-exact-*.npy")]
    assert codes.shape == (100, 10)


def test_figure_1_of_depicts_paper(grid, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "DATA", {**BLOBS})
    monkeypatch.setattr(figures, "SETTINGS", DEPICTS)
    monkeypatch.setattr(figures, "PANELS", {"not joint": "depict-not-joint", "joint": "depict"})
    asked = ["--data-dir", tmp_path, "--cache", tmp_path / "cache", "--out", tmp_path / "pictures"]
    asked = [*map(str, asked), "--data", "blobs"]
    with pytest.raises(SystemExit, match="run depict-not-joint on blobs, seed 0, first"):
        figures.main(asked)
    assert grid("depict", "depict-not-joint", settings=DEPICTS) == 0
    assert figures.main(asked) == 0
    assert (tmp_path / "pictures" / "depict-blobs.png").stat().st_size > 10_000


CRITIC = {"regularisers": {"Interpolation": {}}}
WITH_CRITIC = {
    "ae": GRID["ae"],
    "dec": GRID["dec"],
    "ae-critic": {**GRID["ae"], **CRITIC},
    "dec-critic": {**GRID["dec"], **CRITIC},
    "dec-critic-balance": {**GRID["dec"], "regularisers": {"Interpolation": {}, "Balance": {}}},
    "dec-balance": {**GRID["dec"], "regularisers": {"Balance": {}}},
    "vade-critic": {"method": "VaDE", "max_updates": 5, **TINY, **CRITIC},
}


def test_a_critic_is_trained_once_with_its_network_and_goes_on_from_there(
    grid, tmp_path, monkeypatch
):
    critics = []
    hand_on = run.handed_on

    def spy(opponents):
        load = hand_on(opponents)

        def seen(at):
            load(at)
            if at.stage.name == "cluster" and at.update == 0:
                state = at.method.opponents.state_dict().items()
                critics.append((opponents, {name: value.clone() for name, value in state}))

        return seen

    monkeypatch.setattr(run, "handed_on", spy)
    assert grid(*WITH_CRITIC, settings=WITH_CRITIC) == 0
    assert len(list(tmp_path.glob("cache/blobs/network-*"))) == 2
    found = {name: result(tmp_path, name) for name in WITH_CRITIC}
    for name, one in found.items():
        trained = one["config"]["pretraining"].get("regularisers")
        assert trained == ({"Interpolation": {}} if "critic" in name else None)
        assert ("tune/critic" in one["pretraining"]["history"]) == ("critic" in name)
        assert ("cluster/critic" in one["history"]) == ("critic" in name and name != "ae-critic")
    assert found["dec-critic"]["pretraining"] == found["ae-critic"]["pretraining"]
    assert len(critics) == len(WITH_CRITIC)
    for given, held in critics:
        assert given.keys() <= held.keys()
        assert all(np.array_equal(value, held[name]) for name, value in given.items())
    assert sum(bool(given) for given, _ in critics) == 4


ACAIS = {
    "acai": {"method": "ACAI", **TINY, "max_updates": 0},
    "acai-plain": {"method": "ACAI", **TINY, "max_updates": 0, "whiten": False},
    "acai-without": {"method": "ACAI", **TINY, "max_updates": 0, "lam": 0.0},
}


def test_acais_network_depends_on_lambda_and_not_on_the_whitening(grid, tmp_path):
    assert grid(*ACAIS, settings=ACAIS) == 0
    assert len(list(tmp_path.glob("cache/blobs/network-*"))) == 2
    with_it, plain, without = (result(tmp_path, name) for name in ACAIS)
    assert with_it["pretraining"] == plain["pretraining"] != without["pretraining"]
    assert with_it["embedding"]["participation"] == pytest.approx(2, abs=1e-3)
    assert plain["embedding"]["participation"] < 2


def test_dcans_presets_begin_with_one_network(grid, tmp_path):
    settings = {
        "dec": GRID["dec"],
        "dcan": {"method": "DCAN", **TINY, "max_updates": 5},
        "dcan-paper": {"method": "DCAN", "preset": "paper", **TINY, "max_updates": 5},
    }
    assert grid(*settings, settings=settings) == 0
    assert len(list(tmp_path.glob("cache/blobs/network-*"))) == 1
    assert result(tmp_path, "dcan-paper")["config"]["parameters"]["n_latents"] == 600


def test_rows_that_are_held_out_are_predicted_and_not_fitted(grid, tmp_path, capsys):
    data = {"blobs": Data("blobs.npz", 3, held_out=30)}
    settings = {**GRID, "spectral": {"method": "spectral"}}
    assert grid("spectral", "k-means", "dec", settings=settings, data=data) == 1
    assert "spectral cannot predict the rows that are held out" in capsys.readouterr().out
    X = run.load(tmp_path, data["blobs"])
    for name in ("k-means", "dec"):
        found = result(tmp_path, name)
        assert found["config"]["data"]["n_rows"] == sum(found["sizes"]) == 90
        assert found["config"]["data"]["held_out"] == 30
        assert found["held_out"].keys() == {"acc", "nmi", "ari"}
    kmeans = cluster.KMeans(3, n_init=2, random_state=0).fit(X.X[:90])
    expected = run.scores(X.y[90:], kmeans.predict(X.X[90:]))
    assert result(tmp_path, "k-means")["held_out"] == expected
    [codes] = [np.load(file) for file in tmp_path.glob("cache/blobs/dec-*.npy")]
    assert codes.shape == (90, 2)


def test_depicts_autoencoder_predicts_by_k_means(grid, tmp_path):
    data = {"blobs": Data("blobs.npz", 3, held_out=30)}
    assert grid("depict-ae-k-means", settings=DEPICTS, data=data) == 0
    model = run.DenoisedKMeans(3, random_state=0, **{**SMALL_DEPICT, "max_updates": 0})
    X = run.load(tmp_path, BLOBS["blobs"]).X
    np.testing.assert_array_equal(model.fit(X).predict(X), model.labels_)


def test_images_shrink_to_means_of_blocks(tmp_path):
    X = np.random.default_rng(0).integers(0, 256, (5, 4, 6), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", X=X, y=np.arange(5))
    small = run.load(tmp_path, Data("images.npz", 5, pool=2))
    assert small.image_shape == (2, 3)
    assert small.X.shape == (5, 6)
    assert small.X[1, 4] == X[1, 2:, 2:4].mean()


def test_the_geometry_of_an_embedding():
    rng = np.random.default_rng(0)
    z = np.zeros((2000, 9))
    z[:, :4] = rng.normal(size=(2000, 4))
    labels = (z[:, 0] > 0).astype(int)
    z[:, 0] += 10 * labels
    found = geometry.describe(z, labels, labels, 0)
    assert found["nearest"] == pytest.approx(4, abs=0.3)
    variances = np.array([z[:, 0].var(), 1, 1, 1])
    assert found["participation"] == pytest.approx(
        variances.sum() ** 2 / np.square(variances).sum(), rel=0.05
    )
    apart = z[labels == 1, 0].mean() - z[labels == 0, 0].mean()
    assert found["separation"] == pytest.approx(apart**2 / 4 / variances.sum(), rel=0.05)
    assert found["silhouette"] > 0.6
    wide = np.concatenate([z] * 3) + 1e-6 * rng.normal(size=(6000, 9))
    assert geometry.describe(wide, *[np.tile(labels, 3)] * 2, 0).keys() == found.keys()
    assert "silhouette" not in geometry.describe(z, 0 * labels, labels, 0)
    assert geometry.describe(0 * z, labels, labels, 0) == {}
    assert geometry.nearest(np.concatenate([z, z])) == geometry.nearest(z)


def test_the_grid_fits_the_data(data_dir):
    for spec in DATA.values():
        with np.load(data_dir / spec.file) as file:
            assert len(np.unique(file["y"])) == spec.n_clusters


class TestPage:
    @pytest.fixture
    def folder(self, finished, tmp_path):
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        return tmp_path

    def main(self, folder, *more):
        where = ("--results", str(folder / "out"), "--page", str(folder / "page.md"))
        return tables.main([*where, *more])

    def test_it_has_a_row_a_setting_and_says_how_it_was_made(self, folder):
        assert self.main(folder) == 0
        page = (folder / "page.md").read_text()
        runs = [result(folder, "dec", seed) for seed in range(3)]
        accuracies = np.array([100 * found["acc"] for found in runs])
        pretraining, clustering = (
            np.mean([values["seconds"] for values in part])
            for part in ([found["pretraining"] for found in runs], runs)
        )
        row = f"| `dec` | 3 | {accuracies.mean():.1f} ± {accuracies.std(ddof=1):.1f} |"
        assert row in page
        assert f"| {accuracies.min():.1f}, {accuracies.max():.1f} |" in page
        assert f"| {pretraining:.0f} + {clustering:.0f} |" in page
        assert "- `k-means`: k-means, `n_init=2`\n" in page
        command = "--data blobs --settings k-means dec --seeds 0-2 --threads 1\n"
        assert f"    python -m experiments.run --data-dir DIR {command}" in page
        assert runs[0]["machine"] in page

    def test_the_best_is_of_whole_data(self, folder):
        file = folder / "out" / "blobs" / "k-means" / "0.json"
        for seed in range(3):
            found = result(folder, "k-means", seed)
            found["acc"] = 1.0
            run.write(file.with_name(f"{seed}.json"), found)
            found = result(folder, "dec", seed)
            found["acc"] = 0.5
            run.write(folder / "out" / "blobs" / "dec" / f"{seed}.json", found)
        assert "alone tell: `k-means`, 100.0 ± 0.0 %" in tables.page(tables.read(folder / "out"))
        for seed in range(3):
            found = result(folder, "k-means", seed)
            found["config"]["data"]["subsample"] = 60
            run.write(file.with_name(f"{seed}.json"), found)
        assert "alone tell: `dec`, 50.0 ± 0.0 %" in tables.page(tables.read(folder / "out"))

    def test_a_check_tells_another_page(self, folder, capsys):
        assert self.main(folder, "--check") == 1  # no page yet
        self.main(folder)
        assert self.main(folder, "--check") == 0
        page = folder / "page.md"
        page.write_text(page.read_text().replace("ACC", "accuracy", 1))
        assert self.main(folder, "--check") == 1
        assert "is not what" in capsys.readouterr().out

    def test_runs_of_two_configurations_make_no_row(self, folder):
        found = result(folder, "dec", 1)
        found["config"]["parameters"]["nu"] = 2.0
        run.write(folder / "out" / "blobs" / "dec" / "1.json", found)
        with pytest.raises(SystemExit, match=r"1\.json: another configuration than that of seed 0"):
            tables.read(folder / "out")

    def test_published_figures_stand_beside_their_method(self, folder, monkeypatch):
        entries = [("DEC", "50.5", "guo"), ("DEC", "60.6", "brb"), ("Other", "70.7", "xie")]
        monkeypatch.setitem(PUBLISHED, "blobs", [Published(*entry) for entry in entries])
        page = tables.page(tables.read(folder / "out"))
        assert "| 50.5 [3]; 60.6 [4] |\n" in page
        assert "Also published: Other 70.7 [1]." in page
        assert f"\n3. {SOURCES['guo']}.\n" in page


def test_the_page_of_results_is_what_the_results_give():
    assert tables.main(["--check"]) == 0


SMALL_ADVERSARIAL = {
    "k-means": GRID["k-means"],
    **{
        f"adv-{name}-{kind}{end}": {**network, **method, **critic}
        for kind, network in {
            "mlp": TINY,
            "conv": {
                **TINY,
                "network": "conv",
                "hidden": ((4, 3, 2, 1),),
                "image_shape": OF_THE_DATA,
            },
        }.items()
        for name, method in {
            "k-means": {"method": "autoencoder + k-means"},
            "idec": {"method": "IDEC", "max_updates": 4},
        }.items()
        for end, critic in (("", {}), ("-critic", CRITIC))
    },
    "acai": ACAIS["acai"],
    "acai-without-critic": ACAIS["acai-without"],
    "dcan-ae-k-means": {**TINY, "method": "autoencoder + k-means"},
    "dcan": {**TINY, "method": "DCAN", "max_updates": 5},
}


IMAGES = {
    "images": Data("images.npz", 3),
    "images_split": Data("images.npz", 3, held_out=40),
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder with results on images of three digits, whole and with rows held out."""
    folder, before = tmp_path_factory.mktemp("compared"), torch.get_num_threads()
    digits = load_digits()
    rows = np.flatnonzero(digits.y < 3)[:160]
    np.savez(folder / "images.npz", X=digits.X[rows].reshape(-1, 8, 8), y=digits.y[rows])
    options = {"settings": SMALL_ADVERSARIAL, "data": IMAGES}
    whole = [name for name in SMALL_ADVERSARIAL if not name.startswith("dcan")]
    assert go(folder, *whole, seeds="0-1", more=["--data", "images"], **options) == 0
    split = ["k-means", "dcan-ae-k-means", "dcan"]
    assert go(folder, *split, more=["--data", "images_split"], **options) == 0
    (folder / "docs").mkdir()
    torch.set_num_threads(before)
    return folder


class TestAdversarial:
    def main(self, compared, *more):
        where = ("--results", compared / "out", "--page", compared / "docs" / "adversarial.md")
        return adversarial.main([str(word) for word in (*where, *more)])

    def test_the_page_pairs_runs_of_a_seed(self, compared, monkeypatch):
        assert self.main(compared) == 0
        page = (compared / "docs" / "adversarial.md").read_text()
        runs = [
            [
                json.loads((compared / f"out/images/adv-idec-conv{end}/{seed}.json").read_text())
                for seed in range(2)
            ]
            for end in ("", "-critic")
        ]
        acc = 100 * np.array([[found["acc"] for found in side] for side in runs])
        [row] = [line for line in page.splitlines() if "| convolutional | IDEC | 2 |" in line]
        cells = [cell.strip() for cell in row.split("|")[4:8]]
        assert cells[0] == f"{acc[0].mean():.1f} ± {acc[0].std(ddof=1):.1f}"
        assert cells[1] == f"{acc[1].mean():.1f} ± {acc[1].std(ddof=1):.1f}"
        by_seed = (acc[1] - acc[0]).tolist()
        assert cells[3] == ", ".join(map(adversarial.difference, by_seed))
        separation = [
            np.mean([found["embedding"]["separation"] for found in side]) for side in runs
        ]
        assert f" | {separation[0]:.2f} → {separation[1]:.2f} | " in page
        assert "Of 4 cells (data, autoencoder, method)" in page
        assert "`acai` \N{MINUS SIGN} `acai-without-critic`: " in page
        assert "`dcan` \N{MINUS SIGN} `dcan-ae-k-means`: " in page
        held = json.loads((compared / "out/images_split/dcan/0.json").read_text())["held_out"]
        assert f"| {100 * held['acc']:.1f} | {100 * held['nmi']:.1f} |" in page
        assert "--settings dcan-ae-k-means dcan --seeds 0 --threads 1" in page
        results = tables.page(tables.read(compared / "out"))
        assert "120 x 64, 3 classes, 40 more held out" in results
        assert "adv-" not in results

    def test_a_seed_that_ran_one_way_only_is_left_out(self, compared):
        found = tables.read(compared / "out")
        without = found["images"]["adv-k-means-mlp"]
        found["images"]["adv-k-means-mlp"] = without[:1]
        page = adversarial.page(found, compared)
        assert "| fully connected | k-means on codes | 1 |" in page
        del found["images"]["adv-k-means-mlp"]
        assert "Of 3 cells" in adversarial.page(found, compared)
        assert "cells" not in adversarial.page(
            {"images": {"acai": found["images"]["acai"]}}, compared
        )

    def test_a_collapsed_embedding_has_no_numbers(self, compared):
        found = tables.read(compared / "out")
        for one in found["images"]["adv-k-means-mlp-critic"]:
            one["embedding"] = {}
        assert " → none | " in adversarial.page(found, compared)
        assert "the silhouette in" in adversarial.page(found, compared)

    def test_pictures(self, compared, monkeypatch, tmp_path):
        monkeypatch.setattr(adversarial, "DATA", IMAGES)
        monkeypatch.setattr(adversarial, "SETTINGS", SMALL_ADVERSARIAL)
        asked = ("--pictures", "--data-dir", compared, "--cache")
        with pytest.raises(SystemExit, match="run adv-k-means-conv on images, seed 0"):
            self.main(compared, *asked, tmp_path)
        with pytest.raises(SystemExit):
            self.main(compared, "--pictures")
        assert self.main(compared, *asked, compared / "cache") == 0
        pictures = compared / "docs" / "figures"
        names = {file.name for file in pictures.iterdir()}
        kinds = {"critic-images", "chain-images_split", "strips-conv-images", "strips-acai-images"}
        assert names == {f"{kind}.png" for kind in kinds}
        assert all(file.stat().st_size > 5_000 for file in pictures.iterdir())
        page = (compared / "docs" / "adversarial.md").read_text()
        assert all(f"(figures/{name})" in page for name in names)
        assert self.main(compared, "--check") == 0
        shutil.rmtree(pictures)
        assert self.main(compared, "--check") == 1

    def test_strips_lead_from_one_reconstruction_to_the_other(self, compared):
        X = run.load(compared, IMAGES["images"]).X
        model = cluster.DEC(3, **TINY, max_updates=0, random_state=0).fit(X)
        found = adversarial.decoded(model._method, X[:4])
        assert found.shape == (2, adversarial.STEPS, 64)
        with torch.no_grad():
            _, output = model.network_(model._method.preprocess(torch.from_numpy(X[:4])))
        torch.testing.assert_close(torch.from_numpy(found[:, 0]), output[::2])
        torch.testing.assert_close(torch.from_numpy(found[:, -1]), output[1::2])


def test_the_page_about_the_critic_is_what_the_results_give():
    assert adversarial.main(["--check"]) == 0


def scale_runs():
    """Runs that take 40 ns a row and 0.5 ns a point and centroid in each pass that computes."""
    runs = []
    for n, k in scale.RUNS:
        seconds = (scale.PASSES - 1) * (40e-9 * n + 0.5e-9 * n * k)
        runs.append({"n": n, "k": k, "seconds": seconds, "peak_resident_mb": 400 + k})
    return runs


def test_the_cost_of_a_pass_is_found_again():
    *table, empty, sentence = scale.rows(scale_runs())
    assert len(table) == len(scale.RUNS)
    # 4 passes of 10^6 (40 + 50) ns; 0.9 ns of each of 10^8 pairs.
    assert table[1] == "| 1,000,000 | 100 | 0.06 GB | 0.36 | 500 | 0.90 |"
    assert table[3].startswith("| 100,000,000 | 100 | 6.40 GB | 36.00 | 500 |")
    assert table[-1].endswith("| 100400 | 0.50 |")
    assert empty == ""
    assert "a pass takes 40 ns a row and 0.50 ns a point and centroid" in sentence


def test_the_projection_is_arithmetic():
    head, first, *_, last = scale.projection()
    assert "PCIe 55 GB/s" in head
    assert "200 TFLOP/s" in head
    # 64 GB at 3 TB/s; 3 x 2 x 10^9 x 128 x 1000 / 8 operations at 200 T a second.
    assert first.startswith("| 1,000,000,000 | 128 | 1,000 | 8 | 64 GB | 0.0213 s | 0.48 s |")
    assert first.endswith("| 4.01e-06 s | 0.48 s |")
    # 80 GB do not stay in memory: 1.45 s over PCIe, under the product. 10^5 x 129 float64 numbers
    # sent twice over the network, but for a 64th.
    assert last.startswith("| 10,000,000,000 | 128 | 100,000 | 64 | 80 GB | 1.45 s | 60 s |")
    assert last.endswith("| 0.00406 s | 60 s |")


def test_the_page_of_scale_is_what_its_results_give(tmp_path, capsys):
    results, page = tmp_path / "scale.json", tmp_path / "scale.md"
    runs = [{**found, "resident_mb_once_imported": 300} for found in scale_runs()]
    results.write_text(json.dumps({"machine": "On one core.", "runs": runs}))
    where = ["--results", str(results), "--page", str(page)]
    assert scale.main([*where, "--check"]) == 1  # no page yet
    assert scale.main(where) == 0
    assert scale.main([*where, "--check"]) == 0
    assert "\nOn one core.\n" in page.read_text()
    page.write_text(page.read_text().replace("0.90", "0.80"))
    assert scale.main([*where, "--check"]) == 1
    assert "is not what" in capsys.readouterr().out


def test_the_committed_page_of_scale_is_what_its_results_give():
    assert scale.main(["--check"]) == 0


def test_scale_is_measured_in_fresh_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "RUNS", [(3000, 4)])
    where = ["--results", str(tmp_path / "scale.json"), "--page", str(tmp_path / "scale.md")]
    assert scale.main([*where, "--measure", "--folder", str(tmp_path)]) == 0
    (found,) = json.loads((tmp_path / "scale.json").read_text())["runs"]
    assert (found["n"], found["k"], found["d"], found["iterations"]) == (3000, 4, 16, 3)
    assert found["peak_resident_mb"] >= found["resident_mb_once_imported"] > 0
    assert not (tmp_path / "scale.npy").exists()


def test_the_page_that_chooses_is_what_the_results_give():
    assert choosing.main(["--check"]) == 0


def test_memory_is_measured_in_fresh_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "NEEDS", {"KMeans": ("rows", "yes")})
    found = choosing.measured()
    assert found["peaks"].keys() == {"KMeans"}
    assert 0 <= found["peaks"]["KMeans"] < 1000


def test_pictures_of_methods_number_clusters_by_their_digits(tmp_path, monkeypatch):
    small = {"hidden": (16,), "tune_updates": 5, "max_updates": 5, "random_state": 0}
    monkeypatch.setattr(gallery, "COMMON", small)
    gallery.network.cache_clear()
    X, y = gallery.digits()
    moment = gallery.moment("right", X, (y + 3) % 10)
    assert moment.stage == "right: 100.0 %"
    assert np.array_equal(moment.labels, y)
    names = ["kmeans", "dec", "deep_clustering", "acai"]
    assert gallery.main([*names, "--out", str(tmp_path)]) == 0
    gallery.network.cache_clear()
    for name in names:
        assert 10_000 < (tmp_path / f"method-{name}.png").stat().st_size < 100_000
    with pytest.raises(SystemExit):
        gallery.main(["dek"])


def test_published_figures_name_sources_and_data_that_there_are():
    assert PUBLISHED.keys() <= DATA.keys()
    assert {entry.source for entries in PUBLISHED.values() for entry in entries} == SOURCES.keys()
    methods = {setting["method"] for setting in SETTINGS.values()}
    named = {entry.method for entries in PUBLISHED.values() for entry in entries}
    assert named - methods == {"DCEC"}
