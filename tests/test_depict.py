"""DEPICT: its equations and targets, the published networks, labels of some rows, and errors."""

from __future__ import annotations

import itertools
import math
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from deepclust import functional as F
from deepclust.cluster import (
    DEC,
    DEPICT,
    Balance,
    BalancedSoftMax,
    CollapseGuard,
    DeepClustering,
    Epochs,
    Reconstruction,
    SelfAugmentation,
    SoftReset,
    VaDE,
    _start,
)
from deepclust.cluster._data import Rows
from deepclust.cluster._trainer import Batch, Run, Settings
from deepclust.cluster.depict import matched, mean_square, with_labels
from deepclust.datasets import load_digits
from deepclust.kernels.target_loss import balanced
from deepclust.losses import size_prior, zipf
from deepclust.networks import MLPAutoencoder
from deepclust.nn import DEPICTHead
from tests import budget, reference
from tests.cases import DTYPES, SHAPES, Case, as_numpy, make_case
from tests.reference import depict as oracle
from tests.test_dec import interrupt, watch_steps
from tests.test_graphs import Tapes
from tests.test_methods import assert_same

# After so few updates it may be.
pytestmark = pytest.mark.filterwarnings("ignore:only . of . clusters are used")

N, K = 200, 4
SMALL = {
    "network": "mlp",
    "hidden": (16,),
    "tune_updates": 10,
    "max_updates": 8,
    "update_interval": 4,
    "tol": 0.0,
    "n_init": 1,
    "batch_size": 64,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def rows():
    return load_digits().X[:N]


@pytest.fixture(scope="module")
def some():
    """Labels of every fifth row, where it is of the first four classes."""
    y = load_digits().y[:N].copy()
    y[(y >= K) | (np.arange(N) % 5 > 0)] = -1
    return y


def fit(rows, y=None, **changes):
    return DEPICT(K, **{**SMALL, **changes}).fit(rows, y)


# The equations, in float64, on a network small enough for central differences.


def started(prior="uniform", hidden=(4,), **parameters):
    """A run of 40 rows of 5 columns in float64 whose clusters have started, and its rows."""
    torch.manual_seed(0)
    given = {"network": "mlp", "hidden": hidden, "n_init": 1, "warmup_updates": 0}
    method = DEPICT(3, **given, prior=prior, **parameters)._build(5)
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    run = Run(method, Rows(x, torch.device("cpu")), Settings(16))
    method.prepare(run._rows)
    method.double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.3 * torch.randn(parameter.shape).double()
        z = method.network.encode(x.double())
        method.recipe.clustering.start(method, run, z)
        method.layer.weight.mul_(3).add_(torch.randn(3, z.shape[1]))
        method.layer.bias += torch.tensor([1.0, -1.0, 0.0])
    return run, x.double()


def refreshed(run, x):
    with torch.no_grad():
        run.method.recipe.clustering.refresh(run.method, run, run.method.network.encode(x))


def weights_of(run):
    """The layers of the encoder and the decoder, and the head, as arrays that can be changed."""

    def arrays(linears):
        return [tuple(map(as_numpy, (layer.weight, layer.bias))) for layer in linears]

    network, layer = run.method.network, run.method.layer
    return arrays(network.encoder), arrays(network.decoder), arrays([layer])[0]


def prior_of(prior, f):
    """u by the clusters' ranks: the largest has the largest share."""
    u = np.empty(len(f))
    u[np.argsort(-f)] = 1 / len(f) if prior == "uniform" else 1 / np.arange(1, len(f) + 1)
    return u / u.sum()


def target_of(run, x, power, prior):
    """p (N, K) by eq. 7, or by its square, of the clean prediction."""
    encoder, _, (theta, bias) = weights_of(run)
    scores = oracle.pathway(as_numpy(x), encoder)[-1] @ theta.T + bias
    q = np.exp(reference.log_softmax(scores))
    u = prior_of(prior, q.sum(0))
    p = (q * np.sqrt(u / q.sum(0))) ** power
    return p / p.sum(1, keepdims=True)


def losses_of(run, x, idx, seed=5):
    torch.manual_seed(seed)
    run.method.train()
    return run.method.losses(run, Batch(x[idx], idx))[0]


def masks_of(run, x, idx, seed=5):
    """What dropout multiplies each layer's input by, from the same state of the generator."""
    torch.manual_seed(seed)
    clustering, widths = run.method.recipe.clustering, run.method.network.widths
    return [
        nn.functional.dropout(torch.ones(len(x[idx]), width, dtype=torch.float64), share).numpy()
        for width, share in zip(widths[:-1], clustering.shares(run.method.network), strict=True)
    ]


BATCHES = [slice(0, 16), torch.tensor([39, 3, 17, 3]), slice(32, 40)]


@pytest.mark.parametrize("prior", ["uniform", zipf()])
@pytest.mark.parametrize(("target", "power"), [("paper", 1.0), ("published-code", 2.0)])
def test_losses_are_eq_11_on_the_streamed_target(target, power, prior):
    run, x = started(prior, target=target, corruption=0.3)
    refreshed(run, x)
    p, (encoder, decoder, head) = target_of(run, x, power, prior), weights_of(run)
    assert np.ptp(p.mean(0)) > 0.05
    for idx in BATCHES:
        found = losses_of(run, x, idx)
        args = as_numpy(x[idx]), p[idx], encoder, decoder, head, masks_of(run, x, idx), encoder
        expected = oracle.network_losses(*args)
        assert list(found) == ["cross-entropy", "reconstruction"]
        np.testing.assert_allclose([v.item() for v in found.values()], expected, rtol=1e-11)
        assert run.method.weights == {"cross-entropy": 1.0, "reconstruction": 1.0}


@pytest.mark.parametrize("corruption", [0.0, 0.4, [0.2, 0.5, 0.3]])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "published-code", "prior": zipf()},
        {"hidden_weight": 0.1},
        {"hidden_weight": 0.0},
        {"clean_gradient": False},
        {"joint": False},
    ],
    ids=str,
)
def test_gradients_are_the_central_differences_of_eq_11(options, corruption):
    run, x = started(hidden=(4, 3), corruption=corruption, **{"hidden_weight": 1.0, **options})
    refreshed(run, x)
    idx, clustering = slice(8, 24), run.method.recipe.clustering
    found = losses_of(run, x, idx)
    parameters = list(run.method.parameters())
    gradients = torch.autograd.grad(sum(found.values()), parameters, allow_unused=True)
    named = dict(zip(dict(run.method.named_parameters()), gradients, strict=True))

    encoder, decoder, head = weights_of(run)
    # Arrays are changed in place: with a copy of it, the clean encoder stays as it is.
    clean = encoder if clustering.clean_gradient else weights_of(run)[0]
    power = 2.0 if options.get("target") == "published-code" else 1.0
    p = target_of(run, x, power, clustering.prior)[idx]
    masks = masks_of(run, x, idx)

    def total():
        both = oracle.network_losses(
            as_numpy(x[idx]), p, encoder, decoder, head, masks, clean, clustering.hidden_weight
        )
        return sum(both) if clustering.joint else both[0]

    arrays = {
        f"network.{half}.{number}.{name}": array
        for half, layers in (("encoder", encoder), ("decoder", decoder))
        for number, layer in enumerate(layers)
        for name, array in zip(("weight", "bias"), layer, strict=True)
    }
    arrays.update({"layer.weight": head[0], "layer.bias": head[1]})
    np.testing.assert_allclose(sum(found.values()).item(), total(), rtol=1e-11)
    assert arrays.keys() == named.keys()
    for name, array in arrays.items():
        expected = np.zeros_like(array)
        for where in np.ndindex(array.shape):
            kept = array[where]
            sides = []
            for step in (1e-5, -1e-5):
                array[where] = kept + step
                sides.append(total())
            array[where] = kept
            expected[where] = (sides[0] - sides[1]) / 2e-5
        if named[name] is None:
            assert not expected.any(), name
            assert name.startswith("network.decoder")
            assert not clustering.joint
        else:
            gradient = as_numpy(named[name])
            np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_the_clean_pathway_gets_a_gradient_unless_it_is_told_not_to():
    gradients = {}
    for clean_gradient in (True, False):
        run, x = started(clean_gradient=clean_gradient, corruption=0.0)
        refreshed(run, x)
        loss = losses_of(run, x, slice(0, 16))["reconstruction"]
        gradients[clean_gradient] = torch.autograd.grad(loss, run.method.network.encoder[0].weight)
    assert not torch.allclose(gradients[True][0], gradients[False][0])


