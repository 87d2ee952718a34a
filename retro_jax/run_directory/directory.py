"""The files that identify a run: its config, the fingerprints of its data, and the versions that made it.

config.json    the resolved config        metrics.jsonl, events.*   metrics.py
versions.json  packages, git revision     checkpoints/              checkpoints.py
               and data fingerprints      seconds.json              clock.py
hosts/, stall-*.txt   watchdog.py         saved.json                restart.py
profile/              a trace, if asked   train.lock                lock.py
imported.json, origin.json  origin.py

NAME.damaged-N is a damaged file that was replaced; before.restart-N/ holds what `--restart` moved aside.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from retro_jax.config import ModelConfig, RunConfig, completed, resolve, to_dict
from retro_jax.core.files import load_array, write_json
from retro_jax.core.side_files import read_object, set_aside
from retro_jax.data.manifests import REPAIR, package_version, read_manifest, require_fingerprint
from retro_jax.run_directory.identity import differing_fields
from retro_jax.run_directory.origin import note_origin
from retro_jax.run_directory.plain_path import require_path
from retro_jax.run_directory.restart import begin_notes, signs_of_progress

REWRITE = "The `retro train` command of the run rewrites it if a whole checkpoint has that config."
QUESTIONS = "questions"  # the stage that shards of questions are made of
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def data_directory(run: RunConfig, workdir: Path) -> Path:
    """The directory of the stages of `retro build`.

    Raises:
      ValueError: it does not exist.
    """
    directory = Path(run.data.directory or Path(workdir) / "data")
    if not (directory / "joined").is_dir():
        raise ValueError(
            f"There are no joined shards in {directory}; run `retro build --workdir={workdir} --config=...` first, or "
            f"point to them with --config.data.directory=DIRECTORY (the one that holds joined/ and tokenizer/)."
        )
    require_path(directory, "config.data.directory" if run.data.directory else "--workdir")
    return directory


def fingerprints(data: Path) -> dict[str, str]:
    """Fingerprints of the data that a run depends on: tokenizer, database with neighbors, joined shards.

    Shards of questions hold passages of no database: they have "questions" in its place.

    Raises:
      StageError: an unfinished stage, or shards cut with another tokenizer than the one beside them.
    """
    joined = read_manifest(data / "joined", "joined", verify=False)
    tokenizer = read_manifest(data / "tokenizer", "tokenizer", verify=False)
    if (data / "chunks" / "manifest.json").exists():
        chunks = read_manifest(data / "chunks", "chunks", verify=False)
        require_fingerprint(
            "chunks stage", chunks.fingerprint, joined.inputs["chunks"], f"{data} mixes two builds; build it again."
        )
        require_fingerprint(
            "tokenizer", tokenizer.fingerprint, chunks.inputs["tokenizer"], f"{data} mixes two builds; build it again."
        )
    if QUESTIONS in joined.inputs:
        require_fingerprint(
            "tokenizer", tokenizer.fingerprint, joined.inputs["tokenizer"], f"Join the questions of {data} again."
        )
        made_of = {QUESTIONS: joined.inputs[QUESTIONS]}
    else:
        made_of = {"database": joined.inputs["neighbors"]}
    return {"tokenizer": tokenizer.fingerprint, **made_of, "joined": joined.fingerprint}


def token_bytes(data: Path, model: ModelConfig) -> Int[np.ndarray, "V"]:
    """The UTF-8 bytes of each entry of the vocabulary.

    Raises:
      ValueError: the model has another vocabulary than the tokenizer, or the file is not the one that the stage wrote.
    """
    read_manifest(data / "tokenizer", "tokenizer")  # checks the file's SHA-256: its numbers decide the bits per byte
    table = load_array(data / "tokenizer" / "token_bytes.npy", REPAIR)
    if len(table) != model.vocabulary:
        raise ValueError(
            f"The model's vocabulary is that of the tokenizer, but config.model.vocabulary={model.vocabulary} and "
            f"{data}/tokenizer has {len(table)} pieces; set --config.model.vocabulary={len(table)}."
        )
    return table


def identity(run: RunConfig, fingerprints: Mapping[str, str]) -> dict:
    """The identity that a checkpoint stores, so that another run refuses it."""
    config = to_dict(run)
    return {"config": {name: config[name] for name in ("model", "train")}, "fingerprints": dict(fingerprints)}


def check_claim(workdir: Path, run: RunConfig) -> None:
    """Raises ValueError for a directory of another run; writes nothing.

    A config without any record or checkpoint may be replaced. A config.json that is damaged
    or lost does not matter: the checkpoints name the config that they belong to.

    Raises:
      ValueError: the directory belongs to another config; every differing field is named, and nothing is touched.
    """
    _require_kinds(workdir)
    wanted = json.loads(json.dumps(to_dict(run)))
    try:
        found = _read_sections(workdir / "config.json") or wanted
    except ValueError:
        return  # `claim` renames it
    fields = [line for name in ("model", "train") for line in differing_fields(found[name], wanted[name], f"{name}.")]
    if fields and signs_of_progress(workdir, 0):
        raise ValueError(
            f"{workdir} belongs to a run with another config: {'; '.join(fields)}. Nothing was changed. "
            f"Use another --workdir, or the config it was started with ({workdir / 'config.json'})."
        )


def begun_scan(workdir: Path) -> bool | None:
    """config.model.scan of the run in a directory where it is no "auto", as in those of earlier versions."""
    try:
        found = _read_sections(workdir / "config.json")
    except ValueError:
        return None
    scan = found["model"].get("scan") if found else None
    return scan if isinstance(scan, bool) else None


def _read_sections(path: Path) -> dict | None:
    """config.json with the keys added since it was written; None where there is none.

    Raises:
      ValueError: it is damaged.
    """
    found = read_object(path)
    try:
        found = completed(found) if found is not None else None
        if found is not None and not all(isinstance(found.get(name), dict) for name in ("model", "train")):
            raise TypeError("no sections model and train")
    except TypeError as error:
        raise ValueError(f"{path} is damaged ({error}).") from None
    return found


def _require_kinds(workdir: Path) -> None:
    """Raises ValueError where a folder has the name of one of our files, or a file that of a folder."""
    for name in ("config.json", "versions.json", "seconds.json", "saved.json", "metrics.jsonl"):
        if (path := workdir / name).is_dir():
            raise ValueError(f"{path} must be a file, but is a folder; move it away or use another --workdir.")
    if (path := workdir / "checkpoints").exists() and not path.is_dir():
        raise ValueError(f"{path} must be a folder, but is a file; move it away or use another --workdir.")


def claim(workdir: Path, run: RunConfig, fingerprints: Mapping[str, str], step: int = 0) -> None:
    """Writes config.json, versions.json and, if missing, saved.json; called after all checks have passed.

    Args:
      step: of the checkpoint that the run continues from.
    """
    path = workdir / "config.json"
    try:
        if _read_sections(path) is None and step:
            print(
                f"train: {path} was lost; it is written from the config given, that of the checkpoint.", file=sys.stderr
            )
    except ValueError as error:
        set_aside(path, str(error), "it is written from the config given" + ", that of the checkpoint" * bool(step))
    write_json(path, to_dict(run))
    write_json(workdir / "versions.json", versions() | {"fingerprints": dict(fingerprints)})
    begin_notes(workdir, step)
    note_origin(workdir, run.train.initialize_from)


def read_config(run_directory: Path) -> RunConfig:
    """The config a run directory was made with.

    Raises:
      ValueError: it has none that can be read.
    """
    path = Path(run_directory) / "config.json"
    try:
        found = read_object(path)
    except ValueError as error:
        raise ValueError(f"{error} {REWRITE}") from None
    if found is None:
        raise ValueError(
            f"{run_directory} is not a run directory: it has no config.json. Train there first with "
            f"`retro train --workdir={run_directory} --config=...`, or give another directory."
        )
    try:
        return resolve(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def versions() -> dict:
    packages = {name: package_version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {
        "packages": packages,
        "python": platform.python_version(),
        "git_revision": git_revision(),
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "processes": jax.process_count(),
    }


def git_revision() -> str:
    """The commit of this source, with "+changes" where the tree differs from it; "unknown" outside of git."""
    source = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", source, *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return "unknown"
