"""IDEC, DCN, ABC, VaDE, compositions: their equations, presets, resuming, files, and errors."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import signal
import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.mixture import GaussianMixture
from sklearn.utils.estimator_checks import parametrize_with_checks

from deepclust import functional as F
from deepclust.cluster import (
    ABC,
    ACAI,
    DCAN,
    DCN,
    DEC,
    DEPICT,
    IDEC,
    Adversarial,
    Balance,
    BalancedSoftMax,
    CollapseGuard,
    DeepClustering,
    EpochGaussians,
    EpochMeans,
    Epochs,
    Hardening,
    Interpolation,
    KMeansLoss,
    Locality,
    Mixture,
    Reconstruction,
    RunningMeans,
    SelfAugmentation,
    SoftReset,
    VaDE,
    _start,
)
from deepclust.cluster._composition import Regulariser
from deepclust.cluster._data import Rows
from deepclust.cluster._trainer import Batch, Run, Settings
from deepclust.datasets import load_digits
from deepclust.losses import joint, ramp, switch, zipf
from deepclust.networks import ConvAutoencoder, MLPAutoencoder
from tests.test_dec import Watch, forbid_waiting, interrupt, no_gpu, watch_steps
from tests.test_graphs import Tapes
from tests.test_memory import measure
from tests.test_regularisers import flipped, started

N, K = 200, 4
SMALL = {
    "hidden": (16,),
    "latent_dim": 4,
    "tune_updates": 10,
    "max_updates": 8,
    "n_init": 1,
    "batch_size": 64,
    "random_state": 0,
}


def jittered(x, generator):
    noise = torch.randn(x.shape, generator=generator)
    return x + 0.1 * noise.to(x.device, non_blocking=True)


# Each with a refresh at updates 0, 4 and 8.
METHODS = {
    "idec": (IDEC, {"update_interval": 4, "tol": 0.0, "gamma": ramp(0.0, 0.1, 6)}),
    "dcn": (DCN, {"lam": 0.5, "initial_count": 10}),
    "abc": (ABC, {"lam": switch(0.0, 0.1, 2), "layer_updates": 2}),
    "abc cross-entropy": (ABC, {"form": "cross-entropy"}),
    "abc gaussian": (ABC, {"form": "gaussian"}),
    "vade": (VaDE, {}),
    "vade bernoulli": (VaDE, {"likelihood": "bernoulli", "preset": "paper", "layer_updates": 0}),
    "depict": (
        DEPICT,
        {
            "network": "mlp",
            "target": "exact",
            "prior": zipf(0.5),
            "warmup_updates": 4,
            "update_interval": 4,
            "tol": 0.0,
        },
    ),
    "acai": (ACAI, {}),
    "dcan": (DCAN, {"n_latents": 100}),
    "dcan mixture": (
        DCAN,
        {"clusters": "mixture", "update": "minimax", "reconstruction_weight": 0.0},
    ),
    "adversarial autoencoder": (
        DCAN,
        {"preset": "adversarial-autoencoder", "optimizer": "sgd", "pretrain_lr": 0.01},
    ),
    "k-means": (DeepClustering, {"clustering": KMeansLoss(update_interval=4)}),
    "composed": (
        DeepClustering,
        {
            "clustering": Hardening(weight=joint(ramp(0.2, 1.0, 6))[0], update_interval=4, tol=0.0),
            "regularisers": [
                Balance(weight=joint(ramp(0.2, 1.0, 6))[1], prior=zipf(0.5), momentum=0.9),
                Locality(n_neighbors=3, per_step=2),
                SelfAugmentation(),
                Reconstruction(weight=0.1),
            ],
            "interventions": [SoftReset(every=4), CollapseGuard()],
            "recluster": True,
        },
    ),
    "sequential": (
        DEC,
        {
            "preset": "paper",  # SGD, batches in the order of the rows
            "layer_updates": 2,
            "pretrain_lr": 0.01,
            "update_interval": 4,
            "tol": 0.0,
            "nu": 1e-5,  # so short a training leaves embeddings of around 1e-3
            "regularisers": [Balance(), Locality(n_neighbors=3)],
            "interventions": [SoftReset(every=4), CollapseGuard()],
        },
    ),
    "frozen": (
        DeepClustering,
        {
            "clustering": KMeansLoss(soft=True, update_interval=4),
            "freeze_encoder": True,
            "features": (-1, -2),
            "recluster": True,
        },
    ),
}


@pytest.fixture(scope="module")
def rows():
    return load_digits().X[:N] / 16


def make(name, **changes):
    kind, parameters = METHODS[name]
    return kind(K, **{**SMALL, **parameters, **changes})


@pytest.fixture(scope="module")
def fitted(rows):
    """Each method as it is fitted without changes, once for all tests."""
    return functools.cache(lambda name: make(name).fit(rows))


def assert_same(a, b):
    np.testing.assert_array_equal(a.labels_, b.labels_)
    np.testing.assert_array_equal(a.cluster_centers_, b.cluster_centers_)
    assert a.history_ == b.history_
    expected = b._method.state_dict()
    for name, value in a._method.state_dict().items():
        assert torch.equal(value, expected[name]), name


# One update by the papers' formulas, on a network of two layers, encoder and decoder, without bends
# in it: x^ = V (W x + b) + c, or with g = sigmoid on the code.


def kl_gradients(z, mu, weight):
    """Eqs. 4 and 5 of Xie et al. for the mean over the rows."""
    d2 = ((z[:, None] - mu) ** 2).sum(2)
    q = 1 / (1 + d2)
    q /= q.sum(1, keepdims=True)
    p = q**2 / q.sum(0)
    p /= p.sum(1, keepdims=True)
    pull = 2 * weight / len(z) * ((p - q) / (1 + d2))[:, :, None] * (z[:, None] - mu)
    return pull.sum(1), -pull.sum(0)


def first_update(estimator, x):
    """Everything that the first update of the clustering sees and leaves, in float64."""
    seen = []

    def record(run):
        if run.stage.name == "cluster":
            state = {
                name: value.double().numpy() for name, value in run.method.state_dict().items()
            }
            seen.append({**state, "labels": run.state["labels"].numpy().copy()})

    estimator.set_params(
        hidden=(), optimizer="sgd", cluster_lr=0.5, max_updates=1, callbacks=[record]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step this large may empty a cluster
        estimator.fit(x)
    return seen[0], seen[-1]


@pytest.mark.parametrize(
    "estimator",
    [IDEC(K, gamma=0.3), DCN(K, lam=0.7), ABC(K, lam=0.4), ABC(K, lam=0.4, form="cross-entropy")],
    ids=["idec", "dcn", "abc", "abc cross-entropy"],
)
def test_one_update_is_the_papers_gradient(rows, estimator):
    n, d = 50, rows.shape[1]
    estimator.set_params(latent_dim=3, tune_updates=20, batch_size=n, n_init=1, random_state=0)
    before, after = first_update(estimator, rows[:n])
    w, v = (before[f"network.{half}.0.weight"] for half in ("encoder", "decoder"))
    b, c = (before[f"network.{half}.0.bias"] for half in ("encoder", "decoder"))
    mu, sigmoid = before["layer.centroids"], getattr(estimator, "form", "") == "cross-entropy"
    x = rows[:n].astype(np.float64) * before["scale"]
    z = x @ w.T + b
    slope = 1.0
    if sigmoid:
        z = 1 / (1 + np.exp(-z))
        slope = z * (1 - z)
    error = z @ v.T + c - x
    dmu, own = 0.0, mu[before["labels"]]
    if isinstance(estimator, IDEC):  # eq. 8 of Guo et al., L_r the mean over all elements
        doutput = 2 * error / (n * d)
        dz, dmu = kl_gradients(z, mu, 0.3)
    elif isinstance(estimator, DCN):  # eq. 4 of Yang et al., over the number of rows
        doutput, dz = 2 * error / n, 0.7 / 2 * 2 * (z - own) / n
    else:  # eq. 2 of Song et al., or their published code
        doutput, dz = 2 * error / n, 0.4 * (-own / z if sigmoid else 2 * (z - own)) / n
    assert np.abs(dz).max() > 1e-4
    dz = (dz + doutput @ v) * slope
    for name, value, gradient in (
        ("network.encoder.0.weight", w, dz.T @ x),
        ("network.encoder.0.bias", b, dz.sum(0)),
        ("network.decoder.0.weight", v, doutput.T @ z),
        ("network.decoder.0.bias", c, doutput.sum(0)),
        ("layer.centroids", mu, dmu),
    ):
        if name == "layer.centroids" and isinstance(estimator, DCN):
            continue  # not by gradients: below
        np.testing.assert_allclose(after[name], value - 0.5 * gradient, atol=1e-6, err_msg=name)


def at_start(estimator, x, look):
    """What `look` finds in the run where the clustering starts."""
    found = []

    def callback(run):
        if run.stage.name == "cluster" and run.update == 0:
            found.append(look(run))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimator.set_params(callbacks=[callback]).fit(x)
    return found[0]


def losses_with_noise(run, noise):
    """The losses of the first rows where the encoder's draws are mean + deviation * noise."""
    network = run.method.network
    sample = network.sample
    network.sample = lambda mean, log_var: sample(mean, log_var, noise)
    idx = slice(0, len(noise))
    losses, _ = run.method.losses(run, Batch(run.take(idx), idx))
    exact = copy.deepcopy(network).double()
    x = run.take(idx).double() * run.method.scale.double()
    with torch.no_grad():
        mean, log_var = exact.posterior(x)
        output = exact.decode(sample(mean, log_var, noise.double()))
    tensors = (x, mean, log_var, output)
    return {name: loss.item() for name, loss in losses.items()}, [t.numpy() for t in tensors]


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_vade_minimises_the_papers_bound(rows, likelihood):
    noise = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))

    def look(run):
        head = run.method.head()
        mixture = [parameter.detach().double().numpy() for parameter in head.params]
        return *losses_with_noise(run, noise), mixture

    estimator = VaDE(K, **SMALL, likelihood=likelihood)
    losses, (x, mean, log_var, output), mixture = at_start(estimator, rows, look)
    mu, mixture_log_var, log_pi = mixture
    np.testing.assert_allclose(np.exp(log_pi).sum(), 1, rtol=1e-6)
    z = mean + np.exp(log_var / 2) * noise.double().numpy()
    fit, divergence = 0.0, 0.0
    for i in range(len(x)):
        if likelihood == "gaussian":
            fit += ((x[i] - output[i]) ** 2).sum() / 2
        else:
            m = 1 / (1 + np.exp(-output[i]))
            fit -= (x[i] * np.log(m) + (1 - x[i]) * np.log(1 - m)).sum()
        # gamma_k = p(k | z), eq. 16; then the terms of eq. 12 from its second on.
        log_joint = (
            log_pi - (mixture_log_var + (z[i] - mu) ** 2 / np.exp(mixture_log_var)).sum(1) / 2
        )
        gamma = np.exp(log_joint - np.logaddexp.reduce(log_joint))
        spread = mixture_log_var + np.exp(log_var[i] - mixture_log_var)
        spread += (mean[i] - mu) ** 2 / np.exp(mixture_log_var)
        bound = -(gamma * spread.sum(1)).sum() / 2
        bound += (gamma * (log_pi - np.log(gamma))).sum() + (1 + log_var[i]).sum() / 2
        divergence -= bound
    assert losses.keys() == {"reconstruction", "divergence"}
    np.testing.assert_allclose(losses["reconstruction"], fit / len(x), rtol=1e-5)
    np.testing.assert_allclose(losses["divergence"], divergence / len(x), rtol=1e-5)


