"""Data to cluster: scikit-learn's digits, files in common formats, and a few sets by name.

`load` reads, by a path's ending:

    .npy           one array, memory-mapped
    .npz           an array X (or x, data, E, ...), or a scipy sparse matrix; labels y where present
    .csv           numbers; a column that the header names label, class, target or y holds labels
    -ubyte, .idx   IDX, the format of MNIST's own files, also .gz; finds the labels file beside it
    a folder       of PNG or JPEG images of one size; sub-folders are classes

Nothing is downloaded but by the name of a set, and nothing is unpickled.
"""

from __future__ import annotations

import csv
import errno
import gzip
import http.client
import math
import os
import re
import struct
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray
    from scipy.sparse import csr_array, csr_matrix

    StrPath: TypeAlias = str | os.PathLike[str]

__all__ = ["Dataset", "load", "load_digits", "open_npy"]

_DATA_KEYS = ("X", "x", "data", "E", "Z", "z", "embeddings", "features", "images", "arr_0")
_LABEL_KEYS = ("y", "Y", "labels", "label", "target", "targets")
_LABEL_COLUMNS = ("label", "class", "target", "y")
_IMAGES = (".png", ".jpg", ".jpeg")
_IDX = re.compile(r"(ubyte|\.idx\d?)(\.gz)?$")
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_KNOWN = ".npy, .npz, .csv, IDX (-ubyte, .idx, or these with .gz) and a folder of images"
# OpenML's number of the set, the shape of an image, and the type that holds its values exactly.
_OPENML = {
    "mnist": (554, (28, 28), np.uint8),
    "usps": (41082, (16, 16), np.float32),
    "fashion-mnist": (40996, (28, 28), np.uint8),
}
NAMES = ("digits", *_OPENML)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, their labels where known, and what they look like.

    Attributes:
        X: the samples, (N, D): an array, a read-only memory map, or a scipy sparse matrix in CSR
            form; of the type that the file holds.
        y: labels (N,), int64 or strings (floats where they are not whole); None where unknown.
        image_shape: (H, W) or (H, W, C) where the D values of a sample are an image's, else None.
        name: the set's name, or the file's without its ending.

    Examples:
        >>> digits = load_digits()
        >>> len(digits), digits.X[0].reshape(digits.image_shape).shape
        (1797, (8, 8))
    """

    X: NDArray[Any] | csr_array[Any] | csr_matrix[Any]
    y: NDArray[Any] | None
    image_shape: tuple[int, ...] | None
    name: str

    def __len__(self) -> int:
        return int(self.X.shape[0])


def load_digits() -> Dataset:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries.

    Returns:
        X (1797, 64) float32 from 0 to 16, y from 0 to 9.

    Examples:
        >>> digits = load_digits()
        >>> digits.X.shape, digits.X.dtype, digits.y[:3].tolist()
        ((1797, 64), dtype('float32'), [0, 1, 2])
    """
    from sklearn.datasets import load_digits as sklearn_digits

    X, y = sklearn_digits(return_X_y=True)
    return Dataset(X.astype(np.float32), y.astype(np.int64), (8, 8), "digits")


