"""ClustPy's deep estimators on these kernels.

    from deepclust.integrations import clustpy

    clustpy.enable()     # its estimators, as they are, run on the functions below
    clustpy.disable()    # its own functions again
    with clustpy.enabled(): ...

What is replaced, in the letters of ClustPy's arguments, and by what:

    squared_euclidean_distance   ||(x_i - y_j) * weights||^2, without the array (N, K, D)
    _dec_predict                 q of DEC and IDEC                            F.student_t_assignment
    _DEC_Module.dec_loss, ...    -1/N sum_ij p_ij log q_ij, p the batch's     F.dec_target,
                                 own target                                   F.target_loss
    _DCN_Module.predict_hard     the nearest centre (AEC's, too)              F.kmeans_assign
    _compute_centroids           DCN's running means                          F.kmeans_update

Everything else stays ClustPy's: its networks, its order of batches, its random numbers, and
scikit-learn's k-means, whose starts ours would draw otherwise. An estimator takes the same steps as
without this line, up to rounding. Results have the types that ClustPy's have: its centres are
float64 where a k-means gave them, and then so are distances, q and losses.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from deepclust import functional as F
from deepclust.kernels.heads import origin_of

__all__ = ["disable", "enable", "enabled", "is_enabled"]

_FLOATS = {torch.float32, torch.float64}


def squared_euclidean_distance(
    tensor1: Tensor, tensor2: Tensor, weights: Tensor | None = None
) -> Tensor:
    """||(x_i - y_j) * weights||^2 (N, K) by direct differences, as in `KMeans.transform`."""
    if not (tensor1.ndim == tensor2.ndim == 2 and {tensor1.dtype, tensor2.dtype} <= _FLOATS):
        # Integers; and ENRC asks for the square of each feature, by tensors of three dimensions.
        own: Tensor = _originals["squared_euclidean_distance"](tensor1, tensor2, weights)
        return own
    x, y = _together(tensor1, tensor2, weights)
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _dec_predict(centers: Tensor, embedded: Tensor, alpha: float, weights: Tensor | None) -> Tensor:
    """q (N, K), eq. 1 of Xie et al. (2016)."""
    return F.assign(*_student(embedded, centers, alpha, weights))


def dec_loss(self: Any, embedded: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy from the batch's target, eq. 3 of Xie et al. (2016), to its assignment."""
    z, head = _student(embedded, self.centers, self.alpha, weights)
    return F.target_loss(z, head, _target(z, head), kind="ce")


def dec_augmentation_invariance_loss(
    self: Any, embedded: Tensor, embedded_aug: Tensor, weights: Tensor | None = None
) -> Tensor:
    """The mean of this loss over the rows and over their views, by the target of the rows."""
    z, head = _student(embedded, self.centers, self.alpha, weights)
    view, head_of_view = _student(embedded_aug, self.centers, self.alpha, weights)
    p = _target(z, head)
    clean = F.target_loss(z, head, p, kind="ce")
    return (clean + F.target_loss(view, head_of_view, p, kind="ce")) / 2


def predict_hard(self: Any, embedded: Tensor) -> Tensor:
    """The nearest centre of each row (N,) int32, ties to the lowest index."""
    return F.kmeans_assign(*_together(embedded, self.centers))[0].int()


