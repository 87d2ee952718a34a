"""The stages from text to joined shards, in order, once: what runs them, and what they say of themselves.

    build(run, workdir)         makes what is missing of WORKDIR/data
    stages(run, data)           {name: (directory, maker)}, in the order of the data

Nothing here imports jax before a stage runs.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from retro_jax.config import RunConfig, to_dict


def data_directory(run: RunConfig, workdir: Path) -> Path:
    """Where the stages of `retro build` are: config.data.directory, or WORKDIR/data where that is empty."""
    return Path(run.data.directory or Path(workdir) / "data")


def build(run: RunConfig, workdir: Path) -> dict[str, Mapping]:
    """Makes what is missing and prints a summary.

    Returns:
      Counts of every stage's manifest, by stage, each with "seconds" of work in all runs together.

    Raises:
      ValueError, StageError: see the stages; what is finished stays. Also one document, which has no neighbors.
    """
    from data_pipeline.inputs import check_inputs, check_plans
    from data_pipeline.search.neighbors import check_documents
    from data_pipeline.stages.run import read_seconds

    data = data_directory(run, workdir)
    rows, counts, started = [], {}, time.monotonic()
    check_inputs(run, data)
    made = stages(run, data)
    check_plans(run, {stage: directory for stage, (directory, _) in made.items()})
    for number, (stage, (directory, make)) in enumerate(made.items(), start=1):
        print(f"[{number}/{len(made)}] {stage}", file=sys.stderr, flush=True)
        before = time.monotonic()
        manifest = make(directory)
        seconds = read_seconds(directory) or 0.0
        counts[stage] = {**manifest.counts, "seconds": seconds}
        if stage == "documents" and not (made["neighbors"][0] / "manifest.json").exists():
            paths = [source.path for source in run.data.sources.values()]
            if note := check_documents(manifest.counts, paths, wanted=run.model.retrieves):
                print(f"note: {note}", file=sys.stderr, flush=True)
        rows.append((stage, describe(stage, manifest.counts, manifest.config), seconds, time.monotonic() - before))
    keep_config(run, made["joined"][0].parent)
    print(summary(rows, made["joined"][0].parent, time.monotonic() - started))
    return counts


def keep_config(run: RunConfig, data: Path) -> None:
    """Writes the resolved config beside the stages, where `retro database` finds it."""
    from retro_jax.core.files import DamagedFile, read_json, write_json

    path = data / "config.json"
    try:
        found = read_json(path, "")
    except DamagedFile:
        found = None
    if found != json.loads(json.dumps(to_dict(run))):
        write_json(path, to_dict(run), seal=True)


def stages(run: RunConfig, data: Path) -> dict[str, tuple[Path, Callable]]:
    """Directory and maker of each stage, in order. Imports wait until a stage runs: help and mistakes answer without jax."""
    from data_pipeline.chunks import ChunkTable, build_chunks
    from data_pipeline.documents.stage import build_documents
    from data_pipeline.encoder.bert import encoder_directory
    from data_pipeline.encoder.stage import build_embeddings
    from data_pipeline.joined import build_joined
    from data_pipeline.search.bm25 import build_lexical
    from data_pipeline.search.neighbors import NeighborTable, build_neighbors
    from data_pipeline.search.stage import build_index
    from data_pipeline.stages.run import require_fingerprint
    from data_pipeline.tokens import build_tokenizer

    config, model = run.data, run.model
    lexical = {"lexical"} if config.rerank == "bm25" else set()
    at = {name: data / name for name in ("documents", "tokenizer", "chunks", "embeddings", "lexical")}
    own = _view(data, config.database_fraction, [*at])
    at |= {name: own / name for name in ("index", "neighbors", "joined")}

    def embeddings(directory):
        return build_embeddings(directory, config, at["chunks"], at["tokenizer"], encoder_directory(config))

    def neighbors(directory):
        words = at["lexical"] if lexical else None
        return build_neighbors(directory, config, at["chunks"], at["embeddings"], at["index"], words)

    def joined(directory):
        table, found = ChunkTable(at["chunks"]), NeighborTable(at["neighbors"])
        require_fingerprint(
            f"table of chunks {at['chunks']} for {at['neighbors']}",
            table.fingerprint,
            found.inputs["chunks"],
            "Move the neighbors away and run `retro build` again.",
        )
        return build_joined(
            directory,
            table,
            found,
            sequence_length=model.sequence_length,
            vocabulary=model.vocabulary,
            shard_sequences=config.shard_sequences,
            inputs={"chunks": table.fingerprint, "neighbors": found.fingerprint},
        )

    make = {
        "documents": lambda directory: build_documents(directory, config, to_train=True),
        "tokenizer": lambda directory: build_tokenizer(directory, config, model.vocabulary, at["documents"]),
        "chunks": lambda directory: build_chunks(
            directory, config, model.chunk_length, at["documents"], at["tokenizer"]
        ),
        "embeddings": embeddings,
        "lexical": lambda directory: build_lexical(directory, at["chunks"], model.vocabulary),
        "index": lambda directory: build_index(directory, config, at["embeddings"], at["chunks"]),
        "neighbors": neighbors,
        "joined": joined,
    }
    return {name: (at[name], make[name]) for name in make if name != "lexical" or lexical}


def database_directory(data: Path, fraction: float) -> Path:
    """The data directory of a share of the database: one beside the stages of the whole (or `data`, which is one)."""
    name = f"subset-{fraction:g}"
    return data if fraction == 1 or data.name == name else data / name


def _view(data: Path, fraction: float, shared: Sequence[str]) -> Path:
    """Where index, neighbors and joined shards go: a share of the database has its own beside the rest, in a directory
    that is a data directory of its own (config.data.directory) by links to what all shares have in common."""
    view = database_directory(data, fraction)
    if view == data:
        return data
    view.mkdir(parents=True, exist_ok=True)
    for name in shared:
        if not (view / name).is_symlink():
            (view / name).symlink_to(Path("..") / name)
    return view


def describe(stage: str, counts: Mapping, config: Mapping) -> str:
    """What a finished stage holds, in a few words."""
    match stage:
        case "documents":
            subsets = counts["subsets"].values()
            held_out = sum(subset["validation"]["documents"] for subset in subsets)
            dropped = sum(sum(subset["dropped"].values()) for subset in subsets)
            return (
                f"{counts['documents']:,} documents of {len(counts['subsets'])} subsets ({held_out:,} held out), "
                f"{counts['bytes'] / 1e6:,.1f} MB; {dropped:,} dropped{_left_out(counts.get('source_files', {}))}"
            )
        case "tokenizer":
            return f"{counts['vocabulary']:,} pieces"
        case "chunks":
            return (
                f"{counts['chunks']:,} chunks of {counts['chunk_length']} tokens, {counts['database_chunks']:,} of them "
                f"the database"
            )
        case "embeddings":
            windows = counts.get("chunks_in_windows", 0)
            longer = f"; {windows:,} chunks longer than the encoder's positions, in windows" if windows else ""
            return f"{counts['chunks']:,} vectors of {counts['width']}{longer}"
        case "lexical":
            return f"frequencies of tokens in {counts['chunks']:,} chunks"
        case "index":
            return f"{counts['kind']}, recall@{counts['recall']['k']} {counts['recall']['value']:.3f}"
        case "neighbors":
            return _neighbors_found(counts, config["neighbors_stored"])
        case _:
            sequences = counts["sequences"]
            return (
                f"{sequences['train']:,} training and {sequences.get('validation', 0):,} validation sequences "
                f"of {config['sequence_length']}"
            )


def _neighbors_found(counts: Mapping, stored: int) -> str:
    chunks, missing = counts["chunks"], counts["missing"]
    if not missing:
        return f"{stored} found for each of {chunks:,} chunks"
    mean = stored - missing / chunks
    text = f"up to {stored} stored, {mean:.4g} found on average for each of {chunks:,} chunks"
    without = counts.get("without_neighbors", {})  # not counted by builds of before; in part where one was repaired
    counted = without.get("of") == chunks and without["chunks"]
    return f"{text}; {without['chunks']:,} chunks have none" if counted else text


def _left_out(files: Mapping) -> str:
    """Files of all sources that the documents stage did not read, by ending or reason."""
    numbers: dict[str, int] = {}
    for source in files.values():
        for reason, (count, _) in source["left_out"].items():
            numbers[reason] = numbers.get(reason, 0) + count
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(numbers.items()))
    return f"; left out {sum(numbers.values()):,} files: {reasons}" if numbers else ""


def summary(rows: Sequence[tuple[str, str, float, float]], data: Path, elapsed: float) -> str:
    """A table of stages: what each holds, the seconds it took to make, the seconds of this run."""
    width = max(len(text) for _, text, _, _ in rows)
    lines = [f"{'stage':<11}{'holds':<{width}}{'seconds':>10}{'now':>8}"]
    lines += [f"{stage:<11}{text:<{width}}{seconds:>10.1f}{now:>8.1f}" for stage, text, seconds, now in rows]
    return "\n".join(["", *lines, f"{data} is complete; this run took {elapsed:.1f} s."])