def test_the_gaussian_form_of_abc_is_its_formula(rows):
    noise = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))

    def look(run):
        labels = run.state["labels"][:20].numpy()
        eta = run.method.layer.centroids.detach().double().numpy()[labels]
        tau = np.exp(run.state["log precisions"].double().numpy()[labels])
        return *losses_with_noise(run, noise), eta, tau

    estimator = ABC(K, **SMALL, form="gaussian")
    losses, (x, mean, log_var, output), eta, tau = at_start(estimator, rows, look)
    kl = (-np.log(tau) - log_var - 1 + (np.exp(log_var) + (mean - eta) ** 2) * tau).sum(1) / 2
    assert losses.keys() == {"reconstruction", "gaussian kl"}
    np.testing.assert_allclose(losses["gaussian kl"], kl.mean(), rtol=1e-5)
    squared = ((x - output) ** 2).sum(1)
    np.testing.assert_allclose(losses["reconstruction"], squared.mean(), rtol=1e-5)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, float("inf")])
def test_hardening_is_the_divergence_from_the_sharpened_assignment(rows, power):
    # Spread out, so that the sharpened assignment is another than the assignment.
    run = started(30 * rows, clustering=Hardening(nu=3.0, power=power))
    idx = torch.arange(40, 90)
    losses, _ = run.method.losses(run, Batch(run.take(idx), idx))
    z, mu = (t.detach().double() for t in (run.map(run.method.embed), run.method.layer.centroids))
    q = (1 + (z[:, None] - mu).square().sum(2) / 3) ** -2
    q /= q.sum(1, keepdim=True)
    # Over f^(power/2), as DEC's target is for 2; one-hot in the limit.
    p = (min(power, 1000.0) * (q.log() - q.sum(0).log() / 2)).softmax(1)
    assert power == 1 or float((p - q).abs().max()) > 0.05
    kl = (torch.xlogy(p, p) - p * q.log()).sum(1)[idx].mean()
    # atol: float32 rounds the logarithms, of 2 or so, whose difference a small divergence is.
    np.testing.assert_allclose(losses["kl"].item(), float(kl), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("soft", [False, True])
def test_the_k_means_loss_is_its_formula(rows, soft):
    run = started(rows, clustering=KMeansLoss(soft=soft, nu=3.0))
    idx = slice(40, 90)
    losses, _ = run.method.losses(run, Batch(run.take(idx), idx))
    z, mu = (t.detach().double() for t in (run.map(run.method.embed), run.method.layer.centroids))
    d2 = (z[idx, None] - mu).square().sum(2)
    q = (1 + d2 / 3) ** -2
    expected = (q / q.sum(1, keepdim=True) * d2).sum(1) if soft else d2.min(1).values
    np.testing.assert_allclose(losses["k-means"].item(), float(expected.mean()), rtol=1e-5)


def test_augmented_rows_are_held_to_the_targets_of_the_rows_themselves(rows):
    run = started(rows, augment=flipped, regularisers=[Reconstruction()])
    idx = torch.tensor([3, 77, 151])
    view = flipped(run.take(idx), None)
    losses, _ = run.method.losses(run, Batch(run.take(idx), idx, view=view))
    head, snapshot = run.method.head(), run.state["snapshot"]
    expected = F.target_loss(run.method.embed(view), head, snapshot[idx])
    np.testing.assert_allclose(losses["kl"].item(), expected.item(), rtol=1e-6)
    error = (run.method.network(view)[1] - view).square().mean()
    np.testing.assert_allclose(losses["reconstruction"].item(), error.item(), rtol=1e-6)


def test_the_autoencoder_is_trained_on_augmented_rows(rows):
    seen = []

    def nothing(x, generator):
        seen.append(len(x))
        return torch.zeros_like(x)

    estimator = DEC(K, **{**SMALL, "layer_updates": 3}, augment=nothing).fit(rows)
    assert len(seen) == 10 + 8  # not in the stages of the layers, which have their own noise
    # What is reconstructed is the view.
    assert estimator.history_["tune/reconstruction"][0][1] < 0.1
    assert estimator.history_["pretrain-1/reconstruction"][0][1] > 0.5


# Where clusters start, and how they move.


def test_vade_starts_from_the_mixture_that_scikit_learn_finds(rows, monkeypatch):
    steps = 7
    monkeypatch.setattr(_start, "MIXTURE_ITERATIONS", steps + 1)  # the first is of k-means' labels
    monkeypatch.setattr(_start, "MIXTURE_TOL", 0.0)

    def look(run):
        layer = run.method.layer
        return run.map(run.method.embed).double().numpy(), copy.deepcopy(layer), run.method.network

    estimator = VaDE(K, **SMALL, init="k-means++")
    z, layer, network = at_start(estimator, rows, look)
    centroids = at_start(
        DeepClustering(K, **SMALL, clustering="k-means", network="variational"),
        rows,
        lambda run: run.method.layer.centroids.detach().double().numpy().copy(),
    )
    kmeans = SklearnKMeans(K, init=centroids, n_init=1, max_iter=1).fit(z)
    labels, shares = kmeans.labels_, np.bincount(kmeans.labels_) / N
    means = np.stack([z[labels == j].mean(0) for j in range(K)])
    variances = np.stack([z[labels == j].var(0) for j in range(K)])
    mixture = GaussianMixture(
        K,
        covariance_type="diag",
        reg_covar=0.0,
        tol=0.0,
        max_iter=steps,
        means_init=means,
        weights_init=shares,
        precisions_init=1 / variances,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged
        mixture.fit(z)
    assert np.abs(mixture.means_ - means).max() > 1e-2
    np.testing.assert_allclose(layer.means.detach(), mixture.means_, atol=1e-4)
    np.testing.assert_allclose(layer.log_var.detach(), np.log(mixture.covariances_), atol=1e-3)
    np.testing.assert_allclose(layer.log_weights.softmax(0).detach(), mixture.weights_, atol=1e-4)
    # The encoder's variances begin inside those of the clusters, whatever the spread of the codes.
    _, log_var = network.posterior(torch.from_numpy(rows[:3]))
    torch.testing.assert_close(log_var, (layer.log_var.mean(0) - 2).expand(3, -1))


def test_abcs_gaussians_start_inside_those_of_the_clusters(rows):
    seen = []

    def record(run):
        if run.stage.name == "cluster" and run.update == 0:
            _, log_var = run.method.network.posterior(torch.from_numpy(rows[:3]))
            seen.append((log_var, -run.state["log precisions"]))

    ABC(K, **SMALL, form="gaussian", callbacks=[record]).fit(rows)
    [(log_var, of_clusters)] = seen
    torch.testing.assert_close(log_var, (of_clusters.mean(0) - 2).expand(3, -1))


class Recorded(RunningMeans):
    """Running means that note what each step of theirs saw and left."""

    steps: list = []  # noqa: RUF012 - a frozen dataclass has no room of its own

    def after(self, method, run, batch, aux):
        def present():
            centroids, labels = method.layer.centroids.detach(), run.state["labels"]
            return centroids.double().numpy().copy(), labels.numpy().copy()

        before = present()
        super().after(method, run, batch, aux)
        z = method.embed_clean(batch.x).double().numpy()
        self.steps.append((before, batch.idx.numpy(), z, present()))


def test_running_means_are_those_of_the_paper_row_by_row(rows):
    Recorded.steps.clear()
    parts = {"clustering": Recorded(initial_count=3), "regularisers": [Reconstruction(per="row")]}
    DeepClustering(K, **SMALL, **parts, cluster_lr=1e-2).fit(rows)
    counts, moved = np.full(K, 3), None
    assert len(Recorded.steps) == 8
    for (centroids, labels), idx, z, (new_centroids, new_labels) in Recorded.steps:
        if moved is not None:
            np.testing.assert_array_equal(centroids, moved)
        nearest = ((z[:, None] - centroids) ** 2).sum(2).argmin(1)
        for row, cluster in enumerate(nearest):
            counts[cluster] += 1
            centroids[cluster] -= (centroids[cluster] - z[row]) / counts[cluster]
        np.testing.assert_allclose(new_centroids, centroids, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(new_labels[idx], nearest)
        others = np.setdiff1d(np.arange(N), idx)
        np.testing.assert_array_equal(new_labels[others], labels[others])
        moved = new_centroids
    assert any((step[0][1] != step[3][1]).any() for step in Recorded.steps)


@pytest.mark.parametrize("form", ["euclidean", "cross-entropy", "gaussian"])
def test_clusters_of_abc_are_the_means_of_their_rows_once_a_pass(rows, form):
    seen = {}

    def record(run):
        if run.stage.name != "cluster":
            return
        z, labels = run.map(run.method.embed).double().numpy(), run.state["labels"].numpy()
        centroids = run.method.layer.centroids.detach()
        seen[run.update] = z, labels.copy(), centroids.numpy().copy(), dict(run.state)
        if run.update == 4:
            with torch.no_grad():
                centroids[2] = 1e3  # no row's nearest at the next refresh

    estimator = ABC(K, **{**SMALL, "max_updates": Epochs(3)}, form=form, callbacks=[record])
    with pytest.warns(RuntimeWarning, match="only 3 of 4 clusters are used"):
        estimator.fit(rows)
    assert list(seen) == [0, 4, 8, 12]
    for update in (0, 4, 8):
        z, labels, centroids, state = seen[update]
        for j in range(K):
            if j == 2 and update == 8:
                assert (centroids[j] == 1e3).all()
                continue
            own = z[labels == j]
            np.testing.assert_allclose(centroids[j], own.mean(0), rtol=1e-4, atol=1e-5)
            if form == "gaussian":
                variances = np.maximum(own.var(0), 1e-3 * z.var(0).mean())
                precisions = state["log precisions"][j].double().numpy()
                np.testing.assert_allclose(precisions, -np.log(variances), atol=1e-3)
        if update:
            before = seen[update - 4][2].astype(np.float64)
            before[2] = 1e3 if update == 8 else before[2]
            nearest = ((z[:, None] - before) ** 2).sum(2).argmin(1)
            np.testing.assert_array_equal(labels, nearest)
    # At the end labels belong to the centroids that are there.
    np.testing.assert_array_equal(estimator.cluster_centers_, seen[8][2])
    np.testing.assert_array_equal(estimator.labels_, seen[12][1])


def test_reclustering_starts_the_clusters_again_on_the_last_embedding(rows):
    plain = IDEC(K, **SMALL).fit(rows)
    again = IDEC(K, **SMALL, recluster=True).fit(rows)
    np.testing.assert_array_equal(plain.transform(rows), again.transform(rows))
    z = again.transform(rows).astype(np.float64)
    for j in range(K):
        mean = z[again.labels_ == j].mean(0)
        np.testing.assert_allclose(again.cluster_centers_[j], mean, rtol=1e-4, atol=1e-4)
    assert not np.allclose(plain.cluster_centers_, again.cluster_centers_)
    assert again.stop_reasons_["recluster"]


# Named methods are settings of DeepClustering, to the last bit.

SETTINGS = {
    "dec": (DEC(update_interval=4, nu=2.0), {"clustering": Hardening(nu=2.0, update_interval=4)}),
    "idec": (
        IDEC(gamma=0.3, update_interval=4, recluster=True),
        {
            "clustering": Hardening(weight=0.3, update_interval=4),
            "regularisers": [Reconstruction()],
            "recluster": True,
        },
    ),
    "dcn": (
        DCN(lam=2.0, initial_count=7),
        {"clustering": RunningMeans(1.0, 7), "regularisers": [Reconstruction(per="row")]},
    ),
    "abc": (
        ABC(lam=0.2),
        {"clustering": EpochMeans(0.2), "regularisers": [Reconstruction(per="row")]},
    ),
    "abc gaussian": (
        ABC(form="gaussian"),
        {
            "clustering": EpochGaussians(0.1),
            "regularisers": [Reconstruction(per="row", sampled=True)],
            "network": "variational",
        },
    ),
    "vade": (VaDE(), {"clustering": Mixture(), "network": "variational"}),
    "vade bernoulli": (
        VaDE(likelihood="bernoulli"),
        {"clustering": Mixture(likelihood="bernoulli"), "network": "variational", "scale": None},
    ),
    "dcan": (
        DCAN(positives="centroid", noise=0.2, reconstruction_weight=0.5),
        {
            "clustering": Adversarial(positives="centroid", noise=0.2),
            "regularisers": [Reconstruction(0.5, per="row")],
        },
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_named_methods_are_settings_of_deep_clustering(rows, name):
    estimator, parts = SETTINGS[name]
    named = estimator.set_params(n_clusters=K, **SMALL).fit(rows)
    assert_same(DeepClustering(K, **{**SMALL, **parts}).fit(rows), named)


def test_autoencoder_and_k_means_is_dec_without_updates(rows):
    settings = {**SMALL, "max_updates": None}
    two_steps = DeepClustering(K, **settings, preset="autoencoder + k-means").fit(rows)
    dec = DEC(K, **{**SMALL, "max_updates": 0}).fit(rows)
    np.testing.assert_array_equal(two_steps.labels_, dec.labels_)
    np.testing.assert_array_equal(two_steps.cluster_centers_, dec.cluster_centers_)
    kmeans = SklearnKMeans(K, init=dec.cluster_centers_, n_init=1).fit(dec.transform(rows))
    assert (kmeans.labels_ == two_steps.labels_).mean() > 0.99


@pytest.mark.parametrize("kind", [IDEC, DCN, ABC, VaDE])
def test_papers_recipes_are_there(kind):
    method = kind(10, preset="paper")._build(784)
    stages = {stage.name: stage for stage in method.stages()}
    hidden = (1000, 250, 50) if kind is ABC else (500, 500, 2000)
    assert method.network.widths == (784, *hidden, 10)
    assert len(stages) == len(hidden) + 1 + 2
    phase = stages["cluster"].phases[0]
    optimizer = phase.optimizer(phase.parameters())
    assert isinstance(optimizer, torch.optim.SGD if kind is ABC else torch.optim.Adam)
    rates = {IDEC: 1e-3, DCN: 1e-4, ABC: 0.01, VaDE: 2e-3}
    assert optimizer.defaults["lr"] == rates[kind]
    lengths = {IDEC: 20_000, DCN: 50, ABC: 60, VaDE: 3_000}
    assert stages["cluster"].length.n == lengths[kind]
    if kind is ABC:
        assert (method.network.activation, method.network.code) == ("sigmoid", "sigmoid")


def test_the_rate_of_vades_recipe_falls_every_ten_epochs(rows):
    rates = {}

    def record(run):
        if run.stage.name == "cluster" and run.update:
            rates[run.epoch] = run._optimizers["cluster"].param_groups[0]["lr"]

    settings = {**SMALL, "tune_updates": 0, "layer_updates": 0, "batch_size": N}
    settings["max_updates"] = 31
    VaDE(K, preset="paper", **settings, callbacks=[record]).fit(rows)
    found = [rates[epoch] for epoch in (5, 15, 25, 30)]
    np.testing.assert_allclose(found, [2e-3, 1.8e-3, 1.62e-3, 2e-3 * 0.9**3], rtol=1e-6)


def test_an_optimiser_that_is_asked_for_is_that_of_the_clustering_too():
    asked = IDEC(10, preset="paper", optimizer="sgd", hidden=(8,))._build(20)
    phase = asked.stages()[-1].phases[0]
    assert isinstance(phase.optimizer(phase.parameters()), torch.optim.SGD)


# What estimators promise.


@pytest.mark.parametrize("name", METHODS)
def test_labels_are_what_predict_gives(fitted, rows, name):
    estimator = fitted(name)
    np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)
    q = estimator.predict_proba(rows)
    assert q.shape == (N, K)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(q.argmax(1), estimator.labels_)
    width = 20 if name == "frozen" else 4
    z = estimator.transform(rows)
    assert z.shape == (N, width)
    assert list(estimator.get_feature_names_out()) == [
        f"{type(estimator).__name__.lower()}{i}" for i in range(width)
    ]
    assert estimator.cluster_centers_.shape == (K, width)
    if name.startswith(("vade", "depict", "dcan mixture")):
        for j in np.unique(estimator.labels_):
            mean = z[estimator.labels_ == j].mean(0)
            np.testing.assert_allclose(estimator.cluster_centers_[j], mean, atol=1e-5)
    else:
        nearest = F.kmeans_assign(torch.from_numpy(z), torch.from_numpy(estimator.cluster_centers_))
        np.testing.assert_array_equal(nearest[0], estimator.labels_)


@pytest.mark.parametrize("name", METHODS)
def test_history_has_a_series_of_each_loss(fitted, name):
    losses = {
        "idec": {"kl", "reconstruction"},
        "dcn": {"k-means", "reconstruction"},
        "abc": {"k-means", "reconstruction"},
        "abc cross-entropy": {"k-means", "reconstruction"},
        "abc gaussian": {"gaussian kl", "reconstruction"},
        "vade": {"divergence", "reconstruction"},
        "vade bernoulli": {"divergence", "reconstruction"},
        "depict": {
            "cross-entropy",
            "reconstruction",
            "change of target",
            "objective",
            "objective of eq. 7",
        },
        "acai": {"k-means", "reconstruction", "interpolation", "critic", "critic on rows"},
        "dcan": {"adversarial", "discriminator", "jsd", "spread", "reconstruction"},
        "dcan mixture": {"adversarial", "discriminator", "jsd", "spread"},
        "adversarial autoencoder": {
            "adversarial",
            "discriminator",
            "jsd",
            "spread",
            "reconstruction",
        },
        "k-means": {"k-means"},
        "composed": {
            "kl",
            "balance",
            "locality",
            "self-augmentation",
            "reconstruction",
            "moved clusters",
        },
        "sequential": {"kl", "balance", "locality", "moved clusters"},
        "frozen": {"k-means"},
    }
    history = fitted(name).history_
    series = {key.removeprefix("cluster/") for key in history if key.startswith("cluster/")}
    assert series == {*losses[name], "changed"}
    assert [update for update, _ in history["cluster/changed"]] == [0, 4, 8]
    if name == "composed":  # nothing would be trained on what is changed at the end
        assert [update for update, _ in history["cluster/moved clusters"]] == [0, 4]


# The moment: in the middle of the pre-training, when clusters have just started, in the middle of a
# pass over the data.
MOMENTS = [("tune", 6), ("cluster", 0), ("cluster", 6)]


@pytest.mark.parametrize(("stage", "update"), MOMENTS)
@pytest.mark.parametrize("name", METHODS)
def test_resumed_fit_is_the_uninterrupted_one(
    fitted, rows, tmp_path, name, stage, update, monkeypatch
):
    step = Run._step

    def cut(run):
        step(run)
        if (run.stage.name, run.update) == (stage, update):
            os.kill(os.getpid(), signal.SIGINT)

    in_file = name == "composed"
    changes = {"checkpoint": tmp_path / "checkpoint"} if in_file else {}
    estimator = make(name, **changes, callbacks=[] if update else [interrupt(stage, update)])
    monkeypatch.setattr(Run, "_step", cut)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(rows)
    monkeypatch.undo()
    if in_file:
        estimator = make(name, **changes)
    assert_same(estimator.set_params(callbacks=()).fit(rows, resume=True), fitted(name))


def test_a_graph_is_part_of_a_runs_identity(rows, tmp_path):
    def dec(graph, **changes):
        graph = scipy.sparse.csr_array(graph)
        return DEC(K, **SMALL, regularisers=[Locality(graph=graph)], **changes)

    graph = np.eye(N, k=1) + np.eye(N, k=-1)
    whole = dec(graph).fit(rows)
    for checkpoint in (None, tmp_path / "checkpoint"):
        cut = dec(graph, checkpoint=checkpoint, callbacks=[interrupt("cluster", 0)])
        with pytest.raises(KeyboardInterrupt):
            cut.fit(rows)
        assert_same(cut.set_params(callbacks=()).fit(rows, resume=True), whole)
    with pytest.raises(ValueError, match="other parameters: regularisers was"):
        dec(2 * graph, checkpoint=tmp_path / "checkpoint").fit(rows, resume=True)


# Files.


@pytest.mark.parametrize("name", METHODS)
def test_save_and_load(fitted, rows, tmp_path, name):
    estimator = fitted(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator.save(tmp_path / "model")
        loaded = type(estimator).load(tmp_path / "model")
    assert loaded.get_params() == estimator.get_params()
    np.testing.assert_array_equal(loaded.predict_proba(rows), estimator.predict_proba(rows))
    assert_same(loaded, estimator)
    # The same seed gives the same bits, from parameters that were in a file too.
    assert_same(loaded.fit(rows), estimator)


def test_a_graph_is_kept_in_a_file(rows, tmp_path):
    graph = scipy.sparse.coo_matrix(np.eye(N, k=1) + 0.5 * np.eye(N, k=-1))
    estimator = DEC(K, **SMALL, regularisers=[Locality(graph=graph)]).fit(rows)
    estimator.save(tmp_path / "model")
    loaded = DEC.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.regularisers[0].graph.toarray(), graph.toarray())
    assert_same(loaded.fit(rows), estimator)


class Wave:
    """A schedule of the user's."""

    def __call__(self, update):
        return 0.1 + 0.05 * np.sin(update)


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("idec", "gamma", lambda update: 0.1),
        ("idec", "gamma", Wave()),
        ("idec", "augment", jittered),
        ("k-means", "clustering", KMeansLoss(weight=lambda update: 1.0, update_interval=4)),
        ("k-means", "regularisers", [Balance(weight=joint(lambda update: 0.5)[1])]),
        ("idec", "regularisers", [SelfAugmentation(transform=jittered)]),
    ],
)
def test_functions_are_not_saved_but_the_model_predicts(rows, tmp_path, name, parameter, value):
    estimator = make(name, **{parameter: value}).fit(rows)
    with pytest.warns(UserWarning, match=f"{parameter}: functions and classes are not saved"):
        estimator.save(tmp_path / "model")
    loaded = type(estimator).load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(rows), estimator.labels_)
    loaded.save(tmp_path / "again")
    assert_same(loaded.set_params(**{parameter: value}).fit(rows), estimator)


class Halved(KMeansLoss):
    """A clustering loss of the user's."""

    def losses(self, method, run, batch, forward):
        return {
            name: loss / 2 for name, loss in super().losses(method, run, batch, forward).items()
        }


class Steady(Regulariser):
    """A regulariser of the user's, that is no dataclass."""

    name, weight = "steady", 0.5

    def __init__(self, transform):
        self.transform = transform

    def extend(self, method, stage):
        return replace(stage, augment=self.transform)

    def loss(self, method, run, batch, forward):
        return (forward.view.z - forward.z).square().mean()


def test_parts_of_the_users_own(rows, tmp_path):
    def make_own(**changes):
        parts = {"clustering": Halved(update_interval=4), "regularisers": [Steady(jittered)]}
        return DeepClustering(K, **SMALL, **parts, **changes)

    whole = make_own().fit(rows)
    assert {"cluster/k-means", "cluster/steady"} < whole.history_.keys()
    for checkpoint in (None, tmp_path / "checkpoint"):
        cut = make_own(checkpoint=checkpoint, callbacks=[interrupt("cluster", 0)])
        with pytest.raises(KeyboardInterrupt):
            cut.fit(rows)
        assert_same(cut.set_params(callbacks=()).fit(rows, resume=True), whole)
    with pytest.warns(UserWarning, match="^regularisers: functions and classes are not saved"):
        whole.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"it takes \['clustering'\]"):
        DeepClustering.load(tmp_path / "model")
    loaded = DeepClustering.load(tmp_path / "model", clustering=Halved())
    np.testing.assert_array_equal(loaded.predict(rows), whole.labels_)


