"""Opens a database for the searches of evaluation sets: build and additions, or a share of their documents, without
removed ones. Nothing is written into the database; the index of a share is a stage beside the evaluation sets.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from data_pipeline.chunks import ChunkTable
from data_pipeline.database.changed import CONFIG, Removed
from data_pipeline.database.copies import Copies
from data_pipeline.database.database import Database, KeptSearcher
from data_pipeline.encoder.dtype import recorded_dtype
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.bm25 import Lexical
from data_pipeline.search.chunk_search import Index, Part, Searched
from data_pipeline.search.exact import PlacedSearcher, Searcher
from data_pipeline.search.stage import build_index, index_shards, open_route, open_shard, shard_bytes
from data_pipeline.search.subset import in_subset
from data_pipeline.stages.run import StageError, read_manifest
from retro_jax.config import DataConfig
from retro_jax.config.file import read_config_file
from retro_jax.data.manifests import database_of

INDEXES = ".indexes"  # under DATA/evaluation; no set has a name that begins with a dot


@dataclass(frozen=True)
class View:
    """Which chunks are searched: a nested share of the documents, without some of them.

    Attributes:
      share: of the documents that the database searches, in (0, 1].
      without: ids of documents that are left out here, besides those that were removed.
    """

    share: float = 1.0
    without: frozenset[int] = frozenset()

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"A share of the database must lie in (0, 1], but is {self.share}; 1 is all of it.")


def open_database(own: Path, other: str = "") -> Database:
    """The database that is searched for text of `own`: `other`, or the one that the neighbors of its build are from.

    Raises:
      StageError: an encoder other than that of `own`, or a database that its tokenizer cannot read (`Database`).
    """
    place = Path(other) if other else database_of(own)
    if place.resolve() == Path(own).resolve():
        return Database(own)
    require_same_encoder(Path(own), place)
    return Database(place, reader=own)


def require_same_encoder(own: Path, other: Path) -> None:
    """Raises StageError unless two data directories have the same encoder and dtype, whose vectors alone can be compared."""
    if (mine := _encoder(own)) != (found := _encoder(other)):
        raise StageError(
            f"The database {other} has another encoder than {own} ({found} there, {mine} here), so its vectors cannot be "
            f"compared with these. Build one of them with the config.data.encoder of the other and "
            f"config.data.encoder_dtype={recorded_dtype(own / 'embeddings')}, or take another database."
        )


def _encoder(data: Path) -> str:
    config = read_manifest(data / "embeddings", "embeddings", verify=False).config
    return f"{config['encoder'][:16]}, {config['compute_dtype']}"


def searched(
    database: Database, view: View, evaluation: Path, copies: Copies | None = None
) -> tuple[Searched, dict[str, str], dict]:
    """The parts that queries search, the fingerprints of their stages, and the recall of the build's index.

    Args:
      evaluation: DATA/evaluation, under which the index of a share is made if it is missing.
      copies: of the queries' documents, where they are those of another build.
    """
    removed = replace(database.tombstones, documents=database.tombstones.documents | view.without)
    indexes, inputs, recall = [], {}, {}
    for number, directory in enumerate(database.directories):
        index, fraction = directory / "index", share_of_all(directory, view.share)
        if view.share < 1 and not number:  # additions are small: results outside of the share are dropped
            index, fraction = _share_index(database, fraction, view.share, evaluation), 1.0
        manifest = read_manifest(index, "index", verify=False)
        inputs["index" if not number else f"index of addition {number}"] = manifest.fingerprint
        recall, parts = recall or manifest.counts["recall"], []
        for shard in index_shards(index, directory / "embeddings"):
            place = (directory / "chunks", int(database.first[number]), removed, fraction if number else 1.0)
            parts.append(Part(partial(open_part, shard, *place), shard_bytes(*shard[1:3])))
        indexes.append(Index(parts, open_route(index)))
    words = Lexical(database.data / "lexical") if database.rerank == "bm25" else None
    if words:
        inputs["lexical"] = words.fingerprint
    return Searched(indexes, database.tokens, database.document_ids, words, copies=copies), inputs, recall


def open_part(shard: tuple, chunks: Path, first: int, removed: Removed, fraction: float) -> Searcher:
    """The searcher of one index shard without removed documents; it returns ids of the database.

    Args:
      shard: arguments of `open_shard`.
      first: the id of the first chunk of the directory that the index is of.
      fraction: of the documents that are searched, where the shard holds others too.
    """
    searcher = open_shard(*shard)
    if removed.documents or removed.subsets or fraction < 1:
        table = ChunkTable(chunks)
        kept = ~removed.rows(table)[: table.database_chunks]
        if fraction < 1:
            kept &= in_subset(table.document_ids[: table.database_chunks], fraction)
        searcher = KeptSearcher(searcher, kept)
    return PlacedSearcher(searcher, np.arange(first, first + shard[-1])) if first else searcher


def share_of_all(directory: Path, share: float) -> float:
    """The share of all documents of a build or an addition: the build may be one of a share itself, in which smaller ones are
    nested; an addition to it is there as a whole."""
    return share * read_manifest(directory / "index", "index", verify=False).config.get("database_fraction", 1.0)


def rows_in_view(database: Database, view: View) -> tuple[Int64[np.ndarray, "K"], Bool[np.ndarray, "K"]]:
    """Chunk ids of the documents of a view in order, removed ones included; and which of them are removed."""
    removed = replace(database.tombstones, documents=database.tombstones.documents | view.without)
    ids, gone = [], []
    for first, table, directory in zip(database.first[:-1], database.tables, database.directories, strict=True):
        inside = np.ones(table.database_chunks, bool)
        if (fraction := share_of_all(directory, view.share)) < 1:
            inside = in_subset(table.document_ids[: table.database_chunks], fraction)
        ids.append(first + np.flatnonzero(inside))
        gone.append(removed.rows(table)[: table.database_chunks][inside])
    return np.concatenate(ids), np.concatenate(gone)


def _share_index(database: Database, fraction: float, share: float, evaluation: Path) -> Path:
    """The index over `fraction` of the build's documents, a stage beside the sets."""
    data, table = database.data, database.table
    owners = np.unique(table.document_ids[: table.database_chunks])
    inside = int(in_subset(owners, fraction).sum())
    if inside < 2:
        raise StageError(
            f"--share={share:g} of the {len(owners):,} documents of {data} leaves {inside}; neighbors need 2 or more. Take a "
            f"larger share."
        )
    vectors = EmbeddingTable(data / "embeddings", verify=False)
    place = evaluation / INDEXES / f"share-{fraction:g}-of-{vectors.fingerprint[:16]}"
    build_index(place, _index_settings(data, fraction), data / "embeddings", data / "chunks")
    return place


def _index_settings(data: Path, fraction: float) -> DataConfig:
    """The settings of the database's own index, except those that depend on the number of keys."""
    config = DataConfig()
    if (data / CONFIG).exists():
        config = read_config_file(data / CONFIG, "Run `retro build` once more: it writes the file again.").data
    manifest = read_manifest(data / "index", "index", verify=False)
    own = manifest.config
    settings = {"recall_target": own["recall_target"], "recall_sample": own["recall_sample"]}
    settings |= {"neighbors_stored": own["recall_k"], "database_fraction": fraction}
    automatic = dict.fromkeys(
        ("index_leaves", "index_leaves_searched", "index_reorder", "index_shards", "index_shards_visited"), 0
    )
    if manifest.counts["kind"] == "exact":
        settings["exact_below"] = max(config.exact_below, manifest.counts["database_chunks"] + 1)
    return replace(config, **settings, **automatic)
