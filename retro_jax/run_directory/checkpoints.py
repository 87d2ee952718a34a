"""Checkpoints: parameters, optimizer, data iterator and identity, whole or not there. Only this file and keeping.py import orbax.

    RUN/checkpoints/STEP/            written by orbax under another name and renamed when complete
    RUN/checkpoints/STEP.whole.json  sizes and SHA-256 of its files, written last (whole.py)

A save copies the state and returns; files are written while training continues. It counts once it was read back: every
array is opened as a restore would open it, and every file is read for its checksum. Nothing is deleted, unless
`keep_checkpoints` asks for it: a broken checkpoint with the name of a new one is renamed. A save that fails for
lack of space or permission is logged; training continues and saves at the next interval.

With several processes each writes its own shards, and orbax renames when all have; process 0 alone looks for whole
checkpoints, reads back, writes listings and prunes.
"""

import concurrent.futures
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import tensorstore
from orbax.checkpoint import v1 as ocp

from retro_jax.config import RunConfig, completed
from retro_jax.core.files import write_json
from retro_jax.core.storage import storage_fault
from retro_jax.models.retro import Retro, abstract_model, merge
from retro_jax.parallel.agreement import on_first
from retro_jax.parallel.sharding import Mesh, on_one_device, shardings
from retro_jax.run_directory.directory import read_config
from retro_jax.run_directory.identity import differing_fields
from retro_jax.run_directory.keeping import Keep
from retro_jax.run_directory.plain_path import plain_path
from retro_jax.run_directory.whole import (
    find_fault,
    find_whole,
    listing,
    make_way,
    newest_whole,
    prune,
    read_facts,
    require_whole,
    whole_path,
)
from retro_jax.train.state import TrainState


