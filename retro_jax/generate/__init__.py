"""Generation: continues a prompt, retrieving after every full chunk. It imports config, core and models."""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(__name__, {"sample": "sampling"})
