"""Counts what a compiled step reads from and writes to a device's memory, operation by operation.

Each operation of the program reads its operands and writes its results, as often as its loop runs. Buffers count with the
padding of their layout, and not where the compiler keeps them in fast memory (S(1) in a TPU's layout). An operation that
takes or updates a part of an array counts the part, in a fusion too. What a kernel keeps in fast memory of its own is not seen,
so that a Pallas kernel counts its operands and results once.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

from retro_jax.preflight.hlo import BYTES, computations, trip_count

# They move no array: names for parts of others, calls whose insides count, and the second half of an asynchronous operation.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all")
FREE += ("partition-id", "replica-id", "opt-barrier")
FREE_CALLS = ("AllocateBuffer", "AsyncCollectiveStart", "AsyncCollectiveDone", "AssumeGatherIndicesInBound")
PARTS = ("dynamic-slice", "slice", "gather")  # read as much as they give
UPDATES = ("dynamic-update-slice", "scatter")
SCOPES = (
    "self_attention",
    "feed_forward",
    "cross_attention",
    "encoder",
    "readout",
    "optimizer",
)  # `jax.named_scope` of the model
LINE = re.compile(r"  (ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")


@dataclass(frozen=True)
class Operation:
    """One line of a compiled program."""

    name: str
    result: str  # its type and layout
    kind: str
    operands: tuple[str, ...]
    rest: str  # of the line: attributes and metadata
    root: bool


def memory_traffic(text: str) -> dict[str, float]:
    """Part of the model (`part`) -> bytes that one call of the program moves in a device's memory."""
    lines = computations(text)
    program = {name: operations(body) for name, body in lines.items()}
    found: dict[str, float] = defaultdict(float)

    def run(name: str, times: int) -> None:
        for operation in program.get(name, {}).values():
            found[part(operation)] += times * _moved(operation, program[name], program)
            if operation.kind in ("while", "conditional", "call"):
                loops = trip_count(operation.rest, lines) if operation.kind == "while" else 1
                for other in re.findall(r"(?:body|to_apply|branch_computations)=\{?%([\w.\-]+)", operation.rest):
                    run(other, times * loops)

    run("ENTRY", 1)
    return {name: size for name, size in found.items() if size}


def operations(lines: list[str]) -> dict[str, Operation]:
    """Name -> operation of one computation."""
    found = {}
    for line in lines:
        if match := LINE.match(line):
            root, name, result, kind, rest = match.groups()
            inside = rest[: _closing(rest)]
            names = re.findall(r"%([\w.\-]+)", inside)
            found[name] = Operation(name, result, kind, tuple(names), rest, bool(root))
    return found


