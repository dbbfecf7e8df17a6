"""DCAN: "Deep Clustering Using Adversarial Net Based Clustering Loss" (Lim, 2024)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepclust import functional as F
from deepclust import losses
from deepclust.cluster._checks import check_above_zero, check_at_least_zero, check_integer, either
from deepclust.cluster._columns import Values, as_one, mapped
from deepclust.cluster._composed import QUICK, ComposedEstimator
from deepclust.cluster._composition import Clustering, Composition, Forward, Regulariser
from deepclust.cluster._data import Rows
from deepclust.cluster._start import cluster_sums, fit_mixture, moments, within_variances
from deepclust.cluster._trainer import Batch, Phase, Run, Stage
from deepclust.cluster.regularisers import Reconstruction
from deepclust.kernels._blocks import full_precision
from deepclust.losses import Schedule
from deepclust.networks.discriminator import HIDDEN, Discriminator
from deepclust.nn import GaussianAssignment

POSITIVES = ("gaussian", "centroid", "prior")
CLUSTERS = ("k-means", "mixture")
UPDATES = ("non-saturating", "minimax")

# The least variance of a cluster, as a share of the embeddings' own at the start: were it a share
# of the present one, draws from clusters could shrink with the codes to a point.
FLOOR = 1e-3
# What is reported: a variance of the embeddings below this share of what it was, and an
# estimate of the divergence this near log 2, its upper bound, or below a guess's by as much.
COLLAPSED, SPREAD, SURE = 1e-2, 1.5, 0.99
# Of the running mean of that estimate: some thirty updates.
MEMORY = 0.97

PRESETS: dict[str, dict[str, Any]] = {
    # 500 iterations of gradient descent with momentum, the encoder's loss alone. Rates, widths and
    # the batch are lost from our copy of the paper, which names no pre-training either: ours.
    "paper": {
        **QUICK,
        "max_updates": 500,
        "cluster_optimizer": "sgd",
        "cluster_lr": 1e-2,
        "discriminator_lr": 1e-2,
        "init_criterion": "inertia",
        "positives": "gaussian",
        "reconstruction_weight": 0.0,
        "n_latents": 600,
    },
    "quick": {
        **QUICK,
        "discriminator_lr": 1e-3,
        "positives": "gaussian",
        "reconstruction_weight": 1.0,
        "n_latents": 2_000,
    },
    # Towards one Gaussian (Makhzani et al., 2015), after the autoencoder's own training: embeddings
    # of random weights are so small beside it that they may be driven to one point.
    "adversarial-autoencoder": {
        **QUICK,
        "discriminator_lr": 1e-3,
        "positives": "prior",
        "reconstruction_weight": 1.0,
        "n_latents": 2_000,
    },
}


class FittedClusters(GaussianAssignment):
    """Shares, means and variances of clusters, found by clustering and not by gradients.

    Args:
        n_clusters: K.
        n_features: D.
        nearest: Whether a row belongs to the nearest mean, or to the most probable Gaussian.
        backend: Of the kernels.
    """

    def __init__(self, n_clusters: int, n_features: int, nearest: bool, *, backend: str) -> None:
        super().__init__(n_clusters, n_features, backend=backend)
        self.nearest = nearest
        self.requires_grad_(False)

    def head(self) -> Any:
        """The head by which rows are assigned."""
        return F.StudentT(self.means) if self.nearest else super().head()


@dataclass(frozen=True)
class Adversarial(Clustering):
    """A discriminator in place of a closed-form loss between embeddings and their clusters.

    min over the encoder, max over Dis: E[log Dis(c)] + E[log(1 - Dis(z))] (eq. 1 of Lim, 2024), z
    embeddings and c draws from the clusters that they belong to. Where Dis is the best there is,
    this is 2 JSD(c || z) - log 4 (Lemma 2). An update is: a step of the discriminator, one
    iteration of the clustering on the last embeddings seen, a step of the encoder.

    Args:
        weight: Of the encoder's loss, a number or a schedule.
        positives: c: "gaussian", a draw from the Gaussian, with diagonal variances, of the cluster
            that z belongs to; "centroid", its centre; "prior", a draw from N(0, I), whatever the
            clusters: an adversarial autoencoder.
        clusters: "k-means", an iteration of Lloyd's algorithm, or "mixture", one of expectation
            maximisation of Gaussians with diagonal variances.
        update: The encoder's loss: "non-saturating", or "minimax", eq. 1 itself.
        discriminator_lr: Learning rate of the discriminator; None for that of the encoder.
        discriminator_hidden: Widths of its hidden layers.
        n_latents: Embeddings that an iteration of the clustering sees, at least 600 in the paper;
            they are those of the last updates, so that nothing is embedded for it. The more, the
            less clusters move by chance, and the older some of them are.
        noise: With positives="centroid", the standard deviation of the noise on centres and
            embeddings both, as a share of the embeddings' own at the start. Without noise centres
            are points, whose divergence from any density is log 2 whatever the encoder does.
    """

    weight: Schedule = 1.0
    positives: str = "gaussian"
    clusters: str = "k-means"
    update: str = "non-saturating"
    discriminator_lr: float | None = None
    discriminator_hidden: Sequence[int] = HIDDEN
    n_latents: int = 2_000
    noise: float = 0.1

    name = "adversarial"
    trains_head = False
    has_targets = False

    def __post_init__(self) -> None:
        choices = {"positives": POSITIVES, "clusters": CLUSTERS, "update": UPDATES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; it takes {either(known)}")
        if self.discriminator_lr is not None:
            check_above_zero("discriminator_lr", self.discriminator_lr, "None or ")
        check_integer("n_latents", self.n_latents, 1)
        check_at_least_zero("noise", self.noise)
        hidden: Any = self.discriminator_hidden
        if isinstance(hidden, str) or not isinstance(hidden, Sequence):
            raise ValueError(f"discriminator_hidden: got {hidden!r}; it takes a sequence of widths")
        for width in hidden:
            check_integer("discriminator_hidden", width, 1)

    def prepare(self, method: Composition, rows: Rows) -> None:
        """There has to be an encoder for the discriminator to train."""
        if method.recipe.freeze_encoder or not method.network.encoder_parameters():
            raise ValueError(
                "network, freeze_encoder: got an encoder that is frozen or absent, and an"
                " adversarial loss trains nothing else; where X are embeddings, it takes"
                " network='mlp' on top of them"
            )

    def module(self, method: Composition) -> Discriminator:
        """The discriminator."""
        return Discriminator(method.layer.means.shape[1], self.discriminator_hidden)

    def layer(self, n_clusters: int, n_features: int, backend: str) -> FittedClusters:
        """The clusters."""
        nearest = self.clusters == "k-means"
        return FittedClusters(n_clusters, n_features, nearest, backend=backend)

    def extend(self, method: Composition, stage: Stage) -> Stage:
        """The discriminator and the clustering move before the encoder does (section 2.1)."""
        recipe, opponent = method.recipe, self.opponent(method)
        rate = {} if self.discriminator_lr is None else {"lr": self.discriminator_lr}
        phase = Phase(
            "discriminator",
            lambda: list(opponent.parameters()),
            partial(recipe.optimizer, **rate),
            partial(self._discriminate, method),
            schedule=recipe.schedule,
            after=partial(self._cluster, method),
        )
        return replace(stage, phases=(phase, *stage.phases))

    def opponent(self, method: Composition) -> Discriminator:
        """The discriminator that `method` trains."""
        opponent = method.opponents[self.name]
        assert isinstance(opponent, Discriminator)
        return opponent

    def start(self, method: Composition, run: Run, z: Values) -> None:
        """Clusters by k-means with restarts, a mixture from there, and the embeddings' scale."""
        centroids, labels = method.recipe.start(run, z)
        if self.positives != "prior":  # which has a scale of its own: 1
            self.opponent(method).standardise(*moments(z))
        if self.clusters == "mixture":
            mixture = fit_mixture(z, labels, len(centroids), method.backend)
            for parameter, values in zip(method.layer.parameters(), mixture.params, strict=True):
                parameter.copy_(values)
        else:
            method.layer.means.copy_(centroids)
            self.iterate(method, z)
        _, run.state["labels"], _ = method.assigned(run, z)
        chosen = torch.randperm(len(z), generator=run.rng("latents"))
        chosen = chosen[: max(self.n_latents, run.settings.batch_size)]
        run.state["latents"] = z[chosen.to(z.device)]
        run.state["jsd"] = torch.zeros((), device=z.device)

    def losses(
        self, method: Composition, run: Run, batch: Batch, forward: Forward
    ) -> dict[str, Tensor]:
        """What the discriminator thinks of the codes."""
        opponent = self.opponent(method)
        logits = opponent(self._noisy(opponent, forward.z))
        return {"adversarial": losses.adversarial_encoder(logits, self.update)}

    def _discriminate(
        self, method: Composition, run: Run, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The discriminator's loss; nothing of it goes to the encoder."""
        opponent = self.opponent(method)
        with torch.no_grad():
            # Of a half type under autocast; clusters are not.
            z = method.forward_of(run, batch).z.float()
            positives = self.draw(method, z)
            negatives = self._noisy(opponent, z)
        logits = opponent(torch.cat([positives, negatives]))
        loss = losses.adversarial_discriminator(*logits.chunk(2))
        return {"discriminator": loss}, {"z": z, "loss": loss.detach()}

    def draw(self, method: Composition, z: Tensor) -> Tensor:
        """Positives (n, D) for embeddings z (n, D)."""
        noise = torch.randn_like(z)
        if self.positives == "prior":
            return noise
        layer, options = method.layer, dict[str, Any](backend=method.backend, check=False)
        assert isinstance(layer, FittedClusters)
        if layer.nearest:
            labels, _ = F.kmeans_assign(z, layer.means, **options)
        else:
            _, labels, _ = F.frequencies(z, layer.head(), **options)
        if self.positives == "centroid":
            return layer.means[labels] + self.noise * self.opponent(method).scale * noise
        return layer.means[labels] + (layer.log_var[labels] / 2).exp() * noise

    def _noisy(self, opponent: Discriminator, z: Tensor) -> Tensor:
        """Embeddings as the discriminator sees them."""
        if self.positives != "centroid":
            return z
        return z + self.noise * opponent.scale * torch.randn_like(z)

    def _cluster(self, method: Composition, run: Run, batch: Batch, aux: dict[str, Tensor]) -> None:
        """One iteration of the clustering on the embeddings of the last updates."""
        latents, z = run.state["latents"], aux["z"]
        latents.copy_(torch.cat([z, latents])[: len(latents)])
        self.iterate(method, latents)
        jsd = losses.jensen_shannon(aux["loss"])
        run.log("jsd", jsd)
        run.state["jsd"].lerp_(jsd, 1 - MEMORY)

    def iterate(self, method: Composition, z: Values) -> None:
        """One iteration of Lloyd's algorithm, or of expectation maximisation, on z (n, D).

        A cluster that nothing belongs to stays as it is.
        """
        layer, options = method.layer, dict[str, Any](backend=method.backend, check=False)
        with full_precision(layer.means):
            if layer.nearest:
                n, means, variances = lloyd(z, layer.means, options)
            else:
                z = as_one(z)
                n, means, variances = maximisation(z, F.assign(z, layer.head(), **options))
        floor = FLOOR * self.opponent(method).scale.square()
        taken = (n > 0).unsqueeze(1)
        layer.means.copy_(torch.where(taken, means, layer.means))
        log_var = torch.maximum(variances, floor).log()
        layer.log_var.copy_(torch.where(taken, log_var, layer.log_var))
        layer.log_weights.copy_(n.clamp_min(torch.finfo(n.dtype).tiny).log() - math.log(len(z)))

    def refresh(self, method: Composition, run: Run, z: Values) -> None:
        """Labels and sizes, and whether the two networks still do what they are for."""
        super().refresh(method, run, z)
        spread = float(moments(z)[1].mean() / self.opponent(method).scale.square())
        jsd = float(run.state["jsd"]) / math.log(2)
        run.log("spread", spread)
        _report(
            run,
            "collapsed",
            spread < COLLAPSED and run.update > 0,
            f"the variance of the embeddings is {spread:.2g} of that at the start, or of the prior:"
            " they are collapsing to a point. Try a larger reconstruction_weight or a smaller"
            " cluster_lr",
        )
        _report(
            run,
            "spread",
            spread > SPREAD,
            f"the variance of the embeddings is {spread:.2g} of that at the start, or of the prior:"
            " draws from the clusters push them apart, over the clusters' borders. Try fewer"
            " updates, clusters='mixture' or a larger reconstruction_weight",
        )
        _report(
            run,
            "sure",
            jsd > SURE,
            f"the discriminator is hardly ever wrong (JSD {jsd:.3f} of log 2): the encoder learns"
            " little from it. Try a smaller discriminator_lr, or positives='gaussian'",
        )
        _report(
            run,
            "lost",
            jsd < -SURE,
            f"the discriminator is much worse than a guess (JSD {jsd:.3f} of log 2): it diverges."
            " Try a smaller discriminator_lr",
        )


def lloyd(z: Values, means: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes (K,), means and variances (K, D) of rows z (n, D) by their nearest mean."""
    labels = mapped(lambda some: F.kmeans_assign(some, means, **options)[0], z)
    sums, n = cluster_sums(z, labels, len(means), **options)
    means = sums / n.clamp_min(1).unsqueeze(1)
    return n, means, within_variances(z, means, labels, **options)


def maximisation(z: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes (K,), means and variances (K, D) of rows z (n, D) by responsibilities r (n, K)."""
    origin = z.mean(0)
    x, n = z - origin, r.sum(0)
    size = n.clamp_min(torch.finfo(n.dtype).tiny).unsqueeze(1)
    means = r.T @ x / size
    return n, means + origin, r.T @ x.square() / size - means.square()


def _report(run: Run, name: str, holds: bool, message: str) -> None:
    """Warn, once in a run, of what holds."""
    if holds and not run.state.get(name, False):
        run.state[name] = True
        warnings.warn(f"update {run.update}: {message}", RuntimeWarning, stacklevel=2)


@dataclass(eq=False, repr=False, kw_only=True)
class DCAN(ComposedEstimator):
    """Deep clustering with an adversarial net: a discriminator is the clustering loss.

    It learns to tell embeddings from draws out of their clusters, and the encoder to make
    embeddings that it cannot tell from them (eq. 1 of Lim, 2024): the Jensen-Shannon divergence of
    the two (Lemma 2), which has no closed form, where ABC takes a distance and its Gaussian form a
    Kullback-Leibler divergence. X may be embeddings of another network: the encoder is then one on
    top of them.

    Args:
        positives: What the discriminator is to take for clusters: "gaussian", "centroid" or
            "prior": see `Adversarial`, as for those below.
        clusters: "k-means" or "mixture".
        update: "non-saturating" or "minimax".
        reconstruction_weight: Weight of the reconstruction, per row as ABC has it, beside the
            encoder's loss; 0 for none, as in the paper.
        discriminator_lr: Learning rate of the discriminator.
        discriminator_hidden: Widths of its hidden layers.
        n_latents: Embeddings that an iteration of the clustering sees, at least.
        noise: Standard deviation of the noise with positives="centroid".

    The other parameters, and the attributes, are those of `DeepClustering`; the preset "paper" is
    the published recipe as far as it is known, "adversarial-autoencoder" that of Makhzani et al.
    (2015), after a pre-training, with k-means at the end. `history_` has the estimate of the
    divergence ("cluster/jsd") and the variance of the embeddings, as a share of that at the start,
    or of the prior's ("cluster/spread").

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from deepclust.cluster import DCAN
        >>> X, _ = make_blobs(200, centers=3, n_features=8, random_state=0)
        >>> dcan = DCAN(3, hidden=(16,), latent_dim=2, tune_updates=50, max_updates=50)
        >>> sorted(dcan.fit(X).history_)[:4]
        ['cluster/adversarial', 'cluster/changed', 'cluster/discriminator', 'cluster/jsd']
    """

    positives: str | None = None
    clusters: str = "k-means"
    update: str = "non-saturating"
    reconstruction_weight: Any = None
    discriminator_lr: float | None = None
    discriminator_hidden: Any = HIDDEN
    n_latents: int | None = None
    noise: float = 0.1

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def _clustering(self, settings: dict[str, Any]) -> Adversarial:
        return Adversarial(
            positives=settings["positives"],
            clusters=self.clusters,
            update=self.update,
            discriminator_lr=settings["discriminator_lr"],
            discriminator_hidden=self.discriminator_hidden,
            n_latents=settings["n_latents"],
            noise=self.noise,
        )

    def _losses(self, settings: dict[str, Any]) -> tuple[Regulariser, ...]:
        weight = settings["reconstruction_weight"]
        return (Reconstruction(weight, per="row"),) if weight else ()

    def _filled_in(self) -> dict[str, Any]:
        settings = super()._filled_in()
        if settings["positives"] == "prior":
            settings["recluster"] = True  # nothing else draws embeddings to clusters
        return settings
