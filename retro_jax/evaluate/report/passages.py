"""Held-out passages for the report: which tokens retrieval helped or hurt, and the neighbors that were read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from retro_jax.core.dimensions import PADDING
from retro_jax.evaluate.blocks import Block
from retro_jax.evaluate.overlap import overlaps
from retro_jax.evaluate.scores import Scores
from retro_jax.evaluate.scoring import Task
from retro_jax.evaluate.sets import Neighbors

TOKENS = 96  # in a passage, approximately
CHUNKS = 3  # in a passage, at least
SHORTEST_RUN = 4  # tokens; a shorter run in common with a neighbor is not marked
KINDS = ("helped most", "helped least", "typical")
PARTS = 32  # of the scores that passages are chosen from, spread over the set


@dataclass(frozen=True)
class Choice:
    kind: str
    subset: str
    document: int  # number in the set
    chunks: range  # of the document
    gain: float  # bits that retrieval saves on it


def choose(text: Scores, conditions: Mapping[str, Scores], count: int, chunk_length: int) -> list[Choice]:
    """`count` passages of different documents: helped most, helped least (or hurt), median gain; subsets take turns.

    Subsets come in the order of their overlap, highest first.
    """
    candidates: dict[str, list[Choice]] = {}
    overlap: dict[str, np.ndarray] = {}
    for part in np.unique(np.linspace(0, text.parts - 1, min(PARTS, text.parts)).astype(int)) if text.parts else ():
        facts = text.read(int(part))
        off, on = (conditions[name].read(int(part), ("chunk_bits",))["chunk_bits"] for name in ("off", "on"))
        edges = np.cumsum([0, *facts["chunks"]])
        for number, subset, first, end in zip(facts["number"], facts["subset"], edges[:-1], edges[1:], strict=True):
            rows = slice(first, end)
            found = _passages(int(number), subset, (off - on)[rows], facts["chunk_bytes"][rows], chunk_length)
            candidates.setdefault(subset, []).extend(found)
            total = np.array([end - first, facts["chunk_overlap"][rows].sum()])
            overlap[subset] = overlap.get(subset, 0) + total
    subsets = sorted(candidates, key=lambda name: -overlap[name][1] / overlap[name][0])
    chosen: list[Choice] = []
    turns = [(turn + place, name) for turn in range(len(KINDS)) for place, name in enumerate(subsets)]
    for turn, name in turns:
        used = {choice.document for choice in chosen}
        left = [found for found in candidates[name] if found.document not in used]
        if left and len(chosen) < count:
            kind = KINDS[turn % len(KINDS)]
            place = {"helped most": -1, "helped least": 0, "typical": len(left) // 2}[kind]
            one = sorted(left, key=lambda found: found.gain)[place]
            chosen.append(Choice(kind, one.subset, one.document, one.chunks, one.gain))
    return chosen


def _passages(
    document: int, subset: str, gains: Float[np.ndarray, "N"], sizes: Int[np.ndarray, "N"], chunk_length: int
) -> Iterator[Choice]:
    """Every candidate passage of one document, with its gain; a first chunk reads no neighbors, so it is none by itself."""
    size = max(CHUNKS, TOKENS // chunk_length)
    for start in range(max(0, len(gains) - size) + 1):
        chunks = range(start, min(start + size, len(gains)))
        if len(chunks) > 1 and sizes[chunks.start : chunks.stop].any():
            yield Choice("", subset, document, chunks, float(gains[chunks.start : chunks.stop].sum()))


def describe(
    choice: Choice, task: Task, block: Block, bits: Mapping[str, Float[np.ndarray, "N M"]], source: Neighbors
) -> dict:
    """A passage as plain JSON.

    Each chunk is listed with the neighbors that are read while it is predicted: those of the previous chunk of its
    document (paper 2.4).

    Args:
      block: of the document alone.
      bits: of its tokens, "off" and "on".
    """
    ids, distances = source.find(np.arange(len(block.tokens)) + block.first)
    stored = task.stored()
    near = stored.find(np.arange(len(block.tokens)) + block.first)[0][:, : task.overlap_neighbors]
    overlap = overlaps(block.tokens, stored.value(near), task.token_bytes)
    chunks = []
    for row in choice.chunks:
        reads = []
        if row:
            reads = [
                _neighbor(int(id), float(distance), block.tokens[row], source)
                for id, distance in list(zip(ids[row - 1], distances[row - 1], strict=True))[: task.k]
                if id != PADDING
            ]
        chunks.append(
            {
                "chunk": int(block.first + row),
                "overlap": float(overlap[row]),
                "tokens": _tokens(task.text.pieces(block.first + row), bits, row),
                "neighbors": reads,
            }
        )
    rows = list(choice.chunks)
    return {
        "kind": choice.kind,
        "set": task.text.name,
        "subset": choice.subset,
        "document": block.facts[0].name,
        "bytes": int(block.bytes[rows].sum()),
        "bits_off": float(bits["off"][rows].sum()),
        "bits_on": float(bits["on"][rows].sum()),
        "chunks": chunks,
    }


def _tokens(pieces: Sequence[bytes], bits_of: Mapping[str, np.ndarray], row: int) -> list[dict]:
    """Text with bits off and on; tokens that form a character only together are one entry."""
    entries, waiting, bits = [], b"", np.zeros(2)
    for place, piece in enumerate(pieces):
        waiting += piece
        bits = bits + [bits_of["off"][row, place], bits_of["on"][row, place]]
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


def _neighbor(chunk: int, distance: float, target: Int[np.ndarray, "M"], database: Neighbors) -> dict:
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
    """Start in `tokens` and length of the longest run that also occurs in `target`; the first one on ties."""
    best, row = (0, 0), [0] * (len(target) + 1)
    for place, token in enumerate(tokens):
        row = [0, *(row[j] + 1 if token == other else 0 for j, other in enumerate(target))]
        if max(row) > best[1]:
            best = (place + 1 - max(row), max(row))
    return best
