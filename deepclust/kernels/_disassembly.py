"""Counts instructions in compiled kernels: SASS of NVIDIA, amdgcn of AMD, and Triton's own IR.

The machine code says which instructions are there and which loops they sit in; Triton's last IR
(TTGIR) says how often each loop turns, given the arguments. Where the two have the same loops, one
inside the other and one after the other alike, the instructions that a program executes follow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

# NVIDIA: HMMA, IMMA, DMMA (mma), HGMMA (wgmma), UTCHMMA and the like (tcgen05). AMD: v_mfma.
_MATRIX = re.compile(r"(UTC\w?MMA|[A-Z]G?MMA)(?:\.|$)|(v_mfma)_")
_SASS = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_SASS_LABEL = re.compile(r"(\.L_\w+):")
_SASS_TARGET = re.compile(r"`\((\.L_\w+)\)")
_GCN = re.compile(r"\s+((?:s|v|ds|global|buffer|flat|scratch)_\w+)\s*([^;]*)")
_GCN_LABEL = re.compile(r"(\.LBB\w+):")


class Instruction(NamedTuple):
    """One machine instruction: where it may jump to, and whether it never goes on to the next."""

    name: str
    target: str | None = None
    ends: bool = False


class Code(NamedTuple):
    """The instructions of one kernel, and at which of them each label stands."""

    instructions: list[Instruction]
    labels: dict[str, int]


class Loop(NamedTuple):
    """A loop of the machine code.

    Attributes:
        names: Its instructions that are in no loop inside it.
        inner: The loops inside it, in the order of their addresses.
    """

    names: list[str]
    inner: list[Loop]


class Range(NamedTuple):
    """A loop of Triton's IR.

    Attributes:
        trips: How often it turns; None where the IR does not say.
        fixed: Whether its bounds are constants: such a loop may be unrolled.
        inner: The loops inside it.
    """

    trips: int | None
    fixed: bool
    inner: list[Range]


def matrix_instructions(names: Sequence[str]) -> list[str]:
    """The kinds of matrix instructions among these: HMMA, HGMMA, DMMA, UTCHMMA, v_mfma."""
    found = (_MATRIX.match(name) for name in names)
    return sorted({match[1] or match[2] for match in found if match})


def parse_sass(text: str) -> Code:
    """The instructions in what nvdisasm prints."""
    code = Code([], {})
    for line in text.splitlines():
        if label := _SASS_LABEL.match(line):
            code.labels[label[1]] = len(code.instructions)
        elif found := _SASS.match(line):
            guard, name, operands = found.groups()
            kind = name.split(".")[0]
            # A call of a label within the kernel is a jump that wants all threads together.
            target = _SASS_TARGET.search(operands) if kind in ("BRA", "CALL") else None
            # `BRA.U UP0, ...` has its condition among the operands.
            always = not guard and (target is None or not operands[: target.start()].strip())
            ends = always and (target is not None or kind in ("EXIT", "RET", "BRX", "JMX"))
            code.instructions.append(Instruction(name, target[1] if target else None, ends))
    return code


def parse_gcn(text: str) -> Code:
    """The instructions of the first function in AMD's assembly."""
    code = Code([], {})
    for line in text.splitlines():
        if line.startswith(".Lfunc_end"):
            break
        if label := _GCN_LABEL.match(line):
            code.labels[label[1]] = len(code.instructions)
        elif found := _GCN.match(line):
            name, operands = found.groups()
            branches = name == "s_branch" or name.startswith("s_cbranch")
            ends = name in ("s_branch", "s_endpgm", "s_setpc_b64")
            target = operands.strip() if branches else None
            code.instructions.append(Instruction(name, target, ends))
    return code


