"""Losses beside the clustering loss, as parts of a method: what each needs, and its weight.

The formulas are functions in `deepclust.losses`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.neighbors import kneighbors_graph
from torch import Tensor

from deepclust import functional as F
from deepclust import losses
from deepclust.cluster._checks import check_integer
from deepclust.cluster._columns import Values
from deepclust.cluster._composition import Composition, Forward, Regulariser
from deepclust.cluster._data import Rows
from deepclust.cluster._trainer import Batch, Run, Stage
from deepclust.kernels._checks import is_number
from deepclust.losses import Schedule
from deepclust.networks import VariationalAutoencoder

__all__ = ["Balance", "Locality", "Reconstruction", "SelfAugmentation"]


@dataclass(frozen=True)
class Reconstruction(Regulariser):
    """The squared error of the autoencoder, whose decoder is then trained on.

    1/N sum_i ||x_i - x^_i||^2, divided by the width of the rows where it is taken per element.

    Args:
        weight: Of the loss, a number or a schedule.
        per: "element", whose size does not depend on the width, or "row".
        sampled: Reconstruct a draw from a variational encoder's Gaussian, not its mean.
    """

    weight: Schedule = 1.0
    per: str = "element"
    sampled: bool = False

    name = "reconstruction"
    decodes = True
    is_shareable = True

    def __post_init__(self) -> None:
        if self.per not in ("element", "row"):
            raise ValueError(f"per: got {self.per!r}; it takes 'element' or 'row'")

    @property
    def per_row(self) -> bool:  # type: ignore[override]
        """Whether it is the error of a row as a whole."""
        return self.per == "row"

    def prepare(self, method: Composition, rows: Rows) -> None:
        """There has to be a decoder, and something to draw from."""
        if not method.network.has_decoder:
            raise ValueError("Reconstruction: the network has no decoder; give decoder=")
        if self.sampled and not isinstance(method.network, VariationalAutoencoder):
            raise ValueError("sampled: got True, but the codes are points; it takes 'variational'")

    def loss(self, method: Composition, run: Run, batch: Batch, forward: Forward) -> Tensor:
        """The error of the batch."""
        output = forward.sample_output if self.sampled else forward.output
        width = output.shape[1] if self.per_row else 1
        return losses.reconstruction(output, forward.x) * width


@dataclass(frozen=True)
class Balance(Regulariser):
    """Cluster sizes drawn to a prior: KL(G || U), g_k the mean soft assignment to cluster k.

    With a prior that is not uniform, the j-th largest cluster is to take its j-th largest share;
    who is j-th is found anew at each refresh.

    Args:
        weight: Of the loss, a number or a schedule.
        prior: "uniform", zipf(s), or shares (K,) that sum to one.
        momentum: 0 takes G over the batch; m above takes the running mean m G + (1 - m) G_batch, of
            which gradients reach the batch's part.
    """

    weight: Schedule = 1.0
    prior: Any = "uniform"
    momentum: float = 0.0

    name = "balance"

    def __post_init__(self) -> None:
        if not (is_number(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(
                f"momentum: got {self.momentum!r}; it takes a number from 0 to below 1"
            )

    def prepare(self, method: Composition, rows: Rows) -> None:
        """The prior has to fit the number of clusters."""
        losses.size_prior(self.prior, method.head().n_clusters)

    def started(self, method: Composition, run: Run, z: Values) -> None:
        """The running mean starts at the shares of the whole data."""
        f, _, _ = method.assigned(run, z)
        run.state["balance mean"] = f / len(run)

    def refresh(self, method: Composition, run: Run, z: Values) -> None:
        """Which cluster takes which share, by their present sizes."""
        f = run.state["frequencies"]
        prior = losses.size_prior(self.prior, len(f)).to(f)
        run.state["balance prior"] = losses.by_rank(prior, f)

    def loss(self, method: Composition, run: Run, batch: Batch, forward: Forward) -> Tensor:
        """The divergence of the batch's sizes."""
        # Of a half type under autocast, in which a mean would be rounded.
        z = forward.z.float()
        q = F.assign(z, method.head(), backend=method.backend, check=False)
        forward.aux["balance share"] = share = q.mean(0)
        mean = run.state["balance mean"]
        share = self.momentum * mean + (1 - self.momentum) * share
        return losses.balance(share, run.state["balance prior"])

    def after(self, method: Composition, run: Run, batch: Batch, aux: dict[str, Tensor]) -> None:
        """The running mean goes on."""
        run.state["balance mean"].lerp_(aux["balance share"], 1 - self.momentum)


