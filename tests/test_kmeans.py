"""KMeans against scikit-learn, and what only we promise: bits that do not depend on threads."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.cluster
import torch
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from deepclust.cluster import KMeans, MiniBatchKMeans
from deepclust.metrics import adjusted_rand


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


def test_restarts_keep_the_best(blobs):
    X, _ = blobs
    # The starts are the same sequence of draws: the first of ten is the one alone.
    one = KMeans(6, init="random", n_init=1, random_state=3).fit(X).inertia_
    ten = KMeans(6, init="random", n_init=10, random_state=3).fit(X).inertia_
    assert ten <= one


def test_greedy_start_is_as_good_as_scikit_learns():
    X, _ = make_blobs(2000, centers=40, n_features=8, random_state=0)
    ours = [KMeans(40, max_iter=300, random_state=s).fit(X).inertia_ for s in range(10)]
    theirs = [
        sklearn.cluster.KMeans(40, n_init=1, random_state=s).fit(X).inertia_ for s in range(10)
    ]
    assert np.median(ours) <= 1.1 * np.median(theirs)


@pytest.mark.filterwarnings("ignore:k-means stopped at max_iter")
def test_same_bits_for_any_number_of_threads(threads):
    X = np.random.default_rng(0).normal(size=(5000, 20)).astype(np.float32)
    fits = []
    for n in (1, 2, 3, 8):
        threads(n)
        fits.append(KMeans(13, n_init=2, max_iter=20, tol=0.01, random_state=0).fit(X))
    for fit in fits[1:]:
        np.testing.assert_array_equal(fit.labels_, fits[0].labels_)
        np.testing.assert_array_equal(fit.cluster_centers_, fits[0].cluster_centers_)


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
        ({"n_init": 0}, "n_init: got 0"),
        ({"max_iter": 0}, "max_iter: got 0"),
        ({"tol": -1}, "tol: got -1"),
        ({"backend": "fpga"}, "backend: got 'fpga'"),
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
