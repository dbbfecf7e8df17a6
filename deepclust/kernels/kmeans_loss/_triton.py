"""sum_i ||z_i - mu_{labels_i}||^2 in Triton.

    dz_i = 2 (z_i - mu_{labels_i})          dmu_j = -sum of dz_i over the rows with label j

One kernel: a program walks over its share of the rows, BLOCK_D columns at a time, and each place of
its tile adds up the squares that pass it; the places are added up in float64. It writes dz at once.
Where K and D are small it adds up the differences by label too, in the same pass, as
kmeans_update/_triton.py does; larger ones take the update's own kernels, which compute the
differences again: dz may be rounded to a half type.

Partial sums are added up in the programs' order, in float64. Differences are in float32, or
float64 where the centroids are. Reads N D numbers (twice for the gradients where K or D is large)
and N labels, writes N D; 3 N D operations, or 5.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepclust.kernels import _checks
from deepclust.kernels._launch import launch, parts_of
from deepclust.kernels._tiles import chip_of, precision_for, tiles_for
from deepclust.kernels.kmeans_update._triton import (
    add_to_sums,
    label_sums,
    load_labels,
    load_rows,
    one_hot_tiles,
    store_sums,
)


@triton.jit(do_not_specialize=["n", "k", "n_parts"])
def _kmeans_loss_fwd_kernel(
    z_ptr, stride_zn, stride_zd,
    mu_ptr, labels_ptr,
    loss_ptr, dz_ptr, sums_ptr,
    n, k, d, n_parts, scale: tl.float64,
    PRECISION: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = mu_ptr.dtype.element_ty
    factor = tl.full((1, 1), 2 * scale, tl.float64).to(dtype)
    loss = tl.zeros((BLOCK_N, BLOCK_D), dtype)
    sums = tl.zeros((GROUPS, BLOCK_K, BLOCK_D), tl.float64)
    for first_n in range(part * BLOCK_N, n, n_parts * BLOCK_N):
        offs_n = first_n + tl.arange(0, BLOCK_N)
        label = load_labels(labels_ptr, offs_n, n, k)
        for first_d in range(0, d, BLOCK_D):
            offs_d = first_d + tl.arange(0, BLOCK_D)
            difference = load_rows(
                z_ptr, stride_zn, stride_zd, mu_ptr, offs_n, offs_d, label, d, dtype
            )
            loss += difference * difference
            if dz_ptr is not None:
                dz_ptrs = dz_ptr + offs_n[:, None] * d + offs_d[None, :]
                mask = (offs_n < n)[:, None] & (offs_d < d)[None, :]
                tl.store(dz_ptrs, (factor * difference).to(dz_ptr.dtype.element_ty), mask=mask)
            if sums_ptr is not None:  # then BLOCK_D is not below D
                sums = add_to_sums(sums, label, difference, PRECISION, GROUPS, BLOCK_K)
    tl.store(loss_ptr + part, tl.sum(tl.sum(loss.to(tl.float64), 1), 0))
    if sums_ptr is not None:
        store_sums(sums_ptr, sums, part, tl.arange(0, BLOCK_D), k, d)


def forward(
    z: Tensor, centroids: Tensor, labels: Tensor, scale: float, needs_grad: bool, check: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), dz (N, D) and dmu (K, D), all times `scale`."""
    if check:
        _checks.check_finite("z", z)
        _checks.check_finite("centroids", centroids)
        _checks.check_label_range("labels", labels, len(centroids))
    mu, labels = centroids.contiguous(), labels.contiguous()
    (n, d), k, dtype = z.shape, len(mu), mu.dtype
    chip = chip_of(z.device)
    tiles, groups = tiles_for("stream", chip, d, itemsize=dtype.itemsize), 1
    one_hot = one_hot_tiles(chip, k, d, dtype)
    fused = needs_grad and one_hot is not None and d <= one_hot[0].d
    if one_hot is not None and fused:
        tiles, groups = one_hot
    parts = parts_of(n, tiles.n, 8 * (k * d if fused else 1))
    loss = torch.empty(parts, dtype=torch.float64, device=z.device)
    sums = loss.new_empty(parts, k, d) if fused else None
    dz = torch.empty_like(z, memory_format=torch.contiguous_format) if needs_grad else None
    launch(
        _kmeans_loss_fwd_kernel, (parts,), z, *z.stride(), mu, labels, loss, dz, sums,
        n, k, d, parts, scale, tiles=tiles, PRECISION=precision_for("exact", chip, dtype),
        GROUPS=groups, BLOCK_N=tiles.n, BLOCK_K=tiles.k, BLOCK_D=tiles.d,
    )  # fmt: skip
    if dz is None:
        return scale * loss.sum(), z.new_empty(0), centroids.new_empty(0)
    total = label_sums(z, labels, k, None, mu)[0] if sums is None else sums.sum(0)
    return scale * loss.sum(), dz, (-2 * scale * total).to(dtype)
