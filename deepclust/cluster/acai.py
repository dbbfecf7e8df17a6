"""ACAI: a critic holds what lies between codes to be realistic (Berthelot et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepclust.cluster._checks import check_above_zero
from deepclust.cluster._composed import QUICK, ComposedEstimator
from deepclust.cluster._composition import (
    ONCE_A_PASS,
    Clustering,
    Composition,
    Forward,
    Regulariser,
)
from deepclust.cluster._data import Rows
from deepclust.cluster._trainer import Batch, Phase, Run, Stage
from deepclust.cluster.deep_clustering import KMeansLoss
from deepclust.cluster.regularisers import Reconstruction
from deepclust.kernels._checks import is_number
from deepclust.losses import Schedule, critic_error, interpolation, weight_at
from deepclust.networks import Autoencoder, Critic

ALPHA = 0.5  # no row weighs more than its partner in what is decoded

PRESETS: dict[str, dict[str, Any]] = {
    # The published code: 2^24 images in batches of 64.
    "paper": {
        **QUICK,
        "tune_updates": 262_144,
        "max_updates": 0,
        "batch_size": 64,
        "pretrain_lr": 1e-4,
        "cluster_lr": 1e-4,
        "n_init": 1000,
        "init_criterion": "inertia",
    },
    "quick": {
        **QUICK,
        "max_updates": 0,
        "batch_size": 256,
        "n_init": 100,
        "init_criterion": "inertia",
    },
}


@dataclass(frozen=True)
class Interpolation(Regulariser):
    """What is decoded between two codes is to look real to a critic, which is trained against it.

    x^_alpha = g(alpha z_1 + (1 - alpha) z_2), alpha drawn from [0, 1/2], z_2 the code of the row at
    the other end of the batch. The critic d, of the encoder's form, is trained to ||d(x^_alpha) -
    alpha||^2 + ||d(gamma x + (1 - gamma) x^)||^2, and this loss is ||d(x^_alpha)||^2 (Berthelot
    et al., 2018). It stands beside the reconstruction in the training of the whole
    autoencoder too, and after each step of the network the critic takes one, on the same rows.

    The decoder is moved by it where a reconstruction holds it, as that of IDEC; with DEC it stays
    as it is, since fooling the critic would be all that it learns.

    The series "critic" is the critic's mean squared error in alpha, "critic on rows" its second
    term. A critic that can tell nothing says 1/8 to everything, and errs by 1/48 + 1/64 = 0.036.

    Args:
        weight: lambda, a number or a schedule; relative to the reconstruction per element. Where
            the method reconstructs rows as a whole, the loss is multiplied by their width too.
        gamma: The share of the row itself in what the critic is to call real, from 0 to 1.
        lr: Learning rate of the critic, by Adam; by default its optimiser is that of the stage.
    """

    weight: Schedule = 0.5
    gamma: float = 0.2
    lr: float | None = None

    name = "interpolation"

    def __post_init__(self) -> None:
        if not (is_number(self.gamma) and 0 <= self.gamma <= 1):
            raise ValueError(f"gamma: got {self.gamma!r}; it takes a number from 0 to 1")
        if self.lr is not None:
            check_above_zero("lr", self.lr, "None or ")

    def prepare(self, method: Composition, rows: Rows) -> None:
        """There have to be a decoder, and an encoder to be moved."""
        if not method.network.has_decoder:
            raise ValueError("Interpolation: the network has no decoder; give decoder=")
        if method.recipe.freeze_encoder:
            raise ValueError("Interpolation: the encoder is frozen; it takes one that is trained")

    def module(self, method: Composition) -> Critic:
        """The critic."""
        return Critic(method.network)

    def loss(self, method: Composition, run: Run, batch: Batch, forward: Forward) -> Tensor:
        """How far the critic is from calling what lies between the codes real."""
        width = forward.x.shape[1] if any(part.per_row for part in method.parts) else 1
        return self._fooled(method, forward) * width

    def extend(self, method: Composition, stage: Stage) -> Stage:
        """After each step of the network the critic takes one."""
        own, like = partial(self._critic_losses, method), stage.phases[0]
        critic = Phase("critic", self._critic(method).parameters, like.optimizer, own)
        if self.lr is None:
            critic.schedule = like.schedule
        else:
            critic.optimizer = partial(torch.optim.Adam, lr=self.lr, fused=True)
        return replace(stage, phases=(*stage.phases, critic))

    def pretrain(self, method: Composition, forward: Forward) -> dict[str, Tensor]:
        """The loss, beside the reconstruction."""
        return {self.name: self._fooled(method, forward)}

    def extend_pretraining(self, method: Composition, stage: Stage) -> Stage:
        """A step of the critic there too, and the weight of the loss."""
        network, *others = stage.phases
        # Where rows weigh as a whole, as with SGD, this does too.
        by = network.weights.get("reconstruction", 1.0)
        weights = {**network.weights, self.name: partial(_product, self.weight, by)}
        phases = (replace(network, weights=weights), *others)
        return self.extend(method, replace(stage, phases=phases))

    def _fooled(self, method: Composition, forward: Forward) -> Tensor:
        between, _ = _between(method, forward)
        return critic_error(self._critic(method)(between))

    def _critic(self, method: Composition) -> torch.nn.Module:
        return method.opponents[self.name]

    def _critic_losses(
        self, method: Composition, run: Run, batch: Batch
    ) -> tuple[dict[str, Tensor], None]:
        """Both terms of the critic's loss, for a network that stays as it is."""
        forward = method.forward_of(run, batch)
        with torch.no_grad():
            between, alpha = _between(method, forward)
            real = self.gamma * forward.x + (1 - self.gamma) * forward.output
        critic = self._critic(method)
        losses = {
            "critic": critic_error(critic(between), alpha),
            "critic on rows": critic_error(critic(real)),
        }
        return losses, None


