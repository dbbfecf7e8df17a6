"""Arrays of NumPy and of other libraries in the place of tensors."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deepclust import functional as F
from tests.cases import HEADS, make_case
from tests.test_contract import CALLS, DIFFERENTIABLE, D, K, N

LABELS = np.arange(N) % K
# name: shapes of the arrays, and the call
FUNCTIONS: dict[str, tuple[dict[str, tuple[int, ...]], Callable[..., Any]]] = {
    "frequencies": ({"z": (N, D), "head": (K, D)}, F.frequencies),
    "frequencies-previous": (
        {"z": (N, D), "head": (K, D)},
        lambda z, head: F.frequencies(z, head, previous_labels=like(LABELS, z)),
    ),
    "cluster_frequencies": ({"z": (N, D), "centroids": (K, D)}, F.cluster_frequencies),
    "kmeans_update": (
        {"x": (N, D), "sample_weight": (N,)},
        lambda x, sample_weight: F.kmeans_update(x, like(LABELS, x), K, sample_weight),
    ),
    **{
        name: (CALLS[name].shapes, CALLS[name].run)
        for name in ("dec_target", "depict_target", "kmeans_assign", "kmeans_candidates")
    },
}
each_function = pytest.mark.parametrize(("shapes", "run"), FUNCTIONS.values(), ids=FUNCTIONS.keys())


class Foreign:
    """An array of another library, as the array API standard has it."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._values.__dlpack_device__()

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda other: Foreign(np.from_dlpack(other)))


class Homeless(Foreign):
    """One that nobody says how to make."""

    __array_namespace__ = property()  # type: ignore[assignment]


def like(values: np.ndarray, other: Any) -> Any:
    """The values as an array of the other's kind."""
    if isinstance(other, Tensor):
        return torch.from_numpy(values)
    return Foreign(values) if isinstance(other, Foreign) else values


def arrays(shapes: dict[str, tuple[int, ...]], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.random(shape).astype(dtype) for name, shape in shapes.items()}


def several(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def expected(run: Callable[..., Any], given: dict[str, np.ndarray]) -> list[np.ndarray]:
    found = run(**{name: torch.from_numpy(value.copy()) for name, value in given.items()})
    return [value.numpy() for value in several(found)]


# --- the same kind out -------------------------------------------------------------------------


@each_function
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy(shapes: dict[str, tuple[int, ...]], run: Callable[..., Any], dtype: Any) -> None:
    given = arrays(shapes, dtype)
    found = several(run(**given))
    for value, exact in zip(found, expected(run, given), strict=True):
        assert type(value) is np.ndarray
        assert value.dtype == exact.dtype
        np.testing.assert_array_equal(value, exact)


@each_function
def test_dlpack(shapes: dict[str, tuple[int, ...]], run: Callable[..., Any]) -> None:
    given = arrays(shapes)
    found = several(run(**{name: Foreign(value) for name, value in given.items()}))
    for value, exact in zip(found, expected(run, given), strict=True):
        assert type(value) is Foreign
        np.testing.assert_array_equal(value._values, exact)


@each_function
def test_read_only_arrays_do_not_warn_and_stay_as_they_are(
    shapes: dict[str, tuple[int, ...]], run: Callable[..., Any]
) -> None:
    given = arrays(shapes)
    before = {name: value.copy() for name, value in given.items()}
    exact = expected(run, given)
    for value in given.values():
        value.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = several(run(**given))
    for value, wanted in zip(found, exact, strict=True):
        np.testing.assert_array_equal(value, wanted)
    for name, value in given.items():
        np.testing.assert_array_equal(value, before[name])


@each_function
@pytest.mark.parametrize(
    "laid_out",
    [lambda v: v[::-1], lambda v: v.astype(">f4"), lambda v: np.repeat(v, 2, 0)[::2]],
    ids=["reversed", "big-endian", "strided"],
)
def test_any_layout(
    shapes: dict[str, tuple[int, ...]], run: Callable[..., Any], laid_out: Callable[..., Any]
) -> None:
    given = {name: laid_out(value) for name, value in arrays(shapes).items()}
    plain = {name: np.ascontiguousarray(value, np.float32) for name, value in given.items()}
    for value, exact in zip(several(run(**given)), expected(run, plain), strict=True):
        np.testing.assert_array_equal(value, exact)


def test_nothing_is_copied() -> None:
    """Neither on the way in nor on the way out."""
    x, mu = arrays({"x": (N, D), "mu": (K, D)}).values()
    for z in (x, Foreign(x)):
        assert F.freeze_target(z, like(mu, z)).z.data_ptr() == x.ctypes.data
    labels, sq_dist = F.kmeans_assign(x, mu)
    assert not labels.flags.owndata
    assert not sq_dist.flags.owndata


def test_no_rows() -> None:
    labels, _ = F.kmeans_assign(np.zeros((0, D)), np.zeros((K, D)))
    assert labels.shape == (0,)


@pytest.mark.parametrize("kind", HEADS)
def test_arrays_with_a_head_of_tensors(kind: str) -> None:
    case = make_case(kind, (N, D, K))
    f, labels, _ = F.frequencies(case.z.numpy(), case.head)
    exact = F.frequencies(case.z, case.head)
    np.testing.assert_array_equal(f, exact[0].numpy())
    np.testing.assert_array_equal(labels, exact[1].numpy())


def test_targets_are_frozen_from_arrays() -> None:
    given = arrays({"z": (N, D), "head": (K, D), "frequencies": (K,)})
    prior = np.full(K, 1 / K)
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    exact = F.freeze_target(**tensors, prior=torch.from_numpy(prior)).probabilities()
    for array in (np.asarray, Foreign):
        z, head, f = (array(value) for value in given.values())
        frozen = F.freeze_target(z, head, frequencies=f, prior=array(prior))
        assert torch.equal(frozen.probabilities(), exact)
    linear = F.Linear(tensors["head"])
    exact = F.freeze_balanced_target(tensors["z"], linear, prior=torch.from_numpy(prior))
    found = F.freeze_balanced_target(given["z"], linear, prior=prior)
    assert torch.equal(found.probabilities(), exact.probabilities())


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE.keys())
@pytest.mark.parametrize("array", [np.asarray, Foreign], ids=["numpy", "dlpack"])
def test_functions_with_gradients_say_how_to_make_tensors(call: Any, array: Any) -> None:
    makes = "from_numpy" if array is np.asarray else "from_dlpack"
    for name, value in call.tensors().items():
        given = {**call.tensors(), name: array(value.numpy())}
        with pytest.raises(TypeError, match=rf"^{name}: got .*torch\.{makes} makes one"):
            call.run(**given)


