"""KMeans and MiniBatchKMeans: against scikit-learn's, and what only we promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse
import sklearn.cluster
import torch
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics.pairwise import cosine_distances
from sklearn.utils.estimator_checks import parametrize_with_checks

from deepclust import _files
from deepclust.cluster import KMeans, MiniBatchKMeans, load
from deepclust.cluster._points import Points, as_points
from deepclust.cluster._seeding import SEEDINGS, random_rows
from deepclust.metrics import adjusted_rand
from tests import budget


@pytest.fixture(scope="module")
def blobs():
    return make_blobs(600, centers=6, n_features=5, cluster_std=0.6, random_state=1)


DRAWN = (
    "a row drawn by its weight of 2 is not the same draw as two rows of weight 1, so starts differ;"
    " scikit-learn's own is excused too"
)
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": DRAWN,
    "check_sample_weight_equivalence_on_sparse_data": DRAWN,
}


@parametrize_with_checks(
    [KMeans(n_clusters=3, random_state=0), MiniBatchKMeans(n_clusters=3, random_state=0)],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_same_start_same_end_as_scikit_learn(blobs, dtype, weighted):
    X = np.random.default_rng(0).normal(size=(500, 7)).astype(dtype)
    weight = np.random.default_rng(1).random(500) if weighted else None
    init = X[:8]
    ours = KMeans(8, init=init, tol=0).fit(X, sample_weight=weight)
    theirs = sklearn.cluster.KMeans(8, init=init, n_init=1, tol=0).fit(X, sample_weight=weight)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=tolerance)
    np.testing.assert_allclose(ours.inertia_, theirs.inertia_, rtol=tolerance)
    assert ours.cluster_centers_.dtype == dtype
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), atol=10 * tolerance)
    np.testing.assert_allclose(ours.score(X), theirs.score(X), rtol=tolerance)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_finds_blobs(blobs, init):
    X, y = blobs
    km = KMeans(6, init=init, n_init=10, random_state=0).fit(X)
    assert adjusted_rand(y, km.labels_) == 1.0
    np.testing.assert_array_equal(km.predict(X), km.labels_)
    np.testing.assert_array_equal(km.fit_predict(X), km.labels_)


def rows_and_start(kind, seed, dtype):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(2000, 8)) + 0.3
    if kind == "blobs":
        X += 4 * rng.normal(size=(12, 8))[rng.integers(12, size=len(X))]
    elif kind == "duplicates":
        X = X[:, :2].round()
    start = X[rng.permutation(len(X))[:12]]
    if kind == "empty clusters":
        start[7:] += 50  # which nothing is near to
    return X.astype(dtype), start.astype(dtype)


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["gaussian", "blobs", "duplicates", "empty clusters"])
@pytest.mark.parametrize(("seed", "metric"), [(0, "euclidean"), (1, "euclidean"), (2, "cosine")])
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_sums_of_changes_lead_where_sums_of_all_rows_do(
    kind, seed, metric, dtype, backend, monkeypatch, capsys
):
    """Those of weighted rows are always of all rows."""
    X, start = rows_and_start(kind, seed, dtype)
    if metric == "cosine":
        X[:, 0] += (X == 0).all(1)
    n_whole, whole = 0, Points.assign_and_update

    def count(*args):
        nonlocal n_whole
        n_whole += 1
        return whole(*args)

    monkeypatch.setattr(Points, "assign_and_update", count)
    options = {"init": start, "tol": 0, "verbose": 1, "metric": metric, "backend": backend}
    made = KMeans(len(start), **options).fit(X, sample_weight=np.ones(len(X)))
    said = capsys.readouterr().out
    assert n_whole == made.n_iter_ > 2
    # What rounding leaves of all that may have come and gone.
    n_terms = 2 * len(X) * made.n_iter_
    drift = budget.growth(n_terms) * budget.roundoff(torch.float64) * np.abs(X).sum(0).max()
    drift /= np.bincount(made.labels_).clip(1).min()
    for verbose in (0, 1):
        found = KMeans(len(start), **{**options, "verbose": verbose}).fit(X)
        assert found.n_iter_ == made.n_iter_
        np.testing.assert_array_equal(found.labels_, made.labels_)
        np.testing.assert_allclose(
            found.cluster_centers_, made.cluster_centers_, rtol=2 * np.finfo(dtype).eps, atol=drift
        )
        np.testing.assert_allclose(found.inertia_, made.inertia_, rtol=8 * np.finfo(dtype).eps)
    assert n_whole == made.n_iter_
    assert capsys.readouterr().out == said


def test_restarts_keep_the_best(blobs):
    X, _ = blobs
    # The starts are the same sequence of draws: the first of ten is the one alone.
    one = KMeans(6, init="random", n_init=1, random_state=3).fit(X).inertia_
    ten = KMeans(6, init="random", n_init=10, random_state=3).fit(X).inertia_
    assert ten <= one


def test_of_starts_that_end_alike_the_first_is_kept():
    X, labels = make_blobs(4000, centers=5, n_features=20, random_state=0)
    starts = np.array([X[labels == j].mean(0) for j in range(5)])
    orders = [[0, 1, 2, 3, 4], [3, 1, 4, 2, 0], [1, 4, 0, 3, 2], [4, 3, 2, 1, 0]]
    left = iter(orders)
    made = KMeans(5, init=lambda *_, **__: starts[next(left)], n_init=4, tol=0).fit(X)
    np.testing.assert_array_equal(made.labels_, labels)


@pytest.mark.filterwarnings("ignore:k-means stopped at max_iter")
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [3.0, 0.3, 0.1])  # the last, by distances
@pytest.mark.parametrize("max_iter", [1, 2, 300])
@pytest.mark.parametrize(("shape", "k"), [((3000, 100), 10), ((5000, 10), 10), ((1500, 40), 60)])
def test_inertia_is_that_of_the_labels(dtype, spread, max_iter, shape, k):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(k, shape[1])) + 5
    X = centers[rng.integers(k, size=shape[0])] + spread * rng.normal(size=shape)
    X = X.astype(dtype)
    made = KMeans(k, init=X[:k], max_iter=max_iter, tol=0).fit(X)
    exact = ((X.astype(float) - made.cluster_centers_.astype(float)[made.labels_]) ** 2).sum()
    np.testing.assert_allclose(made.inertia_, exact, rtol=1e-6 if dtype == np.float32 else 1e-13)
    np.testing.assert_array_equal(made.labels_, made.predict(X))


@pytest.mark.parametrize("shape", [(5000, 10), (3000, 100)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"tol": 0}, {"backend": "eager"}, {"metric": "cosine"}])
def test_rows_that_are_first_read_by_an_iteration_are_checked(shape, value, options):
    X = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    made = KMeans(5, init=X[:5].copy(), **options)
    weight = np.ones(len(X))
    for row in (0, 2345, len(X) - 1):
        bad = X.copy()
        bad[row, -1] = value
        with pytest.raises(ValueError, match=f"X: row {row} has NaN or Inf"):
            made.fit(bad)
        with pytest.raises(ValueError, match=f"X: row {row} has NaN or Inf"):
            made.fit(bad, sample_weight=weight)
    assert not hasattr(made, "cluster_centers_")
    assert len(made.fit(X).labels_) == len(X)


@pytest.mark.parametrize("shape", [(5000, 10), (3000, 100), (1200, 40)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_clusters", [3, 30])
@pytest.mark.parametrize("options", [{}, {"backend": "eager"}, {"compute_labels": False}])
def test_rows_that_are_first_read_by_a_batch_are_checked(shape, value, n_clusters, options):
    X = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    made = MiniBatchKMeans(n_clusters, init=X[:n_clusters].copy(), batch_size=600, **options)
    weight = np.ones(len(X))
    for row in (0, 1234 % len(X), len(X) - 1):
        bad = X.copy()
        bad[row, -1] = value
        for max_iter in (1, 20):  # not all rows are drawn, and all are
            made.set_params(max_iter=max_iter, random_state=row)
            with pytest.raises(ValueError, match=f"X: row {row} has NaN or Inf"):
                made.fit(bad)
            with pytest.raises(ValueError, match=f"X: row {row} has NaN or Inf"):
                made.fit(bad, sample_weight=weight)
            assert not hasattr(made, "labels_")
            assert np.isfinite(getattr(made, "cluster_centers_", 0)).all()


def test_large_rows_are_finite():
    X = np.full((600, 20), 1e30, np.float32)
    X[::2] = 0  # squares of the others are not
    made = KMeans(2, init=X[:2], tol=0).fit(X)
    np.testing.assert_array_equal(made.labels_, np.arange(600) % 2)


def test_greedy_start_is_as_good_as_scikit_learns():
    X, _ = make_blobs(2000, centers=40, n_features=8, random_state=0)
    ours = [KMeans(40, max_iter=300, random_state=s).fit(X).inertia_ for s in range(10)]
    theirs = [
        sklearn.cluster.KMeans(40, n_init=1, random_state=s).fit(X).inertia_ for s in range(10)
    ]
    assert np.median(ours) <= 1.1 * np.median(theirs)


def test_empty_clusters_get_the_farthest_rows():
    X = np.array([[0.0], [0.1], [0.2], [9.0], [10.0]])
    init = np.array([[0.0], [100.0], [200.0]])
    ours = KMeans(3, init=init).fit(X)
    theirs = sklearn.cluster.KMeans(3, init=init, n_init=1).fit(X)
    assert len(np.unique(ours.labels_)) == 3
    np.testing.assert_allclose(ours.inertia_, theirs.inertia_)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_given_centroids_with_duplicates_stay_where_rows_are_too_few():
    X = np.array([[0.0], [0.0], [1.0]])
    km = KMeans(3, init=np.array([[0.0], [1.0], [5.0]])).fit(X)
    assert km.inertia_ == 0
    assert np.isfinite(km.cluster_centers_).all()


def test_weights_of_zero_do_not_count(blobs):
    X, _ = blobs
    weight = np.ones(len(X))
    weight[:300] = 0
    part = KMeans(3, init=X[300:303]).fit(X[300:])
    whole = KMeans(3, init=X[300:303]).fit(X, sample_weight=weight)
    np.testing.assert_allclose(whole.cluster_centers_, part.cluster_centers_, atol=1e-12)


def test_tensors_and_arrays_give_the_same(blobs):
    X, _ = blobs
    a = KMeans(6, random_state=0).fit(X)
    b = KMeans(6, random_state=0).fit(torch.from_numpy(X))
    np.testing.assert_array_equal(a.cluster_centers_, b.cluster_centers_)
    weight = np.linspace(0, 1, len(X))
    a = KMeans(6, random_state=0).fit(X, sample_weight=weight)
    b = KMeans(6, random_state=0).fit(torch.from_numpy(X), sample_weight=torch.from_numpy(weight))
    np.testing.assert_array_equal(a.cluster_centers_, b.cluster_centers_)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("init", ["k-means++", "random", "given"])
def test_tensors_on_a_gpu(blobs, init):
    X, _ = blobs
    x = torch.from_numpy(X).cuda()
    weight = torch.linspace(0.5, 1, len(X), dtype=torch.float64)
    settings = {"init": X[:6] if init == "given" else init, "random_state": 0}
    a = KMeans(6, **settings).fit(X, sample_weight=weight)
    b = KMeans(6, **settings).fit(x, sample_weight=weight.cuda())
    np.testing.assert_array_equal(a.labels_, b.labels_)
    assert b.labels_.dtype == np.int64
    np.testing.assert_allclose(a.cluster_centers_, b.cluster_centers_, rtol=1e-9)
    np.testing.assert_allclose(a.inertia_, b.inertia_, rtol=1e-9)
    np.testing.assert_array_equal(b.predict(x), b.labels_)
    np.testing.assert_allclose(b.transform(x), a.transform(X), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(b.score(x), a.score(X), rtol=1e-9)
    again = KMeans(6, **settings).fit(x, sample_weight=weight.cuda())
    np.testing.assert_array_equal(again.cluster_centers_, b.cluster_centers_)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_clusters": 0}, "n_clusters: got 0; it takes an integer of at least 1"),
        ({"n_clusters": 2.5}, "n_clusters: got 2.5"),
        ({"n_clusters": 601}, "n_clusters: got 601, more than the 600 rows"),
        ({"init": "best"}, "init: got 'best'"),
        ({"init": np.zeros((2, 5))}, r"init: got centroids of shape \(2, 5\); it takes \(8, 5\)"),
        ({"init": np.full((8, 5), np.nan)}, "init: got NaN or Inf"),
        ({"init": lambda *_, **__: "a"}, r"init: got 'a'; it takes centroids \(8, 5\)"),
        ({"n_init": 0}, "n_init: got 0"),
        ({"max_iter": 0}, "max_iter: got 0"),
        ({"tol": -1}, "tol: got -1"),
        ({"backend": "fpga"}, "backend: got 'fpga'"),
        ({"algorithm": "full"}, "algorithm: got 'full'; it takes 'lloyd' or 'elkan'"),
        ({"metric": "manhattan"}, "metric: got 'manhattan'; it takes 'euclidean' or 'cosine'"),
        ({"device": "abacus"}, "device: got 'abacus'"),
    ],
)
def test_bad_parameters(blobs, parameters, message):
    with pytest.raises(ValueError, match=message):
        KMeans(**parameters).fit(blobs[0])


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_too_few_distinct_rows_warn(init):
    X = np.array([[0.0], [1.0], [0.0], [1.0]])
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(2\) found smaller than"):
        km = KMeans(3, init=init, random_state=0).fit(X)
    assert km.inertia_ == 0
    assert len(np.unique(km.cluster_centers_)) == 2


def test_weights_are_checked(blobs):
    X, _ = blobs
    with pytest.raises(ValueError, match="at least one non-zero"):
        KMeans(2).fit(X, sample_weight=np.zeros(len(X)))
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        KMeans(2).fit(X, sample_weight=-np.ones(len(X)))


def test_max_iter_warns(blobs):
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        KMeans(6, init="random", n_init=1, max_iter=1, tol=0, random_state=0).fit(blobs[0])


# --- rows of other kinds -----------------------------------------------------------------------

FORMS = ["csr_array", "csr_matrix", "csc_matrix", "memory map", "integer memory map", "strided"]


def in_form(X, form, tmp_path):
    """The same whole numbers in another form."""
    if "memory map" in form:
        kind = ">i2" if "integer" in form else X.dtype
        np.save(tmp_path / "X.npy", X.astype(kind))
        return np.load(tmp_path / "X.npy", mmap_mode="r")
    if form == "strided":
        return torch.from_numpy(np.repeat(X, 2, axis=1))[:, ::2]
    return getattr(scipy.sparse, form)(X)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("Estimator", [KMeans, MiniBatchKMeans])
def test_any_form_of_rows_in_blocks_gives_what_an_array_gives(
    Estimator, metric, form, tmp_path, monkeypatch
):
    X = np.random.default_rng(0).poisson(1.0, size=(300, 12)).astype(np.float64)
    X[:, 0] += 1
    weight = np.random.default_rng(1).random(300)
    made = Estimator(5, metric=metric, random_state=0).fit(X, sample_weight=weight)
    monkeypatch.setattr("deepclust.cluster._points.BLOCK_ELEMENTS", 12 * 70)
    other = in_form(X, form, tmp_path)
    found = Estimator(5, metric=metric, random_state=0).fit(other, sample_weight=weight)
    np.testing.assert_array_equal(found.labels_, made.labels_)
    np.testing.assert_allclose(found.cluster_centers_, made.cluster_centers_, rtol=1e-12)
    np.testing.assert_allclose(found.inertia_, made.inertia_, rtol=1e-12)
    np.testing.assert_array_equal(found.predict(other), made.labels_)
    np.testing.assert_allclose(found.transform(other), made.transform(X), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.score(other, None, weight), -made.inertia_, rtol=1e-12)


def test_what_kernels_take_is_not_copied():
    X = np.ones((50, 3), np.float32)
    for rows in (X, torch.from_numpy(X)):
        options = {"device": None, "unit": False, "backend": "auto", "reset": True}
        [(_, block)] = as_points(KMeans(), rows, **options).blocks()
        address = rows.data_ptr() if isinstance(rows, torch.Tensor) else rows.ctypes.data
        assert block.data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 4))).to(dtype)
    half, single = (KMeans(4, random_state=0).fit(rows) for rows in (x, x.float()))
    np.testing.assert_array_equal(half.cluster_centers_, single.cluster_centers_)
    assert half.cluster_centers_.dtype == np.float32


@pytest.mark.parametrize("form", ["array", "csr_array", "memory map"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_the_first_bad_row_is_named(form, bad, tmp_path, monkeypatch):
    monkeypatch.setattr("deepclust.cluster._points.BLOCK_ELEMENTS", 100)
    X = np.ones((200, 4))
    X[[137, 180], 2] = bad
    rows = X if form == "array" else in_form(X, form, tmp_path)
    for method in (KMeans(2).fit, MiniBatchKMeans(2).fit, MiniBatchKMeans(2).partial_fit):
        with pytest.raises(ValueError, match="X: row 137 has NaN or Inf"):
            method(rows)
    with pytest.raises(ValueError, match="X: row 137 has NaN or Inf"):
        KMeans(2, init=X[:2], n_init=1, tol=0).fit(X[:100] + np.arange(100)[:, None]).predict(rows)


def test_rows_are_never_written_to():
    X = np.random.default_rng(0).normal(size=(100, 3))
    X.flags.writeable = False
    before = X.copy()
    for metric in ("euclidean", "cosine"):
        KMeans(3, metric=metric, copy_x=False).fit(X)
        MiniBatchKMeans(3, metric=metric).fit(X)
    np.testing.assert_array_equal(X, before)


# --- metric="cosine" ---------------------------------------------------------------------------


def spherical_kmeans(X, centroids, weight, n_iter):
    """Dhillon and Modha (2001), written out."""
    u = X / np.linalg.norm(X, axis=1, keepdims=True)
    for _ in range(n_iter):
        labels = (u @ centroids.T).argmax(1)
        for j in range(len(centroids)):
            mean = (weight[labels == j, None] * u[labels == j]).sum(0)
            centroids[j] = mean / np.linalg.norm(mean)
    cosine = u @ centroids.T
    return cosine.argmax(1), centroids, float((weight * (1 - cosine.max(1))).sum())


@pytest.mark.filterwarnings("ignore:k-means stopped at max_iter")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cosine_is_spherical_kmeans(dtype):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(400, 6)) * rng.lognormal(size=(400, 1))).astype(dtype)
    weight = rng.random(400)
    unit = X[:5].astype(float) / np.linalg.norm(X[:5].astype(float), axis=1, keepdims=True)
    labels, centroids, inertia = spherical_kmeans(X.astype(float), unit, weight, 4)
    km = KMeans(5, metric="cosine", init=X[:5], max_iter=4, tol=0).fit(X, sample_weight=weight)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_array_equal(km.labels_, labels)
    np.testing.assert_allclose(km.cluster_centers_, centroids, atol=tolerance)
    np.testing.assert_allclose(km.inertia_, inertia, rtol=tolerance)
    np.testing.assert_allclose(
        km.transform(X), cosine_distances(X, centroids), atol=tolerance, rtol=tolerance
    )
    np.testing.assert_allclose(km.score(X, sample_weight=weight), -inertia, rtol=tolerance)


@pytest.mark.parametrize("Estimator", [KMeans, MiniBatchKMeans])
def test_cosine_sees_no_lengths(Estimator):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 5)).astype(np.float32)
    scale = 2.0 ** rng.integers(-60, 60, size=(300, 1)).astype(np.float32)
    a, b = (Estimator(4, metric="cosine", random_state=0).fit(rows) for rows in (X, X * scale))
    np.testing.assert_array_equal(a.labels_, b.labels_)
    np.testing.assert_array_equal(a.cluster_centers_, b.cluster_centers_)
    np.testing.assert_allclose(np.linalg.norm(a.cluster_centers_, axis=1), 1, rtol=1e-6)


def test_cosine_takes_no_zeros(blobs):
    X = blobs[0].copy()
    X[7] = 0
    with pytest.raises(ValueError, match="X: row 7 is zero; metric='cosine'"):
        KMeans(3, metric="cosine").fit(X)


# --- starts ------------------------------------------------------------------------------------


def test_kmeans_parallel_start_is_as_good_as_plus_plus():
    X, _ = make_blobs(3000, centers=40, n_features=8, random_state=0)
    inertia = {
        init: [KMeans(40, init=init, random_state=s).fit(X).inertia_ for s in range(8)]
        for init in ("k-means++", "k-means||")
    }
    assert np.median(inertia["k-means||"]) <= 1.1 * np.median(inertia["k-means++"])


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_rows_without_weight_are_no_start(init):
    X = np.random.default_rng(0).normal(size=(200, 3))
    weight = np.ones(200)
    weight[::2] = 0
    points = as_points(KMeans(), X, weight, device=None, unit=False, backend="auto", reset=True)
    start = SEEDINGS[init](points, 9, np.random.RandomState(0))
    distance = np.linalg.norm(X[::2, None] - start.numpy(), axis=2)
    assert distance.min() > 0
    if init != "k-means||":  # which gives means
        assert all((X[1::2] == row).all(1).any() for row in start.numpy())


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
@pytest.mark.parametrize("Estimator", [KMeans, MiniBatchKMeans])
def test_distances_past_the_range_of_the_type_end(Estimator, init):
    X = (1e30 * np.random.default_rng(0).normal(size=(100, 3))).astype(np.float32)
    made = Estimator(3, init=init, n_init=1, random_state=0).fit(X)
    assert np.isfinite(made.cluster_centers_).all()


def test_random_rows_are_drawn_by_weight_and_none_twice():
    X = np.arange(5.0)[:, None]
    points = as_points(
        KMeans(), X, [1, 1, 1, 1, 12], device=None, unit=False, backend="auto", reset=True
    )
    rng = np.random.RandomState(0)
    drawn = np.array([random_rows(points, 2, rng).ravel().tolist() for _ in range(4000)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    # The first is row 4 with probability 12/16; the second, after row 0, with 12/15.
    np.testing.assert_allclose((drawn[:, 0] == 4).mean(), 12 / 16, atol=0.03)
    np.testing.assert_allclose((drawn[drawn[:, 0] < 4, 1] == 4).mean(), 12 / 15, atol=0.05)


def test_too_few_weights_for_a_random_start():
    with pytest.raises(ValueError, match="sample_weight: got 2 weights above 0; init='random'"):
        KMeans(3, init="random").fit(np.arange(5.0)[:, None], sample_weight=[1, 0, 0, 0, 1])


@pytest.mark.parametrize("Estimator", [KMeans, MiniBatchKMeans])
def test_a_function_gives_the_start(Estimator, blobs):
    X, _ = blobs

    def first_rows(rows, n_clusters, random_state):
        assert isinstance(random_state, np.random.RandomState)
        return rows[:n_clusters]

    a = Estimator(6, init=first_rows, n_init=1, random_state=0, **whole(Estimator, X)).fit(X)
    b = Estimator(6, init=X[:6], random_state=0, **whole(Estimator, X)).fit(X)
    np.testing.assert_array_equal(a.cluster_centers_, b.cluster_centers_)


def whole(Estimator, X):
    """So that MiniBatchKMeans shows a function all of X."""
    return {"init_size": len(X)} if Estimator is MiniBatchKMeans else {}


@pytest.mark.parametrize("Estimator", [KMeans, MiniBatchKMeans])
def test_given_centroids_have_one_start(Estimator, blobs):
    with pytest.warns(RuntimeWarning, match="performing only one init, not n_init=4"):
        Estimator(6, init=blobs[0][:6], n_init=4).fit(blobs[0])


# --- MiniBatchKMeans ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_steps_are_scikit_learns(dtype, weighted):
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(20, 64, 5)).astype(dtype)
    weights = rng.random((20, 64)) if weighted else [None] * 20
    options = {"init": batches[0][:6], "n_init": 1, "reassignment_ratio": 0}
    ours, theirs = MiniBatchKMeans(6, **options), sklearn.cluster.MiniBatchKMeans(6, **options)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for batch, weight in zip(batches, weights, strict=True):
        for estimator in (ours, theirs):
            estimator.partial_fit(batch, sample_weight=weight)
        np.testing.assert_allclose(
            ours.cluster_centers_, theirs.cluster_centers_, atol=tolerance, rtol=tolerance
        )
        np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.inertia_, theirs.inertia_, rtol=tolerance)
    np.testing.assert_allclose(ours._counts, theirs._counts, rtol=tolerance)
    assert ours.n_steps_ == theirs.n_steps_ == 20


def test_centroids_are_means_of_what_they_were_given():
    batches = np.random.default_rng(0).normal(size=(5, 40, 2))
    estimator = MiniBatchKMeans(3, init=batches[0][:3], reassignment_ratio=0)
    sums, counts = np.zeros((3, 2)), np.zeros(3)
    centroids = batches[0][:3].copy()
    for batch in batches:
        labels = ((batch[:, None] - centroids) ** 2).sum(2).argmin(1)
        np.add.at(sums, labels, batch)
        counts += np.bincount(labels, minlength=3)
        centroids = sums / counts[:, None]
        estimator.partial_fit(batch)
        np.testing.assert_allclose(estimator.cluster_centers_, centroids, rtol=1e-12)


def test_mini_batches_come_close_to_scikit_learns():
    X, _ = make_blobs(5000, centers=20, n_features=6, cluster_std=2.0, random_state=0)
    inertia = [
        np.median([made(20, batch_size=256, random_state=s).fit(X).inertia_ for s in range(8)])
        for made in (MiniBatchKMeans, sklearn.cluster.MiniBatchKMeans)
    ]
    assert inertia[0] <= 1.1 * inertia[1]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
@pytest.mark.parametrize("Estimator", [KMeans, MiniBatchKMeans])
@pytest.mark.filterwarnings("ignore:k-means stopped at max_iter")
def test_same_seed_same_bits_for_any_number_of_threads(
    Estimator, init, metric, threads, monkeypatch
):
    monkeypatch.setattr("deepclust.cluster._points.BLOCK_ELEMENTS", 1 << 14)
    X = np.random.default_rng(0).normal(size=(3000, 20)).astype(np.float32)
    weight = np.random.default_rng(1).random(3000)
    fits = []
    for n, rows in itertools.product((1, 3, 8), (X, scipy.sparse.csr_array(X))):
        threads(n)
        made = Estimator(9, init=init, n_init=2, max_iter=5, metric=metric, random_state=0)
        fits.append(made.fit(rows, sample_weight=weight))
    for one, other in ((0, 2), (0, 4), (1, 3), (1, 5)):
        np.testing.assert_array_equal(fits[one].labels_, fits[other].labels_)
        np.testing.assert_array_equal(fits[one].cluster_centers_, fits[other].cluster_centers_)
        assert fits[one].inertia_ == fits[other].inertia_


def test_centroids_without_rows_are_placed_on_rows():
    X = np.random.default_rng(0).normal(size=(400, 2))
    init = np.concatenate([X[:3], np.full((2, 2), 1e3)])
    fit = MiniBatchKMeans(5, init=init, batch_size=50, random_state=0).fit
    assert len(np.unique(fit(X).labels_)) == 5
    kept = MiniBatchKMeans(5, init=init, reassignment_ratio=0, random_state=0).fit(X)
    np.testing.assert_array_equal(kept.cluster_centers_[3:], init[3:])


def test_partial_fit_goes_on_from_fit(blobs):
    X, _ = blobs
    made = MiniBatchKMeans(6, random_state=0).fit(X.astype(np.float32))
    counts, n_steps = made._counts.sum(), made.n_steps_
    made.partial_fit(X[:50])  # float64, given to float32 centroids
    assert made._counts.sum() == counts + 50
    assert made.n_steps_ == n_steps + 1
    assert made.cluster_centers_.dtype == np.float32
    assert made.labels_.shape == (50,)


def test_without_labels_inertia_is_an_estimate(blobs):
    X, _ = blobs
    weight = np.random.default_rng(0).random(len(X))
    made = MiniBatchKMeans(6, compute_labels=False, random_state=0).fit(X, sample_weight=weight)
    assert not hasattr(made, "labels_")
    np.testing.assert_allclose(made.inertia_, -made.score(X, sample_weight=weight), rtol=0.1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0; it takes an integer of at least 1"),
        ({"max_no_improvement": -1}, "max_no_improvement: got -1; .* at least 0, or None"),
        ({"init_size": 2.5}, "init_size: got 2.5; .* at least 1, or None"),
        ({"reassignment_ratio": -0.1}, "reassignment_ratio: got -0.1"),
        ({"n_init": "all"}, "n_init: got 'all'; it takes an integer of at least 1, or 'auto'"),
        ({"metric": "manhattan"}, "metric: got 'manhattan'; it takes 'euclidean' or 'cosine'"),
        ({"device": "abacus"}, "device: got 'abacus'"),
    ],
)
def test_bad_parameters_of_mini_batches(blobs, parameters, message):
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=message):
            getattr(MiniBatchKMeans(**parameters), method)(blobs[0])


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans])
def test_a_saved_estimator_does_what_it_did(blobs, tmp_path, kind, metric):
    X = blobs[0].astype(np.float32)
    options = {"metric": metric, "init": X[:6], "n_init": 1, "random_state": 3}
    saved = kind(6, **options).fit(X)
    saved.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    for loaded in (kind.load(tmp_path / "model"), load(tmp_path / "model")):
        assert type(loaded) is kind
        given = loaded.get_params()
        np.testing.assert_array_equal(given.pop("init"), X[:6])
        assert given == {name: v for name, v in saved.get_params().items() if name != "init"}
        for name in ("cluster_centers_", "labels_", "inertia_", "n_iter_", "n_features_in_"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
        assert loaded.cluster_centers_.dtype == np.float32
        np.testing.assert_array_equal(loaded.predict(X), saved.predict(X))
        np.testing.assert_array_equal(loaded.transform(X), saved.transform(X))
        assert loaded.score(X) == saved.score(X)
        assert list(loaded.get_feature_names_out()) == list(saved.get_feature_names_out())
        with pytest.raises(ValueError, match=r"X has 4 features, but .* expecting 5 features"):
            loaded.predict(X[:, :4])
        np.testing.assert_array_equal(loaded.fit(X).labels_, saved.labels_)


@pytest.mark.parametrize("seed", [0, None, np.random.RandomState(5)])
def test_partial_fit_goes_on_from_a_file(blobs, tmp_path, seed):
    X = blobs[0]
    # Placing centroids anew draws at random: a ratio of 1 does so at each tenth row a cluster.
    whole = MiniBatchKMeans(6, random_state=seed, reassignment_ratio=1.0)
    for start in range(0, 300, 50):
        whole.partial_fit(X[start : start + 50])
    whole.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    for start in range(300, 600, 50):
        whole.partial_fit(X[start : start + 50])
        loaded.partial_fit(X[start : start + 50])
    np.testing.assert_array_equal(loaded.cluster_centers_, whole.cluster_centers_)
    assert loaded.n_steps_ == whole.n_steps_ == 12
    # After fit, too, where nothing was drawn by partial_fit yet.
    whole = MiniBatchKMeans(6, random_state=0).fit(X)
    whole.save(tmp_path / "model")
    loaded = MiniBatchKMeans.load(tmp_path / "model")
    np.testing.assert_array_equal(
        loaded.partial_fit(X[:50]).cluster_centers_, whole.partial_fit(X[:50]).cluster_centers_
    )


def test_a_function_is_not_saved_and_the_model_predicts(blobs, tmp_path):
    def init(X, n_clusters, random_state):
        return X[:n_clusters]

    saved = KMeans(6, init=init).fit(blobs[0])
    with pytest.warns(UserWarning, match="init: functions and classes are not saved"):
        saved.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(blobs[0]), saved.labels_)
    with pytest.raises(ValueError, match="init: got"):
        loaded.fit(blobs[0])


def test_labels_in_a_file_are_not_saved(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr("deepclust.cluster._columns.MEMORY_BYTES", 0)
    np.save(tmp_path / "X.npy", blobs[0])
    saved = KMeans(6, random_state=0).fit(tmp_path / "X.npy")
    assert isinstance(saved.labels_, np.memmap)
    saved.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert not hasattr(loaded, "labels_")
    np.testing.assert_array_equal(loaded.predict(blobs[0]), saved.labels_)


def test_a_model_of_a_gpu_is_loaded_on_the_cpu(blobs, tmp_path, monkeypatch):
    saved = KMeans(6, random_state=0).fit(blobs[0])
    saved.device = "cuda:7"
    saved.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.device == "cpu"
    np.testing.assert_array_equal(loaded.predict(blobs[0]), saved.labels_)
    assert load(tmp_path / "model", device="cpu").device == "cpu"


def test_foreign_and_damaged_models_are_refused(blobs, tmp_path):
    path = tmp_path / "model"
    with pytest.raises(NotFittedError):
        KMeans().save(path)
    assert not path.exists()
    saved = KMeans(6, random_state=0).fit(blobs[0])
    saved.save(path)
    with pytest.raises(ValueError, match=r"holds a KMeans; MiniBatchKMeans\.load takes its own"):
        MiniBatchKMeans.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no safetensors file, or cut short"):
        load(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a deepclust model"):
        KMeans.load(path)
    _files.save_tree(path, {"estimator": "Nothing", "needed": []}, kind="model")
    with pytest.raises(ValueError, match=r"holds a Nothing, which deepclust\.cluster does not"):
        load(path)
    saved.save(path)
    with pytest.raises(ValueError, match=r"got \['network'\]; beside the file.* it takes \[\]"):
        load(path, network=torch.nn.Linear(1, 1))
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent")


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_are_written_into_an_array(blobs, tmp_path, metric, monkeypatch):
    X = blobs[0]
    kmeans = KMeans(6, metric=metric, random_state=0).fit(X)
    expected = kmeans.transform(X)
    monkeypatch.setattr("deepclust.cluster._centroids.BLOCK_ELEMENTS", 100)  # several blocks
    out = np.lib.format.open_memmap(tmp_path / "d.npy", "w+", np.float64, (600, 6))
    assert kmeans.transform(X, out=out) is out
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), expected)
    with pytest.raises(ValueError, match=r"out: got shape \(600, 5\); it takes \(600, 6\)"):
        kmeans.transform(X, out=np.empty((600, 5)))
    with pytest.raises(TypeError, match="out: got list"):
        kmeans.transform(X, out=[])
