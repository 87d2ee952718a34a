"""Neighbors from the database of another build: config.data.database=OTHER/data.

The build has documents, tokenizer, chunks and embeddings of its own text and no index; its chunks are searched in the other
database, and the text of the neighbors is read with its own tokenizer (`data_pipeline.database.retokenized`).

    DATA/database     a link to the data directory of the other build
"""

import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipeline.chunks import ChunkTable
from data_pipeline.database.copies import Copies
from data_pipeline.database.database import Database
from data_pipeline.database.retokenized import Retokenized
from data_pipeline.database.searched import View, open_database, rows_in_view, searched
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.search.chunk_search import search_chunks
from data_pipeline.search.neighbors import require_chunks, stage_config
from data_pipeline.search.recall import sample_rows
from data_pipeline.stages.run import Manifest, StageError, read_manifest, read_plan
from retro_jax.config import DataConfig
from retro_jax.data.manifests import DATABASE, database_of, has_other_database

SAMPLE = 2_000  # chunks whose tokens are counted


def check_database(config: DataConfig, data: Path) -> None:
    """Checks that a build can search config.data.database, before anything is written.

    Raises:
      StageError: it is not there, not finished or the build's own, it has another encoder, or the search has settings that
        are those of the other build.
    """
    from data_pipeline.encoder.bert import check_encoder, encoder_directory, encoder_fingerprint
    from data_pipeline.encoder.dtype import require_dtype
    from data_pipeline.packages import catalogue

    other, named = Path(config.database), f"config.data.database={config.database}"
    if not (other / "chunks").is_dir():
        raise StageError(
            f"{named} is no data directory of a finished build; name the folder that holds chunks/ and index/, as RUN/data."
        )
    if other.resolve() == Path(data).resolve():
        raise StageError(
            f"{named} is this build's own data directory. Leave it empty, or build into another --workdir."
        )
    if has_other_database(other):
        raise StageError(f"{named} has no database of its own; it searches {database_of(other)}. Name that.")
    if config.database_fraction != 1:
        raise StageError(
            f"config.data.database_fraction={config.database_fraction:g} is of a build's own database, but {named} is "
            f"another one. Build the share there, and name its folder ({other}/subset-{config.database_fraction:g})."
        )
    found = Database(other)
    if config.rerank != found.rerank:
        raise StageError(
            f"{named} was built with config.data.rerank={found.rerank}, but here it is {config.rerank}; make them equal."
        )
    stored = read_manifest(other / "embeddings", "embeddings", verify=False).config
    if config.embedding_dtype != stored["embedding_dtype"]:
        raise StageError(
            f"{named} stores its vectors as {stored['embedding_dtype']}, but config.data.embedding_dtype="
            f"{config.embedding_dtype}, so a text would not be at distance 0 from itself; make them equal."
        )
    dtype = require_dtype(config.encoder_dtype, other / "embeddings")
    if not (config.encoder or catalogue.is_fetched(catalogue.ENCODER)):
        return  # nothing is fetched before the first stage; the neighbors refuse it
    encoder, tokenizer = check_encoder(encoder_directory(config))
    if (mine := encoder_fingerprint(encoder, tokenizer.settings, dtype)) != stored["encoder"]:
        raise StageError(
            f"{named} was embedded with another encoder than config.data.encoder={config.encoder!r} ({stored['encoder'][:16]} "
            f"there, {mine[:16]} here), so its vectors cannot be compared. Give the encoder of that build."
        )


def link(data: Path, other: Path) -> None:
    """Makes DATA/database a link to another data directory, in place of one to its earlier place."""
    place, target = Path(data) / DATABASE, Path(other).resolve()
    if place.exists() and place.resolve() == target:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{DATABASE}-{uuid.uuid4().hex[:8]}")
    temporary.symlink_to(target)
    temporary.replace(place)


def build_neighbors_of(
    directory: Path, config: DataConfig, chunks: Path, embeddings: Path, copies: Path, other: Path
) -> Manifest:
    """Finds the neighbors of every chunk of a build in the database of another one, its additions included.

    Args:
      chunks, embeddings, copies: directories of these stages.
      other: the data directory of the other build.
    """
    table, vectors, database = ChunkTable(chunks), EmbeddingTable(embeddings), open_database(chunks.parent, str(other))
    require_chunks(table, vectors, chunks, embeddings)
    compared, found, recall = searched(database, View(), chunks.parent, Copies(copies))
    inputs = {
        "chunks": table.fingerprint,
        "embeddings": vectors.fingerprint,
        "copies": read_manifest(copies, "copies", verify=False).fingerprint,
        **{f"{name} of the database": fingerprint for name, fingerprint in found.items()},
    }
    facts = {**stage_config(config), "database": database.version}
    ids, gone = rows_in_view(database, View())
    counts = {"recall": recall, "database_chunks": len(ids) - int(gone.sum())}
    return search_chunks(directory, facts, inputs, table, vectors, compared, counts)


def searched_before(data: Path) -> bool:
    """Whether the database that a build searches has changed since; its neighbors stay valid, but no search finds them again."""
    if not has_other_database(data):
        return False
    plan = read_plan(data / "neighbors")  # is there, too, where the manifest is damaged
    return plan is not None and plan["config"]["database"] != open_database(data).version


def require_repairable(data: Path) -> None:
    """Raises StageError where damaged neighbors would be replaced by those of another database than the rest."""
    if searched_before(data):
        raise StageError(
            f"{data / 'neighbors'} is damaged, and the database that it was searched in has changed since, so that a new search "
            f"would find other neighbors than those that models were trained on. Restore the stage from a copy, or build again "
            f"with another --workdir."
        )


def of_joined(own: Path, other: Path, copies: Path, inputs: Mapping[str, str]) -> dict:
    """Arguments of `build_joined` for neighbors from another database; its inputs name both tokenizers."""
    database = open_database(own, str(other))
    inputs = {**inputs, "tokenizer": read_manifest(own / "tokenizer", "tokenizer", verify=False).fingerprint}
    for stage in ("tokenizer", "chunks"):
        inputs[f"{stage} of the database"] = read_manifest(other / stage, stage, verify=False).fingerprint
    sample = lengths(database)
    counts = {"retokenized": sample} if sample else {}
    return {"inputs": inputs, "database": database.text, "copies": Copies(copies), "counts": counts}


def lengths(database: Database) -> Mapping[str, int]:
    """Of a sample of chunks: how many tokens of the reader they have, and how many of them are cut off.

    Empty where the chunks are read as they are.
    """
    rows = database.text.tokens
    if not isinstance(rows, Retokenized):
        return {}
    ids = np.concatenate([np.arange(*bounds) for bounds in database.text.ranges])
    sizes = np.array([len(tokens) for tokens in rows.encoded(ids[sample_rows(len(ids), min(SAMPLE, len(ids)))])])
    over = np.maximum(sizes - rows.length, 0)
    return {"chunks": len(sizes), "tokens": int(sizes.sum()), "longer": int((over > 0).sum()), "cut": int(over.sum())}
