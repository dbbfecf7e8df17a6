"""What each regulariser adds, by itself: against its formula, and what it keeps between steps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.neighbors import NearestNeighbors

from deepclust import functional as F
from deepclust.cluster import (
    Balance,
    DeepClustering,
    EpochMeans,
    Hardening,
    Locality,
    Reconstruction,
    RunningMeans,
    SelfAugmentation,
)
from deepclust.cluster._data import Rows
from deepclust.cluster._trainer import Batch, Run, Settings
from deepclust.datasets import load_digits
from deepclust.losses import zipf

N, K = 60, 3
SMALL = {"hidden": (8,), "latent_dim": 3, "tune_updates": 0, "max_updates": 12, "n_init": 1}


@pytest.fixture(scope="module")
def rows():
    return load_digits().X[:N] / 2


def started(x, batch_size=16, **parameters):
    """A run whose clusters have started, before its first update."""
    torch.manual_seed(0)
    method = DeepClustering(K, **{**SMALL, **parameters})._build(x.shape[1])
    data = Rows(x, torch.device("cpu"))
    method.prepare(data)
    run = Run(method, data, Settings(batch_size))
    assert run.stage.name == "cluster"
    method.eval()
    with torch.no_grad():
        run.stage.begin(run)
        run.stage.refresh(run)
    run._begun = run.refreshed = True
    run._make_optimizers()
    return run


def batch_of(run, idx, **fields):
    return Batch(run.take(idx), idx, **fields)


def loss_of(run, batch, name):
    """One loss of a batch, and what goes to `after`."""
    losses, aux = run.method.losses(run, batch)
    return losses[name], aux


def gradients(run, loss):
    parameters = [p for p in run.method.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, parameters, allow_unused=True)


def divergence(g, u):
    g, u = g.detach().double(), torch.as_tensor(u, dtype=torch.float64)
    return float((g * (g / u).log()).sum())


# Balance.


def test_balance_is_the_divergence_of_the_batchs_mean_assignment(rows):
    run = started(rows, regularisers=[Balance()])
    batch = batch_of(run, torch.arange(5, 25))
    loss, _ = loss_of(run, batch, "balance")
    q = F.assign(run.method.embed(batch.x), run.method.head())
    assert divergence(q.mean(0), [1 / K] * K) > 1e-3
    np.testing.assert_allclose(loss.item(), divergence(q.mean(0), [1 / K] * K), rtol=1e-5)


@pytest.mark.parametrize("prior", [[0.2, 0.7, 0.1], zipf(2.0)])
def test_the_largest_cluster_is_to_have_the_largest_share_of_the_prior(rows, prior):
    run = started(rows, regularisers=[Balance(prior=prior)])
    ranked = np.array([0.7, 0.2, 0.1])
    if isinstance(prior, zipf):
        ranked = np.array([1, 1 / 4, 1 / 9]) / (1 + 1 / 4 + 1 / 9)

    def expected():
        f = F.frequencies(run.map(run.method.embed), run.method.head())[0]
        prior = np.empty(K)
        prior[np.argsort(-f.numpy())] = ranked
        return prior

    batch = batch_of(run, slice(0, 30))
    before = expected()
    q = F.assign(run.method.embed(batch.x), run.method.head())
    loss, _ = loss_of(run, batch, "balance")
    np.testing.assert_allclose(loss.item(), divergence(q.mean(0), before), rtol=1e-5)
    # Clusters change places: who is the largest is asked at the next refresh, and not before.
    with torch.no_grad():
        run.method.layer.centroids.copy_(run.method.layer.centroids.roll(1, 0))
    after = expected()
    assert not np.allclose(before, after)
    q = q.roll(1, 1)
    loss, _ = loss_of(run, batch, "balance")
    np.testing.assert_allclose(loss.item(), divergence(q.mean(0), before), rtol=1e-4)
    with torch.no_grad():
        run.stage.refresh(run)
    loss, _ = loss_of(run, batch, "balance")
    np.testing.assert_allclose(loss.item(), divergence(q.mean(0), after), rtol=1e-4)


def test_balance_with_momentum_is_of_the_running_mean(rows):
    momentum = 0.9
    run = started(rows, regularisers=[Balance(momentum=momentum)])
    everything = F.assign(run.map(run.method.embed), run.method.head())
    mean = everything.mean(0).detach().double()
    for idx in (slice(0, 16), torch.tensor([3, 50, 7]), slice(20, 36)):
        batch = batch_of(run, idx)
        share = F.assign(run.method.embed(batch.x), run.method.head()).mean(0)
        loss, aux = loss_of(run, batch, "balance")
        mean = momentum * mean + (1 - momentum) * share.detach().double()
        np.testing.assert_allclose(loss.item(), divergence(mean, [1 / K] * K), rtol=1e-4)
        # Gradients reach the batch's part alone: that of sum_k g_k log(g_k / u_k) to g_k is
        # log(g_k / u_k) + 1.
        by_hand = ((1 - momentum) * ((mean * K).log() + 1).float() * share).sum()
        pairs = zip(gradients(run, loss), gradients(run, by_hand), strict=True)
        for ours, theirs in pairs:
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
        with torch.no_grad():
            run.method.after(run, batch, aux)


def test_the_running_mean_starts_again_with_the_clusters(rows):
    run = started(rows, regularisers=[Balance(momentum=0.5)])
    first = run.state["balance mean"].clone()
    with torch.no_grad():
        for parameter in run.method.network.encoder_parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
        run.method.start(run)
    q = F.assign(run.map(run.method.embed), run.method.head())
    assert not torch.allclose(first, run.state["balance mean"])
    torch.testing.assert_close(run.state["balance mean"], q.mean(0))


# Locality.


def graph_of(seed=0):
    """Each row has one, two or three neighbours of its own choice, row 0 is none's."""
    rng = np.random.default_rng(seed)
    graph = np.zeros((N, N), np.float32)
    for row in range(N):
        others = np.setdiff1d(np.arange(1, N), [row])
        for other in rng.choice(others, 1 + row % 3, replace=False):
            graph[row, other] = rng.uniform(0.5, 2)
    return graph


