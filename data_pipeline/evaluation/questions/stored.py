"""A finished set of questions, mapped into memory, as evaluation and training read it (`retro_jax.evaluate.questions.sets`)."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from data_pipeline.evaluation.questions.stage import STAGE
from data_pipeline.evaluation.tables import FOLDER, check_name, set_directory
from data_pipeline.stages.run import REPAIR, StageError, read_manifest
from data_pipeline.tokens import Tokenizer
from retro_jax.core.files import load_array


def question_sets(data: Path) -> list[str]:
    """Names of the finished sets of questions."""
    found = (Path(data) / FOLDER).glob(f"*/{STAGE}/manifest.json")
    return sorted(path.parent.parent.name for path in found)


def open_question_sets(data: Path, names: Sequence[str] = ()) -> "dict[str, StoredQuestions]":
    """Sets of questions by name; without names all except those with shards to train on. Names of sets of text are skipped."""
    found = question_sets(data)
    trained = [name for name in found if (set_directory(data, name) / "joined").exists()]
    wanted = names or [name for name in found if name not in trained]
    return {name: StoredQuestions(data, name) for name in found if name in wanted}


class StoredQuestions:
    """The questions of a set.

    Attributes: those of `retro_jax.evaluate.questions.sets.QuestionSet`, and `tokenizer`.

    Raises:
      StageError: no such set, an unfinished or damaged one, or one of another tokenizer than DATA's.
    """

    def __init__(self, data: Path, name: str):
        check_name(name)
        self.name, self._data, directory = name, Path(data), set_directory(data, name) / STAGE
        if not directory.exists():
            there = ", ".join(question_sets(data)) or "none"
            raise StageError(
                f"There are no questions {name!r} in {data}; there is: {there}. Join them: retro join --set={name} "
                f"--path=FILES --protocol={STAGE}."
            )
        manifest = read_manifest(directory, STAGE, verify=False)
        self.tokenizer = Tokenizer(Path(data) / "tokenizer")
        if manifest.inputs["tokenizer"] != self.tokenizer.fingerprint:
            raise StageError(
                f"{directory} was made with another tokenizer than {data}/tokenizer. Join the questions again."
            )
        self.fingerprint, self.chunk_length = manifest.fingerprint, manifest.config["chunk_length"]
        self.stored: int = manifest.config["passages"]
        parts = sorted(directory.glob("*.jsonl"))
        tables = [load_array(path.with_suffix(".index.npy"), REPAIR) for path in parts]
        self._lines, self._paths = np.concatenate([table[:, 0] for table in tables]), parts
        self._part = np.repeat(np.arange(len(parts)), [len(table) for table in tables])
        self._row = np.concatenate([np.arange(len(table)) for table in tables])
        self._chunk = np.concatenate([table[:, 1] for table in tables])
        self.found = np.concatenate([table[:, 2] for table in tables])
        shape = (self.chunk_length,), (self.stored, 2 * self.chunk_length)
        self._prompts = [_mapped(path.with_suffix(".prompts"), shape[0]) for path in parts]
        self._passages = [_mapped(path.with_suffix(".passages"), shape[1]) for path in parts]
        sizes = [np.diff(table[:, 1], append=len(rows)) for table, rows in zip(tables, self._prompts, strict=True)]
        self.prompt_chunks = np.concatenate(sizes)
        self.stops = np.array(["\n" in self.tokenizer.decode([one]) for one in range(self.tokenizer.vocabulary)])
        self.stops[self.tokenizer.eos] = True
        count = max(len(self), 1)
        self.facts = {
            "passages_stored": self.stored,
            "passages_a_question": manifest.counts["passages"] / count,
            "from": "the database" if manifest.counts["retrieved"] else "the file",
            "longer_prompts": float((self.prompt_chunks > 1).mean()),
        }

    def __reduce__(self):
        """Pickled as its path."""
        return StoredQuestions, (self._data, self.name)

    def __len__(self) -> int:
        return len(self._row)

    def prompts(self, numbers: Int[np.ndarray, "B"]) -> Int32[np.ndarray, "B P*M"]:
        """Prompts of questions with the same number of chunks."""
        size = self.prompt_chunks[numbers[:1]].sum()
        starts = [(self._prompts[self._part[one]], self._chunk[one]) for one in numbers]
        return np.stack([table[start : start + size].reshape(-1) for table, start in starts])

    def passages(self, numbers: Int[np.ndarray, "B"]) -> Int32[np.ndarray, "B K R"]:
        return np.stack([self._passages[self._part[one]][self._row[one]] for one in numbers])

    def records(self, start: int, stop: int) -> list[dict]:
        """The lines of questions [start, stop)."""
        found = []
        for part in np.unique(self._part[start:stop]):
            with open(self._paths[part], "rb") as file:
                mine = start + np.flatnonzero(self._part[start:stop] == part)
                file.seek(self._lines[mine[0]])
                found += [json.loads(file.readline()) for _ in mine]
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The rows of a file of int32."""
    if not path.stat().st_size:
        return np.empty((0, *shape), np.int32)
    return np.memmap(path, "<i4", mode="r").reshape(-1, *shape)
