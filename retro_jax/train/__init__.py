"""Training: the loop, the compiled step, the state, the optimizer, logging and checks.

Read loop first: its docstring gives the order of one step. Then step, state, optimizer, step_log, metrics, health. What a
run keeps on disk is in run_directory. It imports config, core, data, models, parallel and run_directory.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__, {"train": "loop", "load": "retro_jax.run_directory.checkpoints:load_model"}
)