@pytest.mark.parametrize("form", [scipy.sparse.csr_array, scipy.sparse.coo_matrix])
@pytest.mark.parametrize("idx", [slice(7, 29), torch.tensor([5, 0, 41, 58])])
def test_locality_is_in_expectation_the_sum_over_all_neighbours(rows, form, idx, monkeypatch):
    graph = graph_of()
    run = started(rows, regularisers=[Locality(graph=form(graph))])
    # Rows have 1, 2 or 3 neighbours: the numbers from 0 to 5 draw each equally often.
    losses = []
    for number in range(6):
        monkeypatch.setattr(
            torch, "randint", lambda high, size, number=number, **_: torch.full(size, number)
        )
        numbers, weights = run.stage.companions(run, idx)
        assert numbers.shape == weights.shape == (len(torch.arange(N)[idx]), 1)
        batch = batch_of(
            run, idx, companions=run.take(numbers.flatten())[:, None], companion_weights=weights
        )
        losses.append(loss_of(run, batch, "locality")[0].item())
    z = run.map(run.method.embed).double().numpy()
    squared = ((z[:, None] - z) ** 2).sum(2)
    expected = (graph * squared).sum(1)[idx].mean()
    np.testing.assert_allclose(np.mean(losses), expected, rtol=1e-5)


def test_only_neighbours_are_drawn_and_all_of_them(rows):
    graph = graph_of()
    per_step = 64
    run = started(rows, regularisers=[Locality(graph=scipy.sparse.csr_array(graph), per_step=64)])
    torch.manual_seed(0)
    numbers, weights = run.stage.companions(run, torch.arange(N))
    for row in range(N):
        assert set(numbers[row].tolist()) == set(np.flatnonzero(graph[row]))
        degree = np.count_nonzero(graph[row])
        expected = graph[row, numbers[row]] * degree / per_step
        np.testing.assert_allclose(weights[row], expected, rtol=1e-6)


