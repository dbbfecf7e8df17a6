"""One method made of parts: a network, a clustering loss, other losses, interventions.

The taxonomy of Aljalbout et al. (2018) as classes. A part states choices and holds no state: what
is learned lies in the Composition, what a refresh finds in run.state, and both are in checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepclust import functional as F
from deepclust.cluster._checks import as_length
from deepclust.cluster._columns import Values, added, in_blocks, mapped
from deepclust.cluster._data import Rows
from deepclust.cluster._pretraining import Pretraining, Reconstruct, Transform
from deepclust.cluster._start import Start
from deepclust.cluster._trainer import Batch, Epochs, Length, Method, Phase, Run, Stage
from deepclust.functional import Head
from deepclust.losses import Schedule, reconstruction, weight_at
from deepclust.networks import Autoencoder, VariationalAutoencoder, features, features_width
from deepclust.nn import StudentTAssignment

Optimizer = Callable[[Any], torch.optim.Optimizer]
ONCE_A_PASS = Epochs(1)
_COMPILED = ("layers", "decode", "denoise")


class Forward:
    """What the network makes of the rows of one step, each result when it is first asked for.

    Attributes:
        aux: Tensors that a part's `after` is to see, by a name of its choice.
    """

    def __init__(
        self,
        method: Composition,
        rows: Tensor,
        view: Tensor | None = None,
        codes: Tensor | None = None,
    ) -> None:
        self.aux: dict[str, Tensor] = {}
        self._method, self._rows, self._view = method, rows, view
        if codes is not None:
            self.z = method.project(codes)

    @cached_property
    def x(self) -> Tensor:
        """The rows, scaled."""
        return self._method.preprocess(self._rows)

    @cached_property
    def layers(self) -> list[Tensor]:
        """The outputs of the encoder's layers, the code last."""
        return self._method.layers(self.x)

    @cached_property
    def z(self) -> Tensor:
        """The features (n, D) that are clustered."""
        return self._method.project(features(self.layers, self._method.features))

    @cached_property
    def output(self) -> Tensor:
        """The reconstruction of x."""
        return self._method.decode(self.layers[-1])

    @cached_property
    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and log variance (n, D) of the code, of a variational network."""
        network = self._method.network
        assert isinstance(network, VariationalAutoencoder)
        mean, log_var = network.posterior(self.x)
        # Of a half type under autocast; what is made of them is not.
        return mean.float(), log_var.float()

    @cached_property
    def sample(self) -> Tensor:
        """A draw from the posterior, through which gradients pass."""
        network = self._method.network
        assert isinstance(network, VariationalAutoencoder)
        return network.sample(*self.posterior)

    @cached_property
    def sample_output(self) -> Tensor:
        """The reconstruction of x from the draw."""
        return self._method.decode(self.sample)

    @cached_property
    def view(self) -> Forward:
        """The same of the other view of the rows."""
        assert self._view is not None
        return Forward(self._method, self._view)


class Part:
    """What clustering losses and regularisers have in common."""

    name: str  # of the loss, in the history
    weight: Schedule
    # Whether its loss needs the decoder, which is then trained on.
    decodes = False
    # Whether it reconstructs rows as a whole: the sum over their elements, not the mean.
    per_row = False
    # Whether several processes may share the rows: its losses are means over rows, and what it
    # finds in all of them it adds up by run.sum.
    is_shareable = False

    def prepare(self, method: Composition, rows: Rows) -> None:
        """Refuse a method or data that this part cannot work with, before anything is trained."""

    def module(self, method: Composition) -> nn.Module | None:
        """What this part trains in a phase of its own: a critic, a discriminator."""
        return None

    def extend(self, method: Composition, stage: Stage) -> Stage:
        """The clustering stage with what this part needs of it: views, companions, phases."""
        return stage

    def extend_pretraining(self, method: Composition, stage: Stage) -> Stage:
        """The same of the stage that trains the whole autoencoder before."""
        return stage

    def pretrain(self, method: Composition, forward: Forward) -> dict[str, Tensor]:
        """Its losses, by name, in the training of the whole autoencoder before."""
        return {}

    def begin(self, method: Composition, run: Run) -> None:
        """Once, when the clusters have first started."""

    def started(self, method: Composition, run: Run, z: Values) -> None:
        """The clusters have started, or started again, from embeddings z (N, D)."""

    def refresh(self, method: Composition, run: Run, z: Values) -> None:
        """A full pass between updates; z (N, D) are the present embeddings."""

    def after(self, method: Composition, run: Run, batch: Batch, aux: dict[str, Tensor]) -> None:
        """After the step, in place, without gradients or host reads."""


class Clustering(Part, ABC):
    """A clustering loss: its head, where clusters start, what is minimised, how they move."""

    # Between two refreshes: once a pass, where a loss has no field of this name.
    update_interval: int | Length = ONCE_A_PASS
    # Whether the optimiser moves the head; else `after` or `refresh` do.
    trains_head = True
    # Whether a row has a target, or a label, that a view of it can be held to.
    has_targets = True
    # What a reconstruction is measured by before there are clusters.
    reconstruct: Reconstruct = staticmethod(reconstruction)

    @property
    def every(self) -> Length:
        """How often to refresh."""
        return as_length("update_interval", self.update_interval, 1)

    @property
    def weights(self) -> dict[str, Schedule]:
        """The scheduled weight of each loss by name; most have one."""
        return {self.name: self.weight}

    def pretrain(self, method: Composition, forward: Forward) -> dict[str, Tensor]:
        """The reconstruction, without dropout by default: section 3.2 of Xie et al. (2016)."""
        return {"reconstruction": self.reconstruct(forward.output, forward.x)}

    @abstractmethod
    def layer(self, n_clusters: int, n_features: int, backend: str) -> Any:
        """The module that owns the head's parameters, and gives it by head()."""

    @abstractmethod
    def start(self, method: Composition, run: Run, z: Values) -> None:
        """Set the head, and run.state["labels"], from embeddings z (N, D)."""

    @abstractmethod
    def losses(
        self, method: Composition, run: Run, batch: Batch, forward: Forward
    ) -> dict[str, Tensor]:
        """The losses of a batch by name."""

    def stop(self, method: Composition, run: Run) -> str | None:
        """Asked after each refresh: why the clustering is over, or None."""
        return None

    def moved(self, method: Composition, run: Run, clusters: Tensor) -> None:
        """These clusters (n,) have been given other places."""

    def refresh(self, method: Composition, run: Run, z: Values) -> None:
        """Labels, cluster frequencies and the share of labels that changed."""
        f, labels, n_changed = method.assigned(run, z, run.state["labels"])
        run.state["labels"], run.state["frequencies"] = labels, run.sum(f).to(f.dtype)
        run.state["changed"] = float(run.sum(n_changed)) / len(run)
        run.log("changed", run.state["changed"])


