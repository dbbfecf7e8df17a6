"""f_j = sum_i q_ij and labels_i = argmax_j s_ij, without q, in Triton.

    K <= BLOCK_K   one kernel: a program walks over its share of the points, f in registers
    else           one kernel over points finds the labels and what normalises each row of q,
                   another over tiles of clusters then adds up q's columns

Programs leave partial sums of f, which are added up in their order, in float64. Reads z once and
takes one product, or twice and two; writes labels, and N normalisers where K is large.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepclust.kernels._launch import cdiv, launch, parts_of, row_segments
from deepclust.kernels._tiles import chip_of
from deepclust.kernels._triton_heads import (
    PackedHead,
    fold_best,
    fold_keys,
    load_keys,
    normaliser,
    soft_assignment,
    start_best,
    start_fold,
)
from deepclust.kernels.heads import Head, check_values


@triton.jit(do_not_specialize=["n", "k", "n_parts"])
def _frequencies_fwd_kernel(
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    f_ptr, labels_ptr,
    n, k, d, n_parts,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    offs_k = tl.arange(0, BLOCK_K)
    f = tl.zeros((BLOCK_K,), tl.float64)
    for first in range(part * BLOCK_N, n, n_parts * BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        mask_n = offs_n < n
        key = load_keys(
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            offs_n, offs_k, n, k, d, FORM, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        top, total = start_fold(BLOCK_N, dtype)
        top, total = fold_keys(top, total, key, NU, FORM)
        q = soft_assignment(normaliser(top, total, FORM), key, NU, FORM)
        f += tl.sum(tl.where(mask_n[:, None], q, 0.0), 0).to(tl.float64)
        best, label = start_best(BLOCK_N, dtype, FORM)
        best, label = fold_best(best, label, key, offs_k, FORM)
        tl.store(labels_ptr + offs_n, label.to(tl.int64), mask=mask_n)
    tl.store(f_ptr + part * k + offs_k, f, mask=offs_k < k)


@triton.jit(do_not_specialize=["n", "k"])
def _frequencies_rows_kernel(
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    norm_ptr, labels_ptr,
    n, k, d,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < n
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    top, total = start_fold(BLOCK_N, dtype)
    best, label = start_best(BLOCK_N, dtype, FORM)
    for first in range(0, k, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)
        key = load_keys(
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            offs_n, offs_k, n, k, d, FORM, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        top, total = fold_keys(top, total, key, NU, FORM)
        best, label = fold_best(best, label, key, offs_k, FORM)
    tl.store(norm_ptr + offs_n, normaliser(top, total, FORM), mask=mask_n)
    tl.store(labels_ptr + offs_n, label.to(tl.int64), mask=mask_n)


@triton.jit(do_not_specialize=["n", "k", "n_parts"])
def _frequencies_columns_kernel(
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    norm_ptr, f_ptr,
    n, k, d, n_parts,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1).to(tl.int64)
    offs_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    f = tl.zeros((BLOCK_K,), tl.float64)
    for first in range(part * BLOCK_N, n, n_parts * BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        mask_n = offs_n < n
        key = load_keys(
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            offs_n, offs_k, n, k, d, FORM, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        norm = tl.load(norm_ptr + offs_n, mask=mask_n, other=0.0)
        q = soft_assignment(norm, key, NU, FORM)
        f += tl.sum(tl.where(mask_n[:, None], q, 0.0), 0).to(tl.float64)
    tl.store(f_ptr + part * k + offs_k, f, mask=offs_k < k)


def forward(
    z: Tensor, head: Head, previous_labels: Tensor | None, precision: str, check: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """f (K,) in float64, labels (N,), n_changed ()."""
    if check:
        check_values(z, head)
    chip = chip_of(z.device)
    packed = PackedHead(head)
    tiles = packed.tiles(chip)
    constants = packed.constants(tiles, chip, precision)
    n, k, d = z.shape[0], packed.k, packed.d
    f = torch.zeros(k, dtype=torch.float64, device=z.device)
    labels = torch.empty(n, dtype=torch.int64, device=z.device)
    if k <= tiles.k:
        parts = parts_of(n, tiles.n, 8 * k)
        partial = f.new_empty(parts, k)
        launch(
            _frequencies_fwd_kernel, (parts,), z, *z.stride(), *packed.args, partial, labels,
            n, k, d, parts, tiles=tiles, **constants,
        )  # fmt: skip
        f = partial.sum(0)
    else:
        for rows in row_segments(n):
            part, n_rows = z[rows], rows.stop - rows.start
            norms = torch.empty(n_rows, dtype=head.dtype, device=z.device)
            launch(
                _frequencies_rows_kernel, (cdiv(n_rows, tiles.n),), part, *z.stride(),
                *packed.args, norms, labels[rows], n_rows, k, d, tiles=tiles, **constants,
            )  # fmt: skip
            parts = parts_of(n_rows, tiles.n, 8 * k)
            partial = f.new_empty(parts, k)
            launch(
                _frequencies_columns_kernel, (cdiv(k, tiles.k), parts), part, *z.stride(),
                *packed.args, norms, partial, n_rows, k, d, parts, tiles=tiles, **constants,
            )  # fmt: skip
            f += partial.sum(0)
    if previous_labels is None:
        return f, labels, torch.full((), n, dtype=torch.int64, device=z.device)
    return f, labels, (labels != previous_labels).sum()
