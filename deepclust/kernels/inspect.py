"""What the Triton kernels compile to on each chip, found without a GPU.

    python -m deepclust.kernels.inspect --target sm_90 gfx942
    python -m deepclust.kernels.inspect --primitive assign --json
    python -m deepclust.kernels.inspect --head student_t --shape 10x10 64x1000 --markdown

Every kernel is compiled ahead of time as that chip would get it: with the tiles of the table, at
representative widths D and numbers of clusters K. The columns:

    regs        registers of a thread (on AMD the vector registers, accumulators among them)
    stack       bytes of a thread's stack: registers that were spilled; it should be 0
    shared      kilobytes of shared memory of a program, of those that the chip has for one
    matrix      the kinds of matrix instructions: HMMA and DMMA (mma), HGMMA (wgmma), UTCHMMA
                (tcgen05), v_mfma
    occupancy   warps that can be resident on a processor, of those that it has room for: an
                estimate from registers, shared memory and the number of programs (`occupancy`)
    instr       instructions for a (point, cluster) pair; for k-means update and loss, whose work
                does not grow with K, for an element of x. They are those that the threads of the
                whole launch execute, a warp's counting for each of its threads, over N K (N D), for
                N = 16,384: padding and what is outside the inner loops are in it. Each instruction
                of the machine code counts as often as the loops around it turn, which Triton's IR
                tells; both sides of a branch count, and so does what a predicate switches off.
                "-" where the loops of the two do not agree or a length is not known.

A kernel fails if it has a stack, more shared memory than the chip, or a product (`tl.dot`) without
a matrix instruction; then the exit status is 1. It is 2 where the command cannot run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepclust.kernels import _disassembly, _dispatch
from deepclust.kernels._launch import Launch, recording
from deepclust.kernels._tiles import CHIPS, Chip, pretend
from deepclust.kernels.heads import Gaussian, Head, Linear, StudentT
from deepclust.kernels.target_loss.snapshot import Snapshot

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942", "gfx950")
PRIMITIVES = (
    "assign",
    "frequencies",
    "targets",
    "target_loss",
    "kmeans_assign",
    "kmeans_candidates",
    "kmeans_update",
    "kmeans_loss",
)
HEADS = ("student_t", "student_t nu=3", "linear", "gaussian")
SHAPES = ((10, 10), (64, 1000), (128, 4096), (768, 1000))  # (D, K)
VARIANTS = ((torch.bfloat16, "exact"), (torch.float64, "exact"), (torch.float32, "fast"))
N = 1 << 14


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel on one chip; None is what could not be determined.

    Attributes:
        target: The chip.
        primitive: What the kernel is for.
        case: The first of the representative cases that launches it.
        kernel: Its name.
        tiles: Block sizes, warps and pipeline stages.
        registers: Registers of a thread.
        stack: Bytes of a thread's stack.
        shared: Bytes of a program's shared memory.
        matrix: Kinds of matrix instructions.
        occupancy: Resident warps over the most that a processor holds.
        instructions: Instructions for a pair, or an element.
        problems: Why the kernel fails.
    """

    target: str
    primitive: str
    case: str
    kernel: str
    tiles: str
    registers: int | None = None
    stack: int | None = None
    shared: int | None = None
    matrix: tuple[str, ...] = ()
    occupancy: float | None = None
    instructions: float | None = None
    problems: tuple[str, ...] = ()


