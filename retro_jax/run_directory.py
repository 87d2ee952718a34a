"""A run directory's own facts: the config it belongs to, what it reads, which versions made it.

config.json    the resolved config        metrics.jsonl, events.*   metrics.py
versions.json  packages, git revision     checkpoints/              checkpoints.py
               and data fingerprints      seconds.json              clock.py
hosts/, stall-*.txt   watchdog.py         profile/                  a trace, where asked for
"""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from data_pipeline.manifests import read_manifest, require_fingerprint, write_json
from retro_jax.checkpoints import differing_fields
from retro_jax.config import ModelConfig, RunConfig, completed, to_dict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def data_directory(run: RunConfig, workdir: Path) -> Path:
    """Where the stages of `retro build` are.

    Raises:
      ValueError: not there.
    """
    directory = Path(run.data.directory or Path(workdir) / "data")
    if not (directory / "joined").is_dir():
        raise ValueError(
            f"There are no joined shards in {directory}; run `retro build --workdir={workdir} --config=...` first, or "
            f"point to them with --config.data.directory=DIRECTORY (the one that holds joined/ and tokenizer/)."
        )
    return directory


def fingerprints(data: Path) -> dict[str, str]:
    """What a run's numbers depend on besides its config: tokenizer, database with its neighbors, joined shards.

    Raises:
      StageError: an unfinished stage, or shards cut with another tokenizer than the one beside them.
    """
    joined = read_manifest(data / "joined", "joined", verify=False)
    tokenizer = read_manifest(data / "tokenizer", "tokenizer", verify=False)
    if (data / "chunks" / "manifest.json").exists():
        chunks = read_manifest(data / "chunks", "chunks", verify=False)
        require_fingerprint(
            "chunks stage", chunks.fingerprint, joined.inputs["chunks"], f"{data} mixes two builds; build it anew."
        )
        require_fingerprint(
            "tokenizer", tokenizer.fingerprint, chunks.inputs["tokenizer"], f"{data} mixes two builds; build it anew."
        )
    return {
        "tokenizer": tokenizer.fingerprint,
        "database": joined.inputs["neighbors"],
        "joined": joined.fingerprint,
    }


def token_bytes(data: Path, model: ModelConfig) -> Int[np.ndarray, "V"]:
    """UTF-8 bytes that each entry of the vocabulary stands for.

    Raises:
      ValueError: the model has another vocabulary than the tokenizer.
    """
    table = np.load(data / "tokenizer" / "token_bytes.npy", allow_pickle=False)
    if len(table) != model.vocabulary:
        raise ValueError(
            f"The model's vocabulary is that of the tokenizer, but config.model.vocabulary={model.vocabulary} and "
            f"{data}/tokenizer has {len(table)} pieces; set --config.model.vocabulary={len(table)}."
        )
    return table


def identity(run: RunConfig, fingerprints: Mapping[str, str]) -> dict:
    """What a checkpoint carries to be refused by another run."""
    config = to_dict(run)
    return {"config": {name: config[name] for name in ("model", "train")}, "fingerprints": dict(fingerprints)}


def claim(workdir: Path, run: RunConfig, fingerprints: Mapping[str, str]) -> None:
    """Writes config.json and versions.json, or refuses a directory of another run.

    Raises:
      ValueError: the directory belongs to another config; every differing field is named, and nothing is touched.
    """
    wanted = json.loads(json.dumps(to_dict(run)))
    path = workdir / "config.json"
    if path.exists():
        found = completed(json.loads(path.read_text()))
        fields = [
            line for name in ("model", "train") for line in differing_fields(found[name], wanted[name], f"{name}.")
        ]
        if fields:
            raise ValueError(
                f"{workdir} belongs to a run with another config: {'; '.join(fields)}. Nothing was changed. "
                f"Use another --workdir, or the config it was started with ({path})."
            )
    elif workdir.is_dir() and (workdir / "checkpoints").exists():
        raise ValueError(f"{workdir} has checkpoints but no config.json; use another --workdir.")
    write_json(path, wanted)
    write_json(workdir / "versions.json", versions() | {"fingerprints": dict(fingerprints)})


def versions() -> dict:
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
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
        return subprocess.run(["git", "-C", source, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
