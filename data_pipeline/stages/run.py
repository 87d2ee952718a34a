"""Stages as maps over shards: atomic files, manifests, fingerprints, and runs that make only what is missing.

A stage owns one directory:

    plan.json           its config and the fingerprints of what it reads, written first
    FILES               each written under a temporary name, synced and renamed
    .parts/SHARD.json   checksums and counts of a shard, written after its files: a shard is complete iff this exists
    manifest.json       everything above, written last: a stage is complete iff this exists
    seconds.json        how long it took (not part of the result: the only file whose bytes may differ between runs)

Every byte except the seconds is a function of config and input, so a stage that was killed and run again ends with the
same bytes.
"""

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from data_pipeline.stages.engine import Engine, InProcess, Shard, current_engine
from retro_jax.core.files import DamagedFile, file_sha256, read_json, write_json
from retro_jax.core.files import atomic_path as atomic_path
from retro_jax.core.files import digest as fingerprint  # noqa: F401
from retro_jax.core.progress import progress
from retro_jax.data.manifests import REPAIR as REPAIR
from retro_jax.data.manifests import (
    File,
    Manifest,
    StageError,
    check_file,
    note,
    package_version,
    read_facts,
    read_manifest,
    read_seconds,
)
from retro_jax.data.manifests import require_fingerprint as require_fingerprint

PACKAGES = ("jax", "numpy", "scann", "sentencepiece", "tokenizers", "tensorflow-datasets", "array-record")


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
    before: Sequence[Sequence[Shard]] = (),
) -> Manifest:
    """Makes what is missing of a stage and returns its manifest.

    Args:
      directory: the stage's own directory.
      config: everything besides the inputs that the result depends on (plain JSON).
      inputs: fingerprints of the stages read.
      shards: the units of work, in order, or a function that returns them, for shards that depend on the content of the
        input; it is called only if the stage is incomplete. The current engine (`data_pipeline.stages.engine`) decides
        where shards are made.
      counts: counts known beforehand that belong in the manifest.
      last: a unit that reads the files of the others; made after them, in this process.
      prepare: makes input of the missing shards that no stage holds; called with up to `at_once` of them at a time.
      before: groups of units whose files the shards read; a group is made before the next one and before the shards.

    Raises:
      StageError: the directory holds this stage made from another config or input; nothing is changed.
    """
    directory = Path(directory)
    plan = json.loads(json.dumps({"stage": stage, "config": config, "inputs": dict(inputs)}))
    if not callable(shards):
        plan["shards"] = [shard.name for group in (*before, shards) for shard in group]
    if (manifest := _finished(directory, plan)) is not None:
        return manifest
    _refuse_another(directory, plan)
    started = time.monotonic()
    try:
        if callable(shards):
            shards = shards()
            plan["shards"] = [shard.name for group in (*before, shards) for shard in group]
        if read_plan(directory) != plan:
            write_json(directory / "plan.json", plan, seal=True)  # only now: input and settings have been checked
        with _counting(directory, started):
            parts = [part for group in before for part in make_missing(directory, group[0].name, group)]
            parts += make_missing(directory, stage, shards, unit=unit, prepare=prepare, at_once=at_once)
            if last is not None:
                parts += make_missing(directory, last.name, [last], engine=InProcess())
    except OSError as error:
        short_write = error.errno is None and "requested and" in str(error)  # NumPy's message; it sets no errno
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not short_write:
            raise
        raise StageError(
            f"The disk of {directory} is full ({error}). Free some space and run `retro build` again; finished shards are kept."
        ) from error
    total = dict(counts or {})
    for part in parts:
        for key, value in part["counts"].items():
            total[key] = add_counts(total.get(key), value)
    files = [file for part in parts for file in part["files"]]
    versions = {name: package_version(name) for name in PACKAGES}
    _add_seconds(directory, time.monotonic() - started)
    facts = {
        **{k: plan[k] for k in ("stage", "config", "inputs")},
        "versions": versions,
        "counts": total,
        "files": files,
    }
    write_json(directory / "manifest.json", facts, seal=True)
    return read_manifest(directory, stage, verify=False)


@contextmanager
def _counting(directory: Path, started: float) -> Iterator[None]:
    """Keeps the time of work that is interrupted; its finished shards stay too."""
    try:
        yield
    except BaseException:
        if something_made(directory):
            with suppress(OSError):
                _add_seconds(directory, time.monotonic() - started)
        raise


def _add_seconds(directory: Path, seconds: float) -> None:
    earlier = (read_seconds(directory) or 0.0) if (directory / "seconds.json").exists() else 0.0
    write_json(directory / "seconds.json", {"seconds": earlier + seconds})


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
    """Makes the missing shards and returns the facts of all, in order; the arguments are those of `run_stage`."""
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
                # Only this process writes it, so that a worker that seemed lost and its successor never write one file.
                write_json(_part_path(directory, chosen[number]), facts, seal=True)
                parts[batch[number]] = facts
                bar.update()
    _remove_unfinished(directory)
    return parts


def _remove_unfinished(directory: Path) -> None:
    """Removes the folders of shards whose process was killed or lost; they never hold a result."""
    for path in directory.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)


