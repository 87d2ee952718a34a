"""What the directories of a sweep are named by: digests of the settings that a verb reads, and of its inputs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from launch.command.reads import BUILD, is_read
from launch.sweep.plan import Data, Model
from launch.sweep.points import value_of
from retro_jax.config import RUNTIME, RunConfig, SourceConfig, to_dict
from retro_jax.core.files import digest
from retro_jax.run_directory.identity import FREE_FIELDS

LETTERS = 16  # of a digest, in the name of a directory
OF_VIEWS = (
    "data.directory",
    "data.database_fraction",
    "model.retrieval_layers",
)  # that the digest of a build leaves out
OF_LINKS = ("evaluate.retro", "evaluate.baseline", "data.directory")  # links of a point's work directory say these


def of_build(run: RunConfig) -> str:
    """Of a build with all of its database."""
    facts = {key: value for key, value in _settings(run).items() if is_read(key, BUILD)}
    return digest(_json({key: value for key, value in facts.items() if key not in OF_VIEWS}))


def of_training(run: RunConfig, base: RunConfig, overrides: Mapping, data: Data, start: Model | None) -> str:
    """Of a training.

    Args:
      base: the config of the sweep.
      overrides: of the point, as far as the training reads them.
      start: the model whose weights it starts from.
    """
    changed = [key for key in overrides if is_read(key, FREE_FIELDS) and overrides[key] != value_of(base, key)]
    facts = {
        key: value
        for key, value in _settings(run, changed).items()
        if is_read(key, ("model", "train"))
        and key != "train.initialize_from"
        and (key in changed or not is_read(key, FREE_FIELDS))
    }
    return digest(_json([facts, data.identity, start.identity if start else ""]))


def of_evaluation(run: RunConfig, data: Data, model: Model, baseline: Model | None) -> str:
    """Of the evaluation of a point."""
    keys = ("evaluate", *(f"model.{key}" for key in RUNTIME if f"model.{key}" not in FREE_FIELDS))
    read = {key: value for key, value in _settings(run).items() if is_read(key, keys) and key not in OF_LINKS}
    return digest(_json([read, data.identity, model.identity, baseline.identity if baseline else ""]))


def _settings(run: RunConfig, also: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that are not at their defaults, by key, and those of `also`.

    A key that a later version adds has what older versions did as its default, so digests stay as they are.
    """
    usual, of_source = _flat(to_dict(RunConfig())), to_dict(SourceConfig())

    def default(key: str) -> Any:
        return of_source.get(key.rpartition(".")[2]) if is_read(key, ("data.sources",)) else usual.get(key)

    return {key: value for key, value in _flat(to_dict(run)).items() if key in also or value != default(key)}


def _flat(value: Mapping, prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) and item else {f"{prefix}{key}": item}
    return found


def _json(value):
    """As it comes back from a file: tuples become lists."""
    return json.loads(json.dumps(value))
