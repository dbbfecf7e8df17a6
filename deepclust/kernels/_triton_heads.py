"""The heads in Triton, one tile of points by clusters at a time: points to keys, scores, gradients.

A key is what the products give, from which the score s_ij follows:

    rational   StudentT, nu = 1   u = 1 + ||z_i - mu_j||^2   s = -log u, and q = (1/u) / sum_l (1/u)
    student_t  StudentT           d2 = ||z_i - mu_j||^2      s = -(nu + 1)/2 log1p(d2 / nu)
    linear                        s = z_i . theta_j + b_j
    gaussian                      s = log pi_j + log N(z_i; mu_j, v_j)

Two schedules, chosen by the shape:

    DIRECT (D <= 32)   d2 = sum_e (z_ie - mu_je)^2, a column of D at a time, all of it in registers
    products           d2 = ||x_i||^2 + ||m_j||^2 - 2 x_i . m_j, with x = z - c and m = mu - c, on
                       the matrix units, BLOCK_D columns at a time; the Linear head at any D

c, the origin, is the median of some centroids: the digits that the points and the centroids share
are taken off before any product, and one far centroid cannot take everybody's along.

Products and sums are in float32, or float64 where the head is. Clusters past K have the key that
takes no part: infinite for a distance, minus infinity for a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepclust.kernels import _tiles
from deepclust.kernels._launch import cdiv, parts_of
from deepclust.kernels._tiles import Chip, Tiles
from deepclust.kernels.heads import Gaussian, Head, Linear, StudentT

LARGEST = tl.constexpr(2.0**124)  # of keys of distances: the inverse is still a normal number


class PackedHead:
    """A head as the kernels take it.

    Attributes:
        args: Tensors a (K, D), b (K, D), offset (K,) and origin (D,); None for what is not.
        form: FORM of the kernels, and nu their NU.
        moments: How many matrices (K, D) of sums the parameters' gradients take.
        direct: DIRECT of the kernels.

    In products, a and b multiply x and x^2; in direct differences, a is mu and b the precision.
    """

    def __init__(self, head: Head) -> None:
        self.head = head
        self.k, self.d = head.n_clusters, head.n_features
        self.moments = 2 if isinstance(head, Gaussian) else 1
        self.direct = self.d <= _tiles.DIRECT_WIDTH and not isinstance(head, Linear)
        first = head.params[0].contiguous()
        self.origin: Tensor | None = None
        self.nu, b, offset = 1.0, None, None
        if isinstance(head, StudentT):
            self.origin = origin = origin_of(first)
            self.nu = head.nu
            self.form = "rational" if head.nu == 1 else "student_t"
            a = first if self.direct else first - origin
            if not self.direct:
                offset = (a**2).sum(1)
        elif isinstance(head, Linear):
            self.form, a = "linear", first
            offset = None if head.bias is None else head.bias.contiguous()
        else:
            assert isinstance(head, Gaussian)
            self.origin = origin = origin_of(first)
            self.form = "gaussian"
            constants = head.log_weights - head.log_normalisers()
            precision = torch.exp(-head.log_var)
            if self.direct:
                a, b, offset = first, precision.contiguous(), constants.contiguous()
            else:
                mu = first - origin
                a, b = (mu * precision).contiguous(), (precision / -2).contiguous()
                offset = constants - (mu * a).sum(1) / 2
        self.args = (a, b, offset, self.origin)

    def tiles(self, chip: Chip) -> Tiles:
        """The tiles for what takes keys alone."""
        return self._tiles("columns" if self.direct else "product", chip)

    def gradient_tiles(self, chip: Chip) -> tuple[Tiles, bool]:
        """The tiles for what pulls back, and whether one of them holds all clusters and columns."""
        tiles = self._tiles("fused", chip)
        # 1024 sums are what the registers of four warps hold beside the rest.
        if self.k <= tiles.k and self.d <= tiles.d and self.moments * tiles.k * tiles.d <= 1024:
            return tiles, True
        return self._tiles("gradient", chip), False

    def _tiles(self, kind: str, chip: Chip) -> Tiles:
        return _tiles.tiles_for(kind, chip, self.d, self.k, self.head.dtype.itemsize)

    def constants(self, tiles: Tiles, chip: Chip, precision: str) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {
            "FORM": self.form,
            "NU": self.nu,
            "DIRECT": self.direct,
            "PRECISION": _tiles.precision_for(precision, chip, self.head.dtype),
            "BLOCK_N": tiles.n,
            "BLOCK_K": tiles.k,
            "BLOCK_D": tiles.d,
        }


class Sums:
    """What the points' w adds up to for each cluster: partial sums of each part of the rows.

    Attributes:
        parts: How many there are.
        args: The kernels' totals_ptr and sums_ptr, (parts, K) and (parts, 1 or 2, K, D).
    """

    def __init__(self, packed: PackedHead, n: int, tiles: Tiles, device: torch.device) -> None:
        k, d, moments, dtype = packed.k, packed.d, packed.moments, packed.head.dtype
        self.parts = parts_of(n, tiles.n, moments * k * d * dtype.itemsize)
        self.args = (
            torch.empty(self.parts, k, dtype=dtype, device=device),
            # Where D is split, programs add to it.
            torch.zeros(self.parts, moments, k, d, dtype=dtype, device=device),
        )

    def reduced(self) -> tuple[Tensor, Tensor]:
        """colsum(w) (K,) and the moments (1 or 2, K, D), the parts added in order, in float64."""
        totals, sums = self.args
        return totals.sum(0, dtype=torch.float64), sums.sum(0, dtype=torch.float64)


def parameter_gradients(
    packed: PackedHead, reduced: Sequence[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """The gradients to the head's parameters, of the sums of each segment of the rows."""
    head = packed.head
    if not reduced:
        return [torch.zeros_like(param) for param in head.params]
    total, moments = (sum(sums).to(head.dtype) for sums in zip(*reduced, strict=True))
    first, *second = moments
    return head.gradients(total, first, second[0] if second else None, packed.origin)


