"""ABC: "Auto-encoder Based Data Clustering" (Song, Liu, Huang, Wang, Tan, 2013)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.cluster._checks import either
from deepclust.cluster._columns import Values
from deepclust.cluster._composed import QUICK, ComposedEstimator
from deepclust.cluster._composition import Centroids, Clustering, Composition, Forward, Regulariser
from deepclust.cluster._data import Rows
from deepclust.cluster._start import (
    START_BELOW,
    cluster_sums,
    variance_floor,
    within_variances,
)
from deepclust.cluster._trainer import Batch, Epochs, Run
from deepclust.cluster.regularisers import Reconstruction
from deepclust.losses import Schedule, centre_cross_entropy
from deepclust.networks import VariationalAutoencoder

FORMS = ("euclidean", "cross-entropy", "gaussian")

PRESETS: dict[str, dict[str, Any]] = {
    # The published code: layers 1000-250-50-10, all sigmoid, 60 epochs; its conjugate gradient and
    # its Boltzmann machines are replaced by SGD and by denoising autoencoders.
    "paper": {
        **QUICK,
        "hidden": (1000, 250, 50),
        "activation": "sigmoid",
        "code": "sigmoid",
        "layer_updates": 50_000,
        "tune_updates": 100_000,
        "max_updates": Epochs(60),
        "optimizer": "sgd",
        "pretrain_lr": 0.1,
        "cluster_lr": 0.01,
        "init_criterion": "inertia",
    },
    "quick": {**QUICK},
}


class EpochCentroids(Centroids):
    """A clustering loss whose labels and centroids are found anew once a pass."""

    trains_head = False

    def refresh(self, method: Composition, run: Run, z: Values) -> None:
        """The labels, eq. 4 of Song et al. (2013), then each centroid as their mean, eq. 3."""
        super().refresh(method, run, z)
        if run.update == run.n_updates:
            return  # labels and centroids are to belong together
        centroids = method.layer.centroids
        sums, n = cluster_sums(z, run.state["labels"], len(centroids), backend=method.backend)
        means = sums / n.clamp_min(1).unsqueeze(1)
        centroids.copy_(torch.where(n.unsqueeze(1) > 0, means, centroids))


@dataclass(frozen=True)
class EpochMeans(EpochCentroids):
    """The k-means loss, with labels and centroids that are found anew once a pass.

    1/N sum_i ||z_i - mu_{c_i}||^2, c_i the nearest centroid (eq. 2 of Song et al., 2013), or -1/N
    sum_i sum_d mu_{c_i d} log z_id, which is what their published code minimises.

    Args:
        weight: Of the loss, a number or a schedule: lambda in the paper.
        form: "euclidean", or "cross-entropy", which takes codes between 0 and 1.
    """

    weight: Schedule = 0.1
    form: str = "euclidean"

    name = "k-means"

    def __post_init__(self) -> None:
        if self.form not in FORMS[:2]:
            raise ValueError(f"form: got {self.form!r}; it takes {either(FORMS[:2])}")

    def prepare(self, method: Composition, rows: Rows) -> None:
        """The cross-entropy form needs a sigmoid code."""
        if self.form == "cross-entropy" and getattr(method.network, "code", None) != "sigmoid":
            raise ValueError(
                "form: got 'cross-entropy', which takes codes between 0 and 1: a network with"
                " code='sigmoid'"
            )

    def losses(
        self, method: Composition, run: Run, batch: Batch, forward: Forward
    ) -> dict[str, Tensor]:
        """The second term of eq. 2."""
        centroids, labels = method.layer.centroids.detach(), run.state["labels"][batch.idx]
        if self.form == "cross-entropy":
            return {"k-means": centre_cross_entropy(forward.z, centroids[labels])}
        options: Any = {"backend": method.backend, "check": False}
        return {"k-means": F.kmeans_loss(forward.z, centroids, labels, **options)}


@dataclass(frozen=True)
class EpochGaussians(EpochCentroids):
    """The divergence of each code's Gaussian from that of its cluster, found anew once a pass.

    1/N sum_i KL(N(mu_i, sigma_i^2) || N(eta_{c_i}, 1 / tau_{c_i})), eta_j and 1/tau_j the mean and
    the variances of cluster j (Lim, Jiang and Yi, 2020). With unit variances it is half the k-means
    loss.

    Args:
        weight: Of the loss, a number or a schedule.
    """

    weight: Schedule = 1.0

    name = "gaussian kl"

    def prepare(self, method: Composition, rows: Rows) -> None:
        """The codes have to be Gaussians."""
        if not isinstance(method.network, VariationalAutoencoder) or method.features != "last":
            raise ValueError(
                "network: got one whose codes are points; the form 'gaussian' takes 'variational'"
            )

    def refresh(self, method: Composition, run: Run, z: Values) -> None:
        """Labels and means as before, and the clusters' precisions (K, D)."""
        super().refresh(method, run, z)
        labels, centroids = run.state["labels"], method.layer.centroids
        variances = within_variances(z, centroids, labels, backend=method.backend)
        variances = variances.clamp_min(variance_floor(z))
        run.state["log precisions"] = -variances.log()
        if run.update == 0:
            # As VaDE's, and for its reason: at random they would know nothing of the codes' spread.
            assert isinstance(method.network, VariationalAutoencoder)
            method.network.start_variances(variances.log().mean(0) - START_BELOW)

    def losses(
        self, method: Composition, run: Run, batch: Batch, forward: Forward
    ) -> dict[str, Tensor]:
        """The divergence of each row from its cluster."""
        labels = run.state["labels"][batch.idx]
        eta, log_tau = method.layer.centroids.detach(), run.state["log precisions"]
        kl = F.gaussian_kl(*forward.posterior, eta[labels], log_tau[labels], check=False)
        return {"gaussian kl": kl.mean()}


