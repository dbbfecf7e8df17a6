"""sums_j = sum of w_i x_i and counts_j = sum of w_i over the rows with label j, in Triton.

    K <= BLOCK_K   a program walks over its share of the rows, the sums of BLOCK_D columns in
                   registers: a product with the one-hot matrix of the labels
    else           rows sorted by label, each cluster's cut into pieces of at most PIECE rows: a
                   program sums a piece, another then adds up a cluster's pieces

Programs leave partial sums in float64, which are added up in a fixed order; before that, no more
than a piece's rows are added in float32, or 32 in the product. No atomics, and nothing waits for
the device: there are at most K + N / PIECE pieces, whatever the labels are, and which rows a piece
has is worked out on the device.

Given centroids mu, the rows are x_i - mu_{labels_i}: the sums that the k-means loss pulls back.

Reads N D numbers, N labels and N weights; N K D operations in the product, else N D and a sort. A
label that is none belongs nowhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepclust.kernels import _checks
from deepclust.kernels._launch import PARTIAL_BYTES, cdiv, launch, parts_of, row_segments
from deepclust.kernels._tiles import Chip, Tiles, chip_of, precision_for, tiles_for

# --- rows and their labels ---------------------------------------------------------------------


@triton.jit
def load_labels(labels_ptr, offs_n, n, k):
    """labels (BLOCK_N,), -1 for what is no cluster and past N."""
    label = tl.load(labels_ptr + offs_n, mask=offs_n < n, other=-1)
    return tl.where((label >= 0) & (label < k), label, -1).to(tl.int32)


@triton.jit
def load_rows(x_ptr, stride_xn, stride_xd, mu_ptr, offs_n, offs_d, label, d, dtype: tl.constexpr):
    """x_i, less the label's mu if there is one (BLOCK_N, BLOCK_D); 0 past D and without label."""
    mask = (label >= 0)[:, None] & (offs_d < d)[None, :]
    x = tl.load(
        x_ptr + offs_n[:, None] * stride_xn + offs_d[None, :].to(tl.int64) * stride_xd,
        mask=mask,
        other=0.0,
    ).to(dtype)
    if mu_ptr is not None:
        mu_ptrs = mu_ptr + label[:, None].to(tl.int64) * d + offs_d[None, :]
        x -= tl.load(mu_ptrs, mask=mask, other=0.0)
    return x


@triton.jit
def load_weight(weight_ptr, offs_n, label, dtype: tl.constexpr):
    """w_i (BLOCK_N,), 0 without a label."""
    if weight_ptr is None:
        return (label >= 0).to(dtype)
    else:
        return tl.load(weight_ptr + offs_n, mask=label >= 0, other=0.0).to(dtype)


# --- products with the one-hot matrix ----------------------------------------------------------


