"""Checkpoints: parameters, optimizer, data iterator and identity, whole or not there. The only file that imports orbax.

    RUN/checkpoints/STEP/            written by orbax under another name and renamed when complete
    RUN/checkpoints/STEP.whole.json  sizes and SHA-256 of its files, written last: a checkpoint is whole iff they fit

A save copies the state and returns; files are written while training goes on. Nothing is deleted, unless
`keep_checkpoints` asks for it: a broken checkpoint that stands in the way of a new one is renamed. A save that fails for
want of space or rights is told and done without; the next one tries again.

With several processes each writes its own shards, and orbax renames when all have; process 0 alone looks for whole
checkpoints, writes listings and prunes.
"""

import concurrent.futures
import errno
import json
import re
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from data_pipeline.manifests import file_sha256, write_json
from retro_jax.agreement import on_first
from retro_jax.config import RunConfig, completed, resolve
from retro_jax.models.retro import Retro, abstract_model, merge
from retro_jax.sharding import on_one_device
from retro_jax.train_state import TrainState

# What may change between two runs that continue each other: none of it changes the numbers' meaning.
FREE_FIELDS = {
    "train.mesh",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.retrieval_check_every",
    "train.peak_flops",
    "train.initialize_from",
    "train.stall_seconds",
    "train.on_spike",
    "train.spike_factor",
    "train.spike_window",
    "train.retrieval_alarm_checks",
    "train.wandb_project",
    "model.remat",
    "model.scan",
    "model.loss_block",
}

STORAGE_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG", "ENOTDIR", "ESTALE")
}
# What tensorstore and gRPC say of them, for they give no number.
STORAGE_WORDS = re.compile(
    "No space left on device|Disk quota exceeded|Read-only file system|Permission denied|Input/output error|"
    "File too large|Not a directory"
)


class Checkpoints:
    """The checkpoints of one run. `faults` counts the saves of this process that storage refused.

    Args:
      directory: RUN/checkpoints.
      identity: {"config": {"model", "train"}, "fingerprints": {...}} of this run, plain JSON; a checkpoint of another
        identity is refused.
      keep: how many of the newest to keep; 0 keeps all.
    """

    faults = 0

    def __init__(self, directory: Path, identity: Mapping, keep: int = 0):
        self.directory = Path(directory).absolute()
        self.identity = json.loads(json.dumps(identity))
        self.keep = keep
        self.stalled = 0.0  # seconds that callers waited here
        self.fault = ""  # why storage did not take the last save
        self._thread = ThreadPoolExecutor(1)
        self._pending: tuple[int, Future] | None = None

    def save(self, step: int, state: TrainState, facts: Mapping) -> None:
        """Starts a save; waits for the one before it. `state` may be donated as soon as this returns.

        Args:
          facts: plain JSON beside the arrays: where the iterator stands, what health looks at.
        """
        self.wait()
        started = time.perf_counter()
        path = self.directory / str(step)
        parts = {
            "params": state.params,
            "optimizer": {"step": state.step, "opt_state": state.opt_state},
            "run": {"identity": self.identity, **facts},
        }
        try:
            on_first(lambda: _make_way(path))
            with _context():
                response = ocp.save_checkpointables_async(path, parts)
            self._pending = step, self._thread.submit(self._finish, response, path)
        except Exception as error:
            self._pass_over(step, error)
        self.stalled += time.perf_counter() - started

    def _finish(self, response, path: Path) -> None:
        response.result()
        if jax.process_index() == 0:
            write_json(whole_path(path), _listing(path))
            self._prune()

    def _prune(self) -> None:
        if self.keep:
            for step in steps(self.directory)[: -self.keep]:
                if whole_path(self.directory / str(step)).exists():
                    whole_path(self.directory / str(step)).unlink()
                    shutil.rmtree(self.directory / str(step))

    def wait(self) -> None:
        """Returns when the last save is on disk, or storage refused it (`fault`)."""
        if self._pending is None:
            return
        started = time.perf_counter()
        (step, pending), self._pending = self._pending, None
        try:
            pending.result()
            self.fault = ""
        except Exception as error:
            self._pass_over(step, error)
        finally:
            self.stalled += time.perf_counter() - started

    def wait_for_marker(self, seconds: float) -> None:
        """Lets a save that all processes have written become whole, though one of them is gone now."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending[1]], seconds)

    def require_saved(self) -> None:
        """Waits for the last save; raises ValueError where it is not on disk."""
        self.wait()
        if self.fault:
            raise ValueError(
                f"the last checkpoint could not be saved: {self.fault}. Those saved before in {self.directory} are "
                f"whole: mend the storage, then run the same command again; it goes on from the newest."
            )

    def _pass_over(self, step: int, error: Exception) -> None:
        """Says what storage refused; raises an error of any other kind."""
        self.fault = storage_fault(error) or ""
        if not self.fault:
            raise error
        Checkpoints.faults += 1
        print(
            f"\ncheckpoint: step {step} could not be saved ({self.fault}); training goes on and the next save tries "
            f"again. What was saved before is untouched.",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        self.wait()
        self._thread.shutdown()

    def restore(self, abstract: TrainState, at_most: int | None = None) -> tuple[TrainState, dict] | None:
        """(state, facts) of the newest whole checkpoint, with the shardings of `abstract`; the same on every process.

        None where there is no checkpoint. A newer one that is half-written or damaged is passed over, with a line on
        standard error.

        Args:
          at_most: look at no later step than this.

        Raises:
          ValueError: the checkpoint belongs to another config, tokenizer or database; every differing field is named.
        """
        step = on_first(lambda: newest_whole(self.directory, at_most))
        if step is None:
            return None
        path = self.directory / str(step)
        with _context():
            facts = ocp.load_checkpointables(path, {"run": None})["run"]
        self._require_identity(path, facts.pop("identity"))
        wanted = {
            "params": abstract.params,
            "optimizer": {"step": abstract.step, "opt_state": abstract.opt_state},
        }
        parts = ocp.load_checkpointables(path, wanted)
        return TrainState(parts["optimizer"]["step"], parts["params"], parts["optimizer"]["opt_state"]), facts

    def _require_identity(self, path: Path, found: Mapping) -> None:
        fields = differing_fields(completed(found["config"]), self.identity["config"])
        fields += differing_fields(found["fingerprints"], self.identity["fingerprints"], "fingerprint of ")
        if fields:
            raise ValueError(
                f"The checkpoint {path} belongs to another run: {'; '.join(fields)}. Continue with the config and data "
                f"it was made with, or start anew in another --workdir."
            )


def _context() -> ocp.Context:
    """What orbax is told: "run" is JSON (it would make arrays of its numbers)."""
    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry().add(
        ocp.handlers.JsonHandler, checkpointable_name="run"
    )
    return context


def differing_fields(found: Mapping, wanted: Mapping, prefix: str = "") -> list[str]:
    """One line per leaf of nested dicts that differs and matters (`FREE_FIELDS` do not)."""
    lines = []
    for key in sorted(set(found) | set(wanted)):
        one, other, where = found.get(key), wanted.get(key), f"{prefix}{key}"
        if where in FREE_FIELDS:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += differing_fields(one, other, f"{where}.")
        elif one != other:
            lines.append(f"{where} (there {one!r:.60}, now {other!r:.60})")
    return lines


def steps(directory: Path) -> list[int]:
    """Steps with a checkpoint directory, whole or not, rising."""
    return sorted(int(path.name) for path in Path(directory).glob("*") if path.name.isdigit() and path.is_dir())


def newest_whole(directory: Path, at_most: int | None = None) -> int | None:
    """The newest step (up to `at_most`) whose checkpoint is whole; newer ones that are not are named on standard error."""
    directory = Path(directory)
    for path in sorted(directory.glob("*.orbax-checkpoint-tmp*")):
        print(f"checkpoint: {path} was never finished; it is passed over.", file=sys.stderr)
    for step in reversed(steps(directory)):
        if at_most is not None and step > at_most:
            continue
        fault = find_fault(directory / str(step))
        if fault is None:
            return step
        print(f"checkpoint: step {step} is not whole ({fault}); going back to an older one.", file=sys.stderr)
    return None


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint directory, or None where it is whole."""
    if not whole_path(path).exists():
        return f"{whole_path(path).name} was not written"
    listing = json.loads(whole_path(path).read_text())
    for name, facts in listing.items():
        file = path / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes of {facts['bytes']}"
        if file_sha256(file) != facts["sha256"]:
            return f"{name} was altered"
    return None