def pretraining_loss(run, x):
    losses, _ = run.method.pretrain_losses(run, Batch(x, slice(0, len(x))))
    return losses["reconstruction"]


@pytest.mark.parametrize("hidden_weight", [1.0, 0.1, 0.0])
def test_pre_training_is_the_second_term_of_eq_11(hidden_weight):
    run, x = started(hidden_weight=hidden_weight, corruption=0.3)
    encoder, decoder, head = weights_of(run)
    torch.manual_seed(5)
    found = pretraining_loss(run, x[:16])
    args = as_numpy(x[:16]), np.ones((16, 3)) / 3, encoder, decoder, head
    masks = masks_of(run, x, slice(0, 16))
    expected = oracle.network_losses(*args, masks, encoder, hidden_weight)[1]
    np.testing.assert_allclose(found.item(), expected, rtol=1e-11)
    run, x = started(hidden_weight=hidden_weight, corruption=0.3, joint=False)
    found = pretraining_loss(run, x[:16])
    expected = (run.method.network(x[:16])[1] - x[:16]).square().mean()
    np.testing.assert_allclose(found.item(), expected.item(), rtol=1e-11)


# The exact target.

BALANCED = ["linear", "linear_no_bias", "gaussian"]
PRIORS = ["none", "zipf", "one is 0"]


