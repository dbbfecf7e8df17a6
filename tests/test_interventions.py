"""What interventions do to network, clusters and optimiser, and when."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

from deepclust import functional as F
from deepclust.cluster import (
    Balance,
    CollapseGuard,
    DeepClustering,
    Epochs,
    Hardening,
    Mixture,
    Reconstruction,
    RunningMeans,
    SoftReset,
)
from deepclust.datasets import load_digits
from deepclust.networks.autoencoder import redraw
from tests.test_regularisers import K, started

N = 60


@pytest.fixture(scope="module")
def rows():
    return load_digits().X[:N] / 2


class Normed(torch.nn.Sequential):
    """A layer, and statistics of the data beside its weights."""

    def __init__(self, *sizes):
        super().__init__(torch.nn.Linear(*sizes), torch.nn.BatchNorm1d(sizes[-1]))


def stepped(rows, updates=4, **parameters):
    """A run after some updates, at a moment when interventions may act."""
    run = started(rows, **parameters)
    for _ in range(updates):
        run._step()
    run.method.eval()
    return run


def act(run):
    """What happens at a refresh, before the refresh itself."""
    with torch.no_grad():
        z = run.map(run.method.embed)
        for intervention in run.method.recipe.interventions:
            z = intervention.act(run.method, run, z)
        return z


def state_of(run):
    return copy.deepcopy(run.method.state_dict())


# Soft resets.


def network():
    return {"encoder": Normed(64, 3), "decoder": Normed(3, 64)}


def test_soft_reset_goes_part_of_the_way_to_fresh_weights(rows):
    run = stepped(rows, **network(), interventions=[SoftReset(every=4, keep=0.7)])
    before, fresh = state_of(run), copy.deepcopy(run.method.network)
    drawn = copy.deepcopy(run.rng("soft reset"))
    outside = torch.get_rng_state()
    act(run)
    assert torch.equal(torch.get_rng_state(), outside)
    # From the run's own generator, so that a run with the same seed has the same resets.
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31 - 1, (1,), generator=drawn)))
        redraw(fresh)
    for name, value in run.method.network.state_dict().items():
        old = before[f"network.{name}"]
        if name.startswith("encoder") and name.endswith(("weight", "bias")):
            new = fresh.state_dict()[name]
            torch.testing.assert_close(value, 0.7 * old + 0.3 * new)
            assert not torch.equal(value, old) or torch.equal(old, new), name
        else:  # the decoder, and all statistics of the data
            assert torch.equal(value, old), name


def test_clusters_start_again_after_a_soft_reset(rows):
    parts = {"regularisers": [Balance(momentum=0.9)], "clustering": RunningMeans(initial_count=5)}
    run = stepped(rows, **network(), **parts, interventions=[SoftReset(every=4)])
    assert float(run.state["counts"].sum()) == 5 * K + N
    with torch.no_grad():
        run.stage.refresh(run)
    z = run.map(run.method.embed)
    centroids, labels = run.method.layer.centroids, run.state["labels"]
    sums, n = F.kmeans_update(z, labels, K)
    torch.testing.assert_close(centroids.data, sums / n[:, None], rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, F.kmeans_assign(z, centroids)[0])
    assert run.state["counts"].tolist() == [5.0] * K
    q = F.assign(z, run.method.head())
    torch.testing.assert_close(run.state["balance mean"], q.mean(0))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_the_optimiser_forgets_the_clusters_alone(rows, name):
    parts = {"clustering": Hardening(), "interventions": [SoftReset(every=4)], "optimizer": name}
    run = stepped(rows, **network(), **parts)
    optimizer = run._optimizers["cluster"]
    moments = {p: copy.deepcopy(optimizer.state[p]) for p in run.method.trained()}
    act(run)
    head = run.method.layer.centroids
    for p, kept in moments.items():
        assert kept
        for value, before in zip(optimizer.state[p].values(), kept.values(), strict=True):
            assert bool(before.any())
            assert torch.equal(value, torch.zeros_like(before) if p is head else before)
    # The next step of the clusters is that of a new optimiser.
    fresh = torch.nn.Parameter(head.detach().clone())
    run._step()
    fresh.grad = head.grad.clone()
    run.method.recipe.optimizer([fresh]).step()
    torch.testing.assert_close(head, fresh)


def test_a_frozen_encoder_is_reset_with_its_codes(rows):
    parts = {"encoder": torch.nn.Linear(64, 3), "freeze_encoder": True}
    run = stepped(rows, **parts, interventions=[SoftReset(every=4)])
    before = run.state["codes"].clone()
    z = act(run)
    assert not torch.allclose(z, before)
    assert torch.equal(run.state["codes"], z)
    assert torch.equal(z, run.map(run.method.embed))


@pytest.mark.parametrize(
    ("every", "until", "interval", "resets", "stopped"),
    [
        (3, 0.8, 3, [3, 6], 9),  # not at 9 of 10
        (3, 1.0, 3, [3, 6, 9], 10),
        (3, 0.0, 3, [], 3),
        (3, 1.0, 2, [4, 8], 10),  # at refreshes
        (3, 0.8, 4, [4], 8),
        (Epochs(1), 0.8, 2, [4], 6),  # of 4 updates
        (100, 1.0, 2, [], 2),
    ],
)
def test_resets_happen_until_their_time_is_over(rows, every, until, interval, resets, stopped):
    """And the clustering stops for its own reason when no reset is to come, but not at the last."""
    encoders = {}

    def record(run):
        encoders[run.update] = run.method.network.encoder.weight.detach().clone()

    # Without learning only resets move the encoder, and labels settle at once.
    DeepClustering(
        K,
        encoder=torch.nn.Linear(64, 3),
        clustering=Hardening(update_interval=interval, tol=0.02),
        interventions=[SoftReset(every=every, until=until)],
        max_updates=10,
        batch_size=15,
        cluster_lr=1e-12,
        callbacks=[record],
        random_state=0,
    ).fit(rows)
    updates = sorted(encoders)
    moved = [
        later
        for earlier, later in pairwise(updates)
        if not torch.allclose(encoders[earlier], encoders[later])
    ]
    assert moved == resets
    assert updates[-1] == stopped


def test_reset_is_a_part_of_a_runs_seed(rows):
    def fit(seed):
        return DeepClustering(
            K,
            hidden=(8,),
            latent_dim=3,
            tune_updates=0,
            max_updates=8,
            clustering=Hardening(update_interval=4, tol=0.0),
            interventions=[SoftReset(every=4)],
            random_state=seed,
        ).fit(rows)

    first, again, other = fit(0), fit(0), fit(1)
    np.testing.assert_array_equal(first.transform(rows), again.transform(rows))
    assert not np.allclose(first.transform(rows), other.transform(rows))


# Collapsed clusters.


def guarded(z, centroids, least=0.0, clustering=None, **parameters):
    """A run on given embeddings, with clusters put where they are wanted."""
    run = started(
        z,
        network=None,
        clustering=clustering or Hardening(),
        interventions=[CollapseGuard(least)],
        **parameters,
    )
    with torch.no_grad():
        next(run.method.layer.parameters()).copy_(torch.as_tensor(centroids))
    return run


def line():
    """Rows 0 to 9 around 0, the last of them farthest; 10 to 14 around 100; 15 at 200."""
    near = np.array([0.0, 1, -1, 2, -2, 3, -3, 4, -4, 6])
    far = np.array([100.0, 101, 99, 102, 98])
    return np.concatenate([near, far, [200.0]])[:, None].astype(np.float32)


def test_an_empty_cluster_goes_to_the_farthest_row_of_the_largest():
    run = guarded(line(), [[0.0], [1e4], [100.0]])
    act(run)
    assert run.method.layer.centroids.flatten().tolist() == [0.0, 6.0, 100.0]
    # And to no other row, nor at all where no cluster is empty.
    act(run)
    assert run.method.layer.centroids.flatten().tolist() == [0.0, 6.0, 100.0]


def test_two_empty_clusters_go_to_two_rows():
    run = guarded(line(), [[0.0], [1e4], [2e4]])
    act(run)
    centroids = run.method.layer.centroids.flatten().tolist()
    assert centroids == [0.0, 200.0, 102.0]


@pytest.mark.parametrize(("least", "moved"), [(0.0, False), (0.1, False), (0.2, True)])
def test_how_small_a_cluster_may_be(least, moved):
    # The cluster at 200 has one row of 16: 0.19 of the mean size.
    run = guarded(line(), [[0.0], [100.0], [200.0]], least)
    act(run)
    expected = [0.0, 100.0, 6.0 if moved else 200.0]
    assert run.method.layer.centroids.flatten().tolist() == expected
    run._read_log()
    assert run.history["cluster/moved clusters"][-1][1] == moved


def test_moments_are_forgotten_where_a_cluster_moved():
    for centroids, kept in (([[0.0], [150.0], [100.0]], True), ([[0.0], [1e4], [100.0]], False)):
        run = guarded(line(), [[0.0], [150.0], [100.0]])
        run._step()
        with torch.no_grad():
            run.method.layer.centroids.copy_(torch.tensor(centroids))
        (moments,) = run._optimizers["cluster"].state.values()
        act(run)
        assert all(bool(value.any()) == kept for value in moments.values())


def test_a_running_mean_that_moved_is_free_again():
    # What is trained is the decoder.
    parts = {"encoder": torch.nn.Identity(), "decoder": torch.nn.Linear(1, 1)}
    run = started(
        line(),
        **parts,
        freeze_encoder=True,
        clustering=RunningMeans(initial_count=7),
        interventions=[CollapseGuard(0.0)],
        regularisers=[Reconstruction()],
    )
    with torch.no_grad():
        run.method.layer.centroids.copy_(torch.tensor([[0.0], [1e4], [100.0]]))
    run.state["counts"] += 50
    act(run)
    assert run.state["counts"].tolist() == [57.0, 7.0, 57.0]


def test_a_component_that_moved_has_the_shape_of_the_one_it_left(rows):
    run = started(
        rows,
        network="variational",
        clustering=Mixture(),
        interventions=[CollapseGuard()],
    )
    layer = run.method.layer
    with torch.no_grad():
        layer.log_weights[1] = -1e4  # nothing is assigned to it
        labels = F.frequencies(run.map(run.method.embed), layer.head())[1]
    largest = int(labels.bincount(minlength=K).argmax())
    z = act(run)
    assert largest != 1
    assert torch.equal(layer.log_var[1], layer.log_var[largest])
    assert torch.equal(layer.log_weights[1], layer.log_weights[largest])
    distance = (z - layer.means[largest]).square().sum(1)
    farthest = int(torch.where(labels == largest, distance, -1.0).argmax())
    assert torch.equal(layer.means[1], z[farthest])


def test_a_collapse_is_mended_in_a_fit(rows):
    def collapse(run):
        if run.stage.name == "cluster" and run.update == 0:
            with torch.no_grad():
                run.method.layer.centroids[1:] += 1e4

    used = {}
    for guard in ([], [CollapseGuard()]):
        model = DeepClustering(
            K,
            hidden=(8,),
            latent_dim=3,
            tune_updates=0,
            max_updates=8,
            clustering=Hardening(update_interval=4, tol=0.0),
            interventions=guard,
            callbacks=[collapse],
            random_state=0,
        )
        if guard:
            model.fit(rows)
        else:
            with pytest.warns(RuntimeWarning, match="only 1 of 3 clusters are used"):
                model.fit(rows)
        used[len(guard)] = len(np.unique(model.labels_))
    assert used == {0: 1, 1: K}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftReset(every=0), "every: got 0"),
        (lambda: SoftReset(every=1.5), r"every: got 1\.5"),
        (lambda: SoftReset(keep=1.0), r"keep: got 1\.0; it takes a share from 0 to below 1"),
        (lambda: SoftReset(keep="most"), "keep: got 'most'"),
        (lambda: SoftReset(until=1.1), r"until: got 1\.1; it takes a share from 0 to 1"),
        (lambda: SoftReset(until=True), "until: got True"),
        (lambda: CollapseGuard(least=1), "least: got 1; it takes a share from 0 to below 1"),
        (lambda: CollapseGuard(least=-0.1), r"least: got -0\.1"),
        (lambda: CollapseGuard(least=None), "least: got None"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
