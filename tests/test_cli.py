from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="--config needs it")

pytest.importorskip("click", reason="the command needs click")
pytest.importorskip("matplotlib", reason="the command's report needs matplotlib")

import click
from click.testing import CliRunner

import deepclust
from deepclust import cli, datasets, report
from deepclust.cli import _config, _results, bench
from deepclust.cluster import DEC, KMeans, load

SMALL = (
    "--set hidden=[16] --set latent_dim=3 --set tune_updates=20 --set max_updates=30 "
    "--set update_interval=10 --set n_init=1 --set tol=0.0"
)
KMEANS_FILES = {
    "labels.npy",
    "model.safetensors",
    "config.toml",
    "report.safetensors",
    "report.html",
}
FILES = {*KMEANS_FILES, "history.json", "metrics.json"}


def run(line: str) -> int:
    return cli.main(shlex.split(line))


def fit(out: Path, options: str = "", data: str = "digits") -> int:
    return run(f"fit {data} --n-clusters 10 --out {out} {SMALL} {options}")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a failed command prints."""
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("deepclust: error: ")
    return line.removeprefix("deepclust: error: ")


def pictures(out: Path) -> list[str]:
    return re.findall(r'src="(data:[^"]*)"', (out / "report.html").read_text())


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than the small runs of these tests."""
    monkeypatch.setattr(report, "write_report", lambda path, **_: path.write_text("<html>"))


