"""Overrides of a sweep's points: {"model.neighbors": 1}, dotted keys of the config to values."""

from collections.abc import Iterator, Mapping
from typing import Any

from retro_jax.config import resolve, to_dict

Overrides = dict[str, Any]


def differences(usual: Mapping, wanted: Mapping, sections: tuple[str, ...] = ("model", "train")) -> Overrides:
    """The overrides that turn these sections of one config into those of another."""
    before, after = (dict(_leaves(to_dict(resolve(config)))) for config in (usual, wanted))
    inside = tuple(f"{section}." for section in sections)
    return {key: value for key, value in after.items() if key.startswith(inside) and before.get(key) != value}


def _leaves(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
