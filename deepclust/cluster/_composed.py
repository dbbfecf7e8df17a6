"""What the estimators made of parts share: parameters, presets, networks."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch.nn import Module

from deepclust.cluster._checks import (
    as_length,
    check_above_zero,
    check_integer,
    either,
)
from deepclust.cluster._composition import (
    Clustering,
    Composition,
    Intervention,
    Recipe,
    Regulariser,
)
from deepclust.cluster._data import Rows
from deepclust.cluster._estimator import DeepEstimator
from deepclust.cluster._pretraining import Pretraining
from deepclust.cluster._start import Start
from deepclust.kernels._checks import is_number
from deepclust.networks import (
    ACAI_WIDTHS,
    ACAIAutoencoder,
    Autoencoder,
    ConvAutoencoder,
    GivenEmbeddings,
    MLPAutoencoder,
    UserNetwork,
    VariationalAutoencoder,
)
from deepclust.networks.images import image_size
from deepclust.transforms import FeatureNoise, ImageTransform

# Lengths and rates that suit thousands of rows on a CPU; every method's presets begin with these.
QUICK: dict[str, Any] = {
    "layer_updates": 0,
    "tune_updates": 2_500,
    "optimizer": "adam",
    "pretrain_lr": 1e-3,
    "cluster_lr": 1e-3,
    "init_std": None,
    "init_criterion": "gaussian",
    "max_updates": 3_000,
    "order": "shuffle",
}

# DEC's network (section 4.2 of Xie et al., 2016).
_WIDTHS = (500, 500, 2000)

# Mean squares of the scaled data beyond which a warning is due, by far.
_SMALL, _LARGE = 1e-2, 1e2


@dataclass(eq=False, repr=False, kw_only=True)
class ComposedEstimator(DeepEstimator):
    """An estimator of the method that its parts make: the parameters that all of them take."""

    n_clusters: int = field(default=8, kw_only=False)
    preset: str = "quick"
    network: Any = "mlp"
    encoder: Any = None
    decoder: Any = None
    hidden: Any = None
    latent_dim: Any = 10
    features: Any = "last"
    image_shape: Any = None
    scale: Any = "dec"
    augment: Any = None
    layer_updates: Any = None
    dropout: float = 0.2
    tune_updates: Any = None
    max_updates: Any = None
    batch_size: int = 256
    optimizer: str | None = None
    pretrain_lr: float | None = None
    cluster_lr: float | None = None
    init: Any = "k-means++"
    n_init: int = 20
    init_criterion: str | None = None
    freeze_encoder: bool = False
    regularisers: Any = ()
    interventions: Any = ()
    recluster: bool = False
    pretrained: Any = None
    autocast: str | None = None
    compile: bool = False
    cuda_graphs: bool = False
    device: str = "cpu"
    backend: str = "auto"
    random_state: Any = None
    verbose: int = 0
    callbacks: Any = ()
    checkpoint: Any = None

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"quick": QUICK}

    @property
    def takes_images(self) -> bool:
        """Whether X may have three or four dimensions."""
        images = self.network == "conv" or hasattr(self.network, "image_size")
        return images or self.image_shape is not None

    def _clustering(self, settings: dict[str, Any]) -> Clustering:
        """The clustering loss, from the parameters with the preset's values in them."""
        raise NotImplementedError

    def _losses(self, settings: dict[str, Any]) -> tuple[Regulariser, ...]:
        """The other losses that the method always has."""
        return ()

    def _batch_size(self) -> Any:
        return self._filled_in()["batch_size"]

    def _build(self, n_features: int) -> Composition:
        s = self._filled_in()
        clustering = self._clustering(s)
        network = self._network(s, n_features)
        image_shape, own = self._image_shape(n_features), getattr(network, "image_size", None)
        if None not in (image_shape, own) and image_shape != own:
            raise ValueError(f"image_shape: got {image_shape}, but the network takes {own}")
        image_shape = image_shape or own
        augment = _transform("augment", self.augment, image_shape)
        given = tuple(
            replace(part, transform=_transform("transform", "auto", image_shape))
            if getattr(part, "transform", None) == "auto"
            else part
            for part in _all("regularisers", self.regularisers, Regulariser)
        )
        trains = self.pretrained is None and network.has_decoder
        if self.tune_updates and not network.has_decoder:
            raise ValueError(
                f"tune_updates: got {self.tune_updates!r}, but the network has no decoder; it takes"
                " 0 there"
            )
        sgd = s["optimizer"] == "sgd"
        pretraining = Pretraining(
            _optimizer(s["optimizer"], s["pretrain_lr"]),
            s["layer_updates"],
            s["tune_updates"],
            self.dropout,
            _tenth_every_20_000 if sgd else None,
            clustering.reconstruct,
            per_row=sgd,
            augment=augment,
        )
        recipe = Recipe(
            network,
            clustering,
            Start(self.n_clusters, self.init, s["n_init"], s["init_criterion"], self.backend),
            _optimizer(s["cluster_optimizer"], s["cluster_lr"]),
            s["max_updates"],
            regularisers=(*self._losses(s), *given),
            interventions=_all("interventions", self.interventions, Intervention),
            features=s["features"],
            image_shape=image_shape,
            augment=augment,
            pretraining=pretraining if trains else None,
            schedule=s.get("schedule"),
            order=s["order"],
            freeze_encoder=self.freeze_encoder,
            recluster=s["recluster"],
            compile=self.compile,
            backend=self.backend,
        )
        method = Composition(recipe)
        if self.pretrained is not None:
            load_weights(method.network, self.pretrained)
        return method

    def _network(self, s: dict[str, Any], n_features: int) -> Autoencoder:
        """The network, untrained; a module of the user's is copied."""
        if self.encoder is not None:
            if not isinstance(self.encoder, Module):
                raise TypeError(
                    f"encoder: got {type(self.encoder).__name__}; it takes a torch.nn.Module"
                )
            shape = self._image_shape(n_features)
            # Together, so that weights they share stay shared.
            encoder, decoder = copy.deepcopy((self.encoder, self.decoder))
            return UserNetwork(encoder, decoder, n_features=n_features, image_shape=shape)
        if self.decoder is not None:
            raise ValueError("decoder: got a module, but no encoder; it goes with encoder=")
        kind = s["network"]
        if kind is None:
            return GivenEmbeddings(n_features)
        if isinstance(kind, Autoencoder):
            if kind.n_features != n_features:
                raise ValueError(
                    f"network: it takes rows of {kind.n_features}, but X has {n_features}"
                )
            return copy.deepcopy(kind)
        if kind == "conv":
            shape = self._image_shape(n_features)
            if shape is None:
                side = round(n_features**0.5)
                hint = f": ({side}, {side})?" if side * side == n_features else ""
                raise ValueError(
                    f"image_shape: got None; network='conv' takes the shape of the images that rows"
                    f" of {n_features} are{hint}"
                )
            if isinstance(s["hidden"], str) and s["hidden"] in ACAI_WIDTHS:
                return ACAIAutoencoder(shape, s["latent_dim"], width=ACAI_WIDTHS[s["hidden"]])
            layers = {} if s["hidden"] is None else {"layers": s["hidden"]}
            options = self._network_options(s)
            if options.get("init_std") != "glorot":
                options.pop("init_std", None)  # a deviation for fully connected layers alone
            return ConvAutoencoder(shape, s["latent_dim"], **layers, **options)
        kinds = {"mlp": MLPAutoencoder, "variational": VariationalAutoencoder}
        if kind not in kinds:
            raise ValueError(
                f"network: got {kind!r}; it takes 'mlp', 'conv', 'variational', None or an"
                " Autoencoder"
            )
        hidden = _WIDTHS if s["hidden"] is None else s["hidden"]
        if isinstance(hidden, str) or not isinstance(hidden, Iterable):
            raise ValueError(f"hidden: got {hidden!r}; it takes a sequence of widths")
        sizes = (n_features, *hidden, s["latent_dim"])
        return kinds[kind](sizes, **self._network_options(s))

    def _network_options(self, s: dict[str, Any]) -> dict[str, Any]:
        """Further arguments of the networks, which presets may give."""
        names = ("activation", "code", "output", "init_std")
        return {name: s[name] for name in names if name in s}

    def _image_shape(self, n_features: int) -> tuple[int, ...] | None:
        shape = self.image_shape
        if shape is None and self.takes_images:
            shape = getattr(self, "image_shape_", None)
        if shape is None:
            return None
        size = image_size(shape)
        if math.prod(size) != n_features:
            raise ValueError(
                f"image_shape: got {shape!r}; it takes (H, W) or (H, W, C), channels last, of the"
                f" {n_features} values of a row"
            )
        return size

    def _prepare(self, method: Composition, rows: Rows) -> None:
        scale = self._filled_in()["scale"]
        if scale == "range":
            ends = [torch.stack(x.aminmax()) for _, x in rows.blocks() if len(x)]
            own = torch.cat([torch.empty(0, device=rows.device), *ends]).tolist()
            values = [value for part in rows.ranks.objects(own) for value in part]
            least, most = min(values), max(values)
            if least == most:
                raise ValueError(f"X: got no value but {least:g}; scale='range' takes several")
            method.scale.fill_(2 / (most - least))
            method.middle.fill_((most + least) / 2)
        elif scale is not None and scale != "dec":
            method.scale.fill_(scale)
        # Summed on the device, which the host would otherwise wait for at each block.
        squares = (method.preprocess(x).double().square().sum() for _, x in rows.blocks())
        square = float(rows.ranks.sum(sum(squares, torch.zeros((), device=rows.device))))
        square /= rows.ranks.total * rows.n_features
        if scale == "dec":
            if square == 0:
                raise ValueError("X: got only zeros; scale='dec' takes data with values")
            method.scale.fill_(square**-0.5)
            square = 1.0
        if not _SMALL <= square <= _LARGE and not isinstance(method.network, GivenEmbeddings):
            warnings.warn(
                f"X: the mean square of its values is {square:.3g} with scale={scale!r}, far from"
                " the 1 that the learning rates are meant for; scale='dec' makes it 1",
                UserWarning,
                stacklevel=3,
            )
        method.prepare(rows)

    def _filled_in(self) -> dict[str, Any]:
        """The parameters, checked, with the preset's values for those that are None."""
        if self.preset not in self.PRESETS:
            raise ValueError(f"preset: got {self.preset!r}; it takes {either(self.PRESETS)}")
        s: dict[str, Any] = self.get_params(deep=False)
        for name, value in self.PRESETS[self.preset].items():
            if s.get(name) is None:
                s[name] = value
        if s["latent_dim"] is None:
            s["latent_dim"] = self.n_clusters
        for name, least in (("latent_dim", 1), ("n_init", 1)):
            check_integer(name, s[name], least)
        for name in ("layer_updates", "tune_updates", "max_updates"):
            s[name] = as_length(name, s[name], 0)
        if not (is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"dropout: got {self.dropout!r}; it takes a share from 0 to below 1")
        for name in ("pretrain_lr", "cluster_lr"):
            check_above_zero(name, s[name])
        choices = {"optimizer": ("adam", "sgd"), "init_criterion": ("inertia", "gaussian")}
        for name, known in choices.items():
            if s[name] not in known:
                raise ValueError(f"{name}: got {s[name]!r}; it takes {either(known)}")
        for name in ("freeze_encoder", "recluster", "compile"):
            if not isinstance(s[name], bool):
                raise ValueError(f"{name}: got {s[name]!r}; it takes True or False")
        if not (self.scale is None or self.scale in ("dec", "range")):
            check_above_zero("scale", self.scale, "'dec', 'range', None or ")
        # A preset's optimiser of the clustering gives way to one that is asked for.
        s["cluster_optimizer"] = self.optimizer or s.get("cluster_optimizer") or s["optimizer"]
        if self.features != "last":
            if isinstance(self.features, str) or not isinstance(self.features, Iterable):
                raise ValueError(
                    f"features: got {self.features!r}; it takes 'last' or numbers of layers"
                )
            s["features"] = tuple(self.features)
        return s