@dataclass(eq=False, repr=False, kw_only=True)
class ABC(ComposedEstimator):
    """Autoencoder-based clustering: each code is drawn to the centre of its cluster.

    Minimises 1/N sum_i ||x_i - x^_i||^2 + lambda ||z_i - mu_{c_i}||^2 (eq. 2 of Song et al., 2013),
    c_i and mu found anew after each pass over the data.

    Args:
        lam: lambda, the weight of the cluster term, a number or a schedule.
        form: "euclidean", as in the paper; "cross-entropy", which its published code minimises (the
            codes are then sigmoids); or "gaussian", the divergence between the Gaussian that a
            variational encoder gives and that of the cluster (Lim, Jiang and Yi, 2020).

    The other parameters, and the attributes, are those of `DeepClustering`; the preset "paper" has
    the published sizes and weights.

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from deepclust.cluster import ABC
        >>> X, _ = make_blobs(200, centers=3, n_features=8, random_state=0)
        >>> abc = ABC(3, hidden=(16,), latent_dim=2, tune_updates=50, max_updates=50)
        >>> abc.fit(X).cluster_centers_.shape
        (3, 2)
    """

    lam: Any = 0.1
    form: str = "euclidean"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def _clustering(self, settings: dict[str, Any]) -> Clustering:
        if self.form not in FORMS:
            raise ValueError(f"form: got {self.form!r}; it takes {either(FORMS)}")
        if self.form == "gaussian":
            return EpochGaussians(self.lam)
        return EpochMeans(self.lam, self.form)

    def _losses(self, settings: dict[str, Any]) -> tuple[Regulariser, ...]:
        return (Reconstruction(per="row", sampled=self.form == "gaussian"),)

    def _filled_in(self) -> dict[str, Any]:
        settings = super()._filled_in()
        if self.form == "gaussian" and self.network == "mlp":
            settings["network"] = "variational"
        if self.form == "cross-entropy":
            settings["code"] = "sigmoid"
        return settings
