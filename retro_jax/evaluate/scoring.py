"""Bits of every held-out token under every condition: the figures from which all others are sums.

Each condition (conditions.py) is a forward pass over the validation windows (paper 5.1: length T, half of it as stride, each
text token scored once, the first one included).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.core.dimensions import PADDING
from retro_jax.core.progress import progress
from retro_jax.data.batches import Batch, make_batch
from retro_jax.data.joined import pack
from retro_jax.data.manifests import StageError
from retro_jax.data.rows import first_rows
from retro_jax.evaluate.conditions import CONDITIONS, Asked, OtherChunks
from retro_jax.evaluate.overlap import overlaps
from retro_jax.models.loss import token_nll
from retro_jax.models.retro import merge

# (tokens, segments, targets, neighbor tokens or None) -> bits of each target [B, T]; a negative target gives 0.
Scorer = Callable[[Int[Array, "B T"], Int[Array, "B C"], Int[Array, "B T"], Array | None], Float[Array, "B T"]]


def make_scorer(config: ModelConfig, params: dict) -> Scorer:
    """The compiled scorer of a model; one compilation with neighbors, one without."""
    return partial(_token_bits, config, params)


@partial(jax.jit, static_argnums=0)
def _token_bits(config, params, tokens, segments, targets, neighbor_tokens):
    model = merge(config, params)
    hidden = model.hidden(tokens, segments, neighbor_tokens)
    return token_nll(hidden, model.readout, targets, config.loss_block) / math.log(2)


@dataclass(frozen=True)
class HeldOut:
    """Figures of the N held-out chunks, in table order: rows [first, first + N) of the chunk table.

    Column i belongs to the token that stands at place i of the chunk, whichever window and position predicted it.
    """

    first: int
    bits: Mapping[str, Float[np.ndarray, "N M"]]  # by condition; 0 where nothing is scored
    bytes: Int[np.ndarray, "N M"]  # UTF-8 bytes of the scored tokens
    scored: Int[np.ndarray, "N M"]  # 1 on text tokens, 0 on BOS, EOS and padding
    documents: Int[np.ndarray, "N"]  # number of the chunk's document among the held-out ones, from 0
    subsets: Int[np.ndarray, "N"]
    overlap: Float[np.ndarray, "N"]  # r(C)
    neighbor_ids: Int[np.ndarray, "N K"]  # the stored neighbors, as the shards have them
    neighbor_distances: Float[np.ndarray, "N K"]


def score(
    examples: Sequence[Mapping],
    table,
    token_bytes: Int[np.ndarray, "V"],
    model: ModelConfig,
    scorers: Mapping[str, Scorer],
    *,
    batch: int,
    seed: int,
    overlap_neighbors: int,
    removed: Bool[np.ndarray, "N"] | None = None,
) -> HeldOut:
    """One pass over the validation split.

    Args:
      examples: `retro_jax.data.batches.validation_examples`.
      table: the `data_pipeline.chunks.ChunkTable` that the examples were joined from.
      scorers: "retro" and, where there is one, "baseline".
      batch: sequences a forward pass; the last one is filled up with padding.
      seed: of the random and shuffled neighbors.
      overlap_neighbors: stored neighbors that r(C) looks at.
      removed: chunks that are not drawn as random neighbors either; None: all are.

    Raises:
      StageError: examples that are not these chunks, or that do not score every text token exactly once.
      ValueError: a table of bytes of another vocabulary than the model's.
    """
    if len(token_bytes) != model.vocabulary:
        raise ValueError(
            f"The tokenizer's table of bytes has {len(token_bytes):,} tokens, but config.model.vocabulary="
            f"{model.vocabulary:,}: evaluate with the data that the model was trained with."
        )
    chunk_ids = pack(table, model.chunks)["validation"].chunk_ids
    if len(chunk_ids) != len(examples):
        raise StageError(
            f"The joined shards hold {len(examples):,} validation sequences, but the chunks pack into "
            f"{len(chunk_ids):,}: they are of two builds. Run `retro build` into another --workdir."
        )
    books = _Books(table, token_bytes, examples[0]["neighbor_ids"].shape[-1])
    others = OtherChunks(table, seed, removed)
    starts = range(0, len(examples), batch)
    for number, start in enumerate(progress(starts, description="evaluate", unit="batch")):
        part = examples.__getitems__(list(range(start, min(start + batch, len(examples)))))
        ids = np.full((batch, model.chunks), PADDING, np.int64)
        ids[: len(part)] = chunk_ids[start : start + batch]
        books.enter_facts(part, ids[: len(part)], overlap_neighbors)
        given = _fill(make_batch(part, model.neighbors), batch)
        targets = np.where(given.loss_mask > 0, given.targets, PADDING)
        asked = Asked(given, ids, others, seed + number)
        pending = {
            condition.name: scorers[condition.model](
                given.tokens, given.segments, targets, condition.neighbors and condition.neighbors(asked)
            )
            for condition in CONDITIONS.values()
            if condition.model in scorers
        }
        for condition, bits in jax.device_get(pending).items():
            books.enter_bits(condition, ids, targets, bits)
    return books.close()


def _fill(batch: Batch, size: int) -> Batch:
    """The batch with sequences of padding behind it, so that every batch has one shape."""

    def fill(array, value):
        return np.concatenate([array, np.full((size - len(array), *array.shape[1:]), value, array.dtype)])

    names = ("tokens", "targets", "segments", "neighbor_tokens")
    return Batch(loss_mask=fill(batch.loss_mask, 0), **{name: fill(getattr(batch, name), PADDING) for name in names})


class _Books:
    """Tables over the held-out chunks that a pass fills in."""

    def __init__(self, table, token_bytes, stored: int):
        self.table, self.first, self.token_bytes = table, table.database_chunks, token_bytes
        self.tokens = table.tokens[slice(self.first, len(table.tokens))]
        self.document_ids = np.asarray(table.document_ids[self.first :])
        count = len(self.tokens)
        self.times = np.zeros(self.tokens.shape, np.int8)
        self.bits = {}
        self.overlap = np.zeros(count)
        self.neighbor_ids = np.full((count, stored), PADDING, np.int64)
        self.neighbor_distances = np.full((count, stored), np.inf, np.float32)

    def enter_facts(self, examples: Sequence[Mapping], ids, overlap_neighbors: int) -> None:
        """Neighbors and r(C) of the chunks of some sequences, after a check that the sequences are these chunks."""
        for example, chunks in zip(examples, ids, strict=True):
            real = chunks != PADDING
            rows, expected = chunks[real] - self.first, np.full((len(chunks), self.tokens.shape[1]), PADDING)
            expected[real] = self.tokens[rows]
            if not np.array_equal(example["tokens"], expected.reshape(-1)):
                raise StageError(
                    "The joined validation shards do not hold the tokens of the chunks beside them: they are of two "
                    "builds. Run `retro build` into another --workdir."
                )
            self.neighbor_ids[rows] = example["neighbor_ids"][real]
            self.neighbor_distances[rows] = example["neighbor_distances"][real]
            neighbors = example["neighbor_tokens"][real][:, :overlap_neighbors]
            self.overlap[rows] = overlaps(self.tokens[rows], neighbors, self.token_bytes)

    def enter_bits(self, condition: str, ids, targets, bits) -> None:
        """Files the bits of every target under the place where the target itself stands: one further than its position."""
        length = self.tokens.shape[1]
        places = (ids[:, :, None] - self.first) * length + np.arange(length) + 1
        counts = (targets != PADDING).reshape(places.shape)
        table = self.bits.setdefault(condition, np.zeros(self.tokens.shape, np.float32))
        table.reshape(-1)[places[counts]] = bits.reshape(places.shape)[counts]
        if condition == "off":
            np.add.at(self.times.reshape(-1), places[counts], 1)

    def close(self) -> HeldOut:
        text = text_tokens(self.tokens, self.document_ids)
        if not np.array_equal(self.times, text):
            row, place = np.argwhere(self.times != text)[0]
            raise StageError(
                f"Every text token must be scored exactly once, but token {place} of chunk {row + self.first} was scored "
                f"{self.times[row, place]} times. The joined shards are of another build; run `retro build` into "
                f"another --workdir."
            )
        changes = np.diff(self.document_ids, prepend=self.document_ids[:1]) != 0
        return HeldOut(
            first=self.first,
            bits=self.bits,
            bytes=self.token_bytes[np.maximum(self.tokens, 0)] * text,
            scored=text.astype(np.int64),
            documents=np.cumsum(changes),
            subsets=np.asarray(self.table.subsets[self.first :]),
            overlap=self.overlap,
            neighbor_ids=self.neighbor_ids,
            neighbor_distances=self.neighbor_distances,
        )


def text_tokens(tokens: Int[np.ndarray, "N M"], document_ids: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N M"]:
    """1 on every token of whole documents but BOS (their first), EOS (their last) and padding."""
    text = (tokens != PADDING).astype(np.int8)
    starts = first_rows(document_ids)
    ends = np.append(starts[1:], len(tokens)) - 1
    text[starts, 0] = 0
    text[ends, (tokens[ends] != PADDING).sum(axis=1) - 1] = 0
    return text


def check_bytes(held_out: HeldOut, document_bytes: Int[np.ndarray, "D"]) -> None:
    """Raises StageError where the scored bytes of a document are not the UTF-8 bytes of its text."""
    found = np.bincount(held_out.documents, weights=held_out.bytes.sum(axis=1), minlength=len(document_bytes))
    if len(found) != len(document_bytes) or (found != document_bytes).any():
        wrong = int(np.flatnonzero(found[: len(document_bytes)] != document_bytes[: len(found)])[:1].sum())
        raise StageError(
            f"Bits per byte needs the bytes of the scored text, but held-out document {wrong} has "
            f"{int(found[wrong]):,} scored bytes and a text of {int(document_bytes[wrong]):,}. The tokenizer or the "
            f"documents are of another build; run `retro build` into another --workdir."
        )
