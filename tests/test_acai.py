"""ACAI: its equations, network and critic, whitening, and the regulariser in other methods."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from deepclust.cluster import (
    ACAI,
    DCN,
    DEC,
    DEPICT,
    IDEC,
    DeepClustering,
    Epochs,
    Interpolation,
    KMeansLoss,
    Reconstruction,
    VaDE,
)
from deepclust.cluster._data import Rows
from deepclust.cluster._trainer import Batch, Run, Settings
from deepclust.cluster._whitening import Whitened
from deepclust.datasets import load_digits
from deepclust.losses import critic_error, interpolation, ramp, weight_at
from deepclust.networks import (
    ACAIAutoencoder,
    Autoencoder,
    Critic,
    MLPAutoencoder,
    UserNetwork,
    VariationalAutoencoder,
)
from tests.cases import as_numpy
from tests.reference import acai as oracle
from tests.test_dec import interrupt
from tests.test_methods import SMALL, K, N, assert_same

# After so few updates it may be.
pytestmark = pytest.mark.filterwarnings("ignore:only . of . clusters are used")


@pytest.fixture(scope="module")
def rows():
    return load_digits().X[:N]


# The equations, in float64, on a network small enough for central differences.


def run_of(estimator, stage, width=5, n=40, dtype=torch.float64):
    """A run at the beginning of a stage, and its rows."""
    torch.manual_seed(0)
    method = estimator._build(width)
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(1))
    run = Run(method, Rows(x, torch.device("cpu")), Settings(16))
    method.prepare(run._rows)
    names = [stage.name for stage in run._stages]
    run.stage_index = names.index(stage)
    with torch.no_grad():
        if stage == "cluster":
            run.stage.begin(run)
        method.to(dtype)
        for parameter in method.parameters():
            parameter += 0.3 * torch.randn(parameter.shape).to(dtype)
    return run, x.to(dtype)


def layers_of(linears):
    return [tuple(map(as_numpy, (layer.weight, layer.bias))) for layer in linears]


def arrays_of(method):
    critic = method.opponents["interpolation"].network
    return tuple(map(layers_of, (method.network.encoder, method.network.decoder, critic.encoder)))


def losses_of(phase, run, batch, seed=5):
    """The losses of a phase, and the alpha that it drew."""
    torch.manual_seed(seed)
    losses, _ = phase.losses(run, batch)
    torch.manual_seed(seed)
    return losses, as_numpy(torch.rand(len(batch.x)) / 2)


STAGES = pytest.mark.parametrize("stage", ["tune", "cluster"])


@STAGES
@pytest.mark.parametrize("gamma", [0.0, 0.2, 1.0])
def test_losses_and_gradients_are_those_of_the_paper(stage, gamma):
    acai = ACAI(3, hidden=(4,), latent_dim=3, lam=0.7, gamma=gamma, n_init=1, max_updates=1)
    run, x = run_of(acai, stage)
    idx = torch.arange(8, 21)
    batch, arrays = Batch(x[idx], idx), arrays_of(run.method)
    network, critic = run.stage.phases
    assert weight_at(network.weights["interpolation"], 0, "interpolation") == 0.7
    assert not critic.weights
    sides = {
        "network": (network, {"reconstruction": 1.0, "interpolation": 0.7}, arrays[:2]),
        "critic": (critic, {"critic": 1.0, "critic on rows": 1.0}, arrays[2:]),
    }
    for phase, weights, own in sides.values():
        losses, alpha = losses_of(phase, run, batch)
        expected = oracle.terms(as_numpy(x[idx]), alpha, gamma, *arrays)
        assert losses.keys() - {"k-means"} == weights.keys()
        for name in weights:
            np.testing.assert_allclose(losses[name].item(), expected[name], rtol=1e-11)
        total = sum(weight * losses[name] for name, weight in weights.items())
        gradients = torch.autograd.grad(total, list(run.method.parameters()), allow_unused=True)
        found = dict(zip(dict(run.method.named_parameters()), gradients, strict=True))

        def value(alpha=alpha, weights=weights):
            terms = oracle.terms(as_numpy(x[idx]), alpha, gamma, *arrays)
            return sum(weight * terms[name] for name, weight in weights.items())

        halves = [half for half in own for layer in half for half in layer]
        names = [
            name
            for name in found
            if name.startswith("network" if phase is network else "opponents")
        ]
        assert len(names) == len(halves)
        for name, array in zip(names, halves, strict=True):
            expected = np.zeros_like(array)
            for where in np.ndindex(array.shape):
                kept, ends = array[where], []
                for step in (1e-6, -1e-6):
                    array[where] = kept + step
                    ends.append(value())
                array[where] = kept
                expected[where] = (ends[0] - ends[1]) / 2e-6
            np.testing.assert_allclose(as_numpy(found[name]), expected, atol=1e-8, err_msg=name)
            assert expected.any(), name
        if phase is critic:
            assert all(found[name] is None for name in found if name.startswith("network"))


def test_functions_are_those_of_the_oracle():
    z, alpha = torch.randn(7, 3).double(), torch.rand(7).double() / 2
    expected = oracle.interpolation(as_numpy(z), as_numpy(alpha))
    np.testing.assert_allclose(interpolation(z, alpha), expected, rtol=1e-14)
    assert interpolation(z.bfloat16(), alpha.float()).dtype == torch.float32
    # Of one row there is no other, and the middle one of three is its own partner.
    torch.testing.assert_close(interpolation(z[:1], alpha[:1]), z[:1])
    torch.testing.assert_close(interpolation(z[:3], alpha[:3])[1], z[1])
    assert torch.autograd.gradcheck(interpolation, (z.requires_grad_(), alpha.requires_grad_()))
    with pytest.raises(ValueError, match=r"alpha: got shape \(6,\); it takes \(7,\)"):
        interpolation(z, alpha[1:])
    with pytest.raises(ValueError, match=r"alpha: got shape \(7, 1\); guess has \(7,\)"):
        critic_error(alpha, alpha.unsqueeze(1))


@STAGES
def test_a_step_of_one_side_leaves_the_other_alone(stage):
    settings = {"optimizer": "sgd", "cluster_lr": 0.5, "pretrain_lr": 0.5, "n_init": 1}
    acai = ACAI(3, hidden=(4,), latent_dim=3, **settings, max_updates=1)
    run, _ = run_of(acai, stage, dtype=torch.float32)
    run._make_optimizers()
    batch, method = run._next_batch(), run.method
    sides = [list(method.network.parameters()), list(method.opponents.parameters())]
    for phase, (own, other) in zip(run.stage.phases, (sides, sides[::-1]), strict=True):
        before = [[p.detach().clone() for p in side] for side in (own, other)]
        for parameter in other:
            parameter.grad = None
        run._step_phase(phase, batch)
        assert all(not torch.equal(*pair) for pair in zip(own, before[0], strict=True))
        assert all(torch.equal(*pair) for pair in zip(other, before[1], strict=True))
        assert all(parameter.grad is None for parameter in other)
    groups = run._optimizers["critic"].param_groups
    assert [id(p) for group in groups for p in group["params"]] == [*map(id, sides[1])]


def test_the_critic_learns_to_tell_alpha():
    """Against an autoencoder that stays as it is; one that can tell nothing says 1/8."""
    run, x = run_of(
        ACAI(3, hidden=(64,), latent_dim=3, critic_lr=1e-2), "tune", dtype=torch.float32
    )
    run._make_optimizers()
    for _ in range(300):
        run._step_phase(run.stage.phases[1], Batch(x, slice(0, 40)))
    run.update = 300
    run._read_log()
    run._step_phase(run.stage.phases[1], Batch(x, slice(0, 40)))
    total, _ = run._pending["critic"]
    assert float(total) < 0.5 * (1 / 48 + 1 / 64)


def test_weights_follow_the_reconstructions():
    """With SGD rows weigh as a whole: half their width."""
    weight = ramp(0.0, 1.0, 10)
    for optimizer, by in (("adam", 1.0), ("sgd", 5 / 2)):
        run, _ = run_of(ACAI(3, hidden=(4,), latent_dim=2, optimizer=optimizer, lam=weight), "tune")
        weights = run.stage.phases[0].weights
        assert weights["interpolation"](5) == pytest.approx(0.5 * by)
        assert weights.get("reconstruction", 1.0) == by


def test_the_critic_has_the_stages_optimiser_or_its_own_rate():
    for changes, rate in (({}, 1e-3), ({"critic_lr": 3e-4}, 3e-4)):
        run, _ = run_of(ACAI(3, hidden=(4,), latent_dim=2, **changes), "tune")
        run._make_optimizers()
        found = {name: o.param_groups[0]["lr"] for name, o in run._optimizers.items()}
        assert found == {"autoencoder": 1e-3, "critic": rate}
    run, _ = run_of(ACAI(3, hidden=(4,), latent_dim=2, optimizer="sgd"), "tune")
    run._make_optimizers()
    assert isinstance(run._optimizers["critic"], torch.optim.SGD)
    assert run._schedulers.keys() == {"autoencoder", "critic"}


# The network and the critic.


def test_the_published_network():
    network = ACAIAutoencoder((28, 28), 32)
    x = torch.randn(3, 784)
    shapes = [tuple(h.shape[1:]) for h in network.layers(x)]
    assert shapes == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (32,)]

    def convolutions(half):
        found = [layer for layer in half.modules() if isinstance(layer, nn.Conv2d)]
        return [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in found]

    down = [(1, 16, 1), (16, 16, 3), (16, 16, 3), (16, 32, 3), (32, 32, 3), (32, 64, 3)]
    assert convolutions(network.encoder) == [*down, (64, 64, 3), (64, 128, 3), (128, 2, 3)]
    up = [(2, 64, 3), (64, 64, 3), (64, 32, 3), (32, 32, 3), (32, 16, 3), (16, 16, 3)]
    assert convolutions(network.decoder) == [*up, (16, 16, 3), (16, 1, 3)]
    assert all(
        not network.state_dict()[name].any() for name in network.state_dict() if "bias" in name
    )
    wide = ACAIAutoencoder((32, 32, 3), 256, width=64)
    for layer in (wide.encoder[0][0], wide.encoder[2][2], wide.decoder[0]):
        fan_in = layer.weight[0].numel()
        std = float(layer.weight.detach().std())
        assert std == pytest.approx((1.04 * fan_in) ** -0.5, rel=0.1)
    assert wide.code_shape == (16, 4, 4)


def written_out(network, x):
    """The code of rows of one channel, by sums over windows."""

    def convolved(h, layer):
        weight, bias = as_numpy(layer.weight), as_numpy(layer.bias)
        edge = weight.shape[2] // 2
        h = np.pad(h, ((0, 0), (edge, edge), (edge, edge)))
        sides = (h.shape[1] - 2 * edge, h.shape[2] - 2 * edge)
        out = np.empty((len(weight), *sides))
        for i, j in np.ndindex(sides):
            window = h[:, i : i + 2 * edge + 1, j : j + 2 * edge + 1]
            out[:, i, j] = (weight * window).sum((1, 2, 3)) + bias
        return out

    def leaky(h):
        return np.where(h > 0, h, 0.2 * h)

    first, *rest = [c for c in network.encoder.modules() if isinstance(c, nn.Conv2d)]
    h = convolved(np.pad(x, ((2, 2), (1, 2)))[None], first)
    for scale in range(3):
        for layer in rest[2 * scale : 2 * scale + 2]:
            h = leaky(convolved(h, layer))
        h = h.reshape(len(h), h.shape[1] // 2, 2, h.shape[2] // 2, 2).mean((2, 4))
    code = convolved(leaky(convolved(h, rest[6])), rest[7])
    h = code
    up = [c for c in network.decoder.modules() if isinstance(c, nn.Conv2d)]
    for scale in range(3):
        for layer in up[2 * scale : 2 * scale + 2]:
            h = leaky(convolved(h, layer))
        h = h.repeat(2, 1).repeat(2, 2)
    output = convolved(leaky(convolved(h, up[6])), up[7])
    return code.transpose(1, 2, 0).ravel(), output[0, 2:-2, 1:-2].ravel()


def test_the_network_is_its_formula():
    torch.manual_seed(0)
    network = ACAIAutoencoder((4, 13), 6, width=2).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 52).double()
    code, output = network(x)
    for row in range(2):
        expected = written_out(network, as_numpy(x[row]).reshape(4, 13))
        np.testing.assert_allclose(as_numpy(code[row]), expected[0], rtol=1e-10)
        np.testing.assert_allclose(as_numpy(output[row]), expected[1], rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((28, 28), 10), "code_width: got 10; images of 28 x 28 take a multiple of 16"),
        (((28, 28), 0), "code_width: got 0"),
        (((8, 8), 0), "code_width: got 0"),
        ((5, 1), "image_shape: got 5"),
    ],
)
def test_networks_that_are_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        ACAIAutoencoder(*arguments)
    with pytest.raises(ValueError, match="width: got 0; it takes an integer of at least 1"):
        ACAIAutoencoder((8, 8), 1, width=0)


USERS = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
NETWORKS = {
    "mlp": lambda: MLPAutoencoder((64, 16, 4)),
    "tanh": lambda: MLPAutoencoder((64, 16, 4), code="tanh"),
    "variational": lambda: VariationalAutoencoder((64, 16, 4)),
    "acai": lambda: ACAIAutoencoder((8, 8), 4),
    "user": lambda: UserNetwork(USERS, nn.Linear(4, 64), n_features=64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_critic_has_the_encoders_form_and_weights_of_its_own(name):
    network: Autoencoder = NETWORKS[name]()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.randn(6, 64)
    critic = Critic(network)
    assert critic(x).shape == (6,)
    ours = {id(p): p for p in network.parameters()}
    assert not any(id(parameter) in ours for parameter in critic.parameters())
    # The encoder's parameters, no decoder's, and drawn again.
    shapes = [p.shape for p in network.encoder_parameters()]
    assert [p.shape for p in critic.parameters()] == shapes
    for own, other in zip(critic.parameters(), network.encoder_parameters(), strict=True):
        assert own.ndim == 1 or not torch.equal(own, other)
    critic(x).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    if name == "tanh":
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.mul_(100)
        assert critic(x).abs().max() > 1


def test_a_frozen_encoders_critic_is_trained():
    frozen = nn.Linear(64, 4).requires_grad_(False)
    assert all(p.requires_grad for p in Critic(UserNetwork(frozen, n_features=64)).parameters())


# Whitening.


@pytest.mark.parametrize("far", [0.0, 100.0])
def test_whitened_features_have_the_identity_for_covariance(far):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator) * torch.tensor([0.1, 0.3, 1.0, 1.0, 10.0])
    z = torch.randn(3000, 5, generator=generator) @ mixing.T + far
    layer = Whitened(2, 5)
    torch.testing.assert_close(layer.project(z), z)
    layer.fit(z)
    found = layer.project(z).double()
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(found.T @ found / len(z), np.eye(5), atol=2e-3)
    expected = PCA(whiten=True).fit(z.double()).transform(z.double())[:, ::-1]
    signs = np.sign((expected * found.numpy()).sum(0))
    np.testing.assert_allclose(found, signs * expected * np.sqrt(3000 / 2999), atol=1e-3)
    layer.forget()
    assert torch.equal(layer.project(z), z)


def test_directions_in_which_nothing_varies_are_left_out():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(500, 2, generator=generator) @ torch.randn(2, 4, generator=generator) + 10
    z = torch.cat([z, torch.full((500, 1), 7.0)], 1)
    layer = Whitened(2, 5)
    layer.fit(z)
    found = layer.project(z).double()
    assert float(found.abs().max()) < 10
    variances = torch.linalg.eigvalsh(found.T @ found / 500)
    np.testing.assert_allclose(variances, [0, 0, 0, 1, 1], atol=1e-4)
    layer.fit(torch.full((9, 5), 3.0))
    assert not layer.project(z[:3]).any()


def test_whitening_holds_for_half_types():
    layer = Whitened(2, 3)
    z = torch.randn(50, 3)
    layer.fit(z)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.project(z)
    assert torch.equal(found, layer.project(z))
    assert layer.project(z.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("changes", [{}, {"max_updates": 0}, {"recluster": True}], ids=str)
def test_new_rows_are_whitened_as_the_old_ones_were(rows, changes):
    acai = ACAI(K, **{**SMALL, **changes}).fit(rows)
    z = acai.transform(rows)
    if changes:  # else it has moved since
        np.testing.assert_allclose(np.cov(z.T, bias=True), np.eye(4), atol=1e-3)
        np.testing.assert_allclose(z.mean(0), 0, atol=1e-3)
    np.testing.assert_array_equal(acai.transform(rows[5:9]), z[5:9])
    np.testing.assert_array_equal(acai.predict(rows), acai.labels_)
    distances = ((z[:, None] - acai.cluster_centers_) ** 2).sum(2)
    np.testing.assert_array_equal(distances.argmin(1), acai.labels_)
    plain = ACAI(K, **{**SMALL, **changes}, whiten=False).fit(rows).transform(rows)
    assert not np.allclose(np.cov(plain.T, bias=True), np.eye(4), atol=0.1)


def test_whitening_with_an_encoder_that_is_frozen_is_the_same(rows):
    settings = {**SMALL, "clustering": KMeansLoss(whiten=True), "recluster": True, "max_updates": 0}
    models = [
        DeepClustering(K, **settings, freeze_encoder=frozen).fit(rows) for frozen in (True, False)
    ]
    np.testing.assert_array_equal(*(model.cluster_centers_ for model in models))
    np.testing.assert_array_equal(*(model.labels_ for model in models))


# The estimator. Resuming, files, capture and scikit-learn's checks are in test_methods.py.


def test_the_papers_recipe():
    acai = ACAI(10, preset="paper", network="conv", image_shape=(28, 28), latent_dim=32)
    method, settings = acai._build(784), acai._settings(0, None, None)
    assert isinstance(method.network, ACAIAutoencoder)
    assert (method.network.width, method.network.code_shape) == (16, (2, 4, 4))
    tune, cluster = method.stages()
    assert (tune.length.n, cluster.length.n, settings.batch_size) == (262_144, 0, 64)
    for phase in tune.phases:
        optimizer = phase.optimizer(phase.parameters())
        assert (type(optimizer), optimizer.defaults["lr"]) == (torch.optim.Adam, 1e-4)
    start = method.recipe.start
    assert (start.init, start.n_init, start.criterion) == ("random", 1000, "inertia")
    colour = ACAI(10, network="conv", hidden="acai-64", image_shape=(32, 32, 3), latent_dim=256)
    assert colour._build(3072).network.width == 64
    assert ACAI(10)._settings(0, None, None).batch_size == 256


def test_it_is_a_setting_of_deep_clustering(rows):
    parts = {
        "clustering": KMeansLoss(update_interval=Epochs(1), whiten=True),
        "regularisers": [Reconstruction(), Interpolation(0.3, gamma=0.1, lr=1e-3)],
        "init": "random",
        "init_criterion": "inertia",
    }
    composed = DeepClustering(K, **SMALL, **parts).fit(rows)
    assert_same(ACAI(K, **SMALL, lam=0.3, gamma=0.1, critic_lr=1e-3).fit(rows), composed)


def test_as_published_it_ends_where_clusters_start(rows):
    acai = ACAI(K, **{**SMALL, "max_updates": None}).fit(rows)
    assert acai.n_iter_ == 10
    series = ["reconstruction", "interpolation", "critic", "critic on rows"]
    assert acai.history_.keys() == {*(f"tune/{name}" for name in series), "cluster/changed"}


def test_resumed_in_a_captured_or_plain_run_it_ends_the_same(rows, tmp_path):
    whole = ACAI(K, **SMALL).fit(rows)
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        ACAI(K, **SMALL, checkpoint=checkpoint, callbacks=[interrupt("cluster", 4)]).fit(rows)
    assert_same(ACAI(K, **SMALL, checkpoint=checkpoint).fit(rows, resume=True), whole)
    assert any(name.startswith("opponents.interpolation") for name in whole._method.state_dict())


def test_batches_of_one_row(rows):
    """The last batch of 65 rows: a row is its own partner."""
    acai = ACAI(K, **SMALL).fit(rows[:65])
    assert np.isfinite(acai.cluster_centers_).all()


# The regulariser in other methods.

METHODS = {
    "dec": (DEC, {}),
    "idec": (IDEC, {}),
    "dcn": (DCN, {}),
    "depict": (DEPICT, {"network": "mlp"}),
    "variational": (IDEC, {"network": "variational"}),
    "conv": (IDEC, {"network": "conv", "hidden": "dcec-usps", "image_shape": (8, 8)}),
    "acai": (IDEC, {"network": "conv", "hidden": "acai", "image_shape": (8, 8)}),
    "user": (IDEC, {"encoder": USERS, "decoder": nn.Linear(4, 64)}),
    "views": (IDEC, {"augment": "auto"}),
    "half": (IDEC, {"autocast": "bfloat16"}),
    "layered": (DEC, {"layer_updates": 2}),
}


@pytest.mark.parametrize("name", METHODS)
def test_any_method_takes_it(rows, name):
    kind, parameters = METHODS[name]
    settings = {**SMALL, **parameters}
    plain = kind(K, **settings).fit(rows)
    with_it = kind(K, **settings, regularisers=(Interpolation(),)).fit(rows)
    added = {"interpolation", "critic", "critic on rows"}
    expected = {f"{stage}/{series}" for stage in ("tune", "cluster") for series in added}
    assert with_it.history_.keys() - plain.history_.keys() == expected
    for key, value in with_it.network_.state_dict().items():
        if key.endswith("weight") and not key.startswith("log_var"):
            assert not torch.equal(value, plain.network_.state_dict()[key]), key
    np.testing.assert_array_equal(with_it.predict(rows), with_it.labels_)


@pytest.mark.parametrize(("kind", "moved"), [(DEC, False), (IDEC, True)])
def test_a_decoder_without_a_reconstruction_stays(rows, kind, moved):
    seen = []

    def record(run):
        if run.stage.name == "cluster":
            seen.append(run.method.network.decoder[0].weight.detach().clone())

    kind(K, **SMALL, regularisers=[Interpolation()], callbacks=[record]).fit(rows)
    assert torch.equal(seen[0], seen[-1]) != moved


@pytest.mark.parametrize(
    ("estimator", "width"),
    [
        (lambda **given: IDEC(K, **SMALL, **given), 1),
        (lambda **given: DCN(K, **SMALL, **given), 64),
        (lambda **given: VaDE(K, **SMALL, **given), 64),
    ],
    ids=["idec", "dcn", "vade"],
)
def test_it_weighs_as_much_beside_a_reconstruction_of_whole_rows(rows, estimator, width):
    part = Interpolation()
    run, x = run_of(estimator(regularisers=[part]), "cluster", width=64, dtype=torch.float32)
    method, batch = run.method, Batch(x[:9], slice(0, 9))
    forward = method.forward_of(run, batch)
    torch.manual_seed(2)
    between = method.decode(interpolation(forward.layers[-1], 0.5 * torch.rand(9)))
    error = critic_error(method.opponents["interpolation"](between))
    torch.manual_seed(2)
    torch.testing.assert_close(part.loss(method, run, batch, forward), width * error)


@pytest.mark.parametrize("joint", [True, False])
def test_the_rows_are_encoded_once_for_all_losses_of_a_step(rows, joint):
    depict = DEPICT(K, **SMALL, network="mlp", joint=joint, regularisers=[Interpolation()])
    run, x = run_of(depict, "tune", width=64, dtype=torch.float32)
    calls, layers = [], run.method.layers
    run.method.layers = lambda rows: calls.append(len(rows)) or layers(rows)
    losses, _ = losses_of(run.stage.phases[0], run, Batch(x[:9], slice(0, 9)))
    assert losses.keys() == {"reconstruction", "interpolation"}
    assert calls == [9]


def test_a_critic_sees_the_views_that_the_network_is_trained_on(rows):
    def nothing(x, generator):
        return torch.zeros_like(x)

    idec = IDEC(K, **SMALL, regularisers=[Interpolation(gamma=1.0)], augment=nothing)
    run, x = run_of(idec, "tune", width=64, dtype=torch.float32)
    network, critic = run.stage.phases
    batch = Batch(x[:9], slice(0, 9), view=torch.zeros(9, 64))
    guess = run.method.opponents["interpolation"](batch.view)
    losses, _ = losses_of(critic, run, batch)
    torch.testing.assert_close(losses["critic on rows"], guess.square().mean())
    plain, _ = losses_of(network, run, Batch(batch.view, batch.idx))
    assert torch.equal(losses_of(network, run, batch)[0]["interpolation"], plain["interpolation"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interpolation(gamma=1.5), r"gamma: got 1.5; it takes a number from 0 to 1"),
        (lambda: Interpolation(gamma="a"), "gamma: got 'a'"),
        (lambda: Interpolation(lr=0), "lr: got 0; it takes None or a number above 0"),
        (lambda: KMeansLoss(whiten=1), "whiten: got 1; it takes True or False"),
    ],
)
def test_bad_parameters_of_parts(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (ACAI(K, lam=-1.0), "weight of interpolation: got -1.0"),
        (ACAI(K, gamma=2), "gamma: got 2"),
        (ACAI(K, whiten=None), "whiten: got None"),
        (ACAI(K, n_init=0), "n_init: got 0; it takes an integer of at least 1"),
        (ACAI(K, batch_size=0), "batch_size: got 0"),
        (ACAI(K, network=None, tune_updates=0), "the network has no decoder"),
        (ACAI(K, encoder=nn.Linear(64, 4), tune_updates=0), "the network has no decoder"),
        (ACAI(K, network="conv", image_shape=(4, 16), latent_dim=3), "take a multiple of 2"),
        (ACAI(K, regularisers=[Interpolation()]), "the loss 'interpolation' twice"),
        (DEC(K, freeze_encoder=True, regularisers=[Interpolation()]), "the encoder is frozen"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_trained(rows, estimator, message):
    with pytest.raises(ValueError, match=message):
        estimator.fit(rows)
