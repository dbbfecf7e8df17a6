"""ClustPy on our kernels: each of its deep estimators takes the steps that it takes without."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from torch.testing import assert_close

from deepclust.integrations import clustpy as integration

needs_clustpy = pytest.mark.skipif(
    importlib.util.find_spec("clustpy") is None,
    reason="ClustPy is not installed: pip install 'deepclust[clustpy]'",
)

DISTANCE, SOFT = "squared_euclidean_distance", "_dec_predict"
LOSS, LOSS_OF_VIEWS = "_DEC_Module.dec_loss", "_DEC_Module.dec_augmentation_invariance_loss"
NEAREST, MEANS = "_DCN_Module.predict_hard", "_compute_centroids"
# Each deep estimator: its parameters, and the replaced functions that a fit of it calls.
ESTIMATORS = {
    "ACeDeC": ({"n_clusters": 3}, {DISTANCE}),
    "AEC": ({"n_clusters": 3}, {NEAREST}),
    "DCN": ({"n_clusters": 3}, {NEAREST, MEANS}),
    "DDC": ({}, set()),
    "DEC": ({"n_clusters": 3}, {SOFT, LOSS}),
    "DEN": ({"n_clusters": 2, "group_size": 2}, set()),
    "DKM": ({"n_clusters": 3, "alphas": (0.1, 1.0)}, {DISTANCE}),
    "DeepECT": ({"max_n_leaf_nodes": 5}, {DISTANCE}),
    "DipDECK": ({"n_clusters_init": 6}, {DISTANCE}),
    "DipEncoder": ({"n_clusters": 3}, set()),
    "ENRC": ({"n_clusters": [3, 2]}, {DISTANCE}),
    "IDEC": ({"n_clusters": 3}, {SOFT, LOSS}),
    "N2D": ({"n_clusters": 3}, set()),
    "SHADE": ({}, {DISTANCE}),
    "VaDE": ({"n_clusters": 3}, set()),
}
BATCHES = 7  # of 30 among 210 rows
PRETRAIN_EPOCHS, EPOCHS = 3, 4


@pytest.fixture(autouse=True)
def off():
    """No test begins or ends with the integration on."""
    assert not integration.is_enabled()
    yield
    integration.disable()
    assert not integration.is_enabled()


@pytest.fixture
def calls(monkeypatch):
    """The names of the replacements that have run."""
    called = set()

    def watched(name, function):
        @functools.wraps(function)  # keeps the signature, which is compared
        def call(*args, **kwargs):
            called.add(name)
            return function(*args, **kwargs)

        return call

    table = {
        name: (module, watched(name, function))
        for name, (module, function) in integration._REPLACEMENTS.items()
    }
    monkeypatch.setattr(integration, "_REPLACEMENTS", table)
    return called


def fit(name, seed, monkeypatch):
    """A fit of ClustPy's, and the loss of every step it took."""
    import clustpy.deep
    from clustpy.deep.neural_networks import FeedforwardAutoencoder

    X, _ = make_blobs(210, 12, centers=3, cluster_std=2.0, random_state=1)
    X = ((X - X.min()) / (X.max() - X.min())).astype(np.float32)
    made = getattr(clustpy.deep, name)
    network = clustpy.deep.vade._VaDE_VAE if name == "VaDE" else FeedforwardAutoencoder
    common = {
        "neural_network": (network, {"layers": [12, 16, 4], "random_state": seed}),
        "batch_size": 30,
        "embedding_size": 4,
        "random_state": seed,
        "device": "cpu",
        "pretrain_epochs": PRETRAIN_EPOCHS,
        "clustering_epochs": EPOCHS,
    }
    takes = inspect.signature(made).parameters
    estimator = made(**{k: v for k, v in common.items() if k in takes}, **ESTIMATORS[name][0])
    losses = []
    backward = torch.Tensor.backward

    def recorded(self, *args, **kwargs):
        losses.append(float(self.detach()))
        return backward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", recorded)
        estimator.fit(X)
    return np.array(losses), estimator