# Networks.


def encoder(*sizes):
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(*sizes), torch.nn.Tanh())


def test_a_users_encoder_and_decoder(rows, tmp_path):
    networks = {"encoder": encoder(64, 3), "decoder": encoder(3, 64)}
    before = copy.deepcopy(networks["encoder"].state_dict())
    estimator = IDEC(K, **SMALL, **networks).fit(rows)
    assert {"tune/reconstruction", "cluster/kl"} < estimator.history_.keys()
    assert estimator.transform(rows).shape == (N, 3)
    for key, value in networks["encoder"].state_dict().items():  # a copy was trained
        assert torch.equal(value, before[key])
        assert not torch.equal(value, estimator.network_.encoder.state_dict()[key])
    estimator.save(tmp_path / "model")
    fresh = {"encoder": encoder(64, 3), "decoder": encoder(3, 64)}
    loaded = IDEC.load(tmp_path / "model", **fresh)
    np.testing.assert_array_equal(loaded.predict(rows), estimator.labels_)
    assert_same(loaded.fit(rows), estimator)
    for given in ({}, {"encoder": fresh["encoder"]}, {**fresh, "network": fresh["encoder"]}):
        with pytest.raises(ValueError, match=r"it takes \['encoder', 'decoder'\]"):
            IDEC.load(tmp_path / "model", **given)
    with pytest.raises((ValueError, RuntimeError), match="size mismatch"):
        IDEC.load(tmp_path / "model", encoder=encoder(64, 2), decoder=encoder(2, 64))


