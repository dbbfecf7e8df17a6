"""DeepClustering: the parts put together freely; every named method is a setting of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from deepclust import functional as F
from deepclust.cluster._checks import as_length, check_above_zero, either
from deepclust.cluster._columns import Values, mapped
from deepclust.cluster._composed import QUICK, ComposedEstimator
from deepclust.cluster._composition import Centroids, Clustering, Composition, Forward
from deepclust.cluster._trainer import Batch, Length, Run
from deepclust.cluster._whitening import Whitened
from deepclust.cluster.abc import EpochGaussians, EpochMeans
from deepclust.cluster.dcan import Adversarial
from deepclust.cluster.dcn import RunningMeans
from deepclust.cluster.dec import Hardening
from deepclust.cluster.vade import Mixture
from deepclust.losses import Schedule, soft_kmeans
from deepclust.nn import StudentTAssignment


@dataclass(frozen=True)
class KMeansLoss(Centroids):
    """The k-means loss, hard or soft, with centroids that gradients move.

    1/N sum_i min_j ||z_i - mu_j||^2, or 1/N sum_ij q_ij ||z_i - mu_j||^2 with q the Student-t
    similarity, which has no jumps.

    Args:
        weight: Of the loss, a number or a schedule.
        soft: Weigh the distances to all centroids by q.
        nu: Degrees of freedom of the Student-t similarity.
        update_interval: Updates between two counts of changed labels, or Epochs(n).
        whiten: Cluster whitened features, uncorrelated and of unit variance, by their mean and
            covariance where the clusters start; so does transform() then give them.
    """

    weight: Schedule = 1.0
    soft: bool = False
    nu: float = 1.0
    update_interval: int | Length = 30
    whiten: bool = False

    name = "k-means"
    has_targets = False

    def __post_init__(self) -> None:
        as_length("update_interval", self.update_interval, 1)
        check_above_zero("nu", self.nu)
        for name in ("soft", "whiten"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {getattr(self, name)!r}; it takes True or False")

    def layer(self, n_clusters: int, n_features: int, backend: str) -> StudentTAssignment:
        """Centroids, with the whitening if there is one."""
        kind = Whitened if self.whiten else StudentTAssignment
        return kind(n_clusters, n_features, self.nu, backend=backend)

    def start(self, method: Composition, run: Run, z: Values) -> None:
        """Centroids and labels by k-means, on whitened features if so asked."""
        if isinstance(method.layer, Whitened):
            method.layer.forget()  # what an earlier start found
            z = method.embedded(run)
            method.layer.fit(z)
            z = mapped(method.project, z)
        super().start(method, run, z)

    def losses(
        self, method: Composition, run: Run, batch: Batch, forward: Forward
    ) -> dict[str, Tensor]:
        """The loss of the batch."""
        options: Any = {"backend": method.backend, "check": False}
        if self.soft:
            return {"k-means": soft_kmeans(forward.z, method.layer.head(), **options)}
        return {"k-means": F.kmeans_loss(forward.z, method.layer.centroids, **options)}


CLUSTERINGS: dict[str, Callable[[], Clustering]] = {
    "hardening": Hardening,
    "one-hot": partial(Hardening, power=float("inf")),
    "k-means": KMeansLoss,
    "soft k-means": partial(KMeansLoss, soft=True),
    "running means": RunningMeans,
    "epoch means": EpochMeans,
    "gaussians": EpochGaussians,
    "mixture": Mixture,
    "adversarial": Adversarial,
}

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {**QUICK, "clustering": "hardening"},
    "autoencoder + k-means": {**QUICK, "clustering": "k-means", "max_updates": 0},
}


@dataclass(eq=False, repr=False, kw_only=True)
class DeepClustering(ComposedEstimator):
    """Deep clustering from parts: network, features, clustering loss, other losses, interventions.

    The choices are those of the taxonomy of Aljalbout et al. (2018). An autoencoder is trained; the
    clusters start from k-means on its codes; then the weighted sum of the losses is minimised.
    Every method of this package is a setting of these parts: IDEC is `DeepClustering(clustering=
    Hardening(weight=0.1), regularisers=[Reconstruction()])`.

    Lengths count updates (batches); Epochs(n) are n passes over the data.

    Args:
        n_clusters: K, at most the number of distinct rows.
        preset: Fills in each parameter below that is None: "quick", Adam and lengths that suit
            thousands of rows, "paper" for methods with a published recipe, and, here,
            "autoencoder + k-means", which ends where the clustering would start.
        network: "mlp", "conv", "variational", None to cluster X itself, scaled, with the
            head alone, or an Autoencoder, of which a copy is trained.
        encoder: In place of a network, any module from rows (n, D), or images (n, C, H, W) where
            `image_shape` is given, to embeddings (n, d).
        decoder: The module back; without one, nothing is reconstructed or pre-trained.
        hidden: Widths of the encoder's hidden layers, (500, 500, 2000) where None; of "conv", a
            published shape by name or (channels, kernel, stride, padding) of each layer.
        latent_dim: Width of the code; None for n_clusters.
        features: What is clustered: "last", the code, or the numbers of several layers, whose
            outputs are pooled over positions and concatenated.
        image_shape: (H, W) or (H, W, C) where rows are images, channels last; taken from X where
            that has three or four dimensions.
        scale: "dec" multiplies X by the number that makes the mean of ||x||^2 / D one, as DEC's
            paper does; "range" moves its values to [-1, 1], as DEPICT's does; None leaves X as it
            is; a number multiplies it.
        augment: Train the autoencoder and the clustering on transformed rows, (x, generator) ->
            views, against the targets of the rows themselves; "auto" chooses by the data.
        layer_updates: Length of the training of each layer as a denoising autoencoder; 0 for none.
        dropout: Share of values set to zero there, from 0 to below 1.
        tune_updates: Length of the training of the whole autoencoder.
        max_updates: Length of the clustering, at most.
        batch_size: Rows of a batch.
        optimizer: "adam", or "sgd" with momentum 0.9 and, in pre-training, a tenth of the rate
            every 20,000 updates.
        pretrain_lr: Learning rate of the autoencoder.
        cluster_lr: Learning rate of the clustering.
        init: "k-means++", "random", or centroids (K, latent_dim) in the embedding.
        n_init: Restarts of k-means.
        init_criterion: Which restart to keep: that of least "inertia", or that in which one
            "gaussian" a cluster, of any shape, explains the embedding best. Ends of k-means that
            differ by a thousandth in inertia can be far apart in what they found. Where clusters
            start again, on embeddings that they have trained, it is that of least inertia.
        freeze_encoder: Train the clusters alone; the embedding is computed once.
        regularisers: Other losses: Reconstruction, Balance, Locality, SelfAugmentation,
            Interpolation.
        interventions: SoftReset, CollapseGuard.
        recluster: Start the clusters again at the end, on the final embedding.
        pretrained: Skip the training of the autoencoder and take these weights: the `network_` of
            another fit, or its state_dict.
        autocast: "bfloat16" runs the networks' products in that type; None in float32. Losses,
            distances and the parameters themselves are float32 either way.
        compile: Run the networks through torch.compile, which takes some seconds to do so.
        cuda_graphs: On a GPU, capture the steps of the training in CUDA graphs and replay them: for
            small networks and batches, whose kernels take longer to start than to run.
        device: "cpu", "cuda", "cuda:1", ...
        backend: "auto", "eager", "cpp" or "triton", for the kernels.
        random_state: Seed or RandomState.
        verbose: 1 shows progress bars.
        callbacks: Functions of the run, called after each refresh and at the end of each stage.
        checkpoint: A file for the state of an interrupted fit; also written every minute or so.
        clustering: The clustering loss, one of Hardening, KMeansLoss, RunningMeans, EpochMeans,
            EpochGaussians, Mixture and Adversarial, or the name of one with its defaults:
            "hardening", "one-hot", "k-means", "soft k-means", "running means", "epoch means",
            "gaussians", "mixture", "adversarial".

    Attributes:
        labels_: Labels (N,) int64; equal to predict(X).
        cluster_centers_: Centroids (K, latent_dim).
        network_: The network.
        history_: Series by "stage/name": pairs of an update of that stage and a value. The stages
            are "pretrain-1", ..., "tune" and "cluster".
        stop_reasons_: Why each stage ended.
        n_iter_: Updates in all.

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from deepclust.cluster import Balance, DeepClustering
        >>> X, _ = make_blobs(200, centers=3, n_features=8, random_state=0)
        >>> small = {"hidden": (16,), "latent_dim": 2, "tune_updates": 50, "max_updates": 50}
        >>> model = DeepClustering(3, clustering="hardening", regularisers=[Balance()], **small)
        >>> sorted(model.fit(X).history_)
        ['cluster/balance', 'cluster/changed', 'cluster/kl', 'tune/reconstruction']
    """

    clustering: Any = None

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def _clustering(self, settings: dict[str, Any]) -> Clustering:
        chosen = settings["clustering"]
        if isinstance(chosen, Clustering):
            return chosen
        if not isinstance(chosen, str) or chosen not in CLUSTERINGS:
            raise ValueError(
                f"clustering: got {chosen!r}; it takes {either(CLUSTERINGS)}, or a Clustering"
            )
        return CLUSTERINGS[chosen]()
