"""Hard assignment: the nearest centroid of each row, and how far it is."""

from __future__ import annotations

import torch
from torch import Tensor

from deepclust.kernels import _checks, _dispatch, _operators
from deepclust.kernels._arrays import Array, on_tensors
from deepclust.kernels._blocks import full_precision
from deepclust.kernels.kmeans_update.op import label_changes, label_sums


def kmeans_assign(
    x: Array,
    centroids: Array,
    *,
    backend: str = "auto",
    precision: str = "exact",
    check: bool = True,
) -> tuple[Array, Array]:
    """The nearest centroid of each row, and the squared distance to it.

    labels_i = argmin_j ||x_i - mu_j||^2, the assignment step of Lloyd's algorithm (1982), ties to
    the lowest index. Nothing here carries a gradient: see `kmeans_loss`.

    Args:
        x: Rows (N, D): a tensor, or an array of NumPy or with DLPack, and so are the results.
        centroids: mu (K, D).
        backend: "auto", "eager", "cpp" or "triton".
        precision: "exact", or "fast" to permit reduced-precision products where a backend has them.
        check: Refuse NaN and Inf (on CPU).

    Returns:
        labels (N,) int64 and sq_dist (N,) in x's type (float32 for half types).

    Raises:
        ValueError: If shapes or devices do not fit, or a row has NaN or Inf.
        TypeError: If types do not fit.
        RuntimeError: If the backend that was asked for cannot run here.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> F.kmeans_assign(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [2.0]]))
        (tensor([0, 0, 1]), tensor([0., 1., 9.]))
    """
    found: tuple[Array, Array] = on_tensors(_kmeans_assign, x, centroids, backend, precision, check)
    return found


def _kmeans_assign(
    x: Tensor, centroids: Tensor, backend: str, precision: str, check: bool
) -> tuple[Tensor, Tensor]:
    _dispatch.check_options(backend, precision)
    _checks.check_clusters("centroids", centroids)
    _checks.check_matrix("x", x, centroids.shape[1])
    _checks.check_together(x=x, centroids=centroids)
    args = (x, centroids, backend, precision, check)
    if _operators.wanted():
        compiled: tuple[Tensor, Tensor] = _operators.run("kmeans_assign", *args)
        return compiled
    return _forward(*args)


@torch.no_grad()
def _forward(
    x: Tensor, centroids: Tensor, backend: str, precision: str, check: bool
) -> tuple[Tensor, Tensor]:
    kernel = _dispatch.kernel("kmeans_assign", backend, x.device)
    centroids = centroids.to(_checks.compute_dtype(x.dtype))
    with full_precision(x):
        labels, sq_dist = kernel.forward(x, centroids, precision, _checks.wants_check(check, x))
    return labels, sq_dist


@torch.no_grad()
def fill_nearest(
    x: Tensor, centroids: Tensor, labels: Tensor, sq_dist: Tensor | None, backend: str
) -> None:
    """`kmeans_assign`, unchecked, into labels (N,) int64 and, unless it is None, sq_dist (N,)."""
    kernel = _dispatch.kernel("kmeans_assign", backend, x.device)
    if hasattr(kernel, "fill"):
        kernel.fill(x, centroids.to(_checks.compute_dtype(x.dtype)), "exact", labels, sq_dist)
        return
    labels[:], found = _forward(x, centroids, backend, "exact", False)
    if sq_dist is not None:
        sq_dist[:] = found


