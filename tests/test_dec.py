"""DEC: its equations in the loop, prediction, files, resuming, and errors."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deepclust import functional as F
from deepclust.cluster import DEC, KMeans
from deepclust.cluster._composition import Composition
from deepclust.cluster._data import Rows
from deepclust.cluster._start import Start, gaussian_likelihood
from deepclust.cluster._trainer import Run, Settings
from deepclust.datasets import load_digits
from deepclust.kernels import adam
from deepclust.metrics import clustering_accuracy

SMALL = {
    "hidden": (32,),
    "latent_dim": 4,
    "layer_updates": 5,
    "tune_updates": 30,
    "max_updates": 24,
    "update_interval": 8,
    "tol": 0.0,
    "n_init": 2,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def fitted(digits):
    return DEC(10, **SMALL).fit(digits.X)


# The checks fit dozens of times: the smallest network that still tells three blobs apart.
@parametrize_with_checks(
    [
        DEC(
            3,
            hidden=(),
            latent_dim=2,
            tune_updates=60,
            pretrain_lr=3e-2,
            max_updates=10,
            update_interval=5,
            n_init=1,
            batch_size=64,
            random_state=0,
        )
    ],
    expected_failed_checks=lambda estimator: dict.fromkeys(
        ("check_estimator_sparse_array", "check_estimator_sparse_matrix"),
        "the check takes whatever has predict_proba for a classifier; sparse data are tested below",
    ),
)
def test_scikit_learn_estimator_checks(estimator, check):
    with warnings.catch_warnings():
        # Some checks give it noise, in which clusters may die; that warning is tested below.
        warnings.filterwarnings("ignore", message="only . of . clusters")
        check(estimator)


def test_labels_are_what_predict_gives(fitted, digits):
    np.testing.assert_array_equal(fitted.predict(digits.X), fitted.labels_)
    q = fitted.predict_proba(digits.X)
    np.testing.assert_array_equal(q.argmax(1), fitted.labels_)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)
    z = torch.from_numpy(fitted.transform(digits.X))
    assert z.shape == (len(digits), 4)
    expected = F.student_t_assignment(z, torch.from_numpy(fitted.cluster_centers_))
    np.testing.assert_allclose(q, expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(DEC(10, **SMALL).fit_predict(digits.X), fitted.labels_)


def test_same_seed_same_bits_other_seed_other_bits(fitted, digits):
    again = DEC(10, **SMALL).fit(digits.X)
    np.testing.assert_array_equal(again.cluster_centers_, fitted.cluster_centers_)
    assert again.history_ == fitted.history_
    other = DEC(10, **{**SMALL, "random_state": 1}).fit(digits.X)
    assert not np.array_equal(other.cluster_centers_, fitted.cluster_centers_)


def test_history(fitted):
    assert set(fitted.history_) == {
        "pretrain-1/reconstruction",
        "pretrain-2/reconstruction",
        "tune/reconstruction",
        "cluster/kl",
        "cluster/changed",
    }
    assert [update for update, _ in fitted.history_["cluster/changed"]] == [0, 8, 16, 24]
    series = fitted.history_["tune/reconstruction"]
    assert series[-1][1] < series[0][1]
    assert fitted.n_iter_ == 5 + 5 + 30 + 24
    assert fitted.stop_reasons_["cluster"] == "length of 24 updates"


def test_one_update_is_the_papers_gradient(digits):
    """The first step of plain SGD moves the centroids by eq. 5 and nothing else."""
    X = digits.X[:50]
    moments = []

    def record(run):
        if run.stage.name == "cluster":
            z = run.map(run.method.embed).double()
            moments.append((z, run.method.layer.centroids.detach().double().clone()))

    DEC(
        4,
        **{**SMALL, "max_updates": 1, "update_interval": 1, "optimizer": "sgd", "cluster_lr": 0.5},
        batch_size=50,
        callbacks=[record],
    ).fit(X)
    (z, mu), (_, moved) = moments[:2]
    d2 = ((z[:, None] - mu) ** 2).sum(-1)
    q = (1 / (1 + d2)) / (1 / (1 + d2)).sum(1, keepdim=True)
    p = q**2 / q.sum(0)
    p = p / p.sum(1, keepdim=True)
    gradient = -2 * (((p - q) / (1 + d2))[:, :, None] * (z[:, None] - mu)).sum(0) / 50
    np.testing.assert_allclose(moved, mu - 0.5 * gradient, atol=1e-6)


def test_frozen_encoder_moves_only_the_centroids(digits):
    kinds = {}

    def record(run):
        if run.stage.name == "cluster" and run.update in (0, 24):
            kinds[run.update] = {k: v.clone() for k, v in run.method.state_dict().items()}

    DEC(10, **SMALL, freeze_encoder=True, callbacks=[record]).fit(digits.X)
    for name, value in kinds[0].items():
        assert torch.equal(value, kinds[24][name]) == (name != "layer.centroids"), name


def test_scale_makes_the_mean_square_one(digits):
    for scale, expected in (("dec", np.mean(digits.X**2) ** -0.5), (None, 1.0), (0.5, 0.5)):
        dec = DEC(10, **{**SMALL, "tune_updates": 0, "max_updates": 0}, scale=scale).fit(digits.X)
        np.testing.assert_allclose(float(dec._method.scale), expected, rtol=1e-5)


def test_gaussian_likelihood_is_the_formula_and_sees_shape():
    rng = np.random.default_rng(0)
    # Two long thin clusters side by side: cutting both across has the lower inertia.
    z = np.concatenate([rng.normal(size=(400, 2)) * (3, 0.1) + (0, y) for y in (-1, 1)])
    apart = np.repeat([0, 1], 400)
    across = (z[:, 0] > 0).astype(np.int64)
    scores = {}
    for name, labels in (("apart", apart), ("across", across)):
        scores[name] = gaussian_likelihood(torch.from_numpy(z), torch.from_numpy(labels), 2)
        expected = 0.0
        for j in (0, 1):
            rows = z[labels == j]
            covariance = np.cov(rows.T, bias=True) + 1e-3 * z.var(0).mean() * np.eye(2)
            share = len(rows) / 800
            expected += share * (np.log(share) - np.log(np.linalg.det(covariance)) / 2)
        np.testing.assert_allclose(scores[name], expected, rtol=1e-10)
    inertia = {
        name: sum(((z[labels == j] - z[labels == j].mean(0)) ** 2).sum() for j in (0, 1))
        for name, labels in (("apart", apart), ("across", across))
    }
    assert inertia["across"] < inertia["apart"]
    assert scores["apart"] > scores["across"]
    # One row in a cluster of its own is finite.
    assert np.isfinite(gaussian_likelihood(torch.from_numpy(z), (torch.arange(800) == 0) * 1, 2))


def test_criterion_is_of_the_first_start_and_later_ones_keep_least_inertia():
    rng = np.random.default_rng(0)
    # Side by side, with the better Gaussians where they are cut apart; the lower inertia across.
    z = np.concatenate([rng.normal(size=(400, 2)) * (1.7, 0.1) + (0, y) for y in (-1, 1)])
    z = torch.from_numpy(z)
    start = Start(2, "random", 60, "gaussian", "auto")
    found = {}
    for stage, update in (("cluster", 0), ("cluster", 40), ("recluster", 0)):
        seeds = iter(range(60))
        run = SimpleNamespace(
            stage=SimpleNamespace(name=stage),
            update=update,
            seed=lambda _, s=seeds: next(s),
            shared=lambda z: z,
            sum=torch.Tensor.double,
        )
        centroids, labels = start(run, z)
        inertia = float((z - centroids[labels]).square().sum())
        found[stage, update] = gaussian_likelihood(z, labels, 2), inertia
    first, later, last = found.values()
    assert later == last
    assert first[0] > later[0]
    assert first[1] > later[1]


def test_the_best_restart_is_kept(digits):
    starts = {}

    def record(run):
        if run.stage.name == "cluster" and run.update == 0:
            z = run.map(run.method.embed)
            starts[n_init] = gaussian_likelihood(z, run.state["labels"], 10)

    for n_init in (1, 6):
        settings = {**SMALL, "max_updates": 0, "n_init": n_init}
        DEC(10, **settings, callbacks=[record]).fit(digits.X)
    assert starts[6] >= starts[1]


def test_given_centroids_start_the_clustering(fitted, digits):
    pretrained = fitted.network_
    z = DEC(10, **{**SMALL, "max_updates": 0}, pretrained=pretrained).fit(digits.X)
    centroids = KMeans(10, tol=0, random_state=5).fit(z.transform(digits.X)).cluster_centers_
    dec = DEC(10, **{**SMALL, "max_updates": 0}, pretrained=pretrained, init=centroids)
    np.testing.assert_allclose(dec.fit(digits.X).cluster_centers_, centroids, atol=1e-5)


def test_pretrained_weights_skip_the_autoencoder(fitted, digits):
    settings = {**SMALL, "max_updates": 0}
    for source in (fitted.network_, fitted.network_.state_dict()):
        dec = DEC(10, **settings, pretrained=source).fit(digits.X)
        assert set(dec.history_) == {"cluster/changed"}
        for name, value in dec.network_.state_dict().items():
            assert torch.equal(value, fitted.network_.state_dict()[name])
        assert dec.network_ is not fitted.network_


def test_paper_preset_is_the_papers_recipe():
    method = DEC(10, preset="paper")._build(784)
    assert isinstance(method, Composition)
    assert method.network.widths == (784, 500, 500, 2000, 10)
    stages = method.stages()
    assert [stage.name for stage in stages] == [f"pretrain-{i}" for i in (1, 2, 3, 4)] + [
        "tune",
        "cluster",
    ]
    assert [stage.length.n for stage in stages[:5]] == [50_000] * 4 + [100_000]
    optimizer = stages[0].phases[0].optimizer(stages[0].phases[0].parameters())
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.1, 0.9)
    scheduler = stages[0].phases[0].schedule(optimizer, None)
    assert (scheduler.step_size, scheduler.gamma) == (20_000, 0.1)
    cluster = stages[5]
    optimizer = cluster.phases[0].optimizer(cluster.phases[0].parameters())
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.01, 0.9)
    assert (cluster.every.n, cluster.order) == (160, "sequential")
    std = torch.cat([p.flatten() for p in method.network.parameters() if p.ndim == 2]).std()
    assert abs(float(std) - 0.01) < 1e-4
    assert DEC.PRESETS.keys() == {"paper", "quick"}


def test_stops_when_labels_settle(digits):
    dec = DEC(10, **{**SMALL, "tol": 0.9}).fit(digits.X)
    assert "fewer than tol=0.9" in dec.stop_reasons_["cluster"]
    assert dec.history_["cluster/changed"][-1][0] == 8


def test_collapse_warns(digits):
    def collapse(run):
        if run.stage.name == "cluster" and run.update == 0:
            with torch.no_grad():
                run.method.layer.centroids[5:] += 1e3

    with pytest.warns(RuntimeWarning, match=r"of 10 clusters are used.*Try a longer pre-training"):
        DEC(10, **{**SMALL, "cluster_lr": 1e-9}, callbacks=[collapse]).fit(digits.X)


# Data in every form.


def test_every_form_of_data_gives_the_same(fitted, digits, tmp_path):
    path = tmp_path / "X.npy"
    np.save(path, digits.X)

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return len(digits)

        def __getitem__(self, i):
            return digits.X[i], digits.y[i]

    forms = {
        "list": digits.X.tolist(),
        "float64": digits.X.astype(np.float64),
        "uint8": digits.X.astype(np.uint8),
        "memory map": np.load(path, mmap_mode="r"),
        "tensor": torch.from_numpy(digits.X),
        "sparse": scipy.sparse.csr_array(digits.X),
        "coo": scipy.sparse.coo_matrix(digits.X),
        "Dataset": Pairs(),
    }
    for name, X in forms.items():
        dec = DEC(10, **SMALL).fit(X)
        np.testing.assert_array_equal(dec.labels_, fitted.labels_, err_msg=name)
        np.testing.assert_array_equal(dec.predict(X), fitted.labels_, err_msg=name)


def test_data_that_do_not_fit_are_read_where_they_are(fitted, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("deepclust.cluster._data.RESIDENT_BYTES", 0)
    monkeypatch.setattr("deepclust.cluster._data.BLOCK_ROWS", 500)
    np.save(tmp_path / "X.npy", digits.X)
    for X in (np.load(tmp_path / "X.npy", mmap_mode="r"), scipy.sparse.csr_array(digits.X)):
        dec = DEC(10, **SMALL).fit(X)
        assert clustering_accuracy(dec.labels_, fitted.labels_) > 0.99


# Files.


def test_save_and_load(fitted, digits, tmp_path):
    path = tmp_path / "model.safetensors"
    fitted.save(path)
    loaded = DEC.load(path)
    np.testing.assert_array_equal(loaded.predict(digits.X), fitted.labels_)
    np.testing.assert_array_equal(loaded.labels_, fitted.labels_)
    np.testing.assert_array_equal(loaded.cluster_centers_, fitted.cluster_centers_)
    assert loaded.history_ == fitted.history_
    assert loaded.get_params()["hidden"] == (32,)
    np.testing.assert_array_equal(loaded.fit(digits.X).labels_, fitted.labels_)
    loaded.save(tmp_path / "again")


def test_a_model_of_a_gpu_that_is_not_here_is_loaded_on_the_cpu(fitted, digits, tmp_path):
    elsewhere = copy.copy(fitted)
    elsewhere.device = "cuda:99"
    elsewhere.save(tmp_path / "model")
    loaded = DEC.load(tmp_path / "model")
    assert loaded.device == "cpu"
    np.testing.assert_array_equal(loaded.predict(digits.X), fitted.labels_)


def test_save_keeps_a_fit_with_weights_callbacks_and_centroids(fitted, digits, tmp_path):
    settings = {**SMALL, "max_updates": 0, "random_state": np.random.RandomState(3)}
    dec = DEC(
        10,
        **settings,
        pretrained=fitted.network_,
        init=fitted.cluster_centers_,
        callbacks=[lambda run: None],
    ).fit(digits.X)
    dec.save(tmp_path / "model")
    loaded = DEC.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(digits.X), dec.labels_)


def test_files_that_are_not_ours(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        DEC.load(tmp_path / "nothing")
    path = tmp_path / "model"
    fitted.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model"):
        DEC.load(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="model"):
        DEC.load(path)
    with pytest.raises(NotFittedError):
        DEC().save(path)
    with pytest.raises(OSError, match="missing"):
        fitted.save(tmp_path / "missing" / "model")
    assert path.read_bytes() == b"hello"


# Interruption.


def interrupt(stage, update):
    def callback(run):
        if run.stage.name == stage and run.update == update:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize(
    ("stage", "update"),
    [("pretrain-1", 5), ("pretrain-2", 5), ("tune", 30), ("cluster", 0), ("cluster", 16)],
)
@pytest.mark.parametrize("in_file", [True, False])
def test_resumed_fit_is_the_uninterrupted_one(fitted, digits, tmp_path, stage, update, in_file):
    path = tmp_path / "checkpoint" if in_file else None
    dec = DEC(10, **SMALL, callbacks=[interrupt(stage, update)], checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        dec.fit(digits.X)
    with pytest.raises(NotFittedError):
        dec.predict(digits.X)
    if in_file:
        dec = DEC(10, **SMALL, checkpoint=path)
    dec.callbacks = ()
    dec.fit(digits.X, resume=True)
    np.testing.assert_array_equal(dec.labels_, fitted.labels_)
    np.testing.assert_array_equal(dec.cluster_centers_, fitted.cluster_centers_)
    assert dec.history_ == fitted.history_
    for name, value in dec.network_.state_dict().items():
        assert torch.equal(value, fitted.network_.state_dict()[name]), name


def test_a_checkpoint_that_does_not_fit_is_refused(digits, tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(FileNotFoundError):
        DEC(10, **SMALL, checkpoint=path).fit(digits.X, resume=True)
    with pytest.raises(ValueError, match="resume: got True, but no fit"):
        DEC(10, **SMALL).fit(digits.X, resume=True)
    with pytest.raises(KeyboardInterrupt):
        DEC(10, **SMALL, callbacks=[interrupt("tune", 30)], checkpoint=path).fit(digits.X)
    with pytest.raises(ValueError, match=r"tol was 0\.0 and is 0\.5"):
        DEC(10, **{**SMALL, "tol": 0.5}, checkpoint=path).fit(digits.X, resume=True)
    with pytest.raises(ValueError, match="other data: n was 1797 and is 1000"):
        DEC(10, **SMALL, checkpoint=path).fit(digits.X[:1000], resume=True)
    with pytest.raises(ValueError, match="other data: sum was"):
        DEC(10, **SMALL, checkpoint=path).fit(digits.X + 1, resume=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="checkpoint"):
        DEC(10, **SMALL, checkpoint=path).fit(digits.X, resume=True)


# Bad input.


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_clusters": 0}, "n_clusters: got 0"),
        ({"n_clusters": 1798}, "n_clusters: got 1798, more than the 1797 rows"),
        ({"preset": "best"}, "preset: got 'best'; it takes 'paper' or 'quick'"),
        ({"nu": 0}, "nu: got 0"),
        ({"hidden": (0,)}, "sizes: got"),
        ({"hidden": "x"}, "hidden: got 'x'; it takes a sequence of widths"),
        ({"hidden": 7}, "hidden: got 7"),
        ({"hidden": (3.5,)}, "sizes: got"),
        ({"tol": "abc"}, "tol: got 'abc'"),
        ({"dropout": "a"}, "dropout: got 'a'"),
        ({"pretrain_lr": "fast"}, "pretrain_lr: got 'fast'"),
        ({"latent_dim": 0}, "latent_dim: got 0"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
        ({"tune_updates": -1}, "tune_updates: got -1"),
        ({"max_updates": 1.5}, "max_updates: got 1.5"),
        ({"update_interval": 0}, "update_interval: got 0"),
        ({"tol": -0.1}, "tol: got -0.1"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"optimizer": "lbfgs"}, "optimizer: got 'lbfgs'"),
        ({"cluster_lr": 0}, "cluster_lr: got 0"),
        ({"init_criterion": "luck"}, "init_criterion: got 'luck'"),
        ({"scale": "unit"}, "scale: got 'unit'"),
        (
            {"scale": float("nan")},
            "scale: got nan; it takes 'dec', 'range', None or a number above 0",
        ),
        ({"device": "abacus"}, "device: got 'abacus'"),
        ({"backend": "fpga"}, "backend: got 'fpga'"),
        ({"autocast": "int8"}, "autocast: got 'int8'"),
        ({"autocast": "float16"}, "autocast: got 'float16'; it takes None or 'bfloat16'"),
        ({"device": "cuda:99"}, "device: got 'cuda:99', but torch finds no such GPU"),
        ({"init": np.zeros((3, 4))}, r"init: got centroids of shape \(3, 4\)"),
        ({"pretrained": {"weight": torch.zeros(1)}}, "pretrained: the weights do not fit"),
    ],
)
def test_bad_parameters(digits, parameters, message):
    settings = {**SMALL, "n_clusters": 10, "layer_updates": 0, "tune_updates": 0, "max_updates": 0}
    with pytest.raises(ValueError, match=message):
        DEC(**{**settings, **parameters}).fit(digits.X)


def test_bad_data(digits):
    dec = DEC(10, **SMALL)
    X = digits.X.copy()
    X[7, 3] = np.nan
    with pytest.raises(ValueError, match="X: row 7 has NaN or Inf"):
        dec.fit(X)
    with pytest.raises(ValueError, match=r"X: got shape \(1797, 8, 8\).*flattens images"):
        dec.fit(digits.X.reshape(-1, 8, 8))
    with pytest.raises(ValueError, match=r"X: got shape \(1797, 8, 8\).*flattens images"):
        dec.fit(torch.from_numpy(digits.X).reshape(-1, 8, 8))
    with pytest.raises(ValueError, match="only 2 distinct rows"):
        dec.fit(np.repeat([[0.0], [1.0]], 50, axis=0))
    with pytest.raises(TypeError, match="pretrained: got int"):
        DEC(10, **SMALL, pretrained=3).fit(digits.X)


def test_predict_of_another_width(fitted):
    for X in (np.zeros((2, 5)), torch.zeros(2, 5)):
        with pytest.raises(ValueError, match="X has 5 features, but DEC is expecting 64"):
            fitted.predict(X)


def test_no_gpu_is_said_clearly(digits):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device: got 'cuda', but torch finds no such GPU"):
        DEC(10, **SMALL, device="cuda").fit(digits.X)


def test_autocast_runs_and_predicts(digits):
    dec = DEC(10, **SMALL, autocast="bfloat16").fit(digits.X)
    np.testing.assert_array_equal(dec.predict(digits.X), dec.labels_)


def test_autocast_is_for_the_networks_alone(digits, monkeypatch):
    step, rounded, scalars = Run._step, set(), set()

    class Kinds(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in tensors_of(out):
                if t.ndim == 0:
                    scalars.add(t.dtype)
                elif t.dtype == torch.bfloat16:
                    rounded.add(str(func).split(".")[1])
            return out

    def watched(run):
        with Kinds():
            step(run)

    monkeypatch.setattr(Run, "_step", watched)
    dec = DEC(10, **SMALL, autocast="bfloat16", backend="eager").fit(digits.X)
    assert "addmm" in rounded
    # No loss is, nor what it is made of.
    assert torch.bfloat16 not in scalars
    assert not rounded & {"pow", "square", "mean", "log", "log1p", "exp", "logsumexp"}
    assert dec.cluster_centers_.dtype == np.float32
    assert {p.dtype for p in dec.network_.parameters()} == {torch.float32}


def test_autocast_is_part_of_a_runs_identity(digits, tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        DEC(10, **SMALL, callbacks=[interrupt("tune", 30)], checkpoint=path).fit(digits.X)
    with pytest.raises(ValueError, match="autocast was None and is 'bfloat16'"):
        DEC(10, **SMALL, autocast="bfloat16", checkpoint=path).fit(digits.X, resume=True)


# What the host may not do between two refreshes. Backends other than eager are beneath torch's
# dispatcher, where nothing can be seen.

# Operations for whose result the host of a GPU waits.
WAITED_FOR = {
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
}


def tensors_of(tree):
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Watch(TorchDispatchMode):
    """Notes operations that wait for results, and those on tensors of two devices."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        name = str(func).split(".")[1]
        devices = {t.device.type for t in tensors_of((args, kwargs, out))}
        if name in WAITED_FOR or len(devices) > 1:
            self.seen.append(name)
        return out


