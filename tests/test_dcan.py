"""DCAN: what its losses stand for, its phases, positives and clusters, reports, and errors."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from deepclust import functional as F
from deepclust import losses
from deepclust.cluster import DCAN, Adversarial
from deepclust.cluster.dcan import COLLAPSED, FLOOR
from deepclust.datasets import load_digits
from deepclust.networks import Discriminator
from tests import reference
from tests import test_methods as methods
from tests.cases import as_numpy
from tests.reference import adversarial as oracle
from tests.test_regularisers import batch_of, started

N, K, D = 200, 3, 3
SMALL = {**methods.SMALL, "latent_dim": D, "tune_updates": 0}


@pytest.fixture(scope="module")
def rows():
    return load_digits().X[:N] / 16


def begun(rows, **options):
    """A run whose clusters have started, its method and its clustering."""
    clustering = Adversarial(**{"discriminator_hidden": (32,), **options})
    run = started(rows, **SMALL, clustering=clustering)
    return run, run.method, clustering


# What the losses stand for.


def test_the_estimate_is_the_divergence_of_two_gaussians():
    """Lemma 2: of the best discriminator; its error below is that of training for two seconds."""
    clusters, codes = stats.norm(0.0, 1.0), stats.norm(1.5, 0.6)

    def term(x):
        c, z = clusters.pdf(x), codes.pdf(x)
        middle = (c + z) / 2
        return sum(p * np.log(p / middle) for p in (c, z) if p > 0) / 2

    exact = integrate.quad(term, -8, 8, limit=200)[0]
    assert exact == pytest.approx(0.317, abs=1e-3)

    torch.manual_seed(0)
    opponent = Discriminator(1, (32, 32))

    def loss_of(n):
        c, z = torch.randn(n, 1), 1.5 + 0.6 * torch.randn(n, 1)
        return losses.adversarial_discriminator(*opponent(torch.cat([c, z])).chunk(2))

    untrained = float(losses.jensen_shannon(loss_of(100_000).detach()))
    optimizer = torch.optim.Adam(opponent.parameters(), lr=5e-3)
    for _ in range(400):
        optimizer.zero_grad()
        loss_of(512).backward()
        optimizer.step()
    trained = float(losses.jensen_shannon(loss_of(100_000).detach()))
    assert trained == pytest.approx(exact, abs=0.01)
    assert untrained < exact - 0.2  # any other discriminator's is lower


def test_the_best_discriminators_loss_gives_the_divergence_exactly():
    """On a space of three points Dis = c / (c + z), and all is a sum."""
    c, z = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
    best = np.log(c / z)
    loss = c @ np.logaddexp(0, -best) + z @ np.logaddexp(0, best)
    middle = (c + z) / 2
    divergence = (c @ np.log(c / middle) + z @ np.log(z / middle)) / 2
    assert oracle.jensen_shannon(loss) == pytest.approx(divergence, rel=1e-12)
    found = losses.jensen_shannon(torch.tensor(loss))
    assert float(found) == pytest.approx(divergence, rel=1e-12)


def test_with_unit_variances_the_kl_form_is_half_of_abcs_cluster_term():
    """Lemma 1."""
    generator = torch.Generator().manual_seed(0)
    z, eta = torch.randn(50, D, generator=generator), torch.randn(K, D, generator=generator)
    labels, _ = F.kmeans_assign(z, eta)
    zero = torch.zeros_like(z)
    kl = F.gaussian_kl(z, zero, eta[labels], zero).mean()
    torch.testing.assert_close(kl, F.kmeans_loss(z, eta, labels) / 2)


@pytest.mark.parametrize("update", ["minimax", "non-saturating"])
def test_both_updates_move_codes_to_where_clusters_are(update):
    logits = torch.linspace(-60, 60, 25, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.adversarial_encoder(logits, update), logits)
    assert (gradient < 0).all()
    # Where the discriminator is sure that codes are codes, only one of them has a gradient.
    size = float(-gradient[0] * len(logits))
    assert size == pytest.approx(math.exp(-60) if update == "minimax" else 1.0)


def test_bad_losses():
    line = torch.zeros(3)
    with pytest.raises(ValueError, match=r"positives: got shape \(3, 1\); it takes \(n,\)"):
        losses.adversarial_discriminator(line.unsqueeze(1), line)
    with pytest.raises(TypeError, match=r"negatives: got torch.int64"):
        losses.adversarial_discriminator(line, line.long())
    with pytest.raises(ValueError, match="update: got 'wasserstein'; it takes 'non-saturating' or"):
        losses.adversarial_encoder(line, "wasserstein")


# The discriminator.


def test_the_discriminator_does_not_see_the_scale_of_the_embeddings():
    torch.manual_seed(0)
    z = torch.randn(100, D)
    one, other = Discriminator(D, (8,)), Discriminator(D, (8,))
    other.load_state_dict(one.state_dict())
    mean, variances = z.mean(0), z.var(0, correction=0)
    one.standardise(mean, variances)
    other.standardise(1e3 * mean + 5, 1e6 * variances)
    torch.testing.assert_close(one(z), other(1e3 * z + 5))
    h = (z - z.mean(0)) / z.var(0, correction=0).mean().sqrt()
    first, second = one.layers
    expected = second(nn.functional.leaky_relu(first(h), 0.2)).squeeze(1)
    torch.testing.assert_close(one(z), expected)


@pytest.mark.parametrize("hidden", [(0,), (8, 1.5), "ab", 3])
def test_bad_widths(hidden):
    with pytest.raises((TypeError, ValueError)):
        Discriminator(3, hidden)
    message = (
        "discriminator_hidden: got .* it takes (a sequence of widths|an integer of at least 1)"
    )
    with pytest.raises(ValueError, match=message):
        Adversarial(discriminator_hidden=hidden)


# An update.


def moved(before, method):
    """The parts of the method whose parameters or statistics are not what they were."""
    after = method.state_dict()
    return {name.split(".")[0] for name, value in before.items() if not value.equal(after[name])}


@pytest.mark.parametrize("clusters", ["k-means", "mixture"])
@pytest.mark.parametrize("positives", ["gaussian", "centroid", "prior"])
def test_each_phase_moves_its_own_network(rows, positives, clusters):
    run, method, _ = begun(rows, positives=positives, clusters=clusters)
    discriminator, encoder = run.stage.phases
    batch = batch_of(run, torch.arange(64))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.train()
    run._step_phase(discriminator, batch)
    # The clusters too: those of the last embeddings.
    assert moved(before, method) == {"opponents", "layer"}
    before = {name: value.clone() for name, value in method.state_dict().items()}
    run._step_phase(encoder, batch)
    assert moved(before, method) == {"network"}


@pytest.mark.parametrize("update", ["minimax", "non-saturating"])
def test_the_losses_are_eq_1(rows, update):
    run, method, clustering = begun(rows, update=update)
    batch = batch_of(run, torch.arange(40))
    opponent = clustering.opponent(method)
    z = method.embed(batch.x)
    state = torch.get_rng_state()
    positives = clustering.draw(method, z)
    torch.set_rng_state(state)
    with torch.no_grad():
        found, aux = run.stage.phases[0].losses(run, batch)
    logits = as_numpy(opponent(positives)), as_numpy(opponent(z))
    assert float(found["discriminator"]) == pytest.approx(oracle.discriminator(*logits), rel=1e-5)
    torch.testing.assert_close(aux["z"], z)
    with torch.no_grad():
        found, _ = run.stage.phases[1].losses(run, batch)
    assert float(found["adversarial"]) == pytest.approx(oracle.encoder(logits[1], update), rel=1e-5)


def test_the_clustering_sees_the_last_embeddings(rows):
    run, method, _ = begun(rows, n_latents=100)
    first = run.state["latents"].clone()
    z = method.network.encode(method.preprocess(run.take(slice(None))))
    # At the start rows of the whole data, each once.
    at = torch.cdist(first, z).argmin(1)
    assert len(first) == 100 == len(at.unique())
    discriminator, _ = run.stage.phases
    for idx in (torch.arange(64), torch.arange(64, 128)):
        run._step_phase(discriminator, batch_of(run, idx))
    torch.testing.assert_close(run.state["latents"], torch.cat([z[64:128], z[:36]]))


def test_small_data_are_seen_whole(rows):
    run, _, _ = begun(rows[:50])
    assert len(run.state["latents"]) == 50


def test_an_iteration_of_k_means_is_lloyds(rows):
    run, method, clustering = begun(rows)
    z, layer = run.map(method.embed)[:90], method.layer
    layer.means[2] = 1e3  # nothing is near it
    layer.log_var[2] = 7.0
    means = as_numpy(layer.means).copy()
    labels = reference.squared_distances(as_numpy(z), means).argmin(1)
    clustering.iterate(method, z)
    variances, sizes = np.full((K, D), math.exp(7.0)), np.bincount(labels, minlength=K)
    floor = FLOOR * float(clustering.opponent(method).scale) ** 2
    for j in set(labels):
        own = as_numpy(z)[labels == j]
        means[j], variances[j] = own.mean(0), np.maximum(own.var(0), floor)
    assert sizes[2] == 0
    np.testing.assert_allclose(as_numpy(layer.means), means, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(as_numpy(layer.log_var.exp()), variances, rtol=1e-4)
    others = [0, 1]
    shares = as_numpy(layer.log_weights.exp())[others]
    np.testing.assert_allclose(shares, sizes[others] / 90, rtol=1e-5)
    assert layer.log_weights.isfinite().all()


def test_an_iteration_of_the_mixture_is_expectation_maximisation(rows):
    run, method, clustering = begun(rows, clusters="mixture")
    z = run.map(method.embed)[:90] + 0.3
    method.layer.log_var.fill_(0)  # wide: every row belongs a little to each, in float32 too
    head = method.head()
    r = reference.assign(as_numpy(z), reference.Gaussian(*map(as_numpy, head.params)))
    clustering.iterate(method, z)
    n, x = r.sum(0), as_numpy(z)
    means = r.T @ x / n[:, None]
    squares = (r[:, :, None] * (x[:, None] - means) ** 2).sum(0)
    floor = FLOOR * float(clustering.opponent(method).scale) ** 2
    layer = method.layer
    np.testing.assert_allclose(as_numpy(layer.means), means, rtol=1e-4, atol=1e-5)
    variances = np.maximum(squares / n[:, None], floor)
    np.testing.assert_allclose(as_numpy(layer.log_var.exp()), variances, rtol=1e-3)
    np.testing.assert_allclose(as_numpy(layer.log_weights.exp()), n / 90, rtol=1e-4)


# Positives.


@pytest.mark.parametrize("clusters", ["k-means", "mixture"])
def test_positives_are_draws_from_the_clusters_of_the_codes(rows, clusters):
    run, method, clustering = begun(rows, clusters=clusters)
    z = run.map(method.embed).repeat(200, 1)
    _, labels, _ = F.frequencies(z, method.head())
    torch.manual_seed(0)
    positives, layer = clustering.draw(method, z), method.layer
    for j in range(K):
        own = positives[labels == j]
        sd = (layer.log_var[j] / 2).exp()
        assert ((own.mean(0) - layer.means[j]).abs() < 4 * sd / len(own) ** 0.5).all()
        assert ((own.std(0) / sd - 1).abs() < 4 / (2 * len(own)) ** 0.5).all()


def test_centres_and_codes_have_the_same_noise(rows):
    run, method, clustering = begun(rows, positives="centroid", noise=0.5)
    z = run.map(method.embed).repeat(100, 1)
    opponent = clustering.opponent(method)
    labels, _ = F.kmeans_assign(z, method.layer.means)
    sd = 0.5 * float(z.var(0, correction=0).mean().sqrt())
    for noise in (
        clustering.draw(method, z) - method.layer.means[labels],
        clustering._noisy(opponent, z) - z,
    ):
        assert float(noise.std()) == pytest.approx(sd, rel=0.02)
        assert float(noise.mean().abs()) < 0.02 * sd
    for positives, seen in (("gaussian", z), ("prior", z)):
        other = Adversarial(positives=positives)
        assert other._noisy(opponent, z) is seen


def test_the_prior_is_a_standard_gaussian_and_ends_with_k_means(rows):
    _, method, clustering = begun(rows, positives="prior")
    draws = clustering.draw(method, torch.full((50_000, D), 9.0))
    torch.testing.assert_close(draws.T.cov(), torch.eye(D), atol=0.03, rtol=0)
    assert draws.mean(0).abs().max() < 0.02
    assert float(clustering.opponent(method).scale) == 1  # not that of the first embeddings
    estimator = DCAN(K, preset="adversarial-autoencoder", **SMALL).fit(rows)
    assert list(estimator.stop_reasons_) == ["cluster", "recluster"]
    assert "recluster" not in DCAN(K, **SMALL).fit(rows).stop_reasons_


# What is reported.


def test_a_collapse_is_reported(rows):
    run, method, _ = begun(rows)
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.mul_(COLLAPSED / 2)
    run.update = 4
    with pytest.warns(RuntimeWarning, match="update 4: the variance of the embeddings is .* point"):
        run._refresh(None)
    _, spread = run.history["cluster/spread"][-1]
    assert spread < COLLAPSED
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        run._refresh(None)


def test_centres_without_noise_are_told_from_any_density(rows):
    """The limitation: points and a density are as far apart as can be, whatever encoders do."""
    settings = {**SMALL, "latent_dim": 10, "max_updates": 300, "cluster_lr": 1e-6}
    options = {"positives": "centroid", "discriminator_lr": 1e-2, "discriminator_hidden": (64, 64)}
    with pytest.warns(RuntimeWarning, match="the discriminator is hardly ever wrong"):
        sharp = DCAN(K, **settings, **options, noise=0.0).fit(rows)
    assert sharp.history_["cluster/jsd"][-1][1] > 0.95 * math.log(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blurred = DCAN(K, **settings, **options, noise=1.0).fit(rows)
    assert blurred.history_["cluster/jsd"][-1][1] < 0.5 * math.log(2)


def test_embeddings_that_spread_are_reported(rows):
    run, method, _ = begun(rows)
    opponent = method.opponents["adversarial"]
    opponent.scale.div_(2)  # as if the embeddings had grown to four times its variance
    with pytest.warns(RuntimeWarning, match=r"embeddings is 4 of that at the start"):
        run._refresh(None)


def test_a_discriminator_that_diverges_is_reported(rows):
    run, _, _ = begun(rows)
    run.state["jsd"].fill_(-0.7)
    with pytest.warns(RuntimeWarning, match="much worse than a guess"):
        run._refresh(None)


def test_a_loss_that_is_not_finite_ends_the_fit(rows):
    settings = {**SMALL, "optimizer": "sgd", "cluster_lr": 1e30, "update": "minimax"}
    with pytest.raises(RuntimeError, match="the training has diverged; try a smaller"):
        DCAN(K, **settings).fit(rows)


@pytest.mark.filterwarnings(
    "ignore:only . of . clusters are used", "ignore:update .*:RuntimeWarning"
)
@pytest.mark.parametrize("seed", range(10))
def test_no_seed_ends_in_nan(rows, seed):
    options = {
        "positives": ("gaussian", "centroid", "prior")[seed % 3],
        "clusters": ("k-means", "mixture")[seed % 2],
        "reconstruction_weight": float(seed % 4 > 0),
        "discriminator_lr": (1e-3, 1e-2)[seed % 2],
    }
    settings = {**SMALL, "max_updates": 30, "random_state": seed, "cluster_lr": 1e-2}
    estimator = DCAN(K, **settings, **options).fit(rows)
    assert np.isfinite(estimator.transform(rows)).all()
    assert np.isfinite(estimator.cluster_centers_).all()
    np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)


# The estimator.


def test_the_papers_recipe():
    method = DCAN(10, preset="paper", discriminator_lr=0.03)._build(196)
    stage = method.stages()[-1]
    assert [phase.name for phase in stage.phases] == ["discriminator", "cluster"]
    assert stage.length.n == 500
    assert method.weights == {"adversarial": 1.0}  # no reconstruction
    for phase, rate in zip(stage.phases, (0.03, 0.01), strict=True):
        optimizer = phase.optimizer(phase.parameters())
        assert isinstance(optimizer, torch.optim.SGD)
        assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (rate, 0.9)


def test_embeddings_are_clustered_by_a_network_on_top_of_them(rows):
    for name in ("network=None", "freeze_encoder"):
        options = {"network": None} if name == "network=None" else {"freeze_encoder": True}
        for weight in (0.0, 1.0):
            with pytest.raises(ValueError, match="frozen or absent"):
                DCAN(K, **SMALL, **options, reconstruction_weight=weight).fit(rows)
    mine = nn.Sequential(nn.Linear(rows.shape[1], 8), nn.BatchNorm1d(8))
    labels = DCAN(K, **SMALL, encoder=mine, reconstruction_weight=0.0).fit_predict(rows)
    assert labels.shape == (N,)


@pytest.mark.filterwarnings("ignore:only . of . clusters are used")
def test_convolutional_networks_are_trained_too(rows):
    images = rows.reshape(N, 8, 8)
    settings = {**SMALL, "hidden": "depict-usps", "max_updates": 2}
    estimator = DCAN(K, **settings, network="conv").fit(images)
    np.testing.assert_array_equal(estimator.predict(images), estimator.labels_)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"positives": "laplace"},
            "positives: got 'laplace'; it takes 'gaussian' or 'centroid' or",
        ),
        ({"clusters": "dbscan"}, "clusters: got 'dbscan'; it takes 'k-means' or 'mixture'"),
        ({"update": "hinge"}, "update: got 'hinge'; it takes 'non-saturating' or 'minimax'"),
        ({"discriminator_lr": 0}, "discriminator_lr: got 0; it takes None or a number above 0"),
        ({"n_latents": 0}, "n_latents: got 0; it takes an integer of at least 1"),
        ({"noise": -1}, "noise: got -1; it takes a number of at least 0"),
    ],
)
def test_bad_parameters(rows, parameters, message):
    with pytest.raises(ValueError, match=message):
        Adversarial(**parameters)
    with pytest.raises(ValueError, match=message.split(";")[0]):
        DCAN(K, **SMALL, **parameters).fit(rows)


def test_a_weight_of_the_reconstruction_is_a_number_or_a_schedule(rows):
    with pytest.raises(ValueError, match="weight of reconstruction: got -1"):
        DCAN(K, **SMALL, reconstruction_weight=-1).fit(rows)
    scheduled = DCAN(K, **SMALL, reconstruction_weight=losses.ramp(0.0, 1.0, 4)).fit(rows)
    assert "cluster/reconstruction" in scheduled.history_