@pytest.fixture
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 50 samples without labels."""
    path = tmp_path_factory.mktemp("points") / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(50, 3)))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "a" / "run"
    assert fit(out) == 0
    return out


def test_fit_writes_labels_model_history_metrics_and_report(finished: Path) -> None:
    assert names(finished) == FILES
    digits = datasets.load_digits()
    labels = np.load(finished / "labels.npy")
    assert labels.dtype == np.int64
    model = DEC.load(finished / "model.safetensors")
    assert np.array_equal(labels, model.predict(digits.X))
    history = json.loads((finished / "history.json").read_text())
    assert [update for update, _ in history["cluster/accuracy"]] == [0, 10, 20, 30]
    expected = report.scores(digits.y, labels)
    assert json.loads((finished / "metrics.json").read_text()) == expected
    assert history["cluster/accuracy"][-1][1] == expected["accuracy"]
    assert len(pictures(finished)) == 8


def test_the_summary_says_what_came_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_report: None
) -> None:
    assert run(f"fit digits -k 10 --method kmeans --out {tmp_path / 'run'}") == 0
    out = capsys.readouterr().out
    assert "digits: 1,797 samples of 64 features in 10 clusters of " in out
    assert re.search(r"ACC \d+\.\d %, NMI \d+\.\d %, ARI -?\d+\.\d %", out)
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out


@pytest.mark.parametrize("method", ["kmeans", "mini-batch-kmeans"])
def test_kmeans_writes_a_model_too(tmp_path: Path, points: Path, method: str) -> None:
    command = f"fit {points} -k 4 --method {method} --out {tmp_path / 'run'} --threads 1"
    threads = torch.get_num_threads()
    try:
        assert run(command) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert names(tmp_path / "run") == KMEANS_FILES
    model = load(tmp_path / "run" / "model.safetensors")
    assert model.cluster_centers_.shape == (4, 3)
    np.testing.assert_array_equal(
        model.predict(np.load(points)), np.load(tmp_path / "run" / "labels.npy")
    )


def test_parameters_are_json_or_text() -> None:
    given = ["hidden=[4, 5]", "scale=dec", "tol=0.5", "freeze_encoder=true", "optimizer=null"]
    assert _config.given(given) == {
        "hidden": [4, 5],
        "scale": "dec",
        "tol": 0.5,
        "freeze_encoder": True,
        "optimizer": None,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--set tunee_updates=3",
            "--set: dec has no parameter 'tunee_updates'; did you mean tune_",
        ),
        ("--method kmeans --set zzz=3", "there are init, n_init, max_iter, tol"),
        ("--set tol", "--set: got 'tol'; it takes NAME=VALUE"),
        ("--set n_clusters=3", "--set n_clusters: use --n-clusters"),
        ("--set callbacks=3", "--set: dec has no parameter 'callbacks'"),
        ("--set tol=-1", "tol: got -1"),
        ("--preset slow", "preset: got 'slow'"),
        ("--method kmeans --preset quick", "--preset: --method kmeans has no such parameter"),
        ("--method kmeans --resume", "--resume: --method kmeans keeps no checkpoint"),
        ("--method other", "'other' is not one of"),
        ("--device nowhere", "device: got 'nowhere'"),
        ("--backend fast", "backend: got 'fast'"),
        ("--seed -1", "--seed"),
        ("--threads 0", "--threads"),
        ("--n-clusters 0", "0 is not in the range"),
        ("--n-clusters 1798", "--n-clusters: got 1798, more than the 1797 samples of digits"),
        ("--labels nowhere.npy", "nowhere.npy"),
        ("--resume", "--resume: no interrupted run in"),
        ("--resume --overwrite", "exclude each other"),
        ("--nonsense", "--nonsense"),
    ],
)
def test_bad_options_give_one_line_and_leave_nothing(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "" if "kmeans" in options else SMALL
    command = f"fit digits --n-clusters 10 --out {tmp_path / 'a' / 'run'} {small} {options}"
    assert run(command) == 2
    assert message in error_of(capsys)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_a_backend_that_cannot_run_is_refused_before_training(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from deepclust.kernels import _dispatch

    try:
        _dispatch.kernel("target_loss", backend, torch.device("cpu"))
        pytest.skip(f"backend {backend} runs here")
    except (RuntimeError, ImportError):
        pass
    monkeypatch.setattr(
        "deepclust.cluster._trainer.Run.train", lambda run: pytest.fail("training began")
    )
    assert fit(tmp_path / "run", f"--backend {backend}") == 2
    assert f"backend={backend!r} cannot run" in error_of(capsys)
    assert names(tmp_path) == set()


def test_missing_and_damaged_files_give_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, X=np.zeros((50, 4)), y=np.arange(50) % 2)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-200])
    np.save(tmp_path / "few.npy", np.arange(49))
    np.save(tmp_path / "nan.npy", np.full((50, 4), np.nan))
    cases = {
        tmp_path / "absent.npz": ("", "absent.npz: no such file"),
        cut: ("", "cut.npz"),
        whole: (f"--labels {tmp_path / 'few.npy'}", "49 labels"),
        tmp_path / "nan.npy": ("", "NaN"),
        tmp_path / "odd.xyz": ("", "odd.xyz"),
    }
    (tmp_path / "odd.xyz").write_text("?")
    before = names(tmp_path)
    for data, (options, message) in cases.items():
        assert fit(tmp_path / "run", options, str(data)) == 2
        assert message in error_of(capsys)
        assert names(tmp_path) == before


def test_a_folder_that_is_not_empty_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert fit(tmp_path) == 2
    assert "is not empty" in error_of(capsys)
    assert fit(tmp_path / "thesis.tex") == 2
    assert "is a file" in error_of(capsys)
    assert names(tmp_path) == {"thesis.tex"}


def test_overwrite_replaces_results_and_nothing_else(
    tmp_path: Path, points: Path, no_report: None
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for name in ("metrics.json", "model.safetensors", "report.html"):
        (tmp_path / name).write_text("old")
    assert run(f"fit {points} -k 4 --method kmeans --out {tmp_path} --overwrite") == 0
    # No labels were given: there is no metrics.json, nor one of an earlier run.
    assert names(tmp_path) == {*KMEANS_FILES, "thesis.tex"}
    assert "<html" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("error", [KeyError("bug"), ValueError("bug"), TypeError("bug")])
def test_a_bug_keeps_its_traceback_and_the_folder_its_old_results(
    error: Exception, tmp_path: Path, points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(report, "write_report", broken)
    command = f"fit {points} -k 4 --method kmeans --out"
    with pytest.raises(type(error), match="bug"):
        run(f"{command} {tmp_path / 'a' / 'run'}")
    assert names(tmp_path) == set()
    (tmp_path / "labels.npy").write_text("old")
    with pytest.raises(type(error), match="bug"):
        run(f"{command} {tmp_path} --overwrite")
    assert names(tmp_path) == {"labels.npy"}
    assert (tmp_path / "labels.npy").read_text() == "old"


def interrupt_at(monkeypatch: pytest.MonkeyPatch, stage: str, update: int) -> None:
    """Press Ctrl-C when the recorder sees this moment."""
    record = report.Recorder.__call__

    def record_and_interrupt(self: report.Recorder, run: Any) -> None:
        record(self, run)
        if (run.stage.name, run.update) == (stage, update):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(report.Recorder, "__call__", record_and_interrupt)


# The middle of the clustering, its end (after which no refresh is left), and before it began.
@pytest.mark.parametrize(("stage", "update"), [("cluster", 10), ("cluster", 30), ("tune", 20)])
def test_an_interrupted_run_resumes_to_the_same_result(
    stage: str,
    update: int,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage, update)
        assert fit(out, "--overwrite") == 130
    assert names(out) == {_results.CHECKPOINT}
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("deepclust: interrupted; to go on: deepclust fit digits ")

    assert fit(out) == 2
    assert "--resume goes on" in error_of(capsys)
    command = line.split("to go on: deepclust ")[1]
    assert run(command) == 0
    assert names(out) == FILES
    for name in ("labels.npy", "history.json", "metrics.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name
    assert pictures(out) == pictures(finished)


def test_a_damaged_or_foreign_checkpoint_is_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "tune", 20)
        assert fit(tmp_path) == 130
    capsys.readouterr()
    checkpoint = tmp_path / _results.CHECKPOINT
    whole = checkpoint.read_bytes()

    assert fit(tmp_path, "--resume --set latent_dim=4") == 2
    assert "latent_dim was 3 and is 4 now" in error_of(capsys)
    checkpoint.write_bytes(whole[: len(whole) // 2])
    assert fit(tmp_path, "--resume") == 2
    assert "cut short" in error_of(capsys)
    assert names(tmp_path) == {_results.CHECKPOINT}


def test_warnings_are_one_line(
    tmp_path: Path, points: Path, capsys: pytest.CaptureFixture[str], no_report: None
) -> None:
    options = f"-k 9 --method kmeans --set max_iter=1 --out {tmp_path / 'run'}"
    assert run(f"fit {points} {options}") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("deepclust: warning: k-means stopped at max_iter=1")


@pytest.mark.parametrize(("flag", "bars"), [("--verbose", True), ("--quiet", False), ("", False)])
def test_progress_bars_are_shown_when_asked_for(
    flag: str, bars: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_report: None
) -> None:
    assert fit(tmp_path / "run", f"{flag} --set max_updates=0 --set tune_updates=3") == 0
    assert ("tune" in capsys.readouterr().err) == bars


def test_a_missing_matplotlib_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert fit(tmp_path / "run") == 2
    assert "pip install 'deepclust[plots]'" in error_of(capsys)


def test_help_version_and_backends() -> None:
    runner = CliRunner()
    overview = runner.invoke(cli.cli, []).output
    assert "Examples:" in overview
    assert re.search(r"Exit codes:\n +0 +done\n +1 .*\n +2 .*\n +130 ", overview)
    for name, command in cli.cli.commands.items():
        text = runner.invoke(cli.cli, [name, "--help"]).output
        assert 2 <= len(re.findall(rf"^    deepclust {name}\b", text, re.MULTILINE)) <= 4, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, parameter.name
            else:
                assert parameter.human_readable_name in command.help
    version = runner.invoke(cli.cli, ["--version"])
    assert version.output.split()[-1] == deepclust.__version__
    listing = runner.invoke(cli.cli, ["backends"])
    assert listing.exit_code == 0
    for name, what in deepclust.backends().items():
        assert re.search(rf"^{name} +{re.escape(what)}$", listing.output, re.MULTILINE)
    for line in ("deepclust", "torch", "GPU"):
        assert re.search(rf"^{line} ", listing.output, re.MULTILINE)


def deepclust_process(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, timeout=300, check=False
    )


def test_the_process_exits_with_the_code_and_one_line(tmp_path: Path) -> None:
    command = ["fit", "absent.csv", "-k", "2", "--out", str(tmp_path / "run")]
    done = deepclust_process("-m", "deepclust", *command)
    assert done.returncode == 2
    assert done.stderr.startswith("deepclust: error: absent.csv: no such file")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert names(tmp_path) == set()


def test_without_click_the_command_says_what_to_install() -> None:
    block = "import sys, runpy; sys.modules['click'] = None; "
    done = deepclust_process("-c", block + "runpy.run_module('deepclust', run_name='__main__')")
    assert done.returncode == 2
    assert done.stderr == (
        "deepclust: error: the command needs click: pip install 'deepclust[cli]'\n"
    )


# --- predict -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with X.npy and its classes y.npy, and the folder "run" of k-means on it."""
    folder = tmp_path_factory.mktemp("clustered")
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 3
    np.save(folder / "X.npy", (rng.normal(size=(60, 4)) + 20 * classes[:, None]).astype("f4"))
    np.save(folder / "y.npy", classes)
    command = f"fit {folder / 'X.npy'} -k 3 --method kmeans --out {folder / 'run'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda path, **_: path.write_text("<html>"))
        assert run(command) == 0
    return folder


