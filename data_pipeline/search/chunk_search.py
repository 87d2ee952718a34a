"""Searches the neighbors of many chunks in the index shards that they visit, as work that can be killed and spread.

Intermediate files are in STAGE/.answers/ and deleted at the end:

    neighbors-00000-route-00000.rows.npy, .ends.npy     which chunks of a group visit which shard of an index (`Asked.visitors`)
    neighbors-00000-of-index-00000-00000.ids.npy, ...   the answers of one index shard to these chunks, in their order
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Int64

from data_pipeline.chunks import ChunkTable
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.bm25 import Lexical
from data_pipeline.search.exact import Searcher, search_kept
from data_pipeline.search.routes import Route, merge_at
from data_pipeline.stages.engine import Resource, Shard
from data_pipeline.stages.run import Manifest, fingerprint, make_missing, run_stage
from retro_jax.core.dimensions import PADDING
from retro_jax.core.files import load_array
from retro_jax.core.progress import progress

STAGE = "neighbors"
QUERIES_AT_ONCE = 2048
ROWS_ROUTED = 1 << 14  # at once
COLUMNS = ("ids", "distances")
RERANKED = 10  # candidates a neighbor that BM25 chooses from
ANSWERS_REMEDY = "Run the same `retro build` again: it repeats the search for missing or damaged shards."
ANSWERS_AT_ONCE = 50_000  # files of answers that exist at once, about 2 MB each


@dataclass(frozen=True)
class Part:
    """One index shard of the searched database: what opens its searcher, and about how much memory that takes."""

    open: Callable[[], Searcher]
    bytes: int = 0


@dataclass(frozen=True)
class Index:
    """The shards of one index. A query visits those that `route` finds; None: all."""

    parts: Sequence[Part]
    route: Route | None = None

    @property
    def together(self) -> int:
        """Shards of chunks that are searched together, so that a part gets about one shard's queries of them."""
        return 1 if self.route is None else max(1, round(len(self.parts) / self.route.visits))


class Copies(Protocol):
    """Documents that the searched database holds under other ids than the queries' tables do."""

    def own(self, documents: Int64[np.ndarray, "N"]) -> Int64[np.ndarray, "N W"]:
        """The ids that each document may have in the database; -1 is none."""
        ...


@dataclass(frozen=True)
class Searched:
    """What queries are compared with. Its chunk ids are rows of `tokens` and `document_ids`, and all parts answer with them."""

    indexes: Sequence[Index]
    tokens: Any  # Int["N M"], indexable by rows
    document_ids: Any  # Int64["N"], indexable by rows
    words: Lexical | None = None  # re-ranks what is found
    only: int | None = None  # the document that every key is of, where there is one alone: its chunks have no neighbors
    copies: Copies | None = None  # of the queries' documents under other ids; None: a document has its own id alone