def watch_steps(monkeypatch):
    """From now on no step may wait for a result; gives the number of operations of each."""
    step, calls = Run._step, []

    def watched(run):
        with Watch() as watch:
            step(run)
        calls.append(watch.calls)
        assert watch.seen == []

    monkeypatch.setattr(adam, "extension", lambda: "")  # a GPU has no half weights
    monkeypatch.setattr(Run, "_step", watched)
    return calls


def forbid_waiting(monkeypatch, captured_after):
    """From now on steps on a GPU raise where they wait; captured ones after so many updates."""
    step = Run._step

    def watched(run):
        # To capture a step is to wait; each stage has two sizes of batch, both in its first pass.
        if run.settings.capture is None or run.update >= captured_after:
            torch.cuda.set_sync_debug_mode("error")
        try:
            step(run)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Run, "_step", watched)


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"freeze_encoder": True}])
def test_steps_wait_for_no_result(digits, settings, autocast, monkeypatch):
    calls = watch_steps(monkeypatch)
    DEC(10, **SMALL, **settings, autocast=autocast, backend="eager").fit(digits.X)
    assert len(calls) == 5 + 5 + 30 + 24
    assert min(calls) > 10


@pytest.mark.parametrize("order", ["shuffle", "sequential"])
@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_steps_leave_the_device_once_a_pass(order, freeze_encoder, monkeypatch):
    """The meta device stands for a GPU: what is not on it shows, and reading from it raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no meta
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    device = torch.device("meta")
    dec = DEC(10, **SMALL, backend="eager", freeze_encoder=freeze_encoder)
    method = dec._build(64).to(device)
    # Fused ones know no meta either.
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    method.recipe.optimizer = sgd
    object.__setattr__(method.recipe.pretraining, "optimizer", sgd)
    run = Run(method, Rows(torch.empty(600, 64, device=device), device), Settings())
    for number, stage in enumerate(run._stages):
        run.stage_index = number
        run._optimizers, run._permutation, run._position = {}, None, 0
        run._make_optimizers()
        stage.order = order
        if stage.name == "cluster":
            run.state["snapshot"] = F.freeze_target(run.map(method.embed), method.head())
        for update in range(6):
            with Watch() as watch:
                run._step()
            new_pass = order == "shuffle" and update % 3 == 0
            assert watch.seen == ["_to_copy"] * new_pass, (stage.name, update)


# On a GPU.

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("resident", [True, False])
def test_fit_on_a_gpu_is_the_fit_on_the_cpu(fitted, digits, resident, monkeypatch):
    if not resident:
        monkeypatch.setattr("deepclust.cluster._data.RESIDENT_SHARE", 0.0)
    # Without dropout and random starts, whose numbers are others there.
    settings = {**SMALL, "pretrained": fitted.network_, "init": fitted.cluster_centers_}
    expected = DEC(10, **settings).fit(digits.X)
    for X in (digits.X, torch.from_numpy(digits.X).cuda()):
        dec = DEC(10, **settings, device="cuda").fit(X)
        assert dec.labels_.dtype == np.int64
        assert (dec.labels_ == expected.labels_).mean() > 0.99
        np.testing.assert_allclose(dec.cluster_centers_, expected.cluster_centers_, atol=1e-2)
        np.testing.assert_array_equal(dec.predict(X), dec.labels_)
        np.testing.assert_array_equal(dec.predict_proba(X).argmax(1), dec.labels_)


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_steps_on_a_gpu_never_wait(digits, autocast, cuda_graphs, monkeypatch):
    forbid_waiting(monkeypatch, captured_after=8)
    settings = {**SMALL, "layer_updates": 20}
    DEC(10, **settings, autocast=autocast, cuda_graphs=cuda_graphs, device="cuda").fit(digits.X)


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_a_fit_goes_on_on_another_device(digits, tmp_path, first):
    path = tmp_path / "checkpoint"
    for update in (0, 16):
        dec = DEC(10, **SMALL, device=first, checkpoint=path)
        dec.callbacks = [interrupt("cluster", update)]
        with pytest.raises(KeyboardInterrupt):
            dec.fit(digits.X)
        other = "cpu" if first == "cuda" else "cuda"
        dec = DEC(10, **SMALL, device=other, checkpoint=path).fit(digits.X, resume=True)
        assert dec.n_iter_ == 5 + 5 + 30 + 24
        assert {p.device.type for p in dec.network_.parameters()} == {other}


@pytest.mark.gpu
@no_gpu
def test_resumed_fit_on_a_gpu_is_the_uninterrupted_one(digits):
    whole = DEC(10, **SMALL, device="cuda").fit(digits.X)
    dec = DEC(10, **SMALL, device="cuda", callbacks=[interrupt("pretrain-2", 5)])
    with pytest.raises(KeyboardInterrupt):
        dec.fit(digits.X)
    dec.callbacks = ()
    dec.fit(digits.X, resume=True)
    np.testing.assert_array_equal(dec.labels_, whole.labels_)
    np.testing.assert_allclose(dec.cluster_centers_, whole.cluster_centers_, atol=1e-4)


@pytest.mark.gpu
@no_gpu
def test_a_model_moves_between_devices(fitted, digits, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = DEC.load(tmp_path / "model", device="cuda")
    assert (loaded.predict(digits.X) == fitted.labels_).mean() > 0.999
    loaded.save(tmp_path / "again")
    np.testing.assert_array_equal(
        DEC.load(tmp_path / "again", device="cpu").predict(digits.X), fitted.labels_
    )
