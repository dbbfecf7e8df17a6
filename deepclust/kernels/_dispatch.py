"""Which backend runs a primitive: the files that exist say so, and one rule for `auto`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import platform
import warnings
from types import ModuleType

import torch

BACKENDS = ("eager", "cpp", "triton")
PRECISIONS = ("exact", "fast")
OLDEST_TRITON = (3, 5)  # the first whose `tl.dot` takes float64


@functools.cache
def extension() -> ModuleType | str:
    """The compiled module, or the reason why it cannot be used."""
    try:
        return importlib.import_module("deepclust._C")
    except ImportError as error:
        if importlib.util.find_spec("deepclust") and isinstance(error, ModuleNotFoundError):
            return "not built: reinstall where a C++17 compiler is found (pip: --no-cache-dir)"
        return f"built, but cannot be loaded: {error}"


@functools.cache
def triton_version() -> str | None:
    """Triton's version, or None where it is not installed; nothing is imported."""
    from importlib import metadata

    try:
        if importlib.util.find_spec("triton") is None:
            return None
    except ValueError:  # what sys.modules says of a module that is blocked
        return None
    for package in ("triton", "triton-rocm", "pytorch-triton-rocm", "pytorch-triton"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None


@functools.cache
def why_no_triton() -> str | None:
    """The reason why Triton cannot be used here, or None if it can."""
    version = triton_version()
    if version is None:
        return "Triton is not installed: pip install 'deepclust[triton]'"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return f"Triton {version} is too old: deepclust needs {'.'.join(map(str, OLDEST_TRITON))}"
    return None


def interprets_triton() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _has_kernel(primitive: str, backend: str) -> bool:
    return importlib.util.find_spec(f"deepclust.kernels.{primitive}._{backend}") is not None


@functools.cache
def _why_not(primitive: str, backend: str) -> str | None:
    """The reason why `backend` cannot run `primitive` in this installation, or None if it can."""
    if backend == "cpp" and isinstance(reason := extension(), str):
        return reason
    if backend == "triton" and (lacking := why_no_triton()) is not None:
        return lacking
    if not _has_kernel(primitive, backend):
        return f"this version has no {backend} kernel for {primitive}"
    return None


def available(primitive: str) -> tuple[str, ...]:
    """The backends that can run `primitive` here, `eager` first."""
    return tuple(backend for backend in BACKENDS if _why_not(primitive, backend) is None)


def check_options(backend: str, precision: str) -> None:
    """Refuse a backend or a precision that does not exist."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}; it takes 'auto', 'eager', 'cpp' or 'triton'")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}; it takes 'exact' or 'fast'")


@functools.cache
def _warn_slow(reason: str) -> None:
    warnings.warn(
        f"deepclust runs on plain PyTorch here, several times slower than its kernels ({reason})",
        RuntimeWarning,
        stacklevel=2,
    )


@functools.cache
def _resolve(primitive: str, backend: str, device: str) -> str:
    if backend == "auto":
        wanted = {"cpu": "cpp", "cuda": "triton"}.get(device)  # ROCm calls itself cuda, too
        if wanted is None:
            return "eager"
        if (why := _why_not(primitive, wanted)) is None:
            return wanted
        if _has_kernel(primitive, wanted):
            _warn_slow(why)
        return "eager"
    if (why := _why_not(primitive, backend)) is not None:
        raise RuntimeError(f"backend={backend!r} cannot run {primitive}: {why}")
    if backend == "cpp" and device != "cpu":
        raise RuntimeError(f"backend='cpp' cannot run {primitive}: the tensors are on {device!r}")
    if backend == "triton" and device != ("cpu" if interprets_triton() else "cuda"):
        raise RuntimeError(
            f"backend='triton' cannot run {primitive}: the tensors are on {device!r}; it takes"
            " 'cuda', or 'cpu' where TRITON_INTERPRET=1 was set before Python started"
        )
    return backend


def kernel(primitive: str, backend: str, device: torch.device) -> ModuleType:
    """The module `_<backend>.py` that runs `primitive` on `device`; imported on first use."""
    return _module(primitive, _resolve(primitive, backend, device.type))


@functools.cache
def _module(primitive: str, backend: str) -> ModuleType:
    return importlib.import_module(f"deepclust.kernels.{primitive}._{backend}")


def backends() -> dict[str, str]:
    """What each backend is here, or why it cannot be used.

    Returns:
        A dictionary with the keys `eager`, `cpp` and `triton`.

    Example:
        >>> import deepclust
        >>> sorted(deepclust.backends())
        ['cpp', 'eager', 'triton']
    """
    module = extension()
    cpp = module if isinstance(module, str) else f"{module.isa()} ({platform.machine()})"
    triton = why_no_triton()
    if triton is None:
        triton = f"Triton {triton_version()}"
        if interprets_triton():
            triton += " (interpreter)"
        elif not torch.cuda.is_available():
            triton += ", but torch finds no GPU"
    return {"eager": f"torch {torch.__version__}", "cpp": cpp, "triton": triton}