class Centroids(Clustering):
    """A clustering loss whose clusters are centroids, which start from k-means."""

    nu: float = 1.0

    def layer(self, n_clusters: int, n_features: int, backend: str) -> StudentTAssignment:
        """Centroids; the nearest one is also that of the highest Student-t similarity."""
        return StudentTAssignment(n_clusters, n_features, self.nu, backend=backend)

    def start(self, method: Composition, run: Run, z: Values) -> None:
        """Centroids and labels by k-means with restarts."""
        centroids, run.state["labels"] = method.recipe.start(run, z)
        method.layer.centroids.copy_(centroids)


class Regulariser(Part, ABC):
    """A loss beside the clustering loss, with a weight of its own."""

    @abstractmethod
    def loss(self, method: Composition, run: Run, batch: Batch, forward: Forward) -> Tensor:
        """The loss of a batch."""


class Intervention(ABC):
    """A change to the network or the clusters between updates, before a refresh."""

    is_shareable = False  # as of a Part

    @abstractmethod
    def act(self, method: Composition, run: Run, z: Values) -> Values:
        """Change what is to be changed; z (N, D) are the embeddings, and what they are then."""

    def holds(self, run: Run) -> bool:
        """Whether more changes are to come, so that the clustering must not stop yet."""
        return False


@dataclass
class Recipe:
    """Everything that a Composition is made of, checked.

    Attributes:
        network: The autoencoder, or the encoder alone.
        clustering: The clustering loss.
        regularisers: The other losses.
        interventions: What happens between updates, in order.
        start: k-means with restarts.
        features: Layers that are clustered: "last", or their numbers.
        image_shape: (H, W, C) where rows are images.
        augment: Makes the views of the rows that are trained on; None for the rows themselves.
        pretraining: How the autoencoder is trained before; None where it is not.
        optimizer: Makes the optimiser of the clustering.
        schedule: Makes its learning-rate scheduler.
        length: Length of the clustering, at most.
        order: "shuffle" or "sequential" batches in the clustering.
        freeze_encoder: Train the head alone.
        recluster: Start the clusters again at the end.
        compile: Run the network through torch.compile in training.
        backend: Of the kernels.
    """

    network: Autoencoder
    clustering: Clustering
    start: Start
    optimizer: Optimizer
    length: Length
    regularisers: Sequence[Regulariser] = ()
    interventions: Sequence[Intervention] = ()
    features: Literal["last"] | tuple[int, ...] = "last"
    image_shape: tuple[int, ...] | None = None
    augment: Transform | None = None
    pretraining: Pretraining | None = None
    schedule: Callable[[torch.optim.Optimizer, Run], Any] | None = None
    order: Literal["shuffle", "sequential"] = "shuffle"
    freeze_encoder: bool = False
    recluster: bool = False
    compile: bool = False
    backend: str = "auto"


