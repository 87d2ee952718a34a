"""Engines, which make the shards of a stage: one after another in this process, or on a cluster (`ray.py`).

An engine maps a function over shards. It decides where and when each is made, never its bytes: a shard's `make` depends
only on the finished stages that it reads. `run_stage` (`run.py`) uses the current engine:

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
    """An expensive object that shards need, such as an encoder or an index shard.

    Each process that makes shards opens it once. What is sent to another process is `open`, never the object.
    """

    key: str  # resources of one stage with the same key are the same object
    open: Callable[[], Any]
    bytes: int = 0  # approximate memory; 0: little
    accelerator: bool = False  # whether it computes on an accelerator, where the cluster has them
    here: Any = None  # the object, where this process has it already

    def get(self) -> Any:
        return self.open() if self.here is None else self.here

    def __getstate__(self) -> dict:
        return replace(self, here=None).__dict__


@dataclass(frozen=True)
class Shard:
    """One unit of a stage's work: `make` writes exactly `files` into a folder and returns its counts; None: what it writes.

    `make(folder)`, or `make(folder, thing)` with the object that `resource` opens. A shard may be sent to another
    process: it holds paths, numbers and mapped tables (sent as their paths), no large arrays.
    """

    name: str
    files: Sequence[str] | None
    make: Callable[..., Mapping]
    resource: Resource | None = None


class Engine(Protocol):
    @property
    def accelerated(self) -> bool:
        """Whether resources that can compute on an accelerator get one of the engine's own."""
        ...

    def map(self, function: Callable[[Shard, Any], dict], shards: Sequence[Shard]) -> Iterator[tuple[int, dict]]:
        """Yields (number of the shard, function(shard, its object or None)) as shards are finished, in any order.

        `function` may run twice for one shard, even on two machines at once, if a machine was lost or seemed to be.
        """
        ...


class InProcess:
    """Makes shards in order, in this process. One resource is held at a time."""

    accelerated = False  # its shards use the devices of this process

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
    """Stages that run inside of the `with` use this engine. Others, and the engine's own workers, use InProcess."""
    token = _ENGINE.set(engine)
    try:
        yield engine
    finally:
        _ENGINE.reset(token)
