"""How well clusters agree with known classes, and, where none are known, with one another.

Labels are names and nothing more: integers of any sign, strings, booleans, in lists, NumPy arrays
or torch tensors on any device. The two sides may use different names, and more or fewer of them.
With no samples at all the three scores are 1.0, as scikit-learn's clustering scores are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from deepclust._files import parts

# scipy and sklearn take a second to import: the functions that need them do it.

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Labels: TypeAlias = ArrayLike | torch.Tensor

__all__ = [
    "Stability",
    "adjusted_rand",
    "clustering_accuracy",
    "confusion_matrix",
    "count_labels",
    "normalized_mutual_info",
    "stability",
]


def count_labels(labels: ArrayLike, n_clusters: int) -> NDArray[np.int64]:
    """How many samples each cluster has, (K,).

    Args:
        labels: The clusters (N,), integers from 0; a memory map is read a part at a time.
        n_clusters: K.

    Example:
        >>> count_labels([0, 2, 2], n_clusters=4).tolist()
        [1, 0, 2, 0]
    """
    counts = np.zeros(n_clusters, np.int64)
    for part in parts(labels if isinstance(labels, np.memmap) else np.asarray(labels)):
        counts += np.bincount(part, minlength=n_clusters)
    return counts


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


@dataclass(frozen=True, eq=False)
class Stability:
    """What `stability` found; printed, it is a table.

    Attributes:
        n_clusters: The numbers of clusters K that were tried, (n_K,).
        scores: Agreement of each pair of fits, (n_K, n_pairs).
    """

    n_clusters: NDArray[np.int64]
    scores: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean agreement for each K, (n_K,)."""
        means: NDArray[np.float64] = self.scores.mean(1)
        return means

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of the agreement for each K, (n_K,)."""
        deviations: NDArray[np.float64] = self.scores.std(1)
        return deviations

    @property
    def best(self) -> int:
        """The largest K whose mean is within one standard deviation of the highest mean.

        Clusters that lie in groups are stable as groups too, so that of several stable K the
        largest says most (Ben-Hur, Elisseeff and Guyon, 2002); and chance alone makes small K look
        more stable (von Luxburg, "Clustering stability: an overview", 2010).
        """
        top = int(self.mean.argmax())
        return int(self.n_clusters[self.mean >= self.mean[top] - self.std[top]].max())

    def __str__(self) -> str:
        rows = [
            f"{k:4d}  {mean:6.3f}  {std:5.3f}{'  best' if k == self.best else ''}"
            for k, mean, std in zip(self.n_clusters, self.mean, self.std, strict=True)
        ]
        return "\n".join(["   K    mean    std", *rows])


def stability(
    estimator: Any,
    X: Any,
    n_clusters: Iterable[int] = range(2, 11),
    *,
    n_repeats: int = 10,
    subsample: float = 0.8,
    random_state: Any = None,
) -> Stability:
    """How alike clusterings of random parts of X are, for each number of clusters K.

        S_K = 2 / (R (R - 1)) sum_{r < s} ARI(labels_r, labels_s)

    where labels_r are those of a fit on the r-th of R subsamples (Ben-Hur, Elisseeff and Guyon, "A
    stability based method for discovering structure in clustered data", PSB 2002). With too many
    clusters it is chance that decides where a true one is cut, and with too few which are joined;
    then S_K falls. Scores of different K are comparable because ARI is corrected for chance (Lange
    et al., "Stability-based validation of clustering solutions", 2004, normalise for that), and the
    subsamples are the same for every K. Where no K scores high, the data have no clusters that this
    estimator finds.

    A fit that leaves some of its K clusters without rows agrees with nothing: its pairs score 0, or
    a method that collapses to one cluster would be the most stable of all.

    The cost is R fits a K. Deep estimators take minutes each: give them `pretrained=`, or cluster
    the codes of one autoencoder by k-means.

    Args:
        estimator: A clusterer in the manner of scikit-learn with the parameter `n_clusters`; it is
            cloned. One that can `predict` labels all rows of X after each fit. Others are compared
            on the rows that two subsamples share.
        X: Rows (N, D): an array, memory map, tensor or sparse array. Subsamples are copies.
        n_clusters: The K to try, each at least 2: with one cluster there is nothing to agree on.
        n_repeats: R, the fits for each K, at least 2.
        subsample: The share of the rows in a subsample, above 0 and at most 1. With 1 only the
            estimator's own randomness differs between fits.
        random_state: Seed or RandomState, for subsamples and fits.

    Returns:
        The scores; its `best` is a K, and printed it is a table.

    Raises:
        TypeError: If the estimator has no parameter `n_clusters`.
        ValueError: If a number is out of its range, or subsamples have, or share, too few rows.

    Examples:
        >>> from sklearn.datasets import make_blobs
        >>> from deepclust.cluster import KMeans
        >>> X, _ = make_blobs(200, centers=[[0, 0], [9, 0], [0, 9]], random_state=0)
        >>> found = stability(KMeans(), X, range(2, 5), random_state=0)
        >>> found.best
        3
    """
    from sklearn.base import clone
    from sklearn.utils import check_random_state

    parameters = _parameters(estimator)
    X = _indexable(X)
    ks = [_whole("n_clusters", k, 2) for k in n_clusters]
    if not ks:
        raise ValueError("n_clusters: got none; it takes one or more integers of at least 2")
    _whole("n_repeats", n_repeats, 2)
    if not 0 < subsample <= 1:
        raise ValueError(f"subsample: got {subsample!r}; it takes a share above 0, at most 1")
    n = X.shape[0]
    size = round(subsample * n)
    if max(ks) > size:
        raise ValueError(
            f"n_clusters: got {max(ks)}, more than the {size} rows of a subsample of {n}"
        )
    rng = check_random_state(random_state)
    # In the order of X, which reads a memory map from its start to its end.
    samples = [np.sort(rng.permutation(n)[:size]) for _ in range(n_repeats)]
    scores = []
    for k in ks:
        fits = []
        for rows in samples:
            model = clone(estimator).set_params(n_clusters=k)
            if "random_state" in parameters:
                model.set_params(random_state=int(rng.randint(2**31 - 1)))
            model.fit(_take(X, rows))
            if hasattr(model, "predict"):
                rows, labels = np.arange(n), np.asarray(model.predict(X))
            else:
                labels = np.asarray(model.labels_)
            fits.append((rows, labels, len(np.unique(labels)) == k))
        scores.append([_agreement(one, other, k) for one, other in combinations(fits, 2)])
    return Stability(np.array(ks), np.array(scores))


_Fit: TypeAlias = "tuple[NDArray[np.intp], NDArray[Any], bool]"


def _agreement(one: _Fit, other: _Fit, k: int) -> float:
    """ARI of two fits (row numbers, their labels, whether all K clusters have rows)."""
    (rows, labels, complete), (other_rows, other_labels, other_complete) = one, other
    shared, here, there = np.intersect1d(rows, other_rows, True, return_indices=True)
    if len(shared) <= k:
        raise ValueError(
            f"subsample: two subsamples share {len(shared)} rows, too few to compare {k} clusters"
            " of an estimator that cannot predict; a larger share is needed"
        )
    if not (complete and other_complete):
        return 0.0
    return adjusted_rand(labels[here], other_labels[there])


def _parameters(estimator: Any) -> dict[str, Any]:
    try:
        parameters: dict[str, Any] = estimator.get_params()
    except (AttributeError, TypeError):  # none, or that of a class
        parameters = {}
    if "n_clusters" not in parameters:
        raise TypeError(
            f"estimator: got {estimator!r}; it takes a clusterer with the parameter n_clusters"
        )
    return parameters


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: got {value!r}; it takes integers of at least {least}")
    return int(value)


def _indexable(X: Any) -> Any:
    """Data whose rows can be picked by number."""
    from scipy import sparse

    is_sparse: bool = sparse.issparse(X)
    if is_sparse:
        X = X.tocsr()
    elif not isinstance(X, (np.ndarray, torch.Tensor)):
        X = np.asarray(X)
    if X.ndim != 2:
        raise ValueError(f"X: got shape {tuple(X.shape)}; it takes (N, D)")
    return X


def _take(X: Any, rows: NDArray[np.intp]) -> Any:
    return X[torch.from_numpy(rows).to(X.device) if isinstance(X, torch.Tensor) else rows]


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
