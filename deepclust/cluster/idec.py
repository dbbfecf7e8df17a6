"""IDEC: "Improved Deep Embedded Clustering with Local Structure Preservation" (Guo et al.)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from deepclust.cluster import dec
from deepclust.cluster._composition import Regulariser
from deepclust.cluster.dec import Hardening
from deepclust.cluster.regularisers import Reconstruction

PRESETS: dict[str, dict[str, Any]] = {
    # Section 4.3 of the paper: DEC's autoencoder, then Adam on MNIST.
    "paper": {
        **dec.PRESETS["paper"],
        "cluster_optimizer": "adam",
        "cluster_lr": 1e-3,
        "update_interval": 140,
        "max_updates": 20_000,
    },
    "quick": dec.PRESETS["quick"],
}


@dataclass(eq=False, repr=False, kw_only=True)
class IDEC(dec.DEC):
    """Improved deep embedded clustering: DEC that keeps the decoder.

    Minimises L = L_r + gamma L_c (eq. 8 of Guo et al., 2017) over the encoder, the decoder and the
    centroids: L_r the reconstruction (eq. 7), L_c = KL(P || Q) the clustering loss of DEC (eq. 9).
    The reconstruction keeps the embedding from being bent to the clusters alone. With
    `recluster=True` it is also the method that Aljalbout et al. (2018) propose.

    Args:
        gamma: Weight of the clustering loss, a number or a schedule.
        nu: Degrees of freedom of the Student-t similarity.
        update_interval: Updates between two targets, or Epochs(n).
        tol: Stop when fewer than this share of the labels change between two targets.

    The other parameters, and the attributes, are those of `DeepClustering`.

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from deepclust.cluster import IDEC
        >>> X, _ = make_blobs(200, centers=3, n_features=8, random_state=0)
        >>> idec = IDEC(3, hidden=(16,), latent_dim=2, tune_updates=50, max_updates=50)
        >>> sorted(idec.fit(X).history_)
        ['cluster/changed', 'cluster/kl', 'cluster/reconstruction', 'tune/reconstruction']
    """

    gamma: Any = 0.1

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def _clustering(self, settings: dict[str, Any]) -> Hardening:
        return replace(super()._clustering(settings), weight=self.gamma)

    def _losses(self, settings: dict[str, Any]) -> tuple[Regulariser, ...]:
        return (Reconstruction(),)
