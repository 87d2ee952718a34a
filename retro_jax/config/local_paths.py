"""Expands `~` and `file://` in the config keys that hold a path on this machine."""

from dataclasses import replace

from retro_jax.config.run import RunConfig
from retro_jax.core.paths import local_path, special

# Keys of the config that hold a path on this machine. Sources may be URLs and are read by data_pipeline/formats/files.py.
LOCAL_KEYS = {
    "data": ("directory", "tokenizer", "encoder", "database"),
    "train": ("initialize_from",),
    "evaluate": ("retro", "baseline", "tried_databases"),
}


def with_local_paths(run: RunConfig) -> RunConfig:
    """The config with the path of every key in `LOCAL_KEYS` expanded; raises as `local_path` does."""
    for section, keys in LOCAL_KEYS.items():
        config = getattr(run, section)
        values = {key: getattr(config, key) for key in keys if getattr(config, key)}
        changed = {key: _plain(value, f"config.{section}.{key}") for key, value in values.items()}
        changed = {key: value for key, value in changed.items() if value != values[key]}
        if changed:
            run = replace(run, **{section: replace(config, **changed)})
    return run


def _plain(value: str | tuple[str, ...], where: str) -> str | tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(_plain(one, where) for one in value)
    return str(local_path(value, where)) if special(value) else value
