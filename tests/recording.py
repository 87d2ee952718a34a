"""Which settings of a run's config a verb reads while it runs, to hold launch/reads.py against."""

import dataclasses
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from launch import command
from launch.reads import READS, is_read
from retro_jax.config import (
    DataConfig,
    EncoderConfig,
    EvaluateConfig,
    MeshConfig,
    ModelConfig,
    RunConfig,
    SampleConfig,
    SourceConfig,
    TrainConfig,
    declarations,
)
from retro_jax.models import retro

OF_RECORDS = tuple(f"data.sources.NAME.{key}" for key in ("text_key", "subset_key", "id_key", "title_key", "split"))
SECTIONS = (
    *(RunConfig, ModelConfig, EncoderConfig, TrainConfig, MeshConfig),
    *(DataConfig, SourceConfig, EvaluateConfig, SampleConfig),
)
WHOLE = (
    "dataclasses.py",
    "<string>",
    "recording.py",
)  # asdict, replace, hash and equality go over all fields and mean none of them


class Recorder:
    """`keys`: those that were read of the configs that are watched, as "train.mesh.data"."""

    def __init__(self):
        self.keys: set[str] = set()
        self._places: dict[int, str] = {}
        self._alive: list = []  # so that no other object gets their ids

    def watch(self, config, prefix: str = ""):
        """Returns the config itself."""
        self._alive.append(config)
        self._places[id(config)] = prefix
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                self.watch(value, f"{prefix}{field.name}.")
            elif field.name == "sources":
                for source in value.values():
                    self.watch(source, f"{prefix}sources.NAME.")
        return config

    def read(self, config, name: str, file: str) -> None:
        place = self._places.get(id(config))
        if place is not None and not file.endswith(WHOLE):
            self.keys.add(place + name)


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Watches the configs of the command lines that are parsed meanwhile."""
    recorder, parse = Recorder(), command.parse
    retro._abstract.cache_clear()  # else an equal config of an earlier test may have been read in place of ours

    def watched(*arguments):
        invocation = parse(*arguments)
        recorder.watch(invocation.run)
        return invocation

    def get(config, name):
        if name in type(config).__dataclass_fields__:
            recorder.read(config, name, sys._getframe(1).f_code.co_filename)
        return object.__getattribute__(config, name)

    command.parse = watched
    for section in SECTIONS:
        section.__getattribute__ = get
    try:
        yield recorder
    finally:
        command.parse = parse
        for section in SECTIONS:
            del section.__getattribute__


def assert_reads(verb: str, keys: Collection[str], besides: Collection[str] = ()) -> None:
    """The table names what was read and, but for `besides`, nothing else."""
    leaves = {one.key for one in declarations(RunConfig) if not dataclasses.is_dataclass(one.kind)} - {"data.sources"}
    read = leaves & set(keys)
    unknown = sorted(key for key in read if not is_read(key, READS[verb]))
    assert not unknown, f"retro {verb} reads {unknown}, but would refuse them"
    listed = {key for key in leaves if is_read(key, READS[verb])}
    idle = sorted(listed - read - set(besides))
    assert not idle, f"retro {verb} takes {idle}, but does not read them"