@dataclass(frozen=True)
class Locality(Regulariser):
    """Neighbours among the data stay neighbours: sum_j s_ij ||z_i - z_j||^2, j in N_k(i).

    Args:
        weight: Of the loss, a number or a schedule.
        n_neighbors: k, of the nearest rows of X by Euclidean distance (scikit-learn's).
        graph: Similarities s (N, N), sparse, for another graph than that; each row needs one.
        per_step: Neighbours that a row draws at each step, each of which is one more row to embed;
            the sum is scaled up to that over all.
    """

    weight: Schedule = 1.0
    n_neighbors: int = 10
    graph: Any = None
    per_step: int = 1

    name = "locality"

    def __post_init__(self) -> None:
        for name in ("n_neighbors", "per_step"):
            check_integer(name, getattr(self, name), 1)
        if self.graph is not None and not sparse.issparse(self.graph):
            raise TypeError(
                f"graph: got {type(self.graph).__name__}; it takes a sparse array (N, N)"
            )

    def prepare(self, method: Composition, rows: Rows) -> None:
        """Every row has to have neighbours, and an encoder to be moved by them."""
        if method.recipe.freeze_encoder or not method.network.encoder_parameters():
            raise ValueError(
                "Locality: the encoder is frozen or absent; it takes one that is trained"
            )
        n = len(rows)
        if self.graph is None:
            if self.n_neighbors >= n:
                raise ValueError(
                    f"n_neighbors: got {self.n_neighbors} for {n} rows; it takes fewer"
                )
            return
        if self.graph.shape != (n, n):
            raise ValueError(f"graph: got shape {self.graph.shape} for {n} rows; it takes (N, N)")
        isolated = np.flatnonzero(np.diff(self.graph.tocsr().indptr) == 0)
        if isolated.size:
            raise ValueError(
                f"graph: row {isolated[0]} has no neighbour ({isolated.size} such rows); it takes"
                " one or more for each"
            )

    def begin(self, method: Composition, run: Run) -> None:
        """The graph, row after row: where each row's neighbours begin, who they are, how alike."""
        if self.graph is None:
            graph = kneighbors_graph(run.take(slice(None)).cpu().numpy(), self.n_neighbors)
        else:
            graph = self.graph.tocsr()
        for name, values in (
            ("starts", graph.indptr.astype(np.int64)),
            ("neighbours", graph.indices.astype(np.int64)),
            ("similarities", graph.data.astype(np.float32)),
        ):
            run.state[name] = torch.from_numpy(values).to(run.device)

    def extend(self, method: Composition, stage: Stage) -> Stage:
        """The drawn neighbours come with each batch."""
        return replace(stage, companions=self._draw)

    def loss(self, method: Composition, run: Run, batch: Batch, forward: Forward) -> Tensor:
        """The batch's distances to the drawn neighbours, scaled up to all of them."""
        assert batch.companions is not None
        assert batch.companion_weights is not None
        neighbours = Forward(method, batch.companions.flatten(0, 1)).z
        neighbours = neighbours.unflatten(0, batch.companions.shape[:2])
        return losses.locality(forward.z, neighbours, batch.companion_weights)

    def _draw(self, run: Run, idx: slice | Tensor) -> tuple[Tensor, Tensor]:
        starts = run.state["starts"]
        first = starts[:-1][idx].unsqueeze(1)
        degrees = starts[1:][idx].unsqueeze(1) - first
        # From torch's own generator, as dropout: the host of a GPU need not wait.
        drawn = torch.randint(2**31 - 1, (len(first), self.per_step), device=run.device)
        places = first + drawn.remainder(degrees)
        weights = run.state["similarities"][places] * (degrees / self.per_step)
        return run.state["neighbours"][places], weights


@dataclass(frozen=True)
class SelfAugmentation(Regulariser):
    """Rows and their augmented views go to the same place (Hu et al., 2017).

    -1/N sum_i s(f(x_i), f(T(x_i))), or, with "target", the clustering loss of the views against the
    targets of the rows.

    Args:
        weight: Of the loss, a number or a schedule.
        transform: T, (x, generator) -> views of rows (n, D); "auto" takes small rotations, shifts
            and zooms where `image_shape` is known, and noise elsewhere.
        similarity: s, "cosine" or "squared" distance of the embeddings, or "target".
    """

    weight: Schedule = 1.0
    transform: Any = "auto"
    similarity: str = "target"

    name = "self-augmentation"
    is_shareable = True

    def __post_init__(self) -> None:
        if self.transform != "auto" and not callable(self.transform):
            raise TypeError(
                f"transform: got {self.transform!r}; it takes 'auto' or (x, generator) -> views"
            )
        if self.similarity not in ("cosine", "squared", "target"):
            raise ValueError(
                f"similarity: got {self.similarity!r}; it takes 'cosine', 'squared' or 'target'"
            )

    def prepare(self, method: Composition, rows: Rows) -> None:
        """Refuse what would leave views without a meaning."""
        if method.recipe.augment is not None:
            raise ValueError("augment: got a transform, and SelfAugmentation has one too; take one")
        if self.similarity != "target":
            if method.recipe.freeze_encoder:
                raise ValueError(
                    "SelfAugmentation: the encoder is frozen; it takes one that is not"
                )
        elif not method.recipe.clustering.has_targets:
            kind = type(method.recipe.clustering).__name__
            raise ValueError(
                f"similarity: got 'target', but rows have none in {kind}; it takes 'cosine' or"
                " 'squared' there"
            )

    def extend(self, method: Composition, stage: Stage) -> Stage:
        """A view comes with each batch."""
        return replace(stage, augment=self.transform)

    def loss(self, method: Composition, run: Run, batch: Batch, forward: Forward) -> Tensor:
        """How far views are from where they should be."""
        if self.similarity != "target":
            return losses.self_augmentation(forward.z, forward.view.z, self.similarity)
        clustering = method.recipe.clustering
        return clustering.losses(method, run, batch, forward.view)[clustering.name]
