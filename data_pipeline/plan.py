"""Estimates time and memory of a build from rates measured on samples of its text: `retro build --plan`.

A sample of text goes through the real documents, tokenizer and chunks, which gives the number of chunks; a few thousand
chunks, in two samples, go through the rest, which separates a stage's fixed cost from its cost per chunk. From
there the work of all stages grows with the text, except

    documents  a tenth of the work, selection, runs in one process on any cluster
    tokenizer  trained on a bounded amount of text
    index      beyond one shard the keys are there twice, and each is compared with the center of every shard
    neighbors  each chunk is searched in leaves of sqrt(S) of a shard's S keys each: as many as reach the recall target on
               the larger sample, times S^0.2; in all keys where the search is exact. What a key takes is measured by
               searching nearly all leaves of the larger sample and one of them. Beyond one shard a chunk is compared with
               the center of every shard and visits VISITS shards^VISITS_GROW of them, in which it looks at more leaves,
               since both the visits and the leaves miss some (docs/measured/routing.md); an exact search visits all

A plan is an extrapolation by these laws, not a measurement. It does not know what cleaning will drop.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.documents.stage import training_sources
from data_pipeline.encoder.directory import read_directory
from data_pipeline.encoder.stage import EmbeddingTable
from data_pipeline.formats.known import is_packed
from data_pipeline.search.exact import ExactSearcher
from data_pipeline.search.router import copies
from data_pipeline.search.stage import BYTES_A_NUMBER, KEYS_A_SHARD, count_shards, open_searcher
from data_pipeline.sources.readers import read_source, source_units
from data_pipeline.stages.run import StageError, read_manifest, read_seconds
from data_pipeline.tokens import training_bytes
from retro_jax.config import RunConfig, SourceConfig

TEXT_BYTES = 8_000_000  # at most, for the tokenizer and the counts
CHUNKS = (1_500, 4_500)  # of the two samples that are embedded, indexed and searched
QUERIES, TURNS = 1000, 5  # to time the search
ALONE = {"documents": 0.1, "tokenizer": 1.0}  # share that one node does; documents: measured on nine subsets
# The router visits 0.35 shards^0.51 (1.15, 1.95, 3.83, 5.16 of 10, 30, 100, 200 of 240,344 keys; of 359,559 keys 0.29 shards^0.56,
# with an interval of 0.44 to 0.68: docs/measured/routing.md); with the shards' misses a quarter more.
VISITS, VISITS_GROW = 0.44, 0.51
LEAVES_BESIDE_VISITS = 2.0  # times as many for a recall of 0.975 as for 0.95: 40 of 85 instead of 20
WIDTH = 384  # of the vectors that these were measured on
CENTER_SECONDS = 1.5e-7  # to compare a vector with a center
LEAVES_GROW = 0.2  # 9, 10, 13, 24 leaves for 3, 11, 35, 360 thousand keys of nine subsets, recall@10 0.95


@dataclass(frozen=True)
class BuiltSample:
    """The measured build of a sample."""

    text_bytes: int
    tokens: int
    chunks: int
    keys: int  # of them in the database
    seconds: Mapping[str, float]  # by stage, those that were made
    disk_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Rates:
    """The measured samples: `text` up to the chunks, `small` and `large` all stages."""

    text: BuiltSample
    small: BuiltSample
    large: BuiltSample
    width: int
    leaves: int  # searched in an index shard; 0: the search is exact
    scan: float  # seconds that one more key takes in the search for one query
    index_shards: int = 0  # 0: as many as the keys need
    fraction: float = 1.0  # of the database that is searched
    visits: int = 0  # index shards that a chunk is searched in; 0: as many as the recall target needs


def source_bytes(run: RunConfig) -> dict[str, float]:
    """Bytes of text that each source gives, up to its budgets: packages are read, files count by their size.

    Raises:
      StageError: files whose text is larger than they are (compressed, TFDS): their size says too little.
    """
    found, held_out = {}, run.data.validation_fraction
    for name, source in training_sources(run.data).items():
        units = source_units(name, source)
        if source.package:
            size = sum(len(raw.text.encode()) for raw in read_source(name, source) if not raw.dropped)
        elif any(not unit.files or any(is_packed(file.name) for file in unit.files) for unit in units):
            raise StageError(
                f"The text of config.data.sources.{name} is not measured by its files; give --plan_tokens."
            )
        else:
            size = sum(file.bytes for unit in units for file in unit.files)
        found[name] = min(size * (1 - held_out), source.max_train_bytes or math.inf)
        found[name] += min(size * held_out, source.max_validation_bytes or math.inf)
    return found


def sample_run(run: RunConfig, sizes: Mapping[str, float], wanted: float, folder: Path, tokenizer: str) -> RunConfig:
    """The config of a build of about `wanted` bytes, a share of each source, written into `folder`.

    Args:
      sizes: how much each source counts; bytes, or the same for all.
      tokenizer: a SentencePiece model of config.model.vocabulary pieces; empty trains one, as large as the text allows.

    Raises:
      StageError: sources without a document.
    """
    folder.mkdir()
    path, count = folder / "sample.jsonl", 0
    with open(path, "w", encoding="utf-8") as file:
        for name, source in training_sources(run.data).items():
            left = wanted * sizes[name] / sum(sizes.values())
            for raw in read_source(name, source):
                if left <= 0:
                    break
                if not raw.dropped:
                    text = raw.text[: math.ceil(left)]  # of a book no more than the share
                    file.write(json.dumps({"text": text, "subset": raw.subset}) + "\n")
                    left, count = left - len(text.encode()), count + 1
    if not count:
        raise StageError("The sources hold no document, so there is nothing to plan from. Check config.data.sources.")
    vocabulary = run.model.vocabulary
    if not tokenizer and wanted >= TEXT_BYTES:  # less than the trainer would see
        vocabulary = min(vocabulary, TEXT_BYTES // 500)
    sources = {"sample": SourceConfig(path=str(path), subset_key="subset")}
    data = replace(
        run.data,
        sources=sources,
        directory=str(folder / "data"),
        tokenizer=tokenizer,
        database="",  # what a search in another database costs is not measured: a sample has its own
        database_fraction=1.0,
        index_shards=0,
        index_shards_visited=0,
        index_leaves=0,  # what suits the corpus is too many for a sample
        index_leaves_searched=0,
    )
    return replace(run, data=data, model=replace(run.model, vocabulary=vocabulary))


def text_wanted(run: RunConfig, total: float) -> float:
    """Bytes of the sample that only goes up to the chunks."""
    return min(total, training_bytes(run.model.vocabulary), TEXT_BYTES)


def read_sample(data: Path) -> tuple[BuiltSample, dict]:
    """A sample's finished stages, and the counts of their manifests."""
    facts, seconds, sizes = {}, {}, {}
    for path in sorted(data.glob("*/manifest.json")):
        stage = path.parent.name
        manifest = read_manifest(path.parent, stage, verify=False)
        facts[stage] = manifest.counts
        seconds[stage] = read_seconds(path.parent) or 0.0
        sizes[stage] = sum(file.bytes for file in manifest.files)
    chunks = facts["chunks"]
    counts = (facts["documents"]["bytes"], chunks["tokens"], chunks["chunks"], chunks["database_chunks"])
    return BuiltSample(*counts, seconds, sizes), facts