@needs_clustpy
class TestEstimators:
    def test_all_of_them_are_here(self):
        import clustpy.deep
        from clustpy.deep._abstract_deep_clustering_algo import _AbstractDeepClusteringAlgo

        deep = {
            name
            for name, value in vars(clustpy.deep).items()
            if inspect.isclass(value) and issubclass(value, _AbstractDeepClusteringAlgo)
        }
        assert deep == ESTIMATORS.keys()

    @pytest.mark.parametrize("name", ESTIMATORS)
    def test_the_same_steps(self, name, monkeypatch, calls):
        own, theirs = fit(name, 0, monkeypatch)
        assert not calls
        assert len(own) >= 20
        with integration.enabled():
            losses, ours = fit(name, 0, monkeypatch)
        assert calls == ESTIMATORS[name][1]
        assert len(losses) == len(own)
        assert ours.labels_.dtype == theirs.labels_.dtype
        assert ours.labels_.shape == theirs.labels_.shape
        if not calls:
            assert np.array_equal(losses, own)
            return
        # 20 steps of pre-training, and 20 of training for clusters.
        first = PRETRAIN_EPOCHS * BATCHES
        assert first >= 20
        assert len(own) >= first + 20
        np.testing.assert_allclose(losses[: first + 20], own[: first + 20], rtol=1e-4)
        # The whole fit: its last epoch lies as near to ClustPy's as ClustPy's seeds to one another.
        # (ACeDeC ends with steps of Adam on gradients that are mostly rounding. It goes as far from
        # itself when one unit in the last place is added to its distances.)
        ends = [own[-BATCHES:].mean()]
        ends += [fit(name, seed, monkeypatch)[0][-BATCHES:].mean() for seed in (1, 2)]
        assert abs(losses[-BATCHES:].mean() - ends[0]) <= np.ptp(ends)


@needs_clustpy
class TestFunctions:
    """Each replacement beside ClustPy's function: values, gradients and types."""

    TYPES = (
        (torch.float32, torch.float32),
        (torch.float32, torch.float64),  # embeddings and centres as its estimators have them
        (torch.float64, torch.float64),
    )

    @pytest.fixture(params=TYPES, ids=lambda types: "-".join(str(t)[6:] for t in types))
    def types(self, request):
        return request.param

    def tensors(self, types, k=5):
        random = torch.Generator().manual_seed(0)
        z = torch.randn(64, 7, generator=random, dtype=types[0])
        view = z + torch.randn(64, 7, generator=random, dtype=types[0]) / 4
        centers = torch.randn(k, 7, generator=random, dtype=types[1])
        weights = torch.rand(7, generator=random, dtype=types[0]) + 0.5
        return [tensor.requires_grad_() for tensor in (z, view, centers, weights)]

    def compare(self, call, *tensors):
        """`call` without and with the integration, and its gradients to the tensors."""
        results = []
        for on in (False, True):
            if on:
                integration.enable()
            result = call()
            # A sum would let the gradient of probabilities vanish.
            scale = torch.linspace(-1, 1, result.numel(), dtype=result.dtype)
            gradients = torch.autograd.grad(
                (result.flatten() * scale).sum(), tensors, allow_unused=True
            )
            results.append((result.detach(), gradients))
        integration.disable()
        assert_close(results[1], results[0], rtol=2e-5, atol=2e-6)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_distance(self, types, weighted):
        from clustpy.deep import _utils

        z, _, centers, weights = self.tensors(types)
        given = (weights,) if weighted else ()
        self.compare(
            lambda: _utils.squared_euclidean_distance(z, centers, *given), z, centers, *given
        )

    def test_a_row_and_itself_are_0_apart(self):
        """DipDECK takes the root of what is not 0, whose gradient would be near infinite."""
        from clustpy.deep import _utils

        x = (torch.randn(50, 7) * 3 + 100).requires_grad_()
        with integration.enabled():
            d = _utils.squared_euclidean_distance(x, x)
        assert torch.equal(d.diagonal(), torch.zeros(50))
        (gradient,) = torch.autograd.grad(d[d != 0].sqrt().sum(), x)
        assert torch.isfinite(gradient).all()

    def test_far_rows_keep_their_digits_under_weights(self):
        from clustpy.deep import _utils

        x, y, weights = torch.randn(50, 7) + 1000, torch.randn(5, 7) + 1000, torch.rand(7)
        with integration.enabled():
            d = _utils.squared_euclidean_distance(x, y, weights)
        exact = _utils.squared_euclidean_distance(x.double(), y.double(), weights.double())
        assert_close(d.double(), exact, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("x", "y"),
        [
            (torch.arange(8).reshape(4, 2), torch.arange(6).reshape(3, 2)),  # its tests' integers
            (torch.randn(6, 1, 3), torch.randn(4, 1, 3)),  # ENRC's, (6, 4, 3)
        ],
    )
    def test_what_we_have_no_kernel_for_is_its_own(self, x, y):
        from clustpy.deep import _utils

        own = _utils.squared_euclidean_distance(x, y)
        with integration.enabled():
            assert_close(_utils.squared_euclidean_distance(x, y), own, rtol=0, atol=0)

    @pytest.mark.parametrize("alpha", [1.0, 2, 7.5])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_dec(self, types, alpha, weighted):
        from clustpy.deep import dec

        z, view, centers, weights = self.tensors(types)
        given = {"weights": weights} if weighted else {}
        module = dec._DEC_Module(centers.detach().numpy(), alpha)
        inputs = (z, module.centers, *given.values())
        self.compare(lambda: module.predict(z, **given), *inputs)
        self.compare(lambda: module.dec_loss(z, **given), *inputs)
        self.compare(
            lambda: module.dec_augmentation_invariance_loss(z, view, **given), view, *inputs
        )

    def test_augmented_batches(self, calls):
        """The estimators reach the loss of views by their own parameters."""
        from clustpy.deep import DEC, get_dataloader
        from clustpy.deep.neural_networks import FeedforwardAutoencoder

        X, _ = make_blobs(90, 6, random_state=0)
        X = X.astype(np.float32)

        class Views(torch.utils.data.Dataset):
            def __len__(self):
                return len(X)

            def __getitem__(self, i):
                return i, torch.from_numpy(X[i] + 0.01), torch.from_numpy(X[i])

        loaders = (
            torch.utils.data.DataLoader(Views(), batch_size=30),
            get_dataloader(X, 30, shuffle=False),
        )
        centers = []
        for on in (False, True):
            if on:
                integration.enable()
            network = (FeedforwardAutoencoder, {"layers": [6, 8, 3], "random_state": 0})
            model = DEC(
                3,
                pretrain_epochs=1,
                clustering_epochs=2,
                neural_network=network,
                embedding_size=3,
                custom_dataloaders=loaders,
                augmentation_invariance=True,
                random_state=0,
                device="cpu",
            )
            centers.append(model.fit(X).dec_cluster_centers_)
        assert LOSS_OF_VIEWS in calls
        np.testing.assert_allclose(*centers, rtol=1e-4)

    def test_dcn(self, types):
        from clustpy.deep import dcn

        z, _, centers, _ = (tensor.detach() for tensor in self.tensors(types, k=6))
        # The last centre never gets a row, and has had none.
        centers[-1] = 100
        found = []
        for on in (False, True):
            if on:
                integration.enable()
            module = dcn._DCN_Module(np.zeros(64, dtype=np.int32), centers.detach().numpy().copy())
            module.counts[-1] = 0
            kept = module.centers
            labels = module.predict_hard(z)
            means, counts = module.update_centroids(z, labels)
            assert means is kept  # in place, as its estimators rely on
            assert counts is module.counts
            found.append((labels, means, counts))
        assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(found[1][1][-1], centers[-1])

    def test_rows_without_a_number_are_refused(self):
        """ClustPy would go on with NaN in its losses and centres."""
        from clustpy.deep import dec

        module = dec._DEC_Module(np.zeros((2, 3)), 1.0)
        z = torch.full((4, 3), torch.nan)
        assert module.dec_loss(z).isnan()
        with integration.enabled(), pytest.raises(ValueError, match="row 0 has NaN"):
            module.dec_loss(z)


