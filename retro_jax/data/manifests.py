"""Reads and checks manifest.json, which describes a finished stage of `retro build`.

`data_pipeline.stages.run` writes it.
"""

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from retro_jax.core.files import DamagedFile, digest, known_sha256, read_json

REPAIR = (
    "`retro database verify --repair` with the --config and --workdir of the build rewrites that file and changes nothing "
    "else."
)
DATABASE = "database"  # in a data directory: a link to the one whose database its build searched (config.data.database)
NOTES = ("source_files", "without_neighbors")  # counts for people only; no part of the fingerprint
KEYS = ("stage", "config", "inputs", "versions", "counts", "files")  # of a manifest


class StageError(ValueError):
    """A stage's input or output is missing, damaged or of another build; the message names both sides and the remedy."""


@dataclass(frozen=True)
class File:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The description of a finished stage. `fingerprint` covers all but the library versions and NOTES."""

    stage: str
    config: Mapping
    inputs: Mapping[str, str]  # name of the input stage -> its fingerprint
    versions: Mapping[str, str]
    counts: Mapping  # the stage's own counts; numbers are summed over shards
    files: tuple[File, ...]

    @property
    def fingerprint(self) -> str:
        facts = asdict(self)
        del facts["versions"]
        return stage_fingerprint(facts)


def stage_fingerprint(facts: Mapping) -> str:
    """The fingerprint of a stage's config, inputs, counts and files. It excludes NOTES: the files that a
    source leaves out may change without a change of its input, and builds of earlier versions have no such notes."""
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
    """The manifest without a check of its files; StageError if it is missing or damaged."""
    path = directory / "manifest.json"
    if not path.exists():
        state = "is half-written" if (directory / "plan.json").exists() else "does not exist"
        raise StageError(
            f"The stage '{directory.name}' in {directory} {state}: it has no manifest.json. Run `retro build` again with the same config and --workdir; it continues where it stopped."
        )
    remedy = f"`retro build` again, with the same config and --workdir, rewrites it from {directory}/.parts."
    try:
        facts = read_json(path, remedy, keys=KEYS)
        files = tuple(File(file["name"], file["bytes"], file["sha256"]) for file in facts["files"])
        return Manifest(**{key: facts[key] for key in KEYS[:-1]}, files=files)
    except DamagedFile as error:
        raise StageError(str(error)) from None
    except (KeyError, TypeError) as error:
        raise StageError(f"{path} lists its files in an unknown form ({error!r}). {remedy}") from None


def has_other_database(data: Path) -> bool:
    """Whether the neighbors of a build come from the database of another one (config.data.database)."""
    link = Path(data) / DATABASE
    return link.is_symlink() or link.exists()


def database_of(data: Path) -> Path:
    """The data directory of the database that the neighbors of a build come from: its own, or the one that it links to.

    Raises:
      StageError: the other one is not there.
    """
    link = Path(data) / DATABASE
    if not has_other_database(data):
        return Path(data)
    if not (link / "chunks").is_dir():
        raise StageError(
            f"The neighbors of {data} come from the database {link.resolve()}, which is not there. Bring it back, or give its "
            f"new place to `retro build` with the same config and --config.data.database=PLACE."
        )
    return link.resolve()


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
    """Raises StageError where a file differs from its manifest."""
    path = Path(directory) / file.name
    if not path.is_file():
        raise StageError(
            f"{path} is {'a folder' if path.is_dir() else 'missing'}, but {directory}/manifest.json lists it as a file. {REPAIR}"
        )
    size = path.stat().st_size
    if size != file.bytes:
        raise StageError(
            f"{path} is truncated or extended: it has {size:,} bytes, but the manifest says {file.bytes:,}. {REPAIR}"
        )
    if verify and (found := known_sha256(path)) != file.sha256:
        raise StageError(
            f"{path} was altered: its sha256 is {found[:16]}…, but the manifest says {file.sha256[:16]}…. {REPAIR}"
        )


def read_seconds(directory: Path) -> float | None:
    """Seconds of work of a stage; None, with a warning, if its seconds.json is missing or damaged."""
    try:
        return float(read_json(Path(directory) / "seconds.json", "Its time is unknown.", keys=["seconds"])["seconds"])
    except (DamagedFile, TypeError, ValueError) as error:
        note(str(error))
        return None


def note(text: str) -> None:
    """Logs that something was damaged, and what happens instead."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def require_fingerprint(name: str, found: str, expected: str, remedy: str) -> None:
    """Raises StageError where an artifact's fingerprint differs from the expected one."""
    if found != expected:
        raise StageError(
            f"The {name} does not match: found fingerprint {found[:16]}…, but {expected[:16]}… is expected. {remedy}"
        )


def package_version(package: str) -> str:
    """The installed version; "absent" if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
