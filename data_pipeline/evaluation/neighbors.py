"""Neighbors of an evaluation set from one database: the stages that hold them, and their reader.

    DATA/evaluation/NAME/neighbors/                            with the build's k, from all of its database
    DATA/evaluation/NAME/neighbors-k20-share0.1-of-VERSION/    others, by number, share of the documents and database version

A stage with more neighbors serves for fewer. A changed database has another version, and neighbors from an earlier
version are not used for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, Int32, Int64

from data_pipeline.database.copies import STAGE as COPIES
from data_pipeline.database.copies import Copies, build_copies
from data_pipeline.database.database import Database
from data_pipeline.database.searched import View, open_database, rows_in_view, searched
from data_pipeline.documents.stage import read_documents_manifest
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.evaluation.draws import Pool
from data_pipeline.evaluation.tables import FOLDER, HELD_OUT, Tables
from data_pipeline.search.chunk_search import STAGE, search_chunks
from data_pipeline.search.neighbors import NeighborTable, require_chunks
from data_pipeline.stages.run import Manifest, StageError, fingerprint, read_facts, read_manifest, read_plan
from retro_jax.core.dimensions import PADDING
from retro_jax.data.manifests import database_of, has_other_database


@dataclass(frozen=True)
class Found:
    """A finished neighbors stage, and what it holds."""

    directory: Path
    stored: int
    first: int  # the row of the set's first chunk in it


def stage_facts(database: Database, view: View, k: int) -> dict:
    """The config of a neighbors stage of a set."""
    without = {"without": fingerprint(sorted(view.without))[:16]} if view.without else {}
    facts = {"neighbors_stored": k, "rerank": database.rerank, "share": view.share, "database": database.version}
    return facts | without


def default_k(data: Path) -> int:
    """How many neighbors the build stored."""
    return read_manifest(Path(data) / STAGE, STAGE, verify=False).config["neighbors_stored"]


def neighbor_stages(directory: Path) -> list[Path]:
    """The finished neighbors stages of a set, without those that `verify --repair` moved aside."""
    found = sorted(path.parent for path in directory.glob(f"{STAGE}*/manifest.json"))
    return [path for path in found if ".damaged-" not in path.name]


def find_neighbors_stage(tables: Tables, database: Database, view: View, k: int) -> Found | None:
    """The finished stage with the fewest neighbors, but k or more; for k = 0 the one with the most."""
    wanted, copies = stage_facts(database, view, k), _copies_place(tables, database)
    found = []
    if tables.name == HELD_OUT and view == View() and _is_of_build(database, tables.data):
        found.append(Found(tables.data / STAGE, default_k(tables.data), tables.first))
    for path in neighbor_stages(tables.directory):
        facts = read_facts(path)
        same = {**facts.config, "neighbors_stored": k} == wanted
        if same and facts.inputs["chunks"] == tables.chunks.fingerprint and _compared(facts, tables, copies):
            found.append(Found(path, facts.config["neighbors_stored"], 0))
    found = sorted((one for one in found if one.stored >= k), key=lambda one: one.stored)
    return (found[0] if k else found[-1]) if found else None


def _is_of_build(database: Database, data: Path) -> bool:
    """Whether a database is the one that the build's own neighbors are from, unchanged since."""
    manifest = read_manifest(data / STAGE, STAGE, verify=False)
    return database.version == manifest.config.get("database", manifest.fingerprint[:16])


def _copies_place(tables: Tables, database: Database) -> Path | None:
    """The stage of the build's held-out documents in the other database that it searches: that of the build, or one for a
    database that has gained documents since. None where the set has no documents there."""
    if tables.name != HELD_OUT or not has_other_database(tables.data):
        return None
    if database.data.resolve() != database_of(tables.data):
        return None
    compared = set(read_manifest(tables.data / COPIES, COPIES, verify=False).inputs.values())
    now = {read_documents_manifest(directory / "documents").fingerprint for directory in database.directories}
    return tables.data / (COPIES if now <= compared else f"{FOLDER}/.{COPIES}-of-{database.version}")


