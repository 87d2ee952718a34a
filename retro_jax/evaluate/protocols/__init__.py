"""Protocols of published evaluation sets: which part of a file is text, which of its bytes are scored, and how.

Read protocol, then documents, then any other: each protocol is a file that registers itself. `spans` turns scored bytes
into scored tokens, `csv_rows` reads CSV, `table_15` is the paper's table on the Pile. `retro join` reads files with them and
`retro evaluate` scores by them. They import the standard library, numpy, core, and data alone.
"""

from retro_jax.evaluate.protocols import curation, documents, lambada, pile, wikitext103  # noqa: F401
from retro_jax.evaluate.protocols.protocol import PROTOCOLS, EvaluationText, Excluded, Protocol, get, register
from retro_jax.evaluate.protocols.spans import scored_tokens

__all__ = ["PROTOCOLS", "EvaluationText", "Excluded", "Protocol", "get", "register", "scored_tokens"]
