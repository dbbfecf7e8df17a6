from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn import cluster as peers
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.datasets import make_blobs

from deepclust.cluster import DEC, KMeans
from deepclust.metrics import (
    Stability,
    adjusted_rand,
    clustering_accuracy,
    confusion_matrix,
    normalized_mutual_info,
    stability,
)

SCORES = [clustering_accuracy, normalized_mutual_info, adjusted_rand]


def accuracy_by_trying_all_maps(true, pred):
    classes, clusters = sorted(set(true)), sorted(set(pred))
    classes += [None] * max(0, len(clusters) - len(classes))  # None: a cluster without a class
    best = 0
    for chosen in itertools.permutations(classes, len(clusters)):
        names = dict(zip(clusters, chosen, strict=True))
        best = max(best, sum(names[p] == t for t, p in zip(true, pred, strict=True)))
    return best / len(true)


def information_by_formula(true, pred):
    joint = np.array([[np.mean((true == t) & (pred == p)) for p in set(pred)] for t in set(true)])
    rows, columns = joint.sum(1), joint.sum(0)
    ratio = np.where(joint > 0, joint / np.outer(rows, columns), 1)
    entropies = -(rows * np.log(rows)).sum() - (columns * np.log(columns)).sum()
    return 2 * (joint * np.log(ratio)).sum() / entropies


def rand_by_counting_pairs(true, pred):
    pairs = list(itertools.combinations(range(len(true)), 2))
    same_true = np.array([true[i] == true[j] for i, j in pairs])
    same_pred = np.array([pred[i] == pred[j] for i, j in pairs])
    expected = same_true.sum() * same_pred.sum() / len(pairs)
    largest = (same_true.sum() + same_pred.sum()) / 2
    return ((same_true & same_pred).sum() - expected) / (largest - expected)


@pytest.mark.parametrize(("n_classes", "n_clusters"), [(3, 3), (2, 5), (5, 2), (4, 1), (1, 4)])
def test_accuracy_is_the_best_of_all_maps(n_classes, n_clusters):
    rng = np.random.default_rng(n_classes * 10 + n_clusters)
    for _ in range(10):
        true = rng.integers(n_classes, size=23).tolist()
        pred = rng.integers(n_clusters, size=23).tolist()
        assert clustering_accuracy(true, pred) == accuracy_by_trying_all_maps(true, pred)


@pytest.mark.parametrize(("n_classes", "n_clusters"), [(3, 3), (2, 5), (5, 2)])
def test_information_and_rand_follow_their_formulas(n_classes, n_clusters):
    rng = np.random.default_rng(n_classes)
    true, pred = rng.integers(n_classes, size=40), rng.integers(n_clusters, size=40)
    assert normalized_mutual_info(true, pred) == pytest.approx(information_by_formula(true, pred))
    assert adjusted_rand(true, pred) == pytest.approx(rand_by_counting_pairs(true, pred))