def _copies(tables: Tables, database: Database) -> Copies | None:
    """The stage, made if it is missing."""
    place = _copies_place(tables, database)
    if place is not None and not (place / "manifest.json").exists():
        build_copies(place, tables.data / "documents", database.data)
    return None if place is None else Copies(place)


def _compared(facts: Manifest, tables: Tables, copies: Path | None) -> bool:
    """Whether neighbors were searched with these copies left out; stages of earlier versions took those of the build."""
    if copies is None:
        return True
    if not (copies / "manifest.json").exists():
        return False
    build = read_manifest(tables.data / COPIES, COPIES, verify=False).fingerprint
    return facts.inputs.get(COPIES, build) == read_manifest(copies, COPIES, verify=False).fingerprint


def make_neighbors(tables: Tables, database: Database, view: View, k: int) -> Found:
    """Searches the neighbors of a set, unless a finished stage has them.

    Args:
      k: neighbors of each chunk; 0: as many as the build stored.

    Raises:
      StageError: vectors that do not belong to the set's chunks, or a share without documents.
    """
    k = k or default_k(tables.data)
    if (found := find_neighbors_stage(tables, database, view, k)) is not None:
        return found
    evaluation, copies = tables.data / FOLDER, _copies(tables, database)
    compared, inputs, recall = searched(database, view, evaluation, copies)
    vectors = EmbeddingTable(tables.embeddings)
    require_chunks(tables.chunks, vectors, tables.base / "chunks", tables.embeddings)
    inputs = {"chunks": tables.chunks.fingerprint, "embeddings": vectors.fingerprint, **inputs}
    inputs |= {COPIES: copies.fingerprint} if copies else {}
    facts = stage_facts(database, view, k)
    directory = _place(tables, facts, own=database.data == tables.data)
    counts = {"recall": recall, "database_chunks": count_searched(database, view)["chunks"]}
    search_chunks(directory, facts, inputs, tables.chunks, vectors, compared, counts, start=tables.first)
    return Found(directory, k, 0)


def count_searched(database: Database, view: View) -> dict[str, int]:
    """{"chunks", "documents"} that a search of a view may return."""
    ids, gone = rows_in_view(database, view)
    kept = ids[~gone]
    return {"chunks": len(kept), "documents": len(np.unique(database.document_ids[kept]))}


def _place(tables: Tables, facts: Mapping, own: bool) -> Path:
    """`neighbors` for the build's own k and all of its database, if it is free; otherwise a name with these values."""
    plain = tables.directory / STAGE
    usual = facts["neighbors_stored"] == default_k(tables.data) and facts["share"] == 1 and "without" not in facts
    if tables.name != HELD_OUT and usual and own and (not plain.exists() or _holds(plain, facts)):
        return plain
    name = f"{STAGE}-k{facts['neighbors_stored']}-share{facts['share']:g}-of-{facts['database']}"
    return tables.directory / (f"{name}-without-{facts['without']}" if "without" in facts else name)


def _holds(directory: Path, facts: Mapping) -> bool:
    plan = read_plan(directory)
    return plan is not None and plan["config"] == facts


def open_neighbors(tables: Tables, k: int, share: float, database: str, without: frozenset[int]) -> "SetNeighbors":
    """The neighbors of a set.

    Raises:
      StageError: none are stored; the message has the command that searches them.
    """
    if k < 0:
        raise ValueError(f"k counts neighbors and cannot be {k}; take 1 or more, or 0 for as many as are stored.")
    view, opened = View(share, without), open_database(tables.data, database)
    if (found := find_neighbors_stage(tables, opened, view, k)) is None:
        raise StageError(_missing(tables, opened, view, k, database))
    return SetNeighbors(tables, opened, view, found, k)


