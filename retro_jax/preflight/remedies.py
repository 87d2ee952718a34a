"""Searches for changes of mesh, remat, accumulation and loss block that make a step fit."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from retro_jax.config import MeshConfig, RunConfig
from retro_jax.parallel.sharding import check_sizes, mesh_sizes
from retro_jax.preflight.estimate import memory_gib
from retro_jax.presets.topologies import Topology

SMALL_BLOCK = 2048  # vocabulary entries; smaller ones leave the matrix units idle


@dataclass(frozen=True)
class Remedy:
    """A change, as text and as flags, and its estimated memory."""

    name: str
    flags: str
    run: RunConfig
    gib: float  # by the estimate

    def row(self, limit: float) -> dict:
        return {"change": self.name, "flags": self.flags, "memory_gib": self.gib, "fits": self.gib <= limit}


def remedies(run: RunConfig, topology: Topology, given: RunConfig | None = None) -> list[Remedy]:
    """Tries each change alone, then combinations; sorted by the number of changes, then by memory.

    Args:
      given: the config that a user adds the flags to, where a recipe was applied to it: with flags none is.
    """
    devices = topology.devices
    kinds = {name: list(change(run, devices)) for name, change in CHANGES.items()}
    found = []
    for count in range(1, len(kinds) + 1):
        for names in itertools.combinations(kinds, count):
            changed = run
            for name in names:
                changed = next(iter(reversed(list(CHANGES[name](changed, devices)))), None)
                if changed is None:
                    break
            if changed is not None and changed != run:
                gib = memory_gib(changed, mesh_sizes(changed.train.mesh, devices), topology.chip)["total"]
                found.append(Remedy(" + ".join(names), _flags(given or run, changed), changed, gib))
    return found


def _mesh(run: RunConfig, devices: int, axis: str) -> Iterator[RunConfig]:
    """Doubles `axis` at the cost of data, as far as sizes allow."""
    sizes = mesh_sizes(run.train.mesh, devices)
    while sizes["data"] % 2 == 0 or (axis == "tensor" and sizes["fsdp"] % 2 == 0):
        give = "data" if sizes["data"] % 2 == 0 else "fsdp"
        sizes = {**sizes, give: sizes[give] // 2, axis: sizes[axis] * 2}
        changed = replace(run, train=replace(run.train, mesh=MeshConfig(**sizes)))
        if not _allowed(changed, sizes) or (axis == "tensor" and sizes[axis] > 8):
            return
        yield changed


def _accumulation(run: RunConfig, devices: int) -> Iterator[RunConfig]:
    sizes, parts = mesh_sizes(run.train.mesh, devices), run.train.accumulation * 2
    while run.train.batch % (sizes["data"] * sizes["fsdp"] * parts) == 0:
        yield replace(run, train=replace(run.train, accumulation=parts))
        parts *= 2


def _remat(run: RunConfig, devices: int) -> Iterator[RunConfig]:
    if run.model.remat != "full":
        yield replace(run, model=replace(run.model, remat="full"))


def _block(run: RunConfig, devices: int) -> Iterator[RunConfig]:
    if not 0 < run.model.loss_block <= SMALL_BLOCK < run.model.vocabulary:
        yield replace(run, model=replace(run.model, loss_block=SMALL_BLOCK))


CHANGES = {
    "more accumulation": _accumulation,
    "remat": _remat,
    "more fsdp": lambda run, devices: _mesh(run, devices, "fsdp"),
    "smaller loss block": _block,
    "more tensor": lambda run, devices: _mesh(run, devices, "tensor"),
}


def _allowed(run: RunConfig, sizes: dict[str, int]) -> bool:
    try:
        check_sizes(run, sizes)
    except ValueError:
        return False
    return True


def _flags(before: RunConfig, after: RunConfig) -> str:
    """The flags that turn one into the other."""
    flags = []
    for section, keys in (("model", ("remat", "loss_block")), ("train", ("accumulation",))):
        for key in keys:
            old, new = (getattr(getattr(run, section), key) for run in (before, after))
            flags += [f"--config.{section}.{key}={new}"] if old != new else []
    for axis in ("data", "fsdp", "tensor"):
        old, new = (getattr(run.train.mesh, axis) for run in (before, after))
        flags += [f"--config.train.mesh.{axis}={new}"] if old != new else []
    return " ".join(flags)
