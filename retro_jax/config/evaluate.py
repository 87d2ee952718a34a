"""`config.evaluate`: bits per byte by subset, with every control."""

from dataclasses import dataclass

from retro_jax.config.settings import INT32, SEED, TEXT, at_least, between, setting

FEWEST_RESAMPLES = 40  # of fewer, 2.5% are not one: there is no 95% interval


@dataclass(frozen=True)
class EvaluateConfig:
    """Bits per byte by subset, with every control."""

    retro: str = setting("", TEXT, "Run directory of the RETRO model; empty: WORKDIR/retro.")
    baseline: str = setting("", TEXT, "Run directory of the baseline; empty: WORKDIR/baseline, if there is one.")
    batch: int = setting(16, between(1, INT32), "Sequences that are scored at once.")
    bootstrap: int = setting(10_000, at_least(FEWEST_RESAMPLES), "Resamples of documents for the 95% intervals.")
    seed: int = setting(0, SEED, "Seed of random and shuffled neighbors and of the resamples.")
    overlap_neighbors: int = setting(10, at_least(1), "Stored neighbors that the overlap r(C) looks at (paper 2.6).")
    passages: int = setting(6, at_least(0), "Held-out passages shown in the report.")