def _finished(directory: Path, plan: dict) -> Manifest | None:
    """The manifest of a finished stage with this plan, all files verified; None where something must be made.

    Damaged bookkeeping is written again and logged: plan.json here, manifest.json by the caller.
    """
    if not (directory / "manifest.json").exists():
        return None
    try:
        manifest = read_facts(directory)
    except StageError as error:
        note(str(error))
        return None
    found = read_plan(directory)
    there = {"stage": manifest.stage, "config": dict(manifest.config), "inputs": dict(manifest.inputs)}
    if found is None or not _same(found, there):  # the plan is damaged, not the stage
        found = there | {"shards": plan.get("shards") or order_of_parts(directory, manifest)}
        if _same(there, plan):
            note(f"{directory}/plan.json is damaged or missing; it is restored from manifest.json.")
            write_json(directory / "plan.json", found, seal=True)
    if not _same(found, plan):
        _raise_another(directory, found, plan)
    return read_manifest(directory, plan["stage"])


def _same(found: Mapping, plan: Mapping) -> bool:
    """Whether two plans agree in the keys that both have; shards may be unknown until the input is read."""
    return all(found[key] == plan[key] for key in {*found} & {*plan})


def order_of_parts(directory: Path, manifest: Manifest) -> list[str]:
    """Names of a finished stage's shards in the order of their files in the manifest; those without files follow."""
    place = {file.name: number for number, file in enumerate(manifest.files)}
    order = {}
    for path in sorted((directory / ".parts").glob("*.json")):
        try:
            files = read_json(path, "", keys=["files"])["files"]
            order[path.stem] = min([place[file["name"]] for file in files], default=len(place))
        except (DamagedFile, KeyError, TypeError):
            order[path.stem] = len(place)
    return sorted(order, key=order.get)


def read_plan(directory: Path) -> dict | None:
    """plan.json; None where it is missing or damaged."""
    try:
        return read_json(directory / "plan.json", "", keys=("stage", "config", "inputs", "shards"))
    except DamagedFile:
        return None


def check_claim(directory: Path, stage: str, config: Mapping, inputs: Mapping[str, str]) -> None:
    """Raises StageError where `directory` holds something made from another config; nothing is written.

    Args:
      config, inputs: the keys that are known before the earlier stages are made.
    """
    directory = Path(directory)
    found = read_plan(directory)
    if found is None or not something_made(directory):
        return
    wanted = json.loads(json.dumps({"stage": stage, "config": config, "inputs": dict(inputs)}))
    known = {part: {key: found[part].get(key) for key in wanted[part]} for part in ("config", "inputs")}
    if (there := {"stage": found["stage"], **known}) != wanted:
        _raise_another(directory, there, wanted)


def something_made(directory: Path) -> bool:
    """Whether the directory holds a shard or a finished stage."""
    return (directory / "manifest.json").exists() or any((directory / ".parts").glob("*.json"))


def _refuse_another(directory: Path, plan: dict) -> None:
    """Raises StageError where the directory has shards of another plan, or of one that can no longer be read."""
    if not any((directory / ".parts").glob("*.json")):
        return  # a first attempt failed, for example on a mistyped setting
    found = read_plan(directory)
    if found is None:
        raise StageError(
            f"{directory}/plan.json is missing or damaged, so the config of the shards in it is unknown. "
            f"Nothing was changed. Restore it from a copy, or move {directory} away and run the command again."
        )
    if not _same(found, plan):
        _raise_another(directory, found, plan)


def _raise_another(directory: Path, found: Mapping, plan: Mapping) -> None:
    known = {key: found[key] for key in plan}  # the shards only where they are known
    differing = ", ".join(_differences(known, plan)) or "its layout"
    raise StageError(
        f"{directory} holds the stage '{found.get('stage')}' made from another config or input; what differs: {differing}. "
        f"Nothing was changed. Use another --workdir, or move {directory} away and run the command again."
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
    """The facts of a finished shard, its files verified; None where it must be made. A damaged shard is logged."""
    path = _part_path(directory, shard)
    if not path.exists():
        return None
    try:
        facts = read_json(path, "", keys=("counts", "files"))
        for file in facts["files"]:
            check_file(directory, File(file["name"], file["bytes"], file["sha256"]), verify=True)
        return facts
    except (DamagedFile, StageError, KeyError, TypeError) as error:
        note(f"{str(error).partition('. ')[0]}; the shard {shard.name} of {directory} is made again.")
        return None


def _make_shard(directory: Path, shard: Shard, thing) -> dict:
    """Makes a shard in a folder of its own, renames its files into place and returns its facts."""
    temporary = directory / f".writing-{shard.name}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True)
    counts = dict(shard.make(temporary) if shard.resource is None else shard.make(temporary, thing))
    files, names = [], shard.files
    if names is None:
        names = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
    for name in names:
        source = temporary / name
        with open(source, "rb+") as file:
            os.fsync(file.fileno())
        files.append({"name": name, "bytes": source.stat().st_size, "sha256": file_sha256(source)})
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, directory / name)
    shutil.rmtree(temporary)
    return {"counts": counts, "files": files}


def add_counts(total, value):
    """Adds the counts of shards: numbers add up, maps add by key, anything else must be equal."""
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
