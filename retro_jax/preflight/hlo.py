"""Counts FLOPs in a traced step and collectives in a compiled one.

The compiler's own cost analysis counts the body of a loop once. Here a body counts once for each iteration: a scan's
length is in the traced program, a while's in the compiled text.
"""

import math
import re
from collections import defaultdict

from jax.extend.core import Var

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
BYTES |= {"s64": 8, "u64": 8}


def traced_flops(jaxpr) -> float:
    """FLOPs of all matmuls of a jaxpr, for full arrays (not a device's part, also within shard_map)."""
    total = 0.0
    used = {variable for equation in jaxpr.eqns for variable in equation.invars if isinstance(variable, Var)}
    used.update(variable for variable in jaxpr.outvars if isinstance(variable, Var))
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        if equation.primitive.name == "pallas_call":
            # Its grid and loops are not in the program; and JAX keeps one whose results nobody uses, which XLA drops.
            total += equation.params["cost_estimate"].flops if any(map(used.__contains__, equation.outvars)) else 0
            continue
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "shard_map":  # what is inside has the shapes of one device
            turns = equation.params["mesh"].size
        for value in equation.params.values():
            total += turns * sum(map(traced_flops, inner(value)))
    return total


def inner(value):
    """The jaxprs in an equation's parameter."""
    if isinstance(value, (tuple, list)):
        return [jaxpr for item in value for jaxpr in inner(item)]
    if hasattr(value, "eqns"):
        return [value]
    return [value.jaxpr] if hasattr(getattr(value, "jaxpr", None), "eqns") else []


def collectives(text: str) -> dict[str, dict[str, float]]:
    """Kind -> how often it runs in one call of the compiled program and the bytes of its results, a device."""
    program = computations(text)
    turns = _turns(program)
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "bytes": 0.0})
    for name, lines in program.items():
        if name == "ENTRY" or turns[name]:
            for line in lines:
                if match := re.search(r"= (.*?) (" + "|".join(KINDS) + r")(-start)?\(", line):
                    kind, result = match[2], match[1]
                    if name.startswith("all-reduce-scatter"):
                        # A TPU's reduce-scatter: an all-reduce fused with the slice of the sum that stays.
                        kind, result = "reduce-scatter", re.match(r" +ROOT \S+ = (\S+) ", lines[-1])[1]
                    found[kind]["count"] += turns[name]
                    found[kind]["bytes"] += turns[name] * _result_bytes(result, bool(match[3]))
    return {kind: dict(found[kind]) for kind in KINDS if kind in found}


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of an HLO text; that of the program itself is named ENTRY."""
    program, lines = {}, []
    for line in text.splitlines():
        if found := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = program.setdefault("ENTRY" if found[1] else found[2], [])
        elif line.startswith("  "):
            lines.append(line)
    return program


def _turns(program: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in one call of the program."""
    turns = defaultdict(int)

    def run(name: str, times: int) -> None:
        turns[name] += times
        for line in program.get(name, ()):
            called = re.findall(r"(body|condition|calls|to_apply|branch_computations)=\{?%?([\w.\-]+)", line)
            loops = trip_count(line, program) if " while(" in line else 1
            for role, other in called:
                if role != "condition":
                    run(other, times * loops)

    run("ENTRY", 1)
    return turns


def trip_count(line: str, program: dict[str, list[str]]) -> int:
    """The iterations of a while: as the compiler notes them, or else the largest constant in its condition."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(found[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)[1]
    constants = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(program.get(condition, ())))
    return max(map(int, constants), default=1)


def _result_bytes(shape: str, started: bool) -> float:
    """Bytes of a result such as `bf16[4,8]{1,0}`; of an asynchronous start's (operands, results, ...) the results."""
    sizes = [
        BYTES.get(kind, 4) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    ]
    return float(max(sizes, default=0) if started else sum(sizes))