def make_prior(name, k):
    if name == "none":
        return None
    prior = size_prior(zipf(), k).flip(0)
    if name == "one is 0" and k > 1:
        prior[k // 2] = 0
    return prior / prior.sum()


def balanced_case(name, kind, dtype):
    shape = {**SHAPES, "small": (40, 3, 4)}.get(name, (127, 11, 10))
    case = make_case(kind, shape, dtype)
    if name == "extreme":  # q is 0 or 1 nearly everywhere
        case = Case(kind, 30 * case.z, case.parameters)
    if name == "almost empty":
        bias = {"linear": "bias", "gaussian": "log_weights"}[kind]
        moved = case.parameters[bias].clone()
        moved[3] -= 25
        case = Case(kind, case.z, {**case.parameters, bias: moved})
    return case


CASES = [
    (name, kind, prior)
    for name in ("awkward", "ones", "one_cluster", "more_clusters_than_rows", "extreme")
    for kind in BALANCED
    for prior in PRIORS
] + [("almost empty", kind, prior) for kind in ("linear", "gaussian") for prior in PRIORS]


def log_target(case, bias):
    """log p (N, K) of q with a bias, and the scores of q, in float64."""
    scores = case.oracle_head.scores(case.oracle_z)
    return reference.log_softmax(scores + bias), scores


def biased(head, bias):
    name = "bias" if isinstance(head, reference.Linear) else "log_weights"
    own = getattr(head, name)
    return type(head)(**{**vars_of(head), name: bias if own is None else own + bias})


def vars_of(head):
    names = ("weight", "bias") if isinstance(head, reference.Linear) else head.parameters
    return {name: getattr(head, name) for name in names}


def span(values):
    return float(np.ptp(values, axis=-1).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kind", "prior"), CASES)
def test_the_exact_targets_derivative_is_the_same_along_each_row(name, kind, prior, dtype):
    case = balanced_case(name, kind, dtype)
    u = make_prior(prior, case.head.n_clusters)
    target = F.freeze_balanced_target(case.z, case.head, prior=u)
    bias, u = as_numpy(target.bias), None if u is None else as_numpy(u)
    log_p, scores = log_target(case, bias)
    allowed = 1e-6
    if dtype == torch.float32:
        # How far f may be from the truth, and the sum of two biases, which is rounded.
        eps, head = budget.roundoff(dtype), biased(case.oracle_head, bias)
        f = np.exp(log_p).sum(0)
        error = (budget.frequencies(case.oracle_z, head, eps) / f).max() + 2 * eps
        allowed = max(allowed, 8 * eps * np.abs(bias).max()) + 2 * error
        allowed += 4 * eps * np.abs(head.bias if "linear" in kind else head.log_weights).max()
    assert span(oracle.balance_derivative(scores, log_p, u)) <= allowed
    p = target.probabilities().double().numpy()
    np.testing.assert_allclose(p, np.exp(log_p), rtol=0, atol=1e-12 if allowed == 1e-6 else 1e-2)

    least = oracle.balance_objective(scores, log_p, u)
    prior = None if u is None else torch.from_numpy(u)
    closed = F.freeze_target(case.z, case.head, power=1.0, prior=prior)
    rng = np.random.default_rng(0)
    others = [as_numpy(closed.bias), 0.0]
    others += [bias + 10.0**-e * rng.normal(size=len(bias)) for e in (0, 1, 2, 3)]
    for other in others:
        assert oracle.balance_objective(scores, log_target(case, other)[0], u) >= least - 1e-12
    # As the objective of q itself is KL(f || u), the shares come nearer to the prior.
    before, after = (np.exp(log_target(case, b)[0]).mean(0) for b in (0.0, bias))
    log_u = oracle.log_shares(u, len(bias))
    distances = [(f * (np.log(np.maximum(f, 1e-300)) - log_u)).sum() for f in (before, after)]
    assert distances[1] <= distances[0] + 1e-12


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("power", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("kind", [*BALANCED, "student_t"])
def test_balance_objective_is_its_formula(kind, power, prior):
    case = make_case(kind, dtype=torch.float64)
    u = make_prior(prior, 10)
    target = F.freeze_target(case.z, case.head, power=power, prior=u)
    scores = case.oracle_head.scores(case.oracle_z)
    u_array = None if u is None else np.maximum(as_numpy(u), oracle.SMALLEST)
    p = reference.frozen_target(
        scores, np.exp(reference.log_softmax(scores)).sum(0), power=power, prior=u_array
    )
    with np.errstate(divide="ignore"):
        expected = oracle.balance_objective(scores, np.log(p), u_array)
    for backend in ("auto", "eager"):
        found = F.balance_objective(target, u, backend=backend)
        assert found.dtype == torch.float64
        assert found.shape == ()
        np.testing.assert_allclose(found.item(), expected, rtol=1e-11)
    # In float32 the divergence of a row has the digits of its scores.
    single = case.map(lambda value: value.float())
    target = F.freeze_target(single.z, single.head, power=power, prior=u)
    np.testing.assert_allclose(F.balance_objective(target, u).item(), expected, rtol=1e-5)


def test_the_exact_target_by_hand():
    """4 rows of the first cluster, 2 of the second, 4 of either: f_0 is 0.6 in q, 4/7 in p.

    With p_0 the share of those between in the first, f_0 = (4 + 4 p_0)/10 and p_0/p_1 = f_1/f_0:
    (4 + 4 p_0) p_0 = (6 - 4 p_0) (1 - p_0), so that p_0 = 3/7.
    """
    z = torch.tensor([40.0] * 4 + [-40.0] * 2 + [0.0] * 4, dtype=torch.float64).unsqueeze(1)
    head = F.Linear(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    target = F.freeze_balanced_target(z, head, tol=1e-12)
    p = target.probabilities()
    torch.testing.assert_close(p[:6], torch.eye(2).double()[[0] * 4 + [1] * 2])
    torch.testing.assert_close(p[6:, 0], torch.full((4,), 3 / 7).double())
    torch.testing.assert_close(p.mean(0), torch.tensor([4 / 7, 3 / 7]).double())
    closed = F.freeze_target(z, head, power=1.0)
    f, mean = torch.tensor([0.6, 0.4]).double(), p.mean(0)
    expected = 0.4 * (p[6] * (2 * p[6]).log()).sum() + (mean * (2 * mean).log()).sum()
    torch.testing.assert_close(F.balance_objective(target), expected)
    q = F.freeze_target(z, head, power=1.0, frequencies=torch.ones(2))
    torch.testing.assert_close(F.balance_objective(q), (f * (2 * f).log()).sum())
    assert F.balance_objective(target) < F.balance_objective(closed)


@pytest.mark.parametrize("prior", ["none", "zipf"])
def test_a_prediction_that_follows_its_exact_targets_gets_the_priors_sizes(prior):
    case = make_case("linear", dtype=torch.float64)
    u, head = make_prior(prior, 10), case.head
    expected = torch.full((10,), 0.1).double() if u is None else u
    far = []
    for _ in range(40):
        target = F.freeze_balanced_target(case.z, head, prior=u)
        far.append(float((target.probabilities().mean(0) - expected).abs().max()))
        head = head.biased(target.bias)
    assert far[0] > 0.05
    assert far[-1] < 1e-4


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", ["awkward", "extreme", "almost empty"])
@pytest.mark.parametrize("kind", ["linear", "gaussian"])
def test_each_pass_at_least_halves_the_error(name, kind, prior, monkeypatch):
    """In the largest difference between two clusters: b's derivative averages its error, over 2.

    d/db [b + log u - log f(b)] / 2 is D^-1 M / 2, M_jk the mean of p_ij p_ik and D_j = f_j, whose
    rows have no negative entry and add up to 1/2.
    """
    case, biases = balanced_case(name, kind, torch.float64), []
    frequencies = balanced.frequencies

    def recorded(z, head, **options):
        parameters = dict(zip(head.names, head.params, strict=True))
        term = "bias" if kind == "linear" else "log_weights"
        biases.append(as_numpy(parameters[term] - case.parameters[term]))
        return frequencies(z, head, **options)

    monkeypatch.setattr(balanced, "frequencies", recorded)
    u, tol = make_prior(prior, 10), 1e-9
    last = as_numpy(F.freeze_balanced_target(case.z, case.head, prior=u, tol=tol).bias)
    errors = np.array([span(bias - last) for bias in biases])
    assert errors[0] > 0.03
    # The last is within tol of the truth.
    assert (errors[1:] <= errors[:-1] / 2 + 2 * tol).all()
    assert len(biases) <= 3 + math.log2(errors[0] / tol)


def test_maps_of_the_passes_are_contractions():
    """Two biases are at least halved in distance, however far apart, by the oracle's numbers."""
    rng = np.random.default_rng(0)
    for case in (balanced_case(name, "linear", torch.float64) for name in ("awkward", "extreme")):
        scores, log_u = case.oracle_head.scores(case.oracle_z), np.log(rng.dirichlet(np.ones(10)))

        def after(bias, scores=scores, log_u=log_u):
            f = np.exp(reference.log_softmax(scores + bias)).mean(0)
            return (bias + log_u - np.log(f)) / 2

        for scale in (0.01, 1.0, 20.0):
            a, b = scale * rng.normal(size=(2, 10))
            assert span(after(a) - after(b)) <= span(a - b) / 2 + 1e-12


@pytest.mark.parametrize("kind", BALANCED)
def test_exact_targets_of_no_rows(kind):
    case = make_case(kind, (0, 3, 4))
    target = F.freeze_balanced_target(case.z, case.head)
    assert target.probabilities().shape == (0, 4)
    assert F.balance_objective(target) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_passes_end_where_half_types_can_tell_no_more(dtype, monkeypatch):
    calls, frequencies = [], balanced.frequencies
    counted = lambda *args, **options: calls.append(1) or frequencies(*args, **options)  # noqa: E731
    monkeypatch.setattr(balanced, "frequencies", counted)
    case = make_case("linear", dtype=dtype)
    target = F.freeze_balanced_target(case.z, case.head)
    assert len(calls) < 20
    wide = case.map(lambda value: value.float())
    exact = F.freeze_balanced_target(wide.z, wide.head)
    eps = torch.finfo(dtype).eps
    assert span(as_numpy(target.bias - exact.bias)) <= 16 * eps * float(exact.bias.abs().max())


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_exact_targets_of_an_array_and_by_name_of_a_backend(backend):
    case = make_case("linear")
    expected = F.freeze_balanced_target(case.z, case.head, backend="eager")
    for z in (case.z, case.z.numpy()):
        target = F.freeze_balanced_target(z, case.head, backend=backend)
        torch.testing.assert_close(target.bias, expected.bias, rtol=0, atol=1e-5)


def test_a_snapshot_of_the_exact_target_gives_its_loss():
    case = make_case("linear", dtype=torch.float64)
    target = F.freeze_balanced_target(case.z, case.head)
    idx = torch.tensor([5, 99, 3])
    found = F.target_loss(case.z[idx], case.head, target[idx], kind="ce")
    p, q = target.probabilities()[idx], F.assign(case.z[idx], case.head)
    torch.testing.assert_close(found, -(p * q.log()).sum(1).mean())


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda c: F.freeze_balanced_target(c.z, F.StudentT(c.z[:3])), TypeError, "head: got Stud"),
        (lambda c: F.freeze_balanced_target(c.z, c.z[:3]), TypeError, "head: got Tensor; it takes"),
        (lambda c: F.freeze_balanced_target(c.z[:, 1:], c.head), ValueError, "z: got"),
        (lambda c: F.freeze_balanced_target(c.z / 0, c.head), ValueError, "z: row 0 has NaN"),
        (
            lambda c: F.freeze_balanced_target(c.z, c.head, prior=torch.ones(3)),
            ValueError,
            "prior: got",
        ),
        (
            lambda c: F.freeze_balanced_target(c.z, c.head, prior=torch.ones(10)),
            ValueError,
            "prior: got a sum of 10",
        ),
        (
            lambda c: F.freeze_balanced_target(c.z, c.head, backend="fpga"),
            ValueError,
            "backend: got 'fpga'",
        ),
        (
            lambda c: F.balance_objective(F.freeze_target(c.z, c.head), torch.ones(3)),
            ValueError,
            "prior: got",
        ),
    ],
)
def test_bad_arguments_of_exact_targets(call, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        call(make_case("linear"))


def test_mean_square_of_two_targets_by_blocks(monkeypatch):
    case, other = make_case("linear"), make_case("linear", seed=3)
    targets = [F.freeze_target(c.z, c.head, power=1.0) for c in (case, other)]
    expected = (targets[0].probabilities() - targets[1].probabilities()).double().square().mean()
    assert mean_square(*targets) == pytest.approx(float(expected), rel=1e-6)
    assert mean_square(targets[0], targets[0]) == 0


# The layer.


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_the_layer_is_a_soft_max(backend):
    layer = DEPICTHead(3, 2, backend=backend)
    assert [(name, tuple(p.shape)) for name, p in layer.named_parameters()] == [
        ("weight", (3, 2)),
        ("bias", (3,)),
    ]
    assert not any(p.any() for p in layer.parameters())
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    z = torch.randn(7, 2, generator=rng)
    q = layer(z)
    torch.testing.assert_close(q, (z @ layer.weight.T + layer.bias).softmax(1))
    q[:, 0].sum().backward()
    assert layer.weight.grad.any()
    assert layer.bias.grad.any()
    assert isinstance(layer.head(), F.Linear)
    assert repr(layer) == "DEPICTHead(n_clusters=3, n_features=2)"


@pytest.mark.parametrize(("sizes", "name"), [((0, 2), "n_clusters"), ((3, 0), "n_features")])
def test_bad_sizes_of_the_layer(sizes, name):
    with pytest.raises(ValueError, match=f"^{name}: got 0"):
        DEPICTHead(*sizes)


# The published networks.

# Images, weights of the encoder, and (stride, padding) of its convolutions.
PUBLISHED = {
    "depict-mnist": ((28, 28), [(50, 1, 4, 4), (50, 50, 5, 5), (10, 2450)], [(2, 0), (2, 2)]),
    "depict-usps": ((16, 16), [(50, 1, 4, 4), (50, 50, 5, 5), (10, 800)], [(2, 0), (2, 2)]),
    "depict-cmu-pie": ((32, 32), [(50, 1, 4, 4), (50, 50, 5, 5), (10, 4050)], [(2, 2), (2, 2)]),
    "depict-frgc": ((32, 32, 3), [(50, 3, 4, 4), (50, 50, 5, 5), (10, 4050)], [(2, 2), (2, 2)]),
    "depict-ytf": ((55, 55, 3), [(50, 3, 5, 5), (50, 50, 4, 4), (10, 8450)], [(2, 2), (2, 0)]),
}


def built(image_shape, **parameters):
    return DEPICT(10, image_shape=image_shape, **parameters)._build(math.prod(image_shape))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name):
    image_shape, shapes, steps = PUBLISHED[name]
    method = built(image_shape, hidden=name, preset="published-code")
    network = method.network
    assert [tuple(layer.weight.shape) for layer in network.encoder] == shapes
    for layer, (stride, padding) in zip(network.encoder[:-1], steps, strict=True):
        assert (layer.stride, layer.padding) == ((stride, stride), (padding, padding))
    # The decoder mirrors it: (in, out, ...) of a transposed convolution are (out, in, ...) here.
    assert [tuple(layer.weight.shape) for layer in network.decoder] == [
        shapes[2][::-1],
        shapes[1],
        shapes[0],
    ]
    assert method.recipe.clustering.shares(network) == [0.1, 0.1, 0.0]
    assert network.code_width == 10

    h = x = torch.rand(2, math.prod(image_shape)) * 2 - 1
    h = x.view(2, *image_shape, -1).flatten(3).permute(0, 3, 1, 2)
    with torch.no_grad():
        *hidden, code = network.layers(x)
        for conv, found in zip(network.encoder[:-1], hidden, strict=True):
            h = conv(h)
            h = torch.where(h > 0, h, 0.01 * h)
            torch.testing.assert_close(found, h, rtol=1e-5, atol=1e-5)
        expected = torch.tanh(network.encoder[-1](h.permute(0, 2, 3, 1).flatten(1)))
        torch.testing.assert_close(code, expected, rtol=1e-5, atol=1e-5)
        output = network.decode(code)
        assert output.shape == x.shape
        assert output.abs().max() <= 1
        before = network.decode_layer(1, network.decode_layer(2, code))
        rows = network.decoder[-1](before).permute(0, 2, 3, 1).flatten(1)
        torch.testing.assert_close(output, torch.tanh(rows))


@pytest.mark.parametrize("network", ["conv", "mlp"])
def test_weights_begin_within_glorots_bounds(network):
    hidden = {"hidden": (50, 20)} if network == "mlp" else {}
    layers = [
        module
        for module in built((28, 28), network=network, **hidden).network.modules()
        if hasattr(module, "weight")
    ]
    assert len(layers) == 6
    for layer in layers:
        weight = layer.weight
        fans = weight.shape[0] + weight.shape[1]
        bound = (6 / (fans * weight[0, 0].numel())) ** 0.5
        largest = float(weight.detach().abs().max())
        assert 0.97 * bound < largest <= bound
        assert abs(float(weight.detach().std()) / (bound / 3**0.5) - 1) < 0.05
        assert not layer.bias.any()


@pytest.mark.parametrize("image_shape", [(8, 8), (4, 4), (9, 12, 3), (40, 31)])
def test_images_of_other_sizes_get_a_network(image_shape):
    network = built(image_shape).network
    x = torch.zeros(2, math.prod(image_shape))
    assert [layer.weight.shape[0] for layer in network.encoder] == [50, 50, 10]
    assert network(x)[1].shape == x.shape


def test_published_lengths_and_rates():
    for preset, warmup, hidden_weight in (("paper", 0, 1.0), ("published-code", 10, 0.1)):
        method = built((28, 28), preset=preset, batch_size=100)
        clustering, stages = method.recipe.clustering, {s.name: s for s in method.stages()}
        assert list(stages) == ["tune", "cluster"]
        assert stages["tune"].length == Epochs(4_000)
        assert stages["cluster"].length == Epochs(1_000)
        assert stages["cluster"].every == Epochs(1)
        assert clustering.target == preset
        assert (clustering.hidden_weight, clustering.tol) == (hidden_weight, 1e-7)
        assert getattr(clustering.warmup_updates, "n", clustering.warmup_updates) == warmup
        for stage in stages.values():
            optimizer = stage.phases[0].optimizer(stage.phases[0].parameters())
            assert isinstance(optimizer, torch.optim.Adam)
            assert optimizer.defaults["lr"] == 1e-4


def test_the_codes_width_is_the_number_of_clusters():
    assert DEPICT(7, **SMALL)._build(64).network.widths == (64, 16, 7)
    assert DEPICT(7, **SMALL, latent_dim=3)._build(64).network.widths == (64, 16, 3)


# The estimator.


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (-0.01, 5.0), (3.0, 100.0)])
def test_data_are_scaled_to_the_range_of_the_output(rows, factor, shift):
    given = (factor * rows + shift).astype(np.float32)
    seen = []

    def look(run):
        x = run.method.preprocess(run.take(slice(0, N)))
        seen.append((float(x.min()), float(x.max()), x.numpy().copy()))

    estimator = fit(given, callbacks=[look], max_updates=0, tune_updates=0)
    least, most, x = seen[0]
    np.testing.assert_allclose((least, most), (-1, 1), atol=1e-6)
    np.testing.assert_allclose(x, np.sign(factor) * (rows / 8 - 1), atol=1e-4)
    assert estimator.predict(given).shape == (N,)


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_data_of_one_value_have_no_range(value):
    x = np.full((20, 8), value, np.float32)
    with pytest.raises(ValueError, match=r"n_clusters: got 4|X: got no value but"):
        fit(x)
    with pytest.raises(ValueError, match=f"X: got no value but {value:g}; scale='range' takes"):
        DEPICT(1, **SMALL).fit(x)


