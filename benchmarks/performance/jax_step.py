"""Our side of `benchmarks/performance/training_step.py`, which starts this file: the library's own step, as `retro train` runs it."""

import importlib.metadata
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from worker import serve

from retro_jax.config import EncoderConfig, ModelConfig, RunConfig, TrainConfig
from retro_jax.data.batches import Batch
from retro_jax.models.counts import flops_per_token
from retro_jax.parallel.sharding import make_mesh, place_batch
from retro_jax.train.clock import measured_peak
from retro_jax.train.optimizer import make_optimizer
from retro_jax.train.state import create_state
from retro_jax.train.step import batch_nll, make_train_step


def build(settings: Mapping) -> tuple[dict, Callable[[], dict]]:
    """Loss and gradients alone, and the whole training step, both compiled; a step runs one after the other."""
    run = _run_config(settings)
    mesh = make_mesh(run.train.mesh)
    optimizer = make_optimizer(run.train)
    state = create_state(run, optimizer, mesh)
    batch = place_batch(_batch(run.model, settings["shape"]["batch"]), mesh)

    def loss(params, batch):
        return batch_nll(run.model, params, batch, batch.neighbor_tokens, mesh).mean()

    started = time.perf_counter()
    gradients = jax.jit(jax.value_and_grad(loss)).lower(state.params, batch).compile()
    token_bytes = np.ones(run.model.vocabulary, np.int32)
    train_step = make_train_step(run, optimizer, mesh, token_bytes).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - started

    def step() -> dict:
        nonlocal state
        started = time.perf_counter()
        value, _ = jax.block_until_ready(gradients(state.params, batch))
        between = time.perf_counter()
        state, _ = jax.block_until_ready(train_step(state, batch))
        ended = time.perf_counter()
        return {"forward_backward": between - started, "step": ended - between, "loss": float(value)}

    facts = {
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        "parameters": _parameters(state.params),
        "compile_seconds": compile_seconds,
        "gflop": flops_per_token(run.model) * batch.tokens.size / 1e9,
        "matmul_gflops": measured_peak(run.model.compute_dtype) / 1e9,
        "options": {"remat": run.model.remat, "scan": run.model.scan, "loss_block": run.model.loss_block},
    }
    return facts, step


def _run_config(settings: Mapping) -> RunConfig:
    shape = settings["shape"]
    encoder = EncoderConfig(
        layers=shape["encoder_layers"],
        width=shape["encoder_width"],
        heads=shape["heads"],
        head_dim=shape["head_dim"],
        feed_forward=4 * shape["encoder_width"],
        cross_attention_layers=tuple(shape["encoder_cross_attention_layers"]),
    )
    names = ("vocabulary", "sequence_length", "chunk_length", "layers", "width", "heads", "head_dim", "neighbors")
    model = ModelConfig(
        **{name: shape[name] for name in names},
        feed_forward=4 * shape["width"],
        retrieval_layers=tuple(shape["retrieval_layers"]),
        encoder=encoder,
        compute_dtype=settings["precision"],
        # Like the peer, which stores what its backward pass needs and holds all logits at once.
        remat="none",
        loss_block=0,
    )
    return RunConfig(model=model, train=TrainConfig(batch=shape["batch"], warmup_steps=1))


def _batch(model: ModelConfig, size: int) -> Batch:
    """Random tokens of one document without padding, every neighbor present."""
    random = np.random.default_rng(0)

    def tokens(*shape):
        return random.integers(1, model.vocabulary, shape, dtype=np.int32)

    sequence = tokens(size, model.sequence_length + 1)
    return Batch(
        tokens=sequence[:, :-1],
        targets=sequence[:, 1:],
        loss_mask=np.ones((size, model.sequence_length), np.float32),
        segments=np.zeros((size, model.chunks), np.int32),
        neighbor_tokens=tokens(size, model.chunks, model.neighbors, model.retrieved_length),
    )


def _parameters(params: dict) -> dict:
    """Counts, the embeddings apart."""
    sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    outer = sum(size for name, size in sizes.items() if name.endswith("['embedding']"))
    return {"all": sum(sizes.values()), "embeddings_and_readout": outer, "rest": sum(sizes.values()) - outer}


if __name__ == "__main__":
    serve(build)
