"""Estimators as files, and their parameters as plain trees, also to tell whether two runs agree."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import warnings
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from deepclust import _files
from deepclust.cluster._checks import as_device

Self = TypeVar("Self", bound="Saved")

# Where the classes lie that a tree may name: dataclasses of plain fields, whose making runs no code
# of a file's choosing.
_MODULES = (
    "deepclust.cluster",
    "deepclust.losses",
    "deepclust.transforms",
    "deepclust.cluster._saving",
)

_PLAIN = (bool, int, float, str)

# Parameters without which there is nothing to put the weights into.
NEEDED = ("network", "encoder", "decoder", "clustering")

# Parameters that belong to one run, as a file has them.
_OF_A_RUN = {"callbacks": (), "checkpoint": None}


class Saved(BaseEstimator):
    """An estimator that a file can hold: its parameters and what it has learned, but no code."""

    device: Any
    random_state: Any

    # Attributes that a file keeps, where a fit has set them.
    LEARNED: ClassVar[tuple[str, ...]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a file: safetensors and JSON, no code.

        Args:
            path: The file; it appears whole or not at all. Callbacks and `checkpoint` are not kept,
                nor are `labels_` that lie in a file themselves: `predict` finds them again.

        Raises:
            NotFittedError: If it is not fitted.
            OSError: If the file cannot be written.
        """
        check_is_fitted(self)
        params = self.get_params(deep=False)
        params.update({name: value for name, value in _OF_A_RUN.items() if name in params})
        if not isinstance(self.random_state, (int, np.integer)):
            params["random_state"] = None
        needed = [name for name in NEEDED if _is_the_users(params.get(name))]
        params.update(dict.fromkeys(needed))
        code = [name for name, value in params.items() if has_code(value)]
        if code:
            warnings.warn(
                f"{', '.join(code)}: functions and classes are not saved; the loaded model"
                " predicts, but to fit it again they have to be set",
                UserWarning,
                stacklevel=2,
            )
        learned = {name: getattr(self, name) for name in self.LEARNED if hasattr(self, name)}
        if isinstance(learned.get("labels_"), np.memmap):
            del learned["labels_"]
        tree = {
            "estimator": type(self).__name__,
            "params": {name: to_tree(value) for name, value in params.items()},
            "needed": needed,
            "learned": learned,
            **self._state(),
        }
        _files.save_tree(path, tree, kind="model")

    @classmethod
    def load(
        cls: type[Self],
        path: str | os.PathLike[str],
        *,
        device: str | None = None,
        **given: Any,
    ) -> Self:
        """Read an estimator that `save` wrote.

        Args:
            path: The file.
            device: Where to compute; by default where it was, or on the CPU where that device is
                not to be had.
            **given: The network, encoder, decoder or clustering that it was fitted with, where
                that was of the user's making: files hold weights, but no code.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, not one of ours, of another estimator, or what
                it was fitted with is missing.
        """
        tree = _files.load_tree(path, kind="model")
        if tree["estimator"] != cls.__name__:
            raise ValueError(
                f"{path}: holds a {tree['estimator']}; {cls.__name__}.load takes its own"
            )
        return _made(cls, tree, path, device, given)

    def _state(self) -> dict[str, Any]:
        """What a file holds beside the parameters and the attributes."""
        return {}

    def _restore(self, tree: dict[str, Any]) -> None:
        """Take over what `_state` gave; parameters and attributes are set."""


def load(path: str | os.PathLike[str], *, device: str | None = None, **given: Any) -> Any:
    """Read an estimator that its `save` wrote, whichever it is.

    Args:
        path: The file.
        device: Where to compute; by default where it was, or on the CPU where that device is not to
            be had.
        **given: The network, encoder, decoder or clustering that it was fitted with, where that
            was of the user's making: files hold weights, but no code.

    Returns:
        The estimator, of the class that wrote the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, not one of ours, of an estimator that this version
            does not have, or what it was fitted with is missing.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from deepclust.cluster import KMeans, load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.safetensors"
        ...     KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0]]).save(path)
        ...     load(path).predict([[8.0]]) == load(path).predict([[9.0]])
        array([ True])
    """
    tree = _files.load_tree(path, kind="model")
    kind = getattr(importlib.import_module("deepclust.cluster"), tree["estimator"], None)
    if not (isinstance(kind, type) and issubclass(kind, Saved)):
        raise ValueError(
            f"{path}: holds a {tree['estimator']}, which deepclust.cluster does not have"
        )
    return _made(kind, tree, path, device, given)


