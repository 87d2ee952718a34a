"""Stages as maps over shards: atomic files, manifests, fingerprints, re-runs that do only what is missing.

A stage owns one directory:

    plan.json           its config and the fingerprints of what it reads, written first
    FILES               each written under a temporary name, synced and renamed
    .parts/SHARD.json   checksums and counts of a shard, written after its files: a shard is whole iff this exists
    manifest.json       everything above, written last: a stage is whole iff this exists
    seconds.json        how long it took (not part of the result: the only file whose bytes may differ between runs)

Every byte but the seconds is a function of config and input, so a killed and repeated stage ends as an undisturbed one.
"""

import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from data_pipeline.engine import Engine, InProcess, Shard, current_engine
from retro_jax.progress import progress

PACKAGES = ("jax", "numpy", "scann", "sentencepiece", "tokenizers", "tensorflow-datasets", "array-record")


class StageError(ValueError):
    """A stage's input or output is not what it must be; the message names both sides and the remedy."""


@dataclass(frozen=True)
class File:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished stage made of what. `fingerprint` covers all but the library versions."""

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
        return fingerprint(facts)


def fingerprint(facts) -> str:
    """SHA-256 of the canonical JSON of `facts`, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, facts) -> None:
    """Writes JSON atomically: a reader sees the old file or the new one, whole."""
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


