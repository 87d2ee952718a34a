"""`retro import`: a model of another project as a run directory."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch.command import processes
from launch.command.arguments import Invocation, Verb
from retro_jax.config import DataConfig
from retro_jax.core.paths import local_path
from retro_jax.parallel.roll_call import leave_together


def _define_flags(values: flags.FlagValues) -> None:
    processes.define_flags(values)
    flags.DEFINE_string(
        "path", None, "a directory with config.json and safetensors, or a .gguf file", flag_values=values
    )
    flags.DEFINE_integer(
        "length", 0, "tokens of a sequence; 0: as many as the model takes, up to 2048", flag_values=values
    )


VERB = Verb(
    "import",
    "makes a run directory of a model of another project: Llama, Mistral, Qwen2, Qwen3, SmolLM as safetensors or GGUF, or an "
    "export of ours",
    "--path=smollm2-135m --workdir=runs/smollm2",
    define_flags=_define_flags,
    needs_config=False,
    interrupted="The same command starts from the beginning.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return processes.run_together(VERB, _import, argv)


def _import(invocation: Invocation) -> None:
    values = invocation.flags
    if not values.path:
        raise ValueError(f"--path is missing. For example: retro import {VERB.example}")
    if values.length < 0:
        raise ValueError(f"--length={values.length} must be a number of tokens, or 0 for as many as the model takes.")
    processes.check_flags(values)
    processes.start_processes(values)
    text = import_model(local_path(values.path, "--path"), invocation.workdir, values.length)
    leave_together()
    if text:
        print(text)


def import_model(path: Path, workdir: Path, length: int = 0) -> str:
    """Makes a run directory of a model; all processes call it. Returns what was made as text, on process 0.

    Args:
      length: tokens of a sequence; 0: as many as the model takes, up to 2,048.

    Raises:
      ValueError: a model that is not supported, not whole or not finite, or a directory that holds a run.
    """
    import jax

    from retro_jax.core.lock import lock_directory
    from retro_jax.interchange.importing import open_model
    from retro_jax.interchange.saving import require_empty, run_of, save
    from retro_jax.parallel.agreement import on_first

    first = jax.process_index() == 0
    on_first(lambda: require_empty(workdir))
    source = open_model(path, length)
    run_of(source)
    lock = lock_directory(workdir, "import")
    on_first(lock.acquire)
    try:
        name, fingerprint = on_first(lambda: _check_and_build_tokenizer(source, workdir))
        save(source, workdir, fingerprint)
    finally:
        if first:
            lock.release()
    if not first:
        return ""
    return (
        f"{workdir} holds {source.architecture} with {source.model.layers} layers and its tokenizer. Build data for it with "
        f"--config.data.tokenizer={workdir}/data/tokenizer/{name}; docs/guides/interchange.md goes on from there."
    )


def _check_and_build_tokenizer(source, workdir: Path) -> tuple[str, str]:
    """The name of the tokenizer's file and the fingerprint of its stage; all checks come before it is written."""
    from retro_jax.interchange.importing import check

    with tempfile.TemporaryDirectory(prefix="retro-import-") as folder:
        given = tokenizer_of(source, Path(folder))
        check(source)
        return given.name, _build_tokenizer(workdir, given, source.model.vocabulary)


def tokenizer_of(source, folder: Path) -> Path:
    """The file for config.data.tokenizer, checked against the model.

    Args:
      source: `retro_jax.interchange.importing.Source`.
      folder: where the tokenizer of a GGUF file is written.

    Raises:
      ValueError, StageError: no tokenizer that can be read, or one of another model.
    """
    from data_pipeline import byte_level
    from data_pipeline.tokens import MODEL, read_given

    if source.tokenizer is not None:
        content, special = source.tokenizer
        path = folder / byte_level.FILE
        path.write_bytes(content)
        path.with_name(byte_level.SPECIAL).write_bytes(byte_level.special_file(byte_level.Special(**special)))
    else:
        there = [source.path / name for name in (byte_level.FILE, MODEL) if (source.path / name).is_file()]
        if not there:
            raise ValueError(
                f"{source.path} has no tokenizer ({byte_level.FILE} or {MODEL}), without which a model reads no text. Fetch it."
            )
        path = there[0]
    try:
        found = read_given(DataConfig(tokenizer=str(path)), source.model.vocabulary)
    except ValueError:
        if path.name != byte_level.FILE or not (path.with_name(MODEL)).is_file():
            raise
        path = path.with_name(MODEL)  # Llama 2 and Mistral: tokenizer.json is a copy of the SentencePiece model
        found = read_given(DataConfig(tokenizer=str(path)), source.model.vocabulary)
    for kind, token in (("bos", found.bos), ("eos", found.eos)):
        wanted = source.config.get(f"{kind}_token_id")
        wanted = wanted if isinstance(wanted, list) else [wanted] if wanted is not None else []
        if wanted and token not in wanted and not (kind == "bos" and token == found.eos):
            raise ValueError(
                f"{path} has {kind.upper()} {token}, but the model's config says {wanted[0]}: the tokenizer does not belong "
                f"to this model. Fetch both from one place."
            )
    return path


def _build_tokenizer(workdir: Path, given: Path, vocabulary: int) -> str:
    """Makes the stage DATA/tokenizer and returns its fingerprint."""
    from data_pipeline.tokens import build_tokenizer

    data = DataConfig(tokenizer=str(given))
    return build_tokenizer(workdir / "data" / "tokenizer", data, vocabulary, workdir / "data" / "documents").fingerprint


if __name__ == "__main__":
    sys.exit(main())
