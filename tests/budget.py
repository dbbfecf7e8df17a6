"""Error budgets: how far a careful computation in a type of unit roundoff u may be from the truth.

First-order rounding analysis of the formulas, element by element, from the oracle's own numbers:
- a sum of n terms adds at most `growth(n)` u times the sum of their sizes: n in the worst case, and
  4 sqrt(n) with a probability of failure below 1e-3 (Higham and Mary 2019);
- an elementary function adds a unit in the last place, 2 u, and carries the error of its argument;
- Euclidean heads work on coordinates centred by the median centroid, so that sizes are those of the
  centred coordinates, |z - c| + |mu - c|, wherever the data lie.
The small integers count the roundings of the operations between. Nothing is fitted to results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tests import reference


def roundoff(dtype: torch.dtype) -> float:
    """u, the largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def growth(n: int) -> float:
    """By how many roundoffs a sum of n terms may grow."""
    return min(n, 4 * n**0.5)


def softmax(s: np.ndarray, es: np.ndarray, u: float) -> tuple[np.ndarray, np.ndarray]:
    """softmax_j(s) and its error, where s has the error es."""
    shifted = s - s.max(axis=1, keepdims=True)
    q = np.exp(reference.log_softmax(s))
    exponent = es + u * (np.abs(shifted) + 2)
    relative = exponent + (q * exponent).sum(1, keepdims=True) + (growth(s.shape[1]) + 4) * u
    return q, q * relative + float(np.finfo(np.float32).tiny if u > 1e-10 else np.finfo(float).tiny)


def log_sum_exp(s: np.ndarray, es: np.ndarray, u: float) -> tuple[np.ndarray, np.ndarray]:
    """log sum_j exp(s) (N, 1) and its error."""
    top = s.max(axis=1, keepdims=True)
    value = top + np.log(np.exp(s - top).sum(1, keepdims=True))
    q = np.exp(s - value)
    exponent = es + u * (np.abs(s - top) + 2)
    rounding = u * (np.abs(value) + np.abs(value - top) * 2)
    return value, (q * exponent).sum(1, keepdims=True) + (growth(s.shape[1]) + 2) * u + rounding


