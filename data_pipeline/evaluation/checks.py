"""Describes, checks and repairs the evaluation sets beside a database, for `retro database info` and `verify`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_pipeline.database.check_content import check_table
from data_pipeline.database.check_files import ALL, Damage, check_stage
from data_pipeline.database.searched import INDEXES, open_database
from data_pipeline.encoder.bert import FrozenEncoder
from data_pipeline.evaluation.contamination import STAGE as CONTAMINATION
from data_pipeline.evaluation.contamination import overlap_counts
from data_pipeline.evaluation.join import join, join_held_out, join_neighbors
from data_pipeline.evaluation.neighbors import neighbor_stages
from data_pipeline.evaluation.sets import FINISHED, finished_source, list_sets
from data_pipeline.evaluation.tables import FOLDER, HELD_OUT, open_tables, set_directory, set_names
from data_pipeline.search.neighbors import STAGE as NEIGHBORS
from data_pipeline.stages.run import StageError, read_facts, read_plan
from data_pipeline.tokens import Tokenizer
from retro_jax.config import RunConfig

IN_ORDER = ("documents", "chunks", "embeddings")


def describe_sets(data: Path) -> list[str]:
    """A line for each set: documents, bytes, protocol and contamination; and a line for each of its stages of neighbors."""
    lines, finished = [], list_sets(data)
    names = [*set_names(data), *([HELD_OUT] if set_directory(data, HELD_OUT).exists() else [])]
    version = open_database(data).version if names else ""
    for name in names:
        if name != HELD_OUT and name not in finished:
            lines.append(f"evaluation set {name}: not finished; run its `retro join` again")
            continue
        tables = open_tables(data, name)
        sizes = tables.documents.bytes[tables.first_document :]
        try:
            counts = overlap_counts(tables)
            overlap = f"{counts['contaminated']:,} contaminated, {counts['copies']:,} identical training documents"
        except StageError:
            overlap = "not compared with all training documents"
        chunks = len(tables.chunks) - tables.first
        lines.append(
            f"evaluation set {name}: {len(sizes):,} documents, {sizes.sum() / 1e6:,.2f} MB, {chunks:,} chunks, protocol "
            f"{tables.protocol}; {overlap}"
        )
        lines += [f"  {line}" for line in _neighbors(tables.directory, version)]
    return lines


def _neighbors(directory: Path, version: str) -> Iterator[str]:
    for path in neighbor_stages(directory):
        facts = read_facts(path).config
        now = "this database" if facts["database"] == version else f"database version {facts['database']}"
        without = ", some documents left out" if "without" in facts else ""
        yield f"{path.name}: {facts['neighbors_stored']} from a share of {facts['share']:g} of {now}{without}"


def _stages(data: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, stages in order) of every set and of the indexes of shares, relative to DATA."""
    for name in [*set_names(data), HELD_OUT]:
        directory = set_directory(data, name)
        own = [] if name == HELD_OUT else list(IN_ORDER)
        found = [path.name for kind in (NEIGHBORS, CONTAMINATION) for path in sorted(directory.glob(f"{kind}*"))]
        if own or found:
            yield f"{FOLDER}/{name}", [*own, *(name for name in found if ".damaged-" not in name)]
    indexes = sorted(path.name for path in (data / FOLDER / INDEXES).glob("share-*") if ".damaged-" not in path.name)
    if indexes:
        yield f"{FOLDER}/{INDEXES}", indexes


def check_set_files(data: Path) -> list[Damage]:
    """`check_stage` of every stage of every set; stages are named by their folders."""
    damages = []
    for folder, stages in _stages(Path(data)):
        fingerprints: dict[str, str] = {}
        for stage in stages:
            found, made = check_stage(
                data, f"{folder}/{stage}", fingerprints if folder != f"{FOLDER}/{HELD_OUT}" else {}
            )
            damages += found
            if made and stage in IN_ORDER:
                fingerprints[stage] = made
    return damages


def check_set_content(data: Path, encoder: FrozenEncoder, *, everything: bool = False) -> tuple[list[Damage], dict]:
    """Checks the chunks of each set against its documents, and embeds a sample again; see `check_content`."""
    data, damages, facts = Path(data), [], {"chunks": 0, "embedded_again": 0}
    reader = Tokenizer(data / "tokenizer")
    for name in list_sets(data):
        directory = set_directory(data, name)
        damages += check_table(directory, f"{FOLDER}/{name}", reader, encoder, facts, everything)
    return damages, {"sets": len(list_sets(data)), "set_chunks": facts["chunks"]} if facts["chunks"] else {}


def repair_sets(data: Path, run: RunConfig, take_out: Callable, known: Sequence[Damage] = ()) -> None:
    """Makes the damaged parts of the sets again, from the text that they were joined from.

    Neighbors from an earlier version of the database or from another one, and indexes of shares, are moved aside:
    `retro join` makes them again when they are needed.

    Args:
      take_out: (data, stage, its damages): removes them from the stage's bookkeeping.
      known: damages to repair besides those of the files. Stages that were made from them are made again as well.
    """
    data, damages = Path(data), [*check_set_files(data), *known]
    version = open_database(data).version if damages else ""
    for folder, stages in list(_stages(data)) if damages else ():
        mine = [damage for damage in damages if damage.stage.startswith(f"{folder}/")]
        wrong = [stages.index(damage.stage.rpartition("/")[2]) for damage in mine if damage in known]
        again = stages[min(wrong) + 1 :] if wrong else []
        mine += [Damage(f"{folder}/{stage}", ALL, "it was made from wrong content") for stage in again]
        wanted = [*_wanted(data / folder, stages, version)]
        for stage in dict.fromkeys(damage.stage for damage in mine):
            found = [damage for damage in mine if damage.stage == stage]
            if not _is_redone(data / stage, version):
                found.append(Damage(stage, ALL, "it is made again when it is needed"))
            take_out(data, stage, found)
        if mine and not folder.endswith(INDEXES):
            _remake(data, run, folder.rpartition("/")[2], wanted)


def _is_redone(directory: Path, version: str) -> bool:
    if directory.name.startswith("share-"):
        return False
    if not directory.name.startswith(NEIGHBORS):
        return True
    plan = read_plan(directory)
    return plan is not None and plan["config"]["database"] == version and "without" not in plan["config"]


def _wanted(directory: Path, stages: Sequence[str], version: str) -> Iterator[tuple[int, float]]:
    """(k, share) of the neighbors stages that are redone."""
    for stage in stages:
        if stage.startswith(NEIGHBORS) and _is_redone(directory / stage, version):
            facts = read_plan(directory / stage)["config"]
            yield facts["neighbors_stored"], facts["share"]


def _remake(data: Path, run: RunConfig, name: str, wanted: Sequence[tuple[int, float]]) -> None:
    if name == HELD_OUT:
        join_held_out(data)
    elif (set_directory(data, name) / FINISHED).exists():
        join(run, data, name, finished_source(data, name))
    for k, share in wanted:
        join_neighbors(data, name, k, share)
