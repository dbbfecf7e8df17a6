"""What every deep estimator shares: fit on the trainer, prediction, saving, loading."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.base import (
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from deepclust import _files
from deepclust import functional as F
from deepclust.cluster._checks import as_device, check_n_clusters, check_out
from deepclust.cluster._columns import Column
from deepclust.cluster._data import Rows, as_rows
from deepclust.cluster._graphs import Capture, cuda_capture
from deepclust.cluster._saving import NEEDED, Saved, comparable
from deepclust.cluster._trainer import Method, Run, Settings, map_rows
from deepclust.distributed import Ranks

Array = np.ndarray[Any, Any]
Self = TypeVar("Self", bound="DeepEstimator")

# Parameters that change where, how fast or how loudly a fit runs, but not what it computes: a run
# may be resumed with others.
_NOT_IDENTITY = (
    "callbacks",
    "checkpoint",
    "verbose",
    "device",
    "backend",
    "compile",
    "cuda_graphs",
    "random_state",
)


class DeepEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, Saved):
    """An estimator that trains a Method."""

    n_clusters: int
    batch_size: int
    device: str
    backend: str
    random_state: Any
    verbose: int
    callbacks: Any
    checkpoint: Any
    autocast: str | None
    cuda_graphs: bool

    @abstractmethod
    def _build(self, n_features: int) -> Method:
        """The untrained method for rows of this width, its parameters checked."""

    LEARNED = (
        "labels_",
        "cluster_centers_",
        "history_",
        "stop_reasons_",
        "n_iter_",
        "n_features_in_",
        "image_shape_",
    )

    # Whether `fit` takes y, labels of some rows.
    uses_labels = False

    def _prepare(self, method: Any, rows: Rows) -> None:
        """Set what the method takes from the data before it is trained."""

    def fit(self: Self, X: Any, y: Any = None, *, resume: bool = False) -> Self:
        """Train on X.

        Ctrl-C stops the training between two updates, keeps its state (in `checkpoint`, where that
        is given, and in this object), and raises KeyboardInterrupt.

        Args:
            X: Rows (N, D), converted to float32: an array, memory map, tensor, sparse array, the
                path of a `.npy` file, a map-style Dataset of rows, or a `distributed.Shard` of
                rows.
            y: Labels (N,) of some rows, from 0 to n_clusters - 1, -1 where there is none, for
                estimators that use them (DEPICT); not used by others.
            resume: Go on from an interrupted fit on the same data: from the file `checkpoint`, or
                from this object if there is none. The result is that of an uninterrupted fit.

        Returns:
            The estimator.

        Raises:
            ValueError: If X has fewer (distinct) rows than clusters, NaN or Inf, a parameter is out
                of its range, the checkpoint does not fit, or X is a Shard and something differs
                between processes, or cannot be shared by them.
            RuntimeError: If another process has ended, or is silent for longer than the time-out.
            FileNotFoundError: If there is no checkpoint to resume from.
        """
        device = self._device()
        capture = self._capture(device)
        rows = as_rows(self, X, device, reset=True)
        ranks = rows.ranks
        ranks.agree(**self._identity(), checkpoint=self.checkpoint is not None, resume=resume)
        check_n_clusters(self.n_clusters, ranks.total)
        if (distinct := rows.n_distinct(self.n_clusters)) < self.n_clusters:
            raise ValueError(
                f"n_clusters: got {self.n_clusters}, but X has only {distinct} distinct rows"
            )
        # A backend that cannot run the clustering fails now, not after the pre-training.
        one = torch.zeros(1, 1, device=device)
        target = F.freeze_target(one, one, backend=self.backend)
        F.target_loss(one, one, target, backend=self.backend)
        with ranks.together():
            tree = self._interrupted_tree(ranks) if resume else None
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        seed = ranks.objects(seed)[0]
        if tree is not None:
            seed = tree["identity"]["seed"]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            method = self._build(rows.n_features).to(device)
        if ranks.size > 1:
            graphs = "cuda_graphs=True captures the steps of one" if self.cuda_graphs else None
            if why := method.why_alone() or graphs:
                raise ValueError(f"X: got a Shard of {ranks.size} processes, but {why}")
            for value in method.state_dict().values():
                value.copy_(ranks.first(value))  # a network of the user's may differ
        self._prepare(method, rows)
        run = Run(method, rows, self._settings(seed, capture, self._known_labels(y, len(rows))))
        if tree is not None:
            run.load_state_dict(tree)
        try:
            run.train()
        except KeyboardInterrupt:
            self._paused: dict[str, Any] | None = run.state_dict()
            raise
        self._paused = None
        self._finish(method, rows, run)
        return self

    def fit_predict(self, X: Any, y: Any = None, *, resume: bool = False) -> Array:
        """Fit, and return the labels (N,)."""
        labels: Array = self.fit(X, y, resume=resume).labels_
        return labels

    def predict(self, X: Any) -> Array:
        """Labels (N,) int64: the cluster of highest score under the method's head."""
        return self._map(X, self._label)

    def predict_proba(self, X: Any, *, out: Array | None = None) -> Array:
        """Soft assignment q (N, K), rows summing to one, in float32.

        Args:
            X: Rows, as `fit` takes them.
            out: An array or memory map (N, K), as `transform` takes one.

        Returns:
            As `transform`.

        Raises:
            ValueError, TypeError, NotFittedError: As `transform`.
        """
        return self._map(
            X,
            lambda method, x: F.assign(method.embed(x), method.head(), backend=self.backend),
            out,
            self.n_clusters,
        )

    def transform(self, X: Any, *, out: Array | None = None) -> Array:
        """Embeddings (N, D) in float32.

        Args:
            X: Rows, as `fit` takes them.
            out: An array or memory map (N, D) of float32 or float64, into which embeddings are
                written block by block.

        Returns:
            `out`; where there is none an array, or, of more than 64 MB for rows that are read from
            a file, a read-only memory map of a temporary file without a name.

        Raises:
            ValueError: If X has another width than the fitted one, NaN or Inf, or `out` another
                shape than (N, D), another type, or may not be written to.
            TypeError: If `out` is no array.
            NotFittedError: If it is not fitted.
        """
        return self._map(X, lambda method, x: method.embed(x), out, self._n_features_out)

    def _state(self) -> dict[str, Any]:
        return {"method": dict(self._method.state_dict())}

    def _restore(self, tree: dict[str, Any]) -> None:
        method = self._build(self.n_features_in_)
        method.load_state_dict(tree["method"])
        self._adopt(method.to(self._device()))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_method")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]  # networks compute in no other
        return tags

    def _known_labels(self, y: Any, n: int) -> Tensor | None:
        """Labels (n,) int64 of some rows, or None where none is known or used."""
        if y is None or not self.uses_labels:
            return None
        labels = np.asarray(y)
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"y: got {labels.dtype} of shape {labels.shape}; it takes {n} integers, -1 for a"
                " row without a label"
            )
        bad = (labels < -1) | (labels >= self.n_clusters)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"y: row {row} has the label {labels[row]}; it takes labels below n_clusters="
                f"{self.n_clusters}, and -1 for none"
            )
        known = labels >= 0
        if known.all():
            warnings.warn(
                f"y: all {n} rows have a label, which {type(self).__name__} is then trained to; -1"
                " marks rows without one, and y=None uses none",
                UserWarning,
                stacklevel=3,
            )
        return torch.from_numpy(labels.astype(np.int64)) if known.any() else None

    def _batch_size(self) -> Any:
        """Rows of a batch, as they were asked for."""
        return self.batch_size

    def _settings(self, seed: int, capture: Capture | None, y: Tensor | None) -> Settings:
        batch = self._batch_size()
        if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or batch < 1:
            raise ValueError(f"batch_size: got {batch!r}; it takes an integer of at least 1")
        return Settings(
            batch_size=int(batch),
            seed=seed,
            callbacks=tuple(self.callbacks),
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint),
            identity={
                **self._identity(),
                "y": comparable(y),
                "seed": seed,
            },
            y=y,
            autocast=self._autocast(),
            capture=capture,
            progress=bool(self.verbose),
        )

    def _identity(self) -> dict[str, Any]:
        """The parameters that decide what a fit computes, as values to compare."""
        params = self.get_params(deep=False)
        for name in NEEDED:
            # The weights of a run under way are in the checkpoint.
            if isinstance(params.get(name), torch.nn.Module):
                params[name] = _shapes(params[name])
        identity = {
            name: comparable(value) for name, value in params.items() if name not in _NOT_IDENTITY
        }
        return {"estimator": type(self).__name__, **identity}

    def _autocast(self) -> torch.dtype | None:
        if self.autocast is None:
            return None
        if self.autocast != "bfloat16":
            raise ValueError(
                f"autocast: got {self.autocast!r}; it takes None or 'bfloat16' (float16 would need"
                " its gradients scaled)"
            )
        return torch.bfloat16

    def _capture(self, device: torch.device) -> Capture | None:
        if not isinstance(self.cuda_graphs, bool):
            raise ValueError(f"cuda_graphs: got {self.cuda_graphs!r}; it takes True or False")
        if self.cuda_graphs and device.type != "cuda":
            raise ValueError(
                f"cuda_graphs: got True with device={self.device!r}; it takes True only where"
                " device is 'cuda'"
            )
        return partial(cuda_capture, device=device) if self.cuda_graphs else None

    def _interrupted_tree(self, ranks: Ranks) -> dict[str, Any]:
        if self.checkpoint is not None:
            tree: dict[str, Any] = _files.load_tree(self.checkpoint, kind="checkpoint")
            return tree
        if ranks.size > 1:
            raise ValueError("resume: got no checkpoint; several processes go on from a file")
        paused = getattr(self, "_paused", None)
        if paused is None:
            raise ValueError("resume: got True, but no fit of this estimator was interrupted")
        tree = copy.deepcopy(paused)
        return tree

    def _device(self) -> torch.device:
        return as_device(self.device)

    def _finish(self, method: Method, rows: Rows, run: Run) -> None:
        self.history_ = run.history
        self.stop_reasons_ = run.reasons
        self.n_iter_ = run.total_updates
        self._adopt(method)
        labels: Column = map_rows(
            method, rows, lambda x: self._label(method, x), None, run.settings.autocast
        )
        self.labels_ = labels.array()
        counts = rows.ranks.sum(labels.counts(self.n_clusters))
        used = int(torch.count_nonzero(counts))
        if used < self.n_clusters:
            warnings.warn(
                f"only {used} of {self.n_clusters} clusters are used: the embedding has collapsed."
                " Try a longer pre-training, a smaller learning rate for the clustering, another"
                " random_state, or fewer clusters",
                RuntimeWarning,
                stacklevel=3,
            )
        self.cluster_centers_ = self._centers(method, rows, labels)

    def _adopt(self, method: Method) -> None:
        method.eval()
        self._method = method
        self.network_ = getattr(method, "network", None)
        self._n_features_out = method.head().n_features

    def _centers(self, method: Method, rows: Rows, labels: Column) -> Array:
        head = method.head()
        if isinstance(head, F.StudentT):
            return head.centroids.detach().cpu().numpy().copy()
        sums = torch.zeros(head.n_clusters, head.n_features, dtype=torch.float64)
        counts = torch.zeros(head.n_clusters, dtype=torch.float64)
        for which, x in rows.blocks():
            with torch.no_grad():
                z = method.embed(x).cpu()
            part, weight = F.kmeans_update(z, labels[which].cpu(), len(sums))
            sums += part
            counts += weight
        sums, counts = rows.ranks.sum(sums), rows.ranks.sum(counts)
        return (sums / counts.clamp_min(1).unsqueeze(1)).float().numpy()

    def _label(self, method: Method, x: Tensor) -> Tensor:
        _, labels, _ = F.frequencies(method.embed(x), method.head(), backend=self.backend)
        return labels

    def _map(self, X: Any, function: Any, out: Array | None = None, width: int = 0) -> Array:
        """`function` of the method and its rows, for all of X; into `out` (N, width)."""
        check_is_fitted(self)
        rows = as_rows(self, X, self._device(), reset=False)
        if out is not None:
            check_out(out, (len(rows), width))
        result = map_rows(
            self._method, rows, lambda x: function(self._method, x), out, self._autocast()
        )
        found: Array = result.array() if isinstance(result, Column) else result
        return found


def _shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}
