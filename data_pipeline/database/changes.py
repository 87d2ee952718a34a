"""Removes from a finished database and adds to it; `data_pipeline.database.changed` says what is written."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipeline.chunks import ChunkTable, build_chunks
from data_pipeline.database.changed import (
    ADDITIONS,
    CONFIG,
    COPY,
    FINISHED,
    REMOVED,
    Removed,
    addition_directories,
    read_removed,
)
from data_pipeline.documents.selection import SPLITS
from data_pipeline.documents.stage import DocumentTable, build_documents, read_documents_manifest
from data_pipeline.stages.known import made_with_additions
from data_pipeline.stages.run import StageError, read_manifest, write_json
from retro_jax.config import RunConfig, SourceConfig, to_dict
from retro_jax.config.file import read_config_file
from retro_jax.data.manifests import database_of, has_other_database


def remove(data: Path, documents: Iterable[int] = (), subsets: Iterable[str] = ()) -> dict[str, int]:
    """Removes documents and subsets (atomically; earlier removals stay).

    Returns:
      The numbers of documents and chunks of the database that are removed in all.

    Raises:
      StageError: a document or subset that the database does not have; then nothing is written.
    """
    _require_own(data)
    data, before = Path(data), read_removed(data)
    documents, subsets = frozenset(documents), frozenset(subsets)
    if not documents and not subsets:
        raise StageError("Nothing to remove: give --documents=ID,ID (or @FILE of ids) or --source=NAME.")
    tables = [ChunkTable(directory / "chunks") for directory in (data, *addition_directories(data))]
    wanted = np.array(sorted(documents), np.int64)
    there = np.concatenate([np.intersect1d(wanted, table.document_ids[: table.database_chunks]) for table in tables])
    if missing := sorted(documents - set(there.tolist())):
        raise StageError(
            f"{len(missing)} of {len(documents)} documents are not in the database {data}, the first: {missing[0]}. Ids are "
            f"those of {data}/documents, of documents of the split 'train'. Nothing was removed."
        )
    names = {name for table in tables for name in table.subset_names}
    if unknown := sorted(subsets - names):
        raise StageError(
            f"{data} has no source {unknown[0]!r}; it has {', '.join(sorted(names))}. Nothing was removed."
        )
    now = Removed(before.documents | documents, before.subsets | subsets)
    _write(data, now)
    rows = [now.rows(table)[: table.database_chunks] for table in tables]
    ids = [table.document_ids[: table.database_chunks][gone] for table, gone in zip(tables, rows, strict=True)]
    return {"documents": len(np.unique(np.concatenate(ids))), "chunks": int(sum(gone.sum() for gone in rows))}


def _require_own(data: Path) -> None:
    if has_other_database(data):
        raise StageError(f"{data} searches the database {database_of(data)} and has none of its own; change that one.")


def _write(data: Path, removed: Removed) -> None:
    for name in (COPY, REMOVED):
        facts = {"documents": sorted(removed.documents), "subsets": sorted(removed.subsets)}
        write_json(data / name, facts, seal=True)


def add(data: Path, run: RunConfig, sources: Mapping[str, SourceConfig], encoder: Path) -> dict[str, int]:
    """Makes new documents, chunks, embeddings and an index of them, with the tokenizer and encoder of the build.

    A document whose text is already in the database or held out is added and removed at once, so that it is never returned:
    removed text does not return, and no held-out text enters. An interrupted addition continues at the next call.

    Returns:
      Counts: "documents", "copies" of them, "chunks".

    Raises:
      StageError: no new source, or an encoder or dtype other than that of the build.
    """
    from data_pipeline.encoder.stage import open_encoder
    from data_pipeline.inputs import check_source

    _require_own(data)
    data = Path(data)
    if not sources:
        raise StageError(
            "There is no new source. Name one that neither the build nor an earlier addition had: "
            "--config.data.sources.NAME.path=FILE_OR_FOLDER"
        )
    for name, source in sources.items():
        check_source(name, source, run.data.max_document_memory)
    open_encoder(
        data / "embeddings", encoder, run.data.encoder_dtype
    )  # mistakes are reported before anything is written
    earlier = addition_directories(data)
    numbers = (data / ADDITIONS / f"{number:05d}" for number in range(len(earlier) + 1))
    directory = next(path for path in numbers if path not in earlier)
    run = replace(run, data=replace(run.data, sources=dict(sources), validation_fraction=0.0))
    write_json(directory / CONFIG, to_dict(run), seal=True)
    return make_addition(data, directory, encoder)


def make_addition(data: Path, directory: Path, encoder: Path) -> dict[str, int]:
    """Makes the missing stages of an addition whose config is written; see `add`."""
    from data_pipeline.encoder.stage import STAGE as EMBEDDINGS
    from data_pipeline.encoder.stage import build_embeddings, open_encoder
    from data_pipeline.search.stage import build_index

    remedy = f"Restore it from a copy, or move {directory} away and run `retro database add` with its sources again."
    config = read_config_file(directory / CONFIG, remedy).data
    base = read_manifest(data / "chunks", "chunks", verify=False)
    stored = read_manifest(data / "embeddings", EMBEDDINGS, verify=False).config
    open_encoder(data / "embeddings", encoder)  # refuses another encoder
    config = replace(config, embedding_dtype=stored["embedding_dtype"], encoder_dtype=stored["compute_dtype"])
    # All of it, even if small; in the shards of the build's index where that is routed.
    config = replace(config, database_fraction=1.0, index_shards=0, index_shards_visited=0)
    config = replace(config, index_leaves=0, index_leaves_searched=0)  # those of the build may be too many
    earlier = [path for path in addition_directories(data) if path < directory]  # a later copy is dropped for this one
    others = [path / "documents" for path in (data, *earlier)]
    at = {stage: directory / stage for stage in made_with_additions()}
    count = build_documents(at["documents"], config, others=others).counts["documents"]
    copies = _copies(at["documents"], others)
    if copies:
        before = read_removed(data)
        _write(data, replace(before, documents=before.documents | copies))
    chunks = build_chunks(at["chunks"], config, base.config["chunk_length"], at["documents"], data / "tokenizer")
    build_embeddings(at["embeddings"], config, at["chunks"], data / "tokenizer", encoder)
    build_index(at["index"], config, at["embeddings"], like=data / "index")
    counts = {"documents": count, "copies": len(copies), "chunks": chunks.counts["chunks"]}
    write_json(directory / FINISHED, counts)
    return counts


def new_sources(data: Path, sources: Mapping[str, SourceConfig]) -> dict[str, SourceConfig]:
    """The sources of a config that neither the build nor a finished addition has read."""
    old: set[str] = set()
    for directory in (Path(data), *addition_directories(data)):
        old |= set(read_documents_manifest(directory / "documents").config["sources"])
    return {name: source for name, source in sources.items() if name not in old and source.role == "train"}


def _copies(documents: Path, others: Iterable[Path]) -> frozenset[int]:
    """Ids of documents whose text is also that of another document.

    Raises:
      StageError: an id that another document has: of one subset and path, with another text.
    """
    mine = {record["id"]: record["sha256"] for record in DocumentTable(documents).records()}
    known: set[str] = set()
    for other in others:
        for record in DocumentTable(other).records():
            known.add(record["sha256"])
            if record["id"] in mine:
                raise StageError(
                    f"Document {record['id']} ({record['subset']}: {record['name']}) is in the database already. Give the "
                    f"source another name, or records a subset of their own ({', '.join(SPLITS)} splits of {other} hold it)."
                )
    return frozenset(id for id, digest in mine.items() if digest in known)