def _closing(rest: str) -> int:
    """Where the list of operands ends."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    return len(rest)


def part(operation: Operation) -> str:
    """Where in the model an operation comes from: the scope that the model gave it, or else "other"."""
    name = re.search(r'op_name="([^"]*)"', operation.rest)
    scopes = re.findall(rf"\b({'|'.join(SCOPES)})\b", name[1]) if name else ()
    return scopes[0] if scopes else "other"


def buffer_bytes(shape: str) -> float:
    """Bytes of a type such as `bf16[4,8]{1,0:T(8,128)(2,1)}` or of a tuple's members, padded to tiles; 0 in fast memory."""
    total = 0.0
    for kind, sizes, order, layout in ARRAY.findall(shape):
        if kind not in BYTES or re.search(r"S\([1-9]", layout):
            continue
        sizes = [int(size) for size in sizes.split(",") if size]
        if order:
            sizes = [sizes[int(axis)] for axis in reversed(order.split(","))]
        if tile := re.match(r"T\(([\d,]+)\)", layout):
            tile = [int(size) for size in tile[1].split(",")]
            sizes = [1] * (len(tile) - len(sizes)) + sizes
            for axis in range(1, len(tile) + 1):
                sizes[-axis] = -(-sizes[-axis] // tile[-axis]) * tile[-axis]
        total += BYTES[kind] * math.prod(sizes)
    return total


def _moved(operation: Operation, known: dict[str, Operation], program: dict) -> float:
    """Bytes that one run of the operation reads and writes."""
    if operation.kind in FREE or operation.kind.endswith("-done"):
        return 0.0
    if operation.kind == "custom-call" and any(f'"{target}"' in operation.rest for target in FREE_CALLS):
        return 0.0
    sources = [known[name] for name in operation.operands if name in known]
    if operation.kind == "fusion":
        inside = program[re.search(r"calls=%([\w.\-]+)", operation.rest)[1]]
        read = sum(min(_read(index, inside, program), buffer_bytes(one.result)) for index, one in enumerate(sources))
        return read + _written(operation, inside)
    if operation.kind in PARTS:
        return _part(operation.result, sources[:1]) + buffer_bytes(operation.result)
    if operation.kind in UPDATES:
        return 2 * buffer_bytes(sources[-1 if operation.kind == "scatter" else 1].result)
    if operation.kind.endswith("-start"):  # (operands, results, ...): the results and what is read for them
        return sum(buffer_bytes(one.result) for one in sources) + _started(operation, sources)
    return sum(buffer_bytes(one.result) for one in sources) + buffer_bytes(operation.result)


def _part(result: str, sources: list[Operation]) -> float:
    """What a slice reads of an array: as much as it gives, or nothing of an array in fast memory."""
    whole = sum(buffer_bytes(one.result) for one in sources)
    return min(whole, buffer_bytes(re.sub(r"S\([1-9]\)", "", result)))


def _started(operation: Operation, sources: list[Operation]) -> float:
    """The results of an asynchronous operation: what its tuple holds beside operands and marks."""
    whole = buffer_bytes(operation.result) - sum(buffer_bytes(one.result) for one in sources)
    marks = sum(buffer_bytes(f"u32[]{layout}") for layout in re.findall(r"u32\[\](\{[^}]*\})?", operation.result))
    return max(whole - marks, 0.0)


def _read(index: int, inside: dict[str, Operation], program: dict) -> float:
    """Bytes that a fusion reads of its operand `index`: parts, where each use takes a part."""
    parameter = next(
        (one for one in inside.values() if one.kind == "parameter" and one.rest.startswith(f"{index})")), None
    )
    return _used(parameter.name, inside, program) if parameter else math.inf


def _used(name: str, inside: dict[str, Operation], program: dict) -> float:
    total = 0.0
    for user in (one for one in inside.values() if name in one.operands):
        if user.kind in PARTS and user.operands[0] == name:
            total += buffer_bytes(re.sub(r"S\([1-9]\)", "", user.result))
        elif user.kind == "bitcast":
            total += _used(user.name, inside, program)
        elif user.kind in UPDATES and user.operands[0] == name and user.operands.count(name) == 1:
            continue  # updated in place
        elif user.kind == "fusion":
            within = program[re.search(r"calls=%([\w.\-]+)", user.rest)[1]]
            total += sum(_read(place, within, program) for place, one in enumerate(user.operands) if one == name)
        else:
            return math.inf
    return total


def _written(operation: Operation, inside: dict[str, Operation]) -> float:
    """Bytes that a fusion writes: of an array that it updates in place, the part."""
    root = next(one for one in inside.values() if one.root)
    results = [inside[name] for name in root.operands] if root.kind == "tuple" else [root]
    shapes = ["".join(match) for match in re.findall(r"([a-z]\w*\[[\d,]*\])(\{[^}]*\})?", operation.result)]
    total = 0.0
    for shape, result in zip(shapes, results, strict=False):
        while result.kind == "bitcast" and result.operands[0] in inside:
            result = inside[result.operands[0]]
        update = inside.get(result.operands[1]) if result.kind == "dynamic-update-slice" else None
        total += min(buffer_bytes(shape), buffer_bytes(update.result)) if update else buffer_bytes(shape)
    return total
