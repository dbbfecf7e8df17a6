"""Stages that train an autoencoder before there are clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepclust.cluster._trainer import Batch, Length, Phase, Run, Stage, Updates
from deepclust.losses import Schedule, reconstruction
from deepclust.networks import Autoencoder, LayeredAutoencoder

Preprocess = Callable[[Tensor], Tensor]
NONE = Updates(0)

Reconstruct = Callable[[Tensor, Tensor], Tensor]
Losses = Callable[[Run, Batch], tuple[dict[str, Tensor], Any]]
Transform = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Pretraining:
    """How autoencoders are trained.

    Attributes:
        optimizer: Makes the optimiser of each stage.
        layers: Length of the stage of each layer, of networks that have such stages.
        whole: Length of the stage of the whole network.
        dropout: Share of values set to zero in the layers' stages.
        schedule: Makes the learning-rate scheduler.
        loss: Of a reconstruction and its rows, in the layers' stages.
        per_row: Weigh the reconstruction as half the squared error of a row, ||x - x^||^2 / 2, for
            which the paper's learning rates are meant, rather than as the mean over its elements.
        augment: Makes the views of the rows that the whole network is trained on; by default the
            rows themselves.
    """

    optimizer: Callable[[Any], torch.optim.Optimizer]
    layers: Length = NONE
    whole: Length = NONE
    dropout: float = 0.0
    schedule: Callable[[torch.optim.Optimizer, Run], Any] | None = None
    loss: Reconstruct = reconstruction
    per_row: bool = False
    augment: Transform | None = None

    def stages(self, network: Autoencoder, preprocess: Preprocess, losses: Losses) -> list[Stage]:
        """First the layers, one by one, then the whole network, to these losses of a batch."""
        stages = []
        if isinstance(network, LayeredAutoencoder) and self.layers.n:
            stages += [self._layer_stage(network, i, preprocess) for i in range(network.n_layers)]
        if self.whole.n:
            phase = self._phase(network.parameters, losses, network.n_features)
            stages.append(Stage("tune", (phase,), self.whole, augment=self.augment))
        return stages

    def _layer_stage(
        self, network: LayeredAutoencoder, layer: int, preprocess: Preprocess
    ) -> Stage:
        """One layer as a denoising autoencoder (Xie et al., 2016, eqs. 6 to 9)."""

        def losses(run: Run, batch: Batch) -> tuple[dict[str, Tensor], None]:
            output, clean = network.denoise_layer(layer, preprocess(batch.x), self.dropout)
            # Above the data, what a layer sees are activations, whatever the data are.
            loss = reconstruction if layer else self.loss
            return {"reconstruction": loss(output, clean)}, None

        phase = self._phase(partial(network.layer_parameters, layer), losses, network.widths[layer])
        return Stage(f"pretrain-{layer + 1}", (phase,), self.layers)

    def _phase(self, parameters: Callable[[], Any], losses: Losses, width: int) -> Phase:
        weights: dict[str, Schedule] = {"reconstruction": width / 2} if self.per_row else {}
        return Phase("autoencoder", parameters, self.optimizer, losses, weights, self.schedule)