def test_the_warm_up_is_on_the_labels_of_k_means(rows, monkeypatch):
    begun, seen = [], {}
    start = _start.Start.__call__

    def recorded(self, run, z):
        begun.append((*start(self, run, z), z.clone()))
        return begun[-1][:2]

    def look(run):
        if run.stage.name == "cluster":
            method, head = run.method, run.method.head()
            parameters = [parameter.detach().clone() for parameter in head.params]
            seen[run.update] = run.state["snapshot"].probabilities(), parameters
            assert ("moved" in run.state) == (run.update >= 5), method

    monkeypatch.setattr(_start.Start, "__call__", recorded)
    fit(rows, callbacks=[look], warmup_updates=5, max_updates=12, tol=1e9)
    [(centroids, labels, z)] = begun
    theta, bias = seen[0][1]
    torch.testing.assert_close(theta, nn.functional.normalize(centroids))
    assert not bias.any()
    one_hot = nn.functional.one_hot(labels, K).float()
    torch.testing.assert_close(((z[:, None] - centroids) ** 2).sum(2).argmin(1), labels)
    assert torch.equal(seen[0][0], one_hot)
    assert torch.equal(seen[4][0], one_hot)
    assert not torch.equal(seen[4][1][0], theta)
    # The refresh at update 8 is the first after it; then targets "settle".
    assert list(seen) == [0, 4, 8]
    assert seen[8][0].min() > 0