def test_neighbours_are_the_nearest_rows_of_the_data(rows):
    run = started(rows, regularisers=[Locality(n_neighbors=4, per_step=64)])
    torch.manual_seed(0)
    numbers, weights = run.stage.companions(run, slice(0, N))
    nearest = NearestNeighbors(n_neighbors=4).fit(rows).kneighbors(return_distance=False)
    for row in range(N):
        assert set(numbers[row].tolist()) == set(nearest[row])
    np.testing.assert_allclose(weights, 4 / 64)


def test_neighbours_are_moved_too(rows):
    run = started(rows, regularisers=[Locality(per_step=2)])
    idx = torch.arange(4)
    numbers, weights = run.stage.companions(run, idx)
    companions = run.take(numbers.flatten()).unflatten(0, numbers.shape)
    batch = batch_of(run, idx, companions=companions, companion_weights=weights)
    loss, _ = loss_of(run, batch, "locality")
    z, others = (run.method.embed(x) for x in (batch.x, companions.flatten(0, 1)))
    squared = (z[:, None] - others.unflatten(0, numbers.shape)).square().sum(2)
    by_hand = (weights * squared).sum(1).mean()
    pairs = zip(gradients(run, loss), gradients(run, by_hand), strict=True)
    for ours, theirs in pairs:
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# Self-augmentation.


def flipped(x, generator):
    """A view that has the cluster of another row."""
    return x.flip(0)


def test_a_view_is_held_to_the_target_of_its_own_row(rows):
    run = started(
        rows, regularisers=[SelfAugmentation(transform=flipped)], clustering=Hardening(nu=2.0)
    )
    idx = torch.tensor([1, 8, 30, 44, 51])
    x = run.take(idx)
    batch = batch_of(run, idx, view=flipped(x, None))
    loss, _ = loss_of(run, batch, "self-augmentation")
    q = F.assign(run.map(run.method.embed).double(), double(run.method.head()))
    p = F.dec_target(q)[idx]
    own, flipped_q = q[idx], q[idx].flip(0)
    expected = (p * (p / flipped_q).log()).sum(1).mean()
    assert float(expected) > 2 * float((p * (p / own).log()).sum(1).mean())
    np.testing.assert_allclose(loss.item(), float(expected), rtol=1e-4)


def double(head):
    return head.to(torch.float64)


@pytest.mark.parametrize("clustering", [RunningMeans(), EpochMeans()])
def test_a_view_is_held_to_the_centroid_of_its_own_row(rows, clustering):
    parts = {"clustering": clustering, "regularisers": [SelfAugmentation(transform=flipped)]}
    run = started(rows, **parts)
    idx = torch.tensor([1, 8, 30, 44, 51])
    batch = batch_of(run, idx, view=flipped(run.take(idx), None))
    loss, _ = loss_of(run, batch, "self-augmentation")
    z = run.method.embed(batch.x).flip(0).double()
    centroids = run.method.layer.centroids.double()[run.state["labels"][idx]]
    np.testing.assert_allclose(loss.item(), float((z - centroids).square().sum(1).mean()), 1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "squared"])
def test_a_view_is_held_to_the_embedding_of_its_row(rows, similarity):
    part = SelfAugmentation(transform=flipped, similarity=similarity)
    run = started(rows, regularisers=[part])
    batch = batch_of(run, slice(3, 9), view=flipped(run.take(slice(3, 9)), None))
    loss, _ = loss_of(run, batch, "self-augmentation")
    z = run.method.embed(batch.x).double()
    view = z.flip(0)
    if similarity == "cosine":
        expected = -torch.cosine_similarity(z, view).mean()
    else:
        expected = (z - view).square().sum(1).mean()
    np.testing.assert_allclose(loss.item(), float(expected), rtol=1e-5)


# Reconstruction.


@pytest.mark.parametrize("per", ["element", "row"])
def test_reconstruction_is_of_the_scaled_rows(rows, per):
    run = started(rows, regularisers=[Reconstruction(per=per)])
    run.method.scale.fill_(2.0)
    batch = batch_of(run, slice(0, 20))
    loss, _ = loss_of(run, batch, "reconstruction")
    x = 2 * batch.x
    squared = (run.method.network(x)[1] - x).double().square()
    expected = squared.mean() if per == "element" else squared.sum(1).mean()
    np.testing.assert_allclose(loss.item(), float(expected), rtol=1e-5)


# All of them.

