"""Protocols of published evaluation sets: what of a file is text, which bytes of it are scored, and how.

Read registry, then documents, then any other: each protocol is a file that registers itself. `retro join` reads files
with them and `retro evaluate` scores by them. They import the standard library, numpy, core and data alone.
"""

from retro_jax.evaluate.protocols import documents  # noqa: F401
from retro_jax.evaluate.protocols.registry import (
    PROTOCOLS,
    EvaluationText,
    Excluded,
    Protocol,
    get,
    register,
)

__all__ = ["PROTOCOLS", "EvaluationText", "Excluded", "Protocol", "get", "register"]
