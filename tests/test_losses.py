"""The losses beside the clustering loss, and the schedules that weigh them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from deepclust import functional as F
from deepclust import losses
from deepclust.losses import (
    JointWeight,
    by_rank,
    joint,
    ramp,
    size_prior,
    switch,
    weight_at,
    zipf,
)
from tests import budget, reference
from tests.budget import growth
from tests.cases import DTYPES, HALVES, as_numpy, backends_for, judge
from tests.reference import adversarial
from tests.reference import losses as oracle
from tests.test_reference import check_gradients, to_tf32

Arrays = dict[str, np.ndarray]
# n, D, K
SHAPES = {"awkward": (127, 11, 10), "ones": (1, 1, 1), "one_cluster": (5, 3, 1), "few": (3, 4, 9)}
M = 4  # neighbours of a row


# --- each loss: its inputs, how it is called, its oracle, its error budget -----------------------


@dataclass(frozen=True)
class Loss:
    """All by the names of its inputs: tensors for `run`, arrays for the rest."""

    inputs: Callable[[torch.Generator, int, int, int], dict[str, Tensor]]
    run: Callable[..., Tensor]
    value: Callable[..., float]
    gradients: Callable[..., Arrays]
    budget: Callable[..., dict[str, np.ndarray | float]]
    moved: tuple[str, ...] = ()  # the inputs that a translation of the data moves
    clusters: dict[str, int] = dataclasses.field(default_factory=dict)  # where K is in which input
    constants: tuple[str, ...] = ()  # inputs without a gradient

    def make(
        self, shape: tuple[int, int, int], dtype: torch.dtype, shift: float = 0.0
    ) -> dict[str, Tensor]:
        tensors = self.inputs(torch.Generator().manual_seed(0), *shape)
        return {
            name: (value + (shift if name in self.moved else 0.0)).to(dtype)
            for name, value in tensors.items()
        }

    def results(
        self,
        tensors: dict[str, Tensor],
        forward: contextlib.AbstractContextManager[Any] | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """The loss, computed in the context `forward`, and the gradients by names of inputs."""
        leaves = {
            name: value.detach().requires_grad_(name not in self.constants)
            for name, value in tensors.items()
        }
        with forward or contextlib.nullcontext():
            loss = self.run(**leaves, **options)
        assert loss.ndim == 0
        wanted = [name for name in leaves if name not in self.constants]
        found = torch.autograd.grad(loss, [leaves[name] for name in wanted])
        return {"loss": loss.detach(), **dict(zip(wanted, found, strict=True))}

    def expected(self, arrays: Arrays) -> dict[str, np.ndarray | float]:
        return {"loss": self.value(**arrays), **self.gradients(**arrays)}


def normal(rng: torch.Generator, *size: int) -> Tensor:
    return torch.randn(*size, generator=rng, dtype=torch.float64)


def uniform(rng: torch.Generator, *size: int) -> Tensor:
    return torch.rand(*size, generator=rng, dtype=torch.float64)


def reconstruction_budget(u: float, output: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    difference, count = np.abs(output - x), max(x.size, 1)
    return {
        "loss": (growth(count) + 4) * u * (difference**2).sum() / count,
        "output": 5 * u * 2 * difference / count,
        "x": 5 * u * 2 * difference / count,
    }


def critic_budget(u: float, guess: np.ndarray, alpha: np.ndarray) -> dict[str, Any]:
    allowed = reconstruction_budget(u, guess, alpha)
    return {"loss": allowed["loss"], "guess": allowed["output"], "alpha": allowed["x"]}


LAYER_WEIGHTS = [1.0, 0.1]


def layer_reconstruction(
    output: Tensor, clean: Tensor, hidden_output: Tensor, hidden_clean: Tensor
) -> Tensor:
    """Of rows and of one convolution."""
    pairs = [output, hidden_output], [clean, hidden_clean]
    return losses.layer_reconstruction(*pairs, LAYER_WEIGHTS)


def of_layers(function: Callable[..., Any]) -> Callable[..., Any]:
    def flat(output, clean, hidden_output, hidden_clean):
        return function([output, hidden_output], [clean, hidden_clean], LAYER_WEIGHTS)

    return flat


def layer_gradients(**arrays: np.ndarray) -> Arrays:
    outputs, clean = of_layers(oracle.layer_reconstruction_gradients)(**arrays)
    return dict(
        zip(("output", "hidden_output", "clean", "hidden_clean"), outputs + clean, strict=True)
    )


def layer_budget(u: float, **arrays: np.ndarray) -> dict[str, Any]:
    errors: dict[str, Any] = {"loss": 0.0}
    for name, weight in zip(("", "hidden_"), LAYER_WEIGHTS, strict=True):
        output, clean = arrays[f"{name}output"], arrays[f"{name}clean"]
        of_layer = reconstruction_budget(u, output, clean)
        size = ((output - clean) ** 2).sum() / max(clean.size, 1)
        # a product with the weight, and the sum over layers
        errors["loss"] += weight * (of_layer["loss"] + 3 * u * size)
        for key, gradient in (("output", "output"), ("clean", "x")):
            errors[f"{name}{key}"] = 1.4 * weight * of_layer[gradient]  # 5 roundings, and 2 more
    return errors


def binary_budget(u: float, logits: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    size, m, count = np.abs(logits), oracle.sigmoid(logits), max(x.size, 1)
    return {
        "loss": (growth(count) + 6) * u * (2 * size + 1).sum() / count,
        # the exponent of the sigmoid carries its own rounding
        "logits": u * ((size + 6) * m + 3 * x) / count,
    }


def logits_budget(u: float, arrays: Arrays, gradients: Arrays) -> dict[str, Any]:
    """Of a sum of means of log(1 + e^l), whose exponent carries the rounding of l."""
    errors: dict[str, Any] = {"loss": 0.0}
    for name, logits in arrays.items():
        size, count = np.abs(logits), max(len(logits), 1)
        errors["loss"] += (growth(count) + 6) * u * (size + 1).sum() / count
        errors[name] = (size + 6) * u * np.abs(gradients[name])
    return errors


def balance_budget(u: float, shares: np.ndarray, prior: np.ndarray | None = None) -> dict[str, Any]:
    logs = np.abs(oracle.balance_gradients(shares, prior)["shares"] - 1)
    k = len(shares)
    return {
        "loss": u * (shares * ((growth(k) + 3) * logs + 3)).sum(),
        "shares": u * (4 * logs + 8),
    }


def locality_budget(
    u: float, z: np.ndarray, neighbours: np.ndarray, similarity: np.ndarray
) -> dict[str, Any]:
    n, d = z.shape
    difference, size = np.abs(z[:, None, :] - neighbours), np.abs(similarity)
    squared = (difference**2).sum(2)
    pairs = 2 * size[:, :, None] * difference / n
    return {
        "loss": (growth(n) + growth(M) + growth(d) + 5) * u * (size * squared).sum() / n,
        "z": (growth(M) + 6) * u * pairs.sum(1),
        "neighbours": 6 * u * pairs,
        "similarity": (growth(d) + 4) * u * squared / n,
    }


def cosine_budget(u: float, z: np.ndarray, view: np.ndarray) -> dict[str, Any]:
    n, d = z.shape
    lengths = {"z": np.linalg.norm(z, axis=1), "view": np.linalg.norm(view, axis=1)}
    unit = {"z": np.abs(z) / lengths["z"][:, None], "view": np.abs(view) / lengths["view"][:, None]}
    products = (unit["z"] * unit["view"]).sum(1)
    # a length adds up D squares; each direction has one, and so has each gradient through it
    steps = (3 * growth(d) + 16) * u
    errors: dict[str, Any] = {"loss": (steps + growth(n) * u) * products.sum() / n}
    for name, other in (("z", "view"), ("view", "z")):
        size = unit[other] + products[:, None] * unit[name]
        errors[name] = steps * size / lengths[name][:, None] / n
    return errors


def squared_budget(u: float, z: np.ndarray, view: np.ndarray) -> dict[str, Any]:
    n, d = z.shape
    difference = np.abs(z - view)
    return {
        "loss": (growth(n) + growth(d) + 4) * u * (difference**2).sum() / n,
        "z": 5 * u * 2 * difference / n,
        "view": 5 * u * 2 * difference / n,
    }


def soft_kmeans_budget(u: float, z: np.ndarray, centroids: np.ndarray) -> dict[str, Any]:
    n, k = len(z), len(centroids)
    scores = budget.Scores(z, reference.StudentT(centroids), u)
    q, eq = budget.softmax(scores.s, scores.es, u)
    squared = reference.squared_distances(z, centroids)
    rows = (q * squared).sum(1, keepdims=True)
    loss = eq * squared + q * scores.ed2 + (growth(k) + growth(n) + 3) * u * q * squared
    # through q: the gradient d2/n to q has the error of d2
    e_squared = scores.ed2 + 2 * u * squared
    e_rows = (eq * squared + q * e_squared).sum(1, keepdims=True) + (growth(k) + 1) * u * rows
    eg = eq * np.abs(squared - rows) + q * (e_squared + e_rows + 3 * u * (squared + rows))
    through_q = scores.pull_back(q * (squared - rows) / n, eg / n)
    # through d2, expanded: as large as the sum of the coordinates of both
    w = 2 * q / n
    to_z = ((2 * eq / n + (growth(k) + 8) * u * w)[:, :, None] * scores.size).sum(1)
    to_mu = ((2 * eq / n + (growth(n) + 8) * u * w)[:, :, None] * scores.size).sum(0)
    return {
        "loss": loss.sum() / n,
        "z": through_q["z"] + to_z,
        "centroids": through_q["centroids"] + to_mu,
    }


def centre_budget(u: float, z: np.ndarray, centres: np.ndarray) -> dict[str, Any]:
    n, logs = len(z), np.abs(np.log(z))
    return {
        "loss": (growth(z.size) + 5) * u * (centres * logs).sum() / n,
        "z": 5 * u * centres / z / n,
        "centres": 4 * u * logs / n,
    }


def mixture_budget(
    u: float,
    mean: np.ndarray,
    log_var: np.ndarray,
    gamma: np.ndarray,
    means: np.ndarray,
    mixture_log_var: np.ndarray,
    log_weights: np.ndarray,
) -> dict[str, Any]:
    (n, d), k = mean.shape, len(means)
    centre = np.sort(means, axis=0)[(k - 1) // 2]  # the median, the lower of two
    size = np.abs(mean - centre)[:, None, :] + np.abs(means - centre)[None, :, :]
    precision = np.exp(-mixture_log_var)[None]
    squares = size**2 * precision + np.exp(log_var)[:, None, :] * precision
    logs = np.abs(log_var)[:, None, :] + np.abs(mixture_log_var)[None]
    # exp(-v) carries the rounding of v
    e_energy = 0.5 * u * ((growth(d) + 9 + logs) * (squares + logs)).sum(2)
    energy = 0.5 * (squares + logs).sum(2)
    log_pi = reference.log_softmax(log_weights[None])
    log_gamma = np.abs(np.log(gamma))
    shifted = np.abs(log_weights - log_weights.max())[None]
    e_log_pi = u * (growth(k) + 4 + shifted.max() + shifted + 2 * np.abs(log_pi))
    e_logs = e_log_pi + 3 * u * (log_gamma + np.abs(log_pi))
    rows = gamma * (e_energy + e_logs)
    rows = rows + (growth(k) + growth(n) + 3) * u * gamma * (energy + log_gamma + np.abs(log_pi))
    weight = gamma[:, :, None] / n
    pull = weight * precision * size
    mass = gamma.sum(0) / n
    return {
        "loss": (rows.sum() + (growth(d) + growth(n) + 2) * u * (1 + np.abs(log_var)).sum() / 2)
        / n,
        "mean": u * ((growth(k) + 10 + logs) * pull).sum(1),
        "log_var": u * (0.5 * ((growth(k) + 8 + logs) * weight * squares).sum(1) + 2 / n),
        "gamma": (e_energy + e_logs + 4 * u * (energy + log_gamma + 1 + np.abs(log_pi))) / n,
        "means": u * ((growth(n) + 10 + logs) * pull).sum(0),
        "mixture_log_var": u * (0.5 * (growth(n) + 12 + logs) * weight * (squares + 1)).sum(0),
        "log_weights": (growth(n) + 4) * u * mass
        + np.exp(log_pi[0]) * mass.sum() * (e_log_pi[0] + (growth(n) + growth(k) + 4) * u),
    }


def mixture_divergence(mean, log_var, gamma, means, mixture_log_var, log_weights):
    head = F.Gaussian(means, mixture_log_var, log_weights)
    return losses.mixture_divergence(mean, log_var, gamma, head)


def of_mixture(function: Callable[..., Any]) -> Callable[..., Any]:
    """The oracle, with the mixture's parameters by their names here."""

    def flat(mean, log_var, gamma, means, mixture_log_var, log_weights):
        head = reference.Gaussian(means, mixture_log_var, log_weights)
        return function(mean, log_var, gamma, head)

    return flat