def test_a_users_encoder_without_a_decoder_is_not_pre_trained(rows):
    estimator = DEC(K, **{**SMALL, "tune_updates": None}, encoder=encoder(64, 3)).fit(rows)
    assert estimator.history_.keys() == {"cluster/kl", "cluster/changed"}
    with pytest.raises(ValueError, match="tune_updates: got 10, but the network has no decoder"):
        DEC(K, **SMALL, encoder=encoder(64, 3)).fit(rows)


def test_a_users_encoder_resumes_from_a_file_with_the_module_made_anew(rows, tmp_path):
    settings = {**SMALL, "tune_updates": None, "checkpoint": tmp_path / "checkpoint"}
    whole = DEC(K, **{**settings, "checkpoint": None}, encoder=encoder(64, 3)).fit(rows)
    with pytest.raises(KeyboardInterrupt):
        DEC(K, **settings, encoder=encoder(64, 3), callbacks=[interrupt("cluster", 0)]).fit(rows)
    other = torch.nn.Sequential(torch.nn.Linear(64, 3), torch.nn.Tanh())  # other random weights
    assert_same(DEC(K, **settings, encoder=other).fit(rows, resume=True), whole)
    with pytest.raises(ValueError, match="other parameters: encoder was"):
        DEC(K, **settings, encoder=encoder(64, 2)).fit(rows, resume=True)


