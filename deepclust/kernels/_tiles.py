"""Tile settings of the Triton kernels: a small table by kind of work and chip.

A kernel's tile is BLOCK_N points by BLOCK_K clusters, whose products are taken BLOCK_D columns at a
time; `warps` and `stages` are Triton's. Every line says why. `python -m deepclust.kernels.inspect`
shows what a line compiles to on each chip; `python -m deepclust.kernels.tune` finds one for a GPU.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch


class Chip(NamedTuple):
    """What the choice of tiles depends on.

    Attributes:
        name: "sm_90", "gfx942"; "interpreter" on the CPU.
        shared: Bytes of shared memory that one program may have.
    """

    name: str
    shared: int

    @property
    def is_nvidia(self) -> bool:
        """Whether this is one of NVIDIA's."""
        return self.name.startswith("sm_")

    @property
    def has_tf32(self) -> bool:
        """Whether its matrix instructions take TF32: NVIDIA's since Ampere do."""
        return self.is_nvidia and int(self.name.removeprefix("sm_")) >= 80

    @property
    def is_amd(self) -> bool:
        """Whether this is one of AMD's."""
        return self.name.startswith("gfx")


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("sm_80", 163 << 10),  # A100
        Chip("sm_86", 99 << 10),  # A10, RTX 30
        Chip("sm_89", 99 << 10),  # L4, RTX 40
        Chip("sm_90", 227 << 10),  # H100, H200
        Chip("sm_100", 227 << 10),  # B200
        Chip("sm_120", 99 << 10),  # RTX 50
        Chip("gfx942", 64 << 10),  # MI300
        Chip("gfx950", 160 << 10),  # MI350
    )
}
INTERPRETER = Chip("interpreter", 64 << 10)


class Tiles(NamedTuple):
    """The shape of a tile, and Triton's number of warps and of pipeline stages."""

    n: int
    k: int
    d: int
    warps: int
    stages: int


# (kind of work, chips, tiles). The first line that fits a chip's name, by its beginning, holds.
#   "columns"  D <= DIRECT_WIDTH: one column of D at a time, in registers
#   "product"  one matrix product over tiles of clusters: assign, frequencies
#   "nearest"  one matrix product whose least numbers stay in registers: hard assignment
#   "held"     the same, for rows of up to d columns, which stay in registers too
#   "fused"    products and their pull-back in registers, for up to k clusters and d columns
#   "gradient" products and their pull-back, for any number of clusters and columns
#   "stream"   elements read once and written once: targets, k-means loss
#   "sums"     rows added up by label, in a product with their one-hot matrix: for up to k clusters,
#              n rows in each of up to as many groups as warps
#   "pieces"   rows added up that are gathered through an order; no clusters
TABLE: tuple[tuple[str, str, Tiles], ...] = (
    # The interpreter's time goes by operations, whatever their size; small N sees ragged edges.
    ("columns", "interpreter", Tiles(64, 64, 16, 4, 1)),
    ("product", "interpreter", Tiles(64, 64, 32, 4, 1)),
    ("held", "interpreter", Tiles(64, 32, 64, 4, 1)),
    ("nearest", "interpreter", Tiles(64, 32, 32, 4, 1)),
    ("fused", "interpreter", Tiles(64, 32, 32, 4, 1)),
    ("gradient", "interpreter", Tiles(64, 64, 32, 4, 1)),
    ("stream", "interpreter", Tiles(64, 64, 32, 4, 1)),
    ("sums", "interpreter", Tiles(64, 64, 32, 4, 1)),
    ("pieces", "interpreter", Tiles(8, 0, 64, 4, 1)),
    # 16 pairs a thread: enough work between two loads of a column, and about 70 registers.
    ("columns", "", Tiles(128, 16, 16, 4, 2)),
    # wgmma wants 64 rows for each of two warp groups.
    ("product", "sm_90", Tiles(128, 64, 16, 8, 3)),
    ("product", "sm_100", Tiles(128, 64, 16, 8, 3)),
    ("product", "gfx", Tiles(64, 64, 32, 4, 2)),
    # Operands of 32 columns in three parts, beside two products for the Gaussian, would spill.
    ("product", "", Tiles(64, 32, 16, 4, 2)),
    # The wgmma of the rows that are held takes them from shared memory, and leaves registers.
    ("held", "sm_90", Tiles(128, 32, 64, 4, 2)),
    ("held", "sm_100", Tiles(128, 32, 64, 8, 2)),
    ("held", "", Tiles(64, 32, 64, 4, 2)),
    ("nearest", "sm_90", Tiles(128, 64, 16, 8, 3)),
    ("nearest", "sm_100", Tiles(128, 64, 16, 8, 3)),
    ("nearest", "gfx", Tiles(64, 64, 32, 4, 2)),
    # Operands of 32 columns in three parts, beside the least keys and their tiles, would spill.
    ("nearest", "", Tiles(64, 64, 16, 4, 2)),
    ("fused", "", Tiles(32, 32, 32, 4, 2)),
    # wgmma wants 64 rows; 32 columns at a time would spill, where the Gaussian has two products.
    ("gradient", "sm_90", Tiles(64, 32, 16, 4, 2)),
    ("gradient", "sm_100", Tiles(64, 32, 16, 4, 2)),
    ("gradient", "gfx", Tiles(64, 32, 16, 4, 2)),
    ("gradient", "", Tiles(32, 32, 16, 4, 2)),
    ("stream", "", Tiles(128, 32, 32, 4, 2)),
    # Past 64 clusters the product with ones and zeros costs more than a sort of the labels; 16 rows
    # are what a warp's operands have registers for, beside the sums in float64.
    ("sums", "", Tiles(16, 64, 32, 4, 1)),
    # 32 rows in flight, as each address comes from the order first.
    ("pieces", "", Tiles(32, 0, 128, 4, 2)),
)

