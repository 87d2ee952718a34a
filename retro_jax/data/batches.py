"""Batches of joined sequences: their order, mixture and resumable state. The only file that imports grain.

The order is a function of seed, weights and shards alone. It is computed over sequence numbers, which is cheap; the
global batch b is the numbers [b * B, (b + 1) * B) of it, and each process reads its own contiguous part of them. So the
iterator's whole state is the number of the next batch: the same on every process, and valid on another process count.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from retro_jax.config import ModelConfig, TrainConfig
from retro_jax.core.dimensions import PADDING, check_ids
from retro_jax.data.joined import open_split

PASSES = 2**31  # endless; grain's own "endless" length overflows when it is cut into batches of one
TOKENS = ("tokens", "targets", "neighbor_tokens")  # the features that index tables of the vocabulary
DAMAGED = "These shards are not of one build: run `retro build` into another --workdir."
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # batches; order does not depend on it


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What one training step reads; NumPy arrays from the iterator, global JAX arrays after placement.

    Every padding is -1 (`retro_jax.core.dimensions.PADDING`). `segments` numbers the documents of a sequence from 0 in
    order of appearance, so that two chunks belong together iff their numbers are equal and not -1.
    """

    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]  # the next token of the same document, else -1
    loss_mask: Float[Array, "B T"]  # 1 where the target counts
    segments: Int[Array, "B C"]
    neighbor_tokens: Int[Array, "B C K R"]  # the first K stored neighbors; a missing neighbor is all -1


def make_batch(examples: Sequence[Mapping], neighbors: int) -> Batch:
    """A batch of `examples` (features of `data_pipeline.joined.features`) with the first `neighbors` of the stored."""
    stack = {name: np.stack([example[name] for example in examples]) for name in ("tokens", "targets", "loss_mask")}
    return Batch(
        **stack,
        segments=np.stack([segments(example["document_ids"]) for example in examples]),
        neighbor_tokens=np.stack([example["neighbor_tokens"][:, :neighbors] for example in examples]),
    )


def segments(document_ids: Int[np.ndarray, "C"]) -> Int[np.ndarray, "C"]:
    """Small numbers in place of document ids: 0, 1, ... by first appearance, -1 for a padding chunk."""
    seen: dict[int, int] = {}
    numbers = [PADDING if id == PADDING else seen.setdefault(id, len(seen)) for id in document_ids.tolist()]
    return np.array(numbers, np.int32)


def used_neighbors(model: ModelConfig) -> int:
    """K of this model's batches: a decoder without retrieval layers reads none."""
    return model.neighbors if model.retrieves else 0