@pytest.mark.parametrize("prior", ["uniform", zipf()])
@pytest.mark.parametrize("target", ["paper", "published-code", "exact"])
def test_clean_quantities_alone_make_targets(rows, target, prior):
    """A refresh in the midst of training against a pass by hand in evaluation mode."""
    seen, snapshots = [], []

    def look(run):
        if run.stage.name != "cluster":
            return
        network, (theta, bias) = run.method.network, run.method.head().params
        assert not network.training
        with torch.no_grad():
            z = network.encode(run.method.preprocess(run.take(slice(0, N))))
            q = (z @ theta.T + bias).softmax(1).double()
        u = torch.from_numpy(prior_of(prior, q.sum(0).numpy()))
        snapshots.append(run.state["snapshot"].probabilities())
        f = run.state["frequencies"]
        seen.append((run.update, q, u, f.clone(), snapshots[-1].double(), dict(run.state)))

    estimator = fit(
        rows,
        callbacks=[look],
        target=target,
        prior=prior,
        corruption=0.5,
        warmup_updates=0,
        max_updates=12,
        cluster_lr=1e-2,
    )
    assert [update for update, *_ in seen] == [0, 4, 8, 12]
    before = None
    for update, q, u, f, p, state in seen:
        torch.testing.assert_close(f.double(), q.sum(0), rtol=1e-4, atol=1e-4)
        if target == "exact":
            # log p/q + log f/u is the same along rows.
            derivative = (p / q).log() + (p.mean(0) / u).log()
            assert span(derivative.numpy()) < 1e-4
        else:
            power = 1 if target == "paper" else 2
            expected = (q * (u / q.sum(0)).sqrt()) ** power
            expected /= expected.sum(1, keepdim=True)
            torch.testing.assert_close(p, expected, rtol=0, atol=1e-5)
        if update:
            moved = float((p - before).square().mean())
            assert state["moved"] == pytest.approx(moved, rel=1e-3)
        before = p
    logged = dict(estimator.history_["cluster/change of target"])
    assert logged == {update: state["moved"] for update, *_, state in seen}
    assert ("cluster/objective" in estimator.history_) == (target == "exact")
    if target == "exact":
        exact = dict(estimator.history_["cluster/objective"])
        closed = dict(estimator.history_["cluster/objective of eq. 7"])
        assert all(exact[update] <= closed[update] + 1e-6 for update in (0, 4, 8, 12))


