"""DEPICT: joint convolutional autoencoder and relative entropy (Dizaji et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from deepclust import functional as F
from deepclust.cluster._checks import as_length, check_at_least_zero, either
from deepclust.cluster._columns import Values, as_one, mapped
from deepclust.cluster._composed import QUICK, ComposedEstimator
from deepclust.cluster._composition import ONCE_A_PASS, Clustering, Composition, Forward
from deepclust.cluster._data import Rows
from deepclust.cluster._trainer import Batch, Epochs, Length, Run
from deepclust.cluster.dec import frozen
from deepclust.cluster.interventions import CollapseGuard
from deepclust.kernels._blocks import row_blocks
from deepclust.kernels._checks import is_number
from deepclust.losses import Schedule, by_rank, layer_reconstruction, size_prior
from deepclust.networks import Autoencoder, LayeredAutoencoder
from deepclust.nn import DEPICTHead

TARGETS = ("paper", "published-code", "exact")

# The published network (its code), for rows in [-1, 1], and how often there is a target.
_PUBLISHED: dict[str, Any] = {
    "activation": "leaky_relu",
    "code": "tanh",
    "output": "tanh",
    "update_interval": ONCE_A_PASS,
}

# Section 4 of the paper; lengths and rates, on which it is silent, from the published code.
_PAPER: dict[str, Any] = {
    **QUICK,
    **_PUBLISHED,
    "tune_updates": Epochs(4_000),
    "max_updates": Epochs(1_000),
    "warmup_updates": 0,
    "pretrain_lr": 1e-4,
    "cluster_lr": 1e-4,
    "init_criterion": "inertia",
    "target": "paper",
    "hidden_weight": 1.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    # Where the two differ, the code.
    "published-code": {
        **_PAPER,
        "warmup_updates": Epochs(10),
        "target": "published-code",
        "hidden_weight": 0.1,
    },
    "quick": {
        **QUICK,
        **_PUBLISHED,
        "warmup_updates": 200,
        "target": "paper",
        "hidden_weight": 1.0,
    },
}


@dataclass(frozen=True)
class BalancedSoftMax(Clustering):
    """Cross-entropy from a balanced target, made of clean rows, to the prediction of noisy ones.

    q_ij ∝ exp(theta_j . z_i) (eq. 1 of Dizaji et al., 2017), p the target that makes cluster sizes
    more alike, or more like a prior (eq. 7). The paper's letters are the other way round: its P is
    the prediction, q here. Beside it stands the reconstruction of each layer of the encoder.

    Args:
        weight: Of the cross-entropy, a number or a schedule.
        target: "paper", p_ij ∝ q_ij (u_j / f_j)^(1/2) (eq. 7); "published-code", p_ij ∝ q_ij^2 u_j
            / f_j; "exact", the true minimiser of KL(P || Q) + KL(f || u) (eq. 4), of which eq. 7
            drops a term.
        prior: u: "uniform", zipf(s), or shares (K,) that sum to one, which the clusters take by
            their rank at each refresh.
        corruption: The share of values that dropout sets to zero before each layer of the noisy
            encoder but the last (eq. 9), or one share for each.
        joint: Train on the reconstruction of each layer with the clustering, and before it (section
            3.2); else the autoencoder is trained on rows alone, and the clustering leaves it.
        hidden_weight: Of the reconstruction of each hidden layer; that of the rows has weight 1.
        clean_gradient: Whether gradients of those reconstructions reach the clean encoder too.
        warmup_updates: Train on the labels that k-means began with for so long, at least.
        update_interval: Updates between two targets, or Epochs(n).
        tol: Stop when the mean squared change of the target's elements is below this.
    """

    weight: Schedule = 1.0
    target: str = "paper"
    prior: Any = "uniform"
    corruption: Any = 0.1
    joint: bool = True
    hidden_weight: float = 1.0
    clean_gradient: bool = True
    warmup_updates: int | Length = 0
    update_interval: int | Length = ONCE_A_PASS
    tol: float = 1e-7

    name = "cross-entropy"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target: got {self.target!r}; it takes {either(TARGETS)}")
        given = self.corruption
        shares = [given] if is_number(given) else given
        if isinstance(shares, np.ndarray):
            shares = shares.tolist()
        if (
            not isinstance(shares, Sequence)
            or not shares
            or not all(is_number(share) and 0 <= share < 1 for share in shares)
        ):
            raise ValueError(
                f"corruption: got {given!r}; it takes a share from 0 to below 1, or one for each"
                " layer of the encoder"
            )
        for name in ("joint", "clean_gradient"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {getattr(self, name)!r}; it takes True or False")
        for name in ("hidden_weight", "tol"):
            check_at_least_zero(name, getattr(self, name))
        as_length("warmup_updates", self.warmup_updates, 0)
        as_length("update_interval", self.update_interval, 1)

    @property
    def decodes(self) -> bool:  # type: ignore[override]
        """Whether the decoder is trained with the clustering."""
        return self.joint

    @property
    def weights(self) -> dict[str, Schedule]:
        """Both terms of eq. 11 as they are."""
        return {**super().weights, **({"reconstruction": 1.0} if self.joint else {})}

    def prepare(self, method: Composition, rows: Rows) -> None:
        """What is clustered has to be the code, of which there is a noisy form."""
        size_prior(self.prior, method.head().n_clusters)
        if method.features != "last":
            raise ValueError(f"features: got {method.features}; DEPICT takes 'last'")
        if any(isinstance(part, CollapseGuard) for part in method.recipe.interventions):
            raise ValueError(
                "interventions: CollapseGuard moves centroids, and a soft-max layer has none; the"
                " prior is what keeps clusters from being empty here"
            )
        shares = self.shares(method.network)
        with torch.no_grad():
            method.network.denoise(next(rows.blocks())[1][:2], shares)

    def layer(self, n_clusters: int, n_features: int, backend: str) -> DEPICTHead:
        """The soft-max layer."""
        return DEPICTHead(n_clusters, n_features, backend=backend)

    def shares(self, network: Autoencoder) -> list[float]:
        """The share of values to drop before each layer of the encoder."""
        if not is_number(self.corruption):
            return [float(share) for share in self.corruption]
        n_layers = network.n_layers if isinstance(network, LayeredAutoencoder) else 1
        return [self.corruption] * max(n_layers - 1, 1) + [0.0] * (n_layers > 1)

    def pretrain(self, method: Composition, forward: Forward) -> dict[str, Tensor]:
        """All layers at once: the reconstruction of eq. 11 alone."""
        if not self.joint:
            return super().pretrain(method, forward)
        _, outputs = method.denoise(forward.x, self.shares(method.network))
        return {"reconstruction": self._reconstruction(method, outputs, forward)}

    def start(self, method: Composition, run: Run, z: Values) -> None:
        """The directions of k-means' centroids, and its labels for the warm-up."""
        centroids, labels = method.recipe.start(run, z)
        if run.settings.y is not None:
            order = matched(as_one(labels), run.settings.y, len(centroids)).to(z.device)
            centroids, labels = centroids[order], mapped(order.argsort().__getitem__, labels)
        method.layer.weight.copy_(nn.functional.normalize(centroids))
        method.layer.bias.zero_()
        run.state["labels"] = labels
        nearest, alike = F.StudentT(centroids), torch.ones_like(centroids[:, 0])
        run.state["snapshot"] = frozen(z, nearest, power=float("inf"), frequencies=alike)

    def refresh(self, method: Composition, run: Run, z: Values) -> None:
        """The target of the whole data, eq. 7, of clean rows."""
        super().refresh(method, run, z)
        if run.update < run.in_updates(as_length("warmup_updates", self.warmup_updates, 0)):
            return
        f = run.state["frequencies"]
        prior = by_rank(size_prior(self.prior, len(f)).to(f), f)
        power = 2.0 if self.target == "published-code" else 1.0
        target = frozen(z, method.head(), power=power, frequencies=f, prior=prior)
        if self.target == "exact":
            options: dict[str, Any] = {"prior": prior, "backend": method.backend}
            closed = F.Snapshot(as_one(z), target.head, target.bias, power)
            exact = F.freeze_balanced_target(closed.z, method.head(), check=False, **options)
            run.log("objective", F.balance_objective(exact, **options))
            run.log("objective of eq. 7", F.balance_objective(closed, **options))
            target = F.Snapshot(z, exact.head, exact.bias, exact.power)
        run.state["moved"] = moved = mean_square(target, run.state["snapshot"])
        run.log("change of target", moved)
        run.state["snapshot"] = target

    def losses(
        self, method: Composition, run: Run, batch: Batch, forward: Forward
    ) -> dict[str, Tensor]:
        """Both terms of eq. 11: the cross-entropy, and the reconstruction of each layer."""
        if method.recipe.freeze_encoder:
            z, outputs = forward.z, list[Tensor]()
        else:
            z, outputs = method.denoise(forward.x, self.shares(method.network))
        target = run.state["snapshot"][batch.idx]
        if batch.y is not None:
            target = with_labels(target.probabilities(), batch.y)
        options: Any = {"kind": "ce", "backend": method.backend, "check": False}
        losses = {self.name: F.target_loss(z, method.head(), target, **options)}
        if self.joint and outputs:
            losses["reconstruction"] = self._reconstruction(method, outputs, forward)
        return losses

    def stop(self, method: Composition, run: Run) -> str | None:
        """When targets hardly change from one refresh to the next."""
        if run.update > 0 and run.state.get("moved", self.tol) < self.tol:
            return f"targets moved by {run.state['moved']:.3g}, less than tol={self.tol:g}"
        return None

    def _reconstruction(
        self, method: Composition, outputs: Sequence[Tensor], forward: Forward
    ) -> Tensor:
        """The second term of eq. 11, of which the code is no part."""
        x = forward.x
        if len(outputs) == 1 or self.hidden_weight == 0:
            return layer_reconstruction(outputs[:1], [x])
        if self.clean_gradient:
            hidden = forward.layers
        else:
            with torch.no_grad():
                hidden = method.layers(x)
        weights = [1.0] + [self.hidden_weight] * (len(outputs) - 1)
        return layer_reconstruction(outputs, [x, *hidden[:-1]], weights)


