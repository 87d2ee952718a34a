"""The joined shards: which chunks make a sequence, the schema of an example, opening a split.

`tfds.builder_from_directory(directory).as_data_source("train")` opens them without our code; `data_pipeline.joined`
writes them.

A sequence is C chunk ids of one subset. Everything stored follows from those ids, the chunk table and the neighbor
table, so another packing, shuffle or shard size leaves the neighbors valid: they belong to chunks, not to sequences.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from retro_jax.core.dimensions import PADDING
from retro_jax.data.manifests import StageError, read_manifest
from retro_jax.data.rows import first_rows
from retro_jax.data.windows import windows

NAME = "retro_joined"
STAGE = "joined"
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Packing:
    """The sequences of a split: which chunks, and which of them are scored (paper 5.1; all of them in training)."""

    chunk_ids: Int[np.ndarray, "N C"]  # -1 where a sequence is not full
    scored: Bool[np.ndarray, "N C"]
    subsets: Mapping[str, tuple[int, int]]  # name -> [first sequence, one past its last)

    def subset_of(self, sequence: int) -> str:
        return next(name for name, (first, end) in self.subsets.items() if first <= sequence < end)


def pack_train(rows: Int[np.ndarray, "N"], chunks: int) -> Int[np.ndarray, "N C"]:
    """Concatenates chunk ids and cuts them every `chunks`; only the last sequence is padded, with -1."""
    padded = np.full(-(-len(rows) // chunks) * chunks, PADDING, np.int64)
    padded[: len(rows)] = rows
    return padded.reshape(-1, chunks)


def pack_validation(
    documents: Sequence[tuple[int, int]], chunks: int, overlap: float = 0.5
) -> tuple[Int[np.ndarray, "N C"], Bool[np.ndarray, "N C"]]:
    """Windows of documents, first fit in order: each goes into the first sequence with enough room.

    Two windows of one document never meet in a sequence: all but its last are as long as a sequence.

    Args:
      documents: (first chunk id, number of chunks) of each.
      overlap: share of a window that is context alone.

    Returns:
      Chunk ids (-1 where there is none) and which chunks are scored.
    """
    sequences: list[list[tuple[int, bool]]] = []
    room: list[list[int]] = [[] for _ in range(chunks + 1)]  # by chunks left: a heap of sequence numbers
    for row, length in documents:
        for first, end, scored in windows(length, chunks, overlap):
            need = end - first
            open_sequences = [(room[left][0], left) for left in range(need, chunks + 1) if room[left]]
            if open_sequences:
                number, left = min(open_sequences)
                heapq.heappop(room[left])
            else:
                number, left = len(sequences), chunks
                sequences.append([])
            sequences[number] += [(row + chunk, chunk >= scored) for chunk in range(first, end)]
            heapq.heappush(room[left - need], number)
    ids = np.full((len(sequences), chunks), PADDING, np.int64)
    marks = np.zeros((len(sequences), chunks), bool)
    for number, sequence in enumerate(sequences):
        ids[number, : len(sequence)], marks[number, : len(sequence)] = zip(*sequence, strict=True)
    return ids, marks


def pack(table, chunks: int) -> dict[str, Packing]:
    """The sequences of both splits, subset by subset in the table's order of subsets; a split may be empty.

    Args:
      table: a `data_pipeline.chunks.ChunkTable` (document_ids [N], subsets [N], subset_names, database_chunks).
      chunks: C, chunks of a sequence.
    """
    document_ids, subsets = np.asarray(table.document_ids[:]), np.asarray(table.subsets[:])
    edge = first_rows(document_ids)
    lengths = np.diff(edge, append=len(document_ids))
    packings = {}
    for split in SPLITS:
        inside = edge < table.database_chunks if split == "train" else edge >= table.database_chunks
        ids, marks, ranges, first = [np.empty((0, chunks), np.int64)], [np.empty((0, chunks), bool)], {}, 0
        for number, name in enumerate(table.subset_names):
            mine = inside & (subsets[edge] == number)
            if not mine.any():
                continue
            documents = list(zip(edge[mine].tolist(), lengths[mine].tolist(), strict=True))
            if split == "train":
                rows = np.concatenate([np.arange(row, row + length) for row, length in documents])
                packed = pack_train(rows, chunks)
                scored = packed != PADDING
            else:
                packed, scored = pack_validation(documents, chunks)
            ids.append(packed)
            marks.append(scored)
            ranges[name] = (first, first + len(packed))
            first += len(packed)
        packings[split] = Packing(np.concatenate(ids), np.concatenate(marks), ranges)
    return packings


def features(sequence_length: int, chunk_length: int, neighbors_stored: int):
    """The TFDS features of an example: T tokens, C = T / M chunks, K stored neighbors of R = 2 M tokens."""
    import tensorflow_datasets as tfds

    chunks = sequence_length // chunk_length

    def tensor(dtype, *shape):
        return tfds.features.Tensor(shape=shape, dtype=dtype)

    return tfds.features.FeaturesDict(
        {
            "tokens": tensor(np.int32, sequence_length),
            "targets": tensor(np.int32, sequence_length),
            "loss_mask": tensor(np.float32, sequence_length),
            "document_ids": tensor(np.int64, chunks),
            "neighbor_tokens": tensor(np.int32, chunks, neighbors_stored, 2 * chunk_length),
            "neighbor_ids": tensor(np.int64, chunks, neighbors_stored),
            "neighbor_distances": tensor(np.float32, chunks, neighbors_stored),
            "subset": tfds.features.Text(),
        }
    )


def open_split(directory: Path, split: str, *, verify: bool = True):
    """A random-access sequence of the examples of a split (see `features`), and the stage's manifest.

    Raises:
      StageError: unfinished, truncated or altered shards, or an empty split.
    """
    import tensorflow_datasets as tfds

    manifest = read_manifest(directory, STAGE, verify=verify)
    if split not in manifest.counts["subsets"]:
        raise StageError(
            f"{directory} holds no {split} sequences: no document fell into that split. "
            f"Give more documents or raise config.data.validation_fraction, and build into another --workdir."
        )
    return tfds.builder_from_directory(str(directory)).as_data_source(split), manifest
