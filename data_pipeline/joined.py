"""Stage 7, joined shards: sequences of chunks with the text of their neighbors, a TFDS data set of ArrayRecord files.

The schema and the packing of chunks into sequences are in `retro_jax.data.joined`, which reading shares. TensorFlow is
never needed.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from data_pipeline.chunks import DatabaseText
from data_pipeline.stages.run import Manifest, Shard, StageError, run_stage
from retro_jax.core.dimensions import PADDING, check_ids
from retro_jax.data.joined import NAME, STAGE, features, pack

VERSION = "1.0.0"
OTHER_TOKENIZER = "The chunks have a larger vocabulary: set --config.model.vocabulary to that of their tokenizer."


def join(
    ids: Int[np.ndarray, "C"],
    scored: Bool[np.ndarray, "C"],
    split: str,
    subset: str,
    table,
    neighbors,
    database: DatabaseText | None = None,
    copies=None,
) -> dict:
    """One example: every feature of a sequence (shapes in `features`); the arguments are those of `build_joined`.

    targets[p] is the next token of the same document, looked up in the table, so also where it lies in the next
    sequence. Training counts every target; validation counts text alone: not BOS, which is never a target, and not
    EOS, which is a document's last token.

    Raises:
      StageError: a neighbor outside the database or of the chunk's own document (the two tables do not belong together).
    """
    length, read = table.chunk_length, database or table
    value = table.value(ids)
    tokens, targets, after = value[:, :length], value[:, 1 : length + 1], value[:, 2 : length + 2]
    counts = targets != PADDING
    if split != "train":
        counts = counts & (after != PADDING) & scored[:, None]
    real = ids != PADDING
    rows = np.where(real, ids, 0)  # row 0 is read for padding and overwritten
    document_ids = np.where(real, table.document_ids[rows], PADDING)
    neighbor_ids = np.where(real[:, None], neighbors.ids[rows], PADDING)
    distances = np.where(neighbor_ids != PADDING, neighbors.distances[rows], np.inf)
    ranges = database.ranges if database else ((0, table.database_chunks),)
    _check_neighbors(ids, document_ids, neighbor_ids, read.document_ids, ranges, copies)
    return {
        "tokens": tokens.reshape(-1).astype(np.int32),
        "targets": targets.reshape(-1).astype(np.int32),
        "loss_mask": counts.reshape(-1).astype(np.float32),
        "document_ids": document_ids.astype(np.int64),
        "neighbor_tokens": read.value(neighbor_ids).astype(np.int32),
        "neighbor_ids": neighbor_ids.astype(np.int64),
        "neighbor_distances": distances.astype(np.float32),
        "subset": subset,
    }


def _check_neighbors(ids, document_ids, neighbor_ids, owners, ranges, copies) -> None:
    found = neighbor_ids != PADDING
    outside = found & ~np.logical_or.reduce([(neighbor_ids >= start) & (neighbor_ids < stop) for start, stop in ranges])
    own = document_ids[:, None] if copies is None else copies.own(document_ids)
    owner = owners[np.where(found & ~outside, neighbor_ids, 0)]
    same = np.logical_or.reduce([owner == one[:, None] for one in own.T])
    for wrong, reason in (
        (outside, f"is outside the database (chunks {', '.join(f'{start} to {stop - 1}' for start, stop in ranges)})"),
        (same & found & ~outside, "is of the chunk's own document"),
    ):
        if wrong.any():
            chunk, rank = np.argwhere(wrong)[0]
            raise StageError(
                f"Neighbor {neighbor_ids[chunk, rank]} of chunk {ids[chunk]} {reason}: these neighbors were not made "
                f"for these chunks. Move the neighbors directory away and run `retro build` again."
            )


def build_joined(
    directory: Path,
    table,
    neighbors,
    *,
    sequence_length: int,
    vocabulary: int,
    shard_sequences: int,
    inputs: Mapping[str, str],
    database: DatabaseText | None = None,
    copies=None,
    counts: Mapping | None = None,
) -> Manifest:
    """Writes the data set; resumable shard by shard, with the same bytes after any interruption.

    Args:
      table: the ChunkTable.
      neighbors: `ids` int64 [N, K] and `distances` float32 [N, K] of every chunk, indexable by rows.
      sequence_length: T.
      vocabulary: of the tokenizer; kept for the model's check.
      shard_sequences: sequences a file.
      inputs: fingerprints of the stages chunks and neighbors, and of what else the text of the neighbors is made with.
      database: of another build, whose chunks the neighbors are; None: the neighbors are chunks of `table`.
      copies: the ids of the documents in that database (`data_pipeline.database.copies.Copies`).
      counts: facts known beforehand that belong into the manifest.

    Raises:
      ValueError: sizes that do not divide.
      StageError: no training text, or what `run_stage` and `join` find.
    """
    length = table.chunk_length
    check_lengths(sequence_length, length)
    if not table.database_chunks:
        raise StageError("No document remains to train on; add text or lower config.data.validation_fraction.")
    packings = {split: made for split, made in pack(table, sequence_length // length).items() if len(made.chunk_ids)}
    stored = neighbors.ids.shape[1]
    config = stage_config(sequence_length, length, stored, vocabulary, shard_sequences)
    shards, sizes = [], {}
    for split, packing in packings.items():
        starts = range(0, len(packing.chunk_ids), shard_sequences)
        sizes[split] = [min(shard_sequences, len(packing.chunk_ids) - start) for start in starts]
        for number, start in enumerate(starts):
            name = f"{NAME}-{split}.array_record-{number:05d}-of-{len(starts):05d}"
            part = range(start, start + sizes[split][number])
            shards.append(
                _example_shard(split, name, packing, part, (table, neighbors, database, copies), stored, vocabulary)
            )
    schema = (sequence_length, length, stored)
    ranges = {split: {name: list(pair) for name, pair in made.subsets.items()} for split, made in packings.items()}
    metadata = metadata_shard(Path(directory), schema, sizes)
    return run_stage(
        directory, STAGE, config, inputs, shards, counts={"subsets": ranges, **(counts or {})}, last=metadata
    )


def check_lengths(sequence_length: int, chunk_length: int) -> None:
    """Raises ValueError where a sequence is not a whole number of chunks of at least 2 tokens."""
    if chunk_length < 2 or sequence_length % chunk_length:
        raise ValueError(
            f"A sequence is a whole number of chunks of at least 2 tokens, but config.model.sequence_length="
            f"{sequence_length} and the chunks hold {chunk_length}; take a multiple of {max(chunk_length, 2)}."
        )


def stage_config(sequence_length: int, chunk_length: int, stored: int, vocabulary: int, shard_sequences: int) -> dict:
    """What the stage depends on beside its input; part of its plan."""
    return {
        "sequence_length": sequence_length,
        "chunk_length": chunk_length,
        "neighbors_stored": stored,
        "vocabulary": vocabulary,
        "shard_sequences": shard_sequences,
        "version": VERSION,
    }


def _example_shard(split, name, packing, part, tables, stored, vocabulary) -> Shard:
    chosen = slice(part.start, part.stop)
    subsets = [packing.subset_of(number) for number in part]
    examples = (packing.chunk_ids[chosen].copy(), packing.scored[chosen].copy(), subsets)  # of this shard alone
    make = partial(_make, split, name, examples, tables, stored, vocabulary)
    return Shard(name.replace(".array_record", ""), [name], make)


def _make(split, name, examples, tables, stored, vocabulary, temporary: Path) -> dict:
    (chunk_ids, marks, subsets), table = examples, tables[0]
    schema = features(chunk_ids.shape[1] * table.chunk_length, table.chunk_length, stored)
    joined = (
        join(ids, scored, split, subset, *tables) for ids, scored, subset in zip(chunk_ids, marks, subsets, strict=True)
    )
    targets = write_examples(temporary / name, schema, joined, vocabulary)
    chunks = int((chunk_ids != PADDING).sum())
    return {"sequences": {split: len(chunk_ids)}, "chunks": {split: chunks}, "scored_targets": {split: targets}}


def write_examples(path: Path, schema, examples: Iterable[Mapping], vocabulary: int) -> int:
    """Writes a shard of examples; returns the number of targets that count.

    Raises:
      ValueError: a token outside of the vocabulary.
    """
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")  # random access
    targets = 0
    for example in examples:
        for tokens in (example["tokens"], example["neighbor_tokens"]):
            what = f"Tokens of the chunks for {path.name}, config.model.vocabulary"
            check_ids(what, tokens, vocabulary, OTHER_TOKENIZER)
        targets += int(example["loss_mask"].sum())
        # Parsed and written again in a fixed order of keys: TFDS leaves it to a hash that changes with the process.
        record = tf_example_pb2.Example.FromString(schema.serialize_example(example))
        writer.write(record.SerializeToString(deterministic=True))
    writer.close()
    return targets


def metadata_shard(directory: Path, schema: tuple[int, int, int], sizes: Mapping[str, Sequence[int]]) -> Shard:
    """What TFDS opens the shards by; made after them.

    Args:
      schema: arguments of `features`.
      sizes: sequences of each shard, by split.
    """

    def make(temporary: Path) -> dict:
        import tensorflow_datasets as tfds

        for path in directory.glob(f"{NAME}-*.array_record-*"):
            (temporary / path.name).touch()  # TFDS learns the shards from their names; the temporary folder goes
        splits = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths,
                num_bytes=sum(path.stat().st_size for path in directory.glob(f"{NAME}-{split}.array_record-*")),
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=temporary, dataset_name=NAME, split=split, filetype_suffix="array_record"
                ),
            )
            for split, lengths in sizes.items()
        ]
        # The data check is the only part of this call that needs TensorFlow.
        tfds.folder_dataset.write_metadata(
            data_dir=temporary, features=features(*schema), split_infos=splits, version=VERSION, check_data=False
        )
        return {}

    return Shard("metadata", ["dataset_info.json", "features.json"], make)
