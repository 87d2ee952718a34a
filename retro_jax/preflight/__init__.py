"""Memory and cost of a training step on devices that you do not have: by the compiler, and by formulas.

Read report, compile, estimate, hlo, remedies. It imports config, core, data, models, parallel, presets and train.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(__name__, {"preflight": "report"})
