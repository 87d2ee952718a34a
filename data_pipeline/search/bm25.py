"""BM25 over token ids: reranks the nearest chunks by the words that they share with the query (config.data.rerank).

    frequencies-00000.npy  int64 [V], in how many database chunks of a shard each token occurs

The words are tokens; BOS and EOS are none. The index proposes candidates by distance and these alone are scored, so no inverted index is kept;
of equal scores the nearer is first. The stored distances are those of the embeddings.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from data_pipeline.chunks import ChunkTable
from data_pipeline.stages.engine import Shard
from data_pipeline.stages.run import REPAIR, Manifest, read_manifest, read_plan, run_stage
from retro_jax.core.dimensions import PADDING, check_ids
from retro_jax.core.files import load_array

STAGE = "lexical"
SATURATION, LENGTH = 1.2, 0.75  # k1 and b of BM25, the usual ones
ROWS_AT_ONCE = 65_536


def build_lexical(directory: Path, chunks: Path, vocabulary: int, special: Sequence[int]) -> Manifest:
    """Counts in how many database chunks each token occurs, and the tokens in all.

    Args:
      special: tokens without weight, BOS and EOS. First chunks alone have the one and last chunks the other, so as rare words they
        would draw these to each other. A stage that was begun by a version which weighed them keeps its ranking.
    """
    table, begun = ChunkTable(chunks), read_plan(directory)
    config = {"vocabulary": vocabulary}
    if begun is None or "special" in begun["config"]:
        config["special"] = sorted(set(special))
    shards, start = [], 0
    for number, rows in enumerate(table.shard_rows):
        stop = min(start + rows, table.database_chunks)
        if start < stop:
            name = f"frequencies-{number:05d}"
            shards.append(Shard(name, [f"{name}.npy"], partial(_count, name, table, start, stop, vocabulary)))
        start += rows
    return run_stage(directory, STAGE, config, {"chunks": table.fingerprint}, shards)


def _count(name: str, table: ChunkTable, start: int, stop: int, vocabulary: int, temporary: Path) -> dict:
    frequencies, tokens = np.zeros(vocabulary, np.int64), 0
    for first in range(start, stop, ROWS_AT_ONCE):
        rows = np.sort(table.tokens[first : min(first + ROWS_AT_ONCE, stop)], axis=1)
        check_ids(f"Tokens of the chunks for {name}, config.model.vocabulary", rows, vocabulary)
        new = rows != PADDING
        tokens += int(new.sum())
        new[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        frequencies += np.bincount(rows[new], minlength=vocabulary)
    np.save(temporary / f"{name}.npy", frequencies)
    return {"chunks": stop - start, "tokens": tokens}


class Lexical:
    """A finished lexical stage: weights of tokens.

    Attributes:
      fingerprint: of the stage's manifest.
    """

    def __init__(self, directory: Path):
        manifest = read_manifest(directory, STAGE)
        self.directory, self.fingerprint = Path(directory), manifest.fingerprint
        frequencies = sum(load_array(self.directory / file.name, REPAIR) for file in manifest.files)
        chunks = manifest.counts["chunks"]
        self._average = manifest.counts["tokens"] / chunks
        self._weights = np.log(1 + (chunks - frequencies + 0.5) / (frequencies + 0.5))
        self._weights[manifest.config.get("special", [])] = 0.0

    def __reduce__(self):
        """Pickles as its path."""
        return Lexical, (self.directory,)

    def scores(self, query: Int[np.ndarray, "M"], chunks: Int[np.ndarray, "C M"]) -> Float64[np.ndarray, "C"]:
        """BM25 of each chunk for the tokens of a query, each counted once; -1 is padding in both."""
        terms = np.unique(query[query != PADDING])
        counts = (chunks[:, :, None] == terms).sum(1)
        share = (chunks != PADDING).sum(1, keepdims=True) / self._average
        damped = counts * (SATURATION + 1) / (counts + SATURATION * (1 - LENGTH + LENGTH * share))
        return damped @ self._weights[terms]

    def rerank(
        self,
        queries: Int[np.ndarray, "N M"],
        ids: Int64[np.ndarray, "N C"],
        distances: Float32[np.ndarray, "N C"],
        tokens,
        k: int,
    ) -> tuple[Int64[np.ndarray, "N K"], Float32[np.ndarray, "N K"]]:
        """The k of each row's candidates with the highest score; missing ones (-1, +inf) stay last.

        Args:
          ids, distances: candidates, nearest first.
          tokens: the table [chunks, M] that ids are rows of.
        """
        check_ids(f"Tokens of a query for {self.directory}", queries, len(self._weights))
        found, measured = ids[:, :k].copy(), distances[:, :k].copy()
        for row, query in enumerate(queries):
            there = ids[row] != PADDING
            candidates = ids[row][there]
            order = np.lexsort((candidates, distances[row][there], -self.scores(query, tokens[candidates])))[:k]
            found[row, : len(order)], measured[row, : len(order)] = candidates[order], distances[row][there][order]
        return found, measured