def test_weights_that_encoder_and_decoder_share_stay_shared(rows):
    class Transposed(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, z):
            return z @ self.layer.weight

    layer = torch.nn.Linear(64, 3)
    estimator = IDEC(K, **SMALL, encoder=layer, decoder=Transposed(layer)).fit(rows)
    network = estimator.network_
    assert network.encoder.weight is network.decoder.layer.weight


@pytest.mark.parametrize("clustering", ["hardening", "k-means", "soft k-means", "one-hot"])
def test_given_embeddings_are_clustered_by_the_head_alone(rows, clustering):
    settings = {**SMALL, "tune_updates": None}
    estimator = DeepClustering(K, **settings, network=None, clustering=clustering).fit(rows)
    assert {key.split("/")[0] for key in estimator.history_} == {"cluster"}
    scale = float(estimator._method.scale)
    np.testing.assert_allclose(estimator.transform(rows), scale * rows, rtol=1e-6)
    assert list(estimator._method.state_dict()) == ["scale", "middle", "layer.centroids"]


class Counted(torch.nn.Linear):
    """A layer that counts its calls by its mode."""

    calls: tuple = (0, 0)

    def forward(self, x):
        self.calls = (self.calls[0] + self.training, self.calls[1] + (not self.training))
        return super().forward(x)


