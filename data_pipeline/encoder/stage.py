"""Stage 4, embeddings: one vector for the text of every chunk, used as database key and as query (paper 2.3).

    embeddings-00000.npy  [N_s, E], row for row as the shard of chunks

Database and held-out chunks go through the same function, so a query finds a key of the same text at distance 0. A chunk
of more word pieces than the encoder has positions for is embedded in windows; the manifest counts them where there are
any ("chunks_in_windows").
"""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from data_pipeline.chunks import STAGE as CHUNKS
from data_pipeline.chunks import ChunkTable
from data_pipeline.encoder.bert import FrozenEncoder
from data_pipeline.encoder.dtype import AUTO, STAGE, choose_dtype, require_dtype
from data_pipeline.stages.engine import Resource, Shard
from data_pipeline.stages.run import Manifest, StageError, read_manifest, require_fingerprint, run_stage
from data_pipeline.tokens import Tokenizer
from retro_jax.config import DataConfig
from retro_jax.core.dimensions import PADDING
from retro_jax.data.rows import ShardedRows


def build_embeddings(
    directory: Path, config: DataConfig, chunks: Path, tokenizer: Path, encoder_directory: Path
) -> Manifest:
    """Embeds every chunk.

    Args:
      chunks, tokenizer: directories of these stages.
      encoder_directory: a Hugging Face directory (`data_pipeline.encoder.bert`).

    Raises:
      StageError: a tokenizer other than that of the chunks, a directory that is not an encoder, or vectors of another
        dtype than config.data.encoder_dtype.
      ValueError: config.data.embedding_dtype is not one that is stored.
    """
    check_settings(config)
    source = read_manifest(chunks, CHUNKS)
    table, text_tokenizer = ChunkTable(chunks), Tokenizer(tokenizer)
    require_fingerprint(
        f"tokenizer {tokenizer} for {chunks}",
        text_tokenizer.fingerprint,
        source.inputs["tokenizer"],
        "Point to the tokenizer of the chunks, or build again in another --workdir.",
    )
    dtype = choose_dtype(config.encoder_dtype, directory)
    encoder = FrozenEncoder(encoder_directory, batch=config.encoder_batch, compute_dtype=dtype)
    opener = partial(FrozenEncoder, Path(encoder_directory), batch=config.encoder_batch, compute_dtype=dtype)
    held = Resource("encoder", opener, accelerator=True, here=encoder)
    shards, start = [], 0
    for number, rows in enumerate(table.shard_rows):
        stem = f"embeddings-{number:05d}"
        make = partial(_make, stem, text_tokenizer, table, start, start + rows, config.embedding_dtype)
        shards.append(Shard(stem, [f"{stem}.npy"], make, held))
        start += rows
    return run_stage(
        directory,
        STAGE,
        stage_config(config, encoder.fingerprint, dtype),
        {"chunks": source.fingerprint, "tokenizer": text_tokenizer.fingerprint},
        shards,
        counts={"database_chunks": table.database_chunks, "width": encoder.width},
    )


def check_settings(config: DataConfig) -> None:
    """Raises ValueError where a setting of the stage is outside its range."""
    if config.embedding_dtype not in ("float32", "float16"):
        raise ValueError(
            f"config.data.embedding_dtype must be float32 or float16, but is {config.embedding_dtype!r}; "
            f"float16 halves the space and keeps distances to three digits."
        )


def stage_config(config: DataConfig, encoder: str, compute_dtype: str) -> dict:
    """The settings that the stage depends on; part of its plan.

    Args:
      encoder: its fingerprint.
      compute_dtype: of its matmuls, which `data_pipeline.encoder.dtype` chooses.
    """
    return {
        "encoder": encoder,
        "compute_dtype": compute_dtype,
        "encoder_batch": config.encoder_batch,
        "embedding_dtype": config.embedding_dtype,
    }


def _make(
    stem: str, text_tokenizer: Tokenizer, table: ChunkTable, start: int, stop: int, dtype: str, temporary: Path, encoder
) -> dict:
    texts = [text_tokenizer.decode(row[row != PADDING]) for row in table.tokens[start:stop]]
    ids = encoder.token_ids(texts)
    vectors = encoder.embed_ids(ids, description=stem)
    if not np.isfinite(vectors).all():
        raise StageError(f"{encoder.directory} gives vectors that are not finite; its weights are broken.")
    np.save(temporary / f"{stem}.npy", vectors.astype(dtype))
    windows = sum(len(each) > encoder.longest for each in ids)
    return {"chunks": len(vectors), **({"chunks_in_windows": windows} if windows else {})}


class EmbeddingTable:
    """A finished embeddings stage, mapped into memory.

    Attributes:
      database_chunks: rows [0, database_chunks) are the keys of the database.
      width: E.
      encoder: fingerprint of the encoder that made it.
      fingerprint: of the stage's manifest.
    """

    def __init__(self, directory: Path, *, verify: bool = True):
        manifest = read_manifest(directory, STAGE, verify=verify)
        self.directory = Path(directory)
        self._rows = ShardedRows([self.directory / file.name for file in manifest.files])
        self.database_chunks: int = manifest.counts["database_chunks"]
        self.width: int = manifest.counts["width"]
        self.encoder: str = manifest.config["encoder"]
        self.inputs = manifest.inputs
        self.fingerprint = manifest.fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows) -> Float32[np.ndarray, "*rows E"]:
        """Vectors of rows (a slice or an integer array), as float32 however they are stored."""
        return self._rows[rows].astype(np.float32, copy=False)

    def database(self) -> Float32[np.ndarray, "N E"]:
        """All keys, in memory."""
        return self[: self.database_chunks]


def open_encoder(embeddings: Path, encoder_directory: Path, asked: str = AUTO) -> FrozenEncoder:
    """The encoder for queries against a finished stage, in the dtype of its vectors.

    Args:
      asked: config.data.encoder_dtype.

    Raises:
      StageError: another encoder or dtype than the one that made the stage's vectors.
    """
    dtype, manifest = require_dtype(asked, Path(embeddings)), read_manifest(embeddings, STAGE, verify=False)
    encoder = FrozenEncoder(encoder_directory, batch=manifest.config["encoder_batch"], compute_dtype=dtype)
    encoder.require(manifest.config["encoder"], Path(embeddings))
    return encoder
