"""`retro sweep`: many points of one config, with one table and one page at the end.

Read points (what a point is), plan, digests and planner (what the points need), state (what is finished), run (how it is run), then
verb. `cost` estimates, `commands` writes launch commands, `on_ray` runs on a Ray cluster. The results are made by
`retro_jax/sweep`.
"""

from launch.sweep.verb import VERB, main

__all__ = ["VERB", "main"]