def test_it_stops_when_targets_settle(rows):
    settled = fit(rows, tol=10.0, max_updates=100, warmup_updates=0)
    assert settled.stop_reasons_["cluster"].startswith("targets moved by ")
    assert settled.stop_reasons_["cluster"].endswith(", less than tol=10")
    assert settled.n_iter_ == 10 + 4
    assert fit(rows, tol=0.0).stop_reasons_["cluster"] == "length of 8 updates"
    warm = fit(rows, tol=10.0, max_updates=100, warmup_updates=9)
    assert warm.n_iter_ == 10 + 12


@pytest.mark.parametrize("target", ["paper", "exact"])
def test_depict_is_a_setting_of_deep_clustering(rows, target):
    torch.manual_seed(3)
    network = MLPAutoencoder((64, 16, K), activation="leaky_relu", code="tanh", output="tanh")
    options = {
        "target": target,
        "prior": zipf(0.5),
        "corruption": 0.2,
        "hidden_weight": 0.1,
        "warmup_updates": 3,
        "update_interval": 4,
        "tol": 0.0,
    }
    shared = {**SMALL, "network": network}
    for name in ("update_interval", "tol", "hidden"):
        del shared[name]
    named = DEPICT(K, **shared, **options).fit(rows)
    parts = {"clustering": BalancedSoftMax(**options), "scale": "range"}
    assert_same(DeepClustering(K, **shared, **parts).fit(rows), named)
    other = DeepClustering(K, **shared, clustering=BalancedSoftMax(**options), scale="dec")
    assert not np.array_equal(other.fit(rows).cluster_centers_, named.cluster_centers_)


def test_networks_of_the_users(rows):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, 3), nn.Tanh())
    with_decoder = fit(rows, encoder=encoder, decoder=nn.Linear(3, 64))
    assert {"cluster/reconstruction", "tune/reconstruction"} < with_decoder.history_.keys()
    # Their weights are not drawn anew.
    start = fit(rows, encoder=encoder, decoder=nn.Linear(3, 64), max_updates=0, tune_updates=0)
    assert torch.equal(start.network_.encoder[0].weight, encoder[0].weight)
    alone = fit(rows, encoder=encoder, tune_updates=None)
    assert {key.split("/")[0] for key in alone.history_} == {"cluster"}
    assert "cluster/reconstruction" not in alone.history_
    for estimator in (with_decoder, start, alone):
        np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)
    pretrained = fit(rows, pretrained=fit(rows).network_, max_updates=0)
    assert "tune/reconstruction" not in pretrained.history_


def test_given_embeddings(rows):
    estimator = fit(rows, network=None, tune_updates=None, warmup_updates=0, corruption=0.3)
    assert {key.split("/")[0] for key in estimator.history_} == {"cluster"}
    np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)
    np.testing.assert_allclose(estimator.transform(rows), rows / 8 - 1, atol=1e-6)


def test_a_frozen_encoder_stays_and_its_codes_are_clean(rows):
    found = {}
    for updates in (0, 8):
        estimator = fit(rows, freeze_encoder=True, max_updates=updates, corruption=0.5)
        found[updates] = estimator._method.state_dict()
    for name, value in found[0].items():
        assert torch.equal(value, found[8][name]) == (not name.startswith("layer")), name
    assert "cluster/reconstruction" not in estimator.history_
    # Without noise, all that dropout could change is the autoencoder before.
    network = fit(rows, max_updates=0).network_
    clean, noisy = (
        fit(rows, freeze_encoder=True, pretrained=network, corruption=share) for share in (0.0, 0.5)
    )
    assert torch.equal(clean._method.layer.weight, noisy._method.layer.weight)


def test_images(rows, tmp_path):
    images = rows.reshape(N, 8, 8)
    estimator = fit(images, network="conv", hidden=None)
    flat = fit(rows, network="conv", hidden=None, image_shape=(8, 8))
    assert_same(estimator, flat)
    for x in (images, rows):
        np.testing.assert_array_equal(estimator.predict(x), estimator.labels_)
    estimator.save(tmp_path / "model")
    loaded = DEPICT.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(images), estimator.predict_proba(images))


def test_prediction_is_the_clean_soft_max(rows):
    estimator = fit(rows, corruption=0.5)
    q = estimator.predict_proba(rows)
    np.testing.assert_array_equal(q.argmax(1), estimator.labels_)
    np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)
    theta, bias = (p.detach().numpy() for p in estimator._method.layer.parameters())
    z = estimator.transform(rows)
    np.testing.assert_allclose(q, np.exp(reference.log_softmax(z @ theta.T + bias)), atol=1e-5)
    for j in np.unique(estimator.labels_):
        mean = z[estimator.labels_ == j].mean(0)
        np.testing.assert_allclose(estimator.cluster_centers_[j], mean, atol=1e-5)


@pytest.mark.parametrize("warmup", [0, 6])
def test_soft_resets_start_the_layer_again(rows, warmup):
    estimator = fit(
        rows,
        interventions=[SoftReset(every=4, until=1.0)],
        max_updates=12,
        warmup_updates=warmup,
    )
    plain = fit(rows, max_updates=12, warmup_updates=warmup)
    assert not np.array_equal(estimator.cluster_centers_, plain.cluster_centers_)
    np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)
    layers = {}

    def look(run):
        if run.stage.name == "cluster":
            layers[run.update] = run.method.layer.bias.detach().clone()

    fit(rows, interventions=[SoftReset(every=4)], callbacks=[look], warmup_updates=warmup)
    assert not layers[4].any()


def test_other_losses_beside_it(rows):
    estimator = fit(
        rows, regularisers=[Balance(prior=zipf()), SelfAugmentation(weight=0.5)], recluster=True
    )
    assert {"cluster/balance", "cluster/self-augmentation"} < estimator.history_.keys()
    np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)


def test_views_are_held_to_the_targets_of_their_rows():
    run, x = started(regularisers=[SelfAugmentation(transform=lambda x, generator: -x)])
    refreshed(run, x)
    idx = torch.tensor([3, 30])
    torch.manual_seed(5)
    run.method.train()
    found = run.method.losses(run, Batch(x[idx], idx, view=-x[idx]))[0]["self-augmentation"]
    torch.manual_seed(5)
    clustering = run.method.recipe.clustering
    # Dropout has drawn for the rows before.
    run.method.denoise(x[idx], clustering.shares(run.method.network))
    expected = run.method.losses(run, Batch(-x[idx], idx, view=x[idx]))[0]
    torch.testing.assert_close(found, expected["cross-entropy"])


# Labels of some rows.


@pytest.mark.parametrize("seed", range(6))
def test_classes_are_matched_as_by_trying_all_permutations(seed):
    rng = np.random.default_rng(seed)
    labels, y = rng.integers(0, 4, 30), rng.integers(-1, 4, 30)
    order = matched(torch.from_numpy(labels), torch.from_numpy(y), 4).numpy()
    assert sorted(order) == [0, 1, 2, 3]

    def agree(order):
        return sum(labels[i] == order[y[i]] for i in range(30) if y[i] >= 0)

    assert agree(order) == max(map(agree, itertools.permutations(range(4))))


