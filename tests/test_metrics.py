from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from deepclust.metrics import (
    adjusted_rand,
    clustering_accuracy,
    confusion_matrix,
    normalized_mutual_info,
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