@pytest.mark.parametrize("model", ["run", "run/model.safetensors"])
def test_predict_gives_the_labels_of_the_fit(
    model: str, clustered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.npy"
    given = f"--labels {clustered / 'y.npy'}"
    assert run(f"predict {clustered / model} {clustered / 'X.npy'} --out {out} {given}") == 0
    labels = np.load(out)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, np.load(clustered / "run" / "labels.npy"))
    printed = capsys.readouterr().out
    assert "X: 60 samples of 4 features in 3 clusters of 20 to 20" in printed
    assert "ACC 100.0 %" in printed
    assert f"labels: {out} (60)" in printed
    assert names(tmp_path) == {"labels.npy"}


def test_predict_of_a_deep_model(finished: Path, tmp_path: Path) -> None:
    digits = datasets.load_digits()
    model = DEC.load(finished / "model.safetensors")
    for flag, expected in {
        "": model.labels_,
        "--proba": model.predict_proba(digits.X),
        "--transform": model.transform(digits.X),
    }.items():
        out = tmp_path / "out.npy"
        assert run(f"predict {finished} digits --out {out} --overwrite {flag}") == 0
        found = np.load(out)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_predict_of_k_means_transforms_to_distances(clustered: Path, tmp_path: Path) -> None:
    X = np.load(clustered / "X.npy")
    command = f"predict {clustered / 'run'} {clustered / 'X.npy'} --transform"
    assert run(f"{command} --out {tmp_path / 'd.npy'}") == 0
    found = np.load(tmp_path / "d.npy")
    assert found.dtype == np.float32
    model = KMeans.load(clustered / "run" / "model.safetensors")
    np.testing.assert_array_equal(found, model.transform(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{run} {X} --out out.txt", "--out: got out.txt; it takes a name that ends in .npy"),
        ("{run} {X} --out {y}", "exists; --overwrite replaces it"),
        ("{run} {X} --out absent/z.npy", "cannot be written: there is no directory"),
        ("{run} {X} --out {y}/z.npy", "cannot be written: there is no directory"),
        ("{run} {X} --out z.npy --proba", "--proba: kmeans has no soft assignment"),
        ("{run} {X} --out z.npy --proba --transform", "exclude each other"),
        ("{run} {X} --out z.npy --transform --labels {y}", "--labels: scores are those of labels"),
        ("{run} absent.npy --out z.npy", "absent.npy: no such file"),
        ("absent {X} --out z.npy", "absent: No such file or directory"),
        ("{X} {X} --out z.npy", "not a deepclust model: no safetensors file"),
        ("{run}/.. {X} --out z.npy", "no model.safetensors in it; `deepclust fit` writes one"),
        ("{run}/report.safetensors {X} --out z.npy", "not a deepclust model: it is a run"),
        ("{run} digits --out z.npy", "X has 64 features, but KMeans is expecting 4 features"),
        ("{run} {X} --out z.npy --device nowhere", "device: got 'nowhere'"),
        ("{run} {X} --out z.npy --backend fast", "backend: got 'fast'"),
        ("{run} {X}", "Missing option '-o' / '--out'. (deepclust predict --help has examples)"),
    ],
)
def test_what_predict_refuses_leaves_nothing(
    options: str,
    message: str,
    clustered: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in clustered.glob("*.npy")}
    paths = {name: clustered / f"{name}.npy" for name in "Xy"}
    assert run("predict " + options.format(run=clustered / "run", **paths)) == 2
    assert message in error_of(capsys)
    assert names(tmp_path) == set()
    assert {path: path.read_bytes() for path in clustered.glob("*.npy")} == before