def load(source: StrPath, *, labels: StrPath | ArrayLike | torch.Tensor | None = None) -> Dataset:
    r"""Load a data set by its name, or from a file or folder.

    Images (N, H, W) or (N, H, W, C) become rows of H W C values, and `image_shape` keeps their
    shape. Values are not rescaled: uint8 stays uint8. Integers X of an `.npz` file with an entry
    `scale`, a number or one a column, stand for X * scale, float32.

    Args:
        source: "digits"; "mnist", "usps" or "fashion-mnist", which scikit-learn downloads from
            OpenML and keeps (values and labels as they are there); or a path: see the head of this
            module. A set's name comes before a file of that name: write "./mnist" for the file.
        labels: labels to use in place of the source's own, (N,): an array, or the path of a `.npy`,
            `.npz` (entry y), `.txt` (one label a line), `.csv` or IDX file.

    Returns:
        The data set. Labels that are whole numbers, written as text too, are int64.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is damaged, of unknown ending or form, or empty; where there are
            not as many labels as samples.
        ImportError: where Pillow is needed and missing.
        ConnectionError: where a download fails.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "points.csv"
        ...     _ = path.write_text("x1,x2,class\n0.5,1,cat\n2,3,dog\n")
        ...     points = load(path)
        >>> points.X.tolist(), points.y.tolist(), points.name
        ([[0.5, 1.0], [2.0, 3.0]], ['cat', 'dog'], 'points')
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source: {type(source).__name__}; a path or one of {NAMES} is needed")
    X: Any
    y: Any
    if source == "digits":
        digits = load_digits()
        X, y, shape, name = digits.X, digits.y, digits.image_shape, digits.name
    elif isinstance(source, str) and source in _OPENML:
        X, y, shape, name = *_fetch(source), source
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no such file or folder (sets known by name: {', '.join(NAMES)})"
            )
        X, y = _read(path)
        X, shape = _as_rows(X, path)
        name = path.resolve().name if path.is_dir() else path.resolve().stem

    where = str(source)
    if isinstance(labels, (str, os.PathLike)):
        where, y = str(labels), _read_labels(Path(labels).expanduser())
    elif isinstance(labels, torch.Tensor):
        where, y = "labels", labels.detach().cpu().numpy()
    elif labels is not None:
        where, y = "labels", labels
    if y is not None:
        y = _as_labels(y, where)
        if len(y) != X.shape[0]:
            raise ValueError(f"{where}: {len(y)} labels, but {source} has {X.shape[0]} samples")
    return Dataset(X, y, shape, name)


def _read(path: Path) -> tuple[Any, Any]:
    """The samples and labels (None: none there) of a file or folder, as they are stored."""
    name = path.name.lower()
    if path.is_dir():
        return _read_folder(path)
    if name.endswith(".npy"):
        return open_npy(path), None
    if name.endswith(".npz"):
        return _read_npz(path)
    if name.endswith(".csv"):
        return _read_csv(path)
    if _IDX.search(name):
        return _read_idx(path), _labels_beside(path)
    raise ValueError(f"{path}: unknown ending {path.suffix!r}; known are {_KNOWN}")


def _read_labels(path: Path) -> Any:
    name = path.name.lower()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of labels")
    if name.endswith(".npy"):
        return open_npy(path)
    if name.endswith(".npz"):
        with _open_npz(path) as file:
            return file[_entry(file, _LABEL_KEYS)]
    if name.endswith(".txt"):
        with _intact(path, "text in UTF-8"):
            return [line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines()]
    if name.endswith(".csv"):
        return _read_csv_labels(path)
    if _IDX.search(name):
        return _read_idx(path)
    raise ValueError(
        f"{path}: unknown ending {path.suffix!r} of a file of labels; "
        "known are .npy, .npz, .txt, .csv and IDX (-ubyte, .idx, or these with .gz)"
    )


@contextmanager
def _intact(path: Path, what: str) -> Iterator[None]:
    """Put what a parser raises on a damaged file in one line that names the file."""
    try:
        yield
    except Exception as error:  # NumPy, SciPy, zipfile, gzip and Pillow raise a dozen types
        # zipfile seeks to places that do not exist (EINVAL); other numbers are the system's own.
        from_system = getattr(error, "errno", None) not in (None, errno.EINVAL)
        if from_system or isinstance(error, (ImportError, MemoryError)):
            raise
        # NumPy's second sentences recommend to allow pickles.
        reason = " ".join((str(error) or type(error).__name__).split()).split(". ")[0]
        raise ValueError(f"{path}: cannot be read as {what}: {reason}") from error


def open_npy(path: StrPath) -> NDArray[Any]:
    """The array of a `.npy` file as a read-only memory map.

    Args:
        path: the file.

    Raises:
        OSError: where there is no such file, or it may not be read.
        ValueError: where it is no `.npy` file, or is truncated.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(Path(folder) / "X.npy", np.eye(2))
        ...     open_npy(Path(folder) / "X.npy")
        memmap([[1., 0.],
                [0., 1.]])
    """
    with _intact(Path(path), ".npy"):
        _check_length(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("it is an archive; its ending should be .npz")
        return array


def _check_length(path: StrPath) -> None:
    """Refuse a `.npy` file that is shorter than its header says; NumPy has no words for it."""
    with open(path, "rb") as file:
        if file.read(6) != np.lib.format.MAGIC_PREFIX:
            return  # np.load says what it is
        file.seek(0)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(np.lib.format.read_magic(file))
        if read is None:
            return
        shape, _, dtype = read(file)
        size, there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size
        if file.tell() + size > there and not dtype.hasobject:
            raise ValueError(
                f"it is truncated: an array of shape {shape} and type {dtype} takes"
                f" {file.tell() + size:,} bytes, it has {there:,}"
            )


@contextmanager
def _open_npz(path: Path) -> Iterator[Any]:
    with _intact(path, ".npz"), open(path, "rb") as raw:  # NumPy leaves a damaged file open
        file = np.load(raw, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is a single array; its ending should be .npy")
        yield file


def _entry(file: Any, names: tuple[str, ...]) -> str:
    for name in names:
        if name in file.files:
            return name
    raise ValueError(f"no entry {', '.join(names)}; it has {', '.join(file.files) or 'nothing'}")


def _read_npz(path: Path) -> tuple[Any, Any]:
    with _open_npz(path) as file:
        y = next((file[name] for name in _LABEL_KEYS if name in file.files), None)
        if {"format", "shape", "data"} <= set(file.files):
            from scipy.sparse import load_npz

            matrix: Any = load_npz(path)
            X = matrix.tocsr()
            X.check_format(full_check=True)
            return X, y
        X = file[_entry(file, _DATA_KEYS)]
        if X.dtype.kind in "iu" and "scale" in file.files:
            X = np.multiply(X, file["scale"], out=np.empty(X.shape, np.float32), dtype=np.float32)
        return X, y


def _read_idx(path: Path) -> NDArray[Any]:
    with (
        _intact(path, "IDX"),
        (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file,
    ):
        raw = file.read()
        if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES:
            raise ValueError("it does not begin as an IDX file does")
        dtype, ndim = np.dtype(_IDX_TYPES[raw[2]]), raw[3]
        start = 4 + 4 * ndim
        if len(raw) < start:
            raise ValueError("it ends within its header")
        shape = struct.unpack(f">{ndim}I", raw[4:start])
        size = start + dtype.itemsize * math.prod(shape)
        if len(raw) != size:
            raise ValueError(f"shape {shape} takes {size:,} bytes, it has {len(raw):,}")
        array = np.frombuffer(raw, dtype, offset=start).reshape(shape)
        return array.astype(dtype.newbyteorder("="))


def _labels_beside(path: Path) -> NDArray[Any] | None:
    """The labels of MNIST's own pair of files, zipped or not."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    if "images" in path.name:
        for beside in (path.with_name(name), path.with_name(name + ".gz")):
            if beside.is_file():
                return _read_idx(beside)
    return None


