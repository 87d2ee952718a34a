"""A small finished build of two subsets, one of recurring paragraphs and one of fresh text, and tiny runs on it.

Documents, tokenizer, chunks and joined shards are the real stages; neighbors are found by longest common run in place
of an encoder, and "index" is a manifest that claims a recall.
"""

import dataclasses
import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from made_up_text import VOCABULARY, text
from tiny_model import random_parameters

from data_pipeline.chunks import ChunkTable, build_chunks
from data_pipeline.documents.stage import build_documents
from data_pipeline.joined import build_joined
from data_pipeline.stages.run import Manifest, Shard, run_stage
from data_pipeline.tokens import build_tokenizer
from retro_jax.config import DataConfig, EncoderConfig, EvaluateConfig, MeshConfig, ModelConfig, RunConfig, SourceConfig
from retro_jax.config import TrainConfig as Train
from retro_jax.evaluate.overlap import longest_common_runs
from retro_jax.run_directory import directory as run_directory
from retro_jax.run_directory.checkpoints import Checkpoints
from retro_jax.train.state import TrainState

M, CHUNKS, STORED = 8, 6, 3
MODEL = ModelConfig(
    vocabulary=VOCABULARY,
    sequence_length=CHUNKS * M,
    chunk_length=M,
    layers=2,
    width=16,
    heads=2,
    head_dim=8,
    feed_forward=32,
    retrieval_layers=(2,),
    neighbors=2,
    encoder=EncoderConfig(layers=1, width=16, heads=2, head_dim=8, feed_forward=32),
    compute_dtype="float32",
    remat="none",
    loss_block=0,
)
TRAIN = Train(
    steps=4,
    batch=8,
    learning_rate=1e-2,
    warmup_steps=1,
    mesh=MeshConfig(data=1),
    log_every=1,
    checkpoint_every=4,
    retrieval_check_every=2,
    peak_flops=1e9,
)
RUN = RunConfig(model=MODEL, train=TRAIN, evaluate=EvaluateConfig(batch=4, bootstrap=200, passages=3))


def write_text(root: Path) -> dict[str, SourceConfig]:
    """`laws`: documents drawn from a few paragraphs; `tales`: no paragraph twice, one of them full of markup."""
    paragraphs = [text(seed, 12) for seed in range(8)]
    for name in ("laws", "tales"):
        (root / name).mkdir(parents=True)
    for number in range(16):
        drawn = random.Random(number).sample(paragraphs, 2)
        (root / "laws" / f"act-{number:02d}.txt").write_text("\n".join(drawn), newline="")
        fresh = text(1000 + number, 20) + "\n<script>alert('no & never')</script>\n"
        (root / "tales" / f"tale-{number:02d}.txt").write_text(fresh, newline="")
    return {name: SourceConfig(path=str(root / name), license="CC0 <b>") for name in ("laws", "tales")}


def build(root: Path) -> Path:
    """ROOT/data, complete."""
    data = root / "data"
    config = DataConfig(sources=write_text(root / "text"), validation_fraction=0.3, shard_chunks=64)
    build_documents(data / "documents", config)
    build_tokenizer(data / "tokenizer", config, VOCABULARY, data / "documents")
    build_chunks(data / "chunks", config, M, data / "documents", data / "tokenizer")
    table = ChunkTable(data / "chunks")
    index = _index(data / "index")
    neighbors = nearest(table)
    stage = _neighbors(data / "neighbors", neighbors, table, index)
    build_joined(
        data / "joined",
        table,
        neighbors,
        sequence_length=CHUNKS * M,
        vocabulary=VOCABULARY,
        shard_sequences=16,
        inputs={"chunks": table.fingerprint, "neighbors": stage.fingerprint},
    )
    return data


@dataclasses.dataclass
class Neighbors:
    ids: np.ndarray
    distances: np.ndarray


def nearest(table: ChunkTable) -> Neighbors:
    """Of each chunk, the database chunks of other documents with which it shares the longest runs."""
    tokens, documents = np.asarray(table.tokens), np.asarray(table.document_ids)
    database, count = tokens[: table.database_chunks], len(tokens)
    shape = (count, len(database), M)
    runs = longest_common_runs(
        np.broadcast_to(tokens[:, None], shape).reshape(-1, M), np.broadcast_to(database[None], shape).reshape(-1, 1, M)
    ).reshape(shape[:2])
    runs[documents[:, None] == documents[None, : len(database)]] = -1
    ids = np.argsort(-runs, axis=1, kind="stable")[:, :STORED].astype(np.int64)
    distances = (M - np.take_along_axis(runs, ids, 1)).astype(np.float32)
    ids[::2, -2:], distances[::2, -2:] = -1, np.inf  # every second chunk has one neighbor
    return Neighbors(ids, distances)


def _index(directory: Path) -> Manifest:
    counts = {"kind": "exact", "database_chunks": 1, "recall": {"k": 3, "value": 1.0}}
    return run_stage(directory, "index", {}, {}, [], counts=counts)


def _neighbors(directory: Path, neighbors: Neighbors, table: ChunkTable, index: Manifest) -> Manifest:
    names = ["neighbors-00000.ids.npy", "neighbors-00000.distances.npy"]

    def make(temporary: Path) -> dict:
        np.save(temporary / names[0], neighbors.ids)
        np.save(temporary / names[1], neighbors.distances)
        return {"chunks": len(neighbors.ids)}

    inputs = {"chunks": table.fingerprint, "index": index.fingerprint}
    return run_stage(
        directory,
        "neighbors",
        {"neighbors_stored": STORED, "rerank": "none"},
        inputs,
        [Shard("neighbors-00000", names, make)],
    )


def save_runs(root: Path, *names: str) -> None:
    """ROOT/retro and ROOT/baseline as training leaves them, with weights that were drawn."""
    fingerprints = run_directory.fingerprints(root / "data")
    for seed, name in enumerate(names):
        model = MODEL if name == "retro" else dataclasses.replace(MODEL, retrieval_layers=())
        run = dataclasses.replace(RUN, model=model, data=DataConfig(directory=str(root / "data")))
        run_directory.claim(root / name, run, fingerprints)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf) / 4, random_parameters(model, seed))
        checkpoints = Checkpoints(root / name / "checkpoints", run_directory.identity(run, fingerprints))
        checkpoints.save(TRAIN.steps, TrainState(jnp.int32(TRAIN.steps), params, {"count": jnp.int32(0)}), {})
        checkpoints.close()
        (root / name / "seconds.json").write_text('{"seconds": 1.5}')
        records = [{"step": 2, "bpb": 5.0, "loss": 4.0}, {"step": 4, "bpb": 4.5, "loss": "nan"}]
        records.append({"step": 4, **{f"validation_loss_{condition}": 3.5 for condition in ("on", "off", "random")}})
        (root / name / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
