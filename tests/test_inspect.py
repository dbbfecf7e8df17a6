"""What the Triton kernels compile to on chips that are not here, and the tool that says so.

Kernels are compiled in processes of their own: where Triton interprets, it compiles nothing. Here
the first head stands for all, at two shapes; `python -m deepclust.kernels.inspect` looks at all of
them, on more chips.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deepclust.kernels import _dispatch, inspect, tune
from deepclust.kernels._disassembly import (
    Loop,
    Range,
    executed,
    loops,
    matrix_instructions,
    parse_gcn,
    parse_sass,
    ranges,
)
from deepclust.kernels._tiles import CHIPS, INTERPRETER, TABLE, Tiles, override, tiles_for
from tests.compiled import ONCE, ROOT

CHECKED = ("sm_90", "gfx942")
NEEDS_TRITON = pytest.mark.skipif(
    (why := _dispatch.why_no_triton()) is not None, reason=f"triton: {why}"
)
pytestmark = ONCE


def compiling(script: str) -> Any:
    """What a script prints as JSON in a process where Triton compiles."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- kernels -----------------------------------------------------------------------------------

INSPECT = """
import dataclasses, json
from deepclust.kernels.inspect import inspect
rows = inspect({targets}, heads=["student_t"], shapes=[(10, 10), (64, 1000)], variants=[])
print(json.dumps([dataclasses.asdict(row) for row in rows]))
"""


@functools.cache
def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = compiling(INSPECT.format(targets=CHECKED))
    assert found
    return found


def require(test: Callable[[dict[str, Any]], bool]) -> None:
    """That all rows pass; says of the others all that is known."""
    failed = [row for row in rows() if not test(row)]
    if failed:
        found = [inspect.Row(**{**row, "matrix": tuple(row["matrix"])}) for row in failed]
        pytest.fail(inspect.table(found), pytrace=False)


@NEEDS_TRITON
def test_every_kernel_compiles() -> None:
    require(lambda row: row["registers"] is not None)
    primitives = {path.parent.name for path in ROOT.glob("deepclust/kernels/*/_triton.py")}
    for target in CHECKED:
        assert {row["primitive"] for row in rows() if row["target"] == target} == primitives


@NEEDS_TRITON
def test_no_kernel_spills_registers() -> None:
    require(lambda row: not row["stack"])


@NEEDS_TRITON
def test_no_kernel_takes_more_shared_memory_than_there_is() -> None:
    require(lambda row: row["shared"] is None or row["shared"] <= CHIPS[row["target"]].shared)


@NEEDS_TRITON
def test_products_are_taken_by_matrix_instructions() -> None:
    require(lambda row: not any("matrix" in problem for problem in row["problems"]))


@NEEDS_TRITON
def test_some_program_is_resident_and_some_instruction_counted() -> None:
    require(lambda row: row["occupancy"] is None or 0 < row["occupancy"] <= 1)
    require(lambda row: row["instructions"] is None or row["instructions"] > 0)


COUNT_COMPILATIONS = """
import json
from collections import defaultdict
from deepclust.kernels._launch import recording
from deepclust.kernels._tiles import CHIPS, pretend
from deepclust.kernels.inspect import PRIMITIVES, cases, compile_launch, has_kernels, use

chip = CHIPS["sm_80"]
use(chip)
found = defaultdict(set)
for primitive in filter(has_kernels, PRIMITIVES):
    for d, clusters in ((10, (1, 7, 16)), (64, (600, 1001, 1024))):
        for k, n in zip(clusters, (1024, 1, 1003)):
            for number, case in enumerate(cases(primitive, ["student_t"], [(d, k)], [], n)):
                with pretend(chip), recording() as launches:
                    case.run()
                for launch in launches:
                    name = f"{primitive} {number} {launch.kernel.__name__} D={d}"
                    found[name].add(compile_launch(launch).hash)
print(json.dumps({name: len(hashes) for name, hashes in found.items()}))
"""


