"""Our side of whole_path.py: the stages of `retro build` up to the neighbors, one after another in this process."""

import importlib.metadata
import time
from pathlib import Path

import jax
import numpy as np
from worker import serve

from data_pipeline.chunks import ChunkTable
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.pipeline import describe, stages
from data_pipeline.search.neighbors import NeighborTable
from retro_jax.config import default_config, resolve


def build(settings):
    config, folder = default_config(), Path(settings["folder"])
    config.model.update(vocabulary=settings["vocabulary"], chunk_length=settings["chunk"])
    config.data.update(neighbors_stored=settings["k"], encoder_dtype=settings["precision"])
    config.data.sources = {"text": {"path": settings["text"], "format": "text"}}
    data = folder / "data"
    data.mkdir()
    made = stages(resolve(config), data)  # imports what the stages need
    del made["joined"]  # shards for training, which the peer makes while it trains

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event.endswith("backend_compile_duration") else None
    )

    def step():
        seconds, holds = {}, {}
        for stage, (directory, make) in made.items():
            started = time.perf_counter()
            manifest = make(directory)
            seconds[stage] = time.perf_counter() - started
            holds[stage] = describe(stage, manifest.counts, manifest.config)
        facts = {"seconds": seconds, "step": sum(seconds.values()), "holds": holds, "compile_seconds": sum(compiled)}
        return facts | keep(data, folder)

    return {"versions": {name: importlib.metadata.version(name) for name in ("jax", "scann", "sentencepiece")}}, step


def keep(data: Path, folder: Path) -> dict:
    """Saves the three arrays that recall is measured on; not timed."""
    vectors, table, found = (
        kind(data / name)
        for kind, name in ((EmbeddingTable, "embeddings"), (ChunkTable, "chunks"), (NeighborTable, "neighbors"))
    )
    np.save(folder / "vectors.npy", vectors[:])
    np.save(folder / "documents.npy", table.document_ids[:])
    np.save(folder / "neighbors.npy", found.ids[:])
    return {"chunks": len(vectors), "keys": vectors.database_chunks}


if __name__ == "__main__":
    serve(build)
