"""labels_i = argmin_j ||x_i - mu_j||^2 and that smallest squared distance, in Triton.

    D <= 32   key_ij = sum_e (x_ie - mu_je)^2, a column of D at a time, all of it in registers
    else      key_ij = ||m_j||^2 / 2 - (x_i - c) . m_j, with m = mu - c, on the matrix units,
              BLOCK_D columns at a time: a row's own norm moves no minimum. Rows that are no
              wider are held in registers, for all tiles of clusters

A program keeps, for each of the BLOCK_K places of a tile, the least key so far and its tile, and
looks along the row once, at the end. Ties go to the lowest index; NaN never wins, and a row that no
cluster wins has label 0. The winner's distance is computed again by direct difference where the key
is not one.

With the update of the centroids in the same pass, where D <= 32 and registers hold the sums: a
program walks over its share of the rows and multiplies them by the one-hot matrix of the labels
just found. Partial sums are added up in the programs' order, in float64. Larger K or D take the
update's own kernels: beside products there is no room for sums.

In float32, or float64 where the centroids are. Reads N D numbers for each tile of clusters, all
but the first from the cache; writes N labels and distances. 2 N K D operations, or 3 N K D.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepclust.kernels import _checks
from deepclust.kernels._launch import cdiv, launch, parts_of
from deepclust.kernels._tiles import (
    DIRECT_WIDTH,
    Tiles,
    chip_of,
    power_of_2,
    precision_for,
    tiles_for,
)
from deepclust.kernels._triton_heads import differences, load_matrix, load_points, origin_of
from deepclust.kernels.kmeans_update._triton import (
    add_to_counts,
    add_to_sums,
    label_sums,
    load_rows,
    load_weight,
    most_groups,
    store_counts,
    store_sums,
)

# --- the nearest centroid ----------------------------------------------------------------------


@triton.jit
def _load_keys(
    x_ptr, stride_xn, stride_xd,
    mu_ptr, m_ptr, half_norm_ptr, origin_ptr,
    held, offs_n, offs_k, n, k, d,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What the nearest centroid has the least of (BLOCK_N, BLOCK_K); infinite past K.

    `held` are the whole rows x less the origin, or None where they are loaded here.
    """
    dtype: tl.constexpr = mu_ptr.dtype.element_ty
    if m_ptr is None:
        start = tl.where(offs_k < k, 0.0, float("inf")).to(dtype)
        acc = tl.zeros((BLOCK_N, BLOCK_K), dtype) + start[None, :]
        return differences(x_ptr, stride_xn, stride_xd, mu_ptr, None, acc, offs_n, offs_k, n, k, d)
    else:
        product = tl.zeros((BLOCK_N, BLOCK_K), dtype)
        if held is not None:
            m = load_matrix(m_ptr, offs_k, tl.arange(0, BLOCK_D), k, d)
            product = tl.dot(held, tl.trans(m), product, input_precision=PRECISION, out_dtype=dtype)
        else:
            for first in range(0, d, BLOCK_D):
                offs_d = first + tl.arange(0, BLOCK_D)
                x = load_points(
                    x_ptr, stride_xn, stride_xd, origin_ptr, offs_n, offs_d, n, d, dtype
                )
                m = load_matrix(m_ptr, offs_k, offs_d, k, d)
                product = tl.dot(
                    x, tl.trans(m), product, input_precision=PRECISION, out_dtype=dtype
                )
        half_norm = tl.load(half_norm_ptr + offs_k, mask=offs_k < k, other=float("inf"))
        return half_norm[None, :] - product


