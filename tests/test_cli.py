from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("click", reason="the command needs click")
pytest.importorskip("matplotlib", reason="the command's report needs matplotlib")

from click.testing import CliRunner

import deepclust
from deepclust import cli, datasets, report
from deepclust.cluster import DEC

SMALL = (
    "--set hidden=[16] --set latent_dim=3 --set tune_updates=20 --set max_updates=30 "
    "--set update_interval=10 --set n_init=1 --set tol=0.0"
)
FILES = {"labels.npy", "model.safetensors", "history.json", "metrics.json", "report.html"}


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
def test_kmeans_writes_centroids(tmp_path: Path, points: Path, method: str) -> None:
    command = f"fit {points} -k 4 --method {method} --out {tmp_path / 'run'} --threads 1"
    threads = torch.get_num_threads()
    try:
        assert run(command) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert names(tmp_path / "run") == {"labels.npy", "centroids.npy", "report.html"}
    assert np.load(tmp_path / "run" / "centroids.npy").shape == (4, 3)


def test_parameters_are_json_or_text() -> None:
    given = ["hidden=[4, 5]", "scale=dec", "tol=0.5", "freeze_encoder=true", "optimizer=null"]
    assert cli._parameters("dec", inspect.signature(DEC).parameters, given) == {
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
    assert names(tmp_path) == {"labels.npy", "centroids.npy", "report.html", "thesis.tex"}
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
    assert names(out) == {cli.CHECKPOINT}
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
    checkpoint = tmp_path / cli.CHECKPOINT
    whole = checkpoint.read_bytes()

    assert fit(tmp_path, "--resume --set latent_dim=4") == 2
    assert "latent_dim was 3 and is 4 now" in error_of(capsys)
    checkpoint.write_bytes(whole[: len(whole) // 2])
    assert fit(tmp_path, "--resume") == 2
    assert "cut short" in error_of(capsys)
    assert names(tmp_path) == {cli.CHECKPOINT}


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
    assert "Examples:" in runner.invoke(cli.cli, []).output
    help_of_fit = runner.invoke(cli.cli, ["fit", "--help"]).output
    assert "--n-clusters" in help_of_fit
    assert "deepclust fit digits" in help_of_fit
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