def of_centroids(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda z, centroids: function(z, reference.StudentT(centroids))


def no_gradient(function: Callable[..., Arrays], *names: str) -> Callable[..., Arrays]:
    def some(**arrays: np.ndarray) -> Arrays:
        return {name: g for name, g in function(**arrays).items() if name not in names}

    return some


LOSSES = {
    "reconstruction": Loss(
        lambda rng, n, d, k: {"output": normal(rng, n, d), "x": normal(rng, n, d)},
        losses.reconstruction,
        oracle.reconstruction,
        oracle.reconstruction_gradients,
        reconstruction_budget,
    ),
    "critic_error": Loss(
        lambda rng, n, d, k: {"guess": normal(rng, n), "alpha": uniform(rng, n) / 2},
        losses.critic_error,
        oracle.critic_error,
        oracle.critic_error_gradients,
        critic_budget,
    ),
    "layer_reconstruction": Loss(
        lambda rng, n, d, k: {
            "output": normal(rng, n, d),
            "clean": normal(rng, n, d),
            "hidden_output": normal(rng, n, k, 2, 3),
            "hidden_clean": normal(rng, n, k, 2, 3),
        },
        layer_reconstruction,
        of_layers(oracle.layer_reconstruction),
        layer_gradients,
        layer_budget,
    ),
    "binary_reconstruction": Loss(
        lambda rng, n, d, k: {"logits": 6 * normal(rng, n, d), "x": uniform(rng, n, d).round()},
        losses.binary_reconstruction,
        oracle.binary_reconstruction,
        oracle.binary_reconstruction_gradients,
        binary_budget,
        constants=("x",),
    ),
    "grey_reconstruction": Loss(
        lambda rng, n, d, k: {"logits": normal(rng, n, d), "x": uniform(rng, n, d)},
        losses.binary_reconstruction,
        oracle.binary_reconstruction,
        oracle.binary_reconstruction_gradients,
        binary_budget,
        constants=("x",),
    ),
    "adversarial_discriminator": Loss(
        lambda rng, n, d, k: {"positives": 6 * normal(rng, n), "negatives": 6 * normal(rng, n)},
        losses.adversarial_discriminator,
        adversarial.discriminator,
        adversarial.discriminator_gradients,
        lambda u, **a: logits_budget(u, a, adversarial.discriminator_gradients(**a)),
    ),
    **{
        f"adversarial_encoder {update}": Loss(
            lambda rng, n, d, k: {"negatives": 6 * normal(rng, n)},
            partial(losses.adversarial_encoder, update=update),
            partial(adversarial.encoder, update=update),
            partial(adversarial.encoder_gradients, update=update),
            lambda u, update=update, **a: logits_budget(
                u, a, adversarial.encoder_gradients(**a, update=update)
            ),
        )
        for update in ("minimax", "non-saturating")
    },
    "balance": Loss(
        lambda rng, n, d, k: {"shares": normal(rng, k).softmax(0)},
        losses.balance,
        oracle.balance,
        oracle.balance_gradients,
        balance_budget,
        clusters={"shares": 0},
    ),
    "balance_with_prior": Loss(
        lambda rng, n, d, k: {
            "shares": normal(rng, k).softmax(0),
            "prior": (3 * normal(rng, k)).softmax(0),
        },
        losses.balance,
        oracle.balance,
        oracle.balance_gradients,
        balance_budget,
        clusters={"shares": 0, "prior": 0},
        constants=("prior",),
    ),
    "locality": Loss(
        lambda rng, n, d, k: {
            "z": normal(rng, n, d),
            "neighbours": normal(rng, n, M, d),
            "similarity": normal(rng, n, M),
        },
        losses.locality,
        oracle.locality,
        oracle.locality_gradients,
        locality_budget,
        moved=("z", "neighbours"),
    ),
    "cosine_augmentation": Loss(
        lambda rng, n, d, k: {"z": normal(rng, n, d), "view": normal(rng, n, d)},
        losses.self_augmentation,
        oracle.cosine_augmentation,
        oracle.cosine_augmentation_gradients,
        cosine_budget,
    ),
    "squared_augmentation": Loss(
        lambda rng, n, d, k: {"z": normal(rng, n, d), "view": normal(rng, n, d)},
        lambda z, view: losses.self_augmentation(z, view, "squared"),
        oracle.squared_augmentation,
        oracle.squared_augmentation_gradients,
        squared_budget,
        moved=("z", "view"),
    ),
    "soft_kmeans": Loss(
        lambda rng, n, d, k: {"z": normal(rng, n, d), "centroids": normal(rng, k, d)},
        lambda z, centroids, **options: losses.soft_kmeans(z, centroids, **options),
        of_centroids(oracle.soft_kmeans),
        of_centroids(oracle.soft_kmeans_gradients),
        soft_kmeans_budget,
        moved=("z", "centroids"),
        clusters={"centroids": 0},
    ),
    "centre_cross_entropy": Loss(
        lambda rng, n, d, k: {
            "z": normal(rng, n, d).sigmoid(),
            "centres": normal(rng, n, d).sigmoid(),
        },
        losses.centre_cross_entropy,
        oracle.centre_cross_entropy,
        oracle.centre_cross_entropy_gradients,
        centre_budget,
    ),
    "mixture_divergence": Loss(
        lambda rng, n, d, k: {
            "mean": normal(rng, n, d),
            "log_var": 0.5 * normal(rng, n, d) - 1,
            "gamma": normal(rng, n, k).softmax(1),
            "means": normal(rng, k, d),
            "mixture_log_var": 0.5 * normal(rng, k, d),
            "log_weights": normal(rng, k),
        },
        mixture_divergence,
        of_mixture(oracle.mixture_divergence),
        of_mixture(oracle.mixture_divergence_gradients),
        mixture_budget,
        moved=("mean", "means"),
        clusters={"gamma": 1, "means": 0, "mixture_log_var": 0, "log_weights": 0},
    ),
}
NAMES = tuple(LOSSES)
OF_ROWS = tuple(name for name in NAMES if not name.startswith("balance"))

each = pytest.mark.parametrize("name", NAMES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def check_against_oracle(name: str, tensors: dict[str, Tensor], **options: Any) -> None:
    loss, arrays = LOSSES[name], {key: as_numpy(value) for key, value in tensors.items()}
    u = budget.roundoff(next(iter(tensors.values())).dtype)
    judge(
        lambda _: loss.results(tensors, **options),
        "eager",
        loss.expected(arrays),
        loss.budget(u, **arrays),
    )


# --- the oracles ---------------------------------------------------------------------------------


@each
def test_gradients_of_the_oracle(name: str) -> None:
    loss = LOSSES[name]
    arrays = {key: as_numpy(value) for key, value in loss.make((6, 3, 4), torch.float64).items()}
    moving = {key: value for key, value in arrays.items() if key not in loss.constants}
    check_gradients(lambda: loss.value(**arrays), moving, loss.gradients(**arrays))


@each
def test_budgets_for_float32_refuse_tf32(name: str) -> None:
    """A budget that let coarse inputs pass would prove nothing."""
    loss = LOSSES[name]
    arrays = {key: as_numpy(value) for key, value in loss.make((64, 3, 4), torch.float32).items()}
    allowed = loss.budget(budget.roundoff(torch.float32), **arrays)
    coarse = {key: to_tf32(value) for key, value in arrays.items()}
    for key, gradient in loss.gradients(**arrays).items():
        error = np.abs(loss.gradients(**coarse)[key] - gradient)
        assert (error > allowed[key]).any(), key


def test_layer_reconstruction_by_hand() -> None:
    outputs = [np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([[0.0], [2.0]])]
    clean = [np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[1.0], [-1.0]])]
    # (4 / 2 + 4 / 2) / 2 = 2, and (1 + 9) / 2 = 5
    assert oracle.layer_reconstruction(outputs, clean, [1.0, 0.1]) == pytest.approx(2.5)