def inspect(
    targets: Sequence[str] = TARGETS,
    primitives: Sequence[str] = PRIMITIVES,
    heads: Sequence[str] = HEADS,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    variants: Sequence[tuple[torch.dtype, str]] = VARIANTS,
    report: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Compile the kernels for each target, in other processes.

    Args:
        targets: Names of chips, as in `_tiles.CHIPS`.
        primitives: Which of `PRIMITIVES`.
        heads: Which of `HEADS`.
        shapes: Pairs (D, K), at least two.
        variants: Other types and precisions for the first head and the second shape.
        report: Called with a line of progress after each target and primitive.

    Returns:
        A row for each kernel and target. Cases that launch the same code share the first one's row.

    Raises:
        ValueError: If a target, primitive or head is unknown.
        RuntimeError: If Triton cannot compile here.
    """
    _check("target", targets, tuple(CHIPS))
    _check("primitive", primitives, PRIMITIVES)
    _check("head", heads, HEADS)
    if len(shapes) < 2:
        raise ValueError(f"shape: got {len(shapes)}; it takes two or more")
    _check_triton()
    tasks = [(target, primitive) for target in targets for primitive in primitives]
    rows: list[Row] = []
    # Processes that have not started Triton: a compiler that has looked for its GPU keeps it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(tasks)), context) as pool:
        work = partial(_inspect_one, chosen=(tuple(heads), tuple(shapes), tuple(variants)))
        for task, found in zip(tasks, pool.map(work, tasks), strict=True):
            rows += found
            report(f"{task[0]} {task[1]}: {len(found)} kernels")
    return rows


def _check(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what}: got {name!r}; it takes {', '.join(known)}")


def _check_triton() -> None:
    if (why_not := _dispatch.why_no_triton()) is not None:
        raise RuntimeError(why_not)
    if _dispatch.interprets_triton():
        raise RuntimeError("TRITON_INTERPRET is set: where Triton interprets, it compiles nothing")


def has_kernels(primitive: str) -> bool:
    """Whether this version has Triton kernels for a primitive."""
    return importlib.util.find_spec(f"deepclust.kernels.{primitive}._triton") is not None


# Their matrix instructions take no float64.
_NO_FLOAT64_PRODUCTS = ("sm_86", "sm_89", "sm_120")

# --- cases -------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One call of a primitive.

    Attributes:
        name: What distinguishes it.
        units: Pairs, or elements, that it works on.
        run: The call.
    """

    name: str
    units: int
    run: Callable[[], object]


def cases(
    primitive: str,
    heads: Sequence[str] = HEADS,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    variants: Sequence[tuple[torch.dtype, str]] = VARIANTS,
    n: int = N,
) -> Iterator[Case]:
    """The representative calls of a primitive's Triton functions, on CPU tensors.

    All heads and shapes in float32; then each variant, with the first head and the second shape.
    """
    kernel = importlib.import_module(f"deepclust.kernels.{primitive}._triton")
    settings = [(shape, torch.float32, "exact") for shape in shapes]
    settings += [(shapes[1], dtype, precision) for dtype, precision in variants]
    for (d, k), dtype, precision in settings:
        usual = dtype == torch.float32 and precision == "exact"
        name = f"D={d} K={k} {str(dtype).removeprefix('torch.')}"
        name += "" if precision == "exact" else f" {precision}"
        z = torch.zeros(n, d, dtype=dtype)
        if primitive in ("assign", "frequencies", "target_loss"):
            for form in heads if usual else heads[:1]:
                made = _head(form, d, k, z.to(torch.float32 if z.itemsize == 2 else dtype))
                yield from _head_cases(kernel, primitive, f"{name} {form}", z, made, precision)
        elif usual or precision == "exact" or primitive == "kmeans_assign":
            yield from _plain_cases(kernel, primitive, name, z, k, precision)


def _head(form: str, d: int, k: int, like: Tensor) -> Head:
    wide, narrow = like.new_zeros(k, d), like.new_zeros(k)
    if form == "linear":
        return Linear(wide, narrow)
    if form == "gaussian":
        return Gaussian(wide, wide, narrow)
    return StudentT(wide, 3.0 if "nu=3" in form else 1.0)


def _head_cases(
    kernel: Any, primitive: str, name: str, z: Tensor, head: Head, precision: str
) -> Iterator[Case]:
    k, units = head.n_clusters, len(z) * head.n_clusters
    if primitive == "assign":
        q = z.new_empty(len(z), k)
        yield Case(name, units, lambda: kernel.forward(z, head, precision, False))
        yield Case(name, units, lambda: kernel.backward(q, q, z, head, precision))
    elif primitive == "frequencies":
        yield Case(name, units, lambda: kernel.forward(z, head, None, precision, False))
    else:
        snapshot = Snapshot(z, head, torch.zeros(k, dtype=head.dtype), 2.0)
        for what, target in (("snapshot", snapshot), ("given p", z.new_empty(len(z), k))):
            run = partial(kernel.forward, z, head, target, "kl", 1.0, True, precision, False)
            yield Case(f"{name} {what}", units, run)


def _plain_cases(
    kernel: Any, primitive: str, name: str, z: Tensor, k: int, precision: str
) -> Iterator[Case]:
    n, d = z.shape
    wide = z.to(torch.float32 if z.itemsize == 2 else z.dtype)
    centroids = wide.new_zeros(k, d)
    labels = torch.zeros(n, dtype=torch.int64)
    if primitive == "targets":
        q = z.new_empty(n, k)
        yield Case(name, n * k, lambda: kernel.forward(q, None, None, 2.0, False))
    elif primitive == "kmeans_assign":
        yield Case(name, n * k, lambda: kernel.forward(z, centroids, precision, False))
    elif primitive == "kmeans_candidates":
        nearest, few, found = wide.new_zeros(n), centroids[:8], wide.new_empty(8, n)
        yield Case(name, n * len(few), lambda: kernel.forward(z, few, nearest, None, False, found))
    elif primitive == "kmeans_update":
        yield Case(name, n * d, lambda: kernel.forward(z, labels, k, None, False))
    else:
        yield Case(name, n * d, lambda: kernel.forward(z, centroids, labels, 1.0, True, False))


# --- compiling ---------------------------------------------------------------------------------


class _Driver:
    """A GPU that is not there, as far as Triton's compiler asks."""

    def __init__(self, name: str) -> None:
        from triton.backends.compiler import GPUTarget

        self.number = tuple(CHIPS).index(name)  # compiled kernels are kept by device
        if name.startswith("sm_"):
            self.target = GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
        else:
            self.target = GPUTarget("hip", name, 64)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _inspect_one(task: tuple[str, str], chosen: tuple[Any, ...]) -> list[Row]:
    target, primitive = task
    if not has_kernels(primitive):
        return []
    chip = CHIPS[target]
    use(chip)
    rows: list[Row] = []
    seen: set[str] = set()
    for case in cases(primitive, *chosen):
        with pretend(chip), recording() as launches:
            case.run()
        for launch in launches:
            row = Row(chip.name, primitive, case.name, _name(launch), _tiles(launch))
            try:
                compiled = compile_launch(launch)
            except Exception as error:  # whatever a compiler says: it is the finding
                problem = f"does not compile: {str(error).strip().splitlines()[-1][:200]}"
                if (key := f"{row.kernel} {launch.options} {problem}") not in seen:
                    seen.add(key)
                    rows.append(dataclasses.replace(row, problems=(problem,)))
                continue
            if compiled.hash not in seen:
                seen.add(compiled.hash)
                rows.append(_row(row, launch, compiled, chip, case.units))
    if primitive == "kmeans_assign":
        rows += _flash_kmeans(chip)
    return rows


# The GPUs for which flash-kmeans has settings of its own.
_FLASH_GPUS = {"sm_80": "A100", "sm_90": "H100"}


def _flash_kmeans(chip: Chip) -> list[Row]:
    """flash-kmeans' hard assignment of float32 with TF32 products, where it is installed."""
    if chip.name not in _FLASH_GPUS or importlib.util.find_spec("flash_kmeans") is None:
        return []
    d, k = 64, 1000
    row = Row(chip.name, "kmeans_assign", f"D={d} K={k} float32 fast", "flash-kmeans", "-")
    try:
        peer: Any = importlib.import_module("flash_kmeans.assign_euclid_triton")
        settings = peer._arch_smallD_picker(_FLASH_GPUS[chip.name])(N, k, d, torch.float32)
        settings = peer._fit_config_to_smem(settings, d, 4, chip.shared)
        x, centroids = torch.zeros(1, N, d), torch.zeros(1, k, d)
        norms, labels = (x[..., 0].clone(), centroids[..., 0].clone()), x[..., 0].int()
        tensors = (x, centroids, *norms, labels)
        strides = (stride for tensor in tensors for stride in tensor.stride())
        launch = Launch(
            peer._euclid_assign_kernel,
            (N // settings["BLOCK_N"], 1),
            (*tensors, 1, N, k, d, *strides),
            {**settings, "D_PAD": peer._pad_d(d)},
        )
        compiled = compile_launch(launch)
    except Exception as error:  # these names are not ours, and may be gone
        return [dataclasses.replace(row, problems=(f"does not compile: {error!r}"[:200],))]
    row = _row(dataclasses.replace(row, tiles=_tiles(launch)), launch, compiled, chip, N * k)
    return [dataclasses.replace(row, problems=())]  # what it spills is no failure of ours


def use(chip: Chip) -> None:
    """Have Triton compile for `chip` from here on; only for a process that does nothing else."""
    # The default changes with Triton's version; launches say what they want.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    from triton.runtime import driver

    driver.set_active(_Driver(chip.name))


def compile_launch(launch: Launch) -> Any:
    """What a recorded launch compiles to, through the specialisation of its own arguments."""
    return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)


def _name(launch: Launch) -> str:
    return str(launch.kernel.__name__).strip("_").removesuffix("_kernel")


def _tiles(launch: Launch) -> str:
    blocks = [str(value) for key, value in launch.options.items() if key.startswith("BLOCK_")]
    return f"{'x'.join(blocks)} w{launch.options['num_warps']} s{launch.options['num_stages']}"


def _row(row: Row, launch: Launch, compiled: Any, chip: Chip, units: int) -> Row:
    registers, stack, warps_by_registers, code = machine_code(compiled)
    names = [instruction.name for instruction in code.instructions]
    matrix = tuple(_disassembly.matrix_instructions(names))
    shared = compiled.metadata.shared
    problems = []
    if stack:
        problems.append(f"{stack} bytes of stack")
    if shared > chip.shared:
        problems.append(f"{shared} bytes of shared memory; {chip.name} has {chip.shared}")
    dots = [line for line in compiled.asm["ttir"].splitlines() if "tt.dot" in line]
    if chip.name in _NO_FLOAT64_PRODUCTS:
        dots = [line for line in dots if "xf64" not in line]
    if dots and not matrix:
        problems.append("a product without matrix instructions")
    warps = launch.options["num_warps"]
    return dataclasses.replace(
        row,
        registers=registers,
        stack=stack,
        shared=shared,
        matrix=matrix,
        occupancy=occupancy(
            chip, warps, warps_by_registers, shared, getattr(compiled.metadata, "tmem_size", 0)
        ),
        instructions=_instructions(launch, compiled, code, warps * (32, 64)[chip.is_amd], units),
        problems=tuple(problems),
    )


class MachineCode(NamedTuple):
    """What a kernel compiled to.

    Attributes:
        registers: Registers of a thread.
        stack: Bytes of a thread's stack.
        warps: For how many warps' registers a processor has room.
        code: The instructions.
    """

    registers: int
    stack: int
    warps: int
    code: _disassembly.Code


def machine_code(compiled: Any) -> MachineCode:
    """The machine code of a compiled kernel, by the tools that come with Triton."""
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        registers = _number(r"\.vgpr_count:\s+(\d+)", text)
        stack = _number(r"\.private_segment_fixed_size:\s+(\d+)", text)
        warps = 4 * _number(r"; Occupancy:\s+(\d+)", text)
        return MachineCode(registers, stack, warps, _disassembly.parse_gcn(text))
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])

        def run(*command: str) -> str:
            command = (str(tools / command[0]), *command[1:], str(cubin))
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        usage, text = run("cuobjdump", "-res-usage"), run("nvdisasm", "-c")
    registers, stack = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)
    warps = 4 * (16384 // (32 * _up(registers, 8)))
    return MachineCode(registers, stack, warps, _disassembly.parse_sass(text))


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's output has no {pattern!r}")
    return int(found[1])


def _instructions(
    launch: Launch, compiled: Any, code: _disassembly.Code, threads: int, units: int
) -> float | None:
    values = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
    numbers = {name: value for name, value in values.items() if type(value) is int}
    turns = _disassembly.ranges(compiled.asm["ttgir"], numbers, launch.grid)
    executed = _disassembly.executed(_disassembly.loops(code), turns, _whole(compiled, code))
    if executed is None:
        return None
    programs = 1
    for size in launch.grid:
        programs *= size
    return executed * threads * programs / units


def _whole(compiled: Any, code: _disassembly.Code) -> bool:
    """Whether it is sure that no loop was unrolled in part.

    LLVM marks those that it has unrolled; ptxas does not, but would then repeat the matrix
    instructions that PTX has.
    """
    if "llvm.loop.unroll.disable" in compiled.asm["llir"] or "ptx" not in compiled.asm:
        return False
    in_ptx = len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)\.", compiled.asm["ptx"]))
    names = [instruction.name for instruction in code.instructions]
    return 0 < in_ptx == sum(bool(_disassembly.matrix_instructions([name])) for name in names)


