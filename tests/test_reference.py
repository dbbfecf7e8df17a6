"""Proves the oracles: by hand, against SciPy, and their gradients by central differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from tests import budget, reference

N, D, K = 6, 3, 4


def make_head(kind: str, rng: np.random.Generator) -> reference.Head:
    if kind == "linear":
        return reference.Linear(rng.normal(size=(K, D)), rng.normal(size=K))
    if kind == "linear_no_bias":
        return reference.Linear(rng.normal(size=(K, D)))
    if kind == "gaussian":
        log_weights = special.log_softmax(rng.normal(size=K))
        return reference.Gaussian(rng.normal(size=(K, D)), rng.normal(size=(K, D)), log_weights)
    return reference.StudentT(rng.normal(size=(K, D)), float(kind.removeprefix("student_t_")))


KINDS = ("student_t_1", "student_t_0.5", "student_t_3", "linear", "linear_no_bias", "gaussian")
heads = pytest.mark.parametrize("kind", KINDS)


def central_difference(function: Callable[[], float], array: np.ndarray) -> np.ndarray:
    """d function() / d array, where the function reads the array itself."""
    step = 1e-5
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = function()
        array[index] = kept - step
        below = function()
        array[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient


def check_gradients(
    function: Callable[[], float], arrays: dict[str, np.ndarray], found: dict[str, np.ndarray]
) -> None:
    assert set(arrays) == set(found)
    for name, array in arrays.items():
        # truncation about step^2, rounding about 1e-16 / step
        np.testing.assert_allclose(
            found[name], central_difference(function, array), rtol=1e-7, atol=1e-8, err_msg=name
        )


def parameters(head: reference.Head) -> dict[str, np.ndarray]:
    return {name: getattr(head, name) for name in head.parameters}


# --- values ------------------------------------------------------------------------------------


def test_student_t_by_hand() -> None:
    # d2 = 0 and 1: numerators 1 and 1/2
    q = reference.assign(np.zeros((1, 1)), reference.StudentT(np.array([[0.0], [1.0]])))
    np.testing.assert_allclose(q, [[2 / 3, 1 / 3]], rtol=1e-15)


@pytest.mark.parametrize("nu", [0.5, 1.0, 4.0])
def test_student_t_is_equation_1_of_dec(nu: float) -> None:
    rng = np.random.default_rng(0)
    z, mu = rng.normal(size=(N, D)), rng.normal(size=(K, D))
    numerator = np.empty((N, K))
    for i in range(N):
        for j in range(K):
            numerator[i, j] = (1 + np.linalg.norm(z[i] - mu[j]) ** 2 / nu) ** (-(nu + 1) / 2)
    expected = numerator / numerator.sum(1, keepdims=True)
    np.testing.assert_allclose(
        reference.assign(z, reference.StudentT(mu, nu)), expected, rtol=1e-13
    )


def test_linear_is_softmax() -> None:
    rng = np.random.default_rng(0)
    z, head = rng.normal(size=(N, D)), make_head("linear", rng)
    expected = special.softmax(z @ head.weight.T + head.bias, axis=1)
    np.testing.assert_allclose(reference.assign(z, head), expected, rtol=1e-13)


def test_gaussian_scores_are_log_densities() -> None:
    rng = np.random.default_rng(0)
    z, head = rng.normal(size=(N, D)), make_head("gaussian", rng)
    for j in range(K):
        density = stats.multivariate_normal(head.means[j], np.diag(np.exp(head.log_var[j])))
        expected = head.log_weights[j] + density.logpdf(z)
        np.testing.assert_allclose(head.scores(z)[:, j], expected, rtol=1e-12)


def test_log_softmax_does_not_overflow() -> None:
    np.testing.assert_allclose(reference.log_softmax(np.array([[1e4, 0.0]])), [[0.0, -1e4]])


def test_frequencies() -> None:
    mu = np.array([[0.0], [1.0]])
    f, labels, changed = reference.frequencies(
        np.array([[0.0], [1.0], [0.5]]), reference.StudentT(mu), np.array([0, 0, 0])
    )
    np.testing.assert_allclose(f, [1.5, 1.5])
    assert labels.tolist() == [0, 1, 0]  # the tie goes to the lowest index
    assert changed == 1
    assert reference.frequencies(np.zeros((3, 1)), reference.StudentT(mu))[2] == 3


def test_targets_by_hand() -> None:
    q = np.array([[0.8, 0.2], [0.4, 0.6]])
    # f = (1.2, 0.8): 0.64/1.2 : 0.04/0.8 = 32 : 3 and 0.16/1.2 : 0.36/0.8 = 8 : 27
    np.testing.assert_allclose(reference.dec_target(q), [[32 / 35, 3 / 35], [8 / 35, 27 / 35]])
    a, b = 0.8 / 1.2**0.5, 0.2 / 0.8**0.5
    np.testing.assert_allclose(reference.depict_target(q)[0], [a / (a + b), b / (a + b)])


@heads
def test_frozen_target_is_both_papers(kind: str) -> None:
    rng = np.random.default_rng(0)
    z, head = rng.normal(size=(N, D)), make_head(kind, rng)
    s, q = head.scores(z), reference.assign(z, head)
    f, u = q.sum(0), special.softmax(rng.normal(size=K))
    np.testing.assert_allclose(
        reference.frozen_target(s, f, power=2.0), reference.dec_target(q), rtol=1e-12
    )
    np.testing.assert_allclose(
        reference.frozen_target(s, f, power=1.0, prior=u),
        reference.depict_target(q, prior=u),
        rtol=1e-12,
    )
    sharp = reference.frozen_target(s, f, power=np.inf, prior=u)
    np.testing.assert_allclose(sharp, reference.frozen_target(s, f, power=1e6, prior=u), atol=1e-12)


def test_target_loss_is_the_divergence() -> None:
    rng = np.random.default_rng(0)
    z, head = rng.normal(size=(N, D)), make_head("student_t_1", rng)
    q, p = reference.assign(z, head), special.softmax(rng.normal(size=(N, K)), axis=1)
    kl, entropy = special.rel_entr(p, q).sum(), special.entr(p).sum()
    total = reference.target_loss(z, head, p, reduction="sum")
    np.testing.assert_allclose(total, kl, rtol=1e-12)
    np.testing.assert_allclose(reference.target_loss(z, head, p), kl / N, rtol=1e-12)
    cross = reference.target_loss(z, head, p, reduction="sum", kind="ce")
    np.testing.assert_allclose(cross, kl + entropy, rtol=1e-12)
    p[0] = 0.0  # takes no part
    less = reference.target_loss(z, head, p, reduction="sum")
    np.testing.assert_allclose(less, special.rel_entr(p[1:], q[1:]).sum(), rtol=1e-12)


def test_target_loss_gradient_is_equations_4_and_5_of_dec() -> None:
    rng = np.random.default_rng(0)
    nu = 3.0
    z, mu = rng.normal(size=(N, D)), rng.normal(size=(K, D))
    head = reference.StudentT(mu, nu)
    q, p = reference.assign(z, head), special.softmax(rng.normal(size=(N, K)), axis=1)
    dz, dmu = np.zeros((N, D)), np.zeros((K, D))
    for i in range(N):
        for j in range(K):
            pull = (p[i, j] - q[i, j]) * (z[i] - mu[j])
            pull /= 1 + np.linalg.norm(z[i] - mu[j]) ** 2 / nu
            dz[i] += (nu + 1) / nu * pull
            dmu[j] -= (nu + 1) / nu * pull
    found = reference.target_loss_gradients(z, head, p, reduction="sum")
    np.testing.assert_allclose(found["z"], dz, rtol=1e-12)
    np.testing.assert_allclose(found["centroids"], dmu, rtol=1e-12)


def test_kmeans_by_hand() -> None:
    x = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    mu = np.array([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    labels, squared = reference.kmeans_assign(x, mu)
    assert labels.tolist() == [0, 1, 0]  # the last row ties between 0 and 1
    assert squared.tolist() == [0.0, 17.0, 1.0]
    sums, counts = reference.kmeans_update(x, labels, 3, np.array([1.0, 2.0, 0.5]))
    assert sums.tolist() == [[0.5, 0.0], [6.0, 8.0], [0.0, 0.0]]
    assert counts.tolist() == [1.5, 2.0, 0.0]
    near = np.array([0.0, 9.0, 1.0])
    squared, potentials = reference.kmeans_candidates(x, mu[1:], near, np.array([1.0, 2.0, 0.5]))
    assert squared.tolist() == [[0.0, 9.0, 1.0], [0.0, 9.0, 1.0]]
    assert potentials.tolist() == [18.5, 18.5]
    squared, potentials = reference.kmeans_candidates(x, x[1:2], near, np.ones(3))
    assert squared.tolist() == [[0.0, 0.0, 1.0]]
    assert potentials.tolist() == [1.0]
    inertia, moved, counts = reference.kmeans_batch(x, mu, np.array([1.0, 0.0, 2.0]))
    assert inertia == 18.0
    assert moved.tolist() == [[1 / 3, 0.0], [3.0, 4.0], [9.0, 9.0]]
    assert counts.tolist() == [3.0, 1.0, 2.0]
    assert reference.kmeans_loss(x, mu) == 6.0
    assert reference.kmeans_loss(x, mu, np.array([1, 1, 1]), reduction="sum") == 4.0 + 17.0 + 1.0


def test_gaussian_kl_is_the_integral() -> None:
    mu, log_var, eta, log_tau = 0.3, -0.4, -0.5, 0.7
    first = stats.norm(mu, np.exp(log_var / 2))
    second = stats.norm(eta, np.exp(-log_tau / 2))
    expected = integrate.quad(
        lambda x: first.pdf(x) * (first.logpdf(x) - second.logpdf(x)), -12, 12, epsabs=1e-12
    )[0]
    arrays = [np.full((1, 1), value) for value in (mu, log_var, eta, log_tau)]
    np.testing.assert_allclose(reference.gaussian_kl(*arrays), [expected], rtol=1e-9)
    twice = [np.full((1, 2), value) for value in (mu, log_var, eta, log_tau)]
    np.testing.assert_allclose(reference.gaussian_kl(*twice), [2 * expected], rtol=1e-9)


def test_gaussian_kl_of_unit_variances_is_half_the_squared_distance() -> None:
    rng = np.random.default_rng(0)
    z, eta, zero = rng.normal(size=(N, D)), rng.normal(size=(N, D)), np.zeros((N, D))
    expected = 0.5 * ((z - eta) ** 2).sum(1)
    np.testing.assert_allclose(reference.gaussian_kl(z, zero, eta, zero), expected, rtol=1e-12)


# --- gradients ---------------------------------------------------------------------------------


@heads
def test_assign_gradients(kind: str) -> None:
    rng = np.random.default_rng(1)
    z, head, dq = rng.normal(size=(N, D)), make_head(kind, rng), rng.normal(size=(N, K))
    check_gradients(
        lambda: float((dq * reference.assign(z, head)).sum()),
        {"z": z, **parameters(head)},
        reference.assign_gradients(z, head, dq),
    )


@heads
@pytest.mark.parametrize("kind_of_loss", ["kl", "ce"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_target_loss_gradients(kind: str, kind_of_loss: str, reduction: str) -> None:
    rng = np.random.default_rng(2)
    z, head, p = rng.normal(size=(N, D)), make_head(kind, rng), rng.uniform(size=(N, K))
    p[0], p[1, 2] = 0.0, 0.0
    check_gradients(
        lambda: reference.target_loss(z, head, p, reduction=reduction, kind=kind_of_loss),
        {"z": z, **parameters(head)},
        reference.target_loss_gradients(z, head, p, reduction=reduction),
    )


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kmeans_loss_gradients(labelled: bool, reduction: str) -> None:
    rng = np.random.default_rng(3)
    z, mu = rng.normal(size=(N, D)), rng.normal(size=(K, D))
    labels = rng.integers(K, size=N) if labelled else None
    check_gradients(
        lambda: reference.kmeans_loss(z, mu, labels, reduction=reduction),
        {"z": z, "centroids": mu},
        reference.kmeans_loss_gradients(z, mu, labels, reduction=reduction),
    )


def test_gaussian_kl_gradients() -> None:
    rng = np.random.default_rng(4)
    names = ("mu", "log_var", "eta", "log_tau")
    arrays = {name: rng.normal(size=(N, D)) for name in names}
    dkl = rng.normal(size=N)
    check_gradients(
        lambda: float((dkl * reference.gaussian_kl(**arrays)).sum()),
        arrays,
        reference.gaussian_kl_gradients(**arrays, dkl=dkl),
    )


def test_no_rows() -> None:
    rng = np.random.default_rng(5)
    z, head = np.zeros((0, D)), make_head("student_t_1", rng)
    assert reference.target_loss(z, head, np.zeros((0, K))) == 0.0
    assert reference.kmeans_loss(z, head.centroids) == 0.0
    assert not reference.target_loss_gradients(z, head, np.zeros((0, K)))["centroids"].any()


# --- budgets -----------------------------------------------------------------------------------


def to_tf32(array: np.ndarray) -> np.ndarray:
    """Rounded to the 11 significant bits that a TF32 product sees."""
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent)


@heads
def test_budgets_for_float32_refuse_tf32(kind: str) -> None:
    """A budget that let coarse products pass would prove nothing."""
    rng = np.random.default_rng(6)
    z, head = rng.normal(size=(64, D)), make_head(kind, rng)
    u = budget.roundoff(torch.float32)
    coarse = dataclasses.replace(
        head, **{name: to_tf32(array) for name, array in parameters(head).items()}
    )
    coarse_z = to_tf32(z)

    q = reference.assign(z, head)
    error = np.abs(reference.assign(coarse_z, coarse) - q)
    assert (error > budget.assign(z, head, u)).mean() > 0.5
    f = q.sum(0)
    error = np.abs(reference.frequencies(coarse_z, coarse)[0] - f)
    assert (error > budget.frequencies(z, head, u)).any()

    target = budget.frozen(z, head, f, 0.0, 2.0, None, u)
    errors = budget.target_loss(z, head, target, u, reduction="mean", kind="kl")
    exact = reference.target_loss_gradients(z, head, target.p)
    found = reference.target_loss_gradients(coarse_z, coarse, target.p)
    for name, gradient in exact.items():
        assert (np.abs(found[name] - gradient) > errors[name]).any(), name