class Composition(Method):
    """The method that a recipe describes.

    Attributes:
        network: The autoencoder.
        layer: The module that owns the head.
        opponents: The modules of parts that have one, by the part's name.
        scale: What rows are multiplied by.
        middle: What is taken from them before.
        recipe: What it is made of.
    """

    row_state = ("labels", "codes")
    scale: Tensor
    middle: Tensor
    # The network's functions of these names, compiled if the recipe says so.
    layers: Callable[[Tensor], list[Tensor]]
    decode: Callable[[Tensor], Tensor]
    denoise: Callable[[Tensor, Sequence[float]], tuple[Tensor, list[Tensor]]]

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.network, self.features = recipe.network, recipe.features
        self.backend, self.image_shape = recipe.backend, recipe.image_shape
        self.layer = recipe.clustering.layer(
            recipe.start.n_clusters, features_width(self.network, self.features), recipe.backend
        )
        modules = {part.name: part.module(self) for part in self.parts}
        self.opponents = nn.ModuleDict({k: m for k, m in modules.items() if m is not None})
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("middle", torch.zeros(()))
        for name in _COMPILED:
            function = getattr(self.network, name)
            setattr(self, name, torch.compile(function) if recipe.compile else function)
        names = [*recipe.clustering.weights, *(part.name for part in recipe.regularisers)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"regularisers: with them the method has the loss {min(twice)!r} twice; it takes"
                " one of each kind"
            )
        if not self.trained():
            raise ValueError(
                "freeze_encoder, network: got choices that leave nothing to train; a frozen or"
                " absent encoder takes a clustering whose head is trained"
            )

    def __getstate__(self) -> dict[str, Any]:
        """What pickle keeps: not compiled functions, which it cannot; prediction needs none."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, **{name: getattr(self.network, name) for name in _COMPILED}}

    @property
    def parts(self) -> list[Part]:
        """The clustering loss and the regularisers."""
        return [self.recipe.clustering, *self.recipe.regularisers]

    @property
    def weights(self) -> dict[str, Schedule]:
        """The scheduled weight of each loss by name."""
        weights = dict(self.recipe.clustering.weights)
        weights.update({part.name: part.weight for part in self.recipe.regularisers})
        return weights

    def why_alone(self) -> str | None:
        """The first part, or layer, that has to see all rows of a batch."""
        parts: list[Part | Intervention] = [*self.parts, *self.recipe.interventions]
        for part in parts:
            if not part.is_shareable:
                return f"{type(part).__name__} takes all rows in one process"
        for name, layer in self.network.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                return (
                    f"the network's {name} takes means over a batch, which has to be in one process"
                )
        return None

    def prepare(self, rows: Rows) -> None:
        """Refuse what a part cannot work with, before anything is trained."""
        for name, weight in self.weights.items():
            weight_at(weight, 0, name)
        for part in self.parts:
            part.prepare(self, rows)

    def head(self) -> Head:
        """The head of the clustering loss."""
        head: Head = self.layer.head()
        return head

    def preprocess(self, x: Tensor) -> Tensor:
        """Scale the data around their middle, which is 0 but for the scale "range"."""
        return (x - self.middle) * self.scale

    def embed(self, x: Tensor) -> Tensor:
        """The features that are clustered."""
        x = self.preprocess(x)
        if self.features == "last":
            return self.project(self.network.encode(x))
        return self.project(features(self.network.layers(x), self.features))

    def project(self, z: Tensor) -> Tensor:
        """Where the clusters are, if the layer that owns the head says so: whitened features."""
        project = getattr(self.layer, "project", None)
        return z if project is None else project(z)

    def embed_clean(self, x: Tensor) -> Tensor:
        """The features of rows in mid-training, as `embed` gives them elsewhere."""
        self.network.eval()
        z = self.embed(x)
        self.network.train()
        return z

    def stages(self) -> list[Stage]:
        """The autoencoder's stages, the clustering, and the re-clustering if there is one."""
        recipe = self.recipe
        stages = []
        if recipe.pretraining is not None:
            stages += recipe.pretraining.stages(self.network, self.preprocess, self.pretrain_losses)
            if recipe.pretraining.whole.n:
                for part in self.parts:
                    stages[-1] = part.extend_pretraining(self, stages[-1])
        phase = Phase(
            "cluster",
            self.trained,
            recipe.optimizer,
            self.losses,
            self.weights,
            recipe.schedule,
            after=self.after,
        )
        stage = Stage(
            "cluster",
            (phase,),
            recipe.length,
            begin=self.begin,
            refresh=self.refresh,
            every=recipe.clustering.every,
            stop=self.stop,
            order=recipe.order,
            augment=recipe.augment,
        )
        for part in self.parts:
            stage = part.extend(self, stage)
        stages.append(stage)
        if recipe.recluster:
            stages.append(Stage("recluster", begin=self.start))
        return stages

    def trained(self) -> list[torch.nn.Parameter]:
        """The head, the encoder unless it is frozen, and the decoder where a loss needs it."""
        recipe = self.recipe
        trained = [*self.layer.parameters()] if recipe.clustering.trains_head else []
        if not recipe.freeze_encoder:
            trained += self.network.encoder_parameters()
        if any(part.decodes for part in self.parts):
            trained += self.network.decoder_parameters()
        return trained

    def begin(self, run: Run) -> None:
        """Where clusters start; what a frozen encoder gives is computed once."""
        if self.recipe.freeze_encoder and self.recipe.augment is None:
            run.state["codes"] = run.map(self.embed)
        self.start(run)
        for part in self.parts:
            part.begin(self, run)

    def start(self, run: Run) -> None:
        """The clusters of the present embeddings."""
        z = self.embedded(run)
        self.recipe.clustering.start(self, run, z)
        for part in self.parts:
            part.started(self, run, z)

    def embedded(self, run: Run) -> Values:
        """The embeddings (N, D) of all rows."""
        codes: Values | None = run.state.get("codes")
        found: Values = run.map(self.embed) if codes is None else mapped(self.project, codes)
        return found

    def assigned(
        self, run: Run, z: Values, previous: Values | None = None
    ) -> tuple[Tensor, Values, Tensor]:
        """What `frequencies` finds in embeddings z (N, D): f, labels (N,) and how many changed."""
        head, found = self.head(), list[tuple[Tensor, Tensor]]()

        def parts() -> Iterator[tuple[slice, Tensor]]:
            for rows, some in in_blocks(z):
                before = None if previous is None else previous[rows]
                f, labels, n_changed = F.frequencies(
                    some, head, previous_labels=before, backend=self.backend
                )
                found.append((f, n_changed))
                yield rows, labels

        labels = run.collect(parts())
        f, n_changed = (added(values) for values in zip(*found, strict=True))
        return f, labels, n_changed

    def refresh(self, run: Run) -> None:
        """Interventions, then what each part takes from the whole data."""
        z = self.embedded(run)
        if run.update < run.n_updates:  # at the end nothing would be trained on
            for intervention in self.recipe.interventions:
                z = intervention.act(self, run, z)
        for part in self.parts:
            part.refresh(self, run, z)

    def forward_of(self, run: Run, batch: Batch) -> Forward:
        """What the network makes of the rows of a batch that are trained on."""
        codes: Values | None = run.state.get("codes")
        rows = batch.x if self.recipe.augment is None or batch.view is None else batch.view
        return Forward(self, rows, batch.view, None if codes is None else codes[batch.idx])

    def pretrain_losses(self, run: Run, batch: Batch) -> tuple[dict[str, Tensor], None]:
        """What the whole autoencoder is trained to before there are clusters."""
        forward, losses = self.forward_of(run, batch), dict[str, Tensor]()
        for part in self.parts:
            losses |= part.pretrain(self, forward)
        return losses, None

    def losses(self, run: Run, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of all parts by name, and what their `after` is to see."""
        if self.recipe.freeze_encoder:
            # Lest what its layers keep of the data moves; a decoder trains on.
            getattr(self.network, "encoder", self.network).eval()
        forward = self.forward_of(run, batch)
        losses = self.recipe.clustering.losses(self, run, batch, forward)
        for part in self.recipe.regularisers:
            losses[part.name] = part.loss(self, run, batch, forward)
        return losses, forward.aux

    def after(self, run: Run, batch: Batch, aux: dict[str, Tensor]) -> None:
        """What parts do after the step."""
        for part in self.parts:
            part.after(self, run, batch, aux)

    def stop(self, run: Run) -> str | None:
        """The clustering's own rule, but not before the last intervention."""
        if any(intervention.holds(run) for intervention in self.recipe.interventions):
            return None
        return self.recipe.clustering.stop(self, run)
