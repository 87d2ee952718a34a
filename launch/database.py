"""`retro database info | verify | add | remove`: describes, checks and changes a finished database."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from absl import flags

from launch.command.arguments import NOTHING_KEPT, Invocation, Verb
from launch.command.run import MISTAKE, OK, run_verb
from retro_jax.core.paths import local_path
from retro_jax.core.streams import OutputLost, deliver, protect

WORKDIR = "--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke"


def _verify_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean("repair", False, "redo the damaged shards, and nothing else", flag_values=values)
    flags.DEFINE_boolean(
        "all",
        False,
        "check every chunk (embedding, exact search, joined shards), not a sample; takes as long as the build",
        flag_values=values,
    )


def _remove_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("documents", "", "ids of documents: ID,ID,... or @FILE with one a line", flag_values=values)
    flags.DEFINE_list("source", [], "names of subsets to remove entirely", flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; the first argument is the action."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in ACTIONS:
        return run_verb(*ACTIONS[argv[0]], argv[1:])
    protect()
    if not argv or argv[0] not in ("-h", "--help"):
        print(usage(), file=sys.stderr)
        return MISTAKE
    try:
        deliver(usage())
    except OutputLost as lost:
        return lost.tell("retro database")
    return OK


def usage() -> str:
    lines = ["retro database: " + ", ".join(ACTIONS), "", "Examples:"]
    return "\n".join([*lines, *(f"  retro {verb.name} {verb.example}" for verb, _ in ACTIONS.values())])


def directory_of(invocation: Invocation) -> Path:
    """The data directory; a share of the database has its own."""
    from data_pipeline.pipeline import database_directory

    return database_directory(invocation.data_directory, invocation.run.data.database_fraction)


def _info(invocation: Invocation) -> None:
    deliver(info(directory_of(invocation)))


def info(data: Path) -> str:
    """Counts, bytes, seconds and fingerprints by stage; recall; changes since the build."""
    from data_pipeline.database.check_files import stages_of
    from data_pipeline.database.searched import open_database
    from data_pipeline.evaluation.checks import describe_sets
    from data_pipeline.pipeline import describe
    from data_pipeline.stages.run import read_manifest, read_seconds
    from retro_jax.data.manifests import database_of

    lines = [f"{'stage':<11}{'MB':>9}{'seconds':>10}  {'fingerprint':<18}holds"]
    for stage in stages_of(data):
        manifest = read_manifest(data / stage, stage, verify=False)
        spent = read_seconds(data / stage)
        spent = float("nan") if spent is None else spent
        size = sum(file.bytes for file in manifest.files) / 1e6
        text = describe(stage, manifest.counts, manifest.config)
        lines.append(f"{stage:<11}{size:>9.1f}{spent:>10.1f}  {manifest.fingerprint[:16]}  {text}")
    place = database_of(data)
    settings = read_manifest(place / "index", "index", verify=False)
    lines += ["", f"index: {json.dumps(dict(settings.config))}, {settings.counts.get('why', '')}"]
    database = open_database(data)
    where = f" of {place}{_read_as(database)}" if place != data else ""
    return "\n".join([*lines, database.describe() + where, *describe_sets(data)])


def _read_as(database) -> str:
    return "" if database.text.tokens is database.tokens else ", whose text is tokenized again"


def _verify(invocation: Invocation) -> None:
    from data_pipeline.database.check_content import check_content
    from data_pipeline.database.check_files import check_files
    from data_pipeline.encoder.bert import encoder_directory
    from data_pipeline.encoder.stage import open_encoder
    from data_pipeline.evaluation.checks import check_set_content, check_set_files, repair_sets
    from data_pipeline.stages.lock import BuildLock
    from data_pipeline.stages.run import StageError

    data, repair = directory_of(invocation), invocation.flags.repair

    def look():
        if damages := [*check_files(data), *check_set_files(data)]:
            return damages, {}
        config = invocation.run.data
        encoder = open_encoder(data / "embeddings", encoder_directory(config), config.encoder_dtype)
        damages, facts = check_content(data, encoder, everything=invocation.flags.all)
        of_sets, more = check_set_content(data, encoder, everything=invocation.flags.all)
        return damages + of_sets, facts | more

    if repair:
        with BuildLock(data):
            repair_files(invocation, data)
            redo_additions(invocation, data)
            repair_sets(data, invocation.run, take_out)
    damages, facts = look()
    if damages and repair:  # under right checksums
        with BuildLock(data):
            repair_files(invocation, data, damages)
            redo_additions(invocation, data, damages)
            repair_sets(data, invocation.run, take_out, [d for d in damages if d.stage.startswith("evaluation/")])
        damages, facts = look()
    if damages:
        lines = "\n  ".join(str(damage) for damage in damages)
        raise StageError(
            f"{data} is damaged:\n  {lines}\nLater stages were not checked; repair this one first, then verify again. "
            "`retro database verify --repair` with the same flags redoes this alone."
        )
    deliver(f"{data} is intact: {json.dumps(facts)}")


def repair_files(invocation: Invocation, data: Path, known: Sequence = ()) -> None:
    """Repairs the stages in order, so that each is checked against intact ones.

    Args:
      known: damages to redo besides those of the files.
    """
    from data_pipeline.database.check_files import check_stage, inputs_of_database, stages_of
    from data_pipeline.database.other_build import require_repairable
    from data_pipeline.encoder.dtype import choose_dtype
    from data_pipeline.pipeline import stages

    fingerprints = inputs_of_database(data)
    run, config = invocation.run, invocation.run.data
    # Before the stage is moved aside, and its record with it.
    run = replace(run, data=replace(config, encoder_dtype=choose_dtype(config.encoder_dtype, data / "embeddings")))
    for stage in stages_of(data):
        damages, made = check_stage(data, stage, fingerprints)
        damages += [damage for damage in known if damage.stage == stage]
        if damages:
            if stage == "neighbors":
                require_repairable(data)
            take_out(data, stage, damages)
            directory, make = stages(run, data)[stage]
            make(directory)
            made = check_stage(data, stage, fingerprints)[1]
        if made:
            fingerprints[stage] = made


def take_out(data: Path, stage: str, damages: Sequence) -> None:
    """Runs `set_up_repair` and logs what it does."""
    from data_pipeline.database.check_files import set_up_repair

    for line in dict.fromkeys(map(str, damages)):
        print(f"repair: {line}", file=sys.stderr, flush=True)
    if moved := set_up_repair(data, stage, damages):
        print(f"repair: the old files are kept in {moved}", file=sys.stderr, flush=True)


def redo_additions(invocation: Invocation, data: Path, known: Sequence = ()) -> None:
    """Repairs the additions; with `known`, as in `repair_files`, also the stages made from them."""
    from data_pipeline.database.changed import addition_directories
    from data_pipeline.database.changes import make_addition
    from data_pipeline.database.check_files import ALL, Damage, check_files
    from data_pipeline.encoder.bert import encoder_directory
    from data_pipeline.stages.known import made_with_additions

    files, names = check_files(data), made_with_additions()
    for directory in addition_directories(data):
        folder = f"{directory.relative_to(data)}/"
        damages = [damage for damage in (*files, *known) if damage.stage.startswith(folder)]
        if wrong := [names.index(damage.stage.removeprefix(folder)) for damage in damages if damage in known]:
            later = names[min(wrong) + 1 :]
            damages += [Damage(f"{folder}{stage}", ALL, "it was made from wrong content") for stage in later]
        for stage in dict.fromkeys(damage.stage for damage in damages):
            take_out(data, stage, [damage for damage in damages if damage.stage == stage])
        if damages:
            make_addition(data, directory, encoder_directory(invocation.run.data))


def _remove(invocation: Invocation) -> None:
    from data_pipeline.database.changes import remove
    from data_pipeline.database.database import Database
    from data_pipeline.stages.lock import BuildLock

    values, data = invocation.flags, directory_of(invocation)
    with BuildLock(data):
        counts = remove(data, read_ids(values.documents), values.source)
    print(
        f"{counts['documents']:,} documents ({counts['chunks']:,} chunks) are removed in all; evaluate and sample no "
        f"longer use them. {Database(data).describe()}"
    )


def read_ids(text: str) -> list[int]:
    """Document ids of `ID,ID` or `@FILE`.

    Raises:
      ValueError: an entry that is not a number.
    """
    words = [word for word in text.split(",") if word.strip()]
    if text.startswith("@"):
        try:
            words = local_path(text[1:], "--documents=@FILE, FILE").read_text(encoding="utf-8").split()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"--documents={text} is not UTF-8 text (byte {error.start}); it is one id a line."
            ) from None
        except OSError as error:
            raise ValueError(
                f"--documents={text} cannot be read: {error.strerror}. It is a file of ids, one a line."
            ) from None
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise ValueError(f"Documents are named by their ids, whole numbers, but {error}. See data/documents.") from None


def _add(invocation: Invocation) -> None:
    from data_pipeline.database.changes import add, new_sources
    from data_pipeline.database.database import Database
    from data_pipeline.encoder.bert import encoder_directory
    from data_pipeline.stages.lock import BuildLock

    run, data = invocation.run, directory_of(invocation)
    with BuildLock(data):
        require_training(invocation.given, run.data.sources)
        new = new_sources(data, run.data.sources)
        require_new(invocation.given, new)
        counts = add(data, run, new, encoder_directory(run.data))
    print(
        f"added {counts['documents']:,} documents ({counts['chunks']:,} chunks), {counts['copies']:,} of them copies of "
        f"existing text and left out; evaluate and sample now use them. {Database(data).describe()}"
    )


def require_training(given: Iterable[str], sources: Mapping) -> None:
    """Raises ValueError where the command line names an evaluation set, which never enters a database."""
    for key in given:
        name = key.split(".")[2] if key.startswith("data.sources.") else None
        if name in sources and sources[name].role == "evaluation":
            raise ValueError(
                f"--config.{key}: the source '{name}' is an evaluation set and never enters the database. Join it: retro join "
                f"--set={name} --path=...; or leave its role out."
            )


def require_new(given: Iterable[str], new: Mapping) -> None:
    """Raises ValueError where the command line changes a source of the database, which would not be read again."""
    for key in given:
        name = key.split(".")[2] if key.startswith("data.sources.") else None
        if name is not None and name not in new:
            raise ValueError(
                f"--config.{key}: the source '{name}' is in the database already and is not read again. Give the new text "
                f"a name of its own: --config.data.sources.NAME.path=..."
            )


ACTIONS = {
    "info": (
        Verb(
            "database info",
            "what a finished database holds, and the evaluation sets beside it",
            WORKDIR,
            writes=False,
            reads_build=True,
            interrupted=NOTHING_KEPT,
        ),
        _info,
    ),
    "verify": (
        Verb(
            "database verify",
            "recomputes checksums, samples embeddings and neighbors (--all: every one), checks the rules of neighbors and "
            "continuations; says what is damaged and which shards to redo",
            WORKDIR,
            _verify_flags,
            writes=False,  # except for --repair, which then gets the system's own error
            reads_build=True,
            interrupted="Repaired shards stay; the same command checks from the start.",
        ),
        _verify,
    ),
    "add": (
        Verb(
            "database add",
            "new text becomes documents, chunks, embeddings and an index beside the old ones; a source is new if the build "
            "did not have it",
            f"{WORKDIR} --config.data.sources.mine.path=README.md --config.data.sources.mine.license=Apache-2.0",
            reads_build=True,
        ),
        _add,
    ),
    "remove": (
        Verb(
            "database remove",
            "removes documents or sources from all searches",
            f"{WORKDIR} --source=legal",
            _remove_flags,
            reads_build=True,
            interrupted="A removal is written at once or not at all; the same command makes sure of it.",
        ),
        _remove,
    ),
}


if __name__ == "__main__":
    sys.exit(main())