def train_iterator(
    directory: Path,
    model: ModelConfig,
    train: TrainConfig,
    *,
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.DatasetIterator:
    """Endless shuffled batches of this process's part: [train.batch / process_count, ...] each.

    `get_state` and `set_state` take and return plain JSON; orbax saves and restores the iterator as it is.

    Args:
      directory: of the joined shards.
      model: T, M, K and V must fit the shards.
      train: batch (over all processes), seed, subset_weights.
      process_index, process_count: of JAX where None.

    Raises:
      ValueError: sizes that do not fit, unknown subsets.
      StageError: shards that are missing, unfinished, truncated or altered.
    """
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    if train.batch % process_count:
        raise ValueError(
            f"Every process reads an equal part of a batch, but config.train.batch={train.batch} is not a multiple of "
            f"the {process_count} processes; take {train.batch // process_count * process_count or process_count}."
        )
    source = open_examples(directory, "train", model)
    part = train.batch // process_count
    mine = slice(process_index * part, (process_index + 1) * part)

    def read(numbers: Int[np.ndarray, "B"]) -> Batch:
        return make_batch(source.__getitems__(numbers[mine].tolist()), used_neighbors(model))

    order = sequence_order(source.subsets, train.subset_weights, train.seed)
    return iter(order.batch(train.batch).map(read).to_iter_dataset(READ_AHEAD))


def sequence_order(
    subsets: Mapping[str, Sequence[int]], weights: Mapping[str, float], seed: int
) -> grain.MapDataset[int]:
    """The endless order of sequence numbers, reshuffled in every pass.

    Args:
      subsets: name -> [first sequence, one past its last).
      weights: share of each subset's sequences among those drawn, renormalized (the paper's sum to 1.0005); a subset
        without a weight is not drawn. Empty: every sequence once a pass.

    Raises:
      ValueError: a name that is not a subset, or weights that are negative or all zero.
    """
    if not weights:
        return _shuffled((0, max(end for _, end in subsets.values())), seed)
    for name, weight in weights.items():
        if name not in subsets:
            raise ValueError(
                f"config.train.subset_weights names '{name}', but the shards hold {', '.join(sorted(subsets))}. "
                f"Correct the name or remove it."
            )
        if not 0 <= weight < float("inf"):
            raise ValueError(f"config.train.subset_weights.{name} must be 0 or more, but is {weight}.")
    drawn = {name: weights[name] for name in sorted(weights) if weights[name] > 0}
    total = sum(drawn.values())
    if not drawn:
        raise ValueError("config.train.subset_weights are all 0; give at least one subset a positive weight.")
    left_out = sorted(set(subsets) - set(drawn))
    if abs(total - 1) > 1e-9 or left_out:
        logging.getLogger(__name__).warning(
            "subset weights sum to %.6g and are renormalized; not drawn: %s", total, ", ".join(left_out) or "none"
        )
    parts = [_shuffled(subsets[name], seed, number) for number, name in enumerate(drawn)]
    return grain.MapDataset.mix(parts, weights=[weight / total for weight in drawn.values()])


def _shuffled(numbers: tuple[int, int], *seeds: int) -> grain.MapDataset[int]:
    """A range of sequence numbers, pass after pass, each in another order (no seed gives another seed's next pass)."""
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    return grain.MapDataset.range(*numbers).shuffle(seed=seed).repeat(PASSES)


class Examples(Sequence):
    """The examples of one split, read at random; `subsets` are the index ranges of each, `manifest` the stage's.

    Raises ValueError, while reading too, where the manifest counts more sequences than exist, or a sequence holds a token
    outside the vocabulary.
    """

    def __init__(self, source, manifest, split: str, directory: Path):
        self._source, self._where = source, f"{directory}, {split}"
        self.manifest = manifest
        self.subsets = {name: tuple(pair) for name, pair in manifest.counts["subsets"][split].items()}
        ends = np.array([end - 1 for _, end in self.subsets.values()])
        check_ids(f"Sequences of {self._where} in its manifest.json", ends, len(source), DAMAGED)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> dict:
        return self._plain(number, self._source[number])

    def __getitems__(self, numbers: Sequence[int]) -> list[dict]:
        return [self._plain(*pair) for pair in zip(numbers, self._source.__getitems__(numbers), strict=True)]

    def _plain(self, number: int, example: dict) -> dict:
        for name in TOKENS:
            what = f"{self._where} sequence {number}, {name} for config.model.vocabulary"
            check_ids(what, example[name], self.manifest.config["vocabulary"], DAMAGED)
        return {**example, "subset": example["subset"].decode()}


def open_examples(directory: Path, split: str, model: ModelConfig) -> Examples:
    """Opens a split of the joined shards and checks it against the model.

    Raises:
      ValueError: the model's T, M, V differ from the shards', or K is more than they store.
      StageError: shards that are missing, unfinished, truncated or altered, or an empty split.
    """
    source, manifest = open_split(directory, split)
    stored = manifest.config
    for name in ("sequence_length", "chunk_length", "vocabulary"):
        wanted = getattr(model, name)
        if wanted != stored[name]:
            raise ValueError(
                f"config.model.{name}={wanted}, but the shards in {directory} were made with {stored[name]}. "
                f"Set --config.model.{name}={stored[name]}, or build shards for {wanted} in another --workdir."
            )
    if used_neighbors(model) > stored["neighbors_stored"]:
        raise ValueError(
            f"config.model.neighbors={model.neighbors}, but the shards in {directory} store "
            f"{stored['neighbors_stored']} neighbors a chunk. Lower it, or build with "
            f"--config.data.neighbors_stored={model.neighbors} in another --workdir."
        )
    return Examples(source, manifest, split, directory)


def validation_examples(directory: Path, model: ModelConfig) -> Examples:
    """The held-out sequences in order: the fields of a Batch with subset, document_ids and neighbor_ids."""
    return open_examples(directory, "validation", model)


def random_neighbors(batch: Batch, seed: int) -> Batch:
    """Replaces each chunk's neighbors by those of another chunk of the batch: the control that retrieval must beat.

    The permutation is one random cycle over the real chunks, so none keeps its own if there are two; padding chunks stay. NumPy
    arrays in and out. In training a chunk may get passages of its own document (the same-document rule held
    for their former owner), which makes the control harder to beat, never easier.
    """
    shape = batch.neighbor_tokens.shape
    flat = np.asarray(batch.neighbor_tokens).reshape(-1, *shape[2:])
    real = np.flatnonzero(np.asarray(batch.segments).reshape(-1) != PADDING)
    cycle = np.random.default_rng(seed).permutation(real)
    mixed = flat.copy()
    mixed[cycle] = flat[np.roll(cycle, 1)]
    return dataclasses.replace(batch, neighbor_tokens=mixed.reshape(shape))