def search_chunks(
    directory: Path,
    facts: Mapping,
    inputs: Mapping[str, str],
    table: ChunkTable,
    vectors: EmbeddingTable,
    searched: Searched,
    counts: Mapping,
    start: int = 0,
) -> Manifest:
    """Writes the neighbors of every chunk of `table` from row `start` on.

    First the index shards that each chunk visits are found. Then each index shard, held in memory, is searched for the
    chunks that visit it, some shards of chunks at a time. Then the results for a shard of chunks are merged. The k nearest
    of all are among the k nearest of each part, so parts do not change the result.

    Args:
      facts: the config of the stage; "neighbors_stored" is k.
      vectors: of the chunks, row for row.
      counts: facts known beforehand that belong into the manifest.
    """
    directory, k = Path(directory), facts["neighbors_stored"]
    work = directory / ".answers" / fingerprint([facts, inputs])[:16]
    ranges, words = _ranges(table, start), searched.words
    asked = Asked(work, table, vectors, searched, k if words is None else RERANKED * k, ranges)
    shards = []
    for number in range(len(ranges)):
        stem = _stem(number)
        make = partial(_merge, number, asked, k)
        shards.append(Shard(stem, [f"{stem}.{column}.npy" for column in COLUMNS], make))
    places = {shard.name: number for number, shard in enumerate(shards)}

    def prepare(missing: Sequence[Shard]) -> None:
        numbers = [places[shard.name] for shard in missing]
        shutil.rmtree(work, ignore_errors=True) if _stale(asked, numbers) else None
        if routes := _routes(asked, numbers):
            make_missing(work, "route", routes)
        make_missing(work, "search", _answers(asked, numbers))

    together = max(index.together for index in searched.indexes)
    at_once = ANSWERS_AT_ONCE // sum(-(-len(index.parts) // index.together) for index in searched.indexes)
    at_once = together * max(1, at_once // together)  # whole groups
    manifest = run_stage(directory, STAGE, facts, inputs, shards, counts=counts, prepare=prepare, at_once=at_once)
    shutil.rmtree(directory / ".answers", ignore_errors=True)  # our own intermediate files
    return manifest


def _ranges(table: ChunkTable, start: int) -> list[tuple[int, int]]:
    """Rows [first, stop) of each shard of chunks, those before `start` left out."""
    ends = np.cumsum(table.shard_rows).tolist()
    pairs = [(max(start, end - rows), end) for end, rows in zip(ends, table.shard_rows, strict=True)]
    return [(first, end) for first, end in pairs if first < end]


def _stem(number: int) -> str:
    return f"neighbors-{number:05d}"


@dataclass(frozen=True)
class Asked:
    """The queries of a search, and where its intermediate files are."""

    work: Path
    table: ChunkTable
    vectors: EmbeddingTable
    searched: Searched
    k: int
    ranges: Sequence[tuple[int, int]]  # of the rows, by shard of chunks

    def group(self, index: int, number: int) -> range:
        """The shards of chunks that are searched together with one of them."""
        together = self.searched.indexes[index].together
        first = number - number % together
        return range(first, min(first + together, len(self.ranges)))

    def rows(self, group: range) -> tuple[int, int]:
        return self.ranges[group[0]][0], self.ranges[group[-1]][1]

    def visitors(self, index: int, part: int, group: range) -> Int64[np.ndarray, "n"]:
        """The rows that visit a part, rising, counted from the group's first one."""
        start, stop = self.rows(group)
        if self.searched.indexes[index].route is None:
            return np.arange(stop - start)
        stem = self.work / _route(index, group)
        ends = load_array(stem.with_name(f"{stem.name}.ends.npy"), ANSWERS_REMEDY)
        rows = load_array(stem.with_name(f"{stem.name}.rows.npy"), ANSWERS_REMEDY, mapped=True)
        return np.asarray(rows[ends[part - 1] if part else 0 : ends[part]])


def _route(index: int, group: range) -> str:
    return f"{_stem(group[0])}-route-{index:05d}"


def _answer(index: int, part: int, group: range) -> str:
    return f"{_stem(group[0])}-of-index-{index:05d}-{part:05d}"


def _groups(asked: Asked, index: int, numbers: Sequence[int]) -> list[range]:
    return sorted({asked.group(index, number) for number in numbers}, key=lambda group: group[0])


def _stale(asked: Asked, missing: Sequence[int]) -> bool:
    """Whether results for finished shards of chunks still take space."""
    wanted = {
        name.partition("-of-")[0].partition("-route-")[0]
        for index in range(len(asked.searched.indexes))
        for name in (_route(index, group) for group in _groups(asked, index, missing))
    }
    parts = (path.stem for path in (asked.work / ".parts").glob("*.json"))
    return any(name.partition("-of-")[0].partition("-route-")[0] not in wanted for name in parts)


def _routes(asked: Asked, missing: Sequence[int]) -> list[Shard]:
    """A shard for each routed index and group of shards of chunks."""
    found = []
    for index, one in enumerate(asked.searched.indexes):
        for group in _groups(asked, index, missing) if one.route else ():
            name = _route(index, group)
            make = partial(_find_visits, name, one.route, asked.vectors, *asked.rows(group), asked.k)
            found.append(Shard(name, [f"{name}.rows.npy", f"{name}.ends.npy"], make))
    return found


def _find_visits(
    name: str, route: Route, vectors: EmbeddingTable, start: int, stop: int, k: int, temporary: Path
) -> dict:
    """The rows of a group that visit each part, part by part."""
    parts, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for first in range(start, stop, ROWS_ROUTED):
        visitors, visited = np.nonzero(route.visited(vectors[first : min(first + ROWS_ROUTED, stop)], k))
        parts.append(visited)
        rows.append(visitors + first - start)
    parts, rows = np.concatenate(parts), np.concatenate(rows)
    np.save(temporary / f"{name}.rows.npy", rows[parts.argsort(kind="stable")])
    np.save(temporary / f"{name}.ends.npy", np.bincount(parts, minlength=route.router.shards).cumsum())
    return {}


def _answers(asked: Asked, missing: Sequence[int]) -> list[Shard]:
    """A shard for each index shard and group of shards of chunks, index shard by index shard."""
    found, opened = [], 0
    for index, one in enumerate(asked.searched.indexes):
        for number, part in enumerate(one.parts):
            held, opened = Resource(f"index shard {opened}", part.open, bytes=part.bytes), opened + 1
            for group in _groups(asked, index, missing):
                name = _answer(index, number, group)
                files = [f"{name}.{column}.npy" for column in COLUMNS]
                found.append(Shard(name, files, partial(_search, asked, index, number, group), held))
    return found


def _search(asked: Asked, index: int, part: int, group: range, temporary: Path, searcher) -> dict:
    """The results of one index shard for the chunks of a group that visit it."""
    name, rows = _answer(index, part, group), asked.visitors(index, part, group) + asked.rows(group)[0]
    ids = np.full((len(rows), asked.k), PADDING, np.int64)
    distances = np.full(ids.shape, np.inf, np.float32)
    with progress(description=name, total=len(rows), unit="chunk") as bar:
        for first in range(0, len(rows), QUERIES_AT_ONCE):
            block = slice(first, first + QUERIES_AT_ONCE)
            ids[block], distances[block] = _find(asked, searcher, rows[block])
            bar.update(len(ids[block]))
    _save(temporary / name, ids, distances)
    return {}


def _find(asked: Asked, searcher: Searcher, rows: Int64[np.ndarray, "n"]):
    """The k nearest keys of a searcher for some rows; none for those of the only document."""
    ids = np.full((len(rows), asked.k), PADDING, np.int64)
    distances = np.full(ids.shape, np.inf, np.float32)
    documents = asked.table.document_ids[rows]
    others = np.flatnonzero(documents != asked.searched.only)  # the rest would be searched to the end without a result
    if len(others):
        own, copies = documents[others], asked.searched.copies
        own = own if copies is None else copies.own(own)
        ids[others], distances[others] = find_neighbors(
            searcher, asked.vectors[rows[others]], own, asked.searched.document_ids, asked.k
        )
    return ids, distances


def _merge(number: int, asked: Asked, k: int, temporary: Path) -> dict:
    """Merges the results for a shard of chunks and reranks them if configured."""
    (start, stop), words = asked.ranges[number], asked.searched.words
    ids = np.full((stop - start, asked.k), PADDING, np.int64)
    distances = np.full(ids.shape, np.inf, np.float32)
    for index, one in enumerate(asked.searched.indexes):
        group = asked.group(index, number)
        before = start - asked.rows(group)[0]
        for part in range(len(one.parts)):
            rows = asked.visitors(index, part, group)
            mine = slice(*np.searchsorted(rows, [before, before + stop - start]))
            found, measured = _load(asked.work / _answer(index, part, group), mapped=True)
            merge_at(ids, distances, rows[mine] - before, found[mine], measured[mine])
    _complete(asked, start, ids, distances)
    counts = {}
    if words is not None:
        nearest = ids[:, :k]
        ids, distances = words.rerank(asked.table.tokens[start:stop], ids, distances, asked.searched.tokens, k)
        kept = (nearest[:, :, None] == ids[:, None]).any(2) & (nearest != PADDING)
        counts["reranked"] = {"kept": int(kept.sum()), "of": int((nearest != PADDING).sum())}
    stem = _stem(number)
    _save(temporary / stem, ids, distances)
    missing, same = int((ids == PADDING).sum()), int((distances == 0).sum())
    counts["without_neighbors"] = {"chunks": int((ids == PADDING).all(axis=1).sum()), "of": len(ids)}
    return {"chunks": len(ids), "missing": missing, "same_text": same, **counts}


def _complete(asked: Asked, start: int, ids, distances) -> None:
    """Searches all parts for the rows whose visited parts have fewer than k chunks of other documents, in place.

    So a missing neighbor is missing in all of the database. Such rows are few: the parts that a row visits hold 4 k keys.
    """
    short = np.flatnonzero(
        (ids[:, -1] == PADDING) & (asked.table.document_ids[start : start + len(ids)] != asked.searched.only)
    )
    if not len(short):
        return
    for one in asked.searched.indexes:
        for part in one.parts if one.route is not None else ():
            merge_at(ids, distances, short, *_find(asked, part.open(), start + short))


def _save(stem: Path, ids, distances) -> None:
    np.save(stem.with_name(f"{stem.name}.ids.npy"), ids)
    np.save(stem.with_name(f"{stem.name}.distances.npy"), distances)


def _load(stem: Path, *, mapped: bool = False) -> list[np.ndarray]:
    names = (stem.with_name(f"{stem.name}.{column}.npy") for column in COLUMNS)
    return [load_array(name, ANSWERS_REMEDY, mapped=mapped) for name in names]


def find_neighbors(
    searcher: Searcher,
    queries: Float32[np.ndarray, "N E"],
    query_documents: Int64[np.ndarray, "N"] | Int64[np.ndarray, "N W"],
    database_documents: Int64[np.ndarray, "K"],
    k: int,
) -> tuple[Int64[np.ndarray, "N k"], Float32[np.ndarray, "N k"]]:
    """The k nearest keys of other documents than the query's.

    Args:
      query_documents: document id of each query, or several ids of it; an id that no document has (-1) keeps all.
      database_documents: document id of each key.
    """
    own = query_documents.reshape(len(queries), -1)

    def keep(rows, ids):
        return np.logical_and.reduce([database_documents[ids] != one[rows, None] for one in own.T])

    return search_kept(searcher, queries, k, keep)