def test_binary_reconstruction_by_hand() -> None:
    # m = 1/4 and 3/4
    logits = np.log(np.array([[1 / 3, 3.0]]))
    expected = -(math.log(1 / 4) + math.log(1 / 4)) / 2
    np.testing.assert_allclose(
        oracle.binary_reconstruction(logits, np.array([[1.0, 0.0]])), expected, rtol=1e-14
    )


def test_mixture_divergence_is_the_integral() -> None:
    """KL(q(z, c) || p(z, c)), sum over c and integral over z, in one dimension."""
    posterior, gamma = stats.norm(0.3, 0.7), np.array([0.2, 0.8])
    pi, components = np.array([0.6, 0.4]), [stats.norm(-1.0, 0.5), stats.norm(1.0, 1.5)]

    def term(z: float, c: int) -> float:
        log_ratio = np.log(gamma[c] / pi[c]) + posterior.logpdf(z) - components[c].logpdf(z)
        return gamma[c] * posterior.pdf(z) * log_ratio

    expected = sum(integrate.quad(term, -8, 8, args=(c,), epsabs=1e-12)[0] for c in range(2))
    found = oracle.mixture_divergence(
        np.array([[0.3]]),
        np.array([[2 * np.log(0.7)]]),
        gamma[None],
        reference.Gaussian(
            np.array([[-1.0], [1.0]]), 2 * np.log(np.array([[0.5], [1.5]])), np.log(pi) + 3
        ),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)


