"""How well clusters agree with known classes: accuracy, mutual information, Rand index.

Labels are names and nothing more: integers of any sign, strings, booleans, in lists, NumPy arrays
or torch tensors on any device. The two sides may use different names, and more or fewer of them.
With no samples at all the three scores are 1.0, as scikit-learn's clustering scores are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

# scipy.optimize and sklearn.metrics take a second to import: the functions that need them do it.

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Labels: TypeAlias = ArrayLike | torch.Tensor

__all__ = ["adjusted_rand", "clustering_accuracy", "confusion_matrix", "normalized_mutual_info"]


def clustering_accuracy(labels_true: Labels, labels_pred: Labels) -> float:
    """Share of samples in the right class under the best one-to-one map of clusters to classes.

        ACC = max_m 1/N sum_i 1[labels_true_i = m(labels_pred_i)]

    over the maps m that send no two clusters to one class (Xie, Girshick and Farhadi, "Unsupervised
    deep embedding for clustering analysis", ICML 2016, eq. 10). The maximum is exact: an assignment
    problem on the table of counts. Samples of a cluster left without a class count as wrong.

    Args:
        labels_true: the classes, (N,).
        labels_pred: the clusters, (N,).

    Returns:
        The accuracy, from 0 to 1.

    Raises:
        ValueError: where the lengths differ, labels are not one-dimensional, or one is missing.

    Examples:
        >>> clustering_accuracy(["cat", "cat", "dog", "dog"], [1, 1, 0, 0])
        1.0
        >>> clustering_accuracy(["cat", "cat", "dog", "dog"], [0, 1, 2, 2])
        0.75
    """
    true, pred, classes, clusters = _encode_both(labels_true, labels_pred)
    if not len(true):
        return 1.0
    table = _contingency(true, pred, len(classes), len(clusters))
    return float(table[_match(table)].sum() / len(true))


def normalized_mutual_info(labels_true: Labels, labels_pred: Labels) -> float:
    """Mutual information of classes and clusters, divided by the mean of their entropies.

        NMI = 2 I(T; P) / (H(T) + H(P))

    with I the mutual information and H the entropy of the label counts: scikit-learn's
    `normalized_mutual_info_score` with the arithmetic mean.

    Args:
        labels_true: the classes, (N,).
        labels_pred: the clusters, (N,).

    Returns:
        The score: 1 for the same partition, 0 for independent ones.

    Raises:
        ValueError: where the lengths differ, labels are not one-dimensional, or one is missing.

    Examples:
        >>> normalized_mutual_info(["cat", "cat", "dog", "dog"], [1, 1, 0, 0])
        1.0
        >>> round(normalized_mutual_info(["cat", "cat", "dog", "dog"], [0, 1, 2, 2]), 4)
        0.8
    """
    from sklearn.metrics import normalized_mutual_info_score

    true, pred, _, _ = _encode_both(labels_true, labels_pred)
    return float(normalized_mutual_info_score(true, pred, average_method="arithmetic"))


def adjusted_rand(labels_true: Labels, labels_pred: Labels) -> float:
    """Share of pairs of samples that classes and clusters agree on, corrected for chance.

        ARI = (R - E[R]) / (max R - E[R]),    R = sum_kj C(n_kj, 2)

    where n_kj counts the samples of class k in cluster j, C(n, 2) = n (n - 1) / 2, max R is the
    mean of the two partitions' own pair counts and E[R] is their product over C(N, 2) (Hubert and
    Arabie, "Comparing partitions", Journal of Classification, 1985): scikit-learn's
    `adjusted_rand_score`.

    Args:
        labels_true: the classes, (N,).
        labels_pred: the clusters, (N,).

    Returns:
        The score: 1 for the same partition, near 0 for random ones, at least -0.5.

    Raises:
        ValueError: where the lengths differ, labels are not one-dimensional, or one is missing.

    Examples:
        >>> adjusted_rand(["cat", "cat", "dog", "dog"], [1, 1, 0, 0])
        1.0
        >>> round(adjusted_rand(["cat", "cat", "dog", "dog"], [0, 1, 2, 2]), 4)
        0.5714
    """
    from sklearn.metrics import adjusted_rand_score

    true, pred, _, _ = _encode_both(labels_true, labels_pred)
    return float(adjusted_rand_score(true, pred))


def confusion_matrix(
    labels_true: Labels, labels_pred: Labels, *, matched: bool = True
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """Counts of samples by class (rows) and cluster (columns), each cluster under its class.

        M_kj = sum_i 1[labels_true_i = classes_k and labels_pred_i = clusters_j]

    Args:
        labels_true: the classes, (N,).
        labels_pred: the clusters, (N,).
        matched: order the columns by the map of `clustering_accuracy`: the clusters in the order of
            the classes that they are mapped to, then those without a class in the order of their
            labels. With as many clusters as classes or more, the map is the diagonal. False: all
            columns in the order of their labels.

    Returns:
        The matrix (n_classes, n_clusters), int64; the classes (n_classes,) in the order of its
        rows; the clusters (n_clusters,) in the order of its columns.

    Raises:
        ValueError: where the lengths differ, labels are not one-dimensional, or one is missing.

    Examples:
        >>> matrix, classes, clusters = confusion_matrix(["cat", "cat", "dog"], [7, 7, 3])
        >>> matrix
        array([[2, 0],
               [0, 1]])
        >>> classes.tolist(), clusters.tolist()
        (['cat', 'dog'], [7, 3])
    """
    true, pred, classes, clusters = _encode_both(labels_true, labels_pred)
    table = _contingency(true, pred, len(classes), len(clusters))
    if matched:
        _, columns = _match(table)
        order = np.concatenate([columns, np.setdiff1d(np.arange(len(clusters)), columns)])
        table, clusters = table[:, order], clusters[order]
    return table, classes, clusters


def _match(table: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows, ascending, and their columns, which together hold the largest sum."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table, maximize=True)
    return rows, columns


def _contingency(
    true: NDArray[np.intp], pred: NDArray[np.intp], n_classes: int, n_clusters: int
) -> NDArray[np.int64]:
    cells = np.bincount(true * n_clusters + pred, minlength=n_classes * n_clusters)
    return cells.reshape(n_classes, n_clusters).astype(np.int64, copy=False)


def _encode_both(
    labels_true: Labels, labels_pred: Labels
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any], NDArray[Any]]:
    """Codes from 0 of both sides, each (N,), and the sorted names that they stand for."""
    true, classes = _encode(labels_true, "labels_true")
    pred, clusters = _encode(labels_pred, "labels_pred")
    if len(true) != len(pred):
        raise ValueError(
            f"labels_true has {len(true)} labels, labels_pred has {len(pred)}; "
            "one of each is needed for every sample"
        )
    return true, pred, classes, clusters


def _encode(labels: Labels, name: str) -> tuple[NDArray[np.intp], NDArray[Any]]:
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu()
        # NumPy has no bfloat16.
        labels = labels.double().numpy() if labels.is_floating_point() else labels.numpy()
    try:
        values = np.asarray(labels)
    except ValueError:  # rows of different lengths
        raise ValueError(f"{name}: nested lists; one label a sample, (N,), is needed") from None
    if values.ndim != 1:
        raise ValueError(f"{name}: shape {values.shape}; one label a sample, (N,), is needed")
    if values.dtype.kind in "OUS":
        # NumPy turns [1, "a"] into two strings, and the NaN of [nan, "a"] into "nan".
        items = labels if isinstance(labels, (list, tuple)) else values.tolist()
        texts = [isinstance(item, str) for item in items]
        if any(texts) and not all(texts):
            raise ValueError(
                f"{name}: row {texts.index(False)} is {items[texts.index(False)]!r} among strings; "
                "labels are all strings or all numbers"
            )
        if not any(texts):
            values = np.asarray(items)
        if values.dtype == object and not all(texts):
            raise ValueError(f"{name}: labels are neither all strings nor all numbers")
    missing = np.flatnonzero(values != values)
    if len(missing):
        raise ValueError(f"{name}: row {missing[0]} is NaN; every sample needs a label")
    names, codes = np.unique(values, return_inverse=True)
    return codes, names