def origin_of(centroids: Tensor) -> Tensor:
    """The coordinates' median (D,) over up to 31 of the centroids, evenly spaced."""
    some = centroids[:: cdiv(centroids.shape[0], 31)]
    # sort, not median: torch's has no deterministic form on CUDA.
    # Its own memory: Triton compiles once more for rows that start where others do not.
    return some.sort(0).values[(len(some) - 1) // 2].clone()


# --- points and weights ------------------------------------------------------------------------


@triton.jit
def load_tile(ptr, stride_n, stride_m, offs_n, offs_m, n, m, dtype: tl.constexpr):
    """A tile of an (n, m) matrix of any strides, in `dtype`; 0 past its ends."""
    return tl.load(
        ptr + offs_n[:, None] * stride_n + offs_m[None, :].to(tl.int64) * stride_m,
        mask=(offs_n < n)[:, None] & (offs_m < m)[None, :],
        other=0.0,
    ).to(dtype)


@triton.jit
def load_points(z_ptr, stride_zn, stride_zd, origin_ptr, offs_n, offs_d, n, d, dtype: tl.constexpr):
    """x = z - c (BLOCK_N, BLOCK_D), 0 past D."""
    x = load_tile(z_ptr, stride_zn, stride_zd, offs_n, offs_d, n, d, dtype)
    if origin_ptr is not None:
        x -= tl.load(origin_ptr + offs_d, mask=offs_d < d, other=0.0)[None, :]
    return x


@triton.jit
def load_matrix(ptr, offs_k, offs_d, k, d):
    """(BLOCK_K, BLOCK_D) of a contiguous (K, D), 0 past the ends."""
    mask = (offs_k < k)[:, None] & (offs_d < d)[None, :]
    return tl.load(ptr + offs_k[:, None].to(tl.int64) * d + offs_d[None, :], mask=mask, other=0.0)


@triton.jit
def load_weights(
    a_ptr, b_ptr, origin_ptr, offs_k, offs_d, k, d, FORM: tl.constexpr, DIRECT: tl.constexpr
):
    """What multiplies x (and, for the Gaussian, x^2): a and b (BLOCK_K, BLOCK_D)."""
    a = load_matrix(a_ptr, offs_k, offs_d, k, d)
    b = a
    if FORM == "gaussian":
        b = load_matrix(b_ptr, offs_k, offs_d, k, d)
    if DIRECT:
        a -= tl.load(origin_ptr + offs_d, mask=offs_d < d, other=0.0)[None, :]
        if FORM == "gaussian":
            a *= b
            b *= -0.5
    return a, b


# --- keys and scores ---------------------------------------------------------------------------


@triton.jit
def differences(z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, acc, offs_n, offs_k, n, k, d):
    """sum_e (z_ie - a_je)^2, each term times b_je where there is one (BLOCK_N, BLOCK_K)."""
    z_ptrs = z_ptr + offs_n * stride_zn
    offs_a = offs_k.to(tl.int64) * d
    for e in range(d):
        z = tl.load(z_ptrs, mask=offs_n < n, other=0.0).to(acc.dtype)
        z_ptrs += stride_zd  # as a product with e it may pass 2^31
        a = tl.load(a_ptr + offs_a + e, mask=offs_k < k, other=0.0)
        difference = z[:, None] - a[None, :]
        if b_ptr is not None:
            b = tl.load(b_ptr + offs_a + e, mask=offs_k < k, other=0.0)
            acc += b[None, :] * difference * difference
        else:
            acc += difference * difference
    return acc


@triton.jit
def load_keys(
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    offs_n, offs_k, n, k, d,
    FORM: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The keys (BLOCK_N, BLOCK_K) of a tile."""
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    mask_k = offs_k < k
    product = tl.zeros((BLOCK_N, BLOCK_K), dtype)
    sq_norm = tl.zeros((BLOCK_N,), dtype)
    if DIRECT:
        product = differences(
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, product, offs_n, offs_k, n, k, d
        )
    else:
        for first in range(0, d, BLOCK_D):
            offs_d = first + tl.arange(0, BLOCK_D)
            x = load_points(z_ptr, stride_zn, stride_zd, origin_ptr, offs_n, offs_d, n, d, dtype)
            a = load_matrix(a_ptr, offs_k, offs_d, k, d)
            product = tl.dot(x, tl.trans(a), product, input_precision=PRECISION, out_dtype=dtype)
            if FORM == "gaussian":
                b = load_matrix(b_ptr, offs_k, offs_d, k, d)
                product = tl.dot(
                    x * x, tl.trans(b), product, input_precision=PRECISION, out_dtype=dtype
                )
            elif FORM != "linear":
                sq_norm += tl.sum(x * x, 1)
    offset = tl.zeros((BLOCK_K,), dtype)
    if offset_ptr is not None:
        offset = tl.load(offset_ptr + offs_k, mask=mask_k, other=0.0)
    if FORM == "linear" or FORM == "gaussian":
        if DIRECT:
            product *= -0.5
        return tl.where(mask_k[None, :], product + offset[None, :], -float("inf"))
    if not DIRECT:
        product = tl.maximum(sq_norm[:, None] + offset[None, :] - 2 * product, 0.0)
    if FORM == "rational":
        product += 1
    return tl.where(mask_k[None, :], tl.minimum(product, LARGEST), float("inf"))


@triton.jit
def log1p(x):
    """log(1 + x) to the last digits of a small x too."""
    y = 1 + x
    # What 1 + x lost of x comes back as the first term of its series.
    return tl.where(y < 2, tl.log(y) + (x - (y - 1)) / y, tl.log(y))


@triton.jit
def score(key, NU: tl.constexpr, FORM: tl.constexpr):
    """s_ij of a key; minus infinity past K."""
    if FORM == "rational":
        return -tl.log(key)
    if FORM == "student_t":
        return (-0.5 * (NU + 1)) * log1p(key / NU)
    return key


# --- softmax over tiles ------------------------------------------------------------------------


@triton.jit
def fold(top, total, s):
    """One more tile of scores into the running maximum of each row and its sum of exp(s - top)."""
    new_top = tl.maximum(top, tl.max(s, 1))
    total = total * tl.exp(top - new_top) + tl.sum(tl.exp(s - new_top[:, None]), 1)
    return new_top, total


@triton.jit
def fold_keys(top, total, key, NU: tl.constexpr, FORM: tl.constexpr):
    """`fold` of the keys' scores; weights 1/u need no maximum to stay in range."""
    if FORM == "rational":
        return top, total + tl.sum(1 / key, 1)
    return fold(top, total, score(key, NU, FORM))


@triton.jit
def normaliser(top, total, FORM: tl.constexpr):
    """Of each row, what makes q of its keys: lse(s), or 1 / sum_j 1/u."""
    if FORM == "rational":
        return 1 / total
    return top + tl.log(total)


@triton.jit
def soft_assignment(norm, key, NU: tl.constexpr, FORM: tl.constexpr):
    """q_ij (BLOCK_N, BLOCK_K)."""
    if FORM == "rational":
        return norm[:, None] * (1 / key)  # the inverse that is in `fold_keys` already
    return tl.exp(score(key, NU, FORM) - norm[:, None])


@triton.jit
def log_sum_exp(norm, FORM: tl.constexpr):
    """lse_i = log sum_j exp(s_ij)."""
    if FORM == "rational":
        return -tl.log(norm)
    return norm


@triton.jit
def start_fold(BLOCK_N: tl.constexpr, dtype: tl.constexpr):
    """The running maximum and sum of no scores."""
    return tl.full((BLOCK_N,), -float("inf"), dtype), tl.zeros((BLOCK_N,), dtype)


# --- the best cluster --------------------------------------------------------------------------


@triton.jit
def fold_best(best, label, key, offs_k, FORM: tl.constexpr):
    """One more tile into the best key of each row and its cluster, ties to the lowest index."""
    # Distances are best when small. argmin and argmax give the lowest index of equals.
    if FORM == "linear" or FORM == "gaussian":
        tile_best, at = tl.max(key, 1, return_indices=True, return_indices_tie_break_left=True)
        wins = tile_best > best
    else:
        tile_best, at = tl.min(key, 1, return_indices=True, return_indices_tie_break_left=True)
        wins = tile_best < best
    first = tl.min(offs_k, 0)
    return tl.where(wins, tile_best, best), tl.where(wins, first + at, label)


@triton.jit
def start_best(BLOCK_N: tl.constexpr, dtype: tl.constexpr, FORM: tl.constexpr):
    """The best of no keys, and cluster 0: NaN never wins."""
    worst: tl.constexpr = -float("inf") if FORM == "linear" or FORM == "gaussian" else float("inf")
    return tl.full((BLOCK_N,), worst, dtype), tl.zeros((BLOCK_N,), tl.int32)


# --- gradients ---------------------------------------------------------------------------------
#
# With w the gradient to the key's product, up to its sign and factor:
#
#   StudentT   w = -(nu+1) ds / (nu + d2)   dz = rowsum(w) x - w m          (x, m: less c)
#   Linear     w = ds                       dz = w theta
#   Gaussian   w = ds                       dz = w (m/v) + 2 x (w (-1/(2v)))
#
# and the parameters' gradients follow from colsum(w), w^T x and, for the Gaussian, w^T x^2.


@triton.jit
def to_product(ds, key, NU: tl.constexpr, FORM: tl.constexpr):
    """w_ij of the gradient ds_ij to the score."""
    if FORM == "rational":
        return -2 * ds * (1 / key)
    if FORM == "student_t":
        return -(NU + 1) * ds / (NU + key)
    return ds


@triton.jit
def gradient_to_points(w, x, a, b, FORM: tl.constexpr, PRECISION: tl.constexpr):
    """What a tile of clusters, w (BLOCK_N, BLOCK_K), gives to dz (BLOCK_N, BLOCK_D)."""
    product = tl.dot(w, a, input_precision=PRECISION, out_dtype=w.dtype)
    if FORM == "gaussian":
        product += 2 * x * tl.dot(w, b, input_precision=PRECISION, out_dtype=w.dtype)
    elif FORM != "linear":
        product = tl.sum(w, 1)[:, None] * x - product
    return product


@triton.jit
def add_to_sums(sums, w, x, PRECISION: tl.constexpr):
    """sums (BLOCK_K, BLOCK_D) and w^T x."""
    return tl.dot(tl.trans(w), x, sums, input_precision=PRECISION, out_dtype=w.dtype)


@triton.jit
def add_to_matrix(ptr, offs_r, offs_d, n, d, value):
    """Add a tile to a contiguous matrix (n, d) of which no other program has these rows."""
    ptrs = ptr + offs_r[:, None].to(tl.int64) * d + offs_d[None, :]
    mask = (offs_r < n)[:, None] & (offs_d < d)[None, :]
    tl.debug_barrier()  # what the tile before left may be another thread's
    tl.store(ptrs, tl.load(ptrs, mask=mask, other=0.0) + value, mask=mask)


@triton.jit
def store_matrix(ptr, offs_r, offs_d, n, d, value):
    """Write a tile of a contiguous matrix (n, d)."""
    ptrs = ptr + offs_r[:, None].to(tl.int64) * d + offs_d[None, :]
    tl.store(ptrs, value, mask=(offs_r < n)[:, None] & (offs_d < d)[None, :])


@triton.jit
def pull_to_points(
    w,
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, origin_ptr,
    dz_ptr,
    offs_n, offs_k, n, k, d,
    FORM: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add what a tile of clusters gives to dz, in memory: registers cannot hold any D."""
    for first in range(0, d, BLOCK_D):
        offs_d = first + tl.arange(0, BLOCK_D)
        x = load_points(z_ptr, stride_zn, stride_zd, origin_ptr, offs_n, offs_d, n, d, w.dtype)
        a, b = load_weights(a_ptr, b_ptr, origin_ptr, offs_k, offs_d, k, d, FORM, DIRECT)
        dz = gradient_to_points(w, x, a, b, FORM, PRECISION)
        add_to_matrix(dz_ptr, offs_n, offs_d, n, d, dz)


@triton.jit
def pull_to_sums(
    w,
    z_ptr, stride_zn, stride_zd, origin_ptr,
    sums_ptr,
    offs_n, offs_k, n, k, d,
    FORM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add a tile's w^T x and, for the Gaussian, w^T x^2 to this part's sums, in memory."""
    zeros = tl.zeros((BLOCK_K, BLOCK_D), w.dtype)
    for first in range(0, d, BLOCK_D):
        offs_d = first + tl.arange(0, BLOCK_D)
        x = load_points(z_ptr, stride_zn, stride_zd, origin_ptr, offs_n, offs_d, n, d, w.dtype)
        add_to_matrix(sums_ptr, offs_k, offs_d, k, d, add_to_sums(zeros, w, x, PRECISION))
        if FORM == "gaussian":
            squares = add_to_sums(zeros, w, x * x, PRECISION)
            add_to_matrix(squares_of(sums_ptr, k, d), offs_k, offs_d, k, d, squares)


@triton.jit
def part_of(sums_ptr, part, k, d, FORM: tl.constexpr):
    """Where a part of the rows leaves its sums: one or, for the Gaussian, two matrices (K, D)."""
    if FORM == "gaussian":
        part *= 2
    return sums_ptr + part * k * d


@triton.jit
def squares_of(sums_ptr, k, d):
    """The second of a part's matrices."""
    return sums_ptr + k.to(tl.int64) * d