# --- against the oracles -------------------------------------------------------------------------


@each
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_oracle(name: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    check_against_oracle(name, LOSSES[name].make(shape, dtype))


@pytest.mark.parametrize("backend", backends_for("assign"))
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_soft_kmeans_on_every_backend(backend: str, shift: float) -> None:
    tensors = LOSSES["soft_kmeans"].make(SHAPES["awkward"], torch.float32, shift)
    check_against_oracle("soft_kmeans", tensors, backend=backend)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.moved])
def test_a_hundred_standard_deviations_from_the_origin(name: str) -> None:
    check_against_oracle(name, LOSSES[name].make(SHAPES["awkward"], torch.float32, shift=100.0))


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.moved])
@dtypes
def test_translation_changes_nothing(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name]
    here = loss.make(SHAPES["awkward"], dtype)
    here.update({key: (here[key] * 8).round() / 8 for key in loss.moved})
    there = {key: value + 512 if key in loss.moved else value for key, value in here.items()}
    for key, value in loss.results(here).items():
        assert torch.equal(loss.results(there)[key], value), key


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.clusters])
def test_the_order_of_the_clusters_does_not_matter(name: str) -> None:
    loss = LOSSES[name]
    tensors = loss.make(SHAPES["awkward"], torch.float64)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    permuted = {
        key: value.index_select(loss.clusters[key], order) if key in loss.clusters else value
        for key, value in tensors.items()
    }
    for key, value in loss.results(permuted).items():
        expected = loss.results(tensors)[key]
        if key in loss.clusters:
            expected = expected.index_select(loss.clusters[key], order)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", OF_ROWS)
