"""Stage 3, chunks: cuts each document (BOS + text + EOS) from its start into rows of M tokens (paper 2.2, 2.3).

    chunks-00000.tokens.npy        int32 [N_s, M], padded with -1 after a document's end
    chunks-00000.document_ids.npy  int64 [N_s]
    chunks-00000.subsets.npy       int32 [N_s], numbers into the manifest's counts["subsets"]

A chunk's id is its row number over all shards. Rows of training documents come first: they are the database. A shard
holds whole documents of one split, so it is made from a range of documents alone; the division into shards
changes no id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipeline.documents.selection import SPLITS
from data_pipeline.documents.stage import DocumentTable, read_documents_manifest, read_lines
from data_pipeline.stages.run import Manifest, Shard, StageError, read_manifest, run_stage
from retro_jax.config import DataConfig
from retro_jax.core.dimensions import PADDING
from retro_jax.data.rows import ShardedRows, first_rows

STAGE = "chunks"
COLUMNS = ("tokens", "document_ids", "subsets")
BATCH_BYTES = 4_000_000  # of text that is encoded at once
BYTES_PER_TOKEN = 3  # a guess that sets the size of shards; nothing else depends on it


def cut(
    documents: Sequence[Sequence[int]], chunk_length: int, bos: int, eos: int
) -> tuple[Int[np.ndarray, "N M"], Int[np.ndarray, "D"]]:
    """Cuts each document, as BOS + its tokens + EOS, from its own start into rows of `chunk_length`.

    Returns:
      The rows in order, each document's last one padded with -1; and the number of rows of each document.
    """
    lengths = np.array([len(tokens) + 2 for tokens in documents], np.int64)
    rows = -(-lengths // chunk_length)
    first_row = np.cumsum(rows) - rows
    table = np.full((int(rows.sum()), chunk_length), PADDING, np.int32)
    flat = table.reshape(-1)
    for tokens, start, length in zip(documents, (first_row * chunk_length).tolist(), lengths.tolist(), strict=True):
        flat[start] = bos
        flat[start + 1 : start + length - 1] = tokens
        flat[start + length - 1] = eos
    return table, rows


def build_chunks(directory: Path, config: DataConfig, chunk_length: int, documents: Path, tokenizer: Path) -> Manifest:
    """Tokenizes and cuts every document.

    Args:
      chunk_length: M.
      documents, tokenizer: directories of these stages.

    Raises:
      StageError: a tokenizer whose tokens do not add up to the bytes of a document.
    """
    from data_pipeline.tokens import Tokenizer  # SentencePiece; reading finished chunks does not need it

    source, text_tokenizer = read_documents_manifest(documents), Tokenizer(tokenizer)
    names = sorted(
        name for name, count in source.counts["subsets"].items() if any(count[s]["documents"] for s in SPLITS)
    )
    trained = sum(source.counts["subsets"][name]["train"]["documents"] for name in names)
    texts = DocumentTable(documents)
    text_bytes = texts.bytes
    ranges = document_ranges(text_bytes, trained, chunk_length, config.shard_chunks)
    shards = []
    for number, (start, stop) in enumerate(ranges):
        stem = f"chunks-{number:05d}"
        make = partial(_make, stem, texts.lines(start, stop), stop - start, text_tokenizer, chunk_length, names)
        shards.append(Shard(stem, [f"{stem}.{column}.npy" for column in COLUMNS], make))
    return run_stage(
        directory,
        STAGE,
        stage_config(config, chunk_length),
        {"documents": source.fingerprint, "tokenizer": text_tokenizer.fingerprint},
        shards,
        counts={"subsets": names, "chunk_length": chunk_length},
    )


def stage_config(config: DataConfig, chunk_length: int) -> dict:
    """The settings that the stage depends on; part of its plan."""
    return {"chunk_length": chunk_length, "shard_chunks": config.shard_chunks}


def document_ranges(
    text_bytes: Int[np.ndarray, "D"], trained: int, chunk_length: int, shard_chunks: int
) -> list[tuple[int, int]]:
    """Ranges [start, stop) of documents that make about `shard_chunks` chunks each, none across the border of the splits."""
    guess = -(-(text_bytes // BYTES_PER_TOKEN + 2) // chunk_length)
    ranges, start, size = [], 0, 0
    for document, chunks in enumerate(guess.tolist()):
        if document > start and (size + chunks > shard_chunks or document == trained):
            ranges.append((start, document))
            start, size = document, 0
        size += chunks
    return [*ranges, (start, len(text_bytes))]


def _make(
    stem: str, lines: Sequence, documents: int, tokenizer, chunk_length: int, names: Sequence[str], temporary: Path
) -> dict:
    """Writes the three columns of the rows of so many documents (`DocumentTable.lines`)."""
    tables, ids, subsets = [], [], []
    total: dict = {"chunks": 0, "database_chunks": 0, "documents": documents, "tokens": 0, "by_subset": {}}

    def flush(batch):
        encoded = tokenizer.encode_all([document.text for document in batch])
        table, rows = cut(encoded, chunk_length, tokenizer.bos, tokenizer.eos)
        tables.append(table)
        ids.append(np.repeat(np.array([document.id for document in batch], np.int64), rows))
        subsets.append(np.repeat(np.array([names.index(document.subset) for document in batch], np.int32), rows))
        for document, tokens, count in zip(batch, encoded, rows.tolist(), strict=True):
            size = len(document.text.encode())
            if (found := int(tokenizer.token_bytes[tokens].sum())) != size:
                raise StageError(
                    f"The tokenizer loses text: its tokens of document {document.name!r} stand for {found:,} bytes, but "
                    f"the text has {size:,}. Train one (leave config.data.tokenizer empty) or give another."
                )
            part = (
                total["by_subset"]
                .setdefault(document.subset, {})
                .setdefault(document.split, {"documents": 0, "chunks": 0, "tokens": 0, "bytes": 0})
            )
            for key, value in (("documents", 1), ("chunks", count), ("tokens", len(tokens) + 2), ("bytes", size)):
                part[key] += value
            total["chunks"] += count
            total["database_chunks"] += count if document.split == "train" else 0
            total["tokens"] += len(tokens) + 2

    batch, size = [], 0
    for document in read_lines(lines):
        batch.append(document)
        size += len(document.text)
        if size > BATCH_BYTES:
            flush(batch)
            batch, size = [], 0
    if batch:
        flush(batch)
    for column, parts in zip(COLUMNS, (tables, ids, subsets), strict=True):
        np.save(temporary / f"{stem}.{column}.npy", np.concatenate(parts))
    return total


class ChunkTable:
    """A finished chunks stage, mapped into memory.

    Attributes:
      tokens: Int[ShardedRows, "N M"], int32, -1 after a document's end.
      document_ids: Int[ShardedRows, "N"], int64.
      subsets: Int[ShardedRows, "N"], numbers into `subset_names`.
      database_chunks: chunks [0, database_chunks) are those of training documents.
      chunk_length: M.
      fingerprint: of the stage's manifest.
    """

    def __init__(self, directory: Path, *, verify: bool = False):
        manifest = read_manifest(directory, STAGE, verify=verify)
        columns = {
            column: ShardedRows([Path(directory) / file.name for file in manifest.files if f".{column}." in file.name])
            for column in COLUMNS
        }
        self.tokens, self.document_ids, self.subsets = (columns[column] for column in COLUMNS)
        self.subset_names: tuple[str, ...] = tuple(manifest.counts["subsets"])
        self.database_chunks: int = manifest.counts["database_chunks"]
        self.chunk_length: int = manifest.counts["chunk_length"]
        self.shard_rows: tuple[int, ...] = self.tokens.part_rows
        self.fingerprint = manifest.fingerprint

    def __len__(self) -> int:
        return len(self.tokens)

    def first_chunks(self) -> Int[np.ndarray, "D"]:
        """The first chunk of each document, in table order."""
        return first_rows(self.document_ids[:])

    def value(self, ids: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape R"]:
        """[N, F] of chunks, R = 2M; see `values`."""
        return values(self.tokens, self.document_ids, ids)


def values(
    tokens: Int[np.ndarray, "N M"], document_ids: Int[np.ndarray, "N"], ids: Int[np.ndarray, "*shape"]
) -> Int[np.ndarray, "*shape R"]:
    """[N, F] of the chunks `ids`: each chunk and the next one of its document, -1 where missing (paper 2.3).

    F is never another document's text and never wraps around at the table's end; an id of -1 (a missing neighbor)
    gives a row of -1 and indexes nothing.

    Raises:
      ValueError: an id that is neither -1 nor a row.
    """
    ids, (chunks, length) = np.asarray(ids), tokens.shape
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"Chunk ids must be integers, but {ids.dtype} was given.")
    if ids.size and (ids.min() < PADDING or ids.max() >= chunks):
        wrong = ids.min() if ids.min() < PADDING else ids.max()
        raise ValueError(f"{wrong} is not a chunk id: ids run from 0 to {chunks - 1}, and -1 is a missing one.")
    there = ids != PADDING
    chosen = ids[there].astype(np.int64)
    following = np.minimum(chosen + 1, chunks - 1)
    continues = (following > chosen) & (document_ids[following] == document_ids[chosen])
    rows = np.full((len(chosen), 2 * length), PADDING, np.int32)
    rows[:, :length] = tokens[chosen]
    rows[continues, length:] = tokens[following[continues]]
    value = np.full((*ids.shape, 2 * length), PADDING, np.int32)
    value[there] = rows
    return value


@dataclass(frozen=True)
class DatabaseText:
    """The text of a database's chunks, by id: what a training sequence reads of it. It pickles as paths.

    Attributes:
      tokens: Int["N M"], in the tokens of the model that reads it; -1 is padding.
      document_ids: Int64["N"].
      ranges: of the ids, [start, stop), that a search may return.
    """

    tokens: Any
    document_ids: Any
    ranges: tuple[tuple[int, int], ...]

    def value(self, ids: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape R"]:
        """[N, F] of chunks; see `values`."""
        return values(self.tokens, self.document_ids, ids)