@torch.no_grad()
def assign_and_update(
    x: Tensor,
    centroids: Tensor,
    sample_weight: Tensor | None,
    labels: Tensor,
    sq_dist: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """One iteration of Lloyd's algorithm, unchecked: `kmeans_assign`, and `kmeans_update` of that.

    One pass over x instead of two where a backend has it. labels (N,) int64 and sq_dist (N,) are
    written to: memory that is new in each iteration costs as much as small clusters do. Sums (K, D)
    and counts (K,) are in float64, so that those of several blocks add up as those of one.
    """
    kernel = _dispatch.kernel("kmeans_assign", backend, x.device)
    if hasattr(kernel, "forward_and_update"):
        centroids = centroids.to(_checks.compute_dtype(x.dtype))
        fused: tuple[Tensor, Tensor] = kernel.forward_and_update(
            x, centroids, sample_weight, "exact", labels, sq_dist
        )
        return fused
    fill_nearest(x, centroids, labels, sq_dist, backend)
    return label_sums(x, labels, len(centroids), sample_weight, backend)


@torch.no_grad()
def assign_and_change(
    x: Tensor,
    centroids: Tensor,
    labels: Tensor,
    sq_dist: Tensor | None,
    before: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The same, without weights, of a later iteration: what sums (K, D) and counts (K,) gain.

    Only rows whose label is another than before (N,) are added up; if that is None, all. sq_dist
    (N,) is left out if it is None.
    """
    kernel = _dispatch.kernel("kmeans_assign", backend, x.device)
    if hasattr(kernel, "forward_and_changes"):
        fused: tuple[Tensor, Tensor] = kernel.forward_and_changes(
            x, centroids, labels, sq_dist, before
        )
        return fused
    fill_nearest(x, centroids, labels, sq_dist, backend)
    if before is None:
        return label_sums(x, labels, len(centroids), None, backend)
    return label_changes(x, labels, before, len(centroids), backend)


class Rounded:
    """Rows kept as 16-bit integers, in half the memory of float32, for many passes over them.

    Which centroid is the nearest is `kmeans_assign`'s answer: integers leave of most rows one in
    question, and the rows themselves decide the others. The pass that rounds them is the first
    iteration of Lloyd's algorithm, too.

    Args:
        x: Rows (N, D).
        centroids: (K, D), in x's type.
        labels: Room (N,) int64 for the nearest of these centroids.

    Attributes:
        sums: (K, D) and
        counts: (K,), of the rows of each label, in float64.
        scatter: sum_i ||x_i - m||^2, m the mean of all rows; not finite where x is not.
        worth: Whether integers settled most rows of the last call.
    """

    MOST_BYTES = 4 << 30

    def __init__(self, x: Tensor, centroids: Tensor, labels: Tensor, backend: str) -> None:
        self._kernel = _dispatch.kernel("kmeans_assign", backend, x.device)
        self._x = x
        found = self._kernel.round_and_update(x, centroids, labels)
        self._rounded, n_open, self.scatter, self.sums, self.counts = found
        self._judge(n_open)

    @staticmethod
    def runs(x: Tensor, backend: str) -> bool:
        """Whether this backend has it, and there is room."""
        kernel = _dispatch.kernel("kmeans_assign", backend, x.device)
        return hasattr(kernel, "round_and_update") and 2 * x.numel() <= Rounded.MOST_BYTES

    def nearest(self, centroids: Tensor, labels: Tensor, sq_dist: Tensor | None) -> None:
        """Fill labels (N,) and, unless it is None, sq_dist (N,), for centroids (K, D)."""
        self._judge(self._kernel.nearest(self._rounded, self._x, centroids, labels, sq_dist))

    def assign_and_change(
        self, centroids: Tensor, labels: Tensor, sq_dist: Tensor | None, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What `assign_and_change` does."""
        n_open, sums, counts = self._kernel.nearest_and_changes(
            self._rounded, self._x, centroids, labels, sq_dist, before
        )
        self._judge(n_open)
        return sums, counts

    def _judge(self, n_open: int) -> None:
        self.worth = n_open <= len(self._x) // 4


def kmeans_batch(
    x: Tensor,
    rows: Tensor | None,
    sample_weight: Tensor | None,
    centroids: Tensor,
    counts: Tensor,
    backend: str,
) -> tuple[float, Tensor, Tensor] | None:
    """A step of mini-batch k-means in one call, unchecked, where a backend has it; else None.

    mu_j becomes the mean of the rows that it was given so far, counts_j by weight, and of those of
    the batch that it is nearest to (Sculley, 2010); where these are none, it stays. Rows that are
    picked by number are not copied first, as all of a batch.

    Args:
        x: Any rows (M, D), in centroids' type.
        rows: Numbers (N,) int64 of those in the batch, below M; None is all of x.
        sample_weight: Weights (N,) in the same type, contiguous; None is all 1.
        centroids: mu (K, D).
        counts: (K,) in float64.
        backend: "auto", "eager", "cpp" or "triton".

    Returns:
        The weighted sum of the batch's squared distances before the step; centroids and counts
        after it, in new memory.
    """
    kernel = _dispatch.kernel("kmeans_assign", backend, x.device)
    if not hasattr(kernel, "batch"):
        return None
    found: tuple[float, Tensor, Tensor] = kernel.batch(x, rows, sample_weight, centroids, counts)
    return found


class Following:
    """The nearest centroids of rows, followed from step to step while the centroids move.

    The labels are those of `kmeans_assign`, of which bounds by the triangle inequality spare most
    (Hamerly, 2010; Ding et al., 2015, "Yinyang k-means"): a row that is far nearer to its centroid
    than to any other, measured by how far they moved, is not read.

    Args:
        x: Rows (N, D), finite.
        centroids: (K, D), in x's type.
        labels: (N,), of any centroids: better guesses cost less. They are written to.

    Attributes:
        labels: (N,), those of the last centroids.
    """

    def __init__(self, x: Tensor, centroids: Tensor, labels: Tensor, backend: str) -> None:
        self._kernel = _dispatch.kernel("kmeans_assign", backend, x.device)
        self._x, self._centroids, self.labels = x, centroids, labels
        n_bounds = self._kernel.n_bounds(x.shape[1], len(centroids), x.dtype)
        self._upper = x.new_full((len(x),), torch.inf)
        self._lower = x.new_zeros(len(x), n_bounds)
        self._step(centroids, None)

    @staticmethod
    def runs(x: Tensor, backend: str) -> bool:
        """Whether this backend has it for these rows, and it pays."""
        kernel = _dispatch.kernel("kmeans_assign", backend, x.device)
        return hasattr(kernel, "step") and x.shape[1] > 16  # else a row costs as little as a bound

    def to(self, centroids: Tensor) -> None:
        """Go on to other centroids (K, D)."""
        self._step(centroids, None)

    def sq_dist(self) -> Tensor:
        """Squared distances (N,) to the labels' centroids."""
        sq_dist = torch.empty_like(self._upper)
        self._step(self._centroids, sq_dist)
        return sq_dist

    @torch.no_grad()
    def _step(self, centroids: Tensor, sq_dist: Tensor | None) -> None:
        difference = centroids.double() - self._centroids.double()
        # Rounded up, by more than the sum and the conversion may have lost.
        error = (difference.shape[1] + 4) * torch.finfo(self._x.dtype).eps
        moved = (difference.square().sum(1).sqrt() * (1 + error)).to(self._x.dtype)
        self._kernel.step(self._x, centroids, moved, self.labels, self._upper, self._lower, sq_dist)
        self._centroids = centroids


_operators.define(
    "kmeans_assign(Tensor x, Tensor centroids, str backend, str precision, bool check)"
    " -> (Tensor, Tensor)",
    _forward,
    fake=lambda x, centroids, backend, precision, check: (
        x.new_empty(x.shape[0], dtype=torch.int64),
        x.new_empty(x.shape[0], dtype=_checks.compute_dtype(x.dtype)),
    ),
)