@NEEDS_TRITON
def test_one_compilation_serves_many_sizes() -> None:
    found = compiling(COUNT_COMPILATIONS)
    assert found
    several = [f"{name}: {count}" for name, count in found.items() if count > 1]
    assert not several, "\n".join(several)


# The multiply-adds of each product that the counts say are executed are those that it takes.
COUNT_PRODUCTS = """
import json, math, re
from deepclust.kernels._disassembly import (
    Loop, executed, loops, matrix_instructions, ranges)
from deepclust.kernels._launch import recording
from deepclust.kernels._tiles import CHIPS, pretend
from deepclust.kernels.inspect import N, cases, compile_launch, machine_code, use

def only_products(loop):
    names = [name for name in loop.names if matrix_instructions([name])]
    return Loop(names, [only_products(inner) for inner in loop.inner])

found = {}
for target, multiply_adds in (("sm_80", 16 * 8 * 8), ("sm_90", 16 * 64 * 8)):
    chip = CHIPS[target]
    use(chip)
    *_, case = cases("frequencies", ["student_t"], [(10, 10), (64, 1000)], [])
    with pretend(chip), recording() as launches:
        case.run()
    for launch in launches:
        compiled = compile_launch(launch)
        numbers = dict(zip(launch.kernel.arg_names, launch.args))
        turns = ranges(compiled.asm["ttgir"], numbers, launch.grid)
        count = executed(only_products(loops(machine_code(compiled).code)), turns)
        count *= launch.options["num_warps"] * math.prod(launch.grid) * multiply_adds
        found[f"{target} {launch.kernel.__name__}"] = count / (N * 1024 * 64)
print(json.dumps(found))
"""


@NEEDS_TRITON
@pytest.mark.skipif(not inspect.has_kernels("frequencies"), reason="no Triton kernel to count")
def test_counted_instructions_are_those_that_a_product_takes() -> None:
    # 3xTF32 takes three products of N x D and D x K, K rounded up to whole tiles.
    assert set(compiling(COUNT_PRODUCTS).values()) == {3.0}


# --- counting ----------------------------------------------------------------------------------

# A loop in a loop, a wait that is out of line, and what only a call reaches.
SASS = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*00c0*/              @!P1 BRA `(.L_x_0) ;
.L_x_3:
        /*02d0*/                   CS2R R30, SRZ ;
        /*0360*/               @P1 BRA `(.L_x_1) ;
        /*04a0*/                   UMOV UR5, URZ ;
.L_x_2:
        /*04e0*/              @!P0 LDG.E R45, desc[UR8][R8.64] ;
        /*04f0*/                   HGMMA.64x64x8.F32.TF32 R24, R92, gdesc[UR4], RZ, !UPT ;
        /*0820*/                   BRA.U UP0, `(.L_x_2) ;
.L_x_1:
        /*3a30*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P5, [UR5+0x10000], R216 ;
        /*3a40*/              @!P5 BRA `(.L_x_8) ;
.L_x_18:
        /*4d60*/               @P5 CALL.REL.NOINC `(.L_x_0) ;
        /*4d70*/                   BRA `(.L_x_3) ;
.L_x_0:
        /*61d0*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div) ;
        /*6220*/                   EXIT ;
.L_x_8:
        /*6230*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P5, [UR5+0x10000], R216 ;
        /*6240*/              @!P5 BRA `(.L_x_8) ;
        /*6250*/                   BRA `(.L_x_18) ;
        .weak           $__internal_0_$__cuda_sm20_div
        /*62d0*/                   MUFU.RCP R0, R2 ;
        /*62e0*/                   RET.REL.NODEC R2 `(kernel) ;
.L_x_21:
        /*6320*/                   BRA `(.L_x_21);
"""

GCN = """
kernel:                                 ; @kernel
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_cbranch_scc1 .LBB0_24
	s_branch .LBB0_3
.LBB0_2:                                ; %._crit_edge
	v_cmp_gt_i32_e32 vcc, s13, v41
	s_cbranch_vccz .LBB0_24
