"""The directories and tables of an evaluation set. The build's held-out split is a set as well."""

import re
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.chunks import ChunkTable
from data_pipeline.documents.stage import DocumentTable, read_documents_manifest
from data_pipeline.evaluation.entries import DOCUMENTS, check_protocol
from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig
from retro_jax.data.rows import first_rows

HELD_OUT = "held_out"
FOLDER = "evaluation"  # under DATA
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def check_name(name: str) -> None:
    """Raises StageError where a name is not valid for a folder on every system."""
    if not PLAIN.fullmatch(name) or len(name) > 100:
        raise StageError(
            f"--set={name!r} is not a valid name: only letters, digits, _, - and ., not beginning with - or ., at most 100 "
            f"characters."
        )


def check_set(name: str, source: SourceConfig) -> None:
    """Raises StageError for an invalid name, an unknown protocol, or a setting that selects training text."""
    check_name(name)
    if name == HELD_OUT:
        raise StageError(f"--set={HELD_OUT} is the build's own held-out text. Give the set another name.")
    check_protocol(name, source)
    for key in ("max_train_bytes", "max_validation_bytes", "max_document_bytes", "evaluation_titles"):
        if value := getattr(source, key):
            raise StageError(
                f"config.data.sources.{name}.{key}={value} selects training text, but every document of an evaluation set "
                f"is scored. Leave it out."
            )


def set_directory(data: Path, name: str) -> Path:
    return Path(data) / FOLDER / name


def set_names(data: Path) -> list[str]:
    """Names of the joined sets, finished or not."""
    found = (Path(data) / FOLDER).glob("*")
    return sorted(path.name for path in found if path.name != HELD_OUT and (path / "documents").exists())


@dataclass(frozen=True)
class Tables:
    """The documents and chunks of a set.

    Attributes:
      base: the directory that its documents, chunks and embeddings are in: that of the set, or DATA for held-out text.
      directory: where its other stages go.
      first: the row of its first chunk in `chunks`; its rows end with the table.
      first_document: the number of its first document in `documents`.
    """

    name: str
    data: Path
    base: Path
    directory: Path
    protocol: str
    chunks: ChunkTable
    documents: DocumentTable
    first: int
    first_document: int

    @property
    def embeddings(self) -> Path:
        return self.base / "embeddings"


def open_tables(data: Path, name: str) -> Tables:
    """The tables of a set.

    Raises:
      StageError: no set of that name (with those that exist), or an unfinished one.
    """
    data, directory = Path(data), set_directory(data, name)
    if name == HELD_OUT:
        chunks = ChunkTable(data / "chunks")
        if chunks.database_chunks == len(chunks):
            raise StageError(
                f"{data} holds no held-out text: no document fell into that split. Give more documents or raise "
                f"config.data.validation_fraction, and build into another --workdir; or evaluate a set that is joined "
                f"(retro join)."
            )
        first = len(first_rows(chunks.document_ids[: chunks.database_chunks])) if chunks.database_chunks else 0
        tables = (data, directory, DOCUMENTS, chunks, DocumentTable(data / "documents"), chunks.database_chunks, first)
        return Tables(name, data, *tables)
    check_name(name)
    if not directory.exists():
        there = ", ".join([HELD_OUT, *set_names(data)])
        raise StageError(
            f"There is no evaluation set {name!r} in {data}; there is: {there}. Join it: retro join --set={name} --path=FILES."
        )
    facts = read_documents_manifest(directory / "documents")
    chunks, documents = ChunkTable(directory / "chunks"), DocumentTable(directory / "documents")
    return Tables(name, data, directory, directory, facts.config["protocol"], chunks, documents, 0, 0)