class atomic_path:
    """`with atomic_path(path) as temporary: write(temporary)`: synced and renamed to `path` on success only."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.writing")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind, value, traceback):
        if kind is None:
            with open(self.temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)
        return False


def read_manifest(directory: Path, stage: str, *, verify: bool = True) -> Manifest:
    """The manifest of a finished stage, its files checked.

    Args:
      verify: recompute checksums too (sizes are always compared).

    Raises:
      StageError: no manifest (with the command that makes it), another stage, or a missing, short or altered file.
    """
    directory = Path(directory)
    path = directory / "manifest.json"
    if not path.exists():
        state = "is half-written" if (directory / "plan.json").exists() else "is not there"
        raise StageError(
            f"The stage '{stage}' in {directory} {state}: it has no manifest.json. Run `retro build` again with the same config and --workdir; it continues where it stopped."
        )
    try:
        facts = json.loads(path.read_text())
    except ValueError as error:
        raise StageError(
            f"{path} is no JSON ({error}), so it was not written by this program. Remove it, and run `retro build` again: it is made anew from {directory}/.parts."
        ) from None
    if facts["stage"] != stage:
        raise StageError(
            f"{directory} holds the stage '{facts['stage']}', but '{stage}' is needed. Point to the directory of '{stage}'."
        )
    files = tuple(File(**file) for file in facts.pop("files"))
    manifest = Manifest(**facts, files=files)
    for file in files:
        check_file(directory, file, verify=verify)
    return manifest


def check_file(directory: Path, file: File, *, verify: bool) -> None:
    path = Path(directory) / file.name
    if not path.exists():
        raise StageError(
            f"{path} is missing, but {directory}/manifest.json lists it. Remove {directory}/manifest.json and {directory}/.parts, and run `retro build` again to make it anew."
        )
    size = path.stat().st_size
    if size != file.bytes:
        raise StageError(
            f"{path} is truncated or grown: it has {size:,} bytes, but the manifest says {file.bytes:,}. Remove it with {directory}/manifest.json and {directory}/.parts, and run `retro build` again."
        )
    if verify and (found := file_sha256(path)) != file.sha256:
        raise StageError(
            f"{path} was altered: its sha256 is {found[:16]}…, but the manifest says {file.sha256[:16]}…. Remove it with {directory}/manifest.json and {directory}/.parts, and run `retro build` again."
        )


def require_fingerprint(name: str, found: str, expected: str, remedy: str) -> None:
    """Raises StageError where an artifact is not the one that its reader was made with."""
    if found != expected:
        raise StageError(
            f"The {name} does not match: found fingerprint {found[:16]}…, but {expected[:16]}… is expected. {remedy}"
        )


def run_stage(
    directory: Path,
    stage: str,
    config: Mapping,
    inputs: Mapping[str, str],
    shards: Sequence[Shard] | Callable[[], Sequence[Shard]],
    *,
    unit: str = "shard",
    counts: Mapping | None = None,
    last: Shard | None = None,
    prepare: Callable[[Sequence[Shard]], None] | None = None,
    at_once: int = 0,
) -> Manifest:
    """Makes what is missing of a stage and returns its manifest.

    Args:
      directory: the stage's own directory.
      config: everything besides the inputs that the result depends on (plain JSON).
      inputs: fingerprints of the stages read.
      shards: the units of work, in order; the engine in use (`data_pipeline.engine`) decides where they are made. A
        function that gives them where they follow from what it reads first; it is called only if the stage is not whole.
      counts: facts known beforehand that belong into the manifest.
      last: a unit that reads the files of the others; made after them, here.
      prepare: makes what missing shards read and no other stage holds; called with up to `at_once` of them at a time.

    Raises:
      StageError: the directory holds this stage made from another config or input; nothing is touched.
    """
    directory = Path(directory)
    plan = json.loads(json.dumps({"stage": stage, "config": config, "inputs": dict(inputs)}))
    plan["shards"] = _planned(directory) if callable(shards) else [shard.name for shard in shards]
    _claim(directory, stage, plan)
    if (directory / "manifest.json").exists():
        return read_manifest(directory, stage)
    started = time.monotonic()
    try:
        if callable(shards):
            shards = shards()
            write_json(directory / "plan.json", plan | {"shards": [shard.name for shard in shards]})
        parts = make_missing(directory, stage, shards, unit=unit, prepare=prepare, at_once=at_once)
        if last is not None:
            parts += make_missing(directory, last.name, [last], engine=InProcess())
    except OSError as error:
        short_write = error.errno is None and "requested and" in str(error)  # NumPy's words; it gives no number
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not short_write:
            raise
        raise StageError(
            f"The disk of {directory} is full ({error}). Free some space and run `retro build` again; whole shards stay and the rest is made."
        ) from error
    total = dict(counts or {})
    for part in parts:
        for key, value in part["counts"].items():
            total[key] = add_counts(total.get(key), value)
    files = [file for part in parts for file in part["files"]]
    versions = {name: package_version(name) for name in PACKAGES}
    earlier = (
        json.loads((directory / "seconds.json").read_text())["seconds"]
        if (directory / "seconds.json").exists()
        else 0.0
    )
    write_json(directory / "seconds.json", {"seconds": earlier + time.monotonic() - started})
    write_json(
        directory / "manifest.json",
        {**{k: plan[k] for k in ("stage", "config", "inputs")}, "versions": versions, "counts": total, "files": files},
    )
    return read_manifest(directory, stage, verify=False)


def make_missing(
    directory: Path,
    description: str,
    shards: Sequence[Shard],
    *,
    unit: str = "shard",
    prepare: Callable[[Sequence[Shard]], None] | None = None,
    at_once: int = 0,
    engine: Engine | None = None,
) -> list[Mapping]:
    """Facts of every shard, in order, made where they are missing; the arguments are those of `run_stage`."""
    _remove_unfinished(directory)
    parts = [_read_part(directory, shard) for shard in shards]
    missing = [number for number, part in enumerate(parts) if part is None]
    size = at_once or max(1, len(missing))
    with progress(description=description, total=len(shards), unit=unit) as bar:
        bar.update(len(shards) - len(missing))
        for batch in (missing[start : start + size] for start in range(0, len(missing), size)):
            chosen = [shards[number] for number in batch]
            if prepare is not None:
                prepare(chosen)
            for number, facts in (engine or current_engine()).map(partial(_make_shard, directory), chosen):
                # Written here alone, so that a worker thought lost and its successor never write one file at once.
                write_json(_part_path(directory, chosen[number]), facts)
                parts[batch[number]] = facts
                bar.update()
    _remove_unfinished(directory)
    return parts


def _remove_unfinished(directory: Path) -> None:
    """Folders of shards that were being made by a process that was killed or lost; never a result."""
    for path in directory.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)


def _planned(directory: Path) -> list[str]:
    """Names of the shards in the plan there; none where they are not known yet."""
    path = directory / "plan.json"
    return json.loads(path.read_text())["shards"] if path.exists() else []


def _claim(directory: Path, stage: str, plan: dict) -> None:
    """Writes plan.json, or checks that the one there is this plan. A plan of which nothing was made yet is replaced."""
    path = directory / "plan.json"
    if not path.exists():
        write_json(path, plan)
        return
    found = json.loads(path.read_text())
    if found == plan:
        return
    if not _something_made(directory):
        write_json(path, plan)  # a first attempt failed, for example on a file that has been mended since
        return
    raise _other_plan(directory, found, plan)


def check_claim(directory: Path, stage: str, config: Mapping, inputs: Mapping[str, str]) -> None:
    """Raises StageError where something was made in `directory` from another config; nothing is written.

    Args:
      config, inputs: of these the keys that are known before the stages before it are made.
    """
    directory = Path(directory)
    if not (directory / "plan.json").exists() or not _something_made(directory):
        return
    found = json.loads((directory / "plan.json").read_text())
    wanted = json.loads(json.dumps({"stage": stage, "config": config, "inputs": dict(inputs)}))
    known = {part: {key: found.get(part, {}).get(key) for key in wanted[part]} for part in ("config", "inputs")}
    if (there := {"stage": found.get("stage"), **known}) != wanted:
        raise _other_plan(directory, there, wanted)


def _something_made(directory: Path) -> bool:
    return (directory / "manifest.json").exists() or any((directory / ".parts").glob("*.json"))


def _other_plan(directory: Path, found: Mapping, plan: Mapping) -> StageError:
    differing = ", ".join(_differences(found, plan)) or "its layout"
    return StageError(
        f"{directory} holds the stage '{found.get('stage')}' made from another config or input; what differs: {differing}. "
        f"Nothing was changed. Use another --workdir, or move {directory} away yourself to have it made anew."
    )


def _differences(found, wanted, where="") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(set(found) | set(wanted))
        return [
            line
            for key in keys
            for line in _differences(found.get(key), wanted.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if found == wanted else [f"{where} (there {found!r:.60}, now {wanted!r:.60})"]


def _part_path(directory: Path, shard: Shard) -> Path:
    return directory / ".parts" / f"{shard.name}.json"


def _read_part(directory: Path, shard: Shard) -> dict | None:
    """The facts of a whole shard; None where it is to be made."""
    path = _part_path(directory, shard)
    if not path.exists():
        return None
    facts = json.loads(path.read_text())
    paths = [(directory / file["name"], file["bytes"]) for file in facts["files"]]
    return facts if all(path.exists() and path.stat().st_size == size for path, size in paths) else None


def _make_shard(directory: Path, shard: Shard, thing) -> dict:
    """Makes a shard in a folder of its own, renames its files into place and returns its facts."""
    temporary = directory / f".writing-{shard.name}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True)
    counts = dict(shard.make(temporary) if shard.resource is None else shard.make(temporary, thing))
    files = []
    for name in shard.files:
        source = temporary / name
        with open(source, "rb+") as file:
            os.fsync(file.fileno())
        files.append({"name": name, "bytes": source.stat().st_size, "sha256": file_sha256(source)})
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, directory / name)
    shutil.rmtree(temporary)
    return {"counts": counts, "files": files}


def add_counts(total, value):
    """Counts of shards together: numbers add, maps add by key, anything else must be equal."""
    if total is None:
        return value
    if isinstance(value, Mapping):
        return {
            key: add_counts(total.get(key), value[key]) if key in value else total[key] for key in {**total, **value}
        }
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if total != value:
            raise StageError(f"Shards of one stage disagree: {total!r} and {value!r}.")
        return value
    return total + value


def package_version(package: str) -> str:
    """The installed version; "absent" where there is none that says so."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
