"""RunConfig, its defaults, and the strict conversion from a user's config to frozen dataclasses."""

import dataclasses
import difflib
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType

from retro_jax.config.data import DataConfig, check_data
from retro_jax.config.evaluate import EvaluateConfig
from retro_jax.config.generate import SampleConfig
from retro_jax.config.model import ModelConfig, check_model
from retro_jax.config.settings import check_ranges, declarations, section
from retro_jax.config.train import TrainConfig, check_train

MAX_FLOAT = sys.float_info.max


@dataclass(frozen=True)
class RunConfig:
    """The full config of a run."""

    model: ModelConfig = section(ModelConfig, "The model.")
    train: TrainConfig = section(TrainConfig, "Training.")
    data: DataConfig = section(DataConfig, "The text, the database and the joined shards.")
    evaluate: EvaluateConfig = section(EvaluateConfig, "Evaluation.")
    sample: SampleConfig = section(SampleConfig, "Generation.")


def default_config():
    """A ConfigDict of every default, for a config file to start from (`sources` and other maps stay open)."""
    return as_config_dict(RunConfig())


def as_config_dict(run: RunConfig):
    """Turns a run's config back into a ConfigDict that can be changed and resolved again; keys can be added to maps."""
    import ml_collections

    return open_maps(ml_collections.ConfigDict(to_dict(run)))


def open_maps(config):
    """Unlocks the maps of a ConfigDict, so that names can be added, and keys of several types for each; returns it."""
    from ml_collections import FieldReference

    for names in (config.data.sources, config.train.subset_weights, config.train.keep_also):
        names.unlock()
    with config.ignore_type():
        for key in (one.key for one in declarations(RunConfig) if isinstance(one.kind, UnionType)):
            place, _, name = key.rpartition(".")
            config[place][name] = FieldReference(config[place][name], field_type=object)
    return config


def to_dict(config) -> dict:
    """Converts a dataclass to nested dicts and lists that JSON can hold."""
    return dataclasses.asdict(config)


def completed(config: Mapping) -> dict:
    """Adds the defaults of newer keys to the sections of an older config.

    The default of a new key is what older versions did, so a run can continue under a newer version.
    """
    sections = to_dict(RunConfig())
    return {name: _filled(section, sections.get(name, {})) for name, section in config.items()}


def _filled(section: Mapping, usual: Mapping) -> dict:
    """A section with the defaults of the keys that it lacks, in its sections too."""
    inner = {
        key: _filled(value, usual[key])
        for key, value in section.items()
        if isinstance(value, Mapping) and isinstance(usual.get(key), Mapping)
    }
    return {**usual, **section, **inner}


def resolve(config: Mapping) -> RunConfig:
    """Converts a ConfigDict or nested dicts (a run directory's `config.json`) to a frozen RunConfig and checks it.

    Raises:
      ValueError: an unknown key (with the nearest known one), a value of another type or out of the range that its
        field declares, or values that do not fit together.
    """
    run = convert(config)
    check(run)
    return run


def convert(config: Mapping) -> RunConfig:
    """Converts to frozen dataclasses and checks keys and types, not ranges.

    Raises:
      ValueError: an unknown key (with the nearest known one) or a value of another type.
    """
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    return _convert(RunConfig, config, "config")


def check(run: RunConfig) -> None:
    """Raises ValueError where a value is out of its declared range or does not fit another one."""
    check_ranges(run)
    check_model(run.model)
    check_train(run.train)
    check_data(run.data)


def _convert(kind, value, where: str):
    """`value` as `kind` (a dataclass, a tuple of numbers, a map of dataclasses or a plain value)."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a section with keys, but is {value!r}.")
        fields = typing.get_type_hints(kind)
        for key in value:
            if key not in fields:
                near = difflib.get_close_matches(str(key), fields, n=1)
                hint = f"did you mean {where}.{near[0]}?" if near else f"known keys: {', '.join(sorted(fields))}."
                raise ValueError(f"{where}.{key} is not a known config key; {hint}")
        return kind(**{key: _convert(fields[key], item, f"{where}.{key}") for key, item in value.items()})
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            example = {int: "whole numbers such as (6, 9)", float: "numbers such as (0.1, 0.5)"}
            items = example.get(typing.get_args(kind)[0], "texts such as ('a', 'b')")
            raise ValueError(f"{where} must be a tuple of {items}, but is {value!r}.")
        return tuple(_convert(typing.get_args(kind)[0], item, where) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must map names to values, but is {value!r}.")
        item_kind = typing.get_args(kind)[1]
        items = {str(key): _convert(item_kind, item, f"{where}.{key}") for key, item in value.items()}
        return items
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > MAX_FLOAT:
            raise ValueError(f"{where} must be a number up to {MAX_FLOAT:g}, but has {value.bit_length()} bits.")
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        name = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{where} must be of type {name}, but is {value!r} ({type(value).__name__}).")
    return value