@dataclass
class Scores:
    """The scores of a head, their error, and the error of what `pull_back` gives."""

    z: np.ndarray
    head: reference.Head
    u: float

    def __post_init__(self) -> None:
        u, head, z = self.u, self.head, self.z
        self.s = head.scores(z)
        d = z.shape[1]
        if isinstance(head, reference.Linear):
            size = (np.abs(z)[:, None, :] * np.abs(head.weight)[None]).sum(2)
            bias = 0.0 if head.bias is None else np.abs(head.bias)[None, :]
            self.es = (growth(d) + 3) * u * (size + bias)
            return
        mu = head.centroids if isinstance(head, reference.StudentT) else head.means
        centre = np.sort(mu, axis=0)[(len(mu) - 1) // 2]  # the median, the lower of two
        # (N, K, D): the size of z - mu when it is taken between centred coordinates
        self.size = np.abs(z - centre)[:, None, :] + np.abs(mu - centre)[None, :, :]
        if isinstance(head, reference.StudentT):
            # distance: 3 products of D terms each, as large as the square of `size` together
            self.ed2 = (growth(d) + 6) * u * (self.size**2).sum(2)
            d2 = reference.squared_distances(z, mu)
            self.relative = self.ed2 / (head.nu + d2)
            self.es = (head.nu + 1) / 2 * self.relative + 5 * u * np.abs(self.s)
        else:
            precision = np.exp(-head.log_var)[None]
            terms = np.log(2 * np.pi) + np.abs(head.log_var)[None] + self.size**2 * precision
            weights = np.abs(head.log_weights)[None, :]
            self.es = (growth(d) + 9) * u * (weights + 0.5 * terms.sum(2))

    def pull_back(self, g: np.ndarray, eg: np.ndarray) -> dict[str, np.ndarray]:
        """The errors of the gradients that come from ds = g with the error eg."""
        n, k = self.s.shape
        u, head = self.u, self.head
        over_k = eg + np.abs(g) * (growth(k) + 6) * u
        over_n = eg + np.abs(g) * (growth(n) + 6) * u
        if isinstance(head, reference.Linear):
            errors = {
                "z": over_k @ np.abs(head.weight),
                "weight": over_n.T @ np.abs(self.z),
            }
            if head.bias is not None:
                errors["bias"] = over_n.sum(0)
            return errors
        if isinstance(head, reference.StudentT):
            d2 = reference.squared_distances(self.z, head.centroids)
            factor = (head.nu + 1) / (head.nu + d2)
            carried = np.abs(g) * self.relative
            to_z = ((over_k + carried) * factor)[:, :, None] * self.size
            to_mu = ((over_n + carried) * factor)[:, :, None] * self.size
            return {"z": to_z.sum(1), "centroids": to_mu.sum(0)}
        precision = np.exp(-head.log_var)[None]
        return {
            "z": (over_k[:, :, None] * self.size * precision).sum(1),
            "means": (over_n[:, :, None] * self.size * precision).sum(0),
            "log_var": (over_n[:, :, None] * 0.5 * (self.size**2 * precision + 1)).sum(0),
            "log_weights": over_n.sum(0),
        }


def assign(z: np.ndarray, head: reference.Head, u: float) -> np.ndarray:
    """The error of q."""
    scores = Scores(z, head, u)
    return softmax(scores.s, scores.es, u)[1]


def assign_gradients(
    z: np.ndarray, head: reference.Head, dq: np.ndarray, u: float
) -> dict[str, np.ndarray]:
    """The errors of the gradients of sum(dq * q)."""
    scores = Scores(z, head, u)
    q, eq = softmax(scores.s, scores.es, u)
    inner = (q * dq).sum(1, keepdims=True)
    sizes = (q * np.abs(dq)).sum(1, keepdims=True)
    einner = (eq * np.abs(dq)).sum(1, keepdims=True) + (growth(q.shape[1]) + 1) * u * sizes
    eg = eq * np.abs(dq - inner) + q * (einner + 3 * u * (np.abs(dq) + sizes))
    return scores.pull_back(q * (dq - inner), eg)


def frequencies(z: np.ndarray, head: reference.Head, u: float) -> np.ndarray:
    """The error of f."""
    scores = Scores(z, head, u)
    q, eq = softmax(scores.s, scores.es, u)
    return eq.sum(0) + growth(len(z)) * u * q.sum(0)


@dataclass
class Target:
    """p and its error; t and its error too where a snapshot recomputes p = softmax(t)."""

    p: np.ndarray
    ep: np.ndarray
    t: np.ndarray | None = None
    et: np.ndarray | None = None


def given(p: np.ndarray) -> Target:
    return Target(p, np.zeros_like(p))


def frozen(
    z: np.ndarray,
    head: reference.Head,
    f: np.ndarray,
    ef: np.ndarray | float,
    power: float,
    prior: np.ndarray | None,
    u: float,
) -> Target:
    """The target of a snapshot, where f has the error ef."""
    scores = Scores(z, head, u)
    t = reference.bracket(scores.s, f, prior)
    if np.isinf(power):
        p = np.eye(t.shape[1])[t.argmax(axis=1)]
        return Target(p, np.zeros_like(p))
    logs = np.abs(np.log(f)) + np.abs(np.log(1 / len(f) if prior is None else prior))
    et = power * (scores.es + (0.5 * ef / f + 2 * u * logs)[None, :] + 3 * u * np.abs(scores.s))
    p, ep = softmax(power * t, et, u)
    return Target(p, ep, power * t, et)


def target_loss(
    z: np.ndarray, head: reference.Head, target: Target, u: float, *, reduction: str, kind: str
) -> dict[str, np.ndarray | float]:
    """The errors of the loss and of its gradients."""
    n, k = target.p.shape
    p, ep = target.p, target.ep
    scores = Scores(z, head, u)
    q, eq = softmax(scores.s, scores.es, u)
    lse, else_ = log_sum_exp(scores.s, scores.es, u)
    log_q = scores.s - lse
    log_p = np.zeros_like(p)
    if kind == "kl":
        np.log(p, out=log_p, where=p > 0)
    steps = (growth(k) + 8) * u
    sizes = (p * (np.abs(log_p) + np.abs(scores.s) + np.abs(lse))).sum(1)
    rows = (ep * np.abs(log_p - log_q) + p * (scores.es + else_)).sum(1) + steps * sizes
    if target.t is not None and target.et is not None:
        lse_t, elset = log_sum_exp(target.t, target.et, u)
        rows += (p * (target.et + elset + steps * (np.abs(target.t) + np.abs(lse_t)))).sum(1)
    total = rows.sum() + growth(n) * u * np.abs((p * (log_p - log_q)).sum(1)).sum()
    mass = p.sum(1, keepdims=True)
    g = mass * q - p
    eg = mass * eq + ep + ep.sum(1, keepdims=True) * q + (growth(k) + 4) * u * (mass * q + p)
    errors = {"loss": total + 2 * u * np.abs(sizes.sum()), **scores.pull_back(g, eg)}
    scale = max(n, 1) if reduction == "mean" else 1
    return {name: error / scale for name, error in errors.items()}
