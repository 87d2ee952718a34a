"""The results of a sweep: one tidy table, means over seeds, the best points, a page, and TensorBoard's HParams.

Read outcomes (what is known of each point), then table, seeds, plots and page. It imports retro_jax.evaluate and
retro_jax.core; `launch/sweep` plans and runs sweeps and calls it.
"""
