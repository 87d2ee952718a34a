"""Joins a set of questions to a finished database, for `retro join --protocol=questions`.

DATA/evaluation/NAME/questions          the stage (stage.py)
DATA/evaluation/NAME/joined, tokenizer  to fine-tune on, if wanted (shards.py)
DATA/evaluation/NAME/set.json           the source, written last
"""

from collections.abc import Mapping
from pathlib import Path

from data_pipeline.evaluation.questions.shards import build_question_shards
from data_pipeline.evaluation.questions.stage import STAGE, Searching, build_questions
from data_pipeline.evaluation.questions.stored import StoredQuestions
from data_pipeline.evaluation.sets import FINISHED
from data_pipeline.evaluation.tables import HELD_OUT, check_name, set_directory
from data_pipeline.stages.run import StageError, read_manifest, write_json
from data_pipeline.tokens import Tokenizer
from retro_jax.config import RunConfig, SourceConfig, to_dict
from retro_jax.evaluate.questions.layout import PASSAGES


def join_questions(
    run: RunConfig, data: Path, name: str, source: SourceConfig, passages: int = 0, train: bool = False
) -> Mapping:
    """Makes the missing stages of a set of questions.

    Args:
      data: the data directory of the build.
      passages: stored of each question at most; 0: 20.
      train: also write shards to fine-tune on, of config.model.sequence_length.

    Returns:
      Counts: "questions", "passages", "answerable", "retrieved"; "sequences" by split and "too_long" where trained on.

    Raises:
      StageError: an invalid name or one that is taken by a set of text; or see the stages.
    """
    data, directory = Path(data), set_directory(data, name)
    check_name(name)
    if name == HELD_OUT or (directory / "documents").exists():
        raise StageError(f"--set={name!r} is a set of text. Give the questions another name.")
    length = read_manifest(data / "chunks", "chunks", verify=False).config["chunk_length"]
    made = build_questions(
        directory / STAGE,
        name,
        source,
        Tokenizer(data / "tokenizer"),
        chunk_length=length,
        passages=passages or PASSAGES,
        searching=Searching(data, run.data),
    )
    counts = {key: made.counts[key] for key in ("questions", "passages", "answerable", "retrieved")}
    if train:
        shards = build_question_shards(
            directory,
            StoredQuestions(data, name),
            sequence_length=run.model.sequence_length,
            shard_sequences=run.data.shard_sequences,
            validation_fraction=run.data.validation_fraction,
        )
        counts |= {"sequences": shards.counts["sequences"], **shards.counts["dropped"]}
    write_json(directory / FINISHED, {"name": name, "source": to_dict(source)}, seal=True)
    return counts


def describe_questions(name: str, counts: Mapping) -> str:
    """The content of a joined set of questions, in a line; and a line for its training shards."""
    count = counts["questions"]
    text = (
        f"{name}: {count:,} questions, {counts['passages'] / count:.1f} passages each from "
        f"{'the database' if counts['retrieved'] else 'the file'}; they contain an answer for "
        f"{100 * counts['answerable'] / count:.1f}%"
    )
    if "sequences" not in counts:
        return text
    splits = ", ".join(f"{number:,} {split}" for split, number in counts["sequences"].items())
    return (
        f"{text}\n{name}: joined shards of {splits} sequences; {counts['too_long']:,} questions are too long for them"
    )