@needs_clustpy
def test_it_finds_every_place_where_clustpy_looks():
    import clustpy.deep

    def places():
        return {
            name: module.squared_euclidean_distance
            for name, module in list(sys.modules.items())
            if name.startswith("clustpy.") and hasattr(module, DISTANCE)
        }

    before = places()
    assert {f"clustpy.deep.{m}" for m in ("dkm", "enrc", "dipdeck", "deepect", "shade")} <= {
        *before
    }
    with integration.enabled():
        assert set(places().values()) == {integration.squared_euclidean_distance}
    assert places() == before
    assert clustpy.deep.dec._dec_predict.__module__ == "clustpy.deep.dec"


# The mechanism, on modules with the names that ClustPy has: these need no ClustPy.


@pytest.fixture
def fake(monkeypatch):
    """Modules named as ClustPy's, with functions of the arguments that it has."""

    def module(name, **contents):
        made = types.ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    def squared_euclidean_distance(tensor1, tensor2, weights=None): ...
    def _dec_predict(centers, embedded, alpha, weights): ...
    def _compute_centroids(centers, embedded, counts, labels): ...

    class _DEC_Module:  # noqa: N801
        def dec_loss(self, embedded, weights=None): ...
        def dec_augmentation_invariance_loss(self, embedded, embedded_aug, weights=None): ...

    class _DCN_Module:  # noqa: N801
        def predict_hard(self, embedded): ...

    for name in [name for name in sys.modules if name.partition(".")[0] == "clustpy"]:
        monkeypatch.delitem(sys.modules, name)
    distance = {DISTANCE: squared_euclidean_distance}
    found = types.SimpleNamespace(
        clustpy=module("clustpy", __version__="9.9"),
        utils=module("clustpy.deep._utils", **distance),
        dec=module(
            "clustpy.deep.dec", **distance, _dec_predict=_dec_predict, _DEC_Module=_DEC_Module
        ),
        dcn=module(
            "clustpy.deep.dcn", _compute_centroids=_compute_centroids, _DCN_Module=_DCN_Module
        ),
    )
    module("clustpy.deep", dec=found.dec, dcn=found.dcn)
    return found