def _between(method: Composition, forward: Forward) -> tuple[Tensor, Tensor]:
    """x^_alpha (n, n_features) and alpha (n,)."""
    z = forward.layers[-1]
    # From torch's own generator, as dropout: the host of a GPU need not wait.
    alpha = ALPHA * torch.rand(len(z), device=z.device)
    return method.decode(interpolation(z, alpha)), alpha


def _product(weight: Schedule, of: Schedule, update: int) -> float:
    """A weight relative to that of the reconstruction."""
    name = Interpolation.name
    return weight_at(weight, update, name) * weight_at(of, update, "reconstruction")


@dataclass(eq=False, repr=False, kw_only=True)
class ACAI(ComposedEstimator):
    """Adversarially constrained autoencoder interpolation, then k-means on whitened codes.

    Trains an autoencoder to ||x - x^||^2 + lambda ||d(x^_alpha)||^2, x^_alpha decoded between the
    codes of two rows, and a critic d to tell the share alpha of the first of them: ||d(x^_alpha) -
    alpha||^2 + ||d(gamma x + (1 - gamma) x^)||^2 (Berthelot et al., 2018). k-means,
    restarted `n_init` times, then clusters the codes, whitened, as the published code does.

    Args:
        lam: lambda, a number or a schedule.
        gamma: The share of the row itself in what the critic is to call real.
        critic_lr: Learning rate of the critic; by default that of the autoencoder.
        whiten: Cluster the codes made uncorrelated and of unit variance, which `transform` and
            `cluster_centers_` then give; new rows are whitened as the old ones were.
        n_init: Restarts of k-means; by default 100, with "paper" 1000.
        max_updates: By default 0. Beyond the paper, train on for so long with the k-means loss
            beside the others.

    The other parameters, and the attributes, are those of `DeepClustering`. With network="conv"
    the network is the published one, hidden="acai", or "acai-64" for colour images; latent_dim is
    then a multiple of its positions, 16 for images of 28 x 28 or 32 x 32. The preset "paper" is
    2^18 updates with batches of 64, a day or more on a CPU.

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from deepclust.cluster import ACAI
        >>> X, _ = make_blobs(200, centers=3, n_features=8, random_state=0)
        >>> acai = ACAI(3, hidden=(16,), latent_dim=2, tune_updates=50, random_state=0).fit(X)
        >>> acai.transform(X).std(0).round(3).tolist()
        [1.0, 1.0]
    """

    batch_size: Any = None
    init: Any = "random"
    n_init: Any = None
    lam: Any = 0.5
    gamma: float = 0.2
    critic_lr: float | None = None
    whiten: bool = True

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def _clustering(self, settings: dict[str, Any]) -> Clustering:
        return KMeansLoss(update_interval=ONCE_A_PASS, whiten=self.whiten)

    def _losses(self, settings: dict[str, Any]) -> tuple[Regulariser, ...]:
        return Reconstruction(), Interpolation(self.lam, self.gamma, self.critic_lr)

    def _network(self, s: dict[str, Any], n_features: int) -> Autoencoder:
        if s["network"] == "conv" and s["hidden"] is None:
            s = {**s, "hidden": "acai"}
        return super()._network(s, n_features)
