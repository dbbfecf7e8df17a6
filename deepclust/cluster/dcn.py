"""DCN: "Towards K-means-friendly Spaces" (Yang, Fu, Sidiropoulos, Hong, 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.cluster._checks import check_above_zero, check_integer
from deepclust.cluster._columns import Values
from deepclust.cluster._composed import QUICK, ComposedEstimator
from deepclust.cluster._composition import Centroids, Composition, Forward, Regulariser
from deepclust.cluster._trainer import Batch, Epochs, Run
from deepclust.cluster.regularisers import Reconstruction
from deepclust.losses import Schedule

PRESETS: dict[str, dict[str, Any]] = {
    # The published code for MNIST: 250 + 250 epochs of pre-training, 50 of clustering, batch 256.
    "paper": {
        **QUICK,
        "layer_updates": Epochs(250),
        "tune_updates": Epochs(250),
        "max_updates": Epochs(50),
        "pretrain_lr": 1e-4,
        "cluster_lr": 1e-4,
        "init_criterion": "inertia",
    },
    "quick": {**QUICK},
}


@dataclass(frozen=True)
class RunningMeans(Centroids):
    """The k-means loss, with centroids that are running means of what was assigned to them.

    1/N sum_i ||z_i - m_{s_i}||^2 by gradient steps on the network; after each, the rows of the
    batch are assigned to their nearest centroids and move them (eqs. 7 and 8 of Yang et al., 2017).

    Args:
        weight: Of the loss, a number or a schedule: lambda / 2 in the paper's eq. 4.
        initial_count: The count that each centroid starts with; the larger, the slower it moves.
    """

    weight: Schedule = 0.5
    initial_count: int = 100

    name = "k-means"
    trains_head = False

    def __post_init__(self) -> None:
        check_integer("initial_count", self.initial_count, 1)

    def start(self, method: Composition, run: Run, z: Values) -> None:
        """Centroids and labels by k-means, and the counts that centroids begin with."""
        super().start(method, run, z)
        run.state["counts"] = torch.full(
            (len(method.layer.centroids),), float(self.initial_count), device=run.device
        )

    def moved(self, method: Composition, run: Run, clusters: Tensor) -> None:
        """Centroids with other places are as free as at the start."""
        run.state["counts"][clusters] = self.initial_count

    def losses(
        self, method: Composition, run: Run, batch: Batch, forward: Forward
    ) -> dict[str, Tensor]:
        """||z_i - M s_i||^2 with the assignments s_i as they are, the second term of eq. 6."""
        loss = F.kmeans_loss(
            forward.z,
            method.layer.centroids.detach(),
            run.state["labels"][batch.idx],
            backend=method.backend,
            check=False,
        )
        return {"k-means": loss}

    def after(self, method: Composition, run: Run, batch: Batch, aux: dict[str, Tensor]) -> None:
        """New assignments of the batch, eq. 7, and a step of their centroids, eq. 8.

        m_k <- m_k - (1/c_k) (m_k - z_i), row after row with growing counts c_k, comes to
        (c_k m_k + sum_i z_i) / (c_k + n_k) after the n_k rows of the batch.
        """
        z, counts = method.embed_clean(batch.x), run.state["counts"]
        centroids = method.layer.centroids
        options: Any = {"backend": method.backend, "check": False}
        labels, _ = F.kmeans_assign(z, centroids, **options)
        sums, n = F.kmeans_update(z, labels, len(centroids), **options)
        run.state["labels"][batch.idx] = labels
        counts += n
        centroids += (sums - n.unsqueeze(1) * centroids) / counts.unsqueeze(1)


@dataclass(eq=False, repr=False, kw_only=True)
class DCN(ComposedEstimator):
    """Deep clustering network: an autoencoder whose codes are made k-means-friendly.

    Minimises sum_i ||x_i - g(f(x_i))||^2 + lambda/2 ||f(x_i) - M s_i||^2 (eq. 4 of Yang et al.,
    2017) by turns: a gradient step on the network for the present assignments s_i and centroids M,
    then new assignments of the batch, then running means of the centroids.

    Args:
        lam: lambda, the weight of the clustering against the reconstruction, a number.
        initial_count: The count that each centroid starts with (100 in the published code).

    The other parameters, and the attributes, are those of `DeepClustering`; the preset "paper" is
    the published recipe.

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from deepclust.cluster import DCN
        >>> X, _ = make_blobs(200, centers=3, n_features=8, random_state=0)
        >>> dcn = DCN(3, hidden=(16,), latent_dim=2, tune_updates=50, max_updates=50)
        >>> dcn.fit(X).cluster_centers_.shape
        (3, 2)
    """

    lam: float = 1.0
    initial_count: int = 100

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def _clustering(self, settings: dict[str, Any]) -> RunningMeans:
        check_above_zero("lam", self.lam)
        return RunningMeans(self.lam / 2, self.initial_count)

    def _losses(self, settings: dict[str, Any]) -> tuple[Regulariser, ...]:
        return (Reconstruction(per="row"),)
