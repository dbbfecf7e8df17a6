"""Files that are written whole or not at all, and one file format for a nested tree of values.

A tree file is a safetensors file: tensors and arrays are its entries, named by their place in the
tree, and its metadata holds one entry, "deepclust", JSON text of

    {"format": 1, "kind": "checkpoint", "version": "0.1.0", "tree": SKELETON}

In the skeleton None, bool, int, finite float, str and list are themselves; an object is a tag:

    {"dict": [[key, value], ...]}   {"tuple": [...]}   {"float": "nan"}
    {"tensor": NAME}   {"array": NAME}   {"scalar": NAME}        NAME: an entry of the file

Nothing is pickled, so that reading a file never runs code from it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import secrets
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    StrPath = str | os.PathLike[str]

_FORMAT = 1
_PART_BYTES = 8 << 20
_PICKED_ROWS = 8  # of which Linux may map 2 MB each
_DTYPES = frozenset(
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    ]
)


@contextmanager
def atomic_path(path: StrPath) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name once the block has ended well.

    The file is flushed to the disk before it is renamed: whatever happens, `path` holds its old
    content or the new one, whole. An exception, KeyboardInterrupt too, leaves nothing behind. The
    temporary name ends as `path` does (writers that go by the suffix work); a link is followed.

    Args:
        path: the file to write, in a directory that exists.

    Yields:
        The path to write to: an empty file in the same directory.

    Raises:
        OSError: where there is no such directory, it cannot be written to, or `path` exists and is
            not a file.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_path(Path(folder) / "loss.txt") as temporary:
        ...         _ = temporary.write_text("0.5")
        ...     [file.name for file in Path(folder).iterdir()]
        ['loss.txt']
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # a rename would replace /dev/null, too
        raise OSError(f"{path}: cannot be written: it exists and is not a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: cannot be written: there is no directory {target.parent}")
    temporary = target.with_name(f".deepclust-{secrets.token_hex(6)}{target.suffix}")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file in its place that only its owner may read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        raise type(error)(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: StrPath, text: str) -> None:
    r"""Write a text file in UTF-8 with `\n` line ends, atomically.

    Args:
        path: the file to write.
        text: its content.

    Raises:
        OSError: where the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: StrPath, obj: object, *, indent: int | None = None) -> None:
    """Write what `json_text` gives, atomically.

    Args:
        path: the file to write.
        obj: see `json_text`.
        indent: spaces a level; None writes one line.

    Raises:
        TypeError: where `obj` holds another type; the message says where.
        OSError: where the file cannot be written.
    """
    write_text(path, json_text(obj, indent=indent) + "\n")


def json_text(obj: object, *, indent: int | None = None) -> str:
    """Strict JSON: tuples and arrays become lists, NaN and infinity null.

    Args:
        obj: dict (keys str or int), list, tuple, str, int, float, bool, None, NumPy arrays and
            scalars and torch tensors, nested.
        indent: spaces a level; None gives one line.

    Raises:
        TypeError: where `obj` holds another type; the message says where.

    Examples:
        >>> json_text({"ari": float("nan"), "sizes": np.array([2, 3])})
        '{"ari": null, "sizes": [2, 3]}'
    """
    return json.dumps(_plain(obj, "obj"), indent=indent, allow_nan=False)


def write_npy(path: StrPath, array: NDArray[Any]) -> None:
    """Write a `.npy` file, atomically and under exactly the name given.

    Args:
        path: the file to write.
        array: any array but one of Python objects.

    Raises:
        TypeError: where `array` holds Python objects.
        OSError: where the file cannot be written.
    """
    if array.dtype.hasobject:
        raise TypeError(f"array: dtype {array.dtype} holds Python objects, which are not written")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if isinstance(array, np.memmap) and array.flags.c_contiguous and array.ndim:
            about = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_2_0(file, about)
            for part in parts(array):
                file.write(part.data)
        else:
            np.save(file, array, allow_pickle=False)