def scan_seconds(data: Path) -> float:
    """Seconds that one more key takes in the search for one query of a batch, from the index of a finished build."""
    vectors = EmbeddingTable(data / "embeddings", verify=False)
    searcher = open_searcher(data / "index", data / "embeddings")
    queries, keys = vectors[: min(len(vectors), QUERIES)], vectors.database_chunks
    if isinstance(searcher, ExactSearcher):
        return _search_seconds(searcher, queries) / len(queries) / keys
    leaves = searcher.settings.leaves
    times = []
    for searched in (1, leaves - 1):  # all leaves would be an exact search
        searcher.settings = replace(searcher.settings, leaves_searched=searched)
        times.append(_search_seconds(searcher, queries))
    return max(0.0, times[1] - times[0]) / len(queries) / (keys * (leaves - 2) / leaves)


def _search_seconds(searcher, queries) -> float:
    times = []
    for _ in range(TURNS):
        started = time.perf_counter()
        searcher.search(queries, 10)
        times.append(time.perf_counter() - started)
    return min(times)


def chip_hours(tokens: float, encoder: Path, peak_flops: float) -> float:
    """Hours of one chip at its published rate for the matmuls of embedding: a lower bound."""
    shape = read_directory(encoder).shape
    products = shape.layers * shape.width * (4 * shape.width + 2 * shape.feed_forward)
    return 2 * products * tokens / peak_flops / 3600


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
    text, large = rates.text, rates.large
    growth = tokens / text.tokens
    chunks, keys = text.chunks * growth, text.keys * growth * rates.fraction
    shards = rates.index_shards or max(1, math.ceil(keys / KEYS_A_SHARD))
    stored, visits, centers = 1, float(shards), 0
    if rates.leaves:
        shards = count_shards(math.ceil(keys), rates.index_shards)
        stored, centers = copies(shards), shards if shards > 1 else 0
        visits = min(float(shards), rates.visits or max(1.0, VISITS * shards**VISITS_GROW))
    looked_at = held = keys * stored / shards
    if rates.leaves:
        leaves = rates.leaves * (held / large.keys) ** LEAVES_GROW * (LEAVES_BESIDE_VISITS if shards > 1 else 1)
        looked_at = min(held, leaves * math.sqrt(held))
    route = CENTER_SECONDS * centers * rates.width / WIDTH
    stages = {}
    for stage in large.seconds:
        if stage in text.seconds:
            times = 1.0 if stage == "tokenizer" else growth
            seconds, size = text.seconds[stage] * times, text.disk_bytes[stage] * times
        else:
            once, each = _line(stage, rates.small, large)
            if stage == "neighbors":
                each = visits * (each + rates.scan * looked_at) + route
            if stage == "index":
                each = each * stored + route
            share = rates.fraction if stage == "index" else 1.0
            seconds = once + each * chunks * share
            size = large.disk_bytes[stage] * chunks * share / large.chunks * (stored if stage == "index" else 1)
        alone = ALONE.get(stage, 0.0)
        wall = seconds / 3600 * (alone + (1 - alone) / nodes)
        stages[stage] = {"bytes": size, "node_hours": seconds / 3600, "wall_hours": wall}
    memory = math.ceil(shards / nodes) * held * rates.width * BYTES_A_NUMBER
    return {
        "tokens": tokens,
        "chunks": chunks,
        "index_shards": shards,
        "visits": visits,
        "nodes": nodes,
        "memory_a_node": memory,
        "stages": stages,
        "wall_hours": sum(stage["wall_hours"] for stage in stages.values()),
    }


