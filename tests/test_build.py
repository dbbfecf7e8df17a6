"""The extension by itself: its arithmetic, its threads, and life without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: F401  loads the OpenMP runtime that the extension shares

try:
    from deepclust import _C
except ImportError:
    _C = None

ROOT = Path(__file__).parents[1]
NEEDS_C = pytest.mark.skipif(_C is None, reason="deepclust._C is blocked or not built")
WIDTHS = [1, 2, 31, 32, 33, 127, 1000, 4096]
DTYPES = ["float32", "float64"]


def strides(array):
    return tuple(stride // array.itemsize for stride in array.strides)


def assign(x, c, n_threads=2, check=True):
    """labels, sq_dist and the first bad row; the outputs start as garbage."""
    (n, d), k = x.shape, c.shape[0]
    labels = np.full(n, -(2**40), np.int64)
    sq_dist = np.full(n, np.nan, x.dtype)
    bad = _C.kmeans_assign(
        (x.ctypes.data, *strides(x)),
        (c.ctypes.data, *strides(c)),
        n,
        d,
        k,
        x.dtype.name,
        labels.ctypes.data,
        sq_dist.ctypes.data,
        0,
        0,
        0,
        0,
        n_threads,
        check,
    )
    return labels, sq_dist, -1 if bad is None else bad[1]


def distances(x, c):
    """Squared distances (n, k) in float64, by direct differences."""
    x, c = x.astype(np.float64), c.astype(np.float64)
    return np.stack([((x - row) ** 2).sum(axis=1) for row in c], axis=1)


def assert_nearest(x, c, labels, sq_dist):
    """The chosen centroid is the nearest to rounding, and its distance is right to rounding."""
    true = distances(x, c)
    rows = np.arange(len(x))
    # A sum of d squares by 16 running sums or more, each term rounded three times.
    eps = np.finfo(x.dtype).eps
    tolerance = (max(x.shape[1] / 16, min(x.shape[1], 32)) + 8) * eps
    np.testing.assert_allclose(sq_dist, true[rows, labels], rtol=tolerance)
    assert np.all(true[rows, labels] <= true.min(axis=1) * (1 + 2 * tolerance))


def data(n, d, k, dtype, seed=0, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    x, c = rng.standard_normal((n, d)), rng.standard_normal((k, d))
    return (x * scale + shift).astype(dtype), (c * scale + shift).astype(dtype)


@NEEDS_C
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize(("n", "k"), [(127, 11), (1, 1), (64, 4), (65, 1), (5, 40), (600, 9)])
def test_nearest_centroid(n, d, k, dtype):
    x, c = data(n, d, k, dtype)
    labels, sq_dist, bad_row = assign(x, c)
    assert bad_row == -1
    assert labels.min() >= 0
    assert labels.max() < k
    assert_nearest(x, c, labels, sq_dist)


@NEEDS_C
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_points(dtype):
    x, c = data(0, 10, 3, dtype)
    labels, sq_dist, bad_row = assign(x, c)
    assert (len(labels), len(sq_dist), bad_row) == (0, 0, -1)


@NEEDS_C
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [3, 50])
def test_any_strides_give_the_same_bits(d, dtype):
    x, c = data(200, d, 7, dtype)
    expected = assign(x, c)
    wide = np.zeros((400, 3 * d), dtype)
    wide[::2, 1::3] = x
    for view in (
        wide[::2, 1::3],
        np.asfortranarray(x),
        x[::-1].copy()[::-1],
        x[:, ::-1].copy()[:, ::-1],
    ):
        for centroids in (c, np.asfortranarray(c), c[::-1, ::-1].copy()[::-1, ::-1]):
            for got, want in zip(assign(view, centroids), expected, strict=True):
                np.testing.assert_array_equal(got, want)


@NEEDS_C
@pytest.mark.parametrize("d", [3, 50])
def test_zero_strides(d):
    x, c = data(1, d, 7, "float32")
    labels, sq_dist, _ = assign(np.broadcast_to(x, (100, d)), c)
    expected = assign(x, c)
    assert set(labels) == {expected[0][0]}
    assert set(sq_dist) == {expected[1][0]}
    labels, _, _ = assign(x, np.broadcast_to(c[:1], (7, d)))
    assert labels[0] == 0


@NEEDS_C
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 10, 32, 33, 64, 200])
def test_ties_go_to_the_lowest_index(d, dtype):
    x, c = data(300, d, 6, dtype)
    labels, _, _ = assign(x, np.concatenate([c, c[::-1], c]))
    once, _, _ = assign(x, c)
    np.testing.assert_array_equal(labels, once)

    # Whole numbers: distances are exact, and many are equal without the centroids being so.
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2, (300, d)).astype(dtype)
    c = rng.integers(0, 2, (23, d)).astype(dtype)
    labels, sq_dist, _ = assign(x, c)
    true = distances(x, c)
    np.testing.assert_array_equal(labels, true.argmin(axis=1))
    np.testing.assert_array_equal(sq_dist, true.min(axis=1))


@NEEDS_C
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 10, 33, 127])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_first_bad_row(d, dtype, value):
    x, c = data(5000, d, 4, dtype)
    for rows in ([0], [4999], [70, 71], [4321, 700, 2000]):
        bad = x.copy()
        for row in rows:
            bad[row, row % d] = value
        for n_threads in (1, 2, 8):
            assert assign(bad, c, n_threads)[2] == min(rows)
        labels, _, found = assign(bad, c, check=False)
        assert found == -1
        good = np.delete(np.arange(5000), rows)
        np.testing.assert_array_equal(labels[good], assign(x, c)[0][good])


@NEEDS_C
@pytest.mark.parametrize("d", [10, 100])
def test_large_finite_values_are_not_bad(d):
    x, c = data(100, d, 4, "float32", scale=1e30)
    assert assign(x, c)[2] == -1


@NEEDS_C
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 10, 64, 784])
def test_any_number_of_threads_gives_the_same_bits(d, dtype):
    x, c = data(5000, d, 37, dtype)
    labels, sq_dist, _ = assign(x, c, 1)
    for n_threads in range(2, 9):
        other_labels, other_sq_dist, _ = assign(x, c, n_threads)
        np.testing.assert_array_equal(labels, other_labels)
        np.testing.assert_array_equal(sq_dist, other_sq_dist)


@NEEDS_C
@pytest.mark.parametrize("d", [10, 64])
def test_a_row_does_not_depend_on_its_neighbours(d):
    x, c = data(3000, d, 37, "float32")
    labels, sq_dist, _ = assign(x, c)
    for begin, end in [(0, 1), (63, 65), (1000, 2999)]:
        part_labels, part_sq_dist, _ = assign(x[begin:end], c)
        np.testing.assert_array_equal(labels[begin:end], part_labels)
        np.testing.assert_array_equal(sq_dist[begin:end], part_sq_dist)


@NEEDS_C
@pytest.mark.parametrize("d", [10, 64, 500])
def test_far_from_the_origin(d):
    x, c = data(500, d, 20, "float32", shift=1e4)
    assert_nearest(x, c, *assign(x, c)[:2])


@NEEDS_C
@pytest.mark.parametrize("d", [10, 64, 500])
def test_groups_far_from_each_other(d):
    """Centring cannot help: each group is 10,000 standard deviations from the mean centroid."""
    x, c = data(500, d, 20, "float32")
    x[::2] += 1e4
    c[::2] += 1e4
    assert_nearest(x, c, *assign(x, c)[:2])


@NEEDS_C
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": -1}, "n: got -1, takes 0 or more"),
        ({"d": 0}, "d: got 0, takes 1 or more"),
        ({"k": 0}, "k: got 0, takes 1 or more"),
        ({"n_threads": 0}, "n_threads: got 0, takes 1 or more"),
        ({"dtype": "float16"}, "dtype: got 'float16', takes 'float32' or 'float64'"),
        ({"k": 2**31}, "k: got 2147483648, takes less than 2\\^31"),
    ],
)
def test_bad_arguments(changed, message):
    arguments = {
        "x": (0, 1, 1),
        "centroids": (0, 1, 1),
        "n": 0,
        "d": 1,
        "k": 1,
        "dtype": "float32",
        "labels": 0,
        "sq_dist": 0,
        "weight": 0,
        "before": 0,
        "sums": 0,
        "counts": 0,
        "n_threads": 1,
        "check": True,
    }
    with pytest.raises(ValueError, match=message):
        _C.kmeans_assign(*(arguments | changed).values())


FORK = """
import os, sys
import numpy as np
import torch

