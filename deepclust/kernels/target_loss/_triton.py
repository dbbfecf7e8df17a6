"""KL(P || Q) or cross-entropy and its gradients, without N x K, in Triton.

    t     = power s_old + bias             p = softmax(t)      (or p is given, or one-hot at max t)
    KL_i  = sum_j p_ij (log p_ij - s_ij) + lse(s_i) sum_j p_ij          log p = t - lse(t)
    CE_i  = lse(s_i) sum_j p_ij - sum_j p_ij s_ij
    ds_ij = q_ij sum_l p_il - p_ij         then w of ds, and the head's pullback

    K <= BLOCK_K and D <= BLOCK_D   one kernel: keys, logits and w of a tile of points stay in
                                    registers; z, and z_old or p, are read once
    else                            three: over points for the losses and what normalises the rows,
                                    over points for dz, and over tiles of clusters for the sums that
                                    the parameters' gradients are made of

Running maxima keep every exponential in range. w is computed again wherever it is needed and never
stored: with large K that is 16 N K D operations from a snapshot, 10 from a given p. Beside z, z_old
and dz, two numbers a row are kept between the kernels. Losses are added up in float64, and parts of
the rows in order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepclust.kernels._checks import check_nonnegative
from deepclust.kernels._launch import cdiv, launch, parts_of, row_segments
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
    log_sum_exp,
    normaliser,
    parameter_gradients,
    part_of,
    pull_to_points,
    pull_to_sums,
    score,
    soft_assignment,
    squares_of,
    start_fold,
    store_matrix,
    to_product,
)
from deepclust.kernels.heads import Head, check_values
from deepclust.kernels.target_loss.snapshot import Snapshot

TINY = tl.constexpr(2.0**-126)  # 0 log 0 = 0

# --- the target --------------------------------------------------------------------------------


@triton.jit
def _load_target(
    t_ptr, stride_tn, stride_td,
    old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
    offs_n, offs_k, n, k,
    TARGET: tl.constexpr, POWER: tl.constexpr,
    OLD_FORM: tl.constexpr, OLD_NU: tl.constexpr, OLD_DIRECT: tl.constexpr, dtype: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of the given p, or of the snapshot's logits t; minus infinity past K."""
    if TARGET == "given":
        t = load_tile(t_ptr, stride_tn, stride_td, offs_n, offs_k, n, k, dtype)
    else:
        key = load_keys(
            t_ptr, stride_tn, stride_td, old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr,
            offs_n, offs_k, n, k, old_d, OLD_FORM, OLD_DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        bias = tl.load(bias_ptr + offs_k, mask=offs_k < k, other=0.0)
        t = POWER * score(key, OLD_NU, OLD_FORM) + bias[None, :]
    return t


@triton.jit
def _fold_target(
    top, total, cross, t, key, offs_k, k,
    TARGET: tl.constexpr, KL: tl.constexpr, FORM: tl.constexpr, NU: tl.constexpr,
):  # fmt: skip
    """One more tile into what a row's loss and its p are made of.

    given      total: the row's mass; cross: sum_j p (log p - s)
    snapshot   top, total: as in `fold`, of t; cross: sum_j exp(t - top) (t - s)
    one_hot    top: the largest t; total: its cluster; cross: -s there

    For the cross-entropy, cross is without log p or t.
    """
    mask_k = (offs_k < k)[None, :]
    s = tl.where(mask_k, score(key, NU, FORM), 0.0)
    if TARGET == "given":
        log_p = tl.log(tl.maximum(t, TINY)) if KL else tl.zeros_like(t)
        return top, total + tl.sum(t, 1), cross + tl.sum(t * (log_p - s), 1)
    if TARGET == "snapshot":
        new_top = tl.maximum(top, tl.max(t, 1))
        shrink = tl.exp(top - new_top)
        e = tl.exp(t - new_top[:, None])
        value = tl.where(mask_k, t, 0.0) - s if KL else -s
        return new_top, total * shrink + tl.sum(e, 1), cross * shrink + tl.sum(e * value, 1)
    tile_top, at = tl.max(t, 1, return_indices=True, return_indices_tie_break_left=True)
    label = tl.min(offs_k, 0) + at
    s_there = tl.sum(tl.where(offs_k[None, :] == label[:, None], s, 0.0), 1)
    wins = tile_top > top
    return (
        tl.where(wins, tile_top, top),
        tl.where(wins, label.to(total.dtype), total),
        tl.where(wins, -s_there, cross),
    )


@triton.jit
def _finish_target(
    top, total, cross, lse, TARGET: tl.constexpr, KL: tl.constexpr
):  # fmt: skip
    """The loss of each row, and the number that makes p of t: mass, lse(t), or the cluster."""
    if TARGET == "given":
        return cross + total * lse, total
    if TARGET == "snapshot":
        lse_t = top + tl.log(total)
        loss = cross / total + lse
        return (loss - lse_t if KL else loss), lse_t
    return cross + lse, total


@triton.jit
def _gradient_to_scores(
    q, t, p_norm, scale, offs_n, offs_k, n, TARGET: tl.constexpr
):  # fmt: skip
    """scale ds_ij (BLOCK_N, BLOCK_K), 0 past the ends."""
    if TARGET == "given":
        ds = p_norm[:, None] * q - t
    elif TARGET == "snapshot":
        ds = q - tl.exp(t - p_norm[:, None])
    else:
        ds = q - tl.where(offs_k[None, :] == p_norm[:, None].to(tl.int32), 1.0, 0.0)
    scale = tl.full((1, 1), scale, tl.float64).to(q.dtype)
    return tl.where((offs_n < n)[:, None], ds * scale, 0.0)


# --- kernels -----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n", "k", "stride_tn", "n_parts"])
def _target_loss_kernel(
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    t_ptr, stride_tn, stride_td,
    old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
    scale: tl.float64,
    loss_ptr, dz_ptr, totals_ptr, sums_ptr,
    n, k, d, n_parts,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr,
    TARGET: tl.constexpr, POWER: tl.constexpr, KL: tl.constexpr, NEEDS_GRAD: tl.constexpr,
    OLD_FORM: tl.constexpr, OLD_NU: tl.constexpr, OLD_DIRECT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    offs_k = tl.arange(0, BLOCK_K)
    loss = tl.zeros((BLOCK_N,), tl.float64)
    offs_d = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_K,), dtype)
    sums = tl.zeros((BLOCK_K, BLOCK_D), dtype)
    squares = tl.zeros((BLOCK_K, BLOCK_D), dtype)
    if NEEDS_GRAD:
        a, b = load_weights(a_ptr, b_ptr, origin_ptr, offs_k, offs_d, k, d, FORM, DIRECT)
    for first in range(part * BLOCK_N, n, n_parts * BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        key = load_keys(
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            offs_n, offs_k, n, k, d, FORM, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        t = _load_target(
            t_ptr, stride_tn, stride_td,
            old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
            offs_n, offs_k, n, k, TARGET, POWER, OLD_FORM, OLD_NU, OLD_DIRECT, dtype,
            PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        top_s, total_s = start_fold(BLOCK_N, dtype)
        top_s, total_s = fold_keys(top_s, total_s, key, NU, FORM)
        norm = normaliser(top_s, total_s, FORM)
        top_t, total_t = start_fold(BLOCK_N, dtype)
        top_t, total_t, cross = _fold_target(
            top_t, total_t, total_t, t, key, offs_k, k, TARGET, KL, FORM, NU
        )
        row_loss, p_norm = _finish_target(
            top_t, total_t, cross, log_sum_exp(norm, FORM), TARGET, KL
        )
        loss += tl.where(offs_n < n, row_loss, 0.0).to(tl.float64)
        if NEEDS_GRAD:
            q = soft_assignment(norm, key, NU, FORM)
            ds = _gradient_to_scores(q, t, p_norm, scale, offs_n, offs_k, n, TARGET)
            w = to_product(ds, key, NU, FORM)
            x = load_points(z_ptr, stride_zn, stride_zd, origin_ptr, offs_n, offs_d, n, d, dtype)
            dz = gradient_to_points(w, x, a, b, FORM, PRECISION)
            store_matrix(dz_ptr, offs_n, offs_d, n, d, dz)
            total += tl.sum(w, 0)
            sums = add_to_sums(sums, w, x, PRECISION)
            if FORM == "gaussian":
                squares = add_to_sums(squares, w, x * x, PRECISION)
    tl.store(loss_ptr + part, tl.sum(loss, 0))
    if NEEDS_GRAD:
        tl.store(totals_ptr + part * k + offs_k, total, mask=offs_k < k)
        sums_ptr = part_of(sums_ptr, part, k, d, FORM)
        store_matrix(sums_ptr, offs_k, offs_d, k, d, sums)
        if FORM == "gaussian":
            store_matrix(squares_of(sums_ptr, k, d), offs_k, offs_d, k, d, squares)


@triton.jit(do_not_specialize=["n", "k", "stride_tn"])
def _target_loss_rows_kernel(
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    t_ptr, stride_tn, stride_td,
    old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
    loss_ptr, norm_ptr, p_norm_ptr,
    n, k, d,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr,
    TARGET: tl.constexpr, POWER: tl.constexpr, KL: tl.constexpr,
    OLD_FORM: tl.constexpr, OLD_NU: tl.constexpr, OLD_DIRECT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    offs_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < n
    top_s, total_s = start_fold(BLOCK_N, dtype)
    top_t, total_t = start_fold(BLOCK_N, dtype)
    cross = tl.zeros((BLOCK_N,), dtype)
    for first in range(0, k, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)
        key = load_keys(
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            offs_n, offs_k, n, k, d, FORM, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        t = _load_target(
            t_ptr, stride_tn, stride_td,
            old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
            offs_n, offs_k, n, k, TARGET, POWER, OLD_FORM, OLD_NU, OLD_DIRECT, dtype,
            PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        top_s, total_s = fold_keys(top_s, total_s, key, NU, FORM)
        top_t, total_t, cross = _fold_target(
            top_t, total_t, cross, t, key, offs_k, k, TARGET, KL, FORM, NU
        )
    norm = normaliser(top_s, total_s, FORM)
    loss, p_norm = _finish_target(top_t, total_t, cross, log_sum_exp(norm, FORM), TARGET, KL)
    tl.store(loss_ptr + block, tl.sum(tl.where(mask_n, loss, 0.0).to(tl.float64), 0))
    tl.store(norm_ptr + offs_n, norm, mask=mask_n)
    tl.store(p_norm_ptr + offs_n, p_norm, mask=mask_n)


@triton.jit
def _load_w(
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    t_ptr, stride_tn, stride_td,
    old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
    scale, norm, p_norm,
    offs_n, offs_k, n, k, d,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr,
    TARGET: tl.constexpr, POWER: tl.constexpr,
    OLD_FORM: tl.constexpr, OLD_NU: tl.constexpr, OLD_DIRECT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """w (BLOCK_N, BLOCK_K) of a tile, of rows whose normalisers are known."""
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    t = _load_target(
        t_ptr, stride_tn, stride_td,
        old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
        offs_n, offs_k, n, k, TARGET, POWER, OLD_FORM, OLD_NU, OLD_DIRECT, dtype,
        PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    key = load_keys(
        z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
        offs_n, offs_k, n, k, d, FORM, DIRECT, PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    q = soft_assignment(norm, key, NU, FORM)
    ds = _gradient_to_scores(q, t, p_norm, scale, offs_n, offs_k, n, TARGET)
    return to_product(ds, key, NU, FORM)


@triton.jit(do_not_specialize=["n", "k", "stride_tn"])
def _target_loss_dz_kernel(
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    t_ptr, stride_tn, stride_td,
    old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
    scale: tl.float64,
    norm_ptr, p_norm_ptr, dz_ptr,
    n, k, d,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr,
    TARGET: tl.constexpr, POWER: tl.constexpr,
    OLD_FORM: tl.constexpr, OLD_NU: tl.constexpr, OLD_DIRECT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    norm = tl.load(norm_ptr + offs_n, mask=offs_n < n, other=0.0)
    p_norm = tl.load(p_norm_ptr + offs_n, mask=offs_n < n, other=0.0)
    for first in range(0, k, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)
        w = _load_w(
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            t_ptr, stride_tn, stride_td,
            old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
            scale, norm, p_norm, offs_n, offs_k, n, k, d,
            FORM, NU, DIRECT, TARGET, POWER, OLD_FORM, OLD_NU, OLD_DIRECT,
            PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        pull_to_points(
            w, z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, origin_ptr, dz_ptr,
            offs_n, offs_k, n, k, d, FORM, DIRECT, PRECISION, BLOCK_D,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n", "k", "stride_tn", "n_parts"])
def _target_loss_sums_kernel(
    z_ptr, stride_zn, stride_zd,
    a_ptr, b_ptr, offset_ptr, origin_ptr,
    t_ptr, stride_tn, stride_td,
    old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
    scale: tl.float64,
    norm_ptr, p_norm_ptr, totals_ptr, sums_ptr,
    n, k, d, n_parts,
    FORM: tl.constexpr, NU: tl.constexpr, DIRECT: tl.constexpr,
    TARGET: tl.constexpr, POWER: tl.constexpr,
    OLD_FORM: tl.constexpr, OLD_NU: tl.constexpr, OLD_DIRECT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1).to(tl.int64)
    offs_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_K,), a_ptr.dtype.element_ty)
    sums_ptr = part_of(sums_ptr, part, k, d, FORM)
    for first in range(part * BLOCK_N, n, n_parts * BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        norm = tl.load(norm_ptr + offs_n, mask=offs_n < n, other=0.0)
        p_norm = tl.load(p_norm_ptr + offs_n, mask=offs_n < n, other=0.0)
        w = _load_w(
            z_ptr, stride_zn, stride_zd, a_ptr, b_ptr, offset_ptr, origin_ptr,
            t_ptr, stride_tn, stride_td,
            old_a_ptr, old_b_ptr, old_offset_ptr, old_origin_ptr, bias_ptr, old_d,
            scale, norm, p_norm, offs_n, offs_k, n, k, d,
            FORM, NU, DIRECT, TARGET, POWER, OLD_FORM, OLD_NU, OLD_DIRECT,
            PRECISION, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        total += tl.sum(w, 0)
        pull_to_sums(
            w, z_ptr, stride_zn, stride_zd, origin_ptr, sums_ptr,
            offs_n, offs_k, n, k, d, FORM, PRECISION, BLOCK_K, BLOCK_D,
        )  # fmt: skip
    tl.store(totals_ptr + part * k + offs_k, total, mask=offs_k < k)


# --- launching ---------------------------------------------------------------------------------


def forward(
    z: Tensor,
    head: Head,
    target: Tensor | Snapshot,
    kind: str,
    scale: float,
    needs_grad: bool,
    precision: str,
    check: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The loss (), dz (N, D) and the gradients to the head's parameters, all times `scale`."""
    if check:
        check_values(z, head)
        if isinstance(target, Tensor):
            check_nonnegative("target", target)
    chip = chip_of(z.device)
    packed = PackedHead(head)
    tiles, fused = packed.gradient_tiles(chip)
    n, k, d = z.shape[0], packed.k, packed.d
    t, old, old_constants = _packed_target(target, head.dtype)
    constants = {**packed.constants(tiles, chip, precision), **old_constants}
    loss = torch.zeros((), dtype=torch.float64, device=z.device)
    # Tiles of clusters add to dz, unless one of them holds all.
    make_dz = torch.empty if fused else torch.zeros
    dz = make_dz((n, d) if needs_grad else 0, dtype=head.dtype, device=z.device)
    reduced = []
    for rows in row_segments(n):
        n_rows = rows.stop - rows.start
        t_rows = t[rows].to(z.device)
        inputs = (z[rows], *z.stride(), *packed.args, t_rows, *t_rows.stride(), *old)
        sums = Sums(packed, n_rows, tiles, z.device) if needs_grad else None
        sums_args = (None, None) if sums is None else sums.args
        dz_rows = dz[rows] if needs_grad else None
        if fused:
            parts = parts_of(n_rows, tiles.n, 8) if sums is None else sums.parts
            losses = loss.new_empty(parts)
            launch(
                _target_loss_kernel, (parts,), *inputs, scale, losses, dz_rows, *sums_args,
                n_rows, k, d, parts, tiles=tiles, KL=kind == "kl", NEEDS_GRAD=needs_grad,
                **constants,
            )  # fmt: skip
        else:
            blocks = cdiv(n_rows, tiles.n)
            losses = loss.new_empty(blocks)
            norms = [torch.empty(n_rows, dtype=head.dtype, device=z.device) for _ in range(2)]
            launch(
                _target_loss_rows_kernel, (blocks,), *inputs, losses, *norms, n_rows, k, d,
                tiles=tiles, KL=kind == "kl", **constants,
            )  # fmt: skip
            if sums is not None:
                launch(
                    _target_loss_dz_kernel, (blocks,), *inputs, scale, *norms, dz_rows,
                    n_rows, k, d, tiles=tiles, **constants,
                )  # fmt: skip
                launch(
                    _target_loss_sums_kernel, (cdiv(k, tiles.k), sums.parts), *inputs, scale,
                    *norms, *sums.args, n_rows, k, d, sums.parts, tiles=tiles, **constants,
                )  # fmt: skip
        loss += losses.sum()
        if sums is not None:
            reduced.append(sums.reduced())
    dparams = parameter_gradients(packed, reduced) if needs_grad else []
    return scale * loss, dz.to(z.dtype), dparams


def _packed_target(
    target: Tensor | Snapshot, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor | int | None, ...], dict[str, Any]]:
    """t_ptr's rows (p or z_old), what else the snapshot has, and the kernels' constants."""
    if isinstance(target, Tensor):
        constants = {"TARGET": "given", "POWER": 1.0}
        return target, (None,) * 5 + (0,), {**constants, **_old_form(None)}
    old = PackedHead(target.head.to(dtype))
    bias = target.bias.to(dtype).contiguous()
    one_hot = math.isinf(target.power)
    constants = {
        "TARGET": "one_hot" if one_hot else "snapshot",
        "POWER": 1.0 if one_hot else target.power,
    }
    return target.z, (*old.args, bias, old.d), {**constants, **_old_form(old)}


def _old_form(old: PackedHead | None) -> dict[str, Any]:
    if old is None:
        return {"OLD_FORM": "none", "OLD_NU": 1.0, "OLD_DIRECT": False}
    return {"OLD_FORM": old.form, "OLD_NU": old.nu, "OLD_DIRECT": old.direct}
