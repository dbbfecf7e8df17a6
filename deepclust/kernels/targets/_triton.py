"""p_ij = (q_ij (u_j / f_j)^(1/2))^power, divided by its row sum, in Triton.

    f             a program walks over its share of the rows, a tile of columns in registers
    K <= BLOCK_K  one pass, the row in registers: its largest ratio, its sum, p
    else          three passes over tiles of the row, which the cache still has

Programs leave partial sums of f, which are added up in their order, in float64; the K factors
(u_j / f_j)^(1/2) are found in float64. Rows are in float32, or float64 where q is. Reads N K
numbers, twice without f (and twice more from the cache where K is large), and writes as many; six
operations a number.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepclust.kernels._checks import check_nonnegative
from deepclust.kernels._launch import cdiv, launch, parts_of
from deepclust.kernels._tiles import chip_of, power_of_2, tiles_for


@triton.jit
def _load_ratios(q_ptr, stride_qn, stride_qk, factor_ptr, offs_n, offs_k, n, k):
    """q_ij (u_j / f_j)^(1/2) (BLOCK_N, BLOCK_K), 0 past the ends."""
    mask_k = offs_k < k
    q = tl.load(
        q_ptr + offs_n[:, None] * stride_qn + offs_k[None, :].to(tl.int64) * stride_qk,
        mask=(offs_n < n)[:, None] & mask_k[None, :],
        other=0.0,
    )
    return q * tl.load(factor_ptr + offs_k, mask=mask_k, other=0.0)[None, :]


@triton.jit
def _to_power(ratio, POWER: tl.constexpr):
    """ratio^POWER of numbers from 0 to 1."""
    if POWER == 1:
        return ratio
    if POWER == 2:
        return ratio * ratio
    return tl.where(ratio > 0, tl.exp(POWER * tl.log(ratio)), 0.0)


@triton.jit(do_not_specialize=["n", "k", "stride_qn", "n_parts"])
def _targets_frequencies_kernel(
    q_ptr, stride_qn, stride_qk,
    f_ptr,
    n, k, n_parts,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1).to(tl.int64)
    offs_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_k = offs_k < k
    q_ptrs = q_ptr + offs_k[None, :].to(tl.int64) * stride_qk
    f = tl.zeros((BLOCK_K,), tl.float64)
    for first in range(part * BLOCK_N, n, n_parts * BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        mask = (offs_n < n)[:, None] & mask_k[None, :]
        q = tl.load(q_ptrs + offs_n[:, None] * stride_qn, mask=mask, other=0.0)
        f += tl.sum(q, 0).to(tl.float64)
    tl.store(f_ptr + part * k + offs_k, f, mask=mask_k)


@triton.jit(do_not_specialize=["n", "k", "stride_qn"])
def _targets_fwd_kernel(
    q_ptr, stride_qn, stride_qk,
    factor_ptr, p_ptr,
    n, k,
    POWER: tl.constexpr, TINY: tl.constexpr, ONE_PASS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < n
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    offs_k = tl.arange(0, BLOCK_K)
    p_ptrs = p_ptr + offs_n[:, None] * k
    if ONE_PASS:
        ratio = _load_ratios(q_ptr, stride_qn, stride_qk, factor_ptr, offs_n, offs_k, n, k)
        inverse = 1 / tl.maximum(tl.max(ratio, 1), TINY)
        # Divided by the row's largest, no power underflows where it matters.
        weight = _to_power(ratio * inverse[:, None], POWER)
        norm = 1 / tl.maximum(tl.sum(weight, 1), TINY)
        mask = mask_n[:, None] & (offs_k < k)[None, :]
        tl.store(p_ptrs + offs_k[None, :], weight * norm[:, None], mask=mask)
    else:
        top = tl.full((BLOCK_N,), TINY, dtype)
        for first in range(0, k, BLOCK_K):
            ratio = _load_ratios(
                q_ptr, stride_qn, stride_qk, factor_ptr, offs_n, first + offs_k, n, k
            )
            top = tl.maximum(tl.max(ratio, 1), top)
        inverse = 1 / top
        total = tl.zeros((BLOCK_N,), dtype)
        for first in range(0, k, BLOCK_K):
            ratio = _load_ratios(
                q_ptr, stride_qn, stride_qk, factor_ptr, offs_n, first + offs_k, n, k
            )
            total += tl.sum(_to_power(ratio * inverse[:, None], POWER), 1)
        norm = 1 / tl.maximum(total, TINY)
        for first in range(0, k, BLOCK_K):
            ratio = _load_ratios(
                q_ptr, stride_qn, stride_qk, factor_ptr, offs_n, first + offs_k, n, k
            )
            weight = _to_power(ratio * inverse[:, None], POWER)
            mask = mask_n[:, None] & (first + offs_k < k)[None, :]
            tl.store(p_ptrs + first + offs_k[None, :], weight * norm[:, None], mask=mask)


def forward(
    q: Tensor, frequencies: Tensor | None, prior: Tensor | None, power: float, check: bool
) -> Tensor:
    """p (N, K)."""
    if check:
        check_nonnegative("q", q)
    n, k = q.shape
    chip = chip_of(q.device)
    tiles = tiles_for("stream", chip, k, itemsize=q.dtype.itemsize)
    # As many numbers as the table says, in rows as long as they are, up to a power of 2.
    elements, wide = tiles.n * tiles.k, max(16, power_of_2(k))
    block_k = min(wide, elements)
    if frequencies is None:
        parts = parts_of(n, tiles.n, 8 * k)
        partial = torch.empty(parts, k, dtype=torch.float64, device=q.device)
        block = min(wide, tiles.k)
        launch(
            _targets_frequencies_kernel, (cdiv(k, block), parts), q, *q.stride(), partial,
            n, k, parts, tiles=tiles, BLOCK_N=elements // block, BLOCK_K=block,
        )  # fmt: skip
        frequencies = partial.sum(0)
    tiny = torch.finfo(q.dtype).tiny
    factor = frequencies.double().clamp_min(tiny).rsqrt()
    if prior is not None:
        factor = factor * prior.double().sqrt()
    p = torch.empty_like(q, memory_format=torch.contiguous_format)
    block_n = elements // block_k
    launch(
        _targets_fwd_kernel, (cdiv(n, block_n),), q, *q.stride(), factor.to(q.dtype), p,
        n, k, tiles=tiles,
        POWER=power, TINY=tiny, ONE_PASS=k <= block_k, BLOCK_N=block_n, BLOCK_K=block_k,
    )  # fmt: skip
    return p
