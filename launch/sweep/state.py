"""What is finished of a sweep, what failed, and who works on what.

WORKDIR/sweep.json         the plan, and the config that identifies the sweep
WORKDIR/state/TASK.json    how a task ended: done with its digest, or failed with its exit code and last line
WORKDIR/state/TASK.lock    held by the process that works on it, on any machine that shares the storage and its locks
WORKDIR/logs/TASK.log      what the task printed
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launch.sweep.plan import Plan, Task
from retro_jax.config import completed
from retro_jax.core.files import DamagedFile, file_sha256, read_json, write_json
from retro_jax.core.lock import Busy, FileLock
from retro_jax.core.side_files import free_name
from retro_jax.data.manifests import StageError, read_manifest
from retro_jax.run_directory.identity import differing_fields
from retro_jax.run_directory.whole import find_fault

REMEDY = "Move it away; the same command writes it again."
OF_RUNS = (
    "checkpoints",
    "results.json",
    "retro",
    "baseline",
    "data/documents",
)  # in a work directory that is no sweep's
HELD_OUT = "held_out"  # its neighbors are searched by the evaluation itself
SECTIONS = ("model", "train", "data")  # of the config that identifies a sweep
PAUSE = 0.1  # seconds between two tries to write
PLACE = "data.directory"  # may change: a database can be moved


def state_path(workdir: Path, key: str) -> Path:
    return workdir / "state" / f"{key}.json"


def log_path(workdir: Path, key: str) -> Path:
    return workdir / "logs" / f"{key}.log"


def claim(workdir: Path, key: str) -> FileLock:
    """The lock of a task."""
    rule = f"One process at a time may work on {key} of {workdir}"
    return FileLock(workdir / "state" / f"{key}.lock", rule, "Wait for it.")


@contextmanager
def one_at_a_time(workdir: Path, key: str = "sweep") -> Iterator[FileLock]:
    """Waits while another process works on a task, or (on "sweep") writes the plan or the results."""
    lock = claim(workdir, key)
    while True:
        try:
            lock.acquire()
            break
        except Busy:
            time.sleep(PAUSE)
    try:
        yield lock
    finally:
        lock.release()


def read_state(workdir: Path, key: str) -> dict:
    """How a task ended; empty where it did not, or where the file is damaged."""
    try:
        return read_json(state_path(workdir, key), "", keys=("state",))
    except DamagedFile:
        return {}


def is_done(workdir: Path, task: Task, checksums: bool = True) -> bool:
    """Whether a task has nothing left to do.

    Args:
      checksums: compare those of a checkpoint too.
    """
    if task.step.verb == "train":
        return find_fault(task.directory / "checkpoints" / str(task.run.train.steps), checksums=checksums) is None
    state = read_state(workdir, task.key)
    if state.get("state") != "done" or state.get("digest") != task.digest:
        return False
    later = _later(task)
    return state.get("result") == _result(task) and state.get("later", later) == later


def _later(task: Task) -> list:
    """What results of an evaluation depend on besides its digest: their format, and what was done to the data since their build.

    Joined sets, additions and removals.
    """
    if "data" not in task.links:
        return []
    from retro_jax.evaluate.results import FORMAT  # here: it imports jax, for which --help need not wait

    data, removed = task.links["data"], task.links["data"] / "removed.json"
    names = [sorted(path.name for path in (data / name).glob("*")) for name in ("evaluation", "additions")]
    names[0] = [] if task.run.evaluate.sets else [name for name in names[0] if name != HELD_OUT]
    return [FORMAT, *names, file_sha256(removed) if removed.exists() else ""]


def _result(task: Task) -> str | None:
    """What identifies the result of a build or an evaluation; None where there is none."""
    try:
        if task.step.verb == "build":
            return read_manifest(task.directory / "joined", "joined", verify=False).fingerprint
        return file_sha256(task.directory / "results.json")
    except (StageError, OSError):
        return None


def write_done(workdir: Path, task: Task) -> None:
    found = {"state": "done", "digest": task.digest, "result": _result(task), "later": _later(task)}
    write_json(state_path(workdir, task.key), found)


def write_failed(workdir: Path, task: Task, code: int) -> dict:
    """Notes that a task failed; returns the note."""
    log = log_path(workdir, task.key)
    found = {"state": "failed", "digest": task.digest, "code": code, "line": last_line(log), "log": str(log)}
    write_json(state_path(workdir, task.key), found)
    return found


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - 65_536))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:500] for line in reversed(lines) if line.strip() and not line.startswith("$ ")), "")


def make_links(task: Task) -> None:
    """Links a point's work directory to its data and models.

    Raises:
      ValueError: something else has the name of a link.
    """
    task.directory.mkdir(parents=True, exist_ok=True)
    for name in ("data", "retro", "baseline"):
        link, target = task.directory / name, task.links.get(name)
        if link.exists() and not link.is_symlink():
            raise ValueError(f"{link} must be a link that the sweep makes, but is a folder or file; move it away.")
        if target is None:
            link.unlink(missing_ok=True)
            continue
        inside = target.is_relative_to(task.directory.parents[1])  # of the sweep, which may be moved
        wanted = Path(os.path.relpath(target, task.directory)) if inside else target.absolute()
        if link.is_symlink() and Path(os.readlink(link)) == wanted:
            continue
        temporary = free_name(link, "new")
        temporary.symlink_to(wanted)
        os.replace(temporary, link)


def check_identity(plan: Plan) -> dict[str, list[str]]:
    """{"new", "removed", "changed"}: names of points against the plan in WORKDIR; empty lists where there is none yet.

    Raises:
      ValueError: the directory belongs to a run, or to a sweep of another config; every differing field is named.
    """
    path = plan.workdir / "sweep.json"
    if not path.exists():
        if there := [name for name in OF_RUNS if (plan.workdir / name).exists()]:
            raise ValueError(
                f"{plan.workdir} is the work directory of a run (it has {there[0]}), not of a sweep; give another --workdir. "
                f"A finished database is named by --config.data.directory."
            )
        return {"new": [], "removed": [], "changed": []}
    found = read_json(path, REMEDY, keys=("config", "points"))
    there, here = completed(found["config"]), _identity(plan)
    fields = [line for name in SECTIONS for line in differing_fields(there.get(name, {}), here[name], f"{name}.")]
    fields = [line for line in fields if not line.startswith(f"{PLACE} ")]
    if fields:
        raise ValueError(
            f"{plan.workdir} belongs to a sweep of another config: {'; '.join(fields)}. Nothing was changed. Use another "
            f"--workdir, or the config that it was started with ({path}); points may change."
        )
    before, now = found["points"], facts(plan)["points"]
    return {
        "new": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
        "changed": [name for name in now if name in before and before[name].get("digest") != now[name]["digest"]],
    }


def _identity(plan: Plan) -> Mapping:
    return json.loads(json.dumps({name: plan.base[name] for name in SECTIONS}))


def facts(plan: Plan) -> dict:
    """The content of sweep.json."""
    points = {}
    for one in plan.points:
        task = plan.tasks[one.task]
        points[one.point.name] = {
            "group": one.point.group,
            "seed": one.seed,
            "overrides": dict(one.point.overrides),
            "digest": task.digest,
            "retrieves": one.model.retrieves,
            "data": str(one.data.directory),
            "model": str(one.model.directory),
            "baseline": str(one.baseline.directory) if one.baseline else None,
        }
    return {"config": _identity(plan), "axes": list(plan.axes()), "points": points}


def write_plan(plan: Plan) -> None:
    with one_at_a_time(plan.workdir):
        write_json(plan.workdir / "sweep.json", facts(plan))
