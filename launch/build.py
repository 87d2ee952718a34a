"""`retro build`: runs the stages of the data pipeline in order, each only as far as it is missing."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags

from launch.arguments import NOTHING_KEPT, Invocation, Verb
from launch.command import run_verb
from launch.config_files import data_directory
from retro_jax.config import RunConfig, to_dict
from retro_jax.core.streams import deliver


def _flags(values: flags.FlagValues) -> None:
    define = flags.DEFINE_enum
    define(
        "engine", "process", ("process", "ray"), "where shards are made: here, or on a Ray cluster", flag_values=values
    )
    define("accelerator", "none", ("none", "gpu", "tpu"), "what a Ray actor embeds on", flag_values=values)
    flags.DEFINE_string(
        "address", "auto", "HOST:PORT of the Ray cluster's head (docs/build_on_ray.md)", flag_values=values
    )
    flags.DEFINE_boolean("plan", False, "build nothing: what it would take, from a sample", flag_values=values)
    flags.DEFINE_float("plan_tokens", 0.0, "of the corpus to plan for; 0: the config's sources", flag_values=values)
    flags.DEFINE_integer("plan_nodes", 1, "machines like this one", flag_values=values)
    flags.DEFINE_string(
        "plan_accelerator", "", "embedding on this chip at its published rate, e.g. h100", flag_values=values
    )
    flags.DEFINE_boolean("json", False, "the plan as JSON", flag_values=values)


VERB = Verb(
    "build",
    "makes from text: documents, tokenizer, chunks, embeddings, index, neighbors and joined shards, under WORKDIR/data; "
    "does only what is missing",
    "--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke",
    define_flags=_flags,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run_verb(VERB, _build, argv)


def _build(invocation: Invocation) -> None:
    from data_pipeline.stages.lock import BuildLock

    values = invocation.flags
    check_flags(values)
    if values.plan:
        from data_pipeline.inputs import check_inputs
        from data_pipeline.plan import plan_text
        from launch.plan import make_plan

        try:
            check_inputs(invocation.run, invocation.data_directory)
            found = make_plan(invocation.run, values.plan_tokens, values.plan_nodes, values.plan_accelerator)
        except KeyboardInterrupt as interrupted:
            interrupted.kept = NOTHING_KEPT
            raise
        deliver(json.dumps(found) if values.json else plan_text(found))
        return
    with BuildLock(invocation.data_directory) as lock:
        if values.engine == "process":
            build(invocation.run, invocation.workdir)
            return
        from data_pipeline.stages.engine import using
        from data_pipeline.stages.ray import RayEngine

        with RayEngine(values.address, lock, values.accelerator) as engine, using(engine):
            build(invocation.run, invocation.workdir)


def check_flags(values: flags.FlagValues) -> None:
    """Raises ValueError where a flag would be ignored beside the others, or cannot be meant."""
    of_plan, of_ray = ("plan_tokens", "plan_nodes", "plan_accelerator", "json"), ("engine", "address", "accelerator")
    given = {name for name in (*of_plan, *of_ray) if values[name].value != values[name].default}
    if not values.plan and (extra := sorted(given & set(of_plan))):
        raise ValueError(f"--{extra[0]}={values[extra[0]].value} is of --plan; add --plan, or leave it out.")
    if values.plan and (extra := sorted(given & set(of_ray))):
        raise ValueError(
            f"--{extra[0]}={values[extra[0]].value} is of a build, but --plan measures in this process; leave one out."
        )
    if values.engine == "process" and given & {"address", "accelerator"}:
        raise ValueError(
            f"--address={values.address} and --accelerator={values.accelerator} are of --engine=ray, but --engine=process; "
            "add --engine=ray, or leave them out (in this process jax takes the accelerator it finds)."
        )
    if not 0 <= values.plan_tokens < math.inf or values.plan_nodes < 1:
        raise ValueError(
            f"A plan needs tokens and nodes, but got --plan_tokens={values.plan_tokens} and "
            f"--plan_nodes={values.plan_nodes}; take 1 or more (--plan_tokens=0: the config's sources)."
        )


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


if __name__ == "__main__":
    sys.exit(main())
