"""The public names of a package, imported when they are first used, so that importing the package costs nothing."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def public(
    package: str, names: Mapping[str, str], folders: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package's __init__.py (PEP 562).

    Args:
      package: its `__name__`.
      names: where each public name is defined, below the package ("loop") or in full ("retro_jax.train.loop"), with
        ":NAME" behind it where it has another name there.
      folders: packages below it that are public themselves.
    """
    everything = sorted([*names, *folders])

    def get(name: str) -> Any:
        if name in folders:
            return importlib.import_module(f"{package}.{name}")
        if name not in names:
            raise AttributeError(f"{package} has no public name {name!r}; it has: {', '.join(everything)}.")
        where, _, attribute = names[name].partition(":")
        full = where if where.startswith(("retro_jax.", "data_pipeline.")) else f"{package}.{where}"
        return getattr(importlib.import_module(full), attribute or name)

    return get, lambda: everything, everything
