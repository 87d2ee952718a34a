"""What a finished stage of `retro build` says of itself in manifest.json, read and checked.

`data_pipeline.stages.run` writes it.
"""

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from retro_jax.core.files import DamagedFile, digest, known_sha256, read_json

REPAIR = (
    "`retro database verify --repair` with the --config and --workdir of the build makes that file again and leaves the "
    "rest as it is."
)
NOTES = ("source_files", "without_neighbors")  # counts that say something to people and decide nothing
KEYS = ("stage", "config", "inputs", "versions", "counts", "files")  # of a manifest


class StageError(ValueError):
    """A stage's input or output is not what it must be; the message names both sides and the remedy."""


@dataclass(frozen=True)
class File:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished stage made of what. `fingerprint` covers all but the library versions and NOTES."""

    stage: str
    config: Mapping
    inputs: Mapping[str, str]  # name of the input stage -> its fingerprint
    versions: Mapping[str, str]
    counts: Mapping  # whatever the stage counted, summed over shards where it is a number
    files: tuple[File, ...]

    @property
    def fingerprint(self) -> str:
        facts = asdict(self)
        del facts["versions"]
        return stage_fingerprint(facts)


def stage_fingerprint(facts: Mapping) -> str:
    """The fingerprint of a stage's config, inputs, counts and files. Notes for people are no part of it: which files of a
    source were left out may change while nothing that is read does, and builds of before have none."""
    counts = {key: value for key, value in facts["counts"].items() if key not in NOTES}
    return digest({**facts, "counts": counts})


def read_manifest(directory: Path, stage: str, *, verify: bool = True) -> Manifest:
    """The manifest of a finished stage, its files checked.

    Args:
      verify: recompute checksums too (sizes are always compared).

    Raises:
      StageError: no manifest (with the command that makes it), another stage, or a missing, short or altered file.
    """
    directory = Path(directory)
    manifest = read_facts(directory)
    if manifest.stage != stage:
        raise StageError(
            f"{directory} holds the stage '{manifest.stage}', but '{stage}' is needed. Point to the directory of '{stage}'."
        )
    for file in manifest.files:
        check_file(directory, file, verify=verify)
    return manifest


def read_facts(directory: Path) -> Manifest:
    """What manifest.json says, its files not looked at; StageError where it is missing or damaged."""
    path = directory / "manifest.json"
    if not path.exists():
        state = "is half-written" if (directory / "plan.json").exists() else "is not there"
        raise StageError(
            f"The stage '{directory.name}' in {directory} {state}: it has no manifest.json. Run `retro build` again with the same config and --workdir; it continues where it stopped."
        )
    remedy = f"`retro build` again, with the same config and --workdir, writes it anew from {directory}/.parts."
    try:
        facts = read_json(path, remedy, keys=KEYS)
        files = tuple(File(file["name"], file["bytes"], file["sha256"]) for file in facts["files"])
        return Manifest(**{key: facts[key] for key in KEYS[:-1]}, files=files)
    except DamagedFile as error:
        raise StageError(str(error)) from None
    except (KeyError, TypeError) as error:
        raise StageError(f"{path} lists its files in another form than ours ({error!r}). {remedy}") from None


def made_stages(data: Path) -> list[str]:
    """Names of the finished stages in a data directory, a stage after its inputs, else by name."""
    inputs = {}
    for path in sorted(Path(data).glob("*/manifest.json")):
        try:
            facts = read_json(path, "", keys=("stage", "inputs"))
        except DamagedFile:
            facts = {"stage": path.parent.name, "inputs": {}}
        if facts["stage"] == path.parent.name:  # and not a stage that was moved aside
            inputs[path.parent.name] = set(facts["inputs"])
    order: list[str] = []
    while left := [name for name in inputs if name not in order]:
        ready = [name for name in left if not inputs[name] & set(left)]
        order.append((ready or left)[0])
    return order


def check_file(directory: Path, file: File, *, verify: bool) -> None:
    """Raises StageError where a file is not what its manifest says."""
    path = Path(directory) / file.name
    if not path.is_file():
        raise StageError(
            f"{path} is {'a folder' if path.is_dir() else 'missing'}, but {directory}/manifest.json lists it as a file. {REPAIR}"
        )
    size = path.stat().st_size
    if size != file.bytes:
        raise StageError(
            f"{path} is truncated or grown: it has {size:,} bytes, but the manifest says {file.bytes:,}. {REPAIR}"
        )
    if verify and (found := known_sha256(path)) != file.sha256:
        raise StageError(
            f"{path} was altered: its sha256 is {found[:16]}…, but the manifest says {file.sha256[:16]}…. {REPAIR}"
        )


def read_seconds(directory: Path) -> float | None:
    """The work that a stage took; None, with a line on standard error, where its seconds.json is missing or damaged."""
    try:
        return float(read_json(Path(directory) / "seconds.json", "The time is not known.", keys=["seconds"])["seconds"])
    except (DamagedFile, TypeError, ValueError) as error:
        note(str(error))
        return None


def note(text: str) -> None:
    """A line on standard error: something was damaged and is done without or made again."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def require_fingerprint(name: str, found: str, expected: str, remedy: str) -> None:
    """Raises StageError where an artifact is not the one that its reader was made with."""
    if found != expected:
        raise StageError(
            f"The {name} does not match: found fingerprint {found[:16]}…, but {expected[:16]}… is expected. {remedy}"
        )


def package_version(package: str) -> str:
    """The installed version; "absent" where there is none that says so."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