def _read_csv(path: Path) -> tuple[Any, Any]:
    with _intact(path, "CSV"), open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        first = next(filter(None, rows), [])
        header = _is_header(first)
        skip = rows.line_num if header else 0
        if not first or (header and not next(filter(None, rows), None)):
            return np.empty((0, len(first))), None
        if header and "" in map(str.strip, first):
            raise ValueError("a column without a name in the header (saved row numbers?)")

    column = _label_column(first) if header else None
    codes: dict[str, int] = {}

    def encode(text: str) -> int:
        return codes.setdefault(text.strip(), len(codes))

    try:
        X = np.loadtxt(
            str(path),
            delimiter=",",
            quotechar='"',
            comments=None,
            skiprows=skip,
            converters=None if column is None else {column: encode},
            encoding="utf-8-sig",
            ndmin=2,
        )
    except ValueError:
        raise ValueError(f"{path}: {_csv_fault(path, skip, len(first), column)}") from None
    if column is None:
        return X, None
    return np.delete(X, column, axis=1), np.array(list(codes))[X[:, column].astype(np.intp)]


def _is_header(row: list[str]) -> bool:
    """Names alone, or a label column's name and columns numbered from 0 or 1."""
    numbers = [cell.strip() for cell in row if _is_number(cell)]
    counts = [[str(i + start) for i in range(len(numbers))] for start in (0, 1)]
    return not numbers or (numbers in counts and _label_column(row) is not None)


def _label_column(header: list[str]) -> int | None:
    names = [cell.strip().lower() for cell in header]
    return next((names.index(name) for name in _LABEL_COLUMNS if name in names), None)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _csv_fault(path: Path, skip: int, width: int, column: int | None) -> str:
    """Where a file that NumPy has refused goes wrong, in the file's own lines and columns."""
    with _intact(path, "CSV"), open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        for row in filter(None, rows):
            if rows.line_num <= skip:
                continue
            if len(row) != width:
                return f"line {rows.line_num} has {len(row)} values, the first has {width}"
            for i, cell in enumerate(row):
                if i != column and not _is_number(cell):
                    hint = f" (labels go in a column that the header names {_or(_LABEL_COLUMNS)})"
                    place = f"line {rows.line_num}, column {i + 1}"
                    return f"{place}: {cell!r} is not a number{hint if column is None else ''}"
    return "cannot be read as CSV"


