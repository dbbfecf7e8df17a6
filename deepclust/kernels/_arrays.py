"""Arrays of other libraries in the place of tensors, for the functions without gradients."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack


class SupportsDLPack(Protocol):
    """An array that other libraries can read where it lies: of JAX, CuPy and others."""

    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> Any: ...


# What goes in is what comes out.
Array = TypeVar("Array", Tensor, np.ndarray[Any, Any], SupportsDLPack)


def on_tensors(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, with tensors over the memory of those arguments that are arrays.

    The tensors that come out become arrays of the first argument's library, which share their
    memory.
    """
    if isinstance(args[0], Tensor):
        return function(*args)
    names = list(inspect.signature(function).parameters)
    found = function(*map(_as_tensor, names, args))  # which refuses what is no array either
    back = _maker(names[0], args[0])
    if isinstance(found, tuple):
        return tuple(map(back, found))
    return back(found) if isinstance(found, Tensor) else found


def _as_tensor(name: str, value: Any) -> Any:
    """A tensor over an array's memory; what is no array as it is."""
    if isinstance(value, Tensor) or not hasattr(value, "__dlpack__"):
        return value
    if not isinstance(value, np.ndarray):
        return from_dlpack(value)
    try:
        with warnings.catch_warnings():
            # Nothing here writes to its arguments; a read-only memory map stays unread, too.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
            return torch.from_numpy(value)
    except TypeError:
        raise TypeError(
            f"{name}: got an array of {value.dtype}, which torch does not have"
        ) from None
    except ValueError:  # torch has neither negative strides nor foreign orders of bytes: a copy
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))


def _maker(name: str, array: Any) -> Callable[[Tensor], Any]:
    """What makes an array of the same library from a tensor."""
    if isinstance(array, np.ndarray):
        return Tensor.numpy
    library: Any = sys.modules.get(type(array).__module__.partition(".")[0])
    if hasattr(array, "__array_namespace__"):  # of the array API standard
        library = array.__array_namespace__()
    maker: Callable[[Tensor], Any] | None = getattr(library, "from_dlpack", None)
    if maker is None:
        raise TypeError(
            f"{name}: got {type(array).__name__}, whose library has no from_dlpack to make the"
            " results with; torch.from_dlpack makes a tensor of it"
        )
    return maker