def test_a_frozen_encoder_is_run_once(rows):
    calls = []

    def record(run):
        calls.append(run.method.network.encoder.calls)

    DEC(
        K,
        **{**SMALL, "tune_updates": 0},
        encoder=Counted(64, 4),
        freeze_encoder=True,
        callbacks=[record],
    ).fit(rows)
    assert len(set(calls)) == 1


def test_assignments_in_mid_training_are_those_of_evaluation(rows):
    """DCN embeds each batch once more: statistics that layers keep must not see it again."""
    networks = {
        "encoder": torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.BatchNorm1d(4)),
        "decoder": torch.nn.Linear(4, 64),
    }
    estimator = DCN(K, **SMALL, **networks).fit(rows)
    assert int(estimator.network_.encoder[1].num_batches_tracked) == 10 + 8


def test_several_layers_are_clustered(rows):
    estimator = DEC(K, **{**SMALL, "hidden": (16, 8)}, features=(-1, -2)).fit(rows)
    x = torch.from_numpy(rows) * float(estimator._method.scale)
    with torch.no_grad():
        _, hidden, code = estimator.network_.layers(x)
    np.testing.assert_allclose(estimator.transform(rows), torch.cat([code, hidden], 1), atol=1e-6)
    assert estimator.cluster_centers_.shape == (K, 4 + 8)


@pytest.mark.parametrize("views", [{"augment": jittered}, {"regularisers": [SelfAugmentation()]}])
def test_a_frozen_encoder_stays_as_it_is(rows, views):
    """Its weights, and what its layers keep of the data."""
    states = []

    def record(run):
        if run.stage.name == "cluster":
            states.append(copy.deepcopy(run.method.network.state_dict()))

    networks = {
        "encoder": torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.BatchNorm1d(4)),
        "decoder": torch.nn.Linear(4, 64),
    }
    estimator = DEC(K, **SMALL, **networks, **views, freeze_encoder=True, callbacks=[record])
    estimator.fit(rows)
    for name, value in states[0].items():
        assert torch.equal(value, states[-1][name]), name


def test_the_decoder_of_a_frozen_encoder_trains_in_training_mode(rows):
    """With dropout, and statistics that move."""
    modes = set()

    class Decoder(torch.nn.Linear):
        def forward(self, z):
            if z.requires_grad or torch.is_grad_enabled():
                modes.add(self.training)
            return super().forward(z)

    networks = {"encoder": torch.nn.Linear(64, 4), "decoder": Decoder(4, 64)}
    parts = {"freeze_encoder": True, "regularisers": [Reconstruction()]}
    DEC(K, **{**SMALL, "tune_updates": 0}, **networks, **parts).fit(rows)
    assert modes == {True}


# Images.

CONV = {"network": "conv", "hidden": ((4, 3, 2, 1),)}


def test_images_are_rows_of_a_convolutional_network(rows, tmp_path):
    flat = DEC(K, **{**SMALL, **CONV}, image_shape=(8, 8)).fit(rows)
    images = rows.reshape(N, 8, 8)
    for x in (images, images[..., None], torch.from_numpy(images)):
        estimator = DEC(K, **{**SMALL, **CONV}).fit(x)
        assert_same(estimator, flat)
        for other in (images, images[..., None], rows):
            np.testing.assert_array_equal(estimator.predict(other), flat.labels_)
    estimator.save(tmp_path / "model")
    loaded = DEC.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(images), flat.labels_)
    with pytest.raises(ValueError, match=r"X: got images \(4, 16\); it takes \(8, 8\)"):
        loaded.predict(rows.reshape(N, 4, 16))
    assert flat.network_.shapes == [(1, 8, 8), (4, 4, 4)]


def test_a_convolutional_network_of_the_users(rows):
    network = ConvAutoencoder((8, 8), 3, layers=[(4, 3, 2, 1)])
    estimator = DEC(K, **SMALL, network=network).fit(rows.reshape(N, 8, 8))
    assert estimator.cluster_centers_.shape == (K, 3)
    pooled = DEC(K, **SMALL, network=network, features=(0, 1)).fit(rows)
    assert pooled.cluster_centers_.shape == (K, 4 + 3)
    np.testing.assert_array_equal(pooled.predict(rows.reshape(N, 8, 8)), pooled.labels_)
    with pytest.raises(ValueError, match=r"X: got images \(4, 16\); it takes \(8, 8, 1\)"):
        DEC(K, **SMALL, network=network).fit(rows.reshape(N, 4, 16))
    with pytest.raises(ValueError, match=r"image_shape: got \(4, 16, 1\), but the network takes"):
        DEC(K, **SMALL, network=network, image_shape=(4, 16)).fit(rows)


@pytest.mark.parametrize(
    ("parameters", "shape", "message"),
    [
        (CONV, (3, 8, 8), r"X: got images \(3, 8, 8\), which look like channels first"),
        (CONV, (192,), "image_shape: got None; network='conv' takes"),
        ({**CONV, "image_shape": (8, 8)}, (192,), r"image_shape: got \(8, 8\)"),
        ({"image_shape": (8, 9)}, (8, 8, 3), r"X: got images \(8, 8, 3\); it takes \(8, 9\)"),
        ({"image_shape": 8}, (192,), "image_shape: got 8; it takes"),
        ({"image_shape": 8}, (8, 8, 3), "image_shape: got 8; it takes"),
        ({}, (8, 8, 3), r"X: got shape \(64, 8, 8, 3\).*flattens images"),
    ],
)
def test_images_that_do_not_fit(parameters, shape, message):
    x = np.random.default_rng(0).random((64, *shape))
    with pytest.raises(ValueError, match=message):
        DEC(K, **{**SMALL, **parameters}).fit(x)


# Bad input.


