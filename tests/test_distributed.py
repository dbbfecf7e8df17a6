"""Several processes that share the rows find what one of them finds."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import sparse
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from deepclust.cluster import DCN, DEC, IDEC, KMeans, MiniBatchKMeans, _lloyd
from deepclust.cluster._order import STRETCHES, shared_order
from deepclust.cluster._trainer import Run
from deepclust.cluster.interventions import CollapseGuard
from deepclust.cluster.regularisers import Balance, SelfAugmentation
from deepclust.distributed import Ranks, Shard, shard, start
from deepclust.kernels.kmeans_assign.op import Following
from tests.cases import backends_for
from tests.ranks import ENDED, on_ranks

SIZES = (1, 2, 4)
X, CLASSES = make_blobs(303, centers=4, n_features=6, cluster_std=1.5, random_state=0)
X = X.astype(np.float32)
SETTINGS = {
    "n_clusters": 4,
    "hidden": (16,),
    "latent_dim": 3,
    "tune_updates": 30,
    "max_updates": 20,
    "update_interval": 5,
    "tol": 0.0,
    "n_init": 2,
    "batch_size": 50,
    "random_state": 0,
}


def even(size):
    return [len(X) * i // size for i in range(size + 1)]


def own(cuts, rows=X):
    """This rank's rows, between its two cuts."""
    rank = dist.get_rank()
    return rows[cuts[rank] : cuts[rank + 1]]


# The order of the rows.


def places_of(cuts, total, *seed):
    """Row numbers of the whole in the order that the ranks between these cuts make together."""
    order = np.full(total, -1)
    for first, last in itertools.pairwise(cuts):
        ranks = SimpleNamespace(total=total, start=first, stop=last)
        places, numbers = shared_order(ranks, *seed)
        assert (places.diff() > 0).all()
        order[places.numpy()] = numbers.numpy() + first
    return order


