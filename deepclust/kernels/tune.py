"""Finds the tiles of the Triton kernels for the GPU that is here, by timing the primitives.

    python -m deepclust.kernels.tune
    python -m deepclust.kernels.tune --kind product gradient

For each kind of work in `_tiles.TABLE`, candidates are put in the table's place and the primitive
that represents the kind runs at a representative shape. A candidate that does not compile, spills
registers, or errs against `eager` is left out. The best is printed as a line for the table, with
its time and that of the present line.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deepclust.kernels import _dispatch
from deepclust.kernels._launch import recording
from deepclust.kernels._tiles import Chip, Tiles, chip_of, override, tiles_for
from deepclust.kernels.frequencies.op import frequencies
from deepclust.kernels.inspect import compile_launch, machine_code
from deepclust.kernels.kmeans_assign.op import kmeans_assign
from deepclust.kernels.kmeans_update.op import kmeans_update
from deepclust.kernels.target_loss.op import target_loss
from deepclust.kernels.target_loss.snapshot import freeze_target
from deepclust.kernels.targets.op import dec_target

Work = Callable[[str], Sequence[Tensor]]  # the results of a backend

SIZES = {
    "columns": [(n, k, 16) for n in (64, 128, 256) for k in (16, 32)],
    "product": [(n, k, d) for n in (64, 128) for k in (32, 64, 128) for d in (16, 32, 64)],
    "nearest": [(n, k, d) for n in (64, 128) for k in (32, 64, 128) for d in (16, 32, 64)],
    "held": [(n, k, 64) for n in (64, 128) for k in (32, 64, 128)],
    "fused": [(n, 32, 32) for n in (16, 32, 64, 128)],
    "gradient": [(n, k, d) for n in (32, 64, 128) for k in (16, 32, 64) for d in (16, 32, 64)],
    "stream": [(n, 32, 32) for n in (32, 64, 128, 256)],
    "sums": [(n, 64, d) for n in (16, 32) for d in (16, 32, 64)],
    "pieces": [(n, 0, d) for n in (16, 32, 64) for d in (32, 64, 128)],
}
# N, D and K at which each kind of work is timed.
SHAPES = {
    "columns": (1 << 20, 10, 64),
    "product": (1 << 17, 128, 1024),
    "nearest": (1 << 17, 128, 1024),
    "held": (1 << 18, 64, 1000),
    "fused": (1 << 20, 10, 10),
    "gradient": (1 << 17, 128, 1024),
    "stream": (1 << 20, 128, 256),
    "sums": (1 << 20, 64, 10),
    "pieces": (1 << 20, 128, 1024),
}


def candidates(kind: str) -> Iterator[Tiles]:
    """The settings to try."""
    stages = (1,) if kind == "columns" else (1, 2, 3)
    for sizes, warps, depth in itertools.product(SIZES[kind], (4, 8), stages):
        yield Tiles(*sizes, warps, depth)


def work(kind: str, device: torch.device) -> Work:
    """What represents this kind of work, at its shape."""
    n, d, k = SHAPES[kind]
    generator = torch.Generator(device).manual_seed(0)
    z = torch.randn(n, d, device=device, generator=generator)
    centroids = torch.randn(k, d, device=device, generator=generator)
    if kind in ("columns", "nearest", "held"):
        return lambda backend: kmeans_assign(z, centroids, backend=backend)
    if kind == "product":
        return lambda backend: frequencies(z, centroids, backend=backend)[:2]
    if kind in ("sums", "pieces"):
        labels = torch.randint(k, (n,), device=device, generator=generator)
        return lambda backend: kmeans_update(z, labels, k, backend=backend)
    if kind == "stream":
        q = torch.rand(n, k, device=device, generator=generator)
        return lambda backend: [dec_target(q / k, backend=backend)]
    target = freeze_target(z, centroids, backend="eager")
    centroids = centroids + 0.01 * torch.randn(k, d, device=device, generator=generator)
    leaves = [z.requires_grad_(), centroids.requires_grad_()]

    def loss(backend: str) -> Sequence[Tensor]:
        value = target_loss(z, centroids, target, backend=backend)
        return value, *torch.autograd.grad(value, leaves)

    return loss


def agrees(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether results are right; labels may differ where two centroids are about as far."""
    for a, b in zip(found, expected, strict=True):
        if a.is_floating_point():
            if not bool((a - b).abs().max() <= 1e-3 * b.abs().max()):
                return False
        elif float((a != b).double().mean()) > 1e-4:
            return False
    return True


def spills(run: Work) -> bool:
    """Whether a kernel that `run` launches has a stack."""
    with recording() as launches:
        run("triton")
    return any(machine_code(compile_launch(launch)).stack for launch in launches)


def tune(kind: str, device: torch.device) -> str:
    """The best line for the table, with its time."""
    from triton.testing import do_bench

    chip: Chip = chip_of(device)
    run, (_, d, k) = work(kind, device), SHAPES[kind]
    expected = run("eager")
    times: dict[Tiles, float] = {}
    present = tiles_for(kind, chip, d, k)
    for tiles in dict.fromkeys([present, *candidates(kind)]):
        with override(kind, tiles):
            if tiles_for(kind, chip, d, k) != tiles:
                continue  # it does not fit the chip
            try:
                if not spills(run) and agrees(run("triton"), expected):
                    times[tiles] = float(do_bench(lambda: run("triton"), return_mode="median"))
            except Exception as error:  # whatever a compiler says
                print(f"{kind} {tiles}: {str(error).strip()[:200]}", file=sys.stderr)
    if not times:
        return f"    # {kind}: no setting works on {chip.name}"
    best = min(times, key=times.__getitem__)
    before = f"{times[present]:.3g} ms" if present in times else "fails"
    return f'    ("{kind}", "{chip.name}", {_line(best)}),  # {times[best]:.3g} ms; now {before}'


def _line(tiles: Tiles) -> str:
    return f"Tiles({', '.join(map(str, tiles))})"


def _why_not() -> str | None:
    """Why nothing can be timed here, or None if it can."""
    if (why_not := _dispatch.why_no_triton()) is not None:
        return why_not
    if _dispatch.interprets_triton():
        return "TRITON_INTERPRET is set: what is interpreted cannot be timed"
    return None if torch.cuda.is_available() else "there is no GPU that torch can use"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deepclust.kernels.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds: Any = tuple(SIZES)
    parser.add_argument("--kind", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args(arguments)
    if (why_not := _why_not()) is not None:
        print(f"tune: {why_not}", file=sys.stderr)
        return 2
    for kind in options.kind:
        print(tune(kind, torch.device("cuda")), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
