"""Reads the config.json of a build, an addition or a run; errors name the file and what is wrong with it."""

from pathlib import Path

from retro_jax.config import RunConfig, completed, resolve
from retro_jax.core.files import read_json


def read_config_file(path: Path, remedy: str) -> RunConfig:
    """The config of a config.json; keys added in later versions have their defaults.

    Args:
      remedy: what the user does where the file is missing or damaged.

    Raises:
      ValueError: it is missing, damaged, or not a config; the message names the file.
    """
    facts = read_json(path, remedy)
    try:
        return resolve(completed(facts))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a retro_jax config: {error}. {remedy}") from None
