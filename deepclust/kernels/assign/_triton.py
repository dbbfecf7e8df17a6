"""q_ij = softmax_j(s_ij) and its gradients, in Triton.

    forward    q; K <= BLOCK_K: the row's keys stay in registers; else one pass over tiles of
               clusters finds what normalises each row, and another takes the products again
    backward   g_i = sum_l q_il dq_il        ds_ij = q_ij (dq_ij - g_i)        w_ij of ds_ij

               K <= BLOCK_K and D <= BLOCK_D: one kernel, w used for dz and for the sums at once;
               else one kernel over points (g, dz) and one over tiles of clusters (the sums)

Sums over the points are left by parts of the rows and added up in order, in float64. The forward
reads z and writes q, 2 or 4 N K D operations; the backward reads q and dq once or three times, and
takes 6 or 8 N K D operations.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepclust.kernels._launch import cdiv, launch, row_segments
from deepclust.kernels._tiles import chip_of
from deepclust.kernels._triton_heads import (
    PackedHead,
    Sums,
    add_to_sums,
    fold_keys,
    gradient_to_points,
    load_keys,
    load_points,
    load_tile,
    load_weights,
    normaliser,
    parameter_gradients,
    part_of,
    pull_to_points,
    pull_to_sums,
    soft_assignment,
    squares_of,
    start_fold,
    store_matrix,
    to_product,
)
from deepclust.kernels.heads import Head, check_values


@triton.jit(do_not_specialize=["n", "k"])
def _assign_fwd_kernel(
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    q_ptr,
    n, k, d,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    top, total = start_fold(BLOCK_N, dtype)
    if not SINGLE:
        for first in range(0, k, BLOCK_K):
            key = load_keys(
                z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
                offs_n, first + tl.arange(0, BLOCK_K), n, k, d,
                FORM, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
            )  # fmt: skip
            top, total = fold_keys(top, total, key, NU, FORM)
    for first in range(0, BLOCK_K if SINGLE else k, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)
        key = load_keys(
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            offs_n, offs_k, n, k, d, FORM, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        if SINGLE:
            top, total = fold_keys(top, total, key, NU, FORM)
        q = soft_assignment(normaliser(top, total, FORM), key, NU, FORM)
        mask = (offs_n < n)[:, None] & (offs_k < k)[None, :]
        tl.store(q_ptr + offs_n[:, None] * k + offs_k[None, :], q, mask=mask)


@triton.jit
def _load_w(
    q_ptr, dq_ptr, stride_dqn, stride_dqk, g,
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    offs_n, offs_k, n, k, d,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """w (BLOCK_N, BLOCK_K) of q and dq, 0 past the ends; a tile of all clusters finds g itself."""
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    q = load_tile(q_ptr, k, 1, offs_n, offs_k, n, k, dtype)
    dq = load_tile(dq_ptr, stride_dqn, stride_dqk, offs_n, offs_k, n, k, dtype)
    if g is None:
        g = tl.sum(q * dq, 1)
    ds = q * (dq - g[:, None])
    if FORM == "linear" or FORM == "gaussian":
        return ds
    key = load_keys(
        z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
        offs_n, offs_k, n, k, d, FORM, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    return to_product(ds, key, NU, FORM)


@triton.jit(do_not_specialize=["n", "k", "stride_dqn", "n_parts"])
def _assign_bwd_kernel(
    q_ptr, dq_ptr, stride_dqn, stride_dqk,
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    dz_ptr, totals_ptr, sums_ptr,
    n, k, d, n_parts,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    offs_k = tl.arange(0, BLOCK_K)
    offs_d = tl.arange(0, BLOCK_D)
    a, b = load_weights(a_ptr, b_ptr, origin_ptr, offs_k, offs_d, k, d, FORM, DIRECT)
    total = tl.zeros((BLOCK_K,), dtype)
    sums = tl.zeros((BLOCK_K, BLOCK_D), dtype)
    squares = tl.zeros((BLOCK_K, BLOCK_D), dtype)
    for first in range(part * BLOCK_N, n, n_parts * BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        w = _load_w(
            q_ptr, dq_ptr, stride_dqn, stride_dqk, None,
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            offs_n, offs_k, n, k, d, FORM, NU, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        x = load_points(z_ptr, stride_zn, stride_zd, origin_ptr, offs_n, offs_d, n, d, dtype)
        dz = gradient_to_points(w, x, a, b, FORM, PRECISION)
        store_matrix(dz_ptr, offs_n, offs_d, n, d, dz)
        total += tl.sum(w, 0)
        sums = add_to_sums(sums, w, x, PRECISION)
        if FORM == "gaussian":
            squares = add_to_sums(squares, w, x * x, PRECISION)
    tl.store(totals_ptr + part * k + offs_k, total, mask=offs_k < k)
    sums_ptr = part_of(sums_ptr, part, k, d, FORM)
    store_matrix(sums_ptr, offs_k, offs_d, k, d, sums)
    if FORM == "gaussian":
        store_matrix(squares_of(sums_ptr, k, d), offs_k, offs_d, k, d, squares)


@triton.jit(do_not_specialize=["n", "k", "stride_dqn"])
def _assign_bwd_dz_kernel(
    q_ptr, dq_ptr, stride_dqn, stride_dqk,
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    g_ptr, dz_ptr,
    n, k, d,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    g = tl.zeros((BLOCK_N,), dtype)
    for first in range(0, k, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)
        q = load_tile(q_ptr, k, 1, offs_n, offs_k, n, k, dtype)
        dq = load_tile(dq_ptr, stride_dqn, stride_dqk, offs_n, offs_k, n, k, dtype)
        g += tl.sum(q * dq, 1)
    tl.store(g_ptr + offs_n, g, mask=offs_n < n)
    for first in range(0, k, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)
        w = _load_w(
            q_ptr, dq_ptr, stride_dqn, stride_dqk, g,
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            offs_n, offs_k, n, k, d, FORM, NU, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        pull_to_points(
            w, z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, origin_ptr, dz_ptr,
            offs_n, offs_k, n, k, d, FORM, DIRECT, PRECISION, BLOCK_D,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n", "k", "stride_dqn", "n_parts"])
def _assign_bwd_sums_kernel(
    q_ptr, dq_ptr, stride_dqn, stride_dqk,
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    g_ptr, totals_ptr, sums_ptr,
    n, k, d, n_parts,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1).to(tl.int64)
    offs_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    sums_ptr = part_of(sums_ptr, part, k, d, FORM)
    total = tl.zeros((BLOCK_K,), a_ptr.dtype.element_ty)
    for first in range(part * BLOCK_N, n, n_parts * BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        g = tl.load(g_ptr + offs_n, mask=offs_n < n, other=0.0)
        w = _load_w(
            q_ptr, dq_ptr, stride_dqn, stride_dqk, g,
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            offs_n, offs_k, n, k, d, FORM, NU, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        total += tl.sum(w, 0)
        pull_to_sums(
            w, z_ptr, stride_zn, stride_zd, origin_ptr, sums_ptr,
            offs_n, offs_k, n, k, d, FORM, PRECISION, BLOCK_K, BLOCK_D,
        )  # fmt: skip
    tl.store(totals_ptr + part * k + offs_k, total, mask=offs_k < k)


def forward(z: Tensor, head: Head, precision: str, check: bool) -> Tensor:
    """q (N, K)."""
    if check:
        check_values(z, head)
    chip = chip_of(z.device)
    packed = PackedHead(head)
    tiles = packed.tiles(chip)
    n, k, d = z.shape[0], packed.k, packed.d
    q = torch.empty(n, k, dtype=z.dtype, device=z.device)
    launch(
        _assign_fwd_kernel, (cdiv(n, tiles.n),), z, *z.stride(), *packed.args, q, n, k, d,
        tiles=tiles, SINGLE=k <= tiles.k, **packed.constants(tiles, chip, precision),
    )  # fmt: skip
    return q


def backward(
    dq: Tensor, q: Tensor, z: Tensor, head: Head, precision: str
) -> tuple[Tensor, list[Tensor]]:
    """dz (N, D) and the gradients to the head's parameters."""
    chip = chip_of(z.device)
    packed = PackedHead(head)
    tiles, fused = packed.gradient_tiles(chip)
    constants = packed.constants(tiles, chip, precision)
    n, k, d = z.shape[0], packed.k, packed.d
    if fused:
        dz = torch.empty(n, d, dtype=head.dtype, device=z.device)
        sums = Sums(packed, n, tiles, z.device)
        launch(
            _assign_bwd_kernel, (sums.parts,), q, dq, *dq.stride(), z, *z.stride(), *packed.args,
            dz, *sums.args, n, k, d, sums.parts, tiles=tiles, **constants,
        )  # fmt: skip
        return dz.to(z.dtype), parameter_gradients(packed, [sums.reduced()])
    dz = torch.zeros(n, d, dtype=head.dtype, device=z.device)  # tiles of clusters add to it
    reduced = []
    for rows in row_segments(n):
        n_rows = rows.stop - rows.start
        inputs = q[rows], dq[rows], *dq.stride(), z[rows], *z.stride(), *packed.args
        g = torch.empty(n_rows, dtype=head.dtype, device=z.device)
        launch(
            _assign_bwd_dz_kernel, (cdiv(n_rows, tiles.n),), *inputs, g, dz[rows], n_rows, k, d,
            tiles=tiles, **constants,
        )  # fmt: skip
        sums = Sums(packed, n_rows, tiles, z.device)
        launch(
            _assign_bwd_sums_kernel, (cdiv(k, tiles.k), sums.parts), *inputs, g, *sums.args,
            n_rows, k, d, sums.parts, tiles=tiles, **constants,
        )  # fmt: skip
        reduced.append(sums.reduced())
    return dz.to(z.dtype), parameter_gradients(packed, reduced)