@triton.jit
def _nearest(
    x_ptr, stride_xn, stride_xd,
    mu_ptr, m_ptr, half_norm_ptr, origin_ptr,
    offs_n, n, k, d,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """The label of each row, -1 past N, and its squared distance (BLOCK_N,)."""
    dtype: tl.constexpr = mu_ptr.dtype.element_ty
    offs_k = tl.arange(0, BLOCK_K)
    best = tl.full((BLOCK_N, BLOCK_K), float("inf"), dtype)
    tile = tl.zeros((BLOCK_N, BLOCK_K), tl.int32)
    held = None
    if HOLD:
        offs_d = tl.arange(0, BLOCK_D)
        held = load_points(x_ptr, stride_xn, stride_xd, origin_ptr, offs_n, offs_d, n, d, dtype)
    for first in range(0, k, BLOCK_K):
        key = _load_keys(
            x_ptr, stride_xn, stride_xd, mu_ptr, m_ptr, half_norm_ptr, origin_ptr,
            held, offs_n, first + offs_k, n, k, d, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        wins = key < best
        best = tl.where(wins, key, best)
        tile = tl.where(wins, first, tile)
    least = tl.min(best, 1)
    # A tile's place j holds cluster tile + j. Where nothing is below infinity, cluster 0 is left.
    label = tl.min(tl.where(best == least[:, None], tile + offs_k[None, :], k), 1)
    label = tl.where(offs_n < n, label, -1)
    if m_ptr is not None:
        least = tl.zeros((BLOCK_N,), dtype)
        for first in range(0, d, BLOCK_D):
            offs_d = first + tl.arange(0, BLOCK_D)
            difference = load_rows(
                x_ptr, stride_xn, stride_xd, mu_ptr, offs_n, offs_d, label, d, dtype
            )
            least += tl.sum(difference * difference, 1)
    return label, least


@triton.jit(do_not_specialize=["n", "k"])
def _kmeans_assign_fwd_kernel(
    x_ptr, stride_xn, stride_xd,
    mu_ptr, m_ptr, half_norm_ptr, origin_ptr,
    labels_ptr, sq_dist_ptr,
    n, k, d,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    label, sq_dist = _nearest(
        x_ptr, stride_xn, stride_xd, mu_ptr, m_ptr, half_norm_ptr, origin_ptr,
        offs_n, n, k, d, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D, HOLD,
    )  # fmt: skip
    tl.store(labels_ptr + offs_n, label.to(tl.int64), mask=offs_n < n)
    tl.store(sq_dist_ptr + offs_n, sq_dist, mask=offs_n < n)


@triton.jit(do_not_specialize=["n", "k", "n_parts"])
def _kmeans_assign_and_update_kernel(
    x_ptr, stride_xn, stride_xd,
    mu_ptr, m_ptr, half_norm_ptr, origin_ptr,
    weight_ptr,
    labels_ptr, sq_dist_ptr, sums_ptr, counts_ptr,
    n, k, d, n_parts,
    PRECISION: tl.constexpr, SUM_PRECISION: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    SUMS_K: tl.constexpr, SUMS_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = mu_ptr.dtype.element_ty
    offs_d = tl.arange(0, SUMS_D)
    sums = tl.zeros((GROUPS, SUMS_K, SUMS_D), tl.float64)
    counts = tl.zeros((GROUPS, SUMS_K, BLOCK_N // GROUPS), dtype)
    for first in range(part * BLOCK_N, n, n_parts * BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        mask_n = offs_n < n
        label, sq_dist = _nearest(
            x_ptr, stride_xn, stride_xd, mu_ptr, m_ptr, half_norm_ptr, origin_ptr,
            offs_n, n, k, d, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D, False,
        )  # fmt: skip
        tl.store(labels_ptr + offs_n, label.to(tl.int64), mask=mask_n)
        tl.store(sq_dist_ptr + offs_n, sq_dist, mask=mask_n)
        x = load_rows(x_ptr, stride_xn, stride_xd, None, offs_n, offs_d, label, d, dtype)
        weight = load_weight(weight_ptr, offs_n, label, dtype)
        if weight_ptr is not None:
            x *= weight[:, None]
        sums = add_to_sums(sums, label, x, SUM_PRECISION, GROUPS, SUMS_K)
        counts = add_to_counts(counts, label, weight, GROUPS, SUMS_K)
    store_sums(sums_ptr, sums, part, offs_d, k, d)
    store_counts(counts_ptr, counts, part, k)


# --- launchers ---------------------------------------------------------------------------------


class _Nearest(NamedTuple):
    """Centroids as `_nearest` takes them, with its tiles and constants."""

    args: tuple[Tensor | None, ...]
    tiles: Tiles
    constants: dict[str, Any]


def _pack(centroids: Tensor, precision: str) -> _Nearest:
    mu, d, dtype = centroids.contiguous(), centroids.shape[1], centroids.dtype
    chip = chip_of(mu.device)
    direct = d <= DIRECT_WIDTH
    tiles = tiles_for("columns" if direct else "held", chip, d, len(mu), dtype.itemsize)
    if not direct and d > tiles.d:
        tiles = tiles_for("nearest", chip, d, len(mu), dtype.itemsize)
    args: tuple[Tensor | None, ...] = (mu, None, None, None)
    if not direct:
        origin = origin_of(mu)
        m = mu - origin
        args = (mu, m, (m**2).sum(1) / 2, origin)
    constants = {
        "PRECISION": precision_for(precision, chip, dtype),
        "BLOCK_N": tiles.n,
        "BLOCK_K": tiles.k,
        "BLOCK_D": tiles.d,
    }
    return _Nearest(args, tiles, constants)


def forward(x: Tensor, centroids: Tensor, precision: str, check: bool) -> tuple[Tensor, Tensor]:
    """labels (N,), sq_dist (N,)."""
    if check:
        _checks.check_finite("x", x)
        _checks.check_finite("centroids", centroids)
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    sq_dist = torch.empty(len(x), dtype=centroids.dtype, device=x.device)
    fill(x, centroids, precision, labels, sq_dist)
    return labels, sq_dist


def fill(
    x: Tensor, centroids: Tensor, precision: str, labels: Tensor, sq_dist: Tensor | None
) -> None:
    """Fills labels (N,) and, unless it is None, sq_dist (N,), unchecked."""
    (n, d), k = x.shape, len(centroids)
    if sq_dist is None:
        sq_dist = centroids.new_empty(n)
    packed = _pack(centroids, precision)
    launch(
        _kmeans_assign_fwd_kernel, (cdiv(n, packed.tiles.n),), x, *x.stride(), *packed.args,
        labels, sq_dist, n, k, d, tiles=packed.tiles, **packed.constants,
        HOLD=d > DIRECT_WIDTH and d <= packed.tiles.d,
    )  # fmt: skip


def forward_and_update(
    x: Tensor,
    centroids: Tensor,
    sample_weight: Tensor | None,
    precision: str,
    labels: Tensor,
    sq_dist: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fills these; sums (K, D) and counts (K,) in float64, in one pass where K and D are small."""
    (n, d), k, dtype = x.shape, len(centroids), centroids.dtype
    chip = chip_of(x.device)
    packed = _pack(centroids, precision)
    sums_k, sums_d = max(16, power_of_2(k)), max(16, power_of_2(d))
    groups = packed.tiles.warps
    if d > DIRECT_WIDTH or groups > most_groups(packed.tiles, sums_k, sums_d):
        fill(x, centroids, precision, labels, sq_dist)
        return label_sums(x, labels, k, sample_weight)
    parts = parts_of(n, packed.tiles.n, 8 * k * d)
    sums = torch.empty(parts, k, d, dtype=torch.float64, device=x.device)
    counts = sums.new_empty(parts, k)
    launch(
        _kmeans_assign_and_update_kernel, (parts,), x, *x.stride(), *packed.args,
        None if sample_weight is None else sample_weight.contiguous(),
        labels, sq_dist, sums, counts, n, k, d, parts, tiles=packed.tiles,
        **packed.constants, SUM_PRECISION=precision_for("exact", chip, dtype), GROUPS=groups,
        SUMS_K=sums_k, SUMS_D=sums_d,
    )  # fmt: skip
    return sums.sum(0), counts.sum(0)