# --- occupancy ---------------------------------------------------------------------------------


class _Processor(NamedTuple):
    """What a processor (SM, CU) holds: warps, programs, kilobytes of shared memory."""

    warps: int
    programs: int
    shared: int


_PROCESSORS = {
    "sm_80": _Processor(64, 32, 164),
    "sm_86": _Processor(48, 16, 100),
    "sm_89": _Processor(48, 24, 100),
    "sm_90": _Processor(64, 32, 228),
    "sm_100": _Processor(64, 32, 228),
    "sm_120": _Processor(48, 24, 100),
    "gfx942": _Processor(32, 32, 64),
    "gfx950": _Processor(32, 32, 160),
}


def occupancy(
    chip: Chip, warps: int, warps_by_registers: int, shared: int, tensor_columns: int = 0
) -> float:
    """Warps of a kernel that can be resident on a processor, over the most that it holds.

    Programs are resident whole, as many as fit by each of
        warps           the processor's limit, and what its four register files have room for: on
                        NVIDIA 16,384 registers each, a warp taking 32 times its registers rounded
                        up to 8; on AMD what the compiler says
        shared memory   on NVIDIA in pieces of 128 bytes and 1 KB a program for the system
        tensor memory   512 columns, where a kernel uses them
    and no more than the processor's limit of programs.

    Args:
        chip: The chip.
        warps: Warps of a program.
        warps_by_registers: Warps for whose registers a processor has room.
        shared: Bytes of shared memory of a program.
        tensor_columns: Columns of tensor memory of a program.
    """
    processor = _PROCESSORS[chip.name]
    programs = min(processor.programs, min(processor.warps, warps_by_registers) // warps)
    taken = _up(shared, 128) + 1024 if chip.is_nvidia else shared
    if taken:
        programs = min(programs, (processor.shared << 10) // taken)
    if tensor_columns:
        programs = min(programs, 512 // tensor_columns)
    return programs * warps / processor.warps


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# --- the command -------------------------------------------------------------------------------

_TITLES = (
    *("target", "kernel", "case", "tiles", "regs", "stack", "shared", "matrix", "occupancy"),
    *("instr", ""),
)


def _cells(row: Row) -> tuple[str, ...]:
    shared = None
    if row.shared is not None:
        shared = f"{row.shared / 1024:.3g}/{CHIPS[row.target].shared >> 10}"
    return (
        row.target,
        row.kernel,
        row.case,
        row.tiles,
        *("-" if value is None else str(value) for value in (row.registers, row.stack, shared)),
        "+".join(row.matrix) or ("-" if row.registers is None else ""),
        "-" if row.occupancy is None else f"{row.occupancy:.0%}",
        "-" if row.instructions is None else f"{row.instructions:.3g}",
        "; ".join(row.problems),
    )


def table(rows: Sequence[Row], markdown: bool = False) -> str:
    """The rows as text for people, or as a table in Markdown."""
    lines = [_TITLES, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    if markdown:
        padded.insert(1, ["-" * width for width in widths])
        return "\n".join(f"| {' | '.join(line)} |" for line in padded)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _shape(text: str) -> tuple[int, int]:
    """D and K of "64x1000"."""
    if (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)) is None:
        raise argparse.ArgumentTypeError(f"got {text!r}; it takes D and K, as in 64x1000")
    return int(found[1]), int(found[2])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deepclust.kernels.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", nargs="+", default=TARGETS, help=", ".join(CHIPS))
    parser.add_argument("--primitive", nargs="+", default=PRIMITIVES, help=", ".join(PRIMITIVES))
    parser.add_argument("--head", nargs="+", default=HEADS, help=", ".join(HEADS))
    parser.add_argument(
        "--shape",
        nargs="+",
        default=SHAPES,
        type=_shape,
        help="D and K, as in 64x1000; two or more",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects")
    form.add_argument("--markdown", action="store_true", help="a table in Markdown")
    options = parser.parse_args(arguments)
    try:
        rows = inspect(
            options.target,
            options.primitive,
            options.head,
            options.shape,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (ValueError, RuntimeError) as error:
        print(f"inspect: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print(table(rows, options.markdown))
    return int(any(row.problems for row in rows))


if __name__ == "__main__":
    sys.exit(main())