torch.set_num_threads(4)

def assign():
    from deepclust import _C
    x = np.random.default_rng(0).standard_normal((20000, 64))
    labels, sq_dist = np.empty(20000, np.int64), np.empty(20000)
    matrix = (x.ctypes.data, 64, 1)
    _C.kmeans_assign(matrix, matrix, 20000, 64, 30, "float64",
                     labels.ctypes.data, sq_dist.ctypes.data, 0, 0, 0, 0, 4, True)
    return labels

torch.rand(4_000_000).exp()  # starts the parent's OpenMP threads
loaded_before = {loaded_before}
if loaded_before:
    expected = assign()
child = os.fork()
if child == 0:
    labels = assign()
    assert not loaded_before or (labels == expected).all()
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(int((assign() != labels).any()))
    os._exit(os.waitpid(grandchild, 0)[1] != 0)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""


@NEEDS_C
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("loaded_before", [True, False])
def test_threads_after_fork(loaded_before):
    script = FORK.format(loaded_before=loaded_before)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


def test_build_without_a_compiler(tmp_path):
    """The build succeeds, says one line, and leaves a package without the extension."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    ignore = shutil.ignore_patterns("_C*.so", "__pycache__")
    shutil.copytree(ROOT / "deepclust", tmp_path / "deepclust", ignore=ignore)
    missing = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    build = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-lib", "built"],
        cwd=tmp_path,
        env=os.environ | missing,
        capture_output=True,
        text=True,
        timeout=120,
    )
    output = build.stdout + build.stderr
    assert build.returncode == 0, output
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("deepclust: ")]
    assert "deepclust._C was not built" in line
    assert 'backend="eager"' in line
    assert (tmp_path / "built" / "deepclust" / "functional.py").is_file()
    assert not list((tmp_path / "built" / "deepclust").glob("_C*.so"))