def test_predict_refuses_a_truncated_model(
    clustered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (clustered / "run" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert run(f"predict {tmp_path} {clustered / 'X.npy'} --out {tmp_path / 'z.npy'}") == 2
    assert "no safetensors file, or cut short" in error_of(capsys)
    assert names(tmp_path) == {"model.safetensors"}


@pytest.mark.parametrize("flag", ["", "--transform"])
def test_an_interrupted_predict_leaves_the_old_file(
    flag: str,
    clustered: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("predict", "transform"):
        monkeypatch.setattr(KMeans, name, interrupt)
    out = tmp_path / "z.npy"
    np.save(out, np.ones(3))
    command = f"predict {clustered / 'run'} {clustered / 'X.npy'} --out {out} --overwrite {flag}"
    assert run(command) == 130
    assert capsys.readouterr().err.strip() == "deepclust: interrupted"
    np.testing.assert_array_equal(np.load(out), np.ones(3))
    assert names(tmp_path) == {"z.npy"}


# --- report ------------------------------------------------------------------------------------


def test_report_of_a_run_is_that_of_the_fit(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.html"
    assert run(f"report {finished} --out {out}") == 0
    assert out.read_text() == (finished / "report.html").read_text()
    assert run(f"report {finished} --out {out} --title Mine") == 0
    assert "<h1>Mine</h1>" in out.read_text()
    assert names(finished) == FILES


def test_report_adds_labels(
    clustered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(clustered / "run", folder)
    assert run(f"report {folder}") == 0
    before = (folder / "report.html").read_text()
    assert "Matrix of counts" not in before
    assert not (folder / "metrics.json").exists()
    assert run(f"report {folder} --labels {clustered / 'y.npy'} --tsne") == 0
    after = (folder / "report.html").read_text()
    assert "Matrix of counts" in after
    assert "those of t-SNE" in after
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config.replace("tsne = false", "tsne = true"))
    for flag, drawn in {"": True, "--no-tsne": False}.items():
        assert run(f"report {folder} {flag}") == 0
        assert ("those of t-SNE" in (folder / "report.html").read_text()) == drawn
    assert json.loads((folder / "metrics.json").read_text())["accuracy"] == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.endswith(f"report: {folder / 'report.html'}\n")


def test_report_says_what_it_cannot_have(
    clustered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_report: None
) -> None:
    """The scores of each refresh are of all rows, whose labels are not kept."""
    out = tmp_path / "run"
    settings = SMALL.replace("max_updates=30", "max_updates=10")
    assert run(f"fit {clustered / 'X.npy'} -k 3 --out {out} {settings}") == 0
    capsys.readouterr()
    assert run(f"report {out} --labels {clustered / 'y.npy'} --json") == 0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("deepclust: the report is without the scores over the training")
    assert json.loads(captured.out)["missing"] == [line.split("without ")[1]]


def test_report_needs_the_data_of_the_run(
    clustered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_report: None
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(clustered / "run", folder)
    np.save(tmp_path / "other.npy", np.load(clustered / "X.npy") + 1)
    np.save(tmp_path / "moved.npy", np.load(clustered / "X.npy"))
    for data, message in {
        "other.npy": "other: it is not what the run was fitted to; --data says where that is",
        "absent.npy": "no such file",
    }.items():
        assert run(f"report {folder} --data {tmp_path / data}") == 2
        assert message in error_of(capsys)
    assert run(f"report {folder} --data {tmp_path / 'moved.npy'}") == 0
    capsys.readouterr()
    (folder / "config.toml").write_text("seed = 3")
    assert run(f"report {folder}") == 2
    assert "no data in it; --data says where that is" in error_of(capsys)
    for missing in ("config.toml", "model.safetensors"):
        (folder / missing).unlink()
        assert run(f"report {folder}") == 2
        assert missing in error_of(capsys)
    assert run(f"report {tmp_path / 'absent'}") == 2
    assert "no such folder; it takes one that deepclust fit wrote" in error_of(capsys)


# --- settings ----------------------------------------------------------------------------------


def test_config_toml_repeats_a_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    monkeypatch.chdir(tmp_path)
    config = finished / "config.toml"
    assert run(f"fit --config {config} --out again") == 0
    again = tmp_path / "again"
    assert names(again) == FILES
    for name in ("labels.npy", "history.json", "metrics.json", "config.toml"):
        assert (again / name).read_bytes() == (finished / name).read_bytes(), name
    # What is given on the line wins, one by one.
    assert run(f"fit --config {config} --out other --seed 1 --set latent_dim=4") == 0
    settings = _config.read_settings(tmp_path / "other" / "config.toml")
    before = _config.read_settings(config)
    assert settings == {**before, "seed": 1, "set": {**before["set"], "latent_dim": 4}}
    assert DEC.load(tmp_path / "other" / "model.safetensors").transform(np.eye(64)).shape[1] == 4


def test_config_toml_finds_files_from_anywhere(
    clustered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    monkeypatch.chdir(clustered)
    options = f"--labels y.npy -k 3 --method kmeans --threads {torch.get_num_threads()}"
    assert run(f"fit X.npy {options} --out {tmp_path / 'run'}") == 0
    monkeypatch.chdir(tmp_path)
    assert run("fit --config run/config.toml --out again") == 0
    assert (tmp_path / "again/metrics.json").read_text() == (
        tmp_path / "run/metrics.json"
    ).read_text()


def test_flags_and_files_are_equal(
    clustered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(
        f"""
        data = '{clustered / "X.npy"}'
        n-clusters = 3
        out = "from-file"
        seed = 7
        tsne = true
        quiet = true
        [set]
        hidden = [8, 4]
        latent_dim = 2
        tune_updates = 5
        max_updates = 5
        optimizer = "null"
        scale = 0.5
        """
    )
    assert run("fit --config run.toml") == 0
    flags = "--seed 7 --tsne --set hidden=[8,4] --set latent_dim=2 --set tune_updates=5"
    flags += " --set max_updates=5 --set optimizer=null --set scale=0.5"
    assert run(f"fit {clustered / 'X.npy'} -k 3 --out from-flags {flags}") == 0
    for name in ("labels.npy", "history.json", "config.toml"):
        found = [(tmp_path / folder / name).read_bytes() for folder in ("from-file", "from-flags")]
        assert found[0] == found[1], name
    assert load("from-file/model.safetensors").optimizer is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n-cluster = 3", "there is no 'n-cluster'; did you mean n-clusters?"),
        ("n_clusters = 3", "there is no 'n_clusters'; did you mean n-clusters?"),
        ("zzz = 3", "there is no 'zzz'; there are data, n-clusters, out, method,"),
        ("json = true", "there is no 'json'"),
        ("config = 'a'", "there is no 'config'"),
        ("n-clusters = 'ten'", "'ten' is not a valid integer"),
        ("n-clusters = 2.5", "'2.5' is not a valid integer"),
        ("n-clusters = 0", "0 is not in the range"),
        ("n-clusters = [3]", "n-clusters: got [3]; it takes one value"),
        ("device = true", "device: got True; it takes one value"),
        ("tsne = 1", "tsne: got 1; it takes true or false"),
        ("method = 'dek'", "'dek' is not one of"),
        ("set = 3", "set: got 3; it takes a table, [set]"),
        ("[set]\nlatent = 3", "dec has no parameter 'latent'; did you mean latent_dim?"),
        ("[set]\nn_clusters = 3", "--set n_clusters: use --n-clusters"),
        ("[set]\ntol = -1", "tol: got -1"),
        ("n-clusters = ", "it is no TOML"),
        ("n-clusters = 3\nn-clusters = 4", "it is no TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(text)
    config = f"--config {tmp_path / 'run.toml'}"
    k = "" if text.startswith("n-clusters") else "-k 10"
    assert run(f"fit digits {k} --out {tmp_path / 'run'} {config}") == 2
    assert message in error_of(capsys)
    assert names(tmp_path) == {"run.toml"}


def test_a_missing_file_of_settings_and_missing_values_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"fit --config {tmp_path / 'absent.toml'}") == 2
    assert "absent.toml: No such file or directory" in error_of(capsys)
    (tmp_path / "run.toml").write_text("n-clusters = 3")
    assert run(f"fit --config {tmp_path / 'run.toml'}") == 2
    assert "Missing argument 'DATA'" in error_of(capsys)


def test_settings_are_read_as_they_were_written() -> None:
    settings: dict[str, Any] = {
        "data": 'C:\\x "y"\n\t\x7f\x01 é 😀',
        "seed": 2**32 - 1,
        "tsne": False,
        "set": {
            "hidden": [500, [1.5, -2e-07, 1e300]],
            "optimizer": None,
            "free": True,
            "nested": {"a b": [None, "null is not it"], "empty": []},
        },
    }
    text = _config.toml(settings)
    read = tomllib.loads(text)
    read["set"] = _config._without_null(read["set"])
    assert read == settings


# --- JSON, colours, exit codes -----------------------------------------------------------------


def objects(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The one JSON object on stdout, and stderr."""
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found, captured.err


DOCS = (Path(__file__).parents[1] / "docs" / "terminal.md").read_text()


def test_json_is_one_object_of_documented_fields(
    clustered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_report: None
) -> None:
    X, y = clustered / "X.npy", clustered / "y.npy"
    folder = tmp_path / "run"
    commands = {
        # k-means prints its iterations, which are no part of the object.
        "fit": f"{X} -k 3 --method kmeans --out {folder} --labels {y} --verbose",
        "predict": f"{folder} {X} --out {tmp_path / 'z.npy'} --labels {y}",
        "report": f"{folder}",
        "bench": "--shape 50,3,2 --rounds 1",
        "backends": "",
    }
    assert list(commands) == list(cli.cli.commands)
    for name, options in commands.items():
        assert run(f"{name} {options} --json") == 0
        found, err = objects(capsys)
        assert (found["command"], found["version"]) == (name, deepclust.__version__)
        assert ("Initialization complete" in err) == (name == "fit")
        section = DOCS.split(f"| `{name}` |")[1].split("\n")[0]
        documented = set(re.findall(r"`(\w+)`", section))
        assert found.keys() - {"command", "version"} == documented, name
        if name in ("fit", "predict", "report"):
            assert found["method"] == "kmeans"
            assert found["sizes"] == [20, 20, 20]
            assert found["scores"] == {"accuracy": 1.0, "nmi": 1.0, "ari": 1.0}
        if name == "fit":
            assert set(found["files"]) == names(folder)


def test_errors_are_json_too(
    tmp_path: Path,
    clustered: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("fit --json") == 2
    found, err = objects(capsys)
    assert found["exit_code"] == 2
    assert err == f"deepclust: error: {found['error']}\n"

    with monkeypatch.context() as patch:
        interrupt_at(patch, "tune", 20)
        assert fit(tmp_path, "--json") == 130
    found, err = objects(capsys)
    assert found["exit_code"] == 130
    assert found["resume"].startswith("deepclust fit digits")
    assert run(found["resume"].removeprefix("deepclust ")) == 0
    assert objects(capsys)[0]["resumed"] is True

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(report, "write_report", broken)
    with pytest.raises(KeyError, match="bug"):
        run(f"report {clustered / 'run'} --json")
    found, _ = objects(capsys)
    assert found == {"error": "KeyError: 'bug'", "exit_code": 1}


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown() -> tuple[str, str]:
        texts = []
        for command in ("backends", "fitt"):
            ours, theirs = os.openpty()
            flow = {"stdout": theirs} if command == "backends" else {"stderr": theirs}
            line = [sys.executable, "-m", "deepclust", command]
            done = subprocess.run(line, **flow, timeout=300, check=False)  # type: ignore[call-overload]
            assert done.returncode == (0 if command == "backends" else 2)
            os.close(theirs)
            texts.append(os.read(ours, 1 << 16).decode())
            os.close(ours)
        return texts[0], texts[1]

    out, err = shown()
    assert "\x1b[1mdeepclust " in out
    assert "\x1b[31merror:" in err
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in "".join(shown())


def test_a_closed_pipe_is_silent() -> None:
    for command in ("backends", "--help"):
        reading, writing = os.pipe()
        os.close(reading)
        line = [sys.executable, "-m", "deepclust", command]
        done = subprocess.run(
            line, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300, check=False
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, "")


def test_the_shell_completes_commands_and_methods() -> None:
    def completed(words: str, number: int) -> list[str]:
        environment = {
            **os.environ,
            "_DEEPCLUST_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(number),
        }
        line = [sys.executable, "-m", "deepclust"]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0
        return [line.split(",")[1] for line in done.stdout.splitlines()]

    assert completed("deepclust b", 1) == ["bench", "backends"]
    assert completed("deepclust fit --method dc", 3) == ["dcn", "dcan"]


# --- bench -------------------------------------------------------------------------------------


def test_bench_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert run("bench --shape 60,3,2 --rounds 2 --threads 1") == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert "60 samples x 3 features x 2 clusters, float32, 1 thread\n" in out
    assert f"torch {torch.__version__}" in out
    for name in bench.PRIMITIVES:
        assert re.search(rf"^{name} +deepclust +[\d.]+ ", out, re.MULTILINE), name
    assert re.search(r"^ +scikit-learn +[\d.e+]+ +[\d.]+ x as fast +", out, re.MULTILINE)
    assert "Medians of 2 rounds in turn" in out


@pytest.mark.parametrize("name", bench.PRIMITIVES)
def test_all_in_a_race_are_right(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    z, mu = torch.randn(700, 5, generator=generator), torch.randn(9, 5, generator=generator)
    work = bench.PRIMITIVES[name](z, mu)
    for by, run_it in {"deepclust": work.ours, **work.others}.items():
        assert work.error(run_it()) <= work.tolerance, by


def test_a_wrong_result_is_told_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = bench.F.assign

    def wrong(z: torch.Tensor, head: Any, **options: Any) -> torch.Tensor:
        return right(z, head, **options) + 0.1 * (z.dtype == torch.float32)

    monkeypatch.setattr(bench.F, "assign", wrong)
    command = "bench --shape 60,3,2 --rounds 1 --primitive assign --primitive kmeans_update"
    assert run(command) == 1
    captured = capsys.readouterr()
    assert re.search(r"^assign +deepclust +wrong +1\.0e-01$", captured.out, re.MULTILINE)
    assert captured.err == "deepclust: wrong results of assign\n"
    assert run(f"{command} --json") == 1
    found, _ = objects(capsys)
    assert [work["primitive"] for work in found["works"]] == ["assign", "kmeans_update"]
    ours, *others = found["works"][0]["contenders"]
    assert ours["seconds"] is None
    assert ours["right"] is False
    assert all(other["seconds"] > 0 and other["right"] for other in others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--shape F", "--shape: got 'F'; it takes a letter from A to E, or N,D,K"),
        ("--shape 1,2", "--shape: got '1,2'"),
        ("--shape 0,2,3", "--shape: got '0,2,3'"),
        ("--shape 100000000,2,100000", "plain PyTorch takes about"),
        ("--primitive kmeans", "'kmeans' is not one of"),
        ("--rounds 0", "0 is not in the range"),
    ],
)
def test_what_bench_refuses(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"bench {options}") == 2
    assert message in error_of(capsys)


def test_bench_takes_letters_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bench.toml").write_text('shape = "a"\nprimitive = ["assign"]\nrounds = 1')
    assert run(f"bench --config {tmp_path / 'bench.toml'} --json") == 0
    found, _ = objects(capsys)
    assert found["shape"] == {"n": 256, "d": 10, "k": 10}
    assert [work["primitive"] for work in found["works"]] == ["assign"]
