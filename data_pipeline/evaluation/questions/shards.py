"""Joined shards of questions, which `retro train` fine-tunes on; their schema is that of all joined shards.

    DATA/evaluation/NAME/joined      a sequence a question: prompt, answer, EOS; the passages are the neighbors of the prompt's
                                     last chunk; the loss falls on answer and EOS alone
    DATA/evaluation/NAME/tokenizer   a copy of DATA/tokenizer

so that DATA/evaluation/NAME can be config.data.directory of a training run. A share of the questions
(config.data.validation_fraction, by a hash) is held out for the validation losses during training. Passages are not
chunks of a database: their ids are -1, their distances infinite.
"""

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.documents.stage import split_of
from data_pipeline.evaluation.questions.stored import StoredQuestions
from data_pipeline.joined import check_lengths, metadata_shard, write_examples
from data_pipeline.stages.run import Manifest, Shard, StageError, read_manifest, run_stage
from data_pipeline.tokens import STAGE as TOKENIZER
from retro_jax.core.dimensions import PADDING
from retro_jax.data.joined import NAME, SPLITS, STAGE, features
from retro_jax.evaluate.questions.layout import answer_text, example

VERSION = "questions 1.0.0"


def build_question_shards(
    directory: Path,
    questions: StoredQuestions,
    *,
    sequence_length: int,
    shard_sequences: int,
    validation_fraction: float,
) -> Manifest:
    """Writes the data set; resumable shard by shard.

    Args:
      directory: of the set; `joined` and `tokenizer` are made in it.
      sequence_length: T; a question that does not fit with its answer is left out and counted ("too_long").

    Raises:
      ValueError: sizes that do not divide.
      StageError: no question to train on.
    """
    length = questions.chunk_length
    check_lengths(sequence_length, length)
    chosen, dropped = _choose(questions, sequence_length, validation_fraction)
    if not len(chosen["train"]):
        raise StageError(
            f"No question of {questions.name!r} is left to train on ({dropped} are longer than "
            f"config.model.sequence_length={sequence_length}); raise it, or lower config.data.validation_fraction="
            f"{validation_fraction:g}."
        )
    copy_tokenizer(questions.tokenizer.directory, directory / TOKENIZER)
    config = {
        "sequence_length": sequence_length,
        "chunk_length": length,
        "neighbors_stored": questions.stored,
        "vocabulary": questions.tokenizer.vocabulary,
        "shard_sequences": shard_sequences,
        "validation_fraction": validation_fraction,
        "version": VERSION,
    }
    inputs = {"questions": questions.fingerprint, "tokenizer": questions.tokenizer.fingerprint}
    shards, sizes = [], {}
    for split, numbers in chosen.items():
        parts = np.split(numbers, range(shard_sequences, len(numbers), shard_sequences)) if len(numbers) else []
        sizes |= {split: [len(part) for part in parts]} if parts else {}
        for number, part in enumerate(parts):
            name = f"{NAME}-{split}.array_record-{number:05d}-of-{len(parts):05d}"
            make = partial(_make, split, name, questions, part, config)
            shards.append(Shard(name.replace(".array_record", ""), [name], make))
    counts = {
        "subsets": {split: {questions.name: [0, len(chosen[split])]} for split in sizes},
        "dropped": {"too_long": dropped},
    }
    last = metadata_shard(directory / STAGE, (sequence_length, length, questions.stored), sizes)
    return run_stage(directory / STAGE, STAGE, config, inputs, shards, counts=counts, last=last)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a finished tokenizer; an existing copy must be the same.

    Raises:
      StageError: the target is another tokenizer.
    """
    if not (target / "manifest.json").exists():
        unfinished = target.with_name(f".writing-{target.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        unfinished.rename(target)
    if read_manifest(target, TOKENIZER).fingerprint != read_manifest(source, TOKENIZER, verify=False).fingerprint:
        raise StageError(f"{target} is another tokenizer than {source}. Move {target.parent} away.")


def _choose(questions: StoredQuestions, sequence_length: int, fraction: float) -> tuple[dict[str, np.ndarray], int]:
    """Numbers of the questions of each split, and how many do not fit."""
    chosen, dropped = {split: [] for split in SPLITS}, 0
    for number, (record, chunks) in enumerate(zip(_records(questions), questions.prompt_chunks, strict=True)):
        answer = len(questions.tokenizer.encode(answer_text(record["target"])))
        if chunks * questions.chunk_length + answer > sequence_length:
            dropped += 1
        else:
            chosen[split_of(record["document"], fraction)].append(number)
    return {split: np.array(numbers, np.int64) for split, numbers in chosen.items()}, dropped


def _records(questions: StoredQuestions, at_once: int = 1024) -> Iterator[Mapping]:
    for start in range(0, len(questions), at_once):
        yield from questions.records(start, min(start + at_once, len(questions)))


def _make(split: str, name: str, questions: StoredQuestions, numbers: np.ndarray, config: Mapping, temporary: Path):
    length, stored = config["chunk_length"], config["neighbors_stored"]
    schema = features(config["sequence_length"], length, stored)
    examples = (_features(questions, int(number), config) for number in numbers)
    targets = write_examples(temporary / name, schema, examples, config["vocabulary"])
    return {"sequences": {split: len(numbers)}, "scored_targets": {split: targets}}


def _features(questions: StoredQuestions, number: int, config: Mapping) -> dict:
    """The features of one training sequence."""
    (record,), tokenizer = questions.records(number, number + 1), questions.tokenizer
    chunks = config["sequence_length"] // config["chunk_length"]
    made = example(
        questions.prompts(np.array([number]))[0],
        tokenizer.encode(answer_text(record["target"])),
        tokenizer.eos,
        questions.passages(np.array([number]))[0],
        config["chunk_length"],
        chunks,
    )
    shape = (chunks, config["neighbors_stored"])
    documents = np.where(np.arange(chunks) < made.chunks, record["document"], PADDING)
    return {
        "tokens": made.tokens,
        "targets": made.targets,
        "loss_mask": made.loss_mask,
        "document_ids": documents.astype(np.int64),
        "neighbor_tokens": made.neighbor_tokens,
        "neighbor_ids": np.full(shape, PADDING, np.int64),
        "neighbor_distances": np.full(shape, np.inf, np.float32),
        "subset": questions.name,
    }
