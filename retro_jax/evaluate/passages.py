"""Held-out passages for the report: which tokens retrieval helped or hurt, beside the neighbors that were read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from retro_jax.core.dimensions import PADDING
from retro_jax.evaluate.scoring import HeldOut

TOKENS = 96  # about so many make a passage, and at least
CHUNKS = 3
SHORTEST_RUN = 4  # tokens in common with a neighbor, from which they are marked
KINDS = ("helped most", "helped least", "typical")


class Texts(Protocol):
    """What `describe` asks of a database: the texts of chunks and the documents that they are of."""

    table: Any  # tokens [N, M] of the chunks

    def value(self, ids): ...
    def document(self, chunk): ...
    def pieces(self, chunk): ...


@dataclass(frozen=True)
class Choice:
    kind: str
    chunks: range  # rows of the held-out tables
    gain: float  # bits that retrieval saves on it


def choose(held_out: HeldOut, count: int) -> list[Choice]:
    """`count` passages of different documents: helped most, helped least (or hurt) and of median gain, in turn over the subsets.

    Subsets come in the order of their overlap, highest first.
    """
    gains = (held_out.bits["off"] - held_out.bits["on"]).sum(axis=1, dtype=np.float64)
    candidates = {int(number): _passages(held_out, gains, number) for number in np.unique(held_out.subsets)}
    numbers = sorted(candidates, key=lambda number: -held_out.overlap[held_out.subsets == number].mean())
    chosen: list[Choice] = []
    turns = [(turn + place, number) for turn in range(len(KINDS)) for place, number in enumerate(numbers)]
    for turn, number in turns:
        used = {held_out.documents[choice.chunks[0]] for choice in chosen}
        left = [found for found in candidates[number] if held_out.documents[found[0][0]] not in used]
        if left and len(chosen) < count:
            kind = KINDS[turn % len(KINDS)]
            place = {"helped most": -1, "helped least": 0, "typical": len(left) // 2}[kind]
            chosen.append(Choice(kind, *sorted(left, key=lambda found: found[1])[place]))
    return chosen


def _passages(held_out: HeldOut, gains, subset) -> list[tuple[range, float]]:
    """Every run of a passage's chunks in one document, with its gain; a document's first chunk never gains alone."""
    size = max(CHUNKS, TOKENS // held_out.bytes.shape[1])
    rows = np.flatnonzero(held_out.subsets == subset)
    found = []
    for document in np.unique(held_out.documents[rows]):
        mine = rows[held_out.documents[rows] == document]
        for start in range(mine[0], max(mine[0], mine[-1] - size + 1) + 1):
            chunks = range(int(start), int(min(start + size, mine[-1] + 1)))
            if len(chunks) > 1 and held_out.scored[chunks].any():
                found.append((chunks, float(gains[chunks].sum())))
    return found


def describe(choice: Choice, held_out: HeldOut, database: Texts, neighbors: int) -> dict:
    """A passage as plain JSON.

    Each chunk stands with the neighbors that are read while it is predicted: those of the chunk before it in its
    document (paper 2.4), `neighbors` at most.
    """
    document = database.document(held_out.first + choice.chunks[0])
    chunks = []
    for row in choice.chunks:
        chunk = held_out.first + row
        reads = []
        if row and held_out.documents[row - 1] == held_out.documents[row]:
            ids, distances = held_out.neighbor_ids[row - 1], held_out.neighbor_distances[row - 1]
            reads = [
                _neighbor(int(id), float(distance), database.table.tokens[np.array([chunk])][0], database)
                for id, distance in list(zip(ids, distances, strict=True))[:neighbors]
                if id != PADDING
            ]
        chunks.append(
            {
                "chunk": int(chunk),
                "overlap": float(held_out.overlap[row]),
                "tokens": _tokens(database.pieces(chunk), held_out, row),
                "neighbors": reads,
            }
        )
    rows = list(choice.chunks)
    return {
        "kind": choice.kind,
        "subset": document.subset,
        "document": document.name,
        "bytes": int(held_out.bytes[rows].sum()),
        "bits_off": float(held_out.bits["off"][rows].sum()),
        "bits_on": float(held_out.bits["on"][rows].sum()),
        "chunks": chunks,
    }


def _tokens(pieces: Sequence[bytes], held_out: HeldOut, row: int) -> list[dict]:
    """Text with bits off and on; tokens that only together make whole characters are one entry."""
    entries, waiting, bits = [], b"", np.zeros(2)
    for place, piece in enumerate(pieces):
        waiting += piece
        bits = bits + [held_out.bits["off"][row, place], held_out.bits["on"][row, place]]
        if waiting and (_whole(waiting) or place == len(pieces) - 1):
            text = waiting.decode("utf-8", errors="replace")
            entries.append({"text": text, "off": float(bits[0]), "on": float(bits[1])})
            waiting, bits = b"", np.zeros(2)
    return entries


def _whole(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return True


def _neighbor(chunk: int, distance: float, target: Int[np.ndarray, "M"], database: Texts) -> dict:
    """[N, F] as text, with the longest run of tokens that it shares with the chunk being predicted."""
    value = database.value(np.array([chunk]))[0]
    first = database.pieces(chunk)
    pieces = [*first, *(database.pieces(chunk + 1) if (value[len(value) // 2 :] != PADDING).any() else [])]
    tokens = value[value != PADDING].tolist()
    start, length = longest_run(tokens, [int(token) for token in target if token != PADDING])
    if length < SHORTEST_RUN:
        start, length = len(tokens), 0
    document = database.document(chunk)

    def text(a, b):
        return b"".join(pieces[a:b]).decode("utf-8", errors="replace")

    cuts = sorted({0, start, start + length, len(first), len(pieces)})
    return {
        "chunk": chunk,
        "distance": distance,
        "subset": document.subset,
        "document": document.name,
        "parts": [
            {"text": text(a, b), "continuation": a >= len(first), "shared": start <= a < start + length}
            for a, b in zip(cuts[:-1], cuts[1:], strict=True)
            if text(a, b)
        ],
    }


def longest_run(tokens: Sequence[int], target: Sequence[int]) -> tuple[int, int]:
    """Start in `tokens` and length of the longest run that also stands in `target`; the first of equals."""
    best, row = (0, 0), [0] * (len(target) + 1)
    for place, token in enumerate(tokens):
        row = [0, *(row[j] + 1 if token == other else 0 for j, other in enumerate(target))]
        if max(row) > best[1]:
            best = (place + 1 - max(row), max(row))
    return best
