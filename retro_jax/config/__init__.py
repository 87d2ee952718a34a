"""Configuration: ml_collections at the edge, frozen dataclasses inside, one strict conversion between them.

A config file under `configs/` returns a ConfigDict with the sections of `RunConfig`. `resolve` turns it into frozen
dataclasses: an unknown key, a wrong type, a value out of range or values that do not fit together are a ValueError that
names the rule, the values and the remedy. A layer never sees more than the dataclass it needs.

Each field declares its default, its range and its documentation in its section's file: model, train, data, evaluate,
generate. Read `settings` for what a declaration is, and `run` for the conversion. Imports nothing of retro_jax.
"""

from retro_jax.config.data import DataConfig, SourceConfig, check_data
from retro_jax.config.evaluate import EvaluateConfig, check_evaluate
from retro_jax.config.generate import SampleConfig
from retro_jax.config.model import (
    ABLATIONS,
    DECODER_KIND,
    RUNTIME,
    EncoderConfig,
    ModelConfig,
    at_run_time,
    check_model,
)
from retro_jax.config.run import (
    RunConfig,
    as_config_dict,
    check,
    completed,
    convert,
    default_config,
    open_maps,
    resolve,
    to_dict,
)
from retro_jax.config.settings import check_ranges, declarations
from retro_jax.config.train import MeshConfig, TrainConfig, check_schedule, check_train

__all__ = [
    "ABLATIONS",
    "DECODER_KIND",
    "RUNTIME",
    "DataConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "MeshConfig",
    "ModelConfig",
    "RunConfig",
    "SampleConfig",
    "SourceConfig",
    "TrainConfig",
    "as_config_dict",
    "at_run_time",
    "check",
    "check_data",
    "check_evaluate",
    "check_model",
    "check_ranges",
    "check_schedule",
    "check_train",
    "completed",
    "convert",
    "declarations",
    "default_config",
    "open_maps",
    "resolve",
    "to_dict",
]
