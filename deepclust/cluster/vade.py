"""VaDE: "Variational Deep Embedding" (Jiang, Zheng, Tan, Tang, Zhou, 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.cluster._checks import either
from deepclust.cluster._columns import Values
from deepclust.cluster._composed import QUICK, ComposedEstimator
from deepclust.cluster._composition import Clustering, Composition, Forward
from deepclust.cluster._data import Rows
from deepclust.cluster._pretraining import Reconstruct
from deepclust.cluster._start import START_BELOW, fit_mixture
from deepclust.cluster._trainer import Batch, Epochs, Run
from deepclust.losses import (
    Schedule,
    binary_reconstruction,
    mixture_divergence,
    reconstruction,
)
from deepclust.networks import VariationalAutoencoder
from deepclust.nn import GaussianAssignment

LIKELIHOODS = ("gaussian", "bernoulli")


def _published_rates(optimizer: torch.optim.Optimizer, run: Run) -> Any:
    """0.9 of the rate every 10 epochs, but no less than a tenth of it."""
    every = 10 * run.updates_per_epoch
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: max(0.9 ** (update // every), 0.1)
    )


PRESETS: dict[str, dict[str, Any]] = {
    # The published code for MNIST, which takes the weights of a stacked autoencoder: DEC's.
    "paper": {
        **QUICK,
        "layer_updates": 50_000,
        "tune_updates": 100_000,
        "max_updates": Epochs(3_000),
        "cluster_lr": 2e-3,
        "schedule": _published_rates,
        "init_criterion": "inertia",
    },
    "quick": {**QUICK},
}


@dataclass(frozen=True)
class Mixture(Clustering):
    """The evidence lower bound of a variational autoencoder whose prior is a Gaussian mixture.

    -ELBO = -E[log p(x | z)] + KL(q(z | x) gamma(c) || p(z, c)), with gamma_c = p(c | z) of a draw z
    from q(z | x) (eqs. 12 and 16 of Jiang et al., 2017).

    Args:
        weight: Of the divergence, a number or a schedule: 1 in the paper.
        likelihood: Of x given z: "gaussian" of unit variance, or "bernoulli", for X in [0, 1].
    """

    weight: Schedule = 1.0
    likelihood: str = "gaussian"

    name = "divergence"
    decodes = True
    per_row = True
    has_targets = False

    def __post_init__(self) -> None:
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood: got {self.likelihood!r}; it takes {either(LIKELIHOODS)}")

    def prepare(self, method: Composition, rows: Rows) -> None:
        """The codes have to be Gaussians, and X probabilities if it is taken for such."""
        if not isinstance(method.network, VariationalAutoencoder) or method.features != "last":
            raise ValueError("network: got one whose codes are points; VaDE takes 'variational'")
        if self.likelihood == "bernoulli":
            for _, x in rows.blocks():
                x = method.preprocess(x)
                if bool(((x < 0) | (x > 1)).any()):
                    raise ValueError(
                        "X: got values outside [0, 1] once they are scaled; likelihood='bernoulli'"
                        " takes values within, and scale=None"
                    )

    @property
    def weights(self) -> dict[str, Schedule]:
        """The paper's bound has both terms as they are."""
        return {"reconstruction": 1.0, **super().weights}

    @property
    def reconstruct(self) -> Reconstruct:  # type: ignore[override]
        """The fit of one element; the outputs of a Bernoulli are log odds."""
        return binary_reconstruction if self.likelihood == "bernoulli" else reconstruction

    def layer(self, n_clusters: int, n_features: int, backend: str) -> GaussianAssignment:
        """The mixture, trained with the network."""
        return GaussianAssignment(n_clusters, n_features, backend=backend)

    def start(self, method: Composition, run: Run, z: Values) -> None:
        """A mixture of diagonal Gaussians fitted to the codes (section 3.2), from k-means' end."""
        centroids, labels = method.recipe.start(run, z)
        layer = method.layer
        mixture = fit_mixture(z, labels, len(centroids), method.backend)
        for parameter, values in zip(layer.parameters(), mixture.params, strict=True):
            parameter.copy_(values)
        _, run.state["labels"], _ = method.assigned(run, z)

    def begin(self, method: Composition, run: Run) -> None:
        """The encoder's variances start well inside the clusters, which the paper leaves open.

        At random they would be near 1, whatever the spread of the codes that pre-training gave.
        """
        assert isinstance(method.network, VariationalAutoencoder)
        method.network.start_variances(method.layer.log_var.mean(0) - START_BELOW)

    def losses(
        self, method: Composition, run: Run, batch: Batch, forward: Forward
    ) -> dict[str, Tensor]:
        """The two terms of the bound, per row (eq. 12)."""
        output = forward.sample_output
        halved = 1.0 if self.likelihood == "bernoulli" else 0.5
        fit = self.reconstruct(output, forward.x) * (halved * output.shape[1])
        gamma = F.assign(forward.sample, method.head(), backend=method.backend, check=False)
        mean, log_var = forward.posterior
        return {
            "reconstruction": fit,
            "divergence": mixture_divergence(mean, log_var, gamma, method.layer.head()),
        }


@dataclass(eq=False, repr=False, kw_only=True)
class VaDE(ComposedEstimator):
    """Variational deep embedding: a variational autoencoder with a Gaussian mixture as its prior.

    Maximises the evidence lower bound of p(c) p(z | c) p(x | z) (eq. 9 of Jiang et al., 2017) over
    encoder, decoder and mixture; a cluster is a component, and labels are the most probable ones of
    the encoder's mean. X is taken to have unit variance around its reconstruction, or, with
    `likelihood="bernoulli"`, to be probabilities.

    Args:
        likelihood: "gaussian" or "bernoulli"; the latter takes X in [0, 1] and leaves it unscaled.

    The other parameters, and the attributes, are those of `DeepClustering`; the preset "paper" is
    the published recipe. `cluster_centers_` are the clusters' mean embeddings.

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from deepclust.cluster import VaDE
        >>> X, _ = make_blobs(200, centers=3, n_features=8, random_state=0)
        >>> vade = VaDE(3, hidden=(16,), latent_dim=2, tune_updates=50, max_updates=50)
        >>> sorted(vade.fit(X).history_)[:3]
        ['cluster/changed', 'cluster/divergence', 'cluster/reconstruction']
    """

    network: Any = "variational"
    likelihood: str = "gaussian"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def _clustering(self, settings: dict[str, Any]) -> Mixture:
        return Mixture(likelihood=self.likelihood)

    def _filled_in(self) -> dict[str, Any]:
        settings = super()._filled_in()
        if self.likelihood == "bernoulli" and self.scale == "dec":
            settings["scale"] = None
        return settings