class Checkpoints:
    """The checkpoints of one run. `faults` counts the saves of this process that storage refused.

    Args:
      directory: RUN/checkpoints.
      identity: {"config": {"model", "train"}, "fingerprints": {...}} of this run, plain JSON; a checkpoint of another
        identity is refused.
      keep: which whole ones stay; None keeps all.
      saved: called on process 0 with the step of every checkpoint that has become whole.
    """

    faults = 0

    def __init__(
        self,
        directory: Path,
        identity: Mapping,
        keep: Keep | None = None,
        saved: Callable[[int], None] = lambda step: None,
    ):
        self.directory = Path(directory).absolute()
        self.identity = json.loads(json.dumps(identity))
        self.keep, self.saved = keep, saved
        self.stalled = 0.0  # seconds that callers waited here
        self.fault = ""  # why storage did not take the last save
        plain_path(self.directory)  # refuses now and not at the first save
        self._verified: set[int] = set()  # steps whose checksums were compared
        self._thread = ThreadPoolExecutor(1)
        self._pending: tuple[int, Future] | None = None

    def save(self, step: int, state: TrainState, facts: Mapping) -> None:
        """Starts a save; waits for the one before it. `state` may be donated as soon as this returns.

        Args:
          facts: plain JSON beside the arrays: where the iterator stands, what health looks at.
        """
        self.wait()
        started = time.perf_counter()
        arrays = {"params": state.params, "optimizer": {"step": state.step, "opt_state": state.opt_state}}
        expected = {part: _shapes(tree) for part, tree in arrays.items()}
        run = {"identity": self.identity, "step": step, **facts}
        try:
            on_first(lambda: make_way(self.directory / str(step)))
            with _context():
                response = ocp.save_checkpointables_async(
                    plain_path(self.directory) / str(step), {**arrays, "run": run}
                )
            self._pending = step, self._thread.submit(self._finish, response, step, expected)
        except Exception as error:
            self._pass_over(step, error)
        self.stalled += time.perf_counter() - started

    def _finish(self, response, step: int, expected: Mapping) -> None:
        response.result()
        if jax.process_index() == 0:
            path = self.directory / str(step)
            for part, shapes in expected.items():
                _require_readable(plain_path(self.directory) / str(step), part, shapes, path)
            write_json(whole_path(path), listing(path), seal=True)
            if fault := find_fault(path, checksums=False):
                raise ValueError(f"The checkpoint {path} was saved, but {fault}; this is a mistake of the program.")
            self._verified.add(step)
            self._follow(step)

    def _follow(self, step: int) -> None:
        """What comes behind a save; where storage refuses it, the checkpoint is whole all the same."""
        try:
            self.saved(step)
            if self.keep is not None and not self.keep.keeps_all:
                prune(self.directory, self.keep, step, self._verified)
        except OSError as error:
            print(f"checkpoint: step {step} is saved, but then: {error}.", file=sys.stderr, flush=True)

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
            step, _ = find_whole(self.directory)
            left = (
                f"No checkpoint in {self.directory} is whole: correct the storage, then run the same command with --restart."
                if step is None
                else f"That of step {step} in {self.directory} is whole: correct the storage, then run the same command again; "
                f"it continues from there."
            )
            raise ValueError(f"the last checkpoint could not be saved: {self.fault}. {left}")

    def _pass_over(self, step: int, error: Exception) -> None:
        """Logs a storage error and records it; raises an error of any other kind."""
        self.fault = storage_fault(error) or ""
        if not self.fault:
            raise error
        Checkpoints.faults += 1
        print(
            f"checkpoint: step {step} could not be saved ({self.fault}); training goes on and the next save tries "
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
            Or it cannot be loaded, though it is whole.
        """
        step = on_first(lambda: newest_whole(self.directory, at_most))
        if step is None:
            return None
        self._verified.add(step)
        path = self.directory / str(step)
        facts = read_facts(path)
        self._require_identity(path, facts.pop("identity"))
        facts.pop("step", None)
        wanted = {
            "params": abstract.params,
            "optimizer": {"step": abstract.step, "opt_state": abstract.opt_state},
        }
        parts = _load(path, wanted)
        state = TrainState(parts["optimizer"]["step"], parts["params"], parts["optimizer"]["opt_state"])
        if int(state.step) != step:
            raise ValueError(
                f"{path} holds step {int(state.step)}: it is a copy under another name. Move it and "
                f"{whole_path(path).name} out of {self.directory}, then run the same command again."
            )
        return state, facts

    def _require_identity(self, path: Path, found: Mapping) -> None:
        fields = differing_fields(completed(found["config"]), self.identity["config"])
        fields += differing_fields(found["fingerprints"], self.identity["fingerprints"], "fingerprint of ")
        if fields:
            raise ValueError(
                f"The checkpoint {path} belongs to another run: {'; '.join(fields)}. Continue with the config and data "
                f"it was made with, or start again in another --workdir."
            )


def _context() -> ocp.Context:
    """Orbax's context: "run" is JSON (otherwise its numbers would become arrays)."""
    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry().add(
        ocp.handlers.JsonHandler, checkpointable_name="run"
    )
    return context


def _shapes(tree) -> dict[str, tuple]:
    """(shape, dtype) of each array by its path in the tree; orbax's description of a checkpoint gives the same."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in leaves
    }


def _require_readable(plain: Path, part: str, expected: Mapping, path: Path) -> None:
    """Opens each array of a part as a restore would, and counts the pieces that all processes have written.

    Raises:
      ValueError: an array or a piece is not there.
    """
    with _context():
        found = ocp.checkpointables_metadata(plain).metadata.get(part)
    problem = "" if found is not None and _shapes(found) == expected else f"the arrays of {part} are not those saved"
    if not problem:
        pieces = sum(
            1
            + math.prod(
                -(-size // piece) for size, piece in zip(leaf.shape, leaf.storage_metadata.write_shape, strict=True)
            )
            for leaf in jax.tree.leaves(found)
        )  # a piece has a key, and an array one more
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{plain / part}/"}})
        there = len(store.result().list().result())
        problem = "" if there == pieces else f"{part} holds {there} of {pieces} pieces"
    if problem:
        raise ValueError(
            f"The checkpoint {path} was written, but it cannot be restored: {problem}. Those that have a whole.json are not "
            f"affected. Look at the storage, then run the same command again; it goes on from the newest of them."
        )


def _load(path: Path, wanted: Mapping) -> dict:
    """The parts of a whole checkpoint, as `wanted` describes them."""
    try:
        return ocp.load_checkpointables(plain_path(path.parent) / path.name, wanted)
    except (ValueError, LookupError, TypeError, OSError) as error:
        if fault := find_fault(path, checksums=False):
            raise ValueError(
                f"The checkpoint {path} went while it was read ({fault}); run the command again."
            ) from error
        raise ValueError(
            f"The checkpoint {path} is whole, but orbax cannot load it ({_first_line(error)}). It was written by the "
            f"versions that {path.parent.parent / 'versions.json'} names; install those."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def load_params(run_directory: Path, step: int | None = None, mesh: Mesh | None = None) -> tuple[dict, RunConfig, int]:
    """(parameters, config, step) of a run's newest whole checkpoint, or of `step`.

    Args:
      mesh: where the parameters go, cut as in training, each process reading its own part; None is the first device.

    Raises:
      ValueError: not a run directory, no whole checkpoint, or none at `step`.
    """
    directory = Path(run_directory).absolute()
    run = read_config(directory)
    step = require_whole(directory, step)
    _, params = abstract_model(run.model)
    places = jax.tree.map(lambda leaf: on_one_device(), params) if mesh is None else shardings(params, mesh)
    wanted = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), params, places
    )
    return _load(directory / "checkpoints" / str(step), {"params": wanted})["params"], run, step


def load_model(run_directory: Path, step: int | None = None) -> tuple[Retro, RunConfig, int]:
    """(model with the weights of a run, its config, the step); see `load_params`."""
    params, run, step = load_params(run_directory, step)
    return merge(run.model, params), run, step


def load_fingerprints(run_directory: Path, step: int) -> dict[str, str]:
    """Fingerprints of the tokenizer, database and joined shards that a whole checkpoint was trained with."""
    return read_facts(Path(run_directory) / "checkpoints" / str(step))["identity"]["fingerprints"]