def _compute_centroids(
    centers: Tensor, embedded: Tensor, counts: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Running means, eq. 8 of Yang et al. (2017): row after row they come to the closed form.

    m_k <- m_k + (sum_i z_i - n_k m_k) / (c_k + n_k) over the n_k rows of cluster k, c_k being its
    count so far; centres and counts change in place, as ClustPy's do.
    """
    z, _ = _together(embedded, centers)
    sums, n = F.kmeans_update(z, labels.long(), len(centers))
    counts += n.to(counts.dtype)
    # A cluster without rows, ever, has count 0 and stays where it is.
    centers += (sums - n.unsqueeze(1) * centers) / counts.clamp_min(1).unsqueeze(1)
    return centers, counts


# Where ClustPy defines each, by the name it has there. The signature of the replacement is the one
# that is required of ClustPy's.
_REPLACEMENTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "squared_euclidean_distance": ("clustpy.deep._utils", squared_euclidean_distance),
    "_dec_predict": ("clustpy.deep.dec", _dec_predict),
    "_DEC_Module.dec_loss": ("clustpy.deep.dec", dec_loss),
    "_DEC_Module.dec_augmentation_invariance_loss": (
        "clustpy.deep.dec",
        dec_augmentation_invariance_loss,
    ),
    "_DCN_Module.predict_hard": ("clustpy.deep.dcn", predict_hard),
    "_compute_centroids": ("clustpy.deep.dcn", _compute_centroids),
}

_lock = threading.RLock()
_originals: dict[str, Callable[..., Any]] = {}
# Each place that was changed, the attribute, what was there and what is.
_changed: list[tuple[Any, str, Any, Any]] = []
_is_on = False  # by enable()
_open = 0  # `with enabled()` that have not ended


def enable() -> None:
    """Run ClustPy's deep estimators on these kernels, from now on.

    For the whole process; a second call changes nothing. What code outside of ClustPy has imported
    from it by name stays ClustPy's.

    Raises:
        ImportError: If ClustPy is not installed.
        RuntimeError: If this version of ClustPy lacks a function, or has it with other arguments;
            nothing is replaced then.

    Example:
        >>> from deepclust.integrations import clustpy
        >>> clustpy.is_enabled()  # importing it changes nothing; clustpy.enable() does
        False
    """
    global _is_on
    with _lock:
        _install()
        _is_on = True


def disable() -> None:
    """Give ClustPy its own functions back: those that `enable` found, where it found them.

    Inside a `with enabled()` that happens at its end. Without `enable` before, nothing changes.

    Example:
        >>> from deepclust.integrations import clustpy
        >>> clustpy.disable()
    """
    global _is_on
    with _lock:
        _is_on = False
        _restore_unless_used()


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """Run ClustPy's deep estimators on these kernels within a `with`; it may be nested.

    ClustPy's functions are replaced for the whole process, hence in other threads, too, until the
    last such block has ended.

    Raises:
        ImportError: As `enable`.
        RuntimeError: As `enable`.

    Example:
        >>> from deepclust.integrations import clustpy
        >>> context = clustpy.enabled()  # for `with`; replaces nothing before
        >>> clustpy.is_enabled()
        False
    """
    global _open
    with _lock:
        _install()
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            _restore_unless_used()


def is_enabled() -> bool:
    """Whether ClustPy runs on these kernels now.

    Example:
        >>> from deepclust.integrations import clustpy
        >>> clustpy.is_enabled()
        False
    """
    return bool(_changed)


def _install() -> None:
    if _changed:
        return
    _originals.update(_found())
    for name, (module, replacement) in _REPLACEMENTS.items():
        original = _originals[name]
        *classes, attribute = name.split(".")
        if classes:
            places: list[Any] = [getattr(sys.modules[module], classes[0])]
        else:  # ClustPy's modules import a function from one another by name
            places = [m for n, m in list(sys.modules.items()) if n.partition(".")[0] == "clustpy"]
        for place in places:
            if vars(place).get(attribute) is original:
                _changed.append((place, attribute, original, replacement))
                setattr(place, attribute, replacement)


def _restore_unless_used() -> None:
    if _is_on or _open:
        return
    while _changed:
        place, attribute, original, replacement = _changed.pop()
        if vars(place).get(attribute) is replacement:  # else somebody else has been there since
            setattr(place, attribute, original)


def _found() -> dict[str, Callable[..., Any]]:
    """ClustPy's functions, each with the arguments that its replacement takes."""
    try:
        importlib.import_module("clustpy.deep")
    except ImportError as error:
        raise ImportError(
            f"ClustPy cannot be imported ({error}): pip install 'deepclust[clustpy]'"
        ) from error
    found, misfits = {}, []
    for name, (module, replacement) in _REPLACEMENTS.items():
        function: Any = sys.modules.get(module)
        for part in name.split("."):
            function = getattr(function, "__dict__", {}).get(part)  # its own, not inherited
        wanted = _arguments(replacement)
        if function is None:
            misfits.append(f"{module}.{name}({wanted}): there is none")
        elif (got := _arguments(function)) != wanted:
            misfits.append(f"{module}.{name}({wanted}): got ({got})")
        found[name] = function
    if misfits:
        version = getattr(sys.modules["clustpy"], "__version__", "of an unknown version")
        raise RuntimeError(
            f"clustpy {version} has not the functions that deepclust replaces: "
            + "; ".join(misfits)
        )
    return found


def _arguments(function: Any) -> str:
    """Names, kinds and defaults; annotations may differ."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return f"no function: {function!r}"
    empty = inspect.Parameter.empty
    parameters = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return str(inspect.Signature(parameters))[1:-1]


def _together(x: Tensor, y: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both in the type that ClustPy's arithmetic gives them, their features weighted."""
    if weights is not None:
        # Moved first, so that weighting does not round away what far rows differ by.
        origin = origin_of(y)
        x, y = (x - origin) * weights, (y - origin) * weights
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def _student(
    embedded: Tensor, centers: Tensor, alpha: float, weights: Tensor | None
) -> tuple[Tensor, F.StudentT]:
    z, mu = _together(embedded, centers, weights)
    return z, F.StudentT(mu, float(alpha))


@torch.no_grad()
def _target(z: Tensor, head: F.StudentT) -> Tensor:
    return F.dec_target(F.assign(z, head))
