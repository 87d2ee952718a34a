"""The paper's sizes and schedule as configs, the accelerators a run can be planned for, and recipes that fit them.

Read sizes, topologies, recipes. It imports config.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__, {"retro": "sizes", "baseline": "sizes", "parse_topology": "topologies"}
)