def load_weights(network: Autoencoder, source: Any) -> None:
    """Weights of another network; a variational one takes those of a plain autoencoder too."""
    if isinstance(source, Module):
        source = source.state_dict()
    if not isinstance(source, Mapping):
        raise TypeError(
            f"pretrained: got {type(source).__name__}; it takes the network_ of another fit or its"
            " state_dict"
        )
    weights = dict(source)
    own = network.state_dict()
    if isinstance(network, VariationalAutoencoder):
        weights = {**{name: own[name] for name in own if name.startswith("log_var")}, **weights}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(
            f"pretrained: the weights do not fit this {type(network).__name__}: {first}"
        ) from None


def _optimizer(name: str, lr: float) -> Any:
    kinds: dict[str, Any] = {
        "adam": torch.optim.Adam,
        "sgd": partial(torch.optim.SGD, momentum=0.9),
    }
    # fused: one pass over the weights, where the plain forms make a dozen.
    return partial(kinds[name], lr=lr, fused=True)


def _tenth_every_20_000(optimizer: torch.optim.Optimizer, run: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=20_000, gamma=0.1)


def _all(name: str, parts: Any, kind: type[Any]) -> tuple[Any, ...]:
    if not isinstance(parts, Sequence) or not all(isinstance(part, kind) for part in parts):
        raise TypeError(f"{name}: got {parts!r}; it takes a sequence of {kind.__name__}s")
    return tuple(parts)


def _transform(name: str, transform: Any, shape: tuple[int, ...] | None) -> Any:
    """The function that makes views; "auto" chooses one for the data."""
    if transform == "auto":
        return FeatureNoise() if shape is None else ImageTransform(shape)
    if transform is not None and not callable(transform):
        raise TypeError(f"{name}: got {transform!r}; it takes 'auto' or (x, generator) -> view")
    return transform
