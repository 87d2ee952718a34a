"""Verifies the files of a finished database, finds the damaged shards, and prepares their repair.

Files: every checksum, every manifest against its parts, every stage against its input stages.
Content (check_content): rows of the chunks decode to their documents, so that the row after a chunk is its
continuation; no neighbor is of its query's document, by id or by text, and every stored distance fits the vectors;
a sample is embedded again, and a sample of queries searched exactly.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.database.changed import addition_directories
from data_pipeline.stages.known import STAGES, made_with_additions
from data_pipeline.stages.run import add_counts, order_of_parts
from retro_jax.core.files import DamagedFile, file_sha256, read_json
from retro_jax.core.progress import progress
from retro_jax.data.manifests import KEYS, StageError, database_of, has_other_database, read_facts, stage_fingerprint


def stages_of(data: Path) -> list[str]:
    """The stages that the build in `data` has, in order."""
    return [stage.name for stage in STAGES.values() if stage.there(Path(data))]


@dataclass(frozen=True)
class Damage:
    """A damage of a stage; `shard` is what to redo: its name, MANIFEST, PLAN, or ALL of the stage."""

    stage: str
    shard: str
    what: str

    def __str__(self) -> str:
        files = {name: f"rewrite {name}" for name in (MANIFEST, PLAN)}
        redo = {**files, ALL: "redo the full stage"}.get(self.shard, f"redo {self.shard}")
        return f"{self.stage}: {self.what} -> {redo}"


MANIFEST, PLAN, ALL = "manifest.json", "plan.json", "*"


def check_stage(data: Path, stage: str, fingerprints: Mapping[str, str]) -> tuple[list[Damage], str | None]:
    """Checks every file of a stage.

    Args:
      fingerprints: of the stages before it, if they are intact.

    Returns:
      The damages, and the fingerprint of the intact stage (None if unknown).
    """
    directory = Path(data) / stage
    plan, damages = _read(directory / "plan.json", ("stage", "config", "inputs", "shards")), []
    if plan is None:
        try:
            made = read_facts(directory)
        except StageError:
            return [Damage(stage, ALL, f"{directory}/plan.json and manifest.json are missing or unreadable")], None
        damages.append(Damage(stage, PLAN, "plan.json is missing or unreadable"))
        plan = {"stage": made.stage, "config": made.config, "inputs": made.inputs}
        plan["shards"] = order_of_parts(directory, made)
    if stale := [name for name, found in plan["inputs"].items() if fingerprints.get(name, found) != found]:
        return [Damage(stage, ALL, f"it was made from another '{', '.join(stale)}' than there is")], None
    files, counts = [], {}
    more = sorted(
        {path.stem for path in (directory / ".parts").glob("*.json")} - set(plan["shards"])
    )  # made after them
    for shard in progress([*plan["shards"], *more], description=f"verify {stage}", unit="shard"):
        part = _read(directory / ".parts" / f"{shard}.json", ("counts", "files"))
        if part is None:
            damages.append(Damage(stage, shard, f".parts/{shard}.json is missing or unreadable"))
            continue
        damages += [Damage(stage, shard, wrong) for file in part["files"] if (wrong := _wrong(directory, file))]
        files += part["files"]
        for key, value in part["counts"].items():
            counts[key] = add_counts(counts.get(key), value)
    manifest = _read(directory / "manifest.json", KEYS)
    if manifest is None:
        return [*damages, Damage(stage, MANIFEST, "manifest.json is missing or unreadable")], None
    whole = {key: plan[key] for key in ("stage", "config", "inputs")}
    whole |= {"counts": {**manifest["counts"], **counts}, "files": files}
    if not damages and (wrong := [key for key, value in whole.items() if manifest[key] != value]):
        damages.append(Damage(stage, MANIFEST, f"manifest.json does not fit the shards: other {', '.join(wrong)}"))
    return damages, None if damages else stage_fingerprint(whole)


def check_files(data: Path) -> list[Damage]:
    """`check_stage` of all stages; additions' stages are named by their folders."""
    made = inputs_of_database(data)
    damages = _check_stages(data, stages_of(data), "", made)
    of_the_build = {"tokenizer": "tokenizer", "router": "index"}  # input of an addition's stages: stage
    for directory in addition_directories(data):
        inputs = {name: made[stage] for name, stage in of_the_build.items() if stage in made}
        damages += _check_stages(data, made_with_additions(), f"{directory.relative_to(data)}/", inputs)
    return damages


def inputs_of_database(data: Path) -> dict[str, str]:
    """Fingerprints of the database of another build that `data` searches, as it is now, by the names of a stage's inputs.

    Its own files are checked where it is.
    """
    if not has_other_database(data):
        return {}
    other = database_of(data)
    names = [name for name in ("documents", "tokenizer", "chunks", "lexical", "index") if (other / name).is_dir()]
    return {f"{name} of the database": read_facts(other / name).fingerprint for name in names}


def _check_stages(data: Path, stages, folder: str, fingerprints: dict[str, str]) -> list[Damage]:
    damages = []
    for stage in stages:
        found, made = check_stage(data, f"{folder}{stage}", fingerprints)
        damages += found
        if made:
            fingerprints[stage] = made
    return damages


def _read(path: Path, keys: Sequence[str]) -> dict | None:
    """A JSON object with these keys; None if it is missing or altered."""
    try:
        return read_json(path, "", keys=keys)
    except DamagedFile:
        return None


def _wrong(directory: Path, file: Mapping) -> str:
    """The damage of a file; empty if there is none."""
    path = directory / file["name"]
    if not path.is_file():
        return f"{file['name']} is missing" if not path.exists() else f"{file['name']} is a folder"
    if (size := path.stat().st_size) != file["bytes"]:
        return f"{file['name']} has {size:,} bytes instead of {file['bytes']:,}"
    if file_sha256(path) != file["sha256"]:
        return f"{file['name']} was altered (other sha256)"
    return ""


def set_up_repair(data: Path, stage: str, damages: list[Damage]) -> str | None:
    """Removes damaged shards from a stage's records, so that making the stage redoes only these.

    Shard files stay until new ones replace them. A stage that must be redone in full is moved aside, not deleted.

    Returns:
      The place it was moved to.
    """
    directory = Path(data) / stage
    if any(damage.shard == ALL for damage in damages):
        if not directory.exists():
            return None
        number = sum(1 for _ in directory.parent.glob(f"{directory.name}.damaged-*"))
        aside = directory.with_name(f"{directory.name}.damaged-{number}")
        directory.rename(aside)
        return str(aside)
    for damage in damages:
        if damage.shard not in (MANIFEST, PLAN):
            _take(directory / ".parts" / f"{damage.shard}.json")
    if any(damage.shard != PLAN for damage in damages):
        _take(directory / MANIFEST)
    return None


def _take(path: Path) -> None:
    """Removes a record file; a folder of that name is moved aside."""
    if path.is_dir():
        path.rename(path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}"))
    path.unlink(missing_ok=True)