def test_no_rows(name: str) -> None:
    for key, value in LOSSES[name].results(LOSSES[name].make((0, 3, 4), torch.float32)).items():
        assert not value.any(), key


@each
@pytest.mark.parametrize("dtype", HALVES)
def test_half_types_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    halves = LOSSES[name].make(SHAPES["awkward"], dtype)
    wide = {key: value.float() for key, value in halves.items()}
    found, expected = LOSSES[name].results(halves), LOSSES[name].results(wide)
    assert found["loss"].dtype == torch.float32
    for key, value in found.items():
        assert torch.equal(value, expected[key].to(value.dtype)), key


@each
def test_autocast_changes_nothing(name: str) -> None:
    tensors = LOSSES[name].make(SHAPES["awkward"], torch.float32)
    expected = LOSSES[name].results(tensors)
    found = LOSSES[name].results(tensors, torch.autocast("cpu", torch.bfloat16))
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


@each
def test_nothing_is_read_back_to_the_host(name: str) -> None:
    """Tensors without values: whoever wants one fails."""
    loss = LOSSES[name]
    options = {"backend": "eager", "check": False} if name == "soft_kmeans" else {}
    with FakeTensorMode():
        tensors = {
            key: torch.empty_like(v) for key, v in loss.make((5, 3, 4), torch.float32).items()
        }
        assert loss.results(tensors, **options)["loss"].shape == ()
        shares = torch.empty(4)
        assert losses.balance(shares, by_rank(torch.empty(4), shares)).shape == ()


# --- what each is for ----------------------------------------------------------------------------


@dtypes
def test_balance_is_zero_at_the_prior_alone(dtype: torch.dtype) -> None:
    prior = size_prior(zipf(), 7).to(dtype)
    assert losses.balance(prior, prior) == 0
    assert losses.balance(prior) > 0.1
    assert losses.balance(torch.full((8,), 0.125, dtype=dtype)) == 0


@dtypes
def test_empty_clusters_in_balance(dtype: torch.dtype) -> None:
    shares = torch.tensor([0.0, 0.25, 0.75], dtype=dtype, requires_grad=True)
    prior = torch.tensor([0.5, 0.5, 0.0], dtype=dtype)
    loss = losses.balance(shares)
    exact = 0.25 * math.log(0.75) + 0.75 * math.log(2.25)
    torch.testing.assert_close(loss, torch.tensor(exact, dtype=dtype))
    (gradient,) = torch.autograd.grad(loss, shares)
    assert gradient.isfinite().all()
    assert gradient.argmin() == 0  # descent fills it first
    loss = losses.balance(shares, prior)
    log_tiny = math.log(torch.finfo(dtype).tiny)
    exact = 0.25 * math.log(0.5) + 0.75 * (math.log(0.75) - log_tiny)
    torch.testing.assert_close(loss, torch.tensor(exact, dtype=dtype))
    assert torch.autograd.grad(loss, shares)[0].isfinite().all()


def test_constants_of_float64_do_not_make_the_loss_so() -> None:
    assert losses.balance(torch.tensor([0.5, 0.5]), size_prior(zipf(), 2)).dtype == torch.float32
    tensors = LOSSES["locality"].make((5, 3, 4), torch.float32)
    tensors["similarity"] = tensors["similarity"].double()
    assert losses.locality(**tensors).dtype == torch.float32


def test_layers_count_alike_without_weights() -> None:
    x = normal(torch.Generator().manual_seed(0), 3, 5, 4)
    pair = losses.reconstruction(x[0], x[1]) + losses.reconstruction(x[2], x[1])
    torch.testing.assert_close(losses.layer_reconstruction([x[0], x[2]], [x[1], x[1]]), pair)
    assert losses.layer_reconstruction([x[0]], [x[1]], [0.0]) == 0
    assert losses.layer_reconstruction([], []) == 0