@triton.jit
def _leading_bits(x):
    """x without the bits that TF32 has not."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _members(label, GROUPS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Whether the label is the cluster (GROUPS, BLOCK_K, BLOCK_N / GROUPS)."""
    label = tl.reshape(label, (GROUPS, 1, label.shape[0] // GROUPS))
    return tl.arange(0, BLOCK_K)[None, :, None] == label


@triton.jit
def add_to_sums(
    sums, label, x, PRECISION: tl.constexpr, GROUPS: tl.constexpr, BLOCK_K: tl.constexpr
):
    """sums (GROUPS, BLOCK_K, BLOCK_D) in float64 += rows x (BLOCK_N, BLOCK_D), by label.

    There are as many groups of rows as warps: else each warp would take the product of all rows.
    """
    hot = _members(label, GROUPS, BLOCK_K).to(x.dtype)
    x = tl.reshape(x, (GROUPS, x.shape[0] // GROUPS, x.shape[1]))
    if PRECISION == "ieee":
        product = tl.dot(hot, x, input_precision="ieee", out_dtype=x.dtype)
    else:
        # Exact: ones and zeros are TF32 numbers, and so are three parts of x, 11 bits each.
        high = _leading_bits(x)
        x -= high
        middle = _leading_bits(x)
        product = tl.dot(hot, x - middle, input_precision="tf32")
        product = tl.dot(hot, middle, product, input_precision="tf32")
        product = tl.dot(hot, high, product, input_precision="tf32")
    return sums + product.to(tl.float64)


@triton.jit
def add_to_counts(counts, label, weight, GROUPS: tl.constexpr, BLOCK_K: tl.constexpr):
    """counts (GROUPS, BLOCK_K, BLOCK_N / GROUPS) += weights (BLOCK_N,), by label."""
    weight = tl.reshape(weight, (GROUPS, 1, weight.shape[0] // GROUPS))
    return counts + tl.where(_members(label, GROUPS, BLOCK_K), weight, 0.0)


@triton.jit
def store_sums(sums_ptr, sums, part, offs_d, k, d):
    """One program's, to (parts, K, D)."""
    offs_k = tl.arange(0, sums.shape[1])
    sums_ptrs = sums_ptr + (part * k + offs_k[:, None]) * d + offs_d[None, :]
    tl.store(sums_ptrs, tl.sum(sums, 0), mask=(offs_k < k)[:, None] & (offs_d < d)[None, :])


@triton.jit
def store_counts(counts_ptr, counts, part, k):
    """One program's, to (parts, K)."""
    offs_k = tl.arange(0, counts.shape[1])
    total = tl.sum(tl.sum(counts.to(tl.float64), 2), 0)
    tl.store(counts_ptr + part * k + offs_k, total, mask=offs_k < k)


@triton.jit(do_not_specialize=["n", "k", "n_parts"])
def _kmeans_update_fwd_kernel(
    x_ptr, stride_xn, stride_xd,
    mu_ptr, labels_ptr, weight_ptr,
    sums_ptr, counts_ptr,
    n, k, d, n_parts,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1).to(tl.int64)
    offs_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    sums = tl.zeros((GROUPS, BLOCK_K, BLOCK_D), tl.float64)
    counts = tl.zeros((GROUPS, BLOCK_K, BLOCK_N // GROUPS), DTYPE)
    for first in range(part * BLOCK_N, n, n_parts * BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        label = load_labels(labels_ptr, offs_n, n, k)
        x = load_rows(x_ptr, stride_xn, stride_xd, mu_ptr, offs_n, offs_d, label, d, DTYPE)
        weight = load_weight(weight_ptr, offs_n, label, DTYPE)
        if weight_ptr is not None:
            x *= weight[:, None]
        sums = add_to_sums(sums, label, x, PRECISION, GROUPS, BLOCK_K)
        counts = add_to_counts(counts, label, weight, GROUPS, BLOCK_K)
    store_sums(sums_ptr, sums, part, offs_d, k, d)
    if tl.program_id(0) == 0:
        store_counts(counts_ptr, counts, part, k)


# --- pieces of sorted rows ---------------------------------------------------------------------


class Pieces(NamedTuple):
    """Rows sorted by label, each cluster's cut into pieces.

    Attributes:
        order: (N,) the rows, by label and then by number.
        starts: (K + 1,) where each cluster's begin in `order`.
        firsts: (K + 1,) each cluster's first piece.
        clusters: (P,) each piece's cluster; K for those that are not needed.
        size: PIECE, the most rows that a piece has.
    """

    order: Tensor
    starts: Tensor
    firsts: Tensor
    clusters: Tensor
    size: int


def cut(labels: Tensor, k: int, d: int, least: int) -> Pieces:
    """Pieces of at least `least` rows, if a cluster has them, whose sums fit the budget."""
    n, device = len(labels), labels.device
    size = max(least, cdiv(8 * n * d, PARTIAL_BYTES))
    # A sort's time goes by the bytes of its keys.
    key = torch.int16 if k < 1 << 15 else torch.int32
    keys = torch.where((labels >= 0) & (labels < k), labels, k).to(key)
    keys, order = keys.sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(k + 1, dtype=key, device=device))
    firsts = torch.zeros_like(starts)
    torch.cumsum((starts.diff() + size - 1) // size, 0, out=firsts[1:])
    pieces = torch.arange(min(k, n) + n // size, device=device)
    clusters = torch.searchsorted(firsts[1:], pieces, right=True)
    return Pieces(order, starts, firsts, clusters, size)


@triton.jit(do_not_specialize=["k", "piece_rows"])
def _kmeans_update_pieces_kernel(
    x_ptr, stride_xn, stride_xd,
    mu_ptr, weight_ptr,
    order_ptr, starts_ptr, firsts_ptr, clusters_ptr,
    sums_ptr, counts_ptr,
    k, d, piece_rows,
    DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    cluster = tl.load(clusters_ptr + piece)
    if cluster < k:
        begin = tl.load(starts_ptr + cluster)
        begin += (piece - tl.load(firsts_ptr + cluster)) * piece_rows
        end = tl.minimum(begin + piece_rows, tl.load(starts_ptr + cluster + 1))
        sums = tl.zeros((BLOCK_N, BLOCK_D), DTYPE)
        counts = tl.zeros((BLOCK_N,), DTYPE)
        for first in range(begin, end, BLOCK_N):
            at = first + tl.arange(0, BLOCK_N)
            offs_n = tl.load(order_ptr + at, mask=at < end, other=0)
            label = tl.where(at < end, cluster, -1)
            x = load_rows(x_ptr, stride_xn, stride_xd, mu_ptr, offs_n, offs_d, label, d, DTYPE)
            weight = load_weight(weight_ptr, offs_n, label, DTYPE)
            sums += x * weight[:, None]
            counts += weight
        sums_ptrs = sums_ptr + piece * d + offs_d
        tl.store(sums_ptrs, tl.sum(sums.to(tl.float64), 0), mask=offs_d < d)
        if tl.program_id(1) == 0:
            tl.store(counts_ptr + piece, tl.sum(counts.to(tl.float64), 0))


@triton.jit
def _kmeans_update_clusters_kernel(
    piece_sums_ptr, piece_counts_ptr, firsts_ptr,
    sums_ptr, counts_ptr,
    d,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    cluster = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < d
    begin, end = tl.load(firsts_ptr + cluster), tl.load(firsts_ptr + cluster + 1)
    sums = tl.zeros((BLOCK_N, BLOCK_D), tl.float64)
    counts = tl.zeros((BLOCK_N,), tl.float64)
    for first in range(begin, end, BLOCK_N):
        pieces = first + tl.arange(0, BLOCK_N)
        mask = (pieces < end)[:, None] & mask_d[None, :]
        sums += tl.load(piece_sums_ptr + pieces[:, None] * d + offs_d[None, :], mask=mask, other=0)
        counts += tl.load(piece_counts_ptr + pieces, mask=pieces < end, other=0)
    # Earlier segments of the rows have left theirs.
    sums_ptrs = sums_ptr + cluster * d + offs_d
    tl.store(sums_ptrs, tl.load(sums_ptrs, mask=mask_d, other=0) + tl.sum(sums, 0), mask=mask_d)
    if tl.program_id(1) == 0:
        before = tl.load(counts_ptr + cluster)
        tl.store(counts_ptr + cluster, before + tl.sum(counts, 0))


# --- launchers ---------------------------------------------------------------------------------


def one_hot_tiles(chip: Chip, k: int, d: int, dtype: torch.dtype) -> tuple[Tiles, int] | None:
    """The tile of the one-hot product, and its groups; None for too many clusters."""
    tiles = tiles_for("sums", chip, d, k, dtype.itemsize)
    if k > tiles.k:
        return None
    groups = min(tiles.warps, most_groups(tiles, tiles.k, tiles.d))
    return tiles._replace(n=tiles.n * groups), groups


def most_groups(tiles: Tiles, block_k: int, block_d: int) -> int:
    """For how many groups the sums take no more than 16 numbers of each thread of 32."""
    return 512 * tiles.warps // (block_k * block_d)


def label_sums(
    x: Tensor,
    labels: Tensor,
    n_clusters: int,
    sample_weight: Tensor | None,
    mu: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """sums (K, D) and counts (K,) of x, or of its differences from mu (K, D), contiguous."""
    (n, d), k = x.shape, n_clusters
    chip, dtype = chip_of(x.device), _checks.compute_dtype(x.dtype)
    compute = tl.float64 if dtype == torch.float64 else tl.float32
    labels = labels.contiguous()
    weight = None if sample_weight is None else sample_weight.contiguous()
    one_hot = one_hot_tiles(chip, k, d, dtype)
    if one_hot is not None:
        tiles, groups = one_hot
        parts = parts_of(n, tiles.n, 8 * k * d)
        sums = torch.empty(parts, k, d, dtype=torch.float64, device=x.device)
        counts = sums.new_empty(parts, k)
        launch(
            _kmeans_update_fwd_kernel, (cdiv(d, tiles.d), parts), x, *x.stride(),
            mu, labels, weight, sums, counts, n, k, d, parts, tiles=tiles,
            DTYPE=compute, PRECISION=precision_for("exact", chip, dtype), GROUPS=groups,
            BLOCK_N=tiles.n, BLOCK_K=tiles.k, BLOCK_D=tiles.d,
        )  # fmt: skip
        return sums.sum(0), counts.sum(0)
    tiles = tiles_for("pieces", chip, d, k, dtype.itemsize)
    columns = cdiv(d, tiles.d)
    sums = torch.zeros(k, d, dtype=torch.float64, device=x.device)
    counts = sums.new_zeros(k)
    for rows in row_segments(n):
        x_rows, w_rows = x[rows], None if weight is None else weight[rows]
        pieces = cut(labels[rows], k, d, 8 * tiles.n)
        n_pieces = len(pieces.clusters)
        piece_sums, piece_counts = sums.new_empty(n_pieces, d), sums.new_empty(n_pieces)
        launch(
            _kmeans_update_pieces_kernel, (n_pieces, columns), x_rows, *x.stride(), mu, w_rows,
            *pieces[:4], piece_sums, piece_counts, k, d, pieces.size,
            tiles=tiles, DTYPE=compute, BLOCK_N=tiles.n, BLOCK_D=tiles.d,
        )  # fmt: skip
        launch(
            _kmeans_update_clusters_kernel, (k, columns), piece_sums, piece_counts, pieces.firsts,
            sums, counts, d, tiles=tiles, BLOCK_N=tiles.n, BLOCK_D=tiles.d,
        )  # fmt: skip
    return sums, counts


def forward(
    x: Tensor, labels: Tensor, n_clusters: int, sample_weight: Tensor | None, check: bool
) -> tuple[Tensor, Tensor]:
    """sums (K, D) and counts (K,), in float64."""
    if check:
        _checks.check_finite("x", x)
        _checks.check_label_range("labels", labels, n_clusters)
        if sample_weight is not None:
            _checks.check_finite("sample_weight", sample_weight)
    return label_sums(x, labels, n_clusters, sample_weight)
