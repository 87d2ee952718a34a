"""`retro join`: text as an evaluation set beside a finished database, and neighbors of a set from other shares and databases."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from absl import flags

from data_pipeline.pipeline import database_directory
from launch.command import engine
from launch.command.arguments import Invocation, Verb
from launch.command.run import run_verb
from retro_jax.config import SourceConfig

QUESTIONS = "questions"  # the protocol whose records are questions and not text


def _flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("set", None, "name of the set: letters, digits, _, - and .", flag_values=values)
    flags.DEFINE_string(
        "path", "", "its text: a file, folder or glob, also as a URL; in any format of a build", flag_values=values
    )
    flags.DEFINE_string(
        "protocol", "", "how its records are read and scored; empty: as whole documents", flag_values=values
    )
    flags.DEFINE_integer(
        "neighbors",
        0,
        "of each chunk, 0: as many as the build stored; of questions passages, 0: 20",
        flag_values=values,
    )
    flags.DEFINE_float("share", 1.0, "of the database's documents that is searched, nested", flag_values=values)
    flags.DEFINE_string("database", "", "data directory of another database of the same encoder", flag_values=values)
    flags.DEFINE_float(
        "without",
        0.0,
        "leave out training documents that hold this share of the 13-grams of a document of the set; 0: none",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "train", False, "of questions also joined shards, to fine-tune a trained model on", flag_values=values
    )
    engine.define_flags(values)


VERB = Verb(
    "join",
    "text that is only scored: tokenizes, embeds and searches it with what the build in WORKDIR made, into "
    "WORKDIR/data/evaluation/SET; the database does not change",
    "--workdir=runs/quickstart-smoke --set=readme --path=README.md --config.data.sources.readme.format=text",
    define_flags=_flags,
    reads_build=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run_verb(VERB, _join, argv)


def _join(invocation: Invocation) -> None:
    from data_pipeline.evaluation.join import (
        check_asked,
        describe_overlap,
        describe_set,
        join,
        join_held_out,
        join_neighbors,
    )
    from data_pipeline.evaluation.sets import open_set
    from data_pipeline.evaluation.tables import HELD_OUT
    from data_pipeline.stages.lock import BuildLock

    values, run = invocation.flags, invocation.run
    engine.check_flags(values)
    data = database_directory(invocation.data_directory, run.data.database_fraction)
    name, source = values.set, set_source(invocation, data)
    asks = source is not None and source.protocol == QUESTIONS
    _check_questions(values, asks)
    check_asked(data, values.neighbors, values.share, values.database, values.without)
    with BuildLock(data) as lock, engine.chosen_engine(values, lock):
        if asks:
            print(_join_questions(invocation, data, name, source))
            return
        if source is not None:
            print(describe_set(name, join(run, data, name, source)))
        else:
            print(describe_overlap(name, join_held_out(data)))
        if name == HELD_OUT or values.neighbors or values.share != 1 or values.database or values.without:
            without = open_set(data, name).overlapping_documents(values.without) if values.without else frozenset()
            found = join_neighbors(data, name, values.neighbors, values.share, values.database, without)
            left_out = f"; {len(without):,} documents are left out" if values.without else ""
            print(
                f"{name}: {found.stored} neighbors of each chunk from {found.facts['chunks']:,} chunks{left_out} "
                f"({found.directory})"
            )


def _check_questions(values: flags.FlagValues, asks: bool) -> None:
    """Raises ValueError for flags of questions with a set of text, and the other way round."""
    if values.train and not asks:
        raise ValueError(f"--train writes shards of questions; it needs --protocol={QUESTIONS}.")
    if asks and (values.share != 1 or values.database or values.without):
        raise ValueError(
            "--share, --database and --without are of sets of text. The passages of questions are those of their file, or "
            "the nearest chunks of the database."
        )
    if asks and values.neighbors < 0:
        raise ValueError(f"--neighbors={values.neighbors} counts passages; take 1 or more, or 0 for 20.")


def _join_questions(invocation: Invocation, data: Path, name: str, source: SourceConfig) -> str:
    from data_pipeline.evaluation.questions.join import describe_questions, join_questions

    passages, train = invocation.flags.neighbors, invocation.flags.train
    return describe_questions(name, join_questions(invocation.run, data, name, source, passages, train))


def set_source(invocation: Invocation, data: Path) -> SourceConfig | None:
    """The source of the set that the flags and the config name; None where they name none and the set is there.

    Raises:
      ValueError: no set is named, or one without its text that is not there, or a source that was trained on.
    """
    from data_pipeline.evaluation.sets import finished_source
    from data_pipeline.evaluation.tables import HELD_OUT
    from data_pipeline.stages.run import read_manifest

    values, name = invocation.flags, invocation.flags.set
    if not name:
        raise ValueError(f"--set is missing; it names the set. For example: retro join {VERB.example}")
    given = [key for key in invocation.given if key.startswith("data.sources.")]
    if other := [key for key in given if key.split(".")[2] != name]:
        raise ValueError(f"--config.{other[0]} is of another source than --set={name}; remove it.")
    source = invocation.run.data.sources.get(name)
    trained = read_manifest(data / "documents", "documents", verify=False).config["sources"]
    if name in trained:
        if given:
            raise ValueError(
                f"--config.{given[0]}: the source {name!r} was trained on, and is no evaluation set. Give the set a name of "
                f"its own."
            )
        source = None
    if name == HELD_OUT and (values.path or values.protocol or source):
        raise ValueError(f"--set={HELD_OUT} is the build's own held-out text, which has its path and protocol already.")
    if source is None and not values.path:
        source = None if name == HELD_OUT else finished_source(data, name)
        if source and values.protocol not in ("", source.protocol):
            raise ValueError(
                f"--protocol={values.protocol}, but the set {name!r} was joined with {source.protocol!r}. Join it under "
                f"another name."
            )
        return source
    source = source or SourceConfig()
    changes = {"path": values.path, "protocol": values.protocol, "role": "evaluation"}
    changes = {key: value for key, value in changes.items() if value and value != getattr(source, key)}
    return replace(source, **changes) if changes else source


if __name__ == "__main__":
    sys.exit(main())