def contents(fake):
    """All that could have been replaced."""
    modules = (fake.utils, fake.dec, fake.dcn)
    classes = (fake.dec._DEC_Module, fake.dcn._DCN_Module)
    return [dict(vars(owner)) for owner in (*modules, *classes)]


def test_enable_and_disable_restore_exactly(fake):
    before = contents(fake)
    integration.disable()  # nothing to do
    for _ in range(2):
        integration.enable()
        integration.enable()  # the same again
        assert integration.is_enabled()
        assert fake.dec._dec_predict is integration._dec_predict
        assert fake.utils.squared_euclidean_distance is integration.squared_euclidean_distance
        assert fake.dec.squared_euclidean_distance is integration.squared_euclidean_distance
        assert fake.dcn._DCN_Module.predict_hard is integration.predict_hard
        integration.disable()
        assert not integration.is_enabled()
        assert contents(fake) == before


def test_what_others_put_there_meanwhile_stays(fake):
    integration.enable()
    fake.dec._dec_predict = other = object()
    integration.disable()
    assert fake.dec._dec_predict is other


def test_contexts_nest_and_end_with_errors(fake):
    before = contents(fake)
    with integration.enabled():
        with pytest.raises(KeyError), integration.enabled():
            raise KeyError
        assert integration.is_enabled()
        integration.disable()  # ends with the block around it
        assert integration.is_enabled()
    assert contents(fake) == before
    integration.enable()
    with integration.enabled():
        pass
    assert integration.is_enabled()


def test_contexts_of_several_threads(fake):
    before = contents(fake)
    inside, leave = threading.Barrier(9), threading.Event()
    seen = []

    def work(i):
        with integration.enabled():
            inside.wait(timeout=30)
            if i:
                leave.wait(timeout=30)
            seen.append(integration.is_enabled())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    inside.wait(timeout=30)
    threads[0].join(timeout=30)
    assert integration.is_enabled()  # one has left, seven are inside
    leave.set()
    for thread in threads:
        thread.join(timeout=30)
    assert seen == [True] * 8
    assert contents(fake) == before


def test_without_clustpy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "clustpy", None)
    monkeypatch.delitem(sys.modules, "clustpy.deep", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'deepclust\[clustpy\]'"):
        integration.enable()
    with pytest.raises(ImportError, match="clustpy"), integration.enabled():
        pass


def test_a_function_that_is_missing_is_named_and_nothing_replaced(fake):
    del fake.dcn._compute_centroids
    del fake.dec._DEC_Module
    before = [dict(vars(module)) for module in (fake.utils, fake.dec, fake.dcn)]
    with pytest.raises(RuntimeError, match=r"clustpy 9\.9") as error:
        integration.enable()
    assert (
        "clustpy.deep.dcn._compute_centroids(centers, embedded, counts, labels): there is none"
        in (str(error.value))
    )
    assert "_DEC_Module.dec_loss(self, embedded, weights=None): there is none" in str(error.value)
    assert [dict(vars(module)) for module in (fake.utils, fake.dec, fake.dcn)] == before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda centers, embedded, count, labels: None, "centers, embedded, count, labels"),
        (lambda centers, embedded, counts, labels=None: None, "labels=None"),
        (lambda centers, embedded, counts, *labels: None, r"\*labels"),
        ("no function", "no function"),
    ],
)
def test_other_arguments_are_refused_and_named(fake, other, said):
    fake.dcn._compute_centroids = other
    with pytest.raises(RuntimeError, match=rf"_compute_centroids.*got \(.*{said}"):
        integration.enable()
    assert not integration.is_enabled()


def test_importing_it_imports_nothing_of_clustpy():
    code = (
        "import sys, deepclust; assert 'deepclust.integrations' not in sys.modules;"
        "from deepclust.integrations import clustpy;"
        "assert 'clustpy' not in sys.modules and not clustpy.is_enabled()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