def loops(code: Code) -> Loop:
    """The loops of the machine code inside a `Loop` that is the kernel itself.

    A loop is what can reach a branch back to an instruction that every way to that branch passes
    through. So a rare case that the compiler moved to the end and that branches back is none. What
    no way leads to is left out: padding, and subroutines such as slow divisions.
    """
    blocks, successors = _blocks(code)
    dominators = _dominators(successors)
    bodies: dict[int, set[int]] = {}
    for tail, heads in enumerate(successors):
        for head in heads:
            if dominators[tail] >> head & 1:
                bodies.setdefault(head, {head}).update(_reaching(tail, head, successors))
    reached = {block for block, found in enumerate(dominators) if found >> block & 1}
    return _nest(reached, sorted(bodies.values(), key=lambda body: (min(body), -len(body))), blocks)


def _nest(body: set[int], inside: list[set[int]], blocks: list[list[str]]) -> Loop:
    own, inner = set(body), []
    while inside:
        # The first has the lowest address, so that only one that holds it can hold any of its own.
        outer = max((other for other in inside if other >= inside[0]), key=len)
        inner.append(_nest(outer, [other for other in inside if other < outer], blocks))
        inside = [other for other in inside if not other <= outer]
        own -= outer
    names = [name for block in sorted(own) for name in blocks[block]]
    # A wait is a loop to the machine, and takes one turn where nothing is late.
    for loop in [loop for loop in inner if _waits(loop)]:
        inner.remove(loop)
        names += loop.names
    return Loop(names, inner)


def _waits(loop: Loop) -> bool:
    waits = any("TRYWAIT" in name or name == "NANOSLEEP" for name in loop.names)
    return waits and len(loop.names) <= 8 and not loop.inner


def _blocks(code: Code) -> tuple[list[list[str]], list[list[int]]]:
    """The names in each straight run of instructions, and which runs may follow it."""
    cuts = {0, *code.labels.values()}
    cuts.update(i + 1 for i, x in enumerate(code.instructions) if x.target or x.ends)
    starts = sorted(cut for cut in cuts if cut < len(code.instructions))
    number = {start: block for block, start in enumerate(starts)}
    blocks, successors = [], []
    for start, end in zip(starts, [*starts[1:], len(code.instructions)], strict=True):
        run = code.instructions[start:end]
        blocks.append([instruction.name for instruction in run])
        after = [] if run[-1].ends else [end]
        if run[-1].target in code.labels:
            after.append(code.labels[run[-1].target])
        successors.append([number[place] for place in after if place in number])
    return blocks, successors


def _dominators(successors: list[list[int]]) -> list[int]:
    """For each block, as bits, the blocks that every way to it passes; no bits: not reached."""
    order, seen, stack = [], {0}, [0]
    before: list[list[int]] = [[] for _ in successors]
    while stack:
        block = stack.pop()
        order.append(block)
        for after in successors[block]:
            before[after].append(block)
            if after not in seen:
                seen.add(after)
                stack.append(after)
    everything = (1 << len(successors)) - 1
    found = [everything if block in seen else 0 for block in range(len(successors))]
    found[0] = 1
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            common = everything
            for other in before[block]:
                common &= found[other]
            common |= 1 << block
            changed |= common != found[block]
            found[block] = common
    return found


def _reaching(tail: int, head: int, successors: list[list[int]]) -> set[int]:
    """The blocks that reach `tail` without passing `head`."""
    body, stack = {tail}, [tail]
    while stack:
        block = stack.pop()
        if block == head:
            continue
        for before, after in enumerate(successors):
            if block in after and before not in body:
                body.add(before)
                stack.append(before)
    return body


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "addi": lambda a, b: a + b,
    "subi": lambda a, b: a - b,
    "muli": lambda a, b: a * b,
    "minsi": min,
    "maxsi": max,
    "divsi": lambda a, b: int(a / b),  # towards zero
    "remsi": lambda a, b: a - b * int(a / b),
    "ceildivsi": lambda a, b: -(-a // b),
}
_ARGUMENT = re.compile(r"%(\w+): [!\w]")
_DEFINED = re.compile(r"%([\w-]+) = (?:arith|tt)\.(\w+) ([^:]*?) : (?:i32|i64|index)")
_FOR = re.compile(r"scf\.for %\S+ = %(\S+) to %(\S+) step %(\S+)")