def broken(update):
    return float("nan")


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        (IDEC, {"gamma": -1}, "weight of kl: got -1 at update 0"),
        (IDEC, {"gamma": broken}, "weight of kl: got nan at update 0"),
        (IDEC, {"gamma": "much"}, "weight of kl: got 'much'"),
        (IDEC, {"regularisers": [Reconstruction()]}, "regularisers: .*'reconstruction' twice"),
        (DCN, {"lam": 0}, "lam: got 0; it takes a number above 0"),
        (DCN, {"lam": ramp(0.0, 1.0, 5)}, "lam: got ramp"),
        (DCN, {"initial_count": 0}, "initial_count: got 0"),
        (DCN, {"network": None, "tune_updates": 0}, "no decoder|nothing to train"),
        (ABC, {"form": "cosine"}, "form: got 'cosine'; it takes 'euclidean' or 'cross-entropy' or"),
        (ABC, {"lam": None}, "weight of k-means: got None"),
        (
            ABC,
            {"form": "gaussian", **CONV, "image_shape": (8, 8)},
            "'gaussian' takes 'variational'",
        ),
        (VaDE, {"likelihood": "poisson"}, "likelihood: got 'poisson'; it takes 'gaussian' or"),
        (VaDE, {"network": "mlp"}, "network: got one whose codes are points; VaDE takes"),
        (VaDE, {"features": (-1, -2)}, "network: got one whose codes are points|features"),
        (VaDE, {"regularisers": [Reconstruction()]}, "'reconstruction' twice"),
        (
            DeepClustering,
            {"clustering": "dbscan"},
            "clustering: got 'dbscan'; it takes 'hardening'",
        ),
        (DeepClustering, {"clustering": 3}, "clustering: got 3"),
        (DeepClustering, {"clustering": Hardening}, "clustering: got <class"),
        (DeepClustering, {"clustering": "epoch means", "freeze_encoder": True}, "nothing to train"),
        (DeepClustering, {"clustering": EpochMeans(form="cross-entropy")}, "code='sigmoid'"),
        (DeepClustering, {"clustering": "gaussians"}, "'gaussian' takes 'variational'"),
        (DeepClustering, {"preset": "paper"}, "preset: got 'paper'; it takes 'quick' or"),
        (DEC, {"recluster": 1}, "recluster: got 1; it takes True or False"),
        (DEC, {"freeze_encoder": None}, "freeze_encoder: got None"),
        (
            DEC,
            {"network": "resnet"},
            "network: got 'resnet'; it takes 'mlp', 'conv', 'variational'",
        ),
        (DEC, {"network": MLPAutoencoder((5, 2))}, "it takes rows of 5, but X has 64"),
        (DEC, {"features": ()}, r"features: got \(\)"),
        (DEC, {"features": (2,)}, r"features: got \(2,\); it takes 'last' or numbers of layers"),
        (DEC, {"features": "first"}, "features: got 'first'"),
        (DEC, {"features": 1}, "features: got 1"),
        (DEC, {"scale": True}, "scale: got True"),
        (DEC, {"regularisers": Balance()}, r"regularisers: got Balance.*; it takes a sequence of"),
        (DEC, {"regularisers": ["balance"]}, r"regularisers: got \['balance'\]"),
        (DEC, {"interventions": [Balance()]}, "interventions: got .*; it takes a sequence of"),
        (DEC, {"augment": "turn"}, "augment: got 'turn'; it takes 'auto' or"),
        (DEC, {"encoder": 3}, "encoder: got int; it takes a torch.nn.Module"),
        (DEC, {"encoder": torch.nn.ReLU(), "decoder": 3}, "decoder: got int"),
        (DEC, {"decoder": torch.nn.ReLU()}, "decoder: got a module, but no encoder"),
        (DEC, {"encoder": torch.nn.Linear(5, 2)}, r"encoder: failed for rows \(2, 64\)"),
        (DEC, {"encoder": torch.nn.Unflatten(1, (8, 8))}, r"encoder: gave shape \(2, 8, 8\)"),
        (
            DEC,
            {"encoder": torch.nn.Linear(64, 2), "decoder": torch.nn.Linear(2, 5)},
            r"decoder: gave shape \(2, 5\)",
        ),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_trained(rows, kind, parameters, message):
    def trained(run):
        raise AssertionError(f"{run.stage.name} was trained")

    settings = {**SMALL, "tune_updates": 1, "callbacks": [trained]}
    if "encoder" in parameters and "decoder" not in parameters:
        settings["tune_updates"] = 0
    with pytest.raises((ValueError, TypeError), match=message):
        kind(K, **{**settings, **parameters}).fit(rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hardening(power=0), "power: got 0; it takes a number above 0"),
        (lambda: Hardening(nu=-1), "nu: got -1"),
        (lambda: Hardening(tol="a"), "tol: got 'a'"),
        (lambda: Hardening(update_interval=0), "update_interval: got 0"),
        (lambda: Hardening(update_interval=Epochs(0)), "update_interval: got 0"),
        (lambda: KMeansLoss(update_interval=1.5), r"update_interval: got 1\.5"),
        (lambda: KMeansLoss(nu=0), "nu: got 0"),
        (lambda: KMeansLoss(soft="yes"), "soft: got 'yes'; it takes True or False"),
        (lambda: RunningMeans(initial_count=0.5), r"initial_count: got 0\.5"),
        (lambda: EpochMeans(form="gaussian"), "form: got 'gaussian'; it takes 'euclidean' or"),
        (lambda: Mixture(likelihood="laplace"), "likelihood: got 'laplace'"),
    ],
)
def test_bad_parameters_of_clusterings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("estimator", "factor"),
    [
        (VaDE(K, likelihood="bernoulli"), 1.01),
        (VaDE(K, likelihood="bernoulli"), -1.0),
        (DeepClustering(K, clustering=Mixture(likelihood="bernoulli"), network="variational"), 1.0),
    ],
)
def test_probabilities_are_between_0_and_1(rows, estimator, factor):
    with pytest.raises(ValueError, match=r"X: got values outside \[0, 1\]"):
        estimator.set_params(**SMALL).fit(factor * rows)


@pytest.mark.parametrize(("scale", "factor"), [(None, 100.0), (1e-3, 1.0)])
def test_data_far_from_the_usual_scale_warn_with_what_was_found(rows, scale, factor):
    square = np.mean((rows * factor * (scale or 1)) ** 2)
    message = f"the mean square of its values is {square:.3g} with scale={scale}"
    with pytest.warns(UserWarning, match=message.replace("+", r"\+")) as caught:
        DEC(K, **{**SMALL, "tune_updates": 0, "max_updates": 0}, scale=scale).fit(rows * factor)
    assert caught[0].filename == __file__