def _or(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _read_csv_labels(path: Path) -> list[str]:
    with _intact(path, "CSV"), open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(filter(None, csv.reader(file)))
        if not rows:
            return []
        column = _label_column(rows[0])
        if column is None and len(rows[0]) > 1:
            raise ValueError(f"{len(rows[0])} columns, none named {_or(_LABEL_COLUMNS)}")
        if any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("its lines have different numbers of values")
        return [row[column or 0].strip() for row in rows[0 if column is None else 1 :]]


def _read_folder(path: Path) -> tuple[Any, Any]:
    own = _images(path)
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = {folder: files for folder in folders if (files := _images(folder))}
    if own and classes:
        raise ValueError(
            f"{path}: images both in the folder and in {next(iter(classes)).name} in it"
        )
    files = own or [file for files in classes.values() for file in files]
    if not files:
        raise ValueError(f"{path}: no PNG or JPEG images in the folder or in the folders in it")
    first = _read_image(files[0])
    X = np.empty((len(files), *first.shape), first.dtype)
    for row, file in zip(X, files, strict=True):
        image = _read_image(file)
        if (image.shape, image.dtype) != (first.shape, first.dtype):
            raise ValueError(
                f"{file}: {_size(image)}, but {files[0].name} is {_size(first)}; "
                "all images need one size and kind"
            )
        row[...] = image
    return X, None if own else [folder.name for folder, files in classes.items() for _ in files]


def _images(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in _IMAGES and not file.name.startswith(".") and file.is_file()
    )


def _read_image(file: Path) -> NDArray[Any]:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(f"{file}: images need Pillow: pip install 'deepclust[plots]'") from None
    with _intact(file, "an image"), Image.open(file) as image:
        if image.mode in ("L", "RGB", "RGBA", "I", "I;16", "F"):
            return np.asarray(image)
        mode = {"1": "L", "LA": "RGBA", "PA": "RGBA"}.get(image.mode, "RGB")
        return np.asarray(image.convert(mode))


def _size(image: NDArray[Any]) -> str:
    return f"{' x '.join(map(str, image.shape))} {image.dtype}"


def _fetch(name: str) -> tuple[NDArray[Any], NDArray[Any], tuple[int, ...]]:
    from sklearn.datasets import fetch_openml

    number, shape, dtype = _OPENML[name]
    # Each parser reads the same values; pandas is quicker where it is installed.
    parser = "pandas" if find_spec("pandas") else "liac-arff"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of every retry; the last failure is raised
            X, y = fetch_openml(
                data_id=number, return_X_y=True, as_frame=False, parser=parser, n_retries=1
            )
    except PermissionError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{name}: cannot be downloaded from OpenML ({error}); give the path of a file instead"
        ) from error
    return X.astype(dtype), y, shape


def _as_rows(X: Any, path: Path) -> tuple[Any, tuple[int, ...] | None]:
    """`X` as (N, D) of a type that torch has, and the shape of a row where it is an image."""
    if X.dtype.kind not in "biuf" or X.dtype.itemsize > 8:
        raise ValueError(f"{path}: values of type {X.dtype}; numbers of up to 64 bits are needed")
    if X.ndim not in (2, 3, 4):
        raise ValueError(
            f"{path}: shape {X.shape}; (N, D), or images (N, H, W) or (N, H, W, C), are needed"
        )
    if 0 in X.shape:
        raise ValueError(f"{path}: no {'features' if X.shape[0] else 'samples'}: shape {X.shape}")
    X = X.astype(np.uint8 if X.dtype == bool else X.dtype.newbyteorder("="), copy=False)
    if X.ndim == 2:
        return X, None
    return X.reshape(len(X), -1), X.shape[1:]


def _as_labels(y: Any, where: str) -> NDArray[Any]:
    """`y` as (N,): int64 where all labels are whole numbers, else strings or floats."""
    try:
        array = np.asarray(y)
        array = np.asarray(array.tolist()) if array.dtype == object else array
    except ValueError:  # rows of different lengths
        raise ValueError(f"{where}: nested lists; one label a sample, (N,), is needed") from None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{where}: labels of shape {array.shape}; one a sample, (N,), is needed")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind == "U":
        missing = array == ""
    elif array.dtype.kind == "f":
        missing = ~np.isfinite(array)
    elif array.dtype.kind in "biu":
        return array.astype(np.int64)
    else:
        raise ValueError(f"{where}: labels of type {array.dtype}; numbers or strings are needed")
    if missing.any():
        row = int(missing.argmax())
        raise ValueError(f"{where}: row {row} has the label {str(array[row])!r}; all need one")
    try:
        with np.errstate(invalid="ignore"):  # floats beyond int64, caught below
            whole = array.astype(np.int64)
    except (ValueError, OverflowError):
        return array
    # Text that is not a number's plain form ("01", "1.0") stays a name of its own.
    return whole if np.array_equal(whole.astype(array.dtype), array) else array