def test_bare_centroids_say_how_to_make_tensors() -> None:
    with pytest.raises(TypeError, match=r"^head: got ndarray.*torch\.from_numpy makes one"):
        F.assign(torch.zeros(2, 1), np.zeros((1, 1)))


def test_the_first_argument_says_the_kind() -> None:
    x, mu = arrays({"x": (N, D), "mu": (K, D)}).values()
    with pytest.raises(TypeError, match=r"^centroids: got ndarray.*torch\.from_numpy makes one"):
        F.kmeans_assign(torch.from_numpy(x), mu)
    labels, _ = F.kmeans_assign(x, torch.from_numpy(mu))
    assert isinstance(labels, np.ndarray)


def test_errors_name_the_argument() -> None:
    x, mu = arrays({"x": (N, D), "mu": (K, D)}).values()
    for bad in (x.astype(object), x.astype(str)):
        with pytest.raises(TypeError, match=r"^centroids: got an array of .*which torch"):
            F.kmeans_assign(x, bad)
    with pytest.raises(TypeError, match=r"^x: got torch\.int64"):
        F.kmeans_assign(x.astype(int), mu)
    with pytest.raises(ValueError, match=r"^x: row 3 has NaN or Inf"):
        F.kmeans_assign(np.where(np.arange(N)[:, None] == 3, np.nan, x), mu)
    with pytest.raises(TypeError, match=r"^x: got list"):
        F.kmeans_assign(x.tolist(), mu)
    with pytest.raises(TypeError, match=r"^x: got Homeless, whose library has no from_dlpack"):
        F.kmeans_assign(Homeless(x), mu)


# --- types -------------------------------------------------------------------------------------

USER = """
from typing import assert_type, Any
import numpy as np
import torch
from numpy.typing import NDArray
from deepclust import functional as F

def use(x: NDArray[np.float32], z: torch.Tensor, mu: torch.nn.Parameter) -> NDArray[np.int64]:
    assert_type(F.kmeans_assign(z, mu), tuple[torch.Tensor, torch.Tensor])
    assert_type(F.cluster_frequencies(z, mu), torch.Tensor)
    assert_type(F.dec_target(x), np.ndarray[Any, Any])
    assert_type(F.freeze_target(x, F.StudentT(mu)), F.Snapshot)
    assert_type(F.assign(z, mu), torch.Tensor)
    F.assign(x, mu)  # type: ignore[arg-type]
    F.kmeans_assign([1.0], [1.0])  # type: ignore[type-var]
    return F.frequencies(x, x)[1]
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.assert_type is of 3.11")
def test_types_of_a_user(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "user.py")]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stdout