.LBB0_3:                                ; =>This Loop Header: Depth=1
	v_mov_b32_e32 v23, 0
	s_branch .LBB0_6
.LBB0_5:                                ;   in Loop: Header=BB0_6 Depth=2
	v_mfma_f32_32x32x2_f32 a[0:15], v1, v2, a[0:15]
	s_cbranch_scc0 .LBB0_2
.LBB0_6:                                ; %.lr.ph
	.loc	1 40 5 is_stmt 1                ; kernel.py:40:5
	s_cbranch_execz .LBB0_5
	global_load_dword v26, v[4:5], off
	s_branch .LBB0_5
.LBB0_24:
	s_endpgm
.Lfunc_end0:
	.size	kernel, .Lfunc_end0-kernel
"""

TTGIR = """
module attributes {"ttg.num-warps" = 4 : i32} {
  tt.func public @kernel(%z: !tt.ptr<f32> {tt.divisibility = 16 : i32} loc("z"(#loc)), %k: i32 \
loc("k"(#loc)), %d: i32 loc("d"(#loc))) attributes {noinline = false} {
    %c0_i32 = arith.constant 0 : i32 loc(#loc1)
    %c16_i32 = arith.constant 16 : i32 loc(#loc1)
    %c15_i32 = arith.constant 15 : i32 loc(#loc1)
    %first = tt.get_program_id x : i32 loc(#loc2)
    %first_0 = arith.muli %first, %c16_i32 : i32 loc(#loc2)
    %2:2 = scf.for %a = %first_0 to %k step %c16_i32 iter_args(%b = %cst) -> (f32) : i32 {
      %3 = "tt.reduce"(%b) <{axis = 1 : i32}> ({
      ^bb0(%e: f32):
        tt.reduce.return %e : f32 loc(#loc3)
      }) : (tensor<1x1xf32>) -> tensor<1xf32> loc(#loc3)
      %last = arith.subi %d, %c15_i32 : i32 loc(#loc3)
      scf.for %c = %c0_i32 to %last step %c16_i32 : i32 {
      } loc(#loc3)
      scf.yield %3 : tensor<1xf32> loc(#loc3)
    } loc(#loc3)
    scf.for %f = %c0_i32 to %c15_i32 step %c16_i32 : i32 {
    } loc(#loc3)
    scf.for %g = %c0_i32 to %unknown step %c16_i32 : i32 {
    } loc(#loc3)
    tt.return loc(#loc4)
"""


def shape(loop: Loop) -> tuple[Any, ...]:
    return len(loop.names), *(shape(inner) for inner in loop.inner)


def test_loops_of_sass() -> None:
    code = parse_sass(SASS)
    assert len(code.instructions) == 20
    # The wait's three instructions count among the outer loop's; the subroutine's not at all.
    assert shape(loops(code)) == (4, (10, (3,)))
    assert matrix_instructions([x.name for x in code.instructions]) == ["HGMMA"]


def test_loops_of_gcn() -> None:
    code = parse_gcn(GCN)
    assert shape(loops(code)) == (4, (4, (5,)))
    assert matrix_instructions([x.name for x in code.instructions]) == ["v_mfma"]


def test_matrix_instructions_by_name() -> None:
    names = ["HMMA.1688.F32.TF32", "DMMA.8x8x4", "UTCHMMA", "FFMA", "IMAD.MOV", "v_fma_f32", "MMA"]
    assert matrix_instructions(names) == ["DMMA", "HMMA", "UTCHMMA"]


def test_ranges_of_triton_s_ir() -> None:
    found = ranges(TTGIR, {"k": 100, "d": 64, "unused": 3}, (4,))
    assert found == [
        Range(7, False, [Range(4, False, [])]),
        Range(1, True, []),
        Range(None, False, []),
    ]


def test_instructions_executed() -> None:
    kernel = Loop(["a"] * 5, [Loop(["b"] * 3, [Loop(["c"], [])])])
    inner = Range(10, False, [])
    assert executed(kernel, [Range(2, False, [inner])]) == 5 + 2 * (3 + 10)
    assert executed(kernel, [Range(None, False, [inner])]) is None
    assert executed(kernel, [Range(2, False, [])]) is None
    # A loop of constant length may be unrolled: whole, then it is gone, or in part.
    assert executed(kernel, [Range(2, False, [inner]), Range(4, True, [])]) == 31
    assert executed(kernel, [Range(2, True, [inner])]) is None
    assert executed(kernel, [Range(2, True, [inner])], whole=True) == 31


@pytest.mark.parametrize(
    ("chip", "warps", "by_registers", "shared", "columns", "expected"),
    [
        ("sm_90", 8, 8, 1024, 0, 8 / 64),  # registers for one program
        ("sm_90", 4, 64, 100 << 10, 0, 8 / 64),  # shared memory for two
        ("sm_80", 1, 64, 0, 0, 32 / 64),  # 32 programs at most
        ("sm_100", 4, 64, 0, 256, 8 / 64),  # tensor memory for two
        ("gfx942", 4, 12, 16 << 10, 0, 12 / 32),
        ("gfx942", 4, 32, 64 << 10, 0, 4 / 32),
    ],
)
def test_occupancy(
    chip: str, warps: int, by_registers: int, shared: int, columns: int, expected: float
) -> None:
    assert inspect.occupancy(CHIPS[chip], warps, by_registers, shared, columns) == expected


# --- the commands ------------------------------------------------------------------------------


def test_table_shows_what_is_not_known_as_a_dash() -> None:
    row = inspect.Row("sm_90", "assign", "D=1", "assign_fwd", "64x32 w4 s1", problems=("bad",))
    head, line = inspect.table([row]).splitlines()
    assert head.split()[:3] == ["target", "kernel", "case"]
    assert line.split() == [
        *("sm_90", "assign_fwd", "D=1", "64x32", "w4", "s1", *"------", "bad"),
    ]
    assert inspect.table([row], markdown=True).splitlines()[1].startswith("| ------ | ")


@NEEDS_TRITON
def test_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(ValueError, match="target: got 'sm_91'; it takes sm_80, "):
        inspect.inspect(["sm_91"])
    with pytest.raises(ValueError, match="head: got 'tanh'"):
        inspect.inspect(heads=["tanh"])
    assert inspect.main(["--primitive", "sort"]) == 2
    assert "primitive: got 'sort'; it takes assign" in capsys.readouterr().err
    assert inspect.main(["--shape", "10x10"]) == 2
    assert "shape: got 1; it takes two or more" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        inspect.main(["--shape", "10"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        inspect.inspect(["sm_80"])
    assert tune.main([]) == 2


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(_dispatch, "why_no_triton", lambda: "Triton is not installed: pip ...")
    assert inspect.main([]) == 2
    assert tune.main([]) == 2
    assert capsys.readouterr().err.count("Triton is not installed") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@NEEDS_TRITON
def test_tune_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert tune.main([]) == 2
    assert capsys.readouterr().err == "tune: there is no GPU that torch can use\n"


def test_tuning_overrides_the_table() -> None:
    tiles = Tiles(32, 16, 16, 8, 1)
    before = tiles_for("product", INTERPRETER, 64, 64)
    with override("product", tiles):
        assert tiles_for("product", INTERPRETER, 64, 64) == tiles
        assert tiles_for("gradient", INTERPRETER, 64, 64) != tiles
    assert tiles_for("product", INTERPRETER, 64, 64) == before


def test_every_line_of_the_table_can_be_tuned() -> None:
    assert set(tune.SIZES) == set(tune.SHAPES) == {kind for kind, _, _ in TABLE}


def test_tuning_compares_with_eager() -> None:
    labels, x = torch.arange(20_000), torch.linspace(-1, 1, 5)
    near = labels.clone()
    near[0] = 1
    assert tune.agrees([near, x + 1e-4], [labels, x])
    assert not tune.agrees([labels, x * float("nan")], [labels, x])
    assert not tune.agrees([labels.flip(0), x], [labels, x])