def _missing(tables: Tables, database: Database, view: View, k: int, other: str) -> str:
    workdir = tables.data.parent if tables.data.name == "data" else "RUN"
    flags = [f"--workdir={workdir}", f"--set={tables.name}"]
    flags += [f"--neighbors={k}"] * bool(k) + [f"--share={view.share:g}"] * (view.share < 1)
    flags += [f"--database={other}"] * bool(other) + ["--without=THRESHOLD"] * bool(view.without)
    number = f"{k} neighbors" if k else "neighbors"
    without = f" without {len(view.without):,} documents" if view.without else ""
    return (
        f"The set {tables.name!r} has no {number} stored from a share of {view.share:g} of the {database.describe()}{without}. "
        f"Search them: retro join {' '.join(flags)}"
    )


class SetNeighbors:
    """Neighbors of the chunks of one set from one database, mapped into memory (`retro_jax.evaluate.sets.Neighbors`).

    Attributes:
      fingerprint: changes iff the neighbors do.
      stored: K, how many each chunk has at most.
      directory: of the stage.
      facts: plain JSON for a report.
      table: the database; `table.tokens` are those of its chunks by id.
    """

    def __init__(self, tables: Tables, database: Database, view: View, found: Found, k: int):
        self._tables, self.table, self._found = NeighborTable(found.directory), database, found
        self.stored, self.directory = k or found.stored, found.directory
        self.fingerprint = fingerprint([self._tables.fingerprint, self.stored, database.version])
        self._documents, self._first = tables.chunks.document_ids, tables.first
        self._view, self._pool, self._copies = view, None, _copies(tables, database)
        manifest = read_manifest(found.directory, STAGE, verify=False)
        counted = manifest.counts
        if "recall" not in counted:  # the build's own; its index counts what is searched
            counted = counted | read_manifest(database.data / "index", "index", verify=False).counts
        changes, size = database.facts(), {"chunks": counted["database_chunks"]}
        if view != View() or changes["additions"] or changes["removed_documents"]:
            size = count_searched(database, view)
        self.facts = {
            **changes,
            **size,
            "database": str(database.data) if database.data != tables.data else "",
            "share": view.share,
            "neighbors": self.stored,
            "rerank": database.rerank,
            "recall": counted["recall"],
            "left_out_documents": len(view.without),
        }

    def find(
        self, rows: Int64[np.ndarray, "*shape"]
    ) -> tuple[Int64[np.ndarray, "*shape K"], Float32[np.ndarray, "*shape K"]]:
        """Ids and squared distances of the neighbors of chunks of the set; -1 and +inf for a missing one and for row -1."""
        rows = np.asarray(rows)
        there = rows != PADDING
        at = np.where(there, rows, 0) + self._found.first
        ids, distances = self._tables.ids[at][..., : self.stored], self._tables.distances[at][..., : self.stored]
        return np.where(there[..., None], ids, PADDING), np.where(there[..., None], distances, np.float32(np.inf))

    def value(self, ids: Int64[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape R"]:
        """[N, F] of database chunks; a row of -1 for id -1."""
        return self.table.value(ids)

    def document(self, chunk: int):
        """The document of a database chunk."""
        return self.table.document(chunk)

    def pieces(self, chunk: int) -> list[bytes]:
        """The bytes of each token of a database chunk."""
        return self.table.pieces(chunk)

    def draw(
        self, rows: Int64[np.ndarray, "*shape"], counts: Int[np.ndarray, "*shape"], width: int, seed: int = 0
    ) -> Int64[np.ndarray, "*shape K"]:
        """`counts` distinct random chunks of the searched documents for each row, then -1 (fewer in a tiny database).

        A function of seed and row alone. Removed documents and the row's own document are never drawn.
        """
        if self._pool is None:
            self._pool = Pool(self.table, self._view)
        drawn = np.full((*np.shape(rows), width), PADDING, np.int64)
        for place in np.argwhere((np.asarray(rows) != PADDING) & (np.asarray(counts) > 0)):
            place = tuple(place)
            row = int(rows[place]) + self._first
            documents = self._documents[np.array([row])]
            own = documents if self._copies is None else self._copies.own(documents)[0]
            candidates = self._pool.draw(np.random.default_rng([seed, row]), own, int(counts[place]))
            drawn[place][: len(candidates)] = candidates
        return drawn
