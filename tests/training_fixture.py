"""A tiny data directory (tokenizer facts and joined shards) and configs that train on it in seconds."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as cache
from made_up_shards import M, made_up

from data_pipeline.joined import build_joined
from data_pipeline.stages.run import Shard, run_stage
from retro_jax.config import EncoderConfig, MeshConfig, ModelConfig, RunConfig, TrainConfig

VOCABULARY = 64
T = 4 * M

ENCODER = EncoderConfig(layers=1, width=16, heads=2, head_dim=8, feed_forward=32)
MODEL = ModelConfig(
    vocabulary=VOCABULARY,
    sequence_length=T,
    chunk_length=M,
    layers=3,
    width=16,
    heads=2,
    head_dim=8,
    feed_forward=32,
    retrieval_layers=(2, 3),
    neighbors=2,
    encoder=ENCODER,
    compute_dtype="float32",
    remat="none",
    loss_block=24,
)
BASELINE = dataclasses.replace(MODEL, retrieval_layers=())
TRAIN = TrainConfig(
    steps=6,
    batch=8,
    learning_rate=1e-2,
    warmup_steps=2,
    seed=3,
    mesh=MeshConfig(data=1, fsdp=1, tensor=1),
    log_every=1,
    checkpoint_every=2,
    retrieval_check_every=0,
    peak_flops=1e9,
)


def make_run(model=MODEL, **train) -> RunConfig:
    return RunConfig(model=model, train=dataclasses.replace(TRAIN, **train))


def build_data(directory: Path, seed: int = 1) -> Path:
    """DATA/tokenizer and DATA/joined, with fingerprints that depend on the seed."""

    def make_tokenizer(temporary: Path) -> dict:
        table = np.ones(VOCABULARY, np.int32)
        table[:3] = 0  # padding, BOS, EOS have no bytes
        np.save(temporary / "token_bytes.npy", table)
        return {"seed": seed}

    shard = Shard("tokenizer", ["token_bytes.npy"], make_tokenizer)
    run_stage(directory / "tokenizer", "tokenizer", {"seed": seed}, {}, [shard])
    table, neighbors = made_up(seed, training=30)
    table.tokens = np.where(table.tokens > 2, 3 + table.tokens % (VOCABULARY - 3), table.tokens)
    build_joined(
        directory / "joined",
        table,
        neighbors,
        sequence_length=T,
        vocabulary=VOCABULARY,
        shard_sequences=16,
        inputs={"chunks": f"chunks of {seed}", "neighbors": f"neighbors of {seed}"},
    )
    return directory


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """The module's tests train the same step again and again: it is compiled once."""
    cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    cache.reset_cache()
