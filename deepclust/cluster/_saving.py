"""Parameters of estimators as plain trees: to save them, and to tell whether two runs agree."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

# Where the classes lie that a tree may name: dataclasses of plain fields, whose making runs no code
# of a file's choosing.
_MODULES = (
    "deepclust.cluster",
    "deepclust.losses",
    "deepclust.transforms",
    "deepclust.cluster._saving",
)


_PLAIN = (bool, int, float, str)


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