def test_classes_without_rows_are_matched_with_what_is_left():
    labels, y = torch.tensor([2, 2, 0, 1]), torch.tensor([1, -1, -1, -1])
    order = matched(labels, y, 3)
    assert order[1] == 2
    assert sorted(order.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_known_labels_take_the_place_of_targets(dtype):
    p = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]], dtype=dtype)
    found = with_labels(p, torch.tensor([0, -1, 1]))
    expected = torch.tensor([[1.0, 0.0], [0.6, 0.4], [0.0, 1.0]], dtype=dtype)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_the_loss_holds_rows_to_their_labels():
    run, x = started(corruption=0.3)
    refreshed(run, x)
    p, (encoder, decoder, head) = target_of(run, x, 1.0, "uniform"), weights_of(run)
    idx, y = torch.tensor([3, 9, 27]), torch.tensor([2, -1, 0])
    torch.manual_seed(5)
    run.method.train()
    found = run.method.losses(run, Batch(x[idx], idx, y=y))[0]
    p = p[idx]
    p[0], p[2] = [0, 0, 1], [1, 0, 0]
    args = as_numpy(x[idx]), p, encoder, decoder, head, masks_of(run, x, idx), encoder
    expected = oracle.network_losses(*args)
    np.testing.assert_allclose([v.item() for v in found.values()], expected, rtol=1e-11)


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_steps_with_labels_wait_for_no_result(rows, some, autocast, monkeypatch):
    calls = watch_steps(monkeypatch)
    fit(rows, some, backend="eager", autocast=autocast, warmup_updates=4)
    assert len(calls) == 10 + 8


def test_a_captured_fit_with_labels_is_the_fit(rows, some, monkeypatch):
    plain = fit(rows, some, backend="eager", warmup_updates=4)
    tapes = Tapes()
    monkeypatch.setattr(DEPICT, "_capture", lambda self, device: tapes)
    assert_same(fit(rows, some, backend="eager", warmup_updates=4), plain)
    # Batches of 64 rows and of 8, in the pre-training, in the warm-up and after it.
    assert len(tapes.tapes) == 3 * 2


def test_rows_with_labels_end_in_their_class(rows, some):
    known = some >= 0
    assert known.sum() > 20
    options = {"max_updates": 100, "cluster_lr": 1e-2, "corruption": 0.0, "warmup_updates": 0}
    labels = fit(rows, some, **options).labels_
    np.testing.assert_array_equal(labels[known], some[known])
    without = fit(rows, **options).labels_
    for order in itertools.permutations(range(K)):
        assert (np.array(order)[without[known]] == some[known]).mean() < 0.9


def test_labels_of_all_rows_are_used_with_a_warning(rows, some):
    with pytest.warns(UserWarning, match=rf"y: all {len(rows)} rows have a label"):
        fit(rows, np.maximum(some, 0))


def test_clusters_start_as_their_classes(rows, some):
    found = []

    def look(run):
        if run.stage.name == "cluster":
            found.append((run.state["snapshot"].probabilities().argmax(1).numpy(), run))

    plain = fit(rows, callbacks=[look], max_updates=0, warmup_updates=5)
    labelled = fit(rows, some, callbacks=[look], max_updates=0, warmup_updates=5)
    (before, _), (after, _) = found[0], found[-1]
    known = some >= 0
    order = matched(torch.from_numpy(before), torch.from_numpy(some), K).numpy()
    np.testing.assert_array_equal(order[after], before)
    assert (after == some)[known].sum() == max(
        (np.array(p)[before] == some)[known].sum() for p in itertools.permutations(range(K))
    )
    weights = [e._method.layer.weight for e in (plain, labelled)]
    assert torch.equal(weights[0][torch.from_numpy(order)], weights[1])


def test_centroids_and_labels_get_the_names_of_the_classes_together():
    run, x = started(init=np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32))
    clustering, names = run.method.recipe.clustering, torch.tensor([1, 2, 0])
    with torch.no_grad():
        z = run.method.network.encode(x)
        clustering.start(run.method, run, z)
        before, theta = run.state["labels"], run.method.layer.weight.clone()
        run.settings.y = torch.where(torch.arange(40) % 3 > 0, names[before], -1)
        assert len(before.unique()) == 3
        clustering.start(run.method, run, z)
    assert torch.equal(run.state["labels"], names[before])
    assert torch.equal(run.state["snapshot"].probabilities().argmax(1), names[before])
    assert torch.equal(run.method.layer.weight[names], theta)


def test_no_known_label_is_no_y(rows):
    plain = fit(rows)
    assert_same(fit(rows, np.full(N, -1)), plain)
    labels = load_digits().y[:N] % K
    assert not np.array_equal(fit(rows, labels).cluster_centers_, plain.cluster_centers_)


