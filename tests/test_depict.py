"""DEPICT: its equations and targets, the published networks, labels of some rows, and errors."""

from __future__ import annotations

import itertools
import math
import os
import signal
import warnings
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
from tests.test_dec import interrupt
from tests.test_methods import assert_same

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
    """Labels of every fifth row of the first four classes, 5 of them wrong on purpose."""
    y = load_digits().y[:N].copy()
    y[(y >= K) | (np.arange(N) % 5 > 0)] = -1
    return y


def fit(rows, y=None, **changes):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="only . of . clusters")  # after so few updates
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


@pytest.mark.parametrize("hidden_weight", [1.0, 0.1, 0.0])
def test_pre_training_is_the_second_term_of_eq_11(hidden_weight):
    run, x = started(hidden_weight=hidden_weight, corruption=0.3)
    encoder, decoder, head = weights_of(run)
    torch.manual_seed(5)
    found = run.method.recipe.clustering.pretrain(run.method, x[:16])
    args = as_numpy(x[:16]), np.ones((16, 3)) / 3, encoder, decoder, head
    masks = masks_of(run, x, slice(0, 16))
    expected = oracle.network_losses(*args, masks, encoder, hidden_weight)[1]
    np.testing.assert_allclose(found.item(), expected, rtol=1e-11)
    run, x = started(hidden_weight=hidden_weight, corruption=0.3, joint=False)
    found = run.method.recipe.clustering.pretrain(run.method, x[:16])
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