PARTS = {
    "balance": Balance(momentum=0.5),
    "locality": Locality(n_neighbors=3),
    "self-augmentation": SelfAugmentation(transform=flipped),
    "reconstruction": Reconstruction(),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_loss_is_trained_on_by_its_weight(rows, name):
    """One step of SGD: what the loss adds to it is the weight times its gradient."""
    steps = {}
    part = PARTS[name]
    for weight in (None, 0.0, 1.0, 3.0):
        parts = [] if weight is None else [type(part)(**{**vars(part), "weight": weight})]
        run = started(rows, regularisers=parts, optimizer="sgd", cluster_lr=0.1)
        before = copy.deepcopy(run.method.state_dict())
        torch.manual_seed(1)
        run._step()
        after = run.method.state_dict()
        steps[weight] = {key: (after[key] - before[key]).double() for key in after}
    for key, step in steps[1.0].items():
        none = steps[0.0][key]
        torch.testing.assert_close(steps[3.0][key] - none, 3 * (step - none), rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(steps[None][key], none, rtol=1e-5, atol=1e-8)
    assert any(bool((steps[1.0][key] - steps[0.0][key]).abs().max() > 1e-6) for key in steps[1.0])


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Balance(momentum=1.0), ValueError, "momentum: got 1.0"),
        (lambda: Balance(momentum="a"), ValueError, "momentum: got 'a'"),
        (lambda: Locality(n_neighbors=0), ValueError, "n_neighbors: got 0"),
        (lambda: Locality(n_neighbors=2.0), ValueError, r"n_neighbors: got 2\.0"),
        (lambda: Locality(per_step=0), ValueError, "per_step: got 0"),
        (lambda: Locality(graph=np.eye(3)), TypeError, "graph: got ndarray; it takes a sparse"),
        (lambda: Reconstruction(per="pixel"), ValueError, "per: got 'pixel'"),
        (lambda: SelfAugmentation(similarity="dot"), ValueError, "similarity: got 'dot'"),
        (lambda: SelfAugmentation(transform="turn"), TypeError, "transform: got 'turn'"),
        (lambda: SelfAugmentation(transform=None), TypeError, "transform: got None"),
    ],
)
def test_bad_parameters_of_parts(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"regularisers": [Balance(prior=[0.5, 0.5])]}, "prior: got 2 shares for n_clusters=3"),
        ({"regularisers": [Balance(prior=[0.5, 0.5, 0.5])]}, "prior: got a sum of 1.5"),
        ({"regularisers": [Balance(weight=-1)]}, "weight of balance: got -1"),
        ({"regularisers": [Locality(n_neighbors=N)]}, f"n_neighbors: got {N} for {N} rows"),
        (
            {"regularisers": [Locality(graph=scipy.sparse.csr_array(np.eye(N - 1)))]},
            rf"graph: got shape \({N - 1}, {N - 1}\) for {N} rows; it takes \(N, N\)",
        ),
        (
            {"regularisers": [Locality(graph=scipy.sparse.csr_array(np.eye(N, k=1)))]},
            rf"graph: row {N - 1} has no neighbour \(1 such rows\)",
        ),
        ({"regularisers": [Balance(), Balance()]}, "regularisers: .*'balance' twice"),
        (
            {"regularisers": [SelfAugmentation(transform=flipped)], "augment": flipped},
            "augment: got a transform, and SelfAugmentation has one too",
        ),
        (
            {"regularisers": [SelfAugmentation(transform=flipped)], "clustering": "k-means"},
            "similarity: got 'target', but",
        ),
        ({"regularisers": [Reconstruction()], "network": None}, "Reconstruction: .* no decoder"),
        ({"regularisers": [Reconstruction(sampled=True)]}, "sampled: got True"),
        ({"regularisers": [Locality()], "freeze_encoder": True}, "Locality: the encoder is frozen"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_trained(rows, parts, message):
    def trained(run):
        raise AssertionError(f"{run.stage.name} was trained")

    settings = {**SMALL, **parts, "tune_updates": 0 if "network" in parts else 2}
    with pytest.raises(ValueError, match=message):
        DeepClustering(K, **settings, callbacks=[trained]).fit(rows)
