"""`retro build`: runs the stages of the data pipeline in order, each only as far as it is missing."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch.command import Invocation, Verb, data_directory, run_verb
from retro_jax.config import RunConfig

VERB = Verb(
    "build",
    "makes from text: documents, tokenizer, chunks, embeddings, index, neighbors and joined shards, under WORKDIR/data; "
    "does only what is missing",
    "--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run_verb(VERB, _build, argv)


def _build(invocation: Invocation) -> None:
    build(invocation.run, invocation.workdir)


def build(run: RunConfig, workdir: Path) -> dict[str, Mapping]:
    """Makes what is missing and prints a summary.

    Returns:
      Counts of every stage's manifest, by stage, each with "seconds" of work in all runs together.

    Raises:
      ValueError, StageError: see the stages; what is finished stays.
    """
    data = data_directory(run, workdir)
    rows, counts, started = [], {}, time.monotonic()
    for number, (stage, make) in enumerate(_stages(run, data).items(), start=1):
        print(f"[{number}/7] {stage}", file=sys.stderr, flush=True)
        before = time.monotonic()
        manifest = make()
        seconds = json.loads((data / stage / "seconds.json").read_text())["seconds"]
        counts[stage] = {**manifest.counts, "seconds": seconds}
        rows.append((stage, describe(stage, manifest.counts, manifest.config), seconds, time.monotonic() - before))
    print(summary(rows, data, time.monotonic() - started))
    return counts


def _stages(run: RunConfig, data: Path) -> dict[str, Callable]:
    """What makes each stage, in order. Imports wait until a stage runs: help and mistakes answer without jax."""
    from data_pipeline.chunks import ChunkTable, build_chunks
    from data_pipeline.documents import build_documents
    from data_pipeline.embeddings import build_embeddings
    from data_pipeline.index import build_index
    from data_pipeline.joined import build_joined
    from data_pipeline.manifests import require_fingerprint
    from data_pipeline.neighbors import NeighborTable, build_neighbors
    from data_pipeline.packages import encoder_directory
    from data_pipeline.tokens import build_tokenizer

    config, model = run.data, run.model
    at = {name: data / name for name in ("documents", "tokenizer", "chunks", "embeddings", "index", "neighbors")}

    def embeddings():
        encoder = Path(config.encoder) if config.encoder else encoder_directory()
        return build_embeddings(at["embeddings"], config, at["chunks"], at["tokenizer"], encoder)

    def joined():
        table, neighbors = ChunkTable(at["chunks"]), NeighborTable(at["neighbors"])
        require_fingerprint(
            f"table of chunks {at['chunks']} for {at['neighbors']}",
            table.fingerprint,
            neighbors.inputs["chunks"],
            "Move the neighbors away and run `retro build` again.",
        )
        return build_joined(
            data / "joined",
            table,
            neighbors,
            sequence_length=model.sequence_length,
            vocabulary=model.vocabulary,
            shard_sequences=config.shard_sequences,
            inputs={"chunks": table.fingerprint, "neighbors": neighbors.fingerprint},
        )

    return {
        "documents": lambda: build_documents(at["documents"], config),
        "tokenizer": lambda: build_tokenizer(at["tokenizer"], config, model.vocabulary, at["documents"]),
        "chunks": lambda: build_chunks(at["chunks"], config, model.chunk_length, at["documents"], at["tokenizer"]),
        "embeddings": embeddings,
        "index": lambda: build_index(at["index"], config, at["embeddings"]),
        "neighbors": lambda: build_neighbors(at["neighbors"], config, at["chunks"], at["embeddings"], at["index"]),
        "joined": joined,
    }


def describe(stage: str, counts: Mapping, config: Mapping) -> str:
    """What a finished stage holds, in a few words."""
    match stage:
        case "documents":
            subsets = counts["subsets"].values()
            held_out = sum(subset["validation"]["documents"] for subset in subsets)
            dropped = sum(sum(subset["dropped"].values()) for subset in subsets)
            return (
                f"{counts['documents']:,} documents of {len(counts['subsets'])} subsets ({held_out:,} held out), "
                f"{counts['bytes'] / 1e6:,.1f} MB; {dropped:,} dropped"
            )
        case "tokenizer":
            return f"{counts['vocabulary']:,} pieces"
        case "chunks":
            return (
                f"{counts['chunks']:,} chunks of {counts['chunk_length']} tokens, {counts['database_chunks']:,} of them "
                f"the database"
            )
        case "embeddings":
            return f"{counts['chunks']:,} vectors of {counts['width']}"
        case "index":
            return f"{counts['kind']}, recall@{counts['recall']['k']} {counts['recall']['value']:.3f}"
        case "neighbors":
            return f"{config['neighbors_stored']} for each of {counts['chunks']:,} chunks"
        case _:
            sequences = counts["sequences"]
            return (
                f"{sequences['train']:,} training and {sequences.get('validation', 0):,} validation sequences "
                f"of {config['sequence_length']}"
            )


def summary(rows: Sequence[tuple[str, str, float, float]], data: Path, elapsed: float) -> str:
    """A table of stages: what each holds, the seconds it took to make, the seconds of this run."""
    width = max(len(text) for _, text, _, _ in rows)
    lines = [f"{'stage':<11}{'holds':<{width}}{'seconds':>10}{'now':>8}"]
    lines += [f"{stage:<11}{text:<{width}}{seconds:>10.1f}{now:>8.1f}" for stage, text, seconds, now in rows]
    return "\n".join(["", *lines, f"{data} is complete; this run took {elapsed:.1f} s."])


if __name__ == "__main__":
    sys.exit(main())
