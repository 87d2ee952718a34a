"""What a build will take, from rates measured on a sample: `retro build --plan`.

Some hundred documents go through the real stages in a temporary directory. Each stage's work grows with the text, but for
the tokenizer, which is trained on so much of it and no more, and for index and neighbors:

    index      each key is compared with sqrt(S) leaves, S the keys of an index shard
    neighbors  each chunk is searched in every index shard, of which S^0.875 keys each are looked at (leaves^0.75 leaves of
               sqrt(S) keys), so beyond one shard the work is quadratic in the text

A plan is an extrapolation by these laws, not a measurement; the sample's vocabulary is small, so chunks are rather too many.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from data_pipeline.bert import read_shape
from data_pipeline.index import KEYS_A_SHARD
from data_pipeline.manifests import StageError
from data_pipeline.readers import read_source, source_units
from retro_jax.config import RunConfig, SourceConfig

DOCUMENTS = 300  # read for the sample, of all sources together
VOCABULARY = 2_048  # of the sample's tokenizer, where none is given: so little text gives no larger one
BYTES_A_NUMBER = 9.5  # of an open index shard, for each number of its keys (`data_pipeline.index.shard_bytes`)
COMPRESSED = (".gz", ".zst", ".parquet")
PARALLEL = ("chunks", "embeddings", "index", "neighbors", "joined")


@dataclass(frozen=True)
class Rates:
    """What the sample took."""

    text_bytes: int
    tokens: int
    chunks: int
    keys: int  # of them in the database
    width: int
    kind: str  # of its index
    seconds: Mapping[str, float]
    disk_bytes: Mapping[str, int]


def sample_run(run: RunConfig, folder: Path) -> RunConfig:
    """The config of a build of the sample, whose text is written into `folder`.

    Raises:
      StageError: sources without a document.
    """
    share = -(-DOCUMENTS // max(1, len(run.data.sources)))
    count, path = 0, folder / "sample.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for name, source in run.data.sources.items():
            for raw in islice((raw for raw in read_source(name, source) if not raw.dropped), share):
                file.write(json.dumps({"text": raw.text, "subset": raw.subset}) + "\n")
                count += 1
    if not count:
        raise StageError("The sources hold no document, so there is nothing to plan from. Check config.data.sources.")
    sources = {"sample": SourceConfig(path=str(path), subset_key="subset")}
    data = replace(run.data, sources=sources, directory=str(folder / "data"), exact_below=0, database_fraction=1.0)
    vocabulary = run.model.vocabulary if run.data.tokenizer else min(VOCABULARY, run.model.vocabulary)
    return replace(run, data=data, model=replace(run.model, vocabulary=vocabulary))


def corpus_bytes(run: RunConfig) -> int:
    """Bytes of all sources: packages are read, files count by their size.

    Raises:
      StageError: files whose text is larger than they are (compressed, TFDS): their size says too little.
    """
    total = 0
    for name, source in run.data.sources.items():
        units = source_units(name, source)
        if source.package:
            total += sum(len(raw.text.encode()) for raw in read_source(name, source) if not raw.dropped)
        elif any(not unit.files or unit.files[0].name.endswith(COMPRESSED) for unit in units):
            raise StageError(
                f"The text of config.data.sources.{name} is not measured by its files; give --plan_tokens."
            )
        else:
            total += sum(file.bytes for unit in units for file in unit.files)
    return total


def chip_hours(tokens: float, encoder: Path, peak_flops: float) -> float:
    """Hours of one chip at its published rate for the matrix products of embedding: no real run is faster."""
    shape = read_shape(encoder)
    products = shape.layers * shape.width * (4 * shape.width + 2 * shape.feed_forward)
    return 2 * products * tokens / peak_flops / 3600


def read_rates(data: Path) -> Rates:
    """Rates of a finished build."""
    facts, seconds, sizes = {}, {}, {}
    for path in sorted(data.glob("*/manifest.json")):
        stage = path.parent.name
        facts[stage] = json.loads(path.read_text())
        seconds[stage] = json.loads((path.parent / "seconds.json").read_text())["seconds"]
        sizes[stage] = sum(file["bytes"] for file in facts[stage]["files"])
    chunks = facts["chunks"]["counts"]
    return Rates(
        facts["documents"]["counts"]["bytes"],
        chunks["tokens"],
        chunks["chunks"],
        chunks["database_chunks"],
        facts["embeddings"]["counts"]["width"],
        facts["index"]["counts"]["kind"],
        seconds,
        sizes,
    )


def plan(rates: Rates, tokens: float, nodes: int) -> dict:
    """Chunks, and by stage bytes, node-hours and hours, of a corpus of `tokens` on nodes like this one.

    Args:
      tokens: as the sample's tokenizer counts them.

    Raises:
      ValueError: no nodes or tokens.
    """
    if nodes < 1 or not tokens > 0:
        raise ValueError(
            f"A plan needs nodes and tokens, but got --plan_nodes={nodes} and {tokens} tokens; take 1 or more."
        )
    growth = tokens / rates.tokens
    keys = rates.keys * growth
    shards = max(1, math.ceil(keys / KEYS_A_SHARD))
    larger = keys / shards / rates.keys  # an index shard against the sample's
    index, search = (0.5, 0.875) if rates.kind == "scann" else (0.0, 1.0)
    factor = dict.fromkeys(rates.seconds, growth) | {"tokenizer": 1.0}
    factor["index"] = growth * larger**index
    factor["neighbors"] = growth * shards * larger**search
    stages = {}
    for stage, seconds in rates.seconds.items():
        hours = seconds * factor[stage] / 3600
        size = rates.disk_bytes[stage] * (1.0 if stage == "tokenizer" else growth)
        parallel = nodes if stage in PARALLEL else 1
        stages[stage] = {"bytes": size, "node_hours": hours, "wall_hours": hours / parallel}
    held = math.ceil(shards / nodes) * keys / shards * rates.width * BYTES_A_NUMBER
    return {
        "tokens": tokens,
        "chunks": rates.chunks * growth,
        "index_shards": shards,
        "nodes": nodes,
        "memory_a_node": held,
        "stages": stages,
        "wall_hours": sum(stage["wall_hours"] for stage in stages.values()),
    }


def plan_text(found: Mapping) -> str:
    """The plan as a table."""
    lines = [
        f"{found['tokens']:.3g} tokens, {found['chunks']:,.0f} chunks, {found['index_shards']:,} index shards, "
        f"{found['nodes']:,} nodes like this machine, {found['memory_a_node'] / 1e9:,.2f} GB of index a node",
        f"{'stage':<11}{'GB on disk':>14}{'node-hours':>16}{'wall hours':>14}",
    ]
    for stage, facts in found["stages"].items():
        lines.append(
            f"{stage:<11}{facts['bytes'] / 1e9:>14,.3f}{facts['node_hours']:>16,.3f}{facts['wall_hours']:>14,.3f}"
        )
    return "\n".join([*lines, f"{'all':<41}{found['wall_hours']:>14,.3f}"])