@dtypes
def test_rows_without_a_direction(dtype: torch.dtype) -> None:
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    view = torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = losses.self_augmentation(z, view)
    assert loss == 0
    dz, dview = torch.autograd.grad(loss, (z, view))
    # pulled towards the other with the force that acts on a row of length 1
    torch.testing.assert_close(dz, torch.tensor([[0.0, -0.5], [0.0, 0.0]], dtype=dtype))
    torch.testing.assert_close(dview, torch.tensor([[0.0, 0.0], [-0.3, -0.4]], dtype=dtype))


def test_the_cosine_ignores_lengths() -> None:
    z = normal(torch.Generator().manual_seed(0), 9, 4)
    torch.testing.assert_close(
        losses.self_augmentation(z, 1e3 * z), torch.tensor(-1.0, dtype=torch.float64)
    )


def test_locality_without_similarity_counts_neighbours_alike() -> None:
    tensors = LOSSES["locality"].make(SHAPES["awkward"], torch.float32)
    ones = torch.ones_like(tensors["similarity"])
    z, neighbours = tensors["z"], tensors["neighbours"]
    assert losses.locality(z, neighbours) == losses.locality(z, neighbours, ones)
    assert losses.locality(z, neighbours[:, :0]) == 0


@pytest.mark.parametrize("nu", [0.5, 3.0])
def test_soft_kmeans_takes_the_degrees_of_freedom_from_the_head(nu: float) -> None:
    tensors = LOSSES["soft_kmeans"].make(SHAPES["awkward"], torch.float64)
    z, centroids = tensors["z"], tensors["centroids"]
    expected = oracle.soft_kmeans(as_numpy(z), reference.StudentT(as_numpy(centroids), nu))
    assert float(losses.soft_kmeans(z, F.StudentT(centroids, nu))) == pytest.approx(expected)


def test_soft_kmeans_of_one_cluster_is_kmeans() -> None:
    tensors = LOSSES["soft_kmeans"].make((50, 4, 1), torch.float32)
    z, centroids = tensors["z"], tensors["centroids"]
    torch.testing.assert_close(losses.soft_kmeans(z, centroids), F.kmeans_loss(z, centroids))


def test_soft_kmeans_pulls_points_that_nearly_lie_on_their_centroid() -> None:
    """The expanded square of their distance may be below 0, which must not end their gradient."""
    rng = torch.Generator().manual_seed(0)
    centroids = torch.randn(1, 8, generator=rng).repeat(3, 1)
    centroids[1:] += 10  # the origin of the coordinates lies there, far from the points
    z = centroids[:1] + 1e-4 * torch.randn(200, 8, generator=rng)
    z.requires_grad_()
    # of so many degrees of freedom, q is 1 at this centroid and 0 at the others
    loss = losses.soft_kmeans(z, F.StudentT(centroids, 1e3))
    (gradient,) = torch.autograd.grad(loss, z)
    # coordinates of size 10 are rounded to 5e-7
    torch.testing.assert_close(gradient, 2 * (z - centroids[0]) / 200, rtol=0, atol=2e-6 * 2 / 200)


@dtypes
def test_codes_of_zero_in_the_centre_cross_entropy(dtype: torch.dtype) -> None:
    z = torch.tensor([[0.0, 1.0]], dtype=dtype, requires_grad=True)
    loss = losses.centre_cross_entropy(z, torch.full((1, 2), 0.5, dtype=dtype))
    log_tiny = math.log(torch.finfo(dtype).tiny)
    torch.testing.assert_close(loss, torch.tensor(-0.5 * log_tiny, dtype=dtype))
    assert torch.autograd.grad(loss, z)[0].isfinite().all()


@dtypes
def test_divergence_from_one_cluster_is_gaussian_kl(dtype: torch.dtype) -> None:
    tensors = LOSSES["mixture_divergence"].make((50, 4, 1), dtype)
    eta = tensors["means"].expand(50, 4)
    log_tau = -tensors["mixture_log_var"].expand(50, 4)
    expected = F.gaussian_kl(tensors["mean"], tensors["log_var"], eta, log_tau).mean()
    torch.testing.assert_close(mixture_divergence(**tensors), expected)


@dtypes
def test_divergence_with_certain_assignments(dtype: torch.dtype) -> None:
    """gamma one-hot, and a cluster that the mixture gives no weight."""
    tensors = LOSSES["mixture_divergence"].make((20, 3, 4), dtype)
    tensors["gamma"] = torch.eye(4, dtype=dtype)[torch.arange(20) % 3]
    arrays = {key: as_numpy(value) for key, value in tensors.items()}
    results = LOSSES["mixture_divergence"].results(tensors)
    expected = LOSSES["mixture_divergence"].value(**arrays)
    assert float(results["loss"]) == pytest.approx(expected, rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in results.values())
    tensors["log_weights"][3] = -math.inf
    results = LOSSES["mixture_divergence"].results(tensors)
    assert all(gradient.isfinite().all() for gradient in results.values())


def test_weights_of_the_mixture_are_normalised() -> None:
    tensors = LOSSES["mixture_divergence"].make((20, 3, 4), torch.float64)
    expected = mixture_divergence(**tensors)
    tensors["log_weights"] = tensors["log_weights"] + 5
    torch.testing.assert_close(mixture_divergence(**tensors), expected)


# --- sizes of clusters ---------------------------------------------------------------------------