@contextmanager
def npy_to_fill(path: StrPath, shape: tuple[int, ...], dtype: str) -> Iterator[np.memmap[Any, Any]]:
    """A memory map to fill, which becomes the `.npy` file once the block has ended well.

    The disk's room for it is taken first: a page that finds none would end the process.

    Args:
        path: the file to write, in a directory that exists; it appears whole or not at all.
        shape: the array's.
        dtype: the array's, such as "float32".

    Yields:
        The map, of the mode "r+".

    Raises:
        OSError: where the file cannot be written, or the disk has no room for it.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with npy_to_fill(Path(folder) / "z.npy", (2, 1), "float32") as z:
        ...         z[:] = 1
        ...     np.load(Path(folder) / "z.npy").tolist()
        [[1.0], [1.0]]
    """
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, about)
            start, size = file.tell(), math.prod(shape) * np.dtype(dtype).itemsize
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), start, size)
            else:
                file.truncate(start + size)
        array = np.memmap(temporary, dtype, mode="r+", offset=start, shape=shape)
        yield array
        array.flush()


def parts(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Rows in order, a few at a time; pages of a memory map go back to the system after each.

    Pages that were touched count as the process's memory, in which a file need not fit.

    Args:
        array: (N,) or (N, D).

    Yields:
        Some of the rows, good until the next.
    """
    size = max(1, _PART_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), size):
        yield array[start : start + size]
        give_back(array)


def picked(array: NDArray[Any], rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """`array[rows]`; pages of a memory map go back to the system, see `parts`.

    Args:
        array: (N,) or (N, D).
        rows: Numbers (n,) of rows.
    """
    if not isinstance(array, np.memmap):
        taken: NDArray[Any] = array[rows]
        return taken
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    for some in range(0, len(rows), _PICKED_ROWS):
        found[some : some + _PICKED_ROWS] = array[rows[some : some + _PICKED_ROWS]]
        give_back(array)
    return found


def give_back(array: NDArray[Any]) -> None:
    """Let the system have the pages of a memory map, which reads them again when they are needed.

    Args:
        array: What was written to it is kept. An array in memory stays there.
    """
    mapped = getattr(array, "_mmap", None)
    # What was written to a map of mode "c" is in its pages alone.
    if mapped is not None and array.mode != "c" and hasattr(mapped, "madvise"):  # type: ignore[attr-defined]
        mapped.madvise(mmap.MADV_DONTNEED)


def save_tree(path: StrPath, tree: object, *, kind: str) -> None:
    """Write a nested tree of values as one safetensors file, atomically.

    Args:
        path: the file to write.
        tree: dict (keys str or int), list, tuple, str, int, float, bool, None, torch tensors, NumPy
            arrays and scalars of numbers, nested. Tensors may be on any device, not contiguous, or
            share memory: each is written by itself.
        kind: what the file is, such as "checkpoint" or "model"; `load_tree` asks for the same.

    Raises:
        TypeError: where `tree` holds another type; the message says where.
        OSError: where the file cannot be written; also where all but the tensors and arrays takes
            more than the 100 MB that a safetensors file has for it.

    Examples:
        >>> import tempfile
        >>> tree = {"step": 3, "betas": (0.9, 0.999), "state": {0: torch.zeros(2)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_tree(Path(folder) / "run.safetensors", tree, kind="checkpoint")
        ...     load_tree(Path(folder) / "run.safetensors", kind="checkpoint")
        {'step': 3, 'betas': (0.9, 0.999), 'state': {0: tensor([0., 0.])}}
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _encode(tree, "tree", tensors)
    about = {"format": _FORMAT, "kind": kind, "version": _version(), "tree": skeleton}
    metadata = {"deepclust": json.dumps(about, allow_nan=False)}
    starts = set()
    for name, tensor in tensors.items():
        start = tensor.untyped_storage().data_ptr()
        if start in starts:  # safetensors refuses tensors that share memory
            tensors[name] = tensor.clone()
        starts.add(start)
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
            with safe_open(temporary, framework="pt"):  # some versions write more than they read
                pass
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error


def load_tree(path: StrPath, *, kind: str) -> Any:
    """Read what `save_tree` wrote, every type as it was.

    Args:
        path: the file to read.
        kind: what the file has to be.

    Returns:
        The tree, its tensors on the CPU.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is truncated, not one of ours, of another kind or a newer format.
    """
    with open(path, "rb"):  # for the errors of the system, in its own words
        pass
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("deepclust")
            if text is None:
                raise ValueError("a safetensors file that something else has written")
            about = json.loads(text)
            if about["format"] > _FORMAT:
                raise ValueError(
                    f"format {about['format']}, written by deepclust {about['version']}; "
                    f"this version, {_version()}, reads up to format {_FORMAT}"
                )
            if about["kind"] != kind:
                raise ValueError(f"it is a {about['kind']}")
            # The file is mapped: a copy does not change with it, and has torch's own alignment,
            # without which a resumed run can round otherwise than an uninterrupted one.
            return _decode(about["tree"], lambda name: file.get_tensor(name).clone())
    except SafetensorError as error:
        fault = f"no safetensors file, or cut short ({error})"
        raise ValueError(f"{path}: not a deepclust {kind}: {fault}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        fault = f"damaged metadata ({error!r})"
        raise ValueError(f"{path}: not a deepclust {kind}: {fault}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not a deepclust {kind}: {error}") from error


def _version() -> str:
    # Not by an import: the package imports what imports this module.
    return str(sys.modules["deepclust"].__version__)


def _encode(node: object, where: str, tensors: dict[str, torch.Tensor]) -> object:
    """The skeleton of `node`; its tensors are added to `tensors`, under their place in the tree."""
    # Exact types: a subclass (an enum, a named tuple) would come back as something else.
    if node is None or type(node) in (bool, int, str):
        return node
    if type(node) is float:
        return node if math.isfinite(node) else {"float": repr(node)}
    if isinstance(node, dict):
        return {"dict": [[k, _encode(v, at, tensors)] for k, v, at in _items(node, where)]}
    if isinstance(node, (list, tuple)) and type(node) in (list, tuple, torch.Size):
        items = [_encode(item, f"{where}[{i}]", tensors) for i, item in enumerate(node)]
        return items if isinstance(node, list) else {"tuple": items}
    if isinstance(node, torch.Tensor):
        tensors[where] = _pack(node, where)
        return {"tensor": where}
    if isinstance(node, (np.ndarray, np.generic)):
        tensors[where] = _pack(_from_numpy(node, where), where)
        return {"array" if isinstance(node, np.ndarray) else "scalar": where}
    raise _unsupported(node, where)


def _decode(node: Any, read: Callable[[str], torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, read) for item in node]
    if not isinstance(node, dict):
        return node
    ((tag, value),) = node.items()
    if tag == "dict":
        return {key: _decode(item, read) for key, item in value}
    if tag == "tuple":
        return tuple(_decode(item, read) for item in value)
    if tag == "float":
        return float(value)
    if tag == "tensor":
        return read(value)
    if tag == "array":
        return read(value).numpy()
    if tag == "scalar":
        return read(value).numpy()[()]
    raise ValueError(f"damaged metadata (tag {tag!r})")


def _pack(tensor: torch.Tensor, where: str) -> torch.Tensor:
    """`tensor` on the CPU and contiguous, as safetensors takes it."""
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES or tensor.is_meta:
        kind = f"{tensor.layout} tensor of {tensor.dtype} on {tensor.device}"
        raise TypeError(f"{where}: a {kind} is not a type that a file holds")
    return tensor.detach().cpu().resolve_neg().contiguous()


def _from_numpy(array: NDArray[Any] | np.generic, where: str) -> torch.Tensor:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{where}: NumPy's {array.dtype} is not a type that a file holds")
    # torch refuses swapped bytes, C's second 64-bit type and negative strides, and warns of memory
    # that it may not write to.
    plain = np.dtype(f"{array.dtype.kind}{array.dtype.itemsize}")
    return torch.from_numpy(np.require(array, plain, ["C", "W"]))


def _plain(node: object, where: str) -> object:
    if isinstance(node, (np.ndarray, np.generic)):
        node = node.tolist()
    elif isinstance(node, torch.Tensor):
        node = node.detach().cpu().tolist()
    if node is None or isinstance(node, (bool, int, str)):
        return node
    if isinstance(node, float):
        return node if math.isfinite(node) else None
    if isinstance(node, dict):
        return {key: _plain(value, at) for key, value, at in _items(node, where)}
    if isinstance(node, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(node)]
    raise _unsupported(node, where)


def _items(node: dict[Any, Any], where: str) -> Iterator[tuple[str | int, Any, str]]:
    """Key, value and place of each item of `node`."""
    for key, value in node.items():
        if type(key) not in (str, int):
            raise TypeError(f"{where}: key {key!r} is {type(key).__name__}; keys are str or int")
        yield key, value, f"{where}[{key!r}]"


def _unsupported(node: object, where: str) -> TypeError:
    return TypeError(
        f"{where}: {type(node).__qualname__} is not a type that a file holds; those are dict, "
        "list, tuple, str, int, float, bool, None, torch tensors, NumPy arrays and scalars"
    )
