"""DEC: "Unsupervised Deep Embedding for Clustering Analysis" (Xie, Girshick, Farhadi, 2016)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.cluster._data import Rows
from deepclust.cluster._estimator import DeepEstimator
from deepclust.cluster._pretraining import Pretraining
from deepclust.cluster._trainer import Batch, Method, Phase, Run, Stage, Updates
from deepclust.cluster.kmeans import KMeans
from deepclust.networks import StackedAutoencoder
from deepclust.nn import StudentTAssignment

PRESETS: dict[str, dict[str, Any]] = {
    # Section 4.3 of the paper, and its published code where the paper is silent (init_std, order).
    "paper": {
        "layer_updates": 50_000,
        "tune_updates": 100_000,
        "optimizer": "sgd",
        "pretrain_lr": 0.1,
        "cluster_lr": 0.01,
        "init_std": 0.01,
        "init_criterion": "inertia",
        "update_interval": 160,
        "max_updates": 100_000,
        "order": "sequential",
    },
    "quick": {
        "layer_updates": 0,
        "tune_updates": 2_500,
        "optimizer": "adam",
        "pretrain_lr": 1e-3,
        "cluster_lr": 1e-3,
        "init_std": None,
        "init_criterion": "gaussian",
        "update_interval": 30,
        "max_updates": 3_000,
        "order": "shuffle",
    },
}


class DECMethod(Method):
    """The networks of DEC and its stages, equation by equation."""

    scale: Tensor

    def __init__(self, settings: dict[str, Any], n_features: int) -> None:
        super().__init__()
        self.settings = settings
        sizes = (n_features, *settings["hidden"], settings["latent_dim"])
        self.network = StackedAutoencoder(sizes, init_std=settings["init_std"])
        self.layer = StudentTAssignment(
            settings["n_clusters"],
            settings["latent_dim"],
            settings["nu"],
            backend=settings["backend"],
        )
        self.register_buffer("scale", torch.ones(()))

    def head(self) -> F.StudentT:
        """Student-t similarity to the centroids, eq. 1."""
        return self.layer.head()

    def embed(self, x: Tensor) -> Tensor:
        """z = f_theta(x)."""
        return self.network.encode(self.preprocess(x))

    def preprocess(self, x: Tensor) -> Tensor:
        """Scale the data."""
        return x * self.scale

    def stages(self) -> list[Stage]:
        """Section 3.2: layers, whole network, then clustering."""
        s = self.settings
        stages = []
        if s["pretrained"] is None:
            pretraining = s["pretraining"]
            stages += pretraining.layer_stages(
                self.network, s["layer_updates"], s["dropout"], self.preprocess
            )
            stages += pretraining.tuning_stages(self.network, s["tune_updates"], self.preprocess)
        phase = Phase("cluster", self.trained, s["cluster_optimizer"], self.losses)
        stages.append(
            Stage(
                "cluster",
                (phase,),
                Updates(s["max_updates"]),
                begin=self.start,
                refresh=self.refresh,
                every=Updates(s["update_interval"]),
                stop=self.stop,
                order=s["order"],
            )
        )
        return stages

    def trained(self) -> list[torch.nn.Parameter]:
        """Centroids and, unless it is frozen, the encoder; the decoder is discarded."""
        encoder = [] if self.settings["freeze_encoder"] else self.network.encoder.parameters()
        return [self.layer.centroids, *encoder]

    def start(self, run: Run) -> None:
        """Centroids by k-means with restarts on the embedded data (section 3.2)."""
        s = self.settings
        z = run.map(self.embed)
        best = -math.inf
        for _ in range(s["n_init"]):
            kmeans = KMeans(
                s["n_clusters"],
                init=s["init"],
                n_init=1,
                random_state=run.seed("k-means"),
                backend=s["backend"],
            ).fit(z)
            gaussian = s["init_criterion"] == "gaussian"
            score = gaussian_likelihood(z, kmeans.labels_) if gaussian else -kmeans.inertia_
            if score > best:
                best = score
                self.layer.centroids.copy_(torch.from_numpy(kmeans.cluster_centers_))
                run.state["labels"] = torch.from_numpy(kmeans.labels_).to(run.device)
            if not isinstance(s["init"], str):
                break  # from given centroids, k-means always ends the same

    def refresh(self, run: Run) -> None:
        """The target of the whole data, eq. 3, and how many labels changed."""
        z = run.map(self.embed)
        f, labels, n_changed = F.frequencies(
            z, self.head(), previous_labels=run.state["labels"], backend=self.settings["backend"]
        )
        run.state["labels"], run.state["frequencies"] = labels, f
        run.state["snapshot"] = F.freeze_target(
            z, self.head(), power=2.0, frequencies=f, check=False
        )
        run.state["changed"] = float(n_changed) / len(run)
        run.log("changed", run.state["changed"])

    def losses(self, run: Run, batch: Batch) -> tuple[dict[str, Tensor], None]:
        """L = KL(P || Q), eq. 2; its gradients are eqs. 4 and 5."""
        target = run.state["snapshot"][batch.idx]
        # What a frozen encoder would give is in the snapshot already.
        z = target.z if self.settings["freeze_encoder"] else self.embed(batch.x)
        kl = F.target_loss(z, self.head(), target, backend=self.settings["backend"], check=False)
        return {"kl": kl}, None

    def stop(self, run: Run) -> str | None:
        """Section 3.2: stop when fewer than tol of the labels change between two refreshes."""
        tol = self.settings["tol"]
        if run.update > 0 and run.state["changed"] < tol:
            return f"{run.state['changed']:.3%} of the labels changed, fewer than tol={tol:g}"
        return None


class DEC(DeepEstimator):
    """Deep embedded clustering.

    Trains an autoencoder, finds centroids mu by k-means on its codes z, then minimises KL(P || Q) =
    sum_ij p_ij log(p_ij / q_ij) over the encoder and the centroids, with

        q_ij ∝ (1 + ||z_i - mu_j||^2 / nu)^(-(nu+1)/2),    p_ij ∝ q_ij^2 / f_j,    f_j = sum_i q_ij

    (eqs. 1 to 3 of Xie et al., 2016). P is that of the whole data, frozen between refreshes, and
    never stored: memory grows with N (D + latent_dim), not with N K.

    Lengths count updates (batches), not passes: short pre-training is the first cause of failed
    runs.

    Args:
        n_clusters: K, at most the number of distinct rows.
        preset: "quick", Adam and lengths that suit thousands of rows, or "paper", the published
            recipe, which takes hours on a CPU. It fills in each parameter below that is None.
        hidden: Widths of the encoder's hidden layers.
        latent_dim: Width of the embedding.
        nu: Degrees of freedom of the Student-t similarity.
        scale: "dec" multiplies X by the number that makes the mean of ||x||^2 / D one, as the paper
            does; None leaves X as it is; a number multiplies it.
        layer_updates: Updates of each layer as a denoising autoencoder; 0 for none.
        dropout: Share of values set to zero there, from 0 to below 1.
        tune_updates: Updates of the whole autoencoder.
        max_updates: Updates of the clustering, at most.
        update_interval: Updates between two targets.
        tol: Stop when fewer than this share of the labels change between two targets.
        batch_size: Rows of a batch.
        optimizer: "adam", or "sgd" with momentum 0.9 and, in pre-training, a tenth of the rate
            every 20,000 updates.
        pretrain_lr: Learning rate of the autoencoder.
        cluster_lr: Learning rate of the clustering.
        init: "k-means++", "random", or centroids (K, latent_dim) in the embedding.
        n_init: Restarts of k-means.
        init_criterion: Which restart to keep: that of least "inertia", as in the paper, or that in
            which one "gaussian" a cluster, of any shape, explains the embedding best. Ends of
            k-means that differ by a thousandth in inertia can be far apart in what they found.
        freeze_encoder: Train the centroids alone, the paper's ablation.
        pretrained: Skip the training of the autoencoder and take these weights: the `network_` of
            another fit, or its state_dict.
        autocast: "bfloat16" runs the networks' products in that type; None in float32. Losses,
            distances and the parameters themselves are float32 either way.
        cuda_graphs: On a GPU, capture the steps of the training in CUDA graphs and replay them: for
            small networks and batches, whose kernels take longer to start than to run.
        device: "cpu", "cuda", "cuda:1", ...
        backend: "auto", "eager", "cpp" or "triton", for the kernels.
        random_state: Seed or RandomState.
        verbose: 1 shows progress bars.
        callbacks: Functions of the run, called after each refresh and at the end of each stage.
        checkpoint: A file for the state of an interrupted fit; also written every minute or so.

    Attributes:
        labels_: Labels (N,) int64; equal to predict(X).
        cluster_centers_: Centroids (K, latent_dim).
        network_: The autoencoder.
        history_: Series by "stage/name": pairs of an update of that stage and a value. The stages
            are "pretrain-1", ..., "tune" and "cluster".
        stop_reasons_: Why each stage ended.
        n_iter_: Updates in all.

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from deepclust.cluster import DEC
        >>> X, _ = make_blobs(200, centers=3, n_features=8, random_state=0)
        >>> dec = DEC(3, hidden=(16,), latent_dim=2, tune_updates=50, max_updates=50)
        >>> dec.fit(X).predict_proba(X).shape
        (200, 3)
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        preset: str = "quick",
        hidden: Any = (500, 500, 2000),
        latent_dim: int = 10,
        nu: float = 1.0,
        scale: Any = "dec",
        layer_updates: int | None = None,
        dropout: float = 0.2,
        tune_updates: int | None = None,
        max_updates: int | None = None,
        update_interval: int | None = None,
        tol: float = 1e-3,
        batch_size: int = 256,
        optimizer: str | None = None,
        pretrain_lr: float | None = None,
        cluster_lr: float | None = None,
        init: Any = "k-means++",
        n_init: int = 20,
        init_criterion: str | None = None,
        freeze_encoder: bool = False,
        pretrained: Any = None,
        autocast: str | None = None,
        cuda_graphs: bool = False,
        device: str = "cpu",
        backend: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
        callbacks: Any = (),
        checkpoint: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.preset = preset
        self.hidden = hidden
        self.latent_dim = latent_dim
        self.nu = nu
        self.scale = scale
        self.layer_updates = layer_updates
        self.dropout = dropout
        self.tune_updates = tune_updates
        self.max_updates = max_updates
        self.update_interval = update_interval
        self.tol = tol
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.pretrain_lr = pretrain_lr
        self.cluster_lr = cluster_lr
        self.init = init
        self.n_init = n_init
        self.init_criterion = init_criterion
        self.freeze_encoder = freeze_encoder
        self.pretrained = pretrained
        self.autocast = autocast
        self.cuda_graphs = cuda_graphs
        self.device = device
        self.backend = backend
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks
        self.checkpoint = checkpoint

    def _build(self, n_features: int) -> DECMethod:
        settings = self._filled_in()
        sgd = settings["optimizer"] == "sgd"
        # fused: one pass over the weights, where the plain forms make a dozen.
        optimizer = partial(torch.optim.SGD, momentum=0.9) if sgd else torch.optim.Adam
        make = partial(optimizer, fused=True)
        decay = (
            partial(torch.optim.lr_scheduler.StepLR, step_size=20_000, gamma=0.1) if sgd else None
        )
        settings["pretraining"] = Pretraining(
            partial(make, lr=settings["pretrain_lr"]), decay, per_row=sgd
        )
        settings["cluster_optimizer"] = partial(make, lr=settings["cluster_lr"])
        method = DECMethod(settings, n_features)
        if self.pretrained is not None:
            _load_weights(method.network, self.pretrained)
        return method

    def _prepare(self, method: DECMethod, rows: Rows) -> None:
        if self.scale == "dec":
            # Summed on the device, which the host would otherwise wait for at each block.
            square = float(sum(x.double().square().sum() for _, x in rows.blocks()))
            if square == 0:
                raise ValueError("X: got only zeros; scale='dec' takes data with values")
            method.scale.fill_((len(rows) * rows.n_features / square) ** 0.5)
        elif self.scale is not None:
            method.scale.fill_(self.scale)

    def _filled_in(self) -> dict[str, Any]:
        """The parameters, checked, with the preset's values for those that are None."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset: got {self.preset!r}; it takes {_either(PRESETS)}")
        preset = PRESETS[self.preset]
        settings: dict[str, Any] = self.get_params(deep=False)
        for name, value in preset.items():
            if settings.get(name) is None:
                settings[name] = value
        if isinstance(self.hidden, str) or not isinstance(self.hidden, Iterable):
            raise ValueError(f"hidden: got {self.hidden!r}; it takes a sequence of widths")
        settings["hidden"] = tuple(self.hidden)
        whole = {"latent_dim": 1, "layer_updates": 0, "tune_updates": 0, "max_updates": 0}
        for name, least in {**whole, "update_interval": 1, "n_init": 1}.items():
            value = settings[name]
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name}: got {value!r}; it takes an integer of at least {least}")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"dropout: got {self.dropout!r}; it takes a share from 0 to below 1")
        if not (_is_number(self.tol) and self.tol >= 0):
            raise ValueError(f"tol: got {self.tol!r}; it takes a share of at least 0")
        for name in ("pretrain_lr", "cluster_lr"):
            if not (_is_number(settings[name]) and settings[name] > 0):
                raise ValueError(f"{name}: got {settings[name]!r}; it takes a number above 0")
        if settings["optimizer"] not in ("adam", "sgd"):
            raise ValueError(f"optimizer: got {self.optimizer!r}; it takes 'adam' or 'sgd'")
        if settings["init_criterion"] not in ("inertia", "gaussian"):
            raise ValueError(
                f"init_criterion: got {self.init_criterion!r}; it takes 'inertia' or 'gaussian'"
            )
        if not (self.scale is None or self.scale == "dec" or _is_number(self.scale)):
            raise ValueError(f"scale: got {self.scale!r}; it takes 'dec', None or a number")
        return settings


def gaussian_likelihood(z: Tensor, labels: np.ndarray[Any, Any]) -> float:
    """How well K Gaussians, one a cluster, explain the embedding: to tell ends of k-means apart.

    sum_j n_j/N (log(n_j/N) - 1/2 log det C_j), C_j the covariance of cluster j: the classification
    likelihood of Celeux and Govaert (1992), but for constants. A cluster that joins two classes has
    a large determinant whichever way it lies, which inertia, blind to shape, hardly sees.
    """
    z = z.double().cpu()
    # So that a cluster of few rows, flat in some direction, is not infinitely likely.
    ridge = 1e-3 * float(z.var(0, correction=0).mean()) * torch.eye(z.shape[1], dtype=z.dtype)
    total = 0.0
    for label in np.unique(labels):
        rows = z[torch.from_numpy(labels == label)]
        centred = rows - rows.mean(0)
        covariance = centred.T @ centred / len(rows) + ridge
        share = len(rows) / len(z)
        total += share * (math.log(share) - float(torch.logdet(covariance)) / 2)
    return total


def _load_weights(network: StackedAutoencoder, source: Any) -> None:
    if isinstance(source, torch.nn.Module):
        source = source.state_dict()
    if not isinstance(source, Mapping):
        raise TypeError(
            f"pretrained: got {type(source).__name__}; it takes the network_ of another fit or its"
            " state_dict"
        )
    try:
        network.load_state_dict(dict(source))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(
            f"pretrained: the weights do not fit the layers {network.sizes}: {first}"
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _either(names: Any) -> str:
    return " or ".join(repr(name) for name in names)