def whole_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.whole.json")


def _listing(path: Path) -> dict:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files}


def _make_way(path: Path) -> None:
    """The directory for checkpoints; what stands at `path` already is renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    number = 0
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    path.rename(aside)
    whole_path(path).unlink(missing_ok=True)
    print(f"checkpoint: {path} stood in the way of a new save; it was renamed to {aside.name}.", file=sys.stderr)


def storage_fault(error: BaseException | None) -> str | None:
    """What storage refused (space, rights, the device), by error number or by a library's words; None: another error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            return error.strerror
        if found := STORAGE_WORDS.search(str(error)):
            return found[0]
        error = error.__cause__ or error.__context__
    return None


def read_config(run_directory: Path) -> RunConfig:
    """The config a run directory was made with."""
    path = Path(run_directory) / "config.json"
    if not path.exists():
        raise ValueError(
            f"{run_directory} is not a run directory: it has no config.json. Train there first with "
            f"`retro train --workdir={run_directory} --config=...`, or give another directory."
        )
    return resolve(json.loads(path.read_text()))


def load_params(run_directory: Path, step: int | None = None) -> tuple[dict, RunConfig, int]:
    """(parameters on the first device, config, step) of a run's newest whole checkpoint, or of `step`.

    Raises:
      ValueError: not a run directory, no whole checkpoint, or none at `step`.
    """
    directory = Path(run_directory).absolute()
    run = read_config(directory)
    fault = None
    if step is None:
        step = newest_whole(directory / "checkpoints")
    else:
        fault = find_fault(directory / "checkpoints" / str(step))
    if step is None or fault:
        raise ValueError(
            f"{directory} has no whole checkpoint{f' at step {step} ({fault})' if fault else ''}; run `retro train` "
            f"with this --workdir, or ask for one of the steps {steps(directory / 'checkpoints')}."
        )
    _, params = abstract_model(run.model)
    place = on_one_device()
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), params)
    return (
        ocp.load_checkpointables(directory / "checkpoints" / str(step), {"params": wanted})["params"],
        run,
        step,
    )


def load_model(run_directory: Path, step: int | None = None) -> tuple[Retro, RunConfig, int]:
    """(model with the weights of a run, its config, the step); see `load_params`."""
    params, run, step = load_params(run_directory, step)
    return merge(run.model, params), run, step


def load_fingerprints(run_directory: Path, step: int) -> dict[str, str]:
    """Fingerprints of the tokenizer, database and joined shards that a whole checkpoint was trained with."""
    with _context():
        facts = ocp.load_checkpointables(Path(run_directory).absolute() / "checkpoints" / str(step), {"run": None})
    return facts["run"]["identity"]["fingerprints"]