def _made(
    kind: type[Self],
    tree: dict[str, Any],
    path: str | os.PathLike[str],
    device: str | None,
    given: dict[str, Any],
) -> Self:
    """The estimator of which `tree` is what its file holds."""
    if given.keys() != set(tree["needed"]):
        raise ValueError(
            f"{path}: got {sorted(given)}; beside the file, which holds no code, it takes"
            f" {tree['needed']}, as its fit did"
        )
    params = {name: from_tree(value) for name, value in tree["params"].items()}
    estimator = kind(**{**params, **given})
    if device is not None:
        estimator.device = device
    elif estimator.device is not None:
        try:
            as_device(estimator.device)
        except ValueError:
            estimator.device = "cpu"
    for name, value in tree["learned"].items():
        setattr(estimator, name, value)
    estimator._restore(tree)
    return estimator


@dataclasses.dataclass(frozen=True)
class NotSaved:
    """Stands where a function was that a file did not keep."""

    def __call__(self, *_: Any) -> Any:
        """Raise: to fit again, the function has to be set."""
        raise ValueError("a function that the file did not keep; set it to fit the model again")


def to_tree(value: Any) -> Any:
    """A parameter as a file can hold it; what is the user's code becomes None."""
    if _is_part(value):
        fields = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            fields[field.name] = to_tree(NotSaved() if _is_code(item) else item)
        return {"part": type(value).__name__, "fields": fields}
    if isinstance(value, torch.nn.Module):
        return dict(value.state_dict())
    if isinstance(value, (list, tuple)):
        return type(value)(to_tree(item) for item in value if not _is_code(item))
    if sparse.issparse(value):
        matrix: Any = value
        csr = matrix.tocsr()
        arrays = {name: getattr(csr, name) for name in ("data", "indices", "indptr")}
        return {"sparse": list(csr.shape), **arrays}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if _is_code(value) else value


def from_tree(tree: Any) -> Any:
    """The parameter of which `tree` is the tree."""
    if isinstance(tree, dict) and tree.keys() == {"part", "fields"}:
        fields = {name: from_tree(value) for name, value in tree["fields"].items()}
        return _part(tree["part"])(**fields)
    if isinstance(tree, dict) and "sparse" in tree:
        return sparse.csr_array(
            (tree["data"], tree["indices"], tree["indptr"]), shape=tuple(tree["sparse"])
        )
    if isinstance(tree, (list, tuple)):
        return type(tree)(from_tree(item) for item in tree)
    return tree


def has_code(value: Any) -> bool:
    """Whether a parameter holds a function or a class of the user's, which no file keeps."""
    if _is_part(value):
        return any(has_code(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, (list, tuple)):
        return any(has_code(item) for item in value)
    return _is_code(value)


def comparable(value: Any) -> Any:
    """A parameter as two runs can compare it: an array by its bytes, a function by its name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: comparable(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"part": type(value).__name__, "fields": fields}
    if isinstance(value, torch.nn.Module):
        value = dict(value.state_dict())
    if sparse.issparse(value):
        value = to_tree(value)
    if isinstance(value, dict):
        return {name: comparable(item) for name, item in value.items()}
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, _PLAIN):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _is_the_users(value: Any) -> bool:
    return isinstance(value, torch.nn.Module) or (value is not None and to_tree(value) is None)


def _part(name: str) -> Any:
    for module in _MODULES:
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
    raise ValueError(f"the file names a part {name!r} that this version does not have")


def _is_part(value: Any) -> bool:
    """Whether a value is of a class that `_part` finds."""
    kind = type(value)
    if not dataclasses.is_dataclass(kind):
        return False
    return any(
        getattr(importlib.import_module(module), kind.__name__, None) is kind for module in _MODULES
    )


def _is_code(value: Any) -> bool:
    """Whether a value is a function, or of a class that only its module has."""
    known = (*_PLAIN, dict, list, tuple, np.ndarray, np.generic, Tensor, torch.nn.Module)
    if value is None or isinstance(value, (*known, os.PathLike)) or sparse.issparse(value):
        return False
    return not _is_part(value)
