"""Many devices and hosts: the mesh and its shardings, joining and leaving a run, preemption, and a watchdog for hangs.

Read sharding, on_mesh, hosts, roll_call, agreement, preemption, watchdog. It imports config, core and the type of a batch.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(__name__, {"make_mesh": "sharding"})
