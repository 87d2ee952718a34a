"""The stage "questions": the questions of a set with prompts and passages as tokens, in the order of the files.

    questions-00000.jsonl      id, question, answers, target and place; a line for each question
    questions-00000.index.npy  int64 [Q, 3]: where the line begins, the first chunk of the prompt, rank of the first right passage
    questions-00000.prompts    int32 [*, M]: chunks of the prompts, padded on the left
    questions-00000.passages   int32 [Q, K, R]

A file of the set is a shard of the stage. The passages are those of the file. Questions without passages get the chunks
of the database that are nearest by the frozen encoder.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np

from data_pipeline.database.retriever import Retriever
from data_pipeline.database.searched import open_database
from data_pipeline.documents.stage import document_id
from data_pipeline.evaluation.questions.records import list_questions, read_questions
from data_pipeline.formats.files import SourceFile, digest_files
from data_pipeline.stages.run import Manifest, Shard, StageError, run_stage
from data_pipeline.tokens import Tokenizer
from retro_jax.config import DataConfig, SourceConfig
from retro_jax.core.dimensions import PADDING
from retro_jax.core.progress import progress
from retro_jax.evaluate.questions.layout import PASSAGES, passage_row, passage_text, prompt_row, prompt_text
from retro_jax.evaluate.questions.matching import stands_in
from retro_jax.evaluate.questions.question import Passage, Question

STAGE = "questions"
AT_ONCE = 256  # questions that are tokenized and searched together


@dataclass
class Searching:
    """The database that questions without passages are asked of; opened where it is needed."""

    data: Path
    config: DataConfig

    @cached_property
    def retriever(self) -> Retriever:
        return Retriever(self.data, self.config)

    @property
    def version(self) -> str:
        return open_database(self.data).version

    def __getstate__(self) -> dict:
        return {"data": self.data, "config": self.config}

    def passages(self, questions: Sequence[str], k: int, tokenizer: Tokenizer) -> Iterator[tuple[Passage, ...]]:
        """For each question the k nearest chunks with their continuations, titled with their documents' names."""
        ids, _ = self.retriever.search_all(list(questions), k)
        for row in ids:
            found = row[row != PADDING]
            texts = [tokenizer.decode(tokens[tokens != PADDING]) for tokens in self.retriever.values(found)]
            titles = [name for _, name in self.retriever.sources(found)]
            yield tuple(Passage(*pair) for pair in zip(titles, texts, strict=True))


def build_questions(
    directory: Path,
    name: str,
    source: SourceConfig,
    tokenizer: Tokenizer,
    *,
    chunk_length: int,
    passages: int = PASSAGES,
    searching: Searching,
) -> Manifest:
    """Writes the stage; resumable file by file.

    Args:
      name: of the set.
      source: `path` names its files.
      passages: K, stored of each question at most.
      searching: the database that is searched for questions without passages; not opened otherwise.

    Raises:
      StageError: a record that is not a question, files with and without passages in one set, or no question at all.
    """
    listing, limit = list_questions(name, source), searching.config.max_document_memory
    plain = _is_plain(listing.files, passages, limit)
    config = {"set": name, "protocol": STAGE, "chunk_length": chunk_length, "passages": passages}
    inputs = {f"source {name}": digest_files(list(listing.files)), "tokenizer": tokenizer.fingerprint}
    if plain:
        inputs["database"] = searching.version
    shards = []
    for number, file in enumerate(listing.files):
        files = [f"{STAGE}-{number:05d}.{ending}" for ending in ("jsonl", "index.npy", "prompts", "passages")]
        make = partial(_make, name, file, tokenizer, config, searching if plain else None, limit, files)
        shards.append(Shard(f"{STAGE}-{number:05d}", files, make))
    counts = {"retrieved": plain, "source_files": {name: listing.counts()}}
    some = Shard("some", [], partial(_require_some, Path(directory)))
    return run_stage(directory, STAGE, config, inputs, shards, counts=counts, last=some)


def _is_plain(files: Sequence[SourceFile], passages: int, limit: int) -> bool:
    """Whether the first question has no passages."""
    for file in files:
        for _, question in read_questions(file, passages, limit):
            return question.passages is None
    return False


def _require_some(directory: Path, temporary: Path) -> dict:
    """Raises StageError for a set without questions; a last step that writes nothing."""
    if not any(path.stat().st_size for path in directory.glob("*.jsonl")):
        raise StageError(f"The files hold no question. Move {directory.parent} away and give other files with --path.")
    return {}


def _make(
    name: str,
    file: SourceFile,
    tokenizer: Tokenizer,
    config: Mapping,
    searching: Searching | None,
    limit: int,
    files: Sequence[str],
    temporary: Path,
) -> dict:
    length, stored = config["chunk_length"], config["passages"]
    counts = {"questions": 0, "passages": 0, "prompt_chunks": 0, "answerable": 0}
    records = progress(read_questions(file, stored, limit), description=f"read {name}", unit="question")
    index, offset = [], 0
    lines, prompts, tables = (open(temporary / files[place], "wb") for place in (0, 2, 3))
    with lines, prompts, tables:
        while block := list(islice(records, AT_ONCE)):
            _check_alike(block, searching is not None)
            given = [question.passages for _, question in block]
            if searching is not None:
                given = searching.passages([question.question for _, question in block], stored, tokenizer)
            encoded = tokenizer.encode_all([prompt_text(question.question) for _, question in block])
            for (where, question), found, tokens in zip(block, given, encoded, strict=True):
                place = f"{file.name}:{where.rpartition(' ')[2].replace(',', '')}"
                line = _line(name, place, question)
                prompt = prompt_row([tokenizer.bos, *tokens], length)
                table, right = _passage_table(found, question.answers, tokenizer, stored, 2 * length)
                index.append((offset, counts["prompt_chunks"], right))
                offset += len(line)
                lines.write(line)
                prompts.write(prompt.astype("<i4").tobytes())
                tables.write(table.astype("<i4").tobytes())
                counts["questions"] += 1
                counts["passages"] += len(found)
                counts["prompt_chunks"] += len(prompt) // length
                counts["answerable"] += right > 0
    np.save(temporary / files[1], np.array(index, np.int64).reshape(-1, 3))
    return counts


def _check_alike(block: Sequence[tuple[str, Question]], plain: bool) -> None:
    for where, question in block:
        if (question.passages is None) != plain:
            what = ("has passages", "have none") if plain else ("has no passages", "have some")
            raise StageError(
                f"{where}: this question {what[0]}, but those before it {what[1]}. Join them as two sets: passages of the "
                f"file and passages of the database do not give figures that can be compared."
            )


def _line(name: str, place: str, question: Question) -> bytes:
    record = {
        "id": question.id or place,
        "document": document_id(f"evaluation\0{name}", place),
        "place": place,
        "question": question.question,
        "answers": list(question.answers),
        "target": question.target,
    }
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _passage_table(passages: Sequence[Passage], answers, tokenizer: Tokenizer, stored: int, length: int):
    """(tokens [K, R], rank of the first passage that contains an answer after it was cut, 0 for none)."""
    table, right = np.full((stored, length), PADDING, np.int32), 0
    encoded = tokenizer.encode_all([passage_text(one.title, one.text) for one in passages])
    for rank, tokens in enumerate(encoded):
        table[rank] = passage_row(tokens, length)
        if not right and stands_in(answers, tokenizer.decode(tokens[:length])):
            right = rank + 1
    return table, right
