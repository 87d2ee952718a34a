"""Our side of embedding.py: `data_pipeline.encoder.bert` over the same word pieces, or the same texts, every turn."""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from worker import serve

from data_pipeline.encoder.bert import FrozenEncoder


def build(settings):
    encoder = FrozenEncoder(settings["encoder"], compute_dtype=settings["precision"])
    with np.load(settings["ids"], allow_pickle=False) as stored:
        ids = [row.tolist() for row in np.split(stored["flat"], np.cumsum(stored["lengths"])[:-1])]
    texts = json.loads(Path(settings["texts"]).read_text())
    started = time.perf_counter()
    encoder.embed_ids(ids)
    first = time.perf_counter() - started
    np.save(settings["vectors"], encoder.embed(texts))

    def step(of):
        started = time.perf_counter()
        encoder.embed_ids(ids) if of == "pieces" else encoder.embed(texts)
        return {"step": time.perf_counter() - started}

    return {"jax": jax.__version__, "first_seconds": first, "matmul_gflops": matmul_rate(settings["precision"])}, step


def matmul_rate(precision: str, rows: int = 1024, width: int = 384, columns: int = 1536) -> float:
    left, right = jnp.ones((rows, width), precision), jnp.ones((width, columns), precision)
    product = jax.jit(lambda left, right: jnp.dot(left, right, preferred_element_type=jnp.float32))
    product(left, right).block_until_ready()
    best = float("inf")
    for _ in range(50):
        started = time.perf_counter()
        product(left, right).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * rows * width * columns / best / 1e9


if __name__ == "__main__":
    serve(build)
