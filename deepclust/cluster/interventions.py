"""Changes to network and clusters between updates, against runs that are stuck or collapse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepclust.cluster._checks import as_length
from deepclust.cluster._columns import Values, added, in_blocks
from deepclust.cluster._composition import Composition, Intervention
from deepclust.cluster._trainer import Epochs, Length, Run
from deepclust.kernels._checks import is_number
from deepclust.networks.autoencoder import redraw

__all__ = ["CollapseGuard", "SoftReset"]


TWENTY = Epochs(20)


@dataclass(frozen=True)
class SoftReset(Intervention):
    """Every so often, move the encoder towards fresh weights and cluster again.

    theta <- keep theta + (1 - keep) phi, phi drawn as theta was at first; then the clusters start
    anew on the new embedding, and the optimiser forgets their moments (BRB: Miklautz et al., 2025).

    Args:
        every: Updates between two resets, or Epochs(n); they happen at refreshes.
        keep: Share of the old weights, from 0 to below 1.
        until: Share of the training after which there are none, so that it can settle.
    """

    every: int | Length = TWENTY
    keep: float = 0.8
    until: float = 0.8

    def __post_init__(self) -> None:
        as_length("every", self.every, 1)
        if not (is_number(self.keep) and 0 <= self.keep < 1):
            raise ValueError(f"keep: got {self.keep!r}; it takes a share from 0 to below 1")
        if not (is_number(self.until) and 0 <= self.until <= 1):
            raise ValueError(f"until: got {self.until!r}; it takes a share from 0 to 1")

    def act(self, method: Composition, run: Run, z: Values) -> Values:
        """Reset where one is due."""
        if run.update < self._next(run) or not self.holds(run):
            return z
        run.state["last reset"] = run.update
        with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []):
            torch.manual_seed(run.seed("soft reset"))
            old = {name: p.clone() for name, p in method.network.named_parameters()}
            # Statistics that layers keep of the data go with the weights that stay.
            kept = {name: b.clone() for name, b in method.network.named_buffers()}
            redraw(method.network)
            for name, buffer in method.network.named_buffers():
                buffer.copy_(kept[name])
        encoder = {id(parameter) for parameter in method.network.encoder_parameters()}
        for name, parameter in method.network.named_parameters():
            if id(parameter) in encoder:
                parameter.lerp_(old[name], self.keep)
            else:
                parameter.copy_(old[name])
        if "codes" in run.state:
            run.state["codes"] = run.map(method.embed)
        labels = run.state["labels"]
        method.start(run)
        run.state["labels"] = labels  # the refresh counts how many have changed
        run.forget(method.layer.parameters())
        return method.embedded(run)

    def holds(self, run: Run) -> bool:
        """Whether there is a reset to come."""
        return max(self._next(run), run.update) < self.until * run.n_updates

    def _next(self, run: Run) -> int:
        last: int = run.state.get("last reset", 0)
        return last + run.in_updates(as_length("every", self.every, 1))


@dataclass(frozen=True)
class CollapseGuard(Intervention):
    """Give clusters that nearly nothing is assigned to a new place.

    A cluster of at most `least` of the mean size N/K is moved to the row of the largest cluster
    that is farthest from its centre, and the optimiser forgets the moments of the clusters.

    Args:
        least: Share of the mean size, from 0 (empty clusters alone) to below 1.
    """

    least: float = 0.05

    def __post_init__(self) -> None:
        if not (is_number(self.least) and 0 <= self.least < 1):
            raise ValueError(f"least: got {self.least!r}; it takes a share from 0 to below 1")

    def act(self, method: Composition, run: Run, z: Values) -> Values:
        """Move the clusters that are too small."""
        centres = next(method.layer.parameters())  # (K, D) of every head
        _, labels, _ = method.assigned(run, z)
        counts = added(some.bincount(minlength=len(centres)) for _, some in in_blocks(labels))
        counts = counts.double()
        small = (counts <= self.least * len(run) / len(centres)).nonzero().flatten()
        for cluster in small.tolist():
            largest = int(counts.argmax())
            row = _farthest(z, labels, centres[largest], largest)
            centres[cluster] = z[row][0]
            for parameter in list(method.layer.parameters())[1:]:
                parameter[cluster] = parameter[largest]
            labels[row] = torch.full_like(row, cluster)
            counts[largest], counts[cluster] = counts[largest] - 1, 1
        if len(small):
            run.forget(method.layer.parameters())
            method.recipe.clustering.moved(method, run, small)
        run.log("moved clusters", float(len(small)))
        return z


def _farthest(z: Values, labels: Values, centre: Tensor, label: int) -> Tensor:
    """The number (1,) of the row z_i of this label that is farthest from a centre (D,)."""
    farthest, most = torch.zeros(1, dtype=torch.int64, device=centre.device), -1.0
    for rows, some in in_blocks(z):
        distance = (some - centre).square().sum(1)
        distance = torch.where(labels[rows] == label, distance, -1.0)
        if len(some) and float(distance.max()) > most:
            most = float(distance.max())
            farthest = rows.start + distance.argmax(0, keepdim=True)
    return farthest
