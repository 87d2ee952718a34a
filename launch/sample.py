"""`retro sample`: continues a prompt, retrieves after every full chunk and lists the documents used."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from data_pipeline.pipeline import data_directory
from data_pipeline.stages.run import read_manifest, require_fingerprint
from launch.command.arguments import NOTHING_KEPT, Invocation, Verb
from launch.command.run import run_verb
from retro_jax.config import ModelConfig, RunConfig, at_run_time
from retro_jax.core.streams import deliver
from retro_jax.parallel.hosts import require_one_process
from retro_jax.run_directory.places import model_directory


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("prompt", None, "the text to continue; it may be empty", flag_values=values)
    flags.DEFINE_enum("retrieval", "on", ["on", "off"], "off skips the database", flag_values=values)


VERB = Verb(
    "sample",
    "continues a prompt with the model trained in WORKDIR; retrieves after every full chunk and lists the documents "
    "used",
    '--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke --prompt="Permission is hereby granted"',
    define_flags=_define_flags,
    writes=False,
    reads_run=True,
    interrupted=NOTHING_KEPT,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run_verb(VERB, _sample, argv)


def _sample(invocation: Invocation) -> None:
    require_one_process("sample")
    values = invocation.flags
    if values.prompt is None:
        raise ValueError('--prompt is missing; for example --prompt="Permission is hereby granted" (it may be empty).')
    retrieval = values.retrieval == "on"
    unused = [key for key in invocation.given if key in ("model.neighbors", "data.encoder", "data.encoder_dtype")]
    if not retrieval and unused:
        raise ValueError(
            f"--retrieval=off reads no neighbors, so --config.{unused[0]} would change nothing; remove one."
        )
    if values["retrieval"].present and retrieval:
        require_retrieval(invocation.run, invocation.workdir)
    deliver(continue_text(invocation.run, invocation.workdir, values.prompt, retrieval))


def require_retrieval(run: RunConfig, workdir: Path) -> None:
    """Raises ValueError where --retrieval=on was asked for, but the model reads no neighbors."""
    if not run.model.retrieves or not run.model.neighbors:
        what = "config.model.neighbors=0" if run.model.retrieves else "no retrieval layers (a baseline)"
        raise ValueError(
            f"--retrieval=on, but the model in {model_directory(workdir)} has {what}; leave out one of them."
        )


def continue_text(run: RunConfig, workdir: Path, prompt: str, retrieval: bool) -> str:
    """The prompt with its continuation, then the sources of each chunk, as the terminal shows them.

    Raises:
      ValueError, StageError: see `open_model`, or settings outside their range.
    """
    from retro_jax.core.progress import progress
    from retro_jax.generate.sampling import check_settings, sample

    check_settings(run.sample)
    opened = open_model(run, workdir, retrieval, "sample")
    with progress(description="sample", total=run.sample.tokens, unit="token") as bar:
        drawn = sample(
            opened.model,
            opened.params,
            opened.tokenizer,
            prompt,
            run.sample,
            opened.retriever,
            lambda count: bar.update(count - bar.n),
        )
    return describe(drawn, opened.tokenizer, opened.model.chunk_length, opened.retriever is not None)


@dataclass(frozen=True)
class Opened:
    """A trained model with what it reads text with.

    Attributes:
      retriever: `data_pipeline.database.retriever.Retriever`; None with retrieval off, or where the model reads no neighbors.
      step: of the checkpoint.
    """

    model: ModelConfig
    params: dict
    tokenizer: Any
    retriever: Any
    step: int


def open_model(run: RunConfig, workdir: Path, retrieval: bool, verb: str) -> Opened:
    """The newest model of a work directory, its tokenizer and, with retrieval, its database.

    Args:
      verb: opens the line on standard error that names the database.

    Raises:
      ValueError, StageError: no trained model, or a tokenizer or database other than those it was trained with.
    """
    from data_pipeline.database.retriever import Retriever
    from data_pipeline.tokens import Tokenizer
    from retro_jax.models.kernels.known import check_attention
    from retro_jax.models.placement import ONE_DEVICE
    from retro_jax.run_directory.checkpoints import load_fingerprints, load_params

    directory, data = model_directory(workdir), data_directory(run, workdir)
    params, trained, step = load_params(directory)
    model = at_run_time(trained.model, run.model, directory)
    check_attention(model, ONE_DEVICE.platform, ONE_DEVICE.chip)
    tokenizer = Tokenizer(data / "tokenizer")
    expected = load_fingerprints(directory, step)
    remedy = (
        f"{directory} (step {step}) was trained with the other one: point to its data with --config.data.directory."
    )
    require_fingerprint(f"tokenizer in {data}", tokenizer.fingerprint, expected["tokenizer"], remedy)
    retriever = None
    if retrieval and model.retrieves and model.neighbors:
        from data_pipeline.search.neighbors import NeighborTable

        database = NeighborTable(data / "neighbors").fingerprint
        # A model that was fine-tuned on questions belongs to no database.
        require_fingerprint(f"database in {data}", database, expected.get("database", database), remedy)
        stored = read_manifest(data / "neighbors", "neighbors", verify=False).config["neighbors_stored"]
        check_neighbors(model.neighbors, stored, data)
        retriever = Retriever(data, run.data)
        print(f"{verb}: {retriever.database.describe()}", file=sys.stderr)
    return Opened(model, params, tokenizer, retriever, step)


def check_neighbors(neighbors: int, stored: int, data: Path) -> None:
    """Raises ValueError where a model asks for more neighbors than the search was measured for."""
    if neighbors > stored:
        raise ValueError(
            f"config.model.neighbors={neighbors}, but the database in {data} finds {stored} neighbors a chunk; its recall "
            f"is not known for more. Lower it, or build with --config.data.neighbors_stored={neighbors} in another "
            f"--workdir."
        )


def describe(drawn, tokenizer, chunk_length: int, retrieval: bool) -> str:
    """The text, an empty line, and the neighbors of each full chunk."""
    lines = [drawn.prompt + drawn.continuation, ""]
    if not retrieval:
        return "\n".join([*lines, "(retrieval off: no document was used)"])
    if not drawn.retrieved:
        return "\n".join([*lines, f"(no chunk of {chunk_length} tokens was full, so nothing was retrieved)"])
    lines.append("Retrieved after each full chunk, and read from then on (squared distance, subset, document):")
    for number, found in enumerate(drawn.retrieved):
        text = " ".join(tokenizer.decode(drawn.tokens[number * chunk_length : (number + 1) * chunk_length]).split())
        lines.append(f"  chunk {number + 1}: {text[:70]}{'…' if len(text) > 70 else ''}")
        for distance, (subset, name) in zip(found.distances, found.sources, strict=False):
            lines.append(f"    {distance:.3f}  {subset}: {name}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