@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 2.0])
def test_zipf(s: float) -> None:
    np.testing.assert_allclose(size_prior(zipf(s), 9).numpy(), oracle.zipf(s, 9), rtol=1e-14)


def test_zipf_of_words() -> None:
    """The most frequent one is twice as frequent as the second, three times as the third."""
    shares = size_prior(zipf(s=1.0), 50)
    torch.testing.assert_close(shares[0] / shares[:3], torch.tensor([1.0, 2.0, 3.0]).double())


def test_uniform_prior() -> None:
    assert size_prior("uniform", 4).tolist() == [0.25] * 4


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda v: np.array(v, "f4")])
def test_prior_of_given_shares(make: Callable[[Any], Any]) -> None:
    shares = size_prior(make([0.2, 0.7, 0.1005]), 3)
    assert shares.dtype == torch.float64
    np.testing.assert_allclose(shares, np.array([0.7, 0.2, 0.1005]) / 1.0005, rtol=1e-6)
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-15)


def test_prior_of_a_read_only_array() -> None:
    shares = np.array([0.5, 0.5])
    shares.flags.writeable = False
    assert size_prior(shares, 2).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("prior", "error"),
    [
        ([0.5, 0.25, 0.25], r"^prior: got 3 shares for n_clusters=10$"),
        ([0.2] * 10, r"^prior: got a sum of 2; it takes shares that sum to 1$"),
        ([1.5, -0.5] + [0.0] * 8, r"^prior: got \[1\.5, -0\.5, .*it takes finite shares"),
        ([math.nan] * 10, r"^prior: got \[nan, .*it takes finite shares"),
        ([math.inf] * 10, r"^prior: got \[inf, .*it takes finite shares"),
        ("flat", r"^prior: got 'flat'; it takes 'uniform', zipf\(s\) or 10 shares$"),
        (None, r"^prior: got None; it takes 'uniform'"),
        (0.5, r"^prior: got 0\.5; it takes 'uniform'"),
        ([[0.1] * 10], r"^prior: got \[\[.*; it takes 'uniform'"),
        ([[0.1], [0.1, 0.2]], r"^prior: got \[\[.*; it takes 'uniform'"),
    ],
)
def test_priors_that_are_none(prior: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        size_prior(prior, 10)


def test_prior_of_no_clusters() -> None:
    with pytest.raises(ValueError, match=r"^n_clusters: got 0; "):
        size_prior("uniform", 0)


@pytest.mark.parametrize("s", [-1.0, math.nan, math.inf, "1", None, True])
def test_exponents_that_are_none(s: Any) -> None:
    with pytest.raises(ValueError, match=r"^s: got "):
        zipf(s)


def test_by_rank() -> None:
    prior = torch.tensor([0.1, 0.5, 0.3, 0.1])  # any order
    sizes = torch.tensor([5.0, 0.0, 9.0, 5.0])
    # of the two of equal size, the first is the larger
    assert torch.equal(by_rank(prior, sizes), torch.tensor([0.3, 0.1, 0.5, 0.1]))
    assert torch.equal(by_rank(prior, torch.zeros(4)), torch.tensor([0.5, 0.3, 0.1, 0.1]))


def test_by_rank_is_the_prior_that_is_nearest() -> None:
    rng = torch.Generator().manual_seed(0)
    prior, sizes = size_prior(zipf(), 6), normal(rng, 6).softmax(0)
    least = losses.balance(sizes, by_rank(prior, sizes))
    for _ in range(50):
        other = prior[torch.randperm(6, generator=rng)]
        assert losses.balance(sizes, other) >= least - 1e-12


# --- errors --------------------------------------------------------------------------------------

X, ROW, NEAR = torch.zeros(5, 3), torch.zeros(5), torch.zeros(5, 2, 3)
GAUSSIAN = F.Gaussian(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4))
GAMMA = torch.full((5, 4), 0.25)


@pytest.mark.parametrize(
    ("call", "kind", "error"),
    [
        (lambda: losses.reconstruction(X[:, :1], X), ValueError, "output: got shape"),
        (
            lambda: losses.layer_reconstruction([X], [X, X]),
            ValueError,
            "outputs: got 1 layers, with 2 of clean and 1 weights",
        ),
        (lambda: losses.layer_reconstruction([X], [X], [1, 1]), ValueError, "outputs: got 1"),
        (lambda: losses.layer_reconstruction([X, X], [X, ROW]), ValueError, "output: got shape"),
        (lambda: losses.binary_reconstruction(X, X[:1]), ValueError, "logits: got shape"),
        (lambda: losses.balance(GAMMA), ValueError, r"shares: got shape \(5, 4\); it takes \(K,\)"),
        (lambda: losses.balance(ROW.numpy()), TypeError, "shares: got ndarray"),
        (lambda: losses.balance(ROW, ROW[1:]), ValueError, "prior: got shape"),
        (lambda: losses.balance(ROW.long()), TypeError, "shares: got torch.int64"),
        (lambda: by_rank(GAMMA, ROW), ValueError, "prior: got shape"),
        (lambda: by_rank(ROW, ROW[1:]), ValueError, "sizes: got shape"),
        (lambda: losses.locality(ROW, NEAR), ValueError, "z: got shape"),
        (lambda: losses.locality(X, X), ValueError, "neighbours: got shape"),
        (lambda: losses.locality(X, NEAR[:4]), ValueError, "neighbours: got shape"),
        (lambda: losses.locality(X, NEAR[..., :2]), ValueError, "neighbours: got shape"),
        (lambda: losses.locality(X, NEAR, ROW), ValueError, "similarity: got shape"),
        (lambda: losses.self_augmentation(X, X[:1]), ValueError, "view: got shape"),
        (lambda: losses.self_augmentation(X, X, "dot"), ValueError, "similarity: got 'dot'"),
        (lambda: losses.soft_kmeans(X, X[:, :2]), ValueError, "z: got 3 columns"),
        (lambda: losses.soft_kmeans(X, GAUSSIAN), TypeError, "head: got Gaussian"),
        (lambda: losses.soft_kmeans(X, X.double()), TypeError, "centroids: got torch.float64"),
        (lambda: losses.soft_kmeans(X, X, backend="none"), ValueError, "backend: got 'none'"),
        (lambda: losses.soft_kmeans(X * math.nan, X), ValueError, "z: row 0 has NaN"),
        (lambda: losses.centre_cross_entropy(X, X[:1]), ValueError, "centres: got shape"),
        (lambda: losses.mixture_divergence(X, X, GAMMA, X), TypeError, "head: got Tensor"),
        (lambda: losses.mixture_divergence(X[:, 1:], X, GAMMA, GAUSSIAN), ValueError, "mean: got"),
        (lambda: losses.mixture_divergence(X, X[1:], GAMMA, GAUSSIAN), ValueError, "log_var: got"),
        (lambda: losses.mixture_divergence(X, X, GAMMA.T, GAUSSIAN), ValueError, "gamma: got"),
    ],
)
def test_an_error_names_the_argument(
    call: Callable[[], Any], kind: type[Exception], error: str
) -> None:
    with pytest.raises(kind, match=f"^{error}"):
        call()


