"""A target distribution that is never stored: any row is computed again when it is needed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from deepclust.kernels import _checks, _dispatch, heads
from deepclust.kernels._arrays import Array, on_tensors
from deepclust.kernels._blocks import full_precision, row_blocks
from deepclust.kernels.frequencies.op import frequencies as cluster_frequencies
from deepclust.kernels.heads import Head

Rows = slice | Tensor | np.ndarray[Any, Any] | list[int]


class Snapshot:
    """A frozen target p = softmax_j(power * s + bias) over embeddings and a head of the past.

    Made by `freeze_target`. It keeps N x D + K x D + K numbers instead of N x K, and
    `snapshot[rows]` is the snapshot of some rows (a view for a slice, else a copy of those rows'
    embeddings).

    Attributes:
        z: Embeddings (N, D), by reference: a tensor, one over a memory map, or anything else with
            a shape and a device whose rows are tensors, z[rows]. Changing it in place changes the
            target.
        head: A copy of the head.
        bias: The column bias power * (log u - log f) / 2 (K,), up to a constant, in float32 or
            float64; where power is infinite, without that factor.
        power: The power of q in p; infinity makes p one-hot.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> z, centroids = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0]])
        >>> snapshot = F.freeze_target(z, centroids)
        >>> len(snapshot), len(snapshot[:2])
        (3, 2)
        >>> snapshot[:1].probabilities()
        tensor([[0.9615, 0.0385]])
    """

    def __init__(self, z: Any, head: Head, bias: Tensor, power: float) -> None:
        self.z, self.head, self.bias, self.power = z, head, bias, power

    def __len__(self) -> int:
        return int(self.z.shape[0])

    def __getitem__(self, rows: Rows) -> Snapshot:
        if isinstance(rows, np.ndarray):
            rows = torch.from_numpy(rows)
        if isinstance(rows, Tensor) and rows.device != self.z.device and rows.dtype != torch.bool:
            rows = rows.to(self.z.device)
        return Snapshot(self.z[rows].to(self.bias.device), self.head, self.bias, self.power)

    def __repr__(self) -> str:
        return f"Snapshot(n={len(self)}, head={self.head!r}, power={self.power})"

    def probabilities(self) -> Tensor:
        """The target p (N, K), stored whole: for rows that one can afford.

        Returns:
            p (N, K) in the type of the head's tensors.
        """
        dtype = self.bias.dtype
        p = torch.empty(len(self), self.head.n_clusters, dtype=dtype, device=self.bias.device)
        with torch.no_grad(), full_precision(self.bias):
            for rows in row_blocks(len(self), max(self.z.shape[1], self.head.n_clusters)):
                p[rows] = probabilities(self.logits(rows, dtype), self.power)
        return p.to(self.head.dtype)

    def logits(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """The rows' t = power * s + bias (without the power where it is infinite), in `dtype`."""
        s = self.head.to(dtype).scores(self.z[rows].to(self.bias.device, dtype))
        return (s if math.isinf(self.power) else self.power * s) + self.bias.to(dtype)

    @property
    def form(self) -> str:
        """The snapshot without its tensors, as a string that operators can take."""
        return f"{self.power!r} {self.head.form}"

    @property
    def tensors(self) -> list[Tensor]:
        """The snapshot's tensors, in the order that operators take."""
        return [self.z, self.bias, *self.head.params]

    def state_dict(self) -> dict[str, Any]:
        """The snapshot as tensors and a string, for a checkpoint."""
        return {"form": self.form, "tensors": self.tensors}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Snapshot:
        """The snapshot of which `state` is the state_dict."""
        return snapshot_of(state["form"], state["tensors"])


def snapshot_of(form: str, tensors: list[Tensor]) -> Snapshot:
    """The inverse of (snapshot.form, snapshot.tensors)."""
    power, head_form = form.split(" ")
    z, bias, *params = tensors
    return Snapshot(z, heads.head_of(head_form, params), bias, float(power))


def probabilities(t: Tensor, power: float) -> Tensor:
    """p = softmax_j(t), or one-hot at the largest t where the power is infinite."""
    if math.isinf(power):
        return torch.zeros_like(t).scatter_(1, t.argmax(1, keepdim=True), 1)
    return torch.softmax(t, 1)


