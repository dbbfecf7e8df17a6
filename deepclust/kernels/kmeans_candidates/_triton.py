"""sq_dist_ci = min(nearest_i, ||x_i - m_c||^2), potentials_c = sum_i w_i sq_dist_ci, in Triton.

A program has BLOCK_N rows and goes through the candidates, BLOCK_D columns at a time, by direct
differences; its rows come from the cache for all candidates but the first. It leaves one partial
potential for each candidate, in float64; torch adds these up in the programs' order.

In float32, or float64 where the candidates are. Reads N D numbers and writes C N, and C N / BLOCK_N
partial potentials; 3 N C D operations.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepclust.kernels import _checks
from deepclust.kernels._launch import cdiv, launch
from deepclust.kernels._tiles import chip_of, tiles_for
from deepclust.kernels._triton_heads import load_points


@triton.jit(do_not_specialize=["n", "n_candidates"])
def _kmeans_candidates_fwd_kernel(
    x_ptr, stride_xn, stride_xd,
    m_ptr, nearest_ptr, weight_ptr,
    sq_dist_ptr, potentials_ptr,
    n, n_candidates, d,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = m_ptr.dtype.element_ty
    offs_n = part * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < n
    nearest = tl.full((BLOCK_N,), float("inf"), dtype)
    if nearest_ptr is not None:
        nearest = tl.load(nearest_ptr + offs_n, mask=mask_n, other=0.0)
    weight = mask_n.to(tl.float64)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float64)
    sq_dist_ptrs = sq_dist_ptr + offs_n
    for c in range(0, n_candidates):
        acc = tl.zeros((BLOCK_N, BLOCK_D), dtype)
        for first in range(0, d, BLOCK_D):
            offs_d = first + tl.arange(0, BLOCK_D)
            x = load_points(x_ptr, stride_xn, stride_xd, None, offs_n, offs_d, n, d, dtype)
            m = tl.load(m_ptr + offs_d, mask=offs_d < d, other=0.0)
            difference = x - m[None, :]
            acc += difference * difference
        sq_dist = tl.minimum(tl.sum(acc, 1), nearest)
        tl.store(sq_dist_ptrs, sq_dist, mask=mask_n)
        potential = tl.sum(sq_dist.to(tl.float64) * weight, 0)
        tl.store(potentials_ptr + part * n_candidates + c, potential)
        m_ptr += d
        sq_dist_ptrs += n


def forward(
    x: Tensor,
    candidates: Tensor,
    nearest: Tensor | None,
    sample_weight: Tensor | None,
    check: bool,
    sq_dist: Tensor,
) -> Tensor:
    """Fills sq_dist (C, N); potentials (C,) in float64."""
    if check:
        _checks.check_finite("x", x)
        _checks.check_finite("candidates", candidates)
    m = candidates.contiguous()
    (n, d), n_candidates, dtype = x.shape, len(m), m.dtype
    tiles = tiles_for("stream", chip_of(x.device), d, itemsize=dtype.itemsize)
    parts = cdiv(n, tiles.n)
    potentials = m.new_empty(parts, n_candidates, dtype=torch.float64)
    launch(
        _kmeans_candidates_fwd_kernel, (parts,), x, *x.stride(), m,
        None if nearest is None else nearest.contiguous(),
        None if sample_weight is None else sample_weight.contiguous(),
        sq_dist, potentials, n, n_candidates, d, tiles=tiles, BLOCK_N=tiles.n, BLOCK_D=tiles.d,
    )  # fmt: skip
    return potentials.sum(0)