# --- schedules -----------------------------------------------------------------------------------

PARTS = [
    ramp(0.0, 1.0, 10),
    switch(0.0, 1.0, 100),
    zipf(1.5),
    *joint(ramp(0.0, 1.0, 10)),
    joint(switch(0.25, 1.0, 3))[1],
]


def as_tree(part: Any) -> Any:
    if not dataclasses.is_dataclass(part):
        return part
    fields = {f.name: as_tree(getattr(part, f.name)) for f in dataclasses.fields(part)}
    return {"class": type(part).__name__, **fields}


def from_tree(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    fields = {name: from_tree(value) for name, value in tree.items() if name != "class"}
    return getattr(losses, tree["class"])(**fields)


@pytest.mark.parametrize("part", PARTS, ids=repr)
def test_parts_compare_by_value_however_they_are_kept(part: Any) -> None:
    assert from_tree(json.loads(json.dumps(as_tree(part)))) == part
    assert pickle.loads(pickle.dumps(part)) == part
    names = {name: getattr(losses, name) for name in ("ramp", "switch", "zipf", "JointWeight")}
    assert eval(repr(part), names) == part
    assert sum(part == other for other in PARTS) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(part, dataclasses.fields(part)[0].name, 2.0)


def test_ramp() -> None:
    weight = ramp(1.0, 0.5, 4)
    assert [weight(update) for update in (0, 1, 2, 4, 9)] == [1.0, 0.875, 0.75, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"^updates: got 0"):
        ramp(0.0, 1.0, 0)


def test_switch() -> None:
    weight = switch(0.0, 1.0, 3)
    assert [weight(update) for update in (0, 2, 3, 9)] == [0.0, 0.0, 1.0, 1.0]
    assert switch(0.0, 1.0, 0)(0) == 1.0
    with pytest.raises(ValueError, match=r"^update: got -1"):
        switch(0.0, 1.0, -1)


def test_joint_of_a_number() -> None:
    assert joint(0.25) == (0.25, 0.75)
    assert joint(0) == (0, 1)
    assert joint(1) == (1, 0)


@pytest.mark.parametrize("alpha", [ramp(0.2, 1.0, 8), switch(0.0, 1.0, 3), lambda update: 0.3])
def test_joint_weights_sum_to_one(alpha: Any) -> None:
    clustering, other = joint(alpha)
    for update in range(12):
        assert clustering(update) == alpha(update)
        assert clustering(update) + other(update) == 1


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan, math.inf, "0.5", None, True])
def test_joint_refuses_what_is_no_share(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"^alpha: got .*; it takes a number from 0 to 1, or a"):
        joint(alpha)
    for weight in joint(lambda update: alpha if update == 7 else 0.5):
        assert weight(6) == 0.5
        with pytest.raises(ValueError, match=r"^alpha: got .* at update 7; it takes a number from"):
            weight(7)


def test_weight_at() -> None:
    assert weight_at(0.5, 3, "kl") == 0.5
    assert weight_at(ramp(0.0, 1.0, 10), 5, "kl") == 0.5
    for weight in (1, np.float32(1), np.int64(1)):
        value = weight_at(weight, 0, "kl")
        assert value == 1
        assert type(value) is float


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, -math.inf])
def test_weight_at_refuses(weight: float) -> None:
    error = r"^weight of kl: got .* at update 4; it takes a finite number of at least 0$"
    for schedule in (weight, lambda update: weight):
        with pytest.raises(ValueError, match=error):
            weight_at(schedule, 4, "kl")


@pytest.mark.parametrize("weight", ["1", None, True, torch.ones(()), 1j])
def test_weight_at_takes_numbers(weight: Any) -> None:
    with pytest.raises(TypeError, match=r"^weight of kl: got .* at update 4"):
        weight_at(lambda update: weight, 4, "kl")


def test_joint_weight_names_its_two_parts() -> None:
    assert joint(ramp(0.0, 1.0, 2))[0] == JointWeight(ramp(0.0, 1.0, 2), "clustering")