def ranges(ttgir: str, arguments: Mapping[str, int], grid: Sequence[int]) -> list[Range]:
    """The loops of Triton's IR, with their trips in the first program of the grid.

    Args:
        ttgir: `compiled.asm["ttgir"]`.
        arguments: The values of the kernel's integer arguments.
        grid: How many programs there are along each axis.
    """
    lines = iter(ttgir.splitlines())
    known: dict[str, int] = {}
    fixed: set[str] = set()
    for line in lines:
        if "tt.func" in line:
            named = set(_ARGUMENT.findall(line))
            known.update({name: value for name, value in arguments.items() if name in named})
            return _ranges(lines, known, fixed, dict(zip("xyz", grid, strict=False)))
    return []


def _ranges(
    lines: Iterator[str], known: dict[str, int], fixed: set[str], grid: Mapping[str, int]
) -> list[Range]:
    found: list[Range] = []
    depth = 1
    for line in lines:
        if match := _FOR.search(line):
            first, last, step = match.groups()
            trips = None
            if {first, last, step} <= known.keys():
                trips = max(0, -(-(known[last] - known[first]) // known[step]))
            inner = _ranges(lines, known, fixed, grid)
            found.append(Range(trips, {first, last, step} <= fixed, inner))
            continue
        if "scf.while" in line:
            found.append(Range(None, False, []))
        depth += line.count("{") - line.count("}")
        if depth <= 0:
            break
        if match := _DEFINED.search(line):
            _define(match, known, fixed, grid)
    return found


def _define(
    match: re.Match[str], known: dict[str, int], fixed: set[str], grid: Mapping[str, int]
) -> None:
    name, operation, operands = match.groups()
    if operation == "constant":
        if re.fullmatch(r"-?\d+", operands):
            known[name] = int(operands)
            fixed.add(name)
        return
    if operation == "get_program_id":
        known[name] = 0
        return
    if operation == "get_num_programs":
        known[name] = grid.get(operands, 1)
        return
    inputs = re.findall(r"%([\w-]+)", operands)
    if not set(inputs) <= known.keys():
        return
    if operation in ("extsi", "trunci", "index_cast") and len(inputs) == 1:
        known[name] = known[inputs[0]]
    elif operation in _OPERATIONS and len(inputs) == 2:
        known[name] = _OPERATIONS[operation](known[inputs[0]], known[inputs[1]])
    if name in known and set(inputs) <= fixed:
        fixed.add(name)


def executed(kernel: Loop, turns: Sequence[Range], whole: bool = False) -> int | None:
    """How many instructions a program executes, or None where the loops do not agree.

    Both sides of a branch count, and so does what a predicate switches off.

    Args:
        kernel: The machine code.
        turns: The loops of Triton's IR.
        whole: Whether it is known that no loop was unrolled in part. A loop of constant length
            that was shows nothing of it; one of another length leaves a second loop for the rest.
    """
    total = _executed(kernel, turns, whole)
    return _executed(kernel, _unrolled(turns), whole) if total is None else total


def _executed(loop: Loop, turns: Sequence[Range], whole: bool) -> int | None:
    if len(loop.inner) != len(turns):
        return None
    total = len(loop.names)
    for inner, turn in zip(loop.inner, turns, strict=True):
        once = _executed(inner, turn.inner, whole)
        if once is None or turn.trips is None or (turn.fixed and not whole):
            return None
        total += once * turn.trips
    return total


def _unrolled(turns: Sequence[Range]) -> list[Range]:
    """The loops that are left where those of constant length have been unrolled."""
    left: list[Range] = []
    for turn in turns:
        inner = _unrolled(turn.inner)
        left += inner if turn.fixed else [turn._replace(inner=inner)]
    return left
