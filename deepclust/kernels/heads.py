"""The three heads: a score s_ij for each pair of an embedding and a cluster; q = softmax_j(s).

Everything about a head is here in plain torch: its scores, and the gradient of any function of
them. The compiled backends follow the same formulas, with the same letters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree

from deepclust.kernels import _checks
from deepclust.kernels._checks import check_clusters, check_matrix, check_together, check_vector


class Head(ABC):
    """A score for each pair of an embedding and a cluster.

    Attributes:
        params: The head's tensors; the first is (K, D).
        form: The head without its tensors, as a string that operators can take.
    """

    kind: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    params: tuple[Tensor, ...]

    @property
    def form(self) -> str:
        """The kind of head and its constants."""
        return self.kind

    @property
    def n_clusters(self) -> int:
        """K."""
        return self.params[0].shape[0]

    @property
    def n_features(self) -> int:
        """D."""
        return self.params[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the head's tensors."""
        return self.params[0].dtype

    @abstractmethod
    def scores(self, z: Tensor) -> Tensor:
        """Scores s (N, K) of embeddings z (N, D), differentiable by torch to any order."""

    @abstractmethod
    def pullback(self, z: Tensor, ds: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Gradients to z (N, D) and to `params`, given the gradient ds (N, K) to the scores."""

    @abstractmethod
    def gradients(
        self, total: Tensor, first: Tensor, second: Tensor | None, origin: Tensor | None
    ) -> list[Tensor]:
        """Gradients to `params` from sums over the points of w, the gradient to their products.

        Args:
            total: colsum(w) (K,).
            first: w^T x (K, D), x being the points less the origin.
            second: w^T x^2 (K, D), where the head has squares.
            origin: What the points were moved by (D,).
        """

    def with_params(self, params: Sequence[Tensor]) -> Head:
        """The same head on other tensors."""
        return head_of(self.form, params)

    def to(self, dtype: torch.dtype) -> Head:
        """The same head in another type."""
        if all(param.dtype == dtype for param in self.params):
            return self
        return self.with_params([param.to(dtype) for param in self.params])

    def frozen(self) -> Head:
        """A copy that does not follow later changes and carries no gradient."""
        return self.with_params([param.detach().clone() for param in self.params])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_clusters={self.n_clusters}, n_features={self.n_features})"


class StudentT(Head):
    """Student-t similarity to K centroids, the soft assignment of DEC.

    s_ij = -(nu + 1)/2 log(1 + ||z_i - mu_j||^2 / nu), so that q = softmax_j(s) is eq. 1 of
    "Unsupervised Deep Embedding for Clustering Analysis" (Xie et al., 2016).

    Args:
        centroids: mu (K, D).
        nu: Degrees of freedom, above 0.

    Raises:
        ValueError: If centroids is not (K, D) or nu is not above 0.
        TypeError: If centroids is not a floating-point tensor.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> F.StudentT(torch.zeros(10, 2)).n_clusters
        10
    """

    kind = "student_t"
    names = ("centroids",)

    def __init__(self, centroids: Tensor, nu: float = 1.0) -> None:
        check_clusters("centroids", centroids)
        if not (isinstance(nu, (int, float)) and 0 < nu < math.inf):
            raise ValueError(f"nu: got {nu!r}; it takes a finite number above 0")
        self.params = (centroids,)
        self.nu = float(nu)

    @property
    def centroids(self) -> Tensor:
        """mu (K, D)."""
        return self.params[0]

    @property
    def form(self) -> str:
        """The kind of head and its constants."""
        return f"student_t:{self.nu!r}"

    def scores(self, z: Tensor) -> Tensor:
        """Scores s (N, K)."""
        return (self.nu + 1) / -2 * torch.log1p(squared_distances(z, self.centroids) / self.nu)

    def pullback(self, z: Tensor, ds: Tensor) -> tuple[Tensor, list[Tensor]]:
        """With w = -(nu+1) ds / (nu + d2): dz = rowsum(w) z - w mu, dmu = colsum(w) mu - w^T z."""
        origin = origin_of(self.centroids)
        z, mu = z - origin, self.centroids - origin
        w = -(self.nu + 1) * ds / (self.nu + squared_distances(z, mu))
        dz = w.sum(1, keepdim=True) * z - w @ mu
        return dz, self.gradients(w.sum(0), w.T @ z, None, origin)

    def gradients(
        self, total: Tensor, first: Tensor, second: Tensor | None, origin: Tensor | None
    ) -> list[Tensor]:
        """Dmu = colsum(w) mu - w^T z, both less the origin."""
        assert origin is not None
        return [total.unsqueeze(1) * (self.centroids - origin) - first]


class Linear(Head):
    """Scores linear in the embedding, the soft-max layer of DEPICT.

    s_ij = z_i . theta_j + b_j, eq. 1 of "Deep Clustering via Joint Convolutional Autoencoder
    Embedding and Relative Entropy Minimization" (Dizaji et al., 2017), with a bias.

    Args:
        weight: theta (K, D).
        bias: b (K,), or None.

    Raises:
        ValueError: If weight is not (K, D) or bias not (K,).
        TypeError: If one is not a floating-point tensor, or their types differ.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> F.assign(torch.zeros(1, 2), F.Linear(torch.eye(2)))
        tensor([[0.5000, 0.5000]])
    """

    kind = "linear"
    names = ("weight", "bias")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        check_clusters("weight", weight)
        if bias is not None:
            check_vector("bias", bias, weight.shape[0])
            check_together(weight=weight, bias=bias)
        self.params = (weight,) if bias is None else (weight, bias)

    @property
    def weight(self) -> Tensor:
        """theta (K, D)."""
        return self.params[0]

    @property
    def bias(self) -> Tensor | None:
        """b (K,), or None."""
        return self.params[1] if len(self.params) > 1 else None

    def biased(self, terms: Tensor) -> Linear:
        """The head whose scores have these terms (K,) more."""
        return Linear(self.weight, terms if self.bias is None else self.bias + terms)

    def scores(self, z: Tensor) -> Tensor:
        """Scores s (N, K)."""
        return torch.nn.functional.linear(z, self.weight, self.bias)

    def pullback(self, z: Tensor, ds: Tensor) -> tuple[Tensor, list[Tensor]]:
        """dz = ds theta, dtheta = ds^T z, db = colsum(ds)."""
        return ds @ self.weight, self.gradients(ds.sum(0), ds.T @ z, None, None)

    def gradients(
        self, total: Tensor, first: Tensor, second: Tensor | None, origin: Tensor | None
    ) -> list[Tensor]:
        """Dtheta = w^T z, db = colsum(w)."""
        return [first] if self.bias is None else [first, total]


class Gaussian(Head):
    """Log density under a mixture of K axis-parallel Gaussians, as in VaDE.

    s_ij = log pi_j + sum_d log N(z_id; mu_jd, v_jd), so that q = softmax_j(s) is p(c | z), eq. 16
    of "Variational Deep Embedding" (Jiang et al., 2017).

    Args:
        means: mu (K, D).
        log_var: log v (K, D), natural logarithms of the variances.
        log_weights: log pi (K,), natural logarithms of the mixture weights.

    Raises:
        ValueError: If a shape does not fit.
        TypeError: If one is not a floating-point tensor, or their types differ.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> zero, log_weights = torch.zeros(2, 1), torch.tensor([0.25, 0.75]).log()
        >>> head = F.Gaussian(zero, zero, log_weights)
        >>> F.assign(torch.zeros(1, 1), head)
        tensor([[0.2500, 0.7500]])
    """

    kind = "gaussian"
    names = ("means", "log_var", "log_weights")

    def __init__(self, means: Tensor, log_var: Tensor, log_weights: Tensor) -> None:
        check_clusters("means", means)
        check_matrix("log_var", log_var, means.shape[1])
        if log_var.shape[0] != means.shape[0]:
            raise ValueError(
                f"log_var: got shape {tuple(log_var.shape)}; means has {tuple(means.shape)}"
            )
        check_vector("log_weights", log_weights, means.shape[0])
        check_together(means=means, log_var=log_var, log_weights=log_weights)
        self.params = (means, log_var, log_weights)

    @property
    def means(self) -> Tensor:
        """mu (K, D)."""
        return self.params[0]

    @property
    def log_var(self) -> Tensor:
        """log v (K, D)."""
        return self.params[1]

    @property
    def log_weights(self) -> Tensor:
        """log pi (K,)."""
        return self.params[2]

    def biased(self, terms: Tensor) -> Gaussian:
        """The head whose scores have these terms (K,) more."""
        return Gaussian(self.means, self.log_var, self.log_weights + terms)

    def scores(self, z: Tensor) -> Tensor:
        """Scores s (N, K)."""
        origin = origin_of(self.means)
        z, mu = z - origin, self.means - origin
        precision = torch.exp(-self.log_var)
        # sum_d (z - mu)^2 / v in two products, so that no (N, K, D) array appears.
        mahalanobis = z**2 @ precision.T - 2 * z @ (mu * precision).T + (mu**2 * precision).sum(1)
        return self.log_weights - self.log_normalisers() - mahalanobis.clamp_min(0) / 2

    def log_normalisers(self) -> Tensor:
        """1/2 sum_d log(2 pi v_jd) (K,)."""
        return (self.log_var.sum(1) + self.n_features * math.log(2 * math.pi)) / 2

    def pullback(self, z: Tensor, ds: Tensor) -> tuple[Tensor, list[Tensor]]:
        """With ds/dz = -(z - mu)/v, ds/dmu = (z - mu)/v and ds/dlog v = ((z - mu)^2/v - 1)/2."""
        origin = origin_of(self.means)
        z, mu = z - origin, self.means - origin
        precision = torch.exp(-self.log_var)
        dz = ds @ (mu * precision) - (ds @ precision) * z
        return dz, self.gradients(ds.sum(0), ds.T @ z, ds.T @ z**2, origin)

    def gradients(
        self, total: Tensor, first: Tensor, second: Tensor | None, origin: Tensor | None
    ) -> list[Tensor]:
        """Dmu = (w^T z - colsum(w) mu)/v, dlog v = (w^T (z - mu)^2/v - colsum(w))/2."""
        assert second is not None
        assert origin is not None
        mu, precision = self.means - origin, torch.exp(-self.log_var)
        dmu = precision * (first - total.unsqueeze(1) * mu)
        spread = second - 2 * mu * first + total.unsqueeze(1) * mu**2
        dlog_var = (precision * spread - total.unsqueeze(1)) / 2
        return [dmu, dlog_var, total]


def squared_distances(z: Tensor, centroids: Tensor) -> Tensor:
    """||z_i - mu_j||^2 (N, K), from one matrix product around the middle of the centroids."""
    origin = origin_of(centroids)
    z, mu = z - origin, centroids - origin
    product = torch.addmm((mu**2).sum(1), z, mu.T, alpha=-2)
    return ((z**2).sum(1, keepdim=True) + product).clamp_min(0)


def origin_of(centroids: Tensor) -> Tensor:
    """Where distances are computed around (D,): the coordinates' median over the centroids.

    The expanded square loses the digits that z and mu share, so both move here first. A mean would
    do as well but for one far centroid, which would take it, and everybody's digits, along. The
    distances do not depend on it, hence no gradient through it.
    """
    return centroids.detach().median(0).values


def as_head(head: Head | Tensor) -> Head:
    """A head as it is; a bare tensor of centroids becomes StudentT with nu = 1."""
    if isinstance(head, Head):
        return head
    if isinstance(head, Tensor):
        return StudentT(head)
    raise _checks.no_tensor("head", head, "StudentT, Linear, Gaussian or a tensor of centroids")


def head_of(form: str, params: Sequence[Tensor]) -> Head:
    """The inverse of (head.form, head.params), without checks: operators and pytrees call it."""
    kind, _, nu = form.partition(":")
    cls = _KINDS[kind]
    head: Head = cls.__new__(cls)
    head.params = tuple(params)
    if isinstance(head, StudentT):
        head.nu = float(nu)
    return head


def check_inputs(z: Tensor, head: Head) -> None:
    """Require embeddings z (N, D) that fit the head's width, type and device."""
    check_matrix("z", z, head.n_features)
    check_together(z=z, **dict(zip(head.names, head.params, strict=False)))


def check_values(z: Tensor, head: Head) -> None:
    """Require finite embeddings and parameters."""
    _checks.check_finite("z", z)
    for name, param in zip(head.names, head.params, strict=False):
        _checks.check_finite(name, param)


def _flatten(head: Head) -> tuple[list[Any], str]:
    return list(head.params), head.form


def _flatten_with_keys(head: Head) -> tuple[list[tuple[Any, Any]], str]:
    keys = map(_pytree.GetAttrKey, head.names)
    return list(zip(keys, head.params, strict=False)), head.form


def _unflatten(params: Any, form: str) -> Head:
    return head_of(form, params)


_KINDS: dict[str, type[Head]] = {cls.kind: cls for cls in (StudentT, Linear, Gaussian)}
for _cls in _KINDS.values():
    _pytree.register_pytree_node(
        _cls,
        _flatten,
        _unflatten,
        serialized_type_name=f"deepclust.functional.{_cls.__name__}",
        flatten_with_keys_fn=_flatten_with_keys,
    )
