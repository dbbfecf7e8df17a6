"""DEC: "Unsupervised Deep Embedding for Clustering Analysis" (Xie, Girshick, Farhadi, 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from deepclust import functional as F
from deepclust.cluster._checks import as_length, check_above_zero
from deepclust.cluster._columns import Values
from deepclust.cluster._composed import QUICK, ComposedEstimator
from deepclust.cluster._composition import Centroids, Composition, Forward
from deepclust.cluster._trainer import Batch, Length, Run
from deepclust.kernels._checks import is_number
from deepclust.losses import Schedule

PRESETS: dict[str, dict[str, Any]] = {
    # Section 4.3 of the paper, and its published code where the paper is silent (init_std, order).
    "paper": {
        **QUICK,
        "layer_updates": 50_000,
        "tune_updates": 100_000,
        "optimizer": "sgd",
        "pretrain_lr": 0.1,
        "cluster_lr": 0.01,
        "init_std": 0.01,
        "init_criterion": "inertia",
        "update_interval": 160,
        "max_updates": 100_000,
        "order": "sequential",
    },
    "quick": {**QUICK, "update_interval": 30},
}


@dataclass(frozen=True)
class Hardening(Centroids):
    """Cluster hardening: KL(P || Q) against a target P that sharpens the soft assignment Q.

    q_ij ∝ (1 + ||z_i - mu_j||^2 / nu)^(-(nu+1)/2), p_ij ∝ q_ij^power / f_j^(power/2), f_j = sum_i
    q_ij: with power 2 eqs. 1 to 3 of Xie et al. (2016). P is that of the whole data, frozen between
    refreshes, and never stored.

    Args:
        weight: Of the loss, a number or a schedule.
        nu: Degrees of freedom of the Student-t similarity.
        power: Of q in the target; infinity makes it one-hot.
        update_interval: Updates between two targets, or Epochs(n).
        tol: Stop when fewer than this share of the labels change between two targets.
    """

    weight: Schedule = 1.0
    nu: float = 1.0
    power: float = 2.0
    update_interval: int | Length = 30
    tol: float = 1e-3

    name = "kl"
    is_shareable = True

    def __post_init__(self) -> None:
        as_length("update_interval", self.update_interval, 1)
        check_above_zero("nu", self.nu)
        if self.power != math.inf:
            check_above_zero("power", self.power)
        if not (is_number(self.tol) and self.tol >= 0):
            raise ValueError(f"tol: got {self.tol!r}; it takes a share of at least 0")

    def refresh(self, method: Composition, run: Run, z: Values) -> None:
        """The target of the whole data, eq. 3, and how many labels changed."""
        super().refresh(method, run, z)
        run.state["snapshot"] = frozen(
            z, method.head(), power=self.power, frequencies=run.state["frequencies"]
        )

    def losses(
        self, method: Composition, run: Run, batch: Batch, forward: Forward
    ) -> dict[str, Tensor]:
        """L = KL(P || Q), eq. 2; its gradients are eqs. 4 and 5."""
        target = run.state["snapshot"][batch.idx]
        kl = F.target_loss(forward.z, method.head(), target, backend=method.backend, check=False)
        return {"kl": kl}

    def stop(self, method: Composition, run: Run) -> str | None:
        """Section 3.2: stop when fewer than tol of the labels change between two refreshes."""
        if run.update > 0 and run.state["changed"] < self.tol:
            return f"{run.state['changed']:.3%} of the labels changed, fewer than tol={self.tol:g}"
        return None


def frozen(z: Values, head: F.Head, **options: Any) -> F.Snapshot:
    """`freeze_target` of embeddings (N, D) whose frequencies are known, wherever they lie."""
    target = F.freeze_target(z[:0], head, check=False, **options)
    return F.Snapshot(z, target.head, target.bias, target.power)


@dataclass(eq=False, repr=False, kw_only=True)
class DEC(ComposedEstimator):
    """Deep embedded clustering.

    Trains an autoencoder, finds centroids mu by k-means on its codes z, then minimises KL(P || Q) =
    sum_ij p_ij log(p_ij / q_ij) over the encoder and the centroids, with

        q_ij ∝ (1 + ||z_i - mu_j||^2 / nu)^(-(nu+1)/2),    p_ij ∝ q_ij^2 / f_j,    f_j = sum_i q_ij

    (eqs. 1 to 3 of Xie et al., 2016). P is that of the whole data, frozen between refreshes, and
    never stored: memory grows with N (D + latent_dim), not with N K.

    Lengths count updates (batches), not passes: short pre-training is the first cause of failed
    runs. The preset "paper" is the published recipe, which takes hours on a CPU.

    Args:
        nu: Degrees of freedom of the Student-t similarity.
        update_interval: Updates between two targets, or Epochs(n).
        tol: Stop when fewer than this share of the labels change between two targets.

    The other parameters, and the attributes, are those of `DeepClustering`.

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from deepclust.cluster import DEC
        >>> X, _ = make_blobs(200, centers=3, n_features=8, random_state=0)
        >>> dec = DEC(3, hidden=(16,), latent_dim=2, tune_updates=50, max_updates=50)
        >>> dec.fit(X).predict_proba(X).shape
        (200, 3)
    """

    nu: float = 1.0
    update_interval: Any = None
    tol: float = 1e-3

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def _clustering(self, settings: dict[str, Any]) -> Hardening:
        return Hardening(nu=self.nu, update_interval=settings["update_interval"], tol=self.tol)