LABELS = [2, 0, 0, 1, 2, 2, 1]
FORMS = {
    "list": LABELS,
    "tuple": tuple(LABELS),
    "array": np.array(LABELS),
    "int16": np.array(LABELS, dtype=np.int16),
    "strided": np.repeat(LABELS, 2)[::2],
    "tensor": torch.tensor(LABELS),
    "uint8 tensor": torch.tensor(LABELS, dtype=torch.uint8),
    "bfloat16 tensor that needs a gradient": torch.tensor(
        LABELS, dtype=torch.bfloat16, requires_grad=True
    ),
    "list of tensors": list(torch.tensor(LABELS)),
    "negative": [label - 2 for label in LABELS],
    "far apart": [label * 10**17 - 5 for label in LABELS],
    "floats": [label / 2 for label in LABELS],
    "strings": ["abc"[label] for label in LABELS],
    "array of strings": np.array(["abc"[label] for label in LABELS]),
    "objects": np.array(["abc"[label] for label in LABELS], dtype=object),
    "objects that are numbers": np.array(LABELS, dtype=object),
    "bytes": [b"a", b"c", b"c", b"b", b"a", b"a", b"b"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("score", SCORES)
def test_labels_of_any_form_are_names(form, score):
    labels = FORMS[form]
    assert score(LABELS, labels) == 1.0
    assert score(labels, LABELS) == 1.0
    moved = [LABELS[-1], *LABELS[:-1]]
    assert score(moved, labels) == score(moved, LABELS) != 1.0


def test_booleans_are_labels():
    assert clustering_accuracy([True, False, True], torch.tensor([False, True, False])) == 1.0


@pytest.mark.parametrize("score", SCORES)
def test_no_samples_score_as_in_scikit_learn(score):
    assert score([], []) == 1.0
    assert score(np.array([], dtype="U1"), torch.empty(0, dtype=torch.int64)) == 1.0


@pytest.mark.parametrize("score", SCORES)
def test_result_is_a_float(score):
    assert type(score([0, 1, 1], [0, 0, 1])) is float


def test_many_clusters():
    rng = np.random.default_rng(0)
    true = rng.integers(500, size=100_000)
    names = rng.permutation(10**6)[:700]
    assert clustering_accuracy(true, names[true]) == 1.0


def test_confusion_matrix_puts_each_cluster_under_its_class():
    true = ["a"] * 4 + ["b"] * 3 + ["c"] * 5
    pred = [9, 9, 9, 2, 5, 5, 5, 2, 2, 2, 2, 9]
    matrix, classes, clusters = confusion_matrix(true, pred)
    assert classes.tolist() == ["a", "b", "c"]
    assert clusters.tolist() == [9, 5, 2]
    assert matrix.tolist() == [[3, 0, 1], [0, 3, 0], [1, 0, 4]]
    assert matrix.dtype == np.int64
    assert matrix.trace() / 12 == clustering_accuracy(true, pred)


def test_confusion_matrix_in_the_order_of_labels():
    matrix, classes, clusters = confusion_matrix([1, 1, 0], [-5, -5, 3], matched=False)
    assert classes.tolist() == [0, 1]
    assert clusters.tolist() == [-5, 3]
    assert matrix.tolist() == [[0, 1], [2, 0]]


def test_confusion_matrix_with_spare_clusters_has_them_last():
    true, pred = [0] * 5 + [1] * 5, [3, 3, 3, 0, 2, 1, 4, 4, 4, 4]
    matrix, _, clusters = confusion_matrix(true, pred)
    assert clusters.tolist() == [3, 4, 0, 1, 2]
    assert matrix.tolist() == [[3, 0, 1, 0, 1], [0, 4, 0, 1, 0]]


def test_confusion_matrix_with_spare_classes_keeps_the_order_of_classes():
    matrix, classes, clusters = confusion_matrix([0, 1, 1, 1, 2, 2], [8, 8, 8, 8, 7, 7])
    assert classes.tolist() == [0, 1, 2]
    assert clusters.tolist() == [8, 7]
    assert matrix.tolist() == [[1, 0], [3, 0], [0, 2]]


def test_confusion_matrix_of_no_samples():
    matrix, classes, clusters = confusion_matrix([], [])
    assert matrix.shape == (0, 0)
    assert len(classes) == len(clusters) == 0


@pytest.mark.parametrize("score", [*SCORES, confusion_matrix])
@pytest.mark.parametrize(
    ("true", "pred", "message"),
    [
        ([0, 1, 2], [0, 1], "labels_true has 3 labels, labels_pred has 2; one of each"),
        ([], [0], "labels_true has 0 labels, labels_pred has 1"),
        ([[0], [1]], [0, 1], r"labels_true: shape \(2, 1\); one label a sample"),
        ([0, 1], torch.zeros(2, 3), r"labels_pred: shape \(2, 3\); one label a sample"),
        (3, [0], r"labels_true: shape \(\); one label a sample"),
        ([[0], [1, 2]], [0, 1], "labels_true: nested lists"),
        ([0.0, float("nan")], [0, 1], "labels_true: row 1 is NaN"),
        ([0, 1], torch.tensor([float("nan"), 1]), "labels_pred: row 0 is NaN"),
        (["a", 1], [0, 1], "labels_true: row 1 is 1 among strings"),
        ([float("nan"), "a"], [0, 1], "labels_true: row 0 is nan among strings"),
        (np.array(["a", None], dtype=object), [0, 1], "labels_true: row 1 is None among strings"),
        ([None, 1], [0, 1], "labels_true: labels are neither all strings nor all numbers"),
    ],
)
def test_bad_labels_are_named(score, true, pred, message):
    with pytest.raises(ValueError, match=message) as caught:
        score(true, pred)
    assert "\n" not in str(caught.value)


def blobs(n_clusters, n=150, seed=0):
    centers = 10 * np.random.default_rng(seed).standard_normal((n_clusters, 8))
    return make_blobs(n, centers=centers, random_state=seed)[0]


@pytest.mark.parametrize(
    ("estimator", "n_clusters"),
    [
        *((KMeans(n_init=5), n_clusters) for n_clusters in (2, 3, 5, 7)),
        (peers.MiniBatchKMeans(n_init=5), 3),
        (peers.AgglomerativeClustering(), 7),
    ],
    ids=lambda value: value if isinstance(value, int) else type(value).__name__,
)
def test_the_true_number_of_clusters_is_the_most_stable(estimator, n_clusters):
    found = stability(estimator, blobs(n_clusters), random_state=0)
    assert found.best == n_clusters
    assert found.mean[n_clusters - 2] > 0.99
    assert found.scores.shape == (9, 45)


def test_of_groups_of_clusters_the_clusters_are_best():
    groups = 100 * np.array([[0, 0], [0, 1], [1, 0]])
    centers = np.concatenate([groups, groups + np.array([20, 0])])
    X, _ = make_blobs(150, centers=centers, random_state=0)
    found = stability(KMeans(n_init=5), X, range(2, 9), random_state=0)
    assert found.mean[[1, 4]].tolist() == [1.0, 1.0]  # three groups, six clusters
    assert found.best == 6


def test_best_is_the_largest_within_one_deviation_of_the_highest_mean():
    scores = np.array([[0.7, 0.7], [0.7, 0.9], [0.75, 0.75], [0.6, 0.75]])
    found = Stability(np.array([2, 3, 4, 5]), scores)
    assert found.mean.tolist() == pytest.approx([0.7, 0.8, 0.75, 0.675])
    assert found.std.tolist() == pytest.approx([0, 0.1, 0, 0.075])
    assert found.best == 4
    assert str(found) == (
        "   K    mean    std\n"
        "   2   0.700  0.000\n"
        "   3   0.800  0.100\n"
        "   4   0.750  0.000  best\n"
        "   5   0.675  0.075"
    )


def test_scores_are_those_of_pairs_of_fits():
    X = blobs(3)
    found = stability(KMeans(), X, [4], n_repeats=3, subsample=0.5, random_state=1)
    rng = np.random.RandomState(1)
    samples = [np.sort(rng.permutation(150)[:75]) for _ in range(3)]
    labels = [
        KMeans(4, random_state=rng.randint(2**31 - 1)).fit(X[rows]).predict(X) for rows in samples
    ]
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert found.scores.tolist() == [[adjusted_rand(labels[i], labels[j]) for i, j in pairs]]


def test_stability_without_predict_compares_the_shared_rows():
    class Rank(ClusterMixin, BaseEstimator):
        """Two halves of the values; of rows that another does not have it says nothing."""

        def __init__(self, n_clusters=2):
            self.n_clusters = n_clusters

        def fit(self, X):
            self.labels_ = (X[:, 0] > np.median(X[:, 0])).astype(int)

    X = np.arange(40.0).reshape(-1, 1)
    found = stability(Rank(), X, [2], n_repeats=2, subsample=0.7, random_state=0)
    rng = np.random.RandomState(0)
    one, other = (np.sort(rng.permutation(40)[:28]) for _ in range(2))
    shared = np.intersect1d(one, other)
    expected = adjusted_rand(shared > np.median(one), shared > np.median(other))
    assert found.scores.tolist() == [[expected]]


def test_the_same_seed_gives_the_same_scores():
    X = np.random.default_rng(0).standard_normal((80, 3))
    one, same, other = (
        stability(KMeans(), X, range(2, 5), n_repeats=4, random_state=seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(one.scores, same.scores)
    assert not np.array_equal(one.scores, other.scores)


def test_the_subsamples_are_the_same_for_every_number_of_clusters():
    seen = []

    class Listener(KMeans):
        def fit(self, X):
            seen.append(X.copy())
            return super().fit(X)

    stability(Listener(), blobs(3), [2, 3], n_repeats=2, random_state=0)
    assert np.array_equal(seen[0], seen[2])
    assert np.array_equal(seen[1], seen[3])
    assert not np.array_equal(seen[0], seen[1])


def test_the_estimator_stays_as_it_was():
    estimator = KMeans(5, random_state=3)
    stability(estimator, blobs(2), [2], n_repeats=2)
    assert (estimator.n_clusters, estimator.random_state) == (5, 3)
    assert not hasattr(estimator, "labels_")


def test_stability_of_data_of_any_form(tmp_path):
    X = blobs(3).astype(np.float32)
    np.save(tmp_path / "x.npy", X)
    forms = {
        "tensor": torch.from_numpy(X),
        "memory map": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "list": X.astype(float).tolist(),
    }
    options = {"n_clusters": [3, 4], "n_repeats": 3, "random_state": 0}
    expected = stability(KMeans(), X, **options).scores
    for name, form in forms.items():
        assert np.allclose(stability(KMeans(), form, **options).scores, expected), name
    peer = peers.KMeans()
    expected = stability(peer, X, **options).scores
    for form in (sparse.coo_matrix(X), sparse.csr_array(X)):
        assert np.allclose(stability(peer, form, **options).scores, expected)


def test_stability_of_a_deep_estimator():
    dec = DEC(hidden=(16,), latent_dim=3, tune_updates=20, max_updates=20, n_init=2)
    found = stability(dec, torch.from_numpy(blobs(3)), [2, 3], n_repeats=2, random_state=0)
    assert found.scores.shape == (2, 1)


def test_clusters_without_rows_are_not_stable():
    class Collapsed(ClusterMixin, BaseEstimator):
        def __init__(self, n_clusters=2):
            self.n_clusters = n_clusters

        def fit(self, X):
            self.labels_ = np.arange(len(X)) % min(self.n_clusters, 2)

        def predict(self, X):
            return np.arange(len(X)) % min(self.n_clusters, 2)

    found = stability(Collapsed(), np.zeros((20, 1)), [2, 3], n_repeats=2)
    assert found.mean.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": [1, 2]}, "n_clusters: got 1; it takes integers of at least 2"),
        ({"n_clusters": [2.0]}, "n_clusters: got 2.0; it takes integers of at least 2"),
        ({"n_clusters": []}, "n_clusters: got none"),
        ({"n_clusters": [17]}, "n_clusters: got 17, more than the 16 rows of a subsample of 20"),
        ({"n_repeats": 1}, "n_repeats: got 1; it takes integers of at least 2"),
        ({"subsample": 0}, "subsample: got 0; it takes a share above 0, at most 1"),
        ({"subsample": 1.1}, "subsample: got 1.1"),
        ({"subsample": float("nan")}, "subsample: got nan"),
        ({"X": np.zeros(20)}, r"X: got shape \(20,\); it takes \(N, D\)"),
        (
            {"estimator": peers.AgglomerativeClustering(), "subsample": 0.2},
            "subsample: two subsamples share [0-2] rows, too few to compare 2 clusters",
        ),
    ],
)
def test_stability_refuses_what_makes_no_sense(options, message):
    X = np.arange(20.0).reshape(20, 1)
    arguments = {"estimator": KMeans(), "X": X, "n_clusters": [2], "random_state": 0, **options}
    with pytest.raises(ValueError, match=message):
        stability(**arguments)


@pytest.mark.parametrize("estimator", [peers.DBSCAN(), KMeans, None, "KMeans"])
def test_stability_takes_estimators_with_a_number_of_clusters(estimator):
    with pytest.raises(TypeError, match=r"estimator: got .*; it takes a clusterer with"):
        stability(estimator, np.zeros((20, 1)))