def _line(stage: str, small: BuiltSample, large: BuiltSample) -> tuple[float, float]:
    """Fixed seconds and seconds per chunk; if the larger sample was not slower, all of its time counts per chunk."""
    each = (large.seconds[stage] - small.seconds[stage]) / max(1, large.chunks - small.chunks)
    if each <= 0:
        each = large.seconds[stage] / large.chunks
    return max(0.0, large.seconds[stage] - each * large.chunks), each


def plan_text(found: Mapping) -> str:
    """The plan as a table."""
    lines = [
        f"{found['tokens']:.3g} tokens, {found['chunks']:,.0f} chunks, {found['index_shards']:,} index shards "
        f"of which a chunk visits {found['visits']:,.1f}, "
        f"{found['nodes']:,} nodes like this machine, {found['memory_a_node'] / 1e9:,.2f} GB of index a node",
        f"{'stage':<11}{'GB on disk':>14}{'node-hours':>16}{'wall hours':>14}",
    ]
    for stage, facts in found["stages"].items():
        lines.append(
            f"{stage:<11}{facts['bytes'] / 1e9:>14,.3f}{facts['node_hours']:>16,.3f}{facts['wall_hours']:>14,.3f}"
        )
    lines.append(f"{'all':<41}{found['wall_hours']:>14,.3f}")
    if "accelerator" in found:
        lines.append(
            f"embedding on {found['accelerator']}: at least {found['chip_hours']:,.3g} chip-hours (published rate, not "
            "measured)"
        )
    return "\n".join(lines)