@pytest.mark.parametrize("kind", [DEC, VaDE, DeepClustering])
def test_other_methods_ignore_y(rows, kind):
    settings = {name: SMALL[name] for name in ("hidden", "tune_updates", "max_updates", "n_init")}
    settings.update(batch_size=64, random_state=0, latent_dim=4)
    plain = kind(K, **settings).fit(rows)
    for y in (load_digits().y[:N], "nothing of the kind"):
        assert_same(kind(K, **settings).fit(rows, y), plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:-1], r"y: got int64 of shape \(199,\); it takes 200 integers, -1 for a row"),
        (lambda y: y[:, None], r"y: got int64 of shape \(200, 1\); it takes 200 integers"),
        (lambda y: y.astype(float), r"y: got float64 of shape \(200,\); it takes 200 integers"),
        (lambda y: y > 0, r"y: got bool of shape \(200,\); it takes 200 integers"),
        (lambda y: y.astype(str), r"y: got <U\d+ of shape \(200,\)"),
        (lambda y: [None] * N, r"y: got object of shape \(200,\)"),
        (lambda y: 3, r"y: got int64 of shape \(\)"),
        (lambda y: np.where(np.arange(N) == 7, 4, y), "y: row 7 has the label 4; it takes labels"),
        (lambda y: np.where(np.arange(N) == 7, -2, y), "y: row 7 has the label -2; .* below n_clu"),
    ],
)
def test_bad_labels_are_refused_before_anything_is_trained(rows, some, change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        fit(rows, change(some), callbacks=[trained])


def trained(run):
    raise AssertionError(f"{run.stage.name} was trained")


@pytest.mark.parametrize("make", [list, torch.from_numpy, lambda y: y.astype(np.int8)])
def test_labels_of_any_kind_of_integers(rows, some, make):
    assert_same(fit(rows, make(some)), fit(rows, some))


# The moment: in the pre-training, when clusters have just started, in the middle of a pass.
@pytest.mark.parametrize(("stage", "update"), [("tune", 6), ("cluster", 0), ("cluster", 6)])
@pytest.mark.parametrize("in_file", [False, True])
def test_resumed_with_labels_is_the_uninterrupted_fit(
    rows, some, tmp_path, stage, update, in_file, monkeypatch
):
    step = Run._step

    def cut(run):
        step(run)
        if (run.stage.name, run.update) == (stage, update):
            os.kill(os.getpid(), signal.SIGINT)

    options = {"target": "exact", "prior": zipf(0.5), "warmup_updates": 4, "corruption": 0.3}
    changes = {"checkpoint": tmp_path / "checkpoint"} if in_file else {}
    callbacks = [] if update else [interrupt(stage, update)]
    estimator = DEPICT(K, **SMALL, **options, **changes, callbacks=callbacks)
    monkeypatch.setattr(Run, "_step", cut)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(rows, some)
    monkeypatch.undo()
    other = np.where(np.arange(N) == 3, 1, some)
    for y in (None, other):
        with pytest.raises(ValueError, match="other parameters: y was"):
            estimator.set_params(callbacks=()).fit(rows, y, resume=True)
    if in_file:
        estimator = DEPICT(K, **SMALL, **options, **changes)
    resumed = estimator.set_params(callbacks=()).fit(rows, some, resume=True)
    assert_same(resumed, fit(rows, some, **options))


def test_save_and_load_with_labels(rows, some, tmp_path):
    options = {"corruption": [0.2, 0.1], "prior": [0.4, 0.3, 0.2, 0.1], "target": "exact"}
    estimator = fit(rows, some, **options, warmup_updates=Epochs(1))
    estimator.save(tmp_path / "model")
    loaded = DEPICT.load(tmp_path / "model")
    assert loaded.get_params() == estimator.get_params()
    np.testing.assert_array_equal(loaded.predict_proba(rows), estimator.predict_proba(rows))
    assert_same(loaded.fit(rows, some), estimator)


# Bad input.


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"target": "q"}, "target: got 'q'; it takes 'paper' or 'published-code' or 'exact'"),
        ({"target": 2}, "target: got 2; it takes"),
        ({"prior": [0.5, 0.5]}, "prior: got 2 shares for n_clusters=4"),
        ({"prior": "flat"}, r"prior: got 'flat'; it takes 'uniform', zipf\(s\) or 4 shares"),
        ({"prior": [1.0] * 4}, "prior: got a sum of 4; it takes shares that sum to 1"),
        ({"prior": None}, "prior: got None; it takes"),
        ({"corruption": 1.0}, "corruption: got 1.0; it takes a share from 0 to below 1, or one"),
        ({"corruption": -0.1}, "corruption: got -0.1; it takes a share"),
        ({"corruption": math.nan}, "corruption: got nan; it takes a share"),
        ({"corruption": True}, "corruption: got True; it takes a share"),
        ({"corruption": None}, "corruption: got None; it takes a share"),
        ({"corruption": "0.1"}, "corruption: got '0.1'; it takes a share"),
        ({"corruption": ""}, "corruption: got ''; it takes a share"),
        ({"corruption": []}, r"corruption: got \[\]; it takes a share"),
        ({"corruption": [0.1, 1.5]}, r"corruption: got \[0.1, 1.5\]; it takes a share"),
        ({"corruption": np.array(0.1)}, r"corruption: got array\(0.1\); it takes a share"),
        ({"corruption": np.eye(2)}, r"corruption: got array\("),
        ({"corruption": [0.1]}, "corruption: got 1 shares; it takes one for each of the 2 layers"),
        ({"corruption": [0.1] * 3}, "corruption: got 3 shares; it takes one for each of the 2"),
        ({"joint": 1}, "joint: got 1; it takes True or False"),
        ({"joint": None}, "joint: got None; it takes True or False"),
        ({"clean_gradient": "yes"}, "clean_gradient: got 'yes'; it takes True or False"),
        ({"hidden_weight": -1}, "hidden_weight: got -1; it takes a number of at least 0"),
        ({"hidden_weight": "a"}, "hidden_weight: got 'a'; it takes a number of at least 0"),
        ({"hidden_weight": math.inf}, "hidden_weight: got inf; it takes a number of at least 0"),
        ({"tol": -1e-9}, "tol: got -1e-09; it takes a number of at least 0"),
        ({"tol": None}, "tol: got None; it takes a number of at least 0"),
        ({"warmup_updates": -1}, "warmup_updates: got -1; it takes an integer of at least 0"),
        ({"warmup_updates": 2.5}, r"warmup_updates: got 2.5; it takes an integer of at least 0"),
        ({"warmup_updates": Epochs(-1)}, "warmup_updates: got -1"),
        ({"update_interval": 0}, "update_interval: got 0; it takes an integer of at least 1"),
        ({"update_interval": "often"}, "update_interval: got 'often'; it takes an integer"),
        ({"features": (0, 1)}, r"features: got \(0, 1\); DEPICT takes 'last'"),
        ({"interventions": [CollapseGuard()]}, "interventions: CollapseGuard moves centroids"),
        ({"regularisers": [Reconstruction()]}, "regularisers: .*'reconstruction' twice"),
        ({"hidden": "depict-mnist"}, "hidden: got 'depict-mnist'; it takes a sequence of widths"),
        ({"network": "conv", "hidden": "depict-moon"}, "image_shape: got None; network='conv'"),
        (
            {"network": "conv", "hidden": "depict-moon", "image_shape": (8, 8)},
            "layers: got 'depict-moon'; it takes one of .*depict-mnist",
        ),
        ({"latent_dim": 0}, "latent_dim: got 0"),
        ({"scale": "unit"}, "scale: got 'unit'; it takes 'dec', 'range', None or a number"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused_before_anything_is_trained(rows, parameters, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        fit(rows, callbacks=[trained], **parameters)


@pytest.mark.parametrize(
    ("weight", "message"),
    [(-1, "weight of cross-entropy: got -1"), ("much", "weight of cross-entropy: got 'much'")],
)
def test_bad_weights(rows, weight, message):
    settings = {name: SMALL[name] for name in ("hidden", "tune_updates", "n_init")}
    clustering = BalancedSoftMax(weight=weight)
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        DeepClustering(K, **settings, clustering=clustering, callbacks=[trained]).fit(rows)


def test_defaults_take_a_share_for_each_layer_but_the_last():
    shares = BalancedSoftMax(corruption=0.25).shares
    mlp = MLPAutoencoder((64, 8, 8, 8, 3))
    assert shares(mlp) == [0.25, 0.25, 0.25, 0.0]
    assert shares(MLPAutoencoder((64, 3))) == [0.25]
    assert shares(SimpleNamespace()) == [0.25]
    given = BalancedSoftMax(corruption=np.array([0.5, 0.0, 0.25, 0.125]))
    assert given.shares(mlp) == [0.5, 0.0, 0.25, 0.125]
