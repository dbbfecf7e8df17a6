"""Stages that train an autoencoder before there are clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepclust.cluster._trainer import Batch, Phase, Run, Stage, Updates
from deepclust.losses import Schedule, reconstruction
from deepclust.networks import MLPAutoencoder, StackedAutoencoder


@dataclass(frozen=True)
class Pretraining:
    """How autoencoders are trained.

    Attributes:
        optimizer: Makes the optimiser of each stage.
        schedule: Makes its learning-rate scheduler.
        per_row: Weigh the reconstruction as half the squared error of a row, ||x - x^||^2 / 2, for
            which the paper's learning rates are meant, rather than as the mean over its elements.
    """

    optimizer: Callable[[Any], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None
    per_row: bool = False

    def _phase(self, parameters: Callable[[], Any], losses: Any, width: int) -> Phase:
        weights: dict[str, Schedule] = {"reconstruction": width / 2} if self.per_row else {}
        return Phase("autoencoder", parameters, self.optimizer, losses, weights, self.schedule)

    def layer_stages(
        self,
        network: StackedAutoencoder,
        updates: int,
        corruption: float,
        preprocess: Callable[[Tensor], Tensor],
    ) -> list[Stage]:
        """One stage a layer, each a denoising autoencoder (Xie et al., 2016, eqs. 6 to 9)."""

        def losses(layer: int, run: Run, batch: Batch) -> tuple[dict[str, Tensor], None]:
            output, clean = network.denoise(layer, preprocess(batch.x), corruption)
            return {"reconstruction": reconstruction(output, clean)}, None

        def stage(layer: int) -> Stage:
            parameters = partial(network.layer_parameters, layer)
            phase = self._phase(parameters, partial(losses, layer), network.sizes[layer])
            return Stage(f"pretrain-{layer + 1}", (phase,), Updates(updates))

        return [stage(layer) for layer in range(network.n_layers)] if updates else []

    def tuning_stages(
        self, network: MLPAutoencoder, updates: int, preprocess: Callable[[Tensor], Tensor]
    ) -> list[Stage]:
        """The whole autoencoder, without dropout (Xie et al., 2016, section 3.2)."""

        def losses(run: Run, batch: Batch) -> tuple[dict[str, Tensor], None]:
            x = preprocess(batch.x)
            _, output = network(x)
            return {"reconstruction": reconstruction(output, x)}, None

        phase = self._phase(network.parameters, losses, network.sizes[0])
        return [Stage("tune", (phase,), Updates(updates))] if updates else []