def freeze_target(
    z: Array,
    head: Head | Array,
    *,
    power: float = 2.0,
    prior: Array | None = None,
    frequencies: Array | None = None,
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> Snapshot:
    """Freeze the target distribution of the whole data without storing it.

    p_ij ∝ (q_ij (u_j / f_j)^(1/2))^power, rows summing to one, f_j = sum_i q_ij. Power 2 with a
    uniform prior u is DEC's target (eq. 3 of Xie et al., 2016), power 1 is DEPICT's (eq. 8 of
    Dizaji et al., 2017), and an infinite power gives one-hot targets. In scores: p =
    softmax_j(power * (s_ij - 1/2 log f_j + 1/2 log u_j)).

    Args:
        z: Embeddings (N, D), kept by reference: a tensor, or an array of NumPy (of a memory map a
            block at a time is read) or with DLPack.
        head: StudentT, Linear or Gaussian, or a tensor of centroids (K, D); copied.
        power: Above 0; infinity for one-hot targets, ties to the lowest index.
        prior: u (K,), the expected share of each cluster, summing to one; by default all alike.
        frequencies: f (K,), where they are known: of several processes, or from `frequencies`. By
            default one pass over z finds them.
        backend: "auto", "eager", "cpp" or "triton", for that pass.
        precision: "exact" or "fast".
        check: Refuse NaN and Inf (on CPU).

    Returns:
        The target, for `target_loss`.

    Raises:
        ValueError: If shapes, devices or values do not fit.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> z, centroids = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0]])
        >>> target = F.freeze_target(z, centroids)
        >>> batch = torch.tensor([0, 2])
        >>> F.target_loss(z[batch], centroids, target[batch])
        tensor(0.0812)
    """
    snapshot: Snapshot = on_tensors(
        _freeze_target, z, head, power, prior, frequencies, backend, precision, check
    )
    return snapshot


@torch.no_grad()
def _freeze_target(
    z: Tensor,
    head: Head | Tensor,
    power: float,
    prior: Tensor | None,
    frequencies: Tensor | None,
    backend: str,
    precision: str,
    check: bool,
) -> Snapshot:
    head = heads.as_head(head)
    _dispatch.check_options(backend, precision)
    heads.check_inputs(z, head)
    z = z.detach()
    k = head.n_clusters
    if not (isinstance(power, (int, float)) and power > 0):
        raise ValueError(f"power: got {power!r}; it takes a number above 0, or infinity")
    look = _checks.wants_check(check, z)
    if frequencies is None:
        frequencies, _, _ = cluster_frequencies(
            z, head, backend=backend, precision=precision, check=check
        )
    else:
        _checks.check_vector("frequencies", frequencies, k)
        if look:
            heads.check_values(z, head)
            _checks.check_nonnegative("frequencies", frequencies)
    tiny = torch.finfo(torch.float32).tiny
    bias = -frequencies.double().clamp_min(tiny).log()
    if prior is not None:
        _checks.check_vector("prior", prior, k)
        if look:
            _checks.check_nonnegative("prior", prior)
            total = float(prior.sum(dtype=torch.float64))
            if abs(total - 1) > 1e-3:
                raise ValueError(f"prior: got a sum of {total:.6g}; it takes shares that sum to 1")
        bias = bias + prior.to(bias.device, torch.float64).clamp_min(tiny).log()
    bias = bias / 2 if math.isinf(power) else bias * power / 2
    # A common shift changes no p; around its median, the bias keeps its digits in float32.
    bias = bias - bias.median()
    head = head.frozen()
    bias = bias.to(z.device, _checks.compute_dtype(head.dtype))
    return Snapshot(z, head, bias, float(power))


def _flatten(snapshot: Snapshot) -> tuple[list[Any], str]:
    return snapshot.tensors, snapshot.form


def _flatten_with_keys(snapshot: Snapshot) -> tuple[list[tuple[Any, Any]], str]:
    keys = map(_pytree.GetAttrKey, ("z", "bias", *snapshot.head.names))
    return list(zip(keys, snapshot.tensors, strict=False)), snapshot.form


def _unflatten(tensors: Any, form: str) -> Snapshot:
    return snapshot_of(form, list(tensors))


_pytree.register_pytree_node(
    Snapshot,
    _flatten,
    _unflatten,
    serialized_type_name="deepclust.functional.Snapshot",
    flatten_with_keys_fn=_flatten_with_keys,
)