def test_as_many_clusters_as_rows(rows):
    """Clusters of one row each have no spread."""
    few = rows[:12]
    for estimator in (VaDE(12, **SMALL), ABC(12, **SMALL, form="gaussian"), DCN(12, **SMALL)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # some may be left empty
            estimator.fit(few)
        assert np.isfinite(estimator.cluster_centers_).all()


# The checks fit dozens of times: the smallest settings that still tell three blobs apart.
CHECKED = {
    "hidden": (),
    "latent_dim": 2,
    "tune_updates": 60,
    "pretrain_lr": 3e-2,
    "max_updates": 5,
    "n_init": 1,
    "batch_size": 64,
    "random_state": 0,
}


class WithoutLabels(DEPICT):
    """The checks give clusterers labels of any kind, which DEPICT would take for its own."""

    uses_labels = False


@parametrize_with_checks(
    [
        DeepClustering(
            3,
            **CHECKED,
            clustering=KMeansLoss(soft=True, update_interval=5),
            regularisers=(Balance(momentum=0.5),),
        ),
        VaDE(3, **CHECKED),
        DCAN(3, **CHECKED),
        WithoutLabels(3, **CHECKED, network="mlp", warmup_updates=0),
        ACAI(3, **{**CHECKED, "max_updates": 0, "n_init": 5}),
    ],
    expected_failed_checks=lambda estimator: dict.fromkeys(
        ("check_estimator_sparse_array", "check_estimator_sparse_matrix"),
        "the check takes whatever has predict_proba for a classifier; sparse data are tested below",
    ),
)
def test_scikit_learn_estimator_checks(estimator, check):
    with warnings.catch_warnings():
        # Some checks give it noise, in which clusters may die.
        warnings.filterwarnings("ignore", message="only . of . clusters")
        check(estimator)


@pytest.mark.parametrize("name", ["vade", "composed"])
def test_sparse_data_give_the_same(fitted, rows, name):
    sparse = make(name).fit(scipy.sparse.csr_array(rows))
    assert_same(sparse, fitted(name))


# What the host may not do between two refreshes.

CLUSTERINGS = {
    "hardening": {"clustering": "hardening"},
    "one-hot": {"clustering": "one-hot"},
    "k-means": {"clustering": "k-means"},
    "soft k-means": {"clustering": "soft k-means"},
    "running means": {"clustering": "running means", "regularisers": [Reconstruction(per="row")]},
    "epoch means": {"clustering": "epoch means", "regularisers": [Reconstruction(per="row")]},
    "gaussians": {"clustering": "gaussians", "network": "variational"},
    "mixture": {"clustering": "mixture", "network": "variational"},
    "adversarial": {"clustering": "adversarial"},
    "adversarial, centroids": {"clustering": Adversarial(positives="centroid", update="minimax")},
    "adversarial, mixture": {
        "clustering": Adversarial(clusters="mixture"),
        "regularisers": [Reconstruction(), Balance()],
        "interventions": [CollapseGuard()],
    },
    "adversarial, prior": {"clustering": Adversarial(positives="prior")},
    "balanced soft-max": {
        "clustering": BalancedSoftMax(target="exact"),
        "regularisers": [SelfAugmentation(transform=jittered)],
    },
    "balanced soft-max, shares": {
        "clustering": BalancedSoftMax(corruption=[0.2, 0.1], clean_gradient=False),
    },
    "regularised": {
        "clustering": "hardening",
        "regularisers": [
            Balance(prior=zipf(), momentum=0.9),
            Locality(n_neighbors=3, per_step=2),
            SelfAugmentation(transform=jittered),
            Reconstruction(),
        ],
    },
    "interpolated": {
        "clustering": KMeansLoss(whiten=True),
        "regularisers": [Reconstruction(), Interpolation()],
    },
}


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("name", CLUSTERINGS)
def test_steps_wait_for_no_result(rows, name, autocast, monkeypatch):
    calls = watch_steps(monkeypatch)
    settings = {**SMALL, "tune_updates": 2, "max_updates": 6, "backend": "eager"}
    estimator = DeepClustering(K, **{**settings, **CLUSTERINGS[name]}, autocast=autocast)
    estimator.fit(rows)
    assert len(calls) == 2 + 6
    assert min(calls) > 10
    assert estimator.cluster_centers_.dtype == np.float32


def test_regularised_steps_stay_on_the_device(monkeypatch):
    """The meta device stands for a GPU: what is not on it shows, and reading from it raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no meta
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    device = torch.device("meta")
    regularisers = [
        Balance(momentum=0.9),
        Locality(per_step=2),
        SelfAugmentation(transform=lambda x, generator: 2 * x),
        Reconstruction(),
        Interpolation(),
    ]
    estimator = DeepClustering(K, **SMALL, regularisers=regularisers, backend="eager")
    method = estimator._build(64).to(device)
    method.recipe.optimizer = functools.partial(torch.optim.SGD, lr=0.1)  # fused ones know no meta
    data = Rows(torch.empty(N, 64, device=device), device)
    run = Run(method, data, Settings(batch_size=64))
    run.stage_index = len(run._stages) - 1
    run._make_optimizers()
    run.state["snapshot"] = F.freeze_target(run.map(method.embed), method.head())
    for name in ("balance mean", "balance prior"):
        run.state[name] = torch.empty(K, device=device)
    run.state["starts"] = torch.empty(N + 1, dtype=torch.int64, device=device)
    run.state["neighbours"] = torch.empty(3 * N, dtype=torch.int64, device=device)
    run.state["similarities"] = torch.empty(3 * N, device=device)
    for update in range(6):
        with Watch() as watch:
            run._step()
        # The order of the rows, once a pass.
        assert watch.seen == ["_to_copy"] * (update % 4 == 0), update


@pytest.mark.parametrize(
    "parts",
    [
        {"regularisers": [Balance(prior=zipf(), momentum=0.5)]},
        {"clustering": "gaussians", "network": "variational"},
        {"clustering": "mixture", "network": "variational"},
        {"clustering": BalancedSoftMax(target="exact")},
        {"clustering": "adversarial"},
    ],
    ids=["hardening, balance", "gaussians", "mixture", "balanced soft-max", "adversarial"],
)
def test_a_refresh_holds_nothing_of_n_by_k(parts, threads):
    n, d, k = 40_000, 8, 500
    threads(1)
    guard = [CollapseGuard(least=0.0)]
    settings = {"hidden": (8,), "latent_dim": d, "interventions": guard}
    method = DeepClustering(k, **settings, **parts)._build(d)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    run = Run(method, Rows(x, torch.device("cpu")), Settings())
    run.stage_index = len(run._stages) - 1
    run.state["labels"] = torch.zeros(n, dtype=torch.int64)
    run.state["snapshot"] = F.freeze_target(torch.zeros(n, d), torch.zeros(k, d))
    run.state["jsd"] = torch.zeros(())
    with torch.no_grad():
        for parameter in method.layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        method.eval()
        for part in method.parts:
            part.started(method, run, run.map(method.embed))
        run.stage.refresh(run)
        peak, largest, _ = measure(lambda: run.stage.refresh(run))
    assert largest < n * k, "a quarter of an N x K array in one piece"
    assert peak < 64 << 20


@pytest.mark.parametrize(
    "name",
    ["abc gaussian", "vade", "dcan mixture", "depict", "acai", "composed", "sequential"],
)
def test_a_captured_fit_is_the_fit(rows, name, monkeypatch):
    plain = make(name, backend="eager").fit(rows)
    tapes = Tapes()
    kind = METHODS[name][0]
    monkeypatch.setattr(kind, "_capture", lambda self, device: tapes)
    captured = make(name, backend="eager").fit(rows)
    # Batches of 64 rows in each stage, and of 8 in those that come to them.
    # DEPICT's targets of the warm-up are of another form, SGD has a stage for each layer, and ACAI
    # and DCAN have two phases, ACAI in both stages.
    expected = {"depict": 6, "sequential": 6, "dcan mixture": 6, "acai": 8}
    assert len(tapes.tapes) == expected.get(name, 4)
    assert_same(captured, plain)
    for tape in tapes.tapes:
        assert not any("_local_scalar_dense" in str(func) for func, *_ in tape.calls)


def test_compile_runs_the_networks_through_torch_compile(rows, fitted, monkeypatch):
    """With a compiler that changes nothing, the fit is the fit, and went through it."""
    called = []

    def compiled(function, **_):
        return lambda *args: called.append(function.__name__) or function(*args)

    monkeypatch.setattr(torch, "compile", compiled)
    estimator = make("idec", compile=True).fit(rows)
    assert_same(estimator, fitted("idec"))
    assert set(called) == {"layers", "decode"}
    # What the compiler gave cannot be pickled, and is not needed.
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(estimator)).predict(rows), estimator.labels_
    )


# On a GPU.


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("name", CLUSTERINGS)
def test_steps_on_a_gpu_never_wait(rows, name, cuda_graphs, monkeypatch):
    forbid_waiting(monkeypatch, captured_after=4)
    settings = {**SMALL, **CLUSTERINGS[name], "cuda_graphs": cuda_graphs, "device": "cuda"}
    estimator = DeepClustering(K, **settings).fit(rows)
    np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_fit_goes_on_from_the_cpu_on_a_gpu(rows, tmp_path, name):
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        make(name, checkpoint=path, callbacks=[interrupt("cluster", 4)]).fit(rows)
    estimator = make(name, checkpoint=path, device="cuda").fit(rows, resume=True)
    assert {p.device.type for p in estimator.network_.parameters()} == {"cuda"}
    np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)
