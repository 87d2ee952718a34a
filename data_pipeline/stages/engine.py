"""Where the shards of a stage are made: one after another in this process (here), or on a cluster (`ray_engine.py`).

An engine maps a function over shards. It decides the place and the time of each, never the bytes: a shard's `make` is a
function of the finished stages it reads. `run_stage` (`manifests.py`) asks the engine in use:

    with using(RayEngine(address, directory)):
        build(...)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol


@dataclass(frozen=True)
class Resource:
    """Something heavy that shards need, such as an encoder or an index shard: opened once where they are made.

    It travels to another process as `open` alone, never as the thing.
    """

    key: str  # resources of one stage with one key are the same thing
    open: Callable[[], Any]
    bytes: int = 0  # about how much memory it takes; 0: little
    accelerator: bool = False  # whether it computes on one, where the cluster was asked for them
    here: Any = None  # the thing, where this process has it already

    def get(self) -> Any:
        return self.open() if self.here is None else self.here

    def __getstate__(self) -> dict:
        return replace(self, here=None).__dict__


@dataclass(frozen=True)
class Shard:
    """One unit of a stage's work: `make` writes exactly `files` into a folder and returns its counts.

    `make(folder)`, or `make(folder, thing)` with the thing that `resource` opens. It may travel to another process: it
    holds paths, numbers and mapped tables (which travel as their paths), no large arrays.
    """

    name: str
    files: Sequence[str]
    make: Callable[..., Mapping]
    resource: Resource | None = None


class Engine(Protocol):
    def map(self, function: Callable[[Shard, Any], dict], shards: Sequence[Shard]) -> Iterator[tuple[int, dict]]:
        """Yields (number of the shard, function(shard, its thing or None)) as they are done, in any order.

        `function` may run twice for one shard, on two machines at once too, where a machine was lost or seemed so.
        """
        ...


class InProcess:
    """Shards in their order, in this process. One resource is held at a time."""

    def map(self, function: Callable[[Shard, Any], dict], shards: Sequence[Shard]) -> Iterator[tuple[int, dict]]:
        """See `Engine.map`."""
        key, thing = None, None
        for number, shard in enumerate(shards):
            if shard.resource is not None and shard.resource.key != key:
                thing = None  # freed before the next is opened
                key, thing = shard.resource.key, shard.resource.get()
            yield number, function(shard, thing if shard.resource is not None else None)


_ENGINE: ContextVar[Engine | None] = ContextVar("engine", default=None)


def current_engine() -> Engine:
    return _ENGINE.get() or InProcess()


@contextmanager
def using(engine: Engine):
    """Stages run inside of the `with` use this engine. Elsewhere, and in the engine's own workers, it is InProcess."""
    token = _ENGINE.set(engine)
    try:
        yield engine
    finally:
        _ENGINE.reset(token)
