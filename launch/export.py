"""`retro export`: a run's model as safetensors with config, tokenizer and model card."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_pipeline.pipeline import data_directory
from data_pipeline.stages.run import require_fingerprint
from launch.command.arguments import Invocation, Verb
from launch.command.run import run_verb
from retro_jax.core.files import write_json
from retro_jax.core.paths import local_folder, require_writable
from retro_jax.run_directory.places import model_directory

DTYPES = ("float32", "bfloat16", "float16")
COPIED = ("tokenizer.model", "tokenizer.json", "special_tokens.json")


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("to", None, "a new directory", flag_values=values)
    flags.DEFINE_enum(
        "dtype", "float32", DTYPES, "type of the numbers; float32 keeps every bit, the others round", flag_values=values
    )
    flags.DEFINE_integer("step", None, "a checkpoint of the run; without it, the newest", flag_values=values)


VERB = Verb(
    "export",
    "writes the model trained in WORKDIR as safetensors with config.json, tokenizer and model card; `retro import` reads it",
    "--workdir=runs/quickstart-smoke --to=runs/exported",
    define_flags=_define_flags,
    needs_config=False,
    writes=False,
    interrupted="The directory is not complete; remove it and run the same command again.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run_verb(VERB, _export, argv)


def _export(invocation: Invocation) -> None:
    values, workdir = invocation.flags, invocation.workdir
    if not values.to:
        raise ValueError(f"--to is missing. For example: retro export {VERB.example}")
    to = local_folder(values.to, "--to")
    if to.exists() and any(to.iterdir()):
        raise ValueError(f"--to={to} is not empty; give a new directory.")
    require_writable(to, "--to")
    from data_pipeline.tokens import Tokenizer
    from retro_jax.core.files import read_json
    from retro_jax.interchange.architectures import architecture_of
    from retro_jax.interchange.exporting import export_model
    from retro_jax.interchange.model_card import model_card
    from retro_jax.run_directory.checkpoints import load_fingerprints, load_params
    from retro_jax.run_directory.origin import ORIGIN, RECORD, origin_of

    directory = model_directory(workdir)
    params, run, step = load_params(directory, values.step)
    data = data_directory(run, workdir)
    tokenizer = Tokenizer(data / "tokenizer")
    require_fingerprint(
        f"tokenizer in {data}",
        tokenizer.fingerprint,
        load_fingerprints(directory, step)["tokenizer"],
        f"{directory} (step {step}) was trained with the other one.",
    )
    imported = directory / RECORD
    origin = read_json(imported, "Import it again.") if imported.is_file() else {}
    special = {"bos": tokenizer.bos, "eos": tokenizer.eos}
    architecture = architecture_of(run.model, origin.get("architecture", ""))
    card = model_card(run, step, directory, workdir, architecture, values.dtype)  # before anything is written
    to.mkdir(parents=True, exist_ok=True)
    positions = origin.get("max_position_embeddings")
    export_model(to, run.model, params, special, values.dtype, architecture, positions=positions)
    _copy_tokenizer(data / "tokenizer", to, special)
    (to / "README.md").write_text(card, encoding="utf-8")
    if origin:
        write_json(to / RECORD, origin)
    elif start := origin_of(directory):
        write_json(to / ORIGIN, start)
    print(f"{to} holds step {step} as {architecture} in {values.dtype}.")


def _copy_tokenizer(stage: Path, to: Path, special: dict) -> None:
    """The tokenizer's files, and for a tokenizer.json the names of its special tokens as transformers reads them."""
    for name in COPIED:
        if (stage / name).is_file():
            shutil.copyfile(stage / name, to / name)
    if (to / "tokenizer.json").is_file():
        from retro_jax.core.files import read_json

        tokens = {one["id"]: one["content"] for one in read_json(to / "tokenizer.json", "")["added_tokens"]}
        facts = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        named = {f"{kind}_token": tokens[id] for kind, id in special.items() if id in tokens}
        write_json(to / "tokenizer_config.json", {**facts, **named})


if __name__ == "__main__":
    sys.exit(main())
