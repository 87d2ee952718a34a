"""Chunk tables, neighbors and joined shards made up in memory, for tests that need no text and no encoder."""

from dataclasses import dataclass, field

import numpy as np

from data_pipeline.joined import build_joined

M = 4  # tokens a chunk
BOS, EOS = 1, 2


@dataclass
class Table:
    """The contract of a ChunkTable, in memory and in the plainest way."""

    documents: list  # (document id, subset number, tokens with BOS and EOS), training documents first
    training: int
    subset_names: tuple = ("wiki", "legal")
    chunk_length: int = M
    tokens: np.ndarray = field(init=False)

    def __post_init__(self):
        rows, ids, subsets = [], [], []
        self.database_chunks = 0
        for number, (document_id, subset, tokens) in enumerate(self.documents):
            for start in range(0, len(tokens), M):
                cut = tokens[start : start + M]
                rows.append(cut + [-1] * (M - len(cut)))
                ids.append(document_id)
                subsets.append(subset)
            if number < self.training:
                self.database_chunks = len(rows)
        self.tokens = np.array(rows, np.int32).reshape(-1, M)
        self.document_ids, self.subsets = np.array(ids, np.int64), np.array(subsets, np.int32)

    def value(self, ids):
        ids = np.asarray(ids)
        found = np.full((*ids.shape, 2 * M), -1, np.int32)
        for place in np.ndindex(ids.shape):
            row = ids[place]
            if row >= 0:
                found[place][:M] = self.tokens[row]
                if row + 1 < len(self.tokens) and self.document_ids[row + 1] == self.document_ids[row]:
                    found[place][M:] = self.tokens[row + 1]
        return found


@dataclass
class Neighbors:
    ids: np.ndarray
    distances: np.ndarray


def document(number, subset, words):
    """BOS, `words` text tokens that name their document and place (1000 * number + place), EOS."""
    return number, subset, [BOS, *(1000 * number + place for place in range(words)), EOS]


def made_up(seed=0, training=9, validation=6, stored=3, longest=40):
    rng = np.random.default_rng(seed)
    documents = [
        document(number + 10, int(rng.integers(2)), int(rng.integers(1, longest)))
        for number in range(training + validation)
    ]
    table = Table(documents, training)
    ids = np.full((len(table.tokens), stored), -1, np.int64)
    for row in range(len(ids)):
        others = np.flatnonzero(table.document_ids[: table.database_chunks] != table.document_ids[row])
        found = rng.permutation(others)[: rng.integers(0, stored + 1)]
        ids[row, : len(found)] = found
    distances = np.where(ids >= 0, np.sort(rng.random(ids.shape), -1), np.inf).astype(np.float32)
    return table, Neighbors(ids, distances)


def build(directory, table, neighbors, sequence_length=16, shard_sequences=3):
    return build_joined(
        directory,
        table,
        neighbors,
        sequence_length=sequence_length,
        vocabulary=100_000,
        shard_sequences=shard_sequences,
        inputs={"chunks": "c", "neighbors": "n"},
    )