@pytest.mark.parametrize("total", [1, 50, 64, 303])
def test_the_order_does_not_depend_on_who_holds_which_rows(total):
    alone = places_of([0, total], total, 1, 2)
    np.testing.assert_array_equal(np.sort(alone), np.arange(total))
    for cuts in ([0, total // 2, total], [0, 0, total // 3, total // 3, total, total]):
        np.testing.assert_array_equal(places_of(cuts, total, 1, 2), alone)
    assert total == 1 or (places_of([0, total], total, 1, 3) != alone).any()


def test_each_rank_has_its_share_of_each_batch():
    places, _ = shared_order(SimpleNamespace(total=6400, start=0, stop=1600), 0)
    counts = np.bincount(places.numpy() // STRETCHES, minlength=100)
    np.testing.assert_array_equal(counts, STRETCHES // 4)


# Fits.


def fit(kind, cuts, settings=None, form=np.asarray, resume=False):
    """A fit to this rank's rows, and each loss of each update."""
    losses = []
    log = Run.log

    def recorded(run, name, value):
        losses.append(float(torch.as_tensor(value).detach()))
        log(run, name, value)

    Run.log = recorded
    torch.manual_seed(dist.get_rank())  # what modules of the user's begin with
    settings = {**SETTINGS, **(settings() if callable(settings) else settings or {})}
    model = kind(**settings).fit(Shard(form(own(cuts))), resume=resume)
    return SimpleNamespace(
        labels=model.labels_,
        centroids=model.cluster_centers_,
        weights={name: value.numpy() for name, value in model.network_.state_dict().items()},
        history=model.history_,
        reasons=model.stop_reasons_,
        losses=losses,
    )


def joined(results):
    return np.concatenate([result.labels for result in results])


def assert_same_everywhere(results):
    """All but the labels has the same bits on each rank."""
    for result in results:
        assert result.losses == results[0].losses
        assert result.history == results[0].history
        assert result.reasons == results[0].reasons
        np.testing.assert_array_equal(result.centroids, results[0].centroids)
        for name, value in result.weights.items():
            np.testing.assert_array_equal(value, results[0].weights[name], err_msg=name)


@pytest.fixture(scope="module")
def one():
    """A fit of one process to all rows, without torch.distributed but in the same order."""
    return on_ranks(1, fit, IDEC, even(1))[0]


@pytest.mark.parametrize("cuts", [even(2), even(4), [0, 0, 10, 10, 303], [0, 303, 303]], ids=str)
def test_steps_are_those_of_one_process(one, cuts):
    results = on_ranks(len(cuts) - 1, fit, IDEC, cuts)
    assert_same_everywhere(results)
    assert [len(result.labels) for result in results] == np.diff(cuts).tolist()
    assert len(one.losses) == 30 + 2 * 20 + 5
    np.testing.assert_allclose(results[0].losses, one.losses, rtol=1e-4)
    np.testing.assert_allclose(results[0].centroids, one.centroids, rtol=1e-3, atol=1e-3)
    assert (joined(results) == one.labels).mean() > 0.99


def test_one_process_that_shares_with_nobody_needs_no_torchrun(one, threads):
    threads(1)
    start()
    assert not dist.is_initialized()
    model = IDEC(**SETTINGS).fit(Shard(X))
    assert model.history_ == one.history
    np.testing.assert_array_equal(model.labels_, one.labels)


OTHERS = {
    "paper": {"preset": "paper", "layer_updates": 0, "scale": "range"},  # batches in order of rows
    "frozen": {"freeze_encoder": True, "recluster": True, "random_state": None},
    "given": {"scale": 0.3, "init": np.eye(4, 3)},
}


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS.keys())
def test_other_choices(settings):
    results = on_ranks(3, fit, DEC, even(3), settings)
    assert_same_everywhere(results)
    if settings.get("random_state", 0) is not None:
        (alone,) = on_ranks(1, fit, DEC, even(1), settings)
        np.testing.assert_allclose(results[0].losses, alone.losses, rtol=1e-4)


def encoder_of_the_users():
    return {"encoder": torch.nn.Linear(6, 3), "tune_updates": 0}


DRAWS = {
    "dropout": {"layer_updates": 5},
    "views": {"regularisers": (SelfAugmentation(),)},
    "bfloat16": {"autocast": "bfloat16"},
    "encoder": encoder_of_the_users,
}


@pytest.mark.parametrize("settings", DRAWS.values(), ids=DRAWS.keys())
def test_networks_stay_the_same_whatever_each_rank_draws(settings):
    assert_same_everywhere(on_ranks(2, fit, DEC, [0, 100, 303], settings))


def test_whole_fits_agree():
    settings = {"tune_updates": 60, "max_updates": 40, "update_interval": 10}
    results = [on_ranks(size, fit, DEC, even(size), settings) for size in SIZES]
    labels = [joined(result) for result in results]
    assert adjusted_rand_score(labels[0], CLASSES) > 0.6
    for other in labels[1:]:
        assert adjusted_rand_score(labels[0], other) > 0.98


class Items(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


@pytest.mark.parametrize("form", [sparse.csr_array, torch.from_numpy, Items])
def test_forms_of_rows(one, form):
    results = on_ranks(2, fit, IDEC, even(2), None, form)
    np.testing.assert_allclose(results[0].losses, one.losses, rtol=1e-4)


# k-means.


def kmeans(cuts, settings, weigh=False, form=np.asarray):
    model = KMeans(**{"n_clusters": 4, "random_state": 0, **settings})
    weight = own(cuts, WEIGHTS) if weigh else None
    model.fit(Shard(form(own(cuts))), sample_weight=weight)
    scored = model.score(Shard(own(cuts)), sample_weight=weight)
    assert scored == pytest.approx(-model.inertia_, rel=1e-6)
    return SimpleNamespace(
        labels=model.labels_,
        centroids=model.cluster_centers_,
        about=(model.inertia_, model.n_iter_),
    )


WEIGHTS = np.random.default_rng(0).random(len(X))
KMEANS = {
    "k-means++": {},
    "random": {"init": "random", "n_clusters": 7},
    "scalable": {"init": "k-means||", "n_clusters": 20},
    "given": {"init": X[:4]},
    "empty clusters": {"init": np.concatenate([X[:2], X[:4] + 1000])[:6], "n_clusters": 6},
    "cosine": {"metric": "cosine"},
}


@pytest.mark.parametrize("weigh", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("settings", KMEANS.values(), ids=KMEANS.keys())
def test_kmeans_is_that_of_one_process(settings, weigh):
    (one,) = on_ranks(1, kmeans, even(1), settings, weigh)
    for cuts in (even(2), [0, 0, 10, 10, 303]):
        results = on_ranks(len(cuts) - 1, kmeans, cuts, settings, weigh)
        for result in results:
            assert result.about == results[0].about
            np.testing.assert_array_equal(result.centroids, results[0].centroids)
        np.testing.assert_allclose(results[0].about, one.about, rtol=1e-6)
        np.testing.assert_allclose(results[0].centroids, one.centroids, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(joined(results), one.labels)


def followed(cuts):
    with pytest.MonkeyPatch.context() as patch:
        calls, to = [], Following.to
        patch.setattr(_lloyd._Passes, "FEW", 0.5)
        patch.setattr(Following, "to", lambda self, c: (calls.append(c), to(self, c)))
        model = KMeans(20, init="random", tol=0.0, random_state=0, backend="cpp")
        model.fit(Shard(own(cuts, WIDE)))
    return SimpleNamespace(
        labels=model.labels_, about=(model.inertia_, model.n_iter_), n_calls=len(calls)
    )


WIDE = np.random.default_rng(0).standard_normal((400, 24)).astype(np.float32)


@pytest.mark.skipif("cpp" not in backends_for("kmeans_assign"), reason="no extension")
def test_kmeans_that_follows_its_centroids():
    (one,) = on_ranks(1, followed, [0, 400])
    for cuts in ([0, 200, 400], [0, 0, 10, 10, 400]):
        results = on_ranks(len(cuts) - 1, followed, cuts)
        assert results[0].n_calls > 3
        assert len({result.n_calls for result in results}) == 1
        np.testing.assert_allclose(results[0].about, one.about, rtol=1e-6)
        np.testing.assert_array_equal(joined(results), one.labels)


def test_kmeans_of_weights_that_one_process_alone_has():
    weights = np.arange(303) < 100
    (one,) = on_ranks(1, weighted_kmeans, even(1), weights)
    results = on_ranks(2, weighted_kmeans, [0, 150, 303], weights)
    np.testing.assert_array_equal(np.concatenate(results), one)


def weighted_kmeans(cuts, weights):
    rows = Shard(own(cuts))
    return KMeans(4, random_state=0).fit(rows, sample_weight=own(cuts, weights)).labels_


def mapped(path, rows):
    """These rows as a memory map of some rows of the file."""
    whole = np.load(path, mmap_mode="r")
    first = int(np.flatnonzero((whole == rows[0]).all(1))[0]) if len(rows) else 0
    return whole[first : first + len(rows)]


@pytest.mark.parametrize("form", [sparse.csr_array, torch.from_numpy, "map"])
def test_kmeans_of_every_form_of_rows(form, tmp_path):
    (one,) = on_ranks(1, kmeans, even(1), {})
    if form == "map":
        np.save(tmp_path / "X.npy", X)
        form = partial(mapped, tmp_path / "X.npy")
    results = on_ranks(2, kmeans, [0, 0, 303], {}, False, form)
    np.testing.assert_array_equal(joined(results), one.labels)


# Checkpoints.


def interrupted_fit(settings, path):
    """A fit of which one rank alone is interrupted."""

    def interrupt(run):
        if dist.get_rank() == 1 and run.stage.name == "cluster" and run.update == 10:
            raise KeyboardInterrupt

    given = {**settings, "callbacks": [interrupt], "checkpoint": path}
    try:
        fit(DEC, [0, 200, 303], given)
    except KeyboardInterrupt:
        return "interrupted"


@pytest.mark.parametrize("settings", [{}, {"freeze_encoder": True}], ids=["trained", "frozen"])
def test_a_checkpoint_of_two_processes_goes_on_in_any_number(settings, tmp_path):
    path = tmp_path / "checkpoint"
    assert on_ranks(2, interrupted_fit, settings, path) == ["interrupted"] * 2
    (whole,) = on_ranks(1, fit, DEC, even(1), settings)
    settings = {**settings, "checkpoint": path}
    for size in SIZES:
        results = on_ranks(size, fit, DEC, even(size), settings, np.asarray, True)
        assert_same_everywhere(results)
        for name, series in whole.history.items():
            np.testing.assert_allclose(results[0].history[name], series, rtol=1e-4, err_msg=name)
        assert (joined(results) == whole.labels).mean() > 0.99


# Faults.


def fit_of_a_rank_that_is_killed(path):
    def die(run):
        if dist.get_rank() == 1 and run.stage.name == "cluster" and run.update == 10:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(DEC, even(2), {"callbacks": [die]})


def test_a_killed_rank_ends_the_others():
    survivor, killed = on_ranks(2, fit_of_a_rank_that_is_killed, None)
    assert killed == ENDED
    assert isinstance(survivor, RuntimeError)
    assert str(survivor).startswith("distributed: rank 0 of 2 lost another one, which has ended")


def wait_for_a_silent_rank(seconds):
    ranks = Ranks(1, dist.new_group(timeout=timedelta(seconds=seconds)))
    began = time.monotonic()
    if ranks.rank == 1:
        return None  # and the process lives on
    with pytest.raises(RuntimeError, match=r"silent for longer than the time-out"):
        ranks.sum(torch.ones(1))
    return time.monotonic() - began


def test_a_silent_rank_is_waited_for_as_long_as_the_time_out():
    waited, _ = on_ranks(2, wait_for_a_silent_rank, 8)
    assert 7 < waited < 30


class Faults:
    """What this rank is told of faults, by a name of each."""

    def __init__(self):
        self.told = {}

    def __call__(self, name, rows, kind=DEC, resume=False, **settings):
        settings = {**(SETTINGS if kind is DEC else {}), **settings}
        with pytest.raises((ValueError, RuntimeError)) as error:
            kind(**settings).fit(Shard(rows), resume=resume)
        self.told[name] = f"{type(error.value).__name__}: {error.value}"


def faults():
    rank, rows, told = dist.get_rank(), own(even(2)), Faults()
    told("width", rows[:, : 6 - rank])
    told("type", rows.astype([np.float32, np.float64][rank]))
    told("parameter", rows, batch_size=50 + rank)
    broken = rows.copy()
    broken[100] = [1, np.nan][rank]
    told("values", broken)
    told("clusters", rows[:2], n_clusters=5)
    told("distinct", np.ones_like(rows))
    told("part", rows, DCN)
    told("regulariser", rows, regularisers=(Balance(),))
    told("intervention", rows, interventions=(CollapseGuard(),))
    network = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.BatchNorm1d(3))
    told("network", rows, encoder=network, tune_updates=0)
    told("resume", rows, resume=True)
    return told.told


def test_faults_are_told_on_every_rank():
    one, two = on_ranks(2, faults)
    expected = {
        "width": "ValueError: Shard: the width of X is 6 on rank 0, but 5 on rank 1; it takes",
        "type": "ValueError: Shard: the type of X is 'float32' on rank 0, but 'float64' on rank 1",
        "parameter": "ValueError: Shard: batch_size is 50 on rank 0, but 51 on rank 1",
        "values": "RuntimeError: distributed: rank 1 of 2 failed: ValueError: X: row 251 has NaN",
        "clusters": "ValueError: n_clusters: got 5, more than the 4 rows of X",
        "distinct": "ValueError: n_clusters: got 4, but X has only 1 distinct rows",
        "part": "ValueError: X: got a Shard of 2 processes, but RunningMeans takes all rows in one",
        "regulariser": "ValueError: X: got a Shard of 2 processes, but Balance takes all rows",
        "intervention": "ValueError: X: got a Shard of 2 processes, but CollapseGuard takes all",
        "network": "ValueError: X: got a Shard of 2 processes, but the network's encoder.1 takes",
        "resume": "ValueError: resume: got no checkpoint; several processes go on from a file",
    }
    assert one.keys() == expected.keys()
    for name, text in expected.items():
        assert one[name].startswith(text), one[name]
        if name != "values":
            assert two[name] == one[name]
    assert two["values"] == "ValueError: X: row 251 has NaN or Inf; it takes finite values"


def test_what_cannot_be_shared_is_refused():
    for method in (MiniBatchKMeans().fit, MiniBatchKMeans().partial_fit):
        with pytest.raises(TypeError, match="X: got a Shard; MiniBatchKMeans takes all rows"):
            method(Shard(X))
    with pytest.raises(TypeError, match="rows: got list; a Shard takes"):
        Shard([[1.0]])


# The command.


def torchrun(*arguments):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    return subprocess.run(
        [*command, "-m", "deepclust", "fit", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", CLASSES)
    return tmp_path / "X.npy"


def test_the_command_with_kmeans(file, tmp_path):
    done = torchrun(file, "--method", "kmeans", "--n-clusters", 4, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("303 samples") == 1
    one = KMeans(4, random_state=0).fit(X)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "labels.npy"), one.labels_)
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
def test_the_command_with_dec(file, tmp_path):
    out = tmp_path / "out"
    settings = ("hidden=[16]", "latent_dim=3", "tune_updates=30", "max_updates=20")
    options = [word for setting in settings for word in ("--set", setting)]
    options += ["--labels", file.with_name("y.npy"), "--out", out, "--n-clusters", 4]
    done = torchrun(file, *options)
    assert done.returncode == 0, done.stderr
    history = json.loads((out / "history.json").read_text())
    assert len(history["cluster/accuracy"]) == 2
    assert "torchrun --nproc-per-node 2 -m deepclust fit" in (out / "report.html").read_text()
    assert not (out / "checkpoint.safetensors").exists()
    labels = np.load(out / "labels.npy")
    np.testing.assert_array_equal(labels, DEC.load(out / "model.safetensors").predict(X))


# Parts of a whole.


def parts(path):
    from_file, from_array = shard(path), shard(X)
    np.testing.assert_array_equal(from_file.rows, from_array.rows)
    assert isinstance(from_file.rows, np.memmap)
    rows = torch.from_numpy(np.array(from_file.rows))
    picked = from_file.ranks().pick(torch.tensor([300, 0, 5]), rows.__getitem__)
    return from_file.rows, from_file.gather(from_file.rows[:, 0] > 0), picked.numpy()


def test_a_file_is_cut_and_what_is_found_is_gathered(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, X)
    results = on_ranks(4, parts, path)
    np.testing.assert_array_equal(np.concatenate([rows for rows, _, _ in results]), X)
    np.testing.assert_array_equal(results[0][1], X[:, 0] > 0)
    for _, gathered, picked in results[1:]:
        assert gathered is None
        np.testing.assert_array_equal(picked, X[[300, 0, 5]])