def with_labels(p: Tensor, y: Tensor) -> Tensor:
    """Targets p (n, K), one-hot where the row's label y (n,) is known: not -1."""
    y = y.unsqueeze(1)
    one_hot = y == torch.arange(p.shape[1], device=p.device)  # torch's own reads y on the host
    return torch.where(y >= 0, one_hot.to(p), p)


def matched(labels: Tensor, y: Tensor, n_clusters: int) -> Tensor:
    """The cluster (K,) that each class is found in, where rows have a known label y (N,)."""
    known = y >= 0
    pairs = (labels[known] * n_clusters + y[known]).bincount(minlength=n_clusters**2)
    counts = pairs.view(n_clusters, n_clusters).cpu().numpy()
    clusters, classes = linear_sum_assignment(counts, maximize=True)
    return torch.from_numpy(clusters[np.argsort(classes)])


def mean_square(target: F.Snapshot, other: F.Snapshot) -> float:
    """The mean squared difference of the elements of two targets (N, K), by blocks."""
    n, k = len(target), target.head.n_clusters
    total = sum(
        (target[rows].probabilities() - other[rows].probabilities()).double().square().sum()
        for rows in row_blocks(n, max(k, target.z.shape[1]))
    )
    return float(total) / (n * k)


@dataclass(eq=False, repr=False, kw_only=True)
class DEPICT(ComposedEstimator):
    """Deep embedded regularised clustering: a soft-max layer on a denoising autoencoder.

    Minimises -1/N sum_ij p_ij log q~_ij + 1/N sum_i sum_l ||z_i^l - z^_i^l||^2 / |z_i^l| (eq. 11 of
    Dizaji et al., 2017): q~ is predicted for corrupted rows, the targets p are made of clean ones,
    balanced by a prior (eq. 7), and each layer z^l of the clean encoder is reconstructed by the
    decoder. The autoencoder is trained so before, all layers at once.

    Rows are images (`image_shape`, or X (N, H, W)), scaled to [-1, 1]; with network="mlp" they are
    any vectors. With labels for some of the rows, `fit(X, y)`, y -1 where there is none, these rows
    have their label as target, and cluster j is class j.

    Args:
        target: "paper", "published-code" or "exact": see `BalancedSoftMax`, as for those below.
        prior: Expected cluster sizes: "uniform", zipf(s), or shares (K,).
        corruption: Share of values dropped before each layer of the noisy encoder but the last.
        joint: Reconstruct all layers, with the clustering too.
        hidden_weight: Weight of the reconstruction of hidden layers.
        clean_gradient: Whether gradients reach the clean encoder through these.
        warmup_updates: Length of the training on k-means' labels.
        update_interval: Updates between two targets, or Epochs(n).
        tol: Stop when the mean squared change of the target's elements is below this.

    The other parameters, and the attributes, are those of `DeepClustering`; latent_dim=None is K.
    The presets "paper" and "published-code" take a day or more on a CPU, and batch_size=100.
    `hidden` takes the published networks "depict-mnist", "depict-usps", "depict-cmu-pie",
    "depict-frgc" and "depict-ytf"; without it images of any size get the first. `cluster_centers_`
    are the clusters' mean embeddings.

    Example:
        >>> from deepclust.cluster import DEPICT
        >>> from deepclust.datasets import load_digits
        >>> X = load_digits().X[:200]
        >>> depict = DEPICT(10, image_shape=(8, 8), tune_updates=2, max_updates=4)
        >>> depict.fit(X).predict_proba(X).shape
        (200, 10)
    """

    network: Any = "conv"
    latent_dim: Any = None
    scale: Any = "range"
    target: str | None = None
    prior: Any = "uniform"
    corruption: Any = 0.1
    joint: bool = True
    hidden_weight: float | None = None
    clean_gradient: bool = True
    warmup_updates: Any = None
    update_interval: Any = None
    tol: float = 1e-7

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    uses_labels = True

    def _clustering(self, settings: dict[str, Any]) -> BalancedSoftMax:
        return BalancedSoftMax(
            target=settings["target"],
            prior=self.prior,
            corruption=self.corruption,
            joint=self.joint,
            hidden_weight=settings["hidden_weight"],
            clean_gradient=self.clean_gradient,
            warmup_updates=settings["warmup_updates"],
            update_interval=settings["update_interval"],
            tol=self.tol,
        )

    def _network(self, s: dict[str, Any], n_features: int) -> Autoencoder:
        if s["network"] == "conv" and s["hidden"] is None:
            s = {**s, "hidden": "depict-mnist"}
        return super()._network({**s, "init_std": "glorot"}, n_features)  # as the published code