DIRECT_WIDTH = 32  # up to here distances are sums of squared differences

_pretended: list[Chip] = []
_overrides: list[tuple[str, Tiles]] = []


@contextlib.contextmanager
def pretend(chip: Chip) -> Iterator[None]:
    """Choose tiles as if every tensor were on `chip`, which need not be there."""
    _pretended.append(chip)
    try:
        yield
    finally:
        _pretended.pop()


@contextlib.contextmanager
def override(kind: str, tiles: Tiles) -> Iterator[None]:
    """Let `tiles` stand for the table's line for this kind of work."""
    _overrides.append((kind, tiles))
    try:
        yield
    finally:
        _overrides.pop()


def chip_of(device: torch.device) -> Chip:
    """The chip that `device` is."""
    if _pretended:
        return _pretended[-1]
    if device.type == "cpu":
        return INTERPRETER
    return _cuda_chip(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _cuda_chip(index: int) -> Chip:
    found = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        name = found.gcnArchName.split(":")[0]
        return CHIPS.get(name, Chip(name, found.shared_memory_per_block))
    name = f"sm_{found.major}{found.minor}"
    # What every chip since 2018 has, where torch does not tell.
    return CHIPS.get(name, Chip(name, getattr(found, "shared_memory_per_block_optin", 64 << 10)))


def tiles_for(kind: str, chip: Chip, d: int, k: int | None = None, itemsize: int = 4) -> Tiles:
    """The table's line for this work, no wider than D and K need, fitted to the chip."""
    lines = [(kind, "", tiles) for kind, tiles in reversed(_overrides)]
    tiles = next(
        tiles
        for line, name, tiles in (*lines, *TABLE)
        if line == kind and chip.name.startswith(name)
    )
    # 16 is the least width of a matrix instruction.
    tiles = tiles._replace(d=min(tiles.d, max(16, power_of_2(d))))
    if itemsize == 8:  # a number takes two registers
        tiles = tiles._replace(n=max(16, tiles.n // 2))
    if k is not None:
        tiles = tiles._replace(k=min(tiles.k, max(16, power_of_2(k))))
    while itemsize * tiles.stages * (tiles.n + tiles.k) * tiles.d > chip.shared:
        if tiles.stages > 1:
            tiles = tiles._replace(stages=tiles.stages - 1)
        elif tiles.d > 16:
            tiles = tiles._replace(d=tiles.d // 2)
        else:
            break
    return tiles


def power_of_2(value: int) -> int:
    """The least power of 2 that is not below `value`."""
    return 1 << max(value - 1, 0).bit_length()


def precision_for(precision: str, chip: Chip, dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: Triton's name for it.

    Triton's default for float32 is TF32, with 11 bits, which moves labels. "exact" is 3xTF32 on
    NVIDIA (22 bits) and the float32 matrix instructions of AMD's CDNA chips, which have all 24; two
    parts of bfloat16 (bf16x3) would keep 16.
    """
    if dtype == torch.float64 or not chip.has_tf32:
        return "ieee"
    return "tf32x3" if precision == "exact" else "tf32"
