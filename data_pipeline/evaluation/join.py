"""Joins a set of text to a finished database: makes its documents, chunks, embeddings and neighbors with the build's
own tokenizer, encoder and index. The database does not change.

    DATA/evaluation/NAME/documents, chunks, embeddings, neighbors, contamination    stages like those of a build, resumable
    DATA/evaluation/NAME/set.json                                    the source and the protocol, written last
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from data_pipeline.chunks import build_chunks
from data_pipeline.database.searched import View, open_database
from data_pipeline.encoder.bert import encoder_directory
from data_pipeline.encoder.stage import STAGE as EMBEDDINGS
from data_pipeline.encoder.stage import build_embeddings, open_encoder
from data_pipeline.evaluation.contamination import SHOWN, build_contamination, check_threshold, overlap_counts
from data_pipeline.evaluation.documents import build_set_documents, set_facts
from data_pipeline.evaluation.entries import QUESTIONS, check_records, list_set
from data_pipeline.evaluation.neighbors import SetNeighbors, make_neighbors
from data_pipeline.evaluation.sets import FINISHED
from data_pipeline.evaluation.tables import HELD_OUT, check_set, open_tables, set_directory
from data_pipeline.sources.readers import source_digest
from data_pipeline.stages.run import StageError, read_manifest, read_plan, write_json
from retro_jax.config import DataConfig, RunConfig, SourceConfig, to_dict


def join(run: RunConfig, data: Path, name: str, source: SourceConfig) -> Mapping:
    """Makes the missing stages of a set.

    Args:
      data: the data directory of the build.
      name: of the set.
      source: its files, how they are read, and the protocol.

    Returns:
      Counts: "documents", "bytes", "chunks", "dropped" by reason, "neighbors" stored of each chunk, "contaminated"
      documents, and "copies" of training documents.

    Raises:
      StageError: an invalid name or one that is taken by other text, an unknown protocol, files of another format, or
        another encoder or dtype than the build's.
    """
    data = Path(data)
    check_join(run, data, name, source)
    directory = set_directory(data, name)
    if (directory / QUESTIONS).exists():
        raise StageError(f"The set {name!r} exists already, as a set of questions: {directory}. Take another --set.")
    at = {stage: directory / stage for stage in ("documents", "chunks", "embeddings")}
    encoder, config = encoder_directory(run.data), run.data
    _refuse_other_content(at["documents"], name, source)
    length = read_manifest(data / "chunks", "chunks", verify=False).config["chunk_length"]
    documents = build_set_documents(at["documents"], name, source, config)
    chunks = build_chunks(at["chunks"], config, length, at["documents"], data / "tokenizer")
    build_embeddings(at["embeddings"], _config_of_build(config, data), at["chunks"], data / "tokenizer", encoder)
    tables = open_tables(data, name)
    found = make_neighbors(tables, open_database(data), View(), 0)
    build_contamination(tables)
    write_json(directory / FINISHED, {"name": name, "source": to_dict(source)}, seal=True)
    dropped: dict[str, int] = {}
    for subset in documents.counts["subsets"].values():
        for reason, count in subset["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    facts = {"documents": documents.counts["documents"], "bytes": documents.counts["bytes"], "dropped": dropped}
    return {**facts, **overlap_counts(tables), "chunks": chunks.counts["chunks"], "neighbors": found.stored}


def check_join(run: RunConfig, data: Path, name: str, source: SourceConfig) -> None:
    """Checks what a join reads before anything is written; raises as `join` does."""
    check_set(name, source)
    check_records(name, source, run.data.max_document_memory)
    open_encoder(data / EMBEDDINGS, encoder_directory(run.data), run.data.encoder_dtype)


def _refuse_other_content(documents: Path, name: str, source: SourceConfig) -> None:
    """Raises StageError where a set of that name holds other text or was read with other settings."""
    if (plan := read_plan(documents)) is None:
        return
    wanted = {
        "config": set_facts(name, source),
        "inputs": {f"source {name}": source_digest(name, source, list_set(name, source))},
    }
    if different := [part for part, facts in wanted.items() if plan[part] != json.loads(json.dumps(facts))]:
        what = "from other files" if different == ["inputs"] else "with other settings (protocol or keys)"
        raise StageError(
            f"The set {name!r} exists already and was made {what}: {documents.parent}. Nothing was changed. Take another --set, or "
            f"move that folder away."
        )


def _config_of_build(config: DataConfig, data: Path) -> DataConfig:
    """The config with the build's own settings of the embeddings, so that equal texts have distance 0."""
    stored = read_manifest(data / EMBEDDINGS, EMBEDDINGS, verify=False).config
    own = {"encoder_dtype": stored["compute_dtype"], "embedding_dtype": stored["embedding_dtype"]}
    return replace(config, **own, encoder_batch=stored["encoder_batch"])


def join_neighbors(
    data: Path, name: str, k: int = 0, share: float = 1.0, database: str = "", without: frozenset[int] = frozenset()
) -> SetNeighbors:
    """The neighbors of a set, searched if no finished stage has them; the arguments are those of `StoredSet.neighbors`.

    Raises:
      StageError, ValueError: no such set, a share or k out of range, a database that does not match.
    """
    check_asked(data, k, share, database)
    tables, view = open_tables(Path(data), name), View(share, frozenset(without))
    opened = open_database(tables.data, database)
    found = make_neighbors(tables, opened, view, k)
    return SetNeighbors(tables, opened, view, found, k)


def check_asked(data: Path, k: int, share: float, database: str, threshold: float = 0.0) -> None:
    """Raises ValueError for k, share or threshold out of range, or a threshold with another database, StageError for a
    database that does not match."""
    if k < 0:
        raise ValueError(f"k counts neighbors and cannot be {k}; take 1 or more, or 0 for as many as the build stored.")
    View(share)
    if threshold:
        check_threshold(threshold)
    if threshold and database:
        raise ValueError(
            f"--without={threshold:g} leaves out training documents of the build's own database; those of "
            f"--database={database} were never compared with the set, so copies would stay in it. Give one of the two."
        )
    if database:
        open_database(Path(data), database)


def join_held_out(data: Path) -> Mapping:
    """Compares the build's own held-out text with the training documents; makes what is missing.

    Returns:
      Counts: "documents", "contaminated", "copies".
    """
    tables = open_tables(Path(data), HELD_OUT)
    build_contamination(tables)
    return {"documents": len(tables.documents.bytes) - tables.first_document, **overlap_counts(tables)}


def describe_set(name: str, counts: Mapping) -> str:
    """The content of a joined set, in a line."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts["dropped"].items()))
    return (
        f"{name}: {counts['documents']:,} documents, {counts['bytes'] / 1e6:,.2f} MB, {counts['chunks']:,} chunks, "
        f"{counts['neighbors']} neighbors stored of each{f'; left out: {dropped}' if dropped else ''}\n"
        f"{describe_overlap(name, counts)}"
    )


def describe_overlap(name: str, counts: Mapping) -> str:
    """How much of a set is in training documents, in a line."""
    copies = f"; {counts['copies']:,} are identical to training documents" if counts["copies"] else ""
    return (
        f"{name}: {counts['contaminated']:,} of {counts['documents']:,} documents are contaminated ({SHOWN:.0%} of their "
        f"13-grams occur in one training document){copies}"
    )
