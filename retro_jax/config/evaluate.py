"""`config.evaluate`: bits per byte by subset, with every control."""

from dataclasses import dataclass

from retro_jax.config.settings import INT32, SEED, TEXT, Names, Number, Numbers, at_least, between, setting

FEWEST_RESAMPLES = 40  # with fewer, 2.5% is less than one resample: no 95% interval


@dataclass(frozen=True)
class EvaluateConfig:
    """Bits per byte by subset, with every control."""

    retro: str = setting("", TEXT, "Run directory of the RETRO model; empty: WORKDIR/retro.")
    baseline: str = setting("", TEXT, "Run directory of the baseline; empty: WORKDIR/baseline, if there is one.")
    batch: int = setting(16, between(1, INT32), "Sequences that are scored at once.")
    bootstrap: int = setting(10_000, at_least(FEWEST_RESAMPLES), "Resamples of documents for the 95% intervals.")
    seed: int = setting(0, SEED, "Seed of random and shuffled neighbors and of the resamples.")
    overlap_neighbors: int = setting(10, at_least(1), "Stored neighbors that the overlap r(C) looks at (paper 2.6).")
    passages: int = setting(6, at_least(0), "Passages of each set shown in the report.")
    sets: tuple[str, ...] = setting(
        (), Names(), "Sets to evaluate: held_out, or those that `retro join` made; (): all there are."
    )
    overlap: float = setting(
        0.0, Number(0, 1, below=True), "Share of a window that is context alone; 0: what the set's protocol says (0.5)."
    )
    tried_neighbors: tuple[int, ...] = setting(
        (), Numbers(1, INT32), "On is also evaluated with so many neighbors; (): with config.model.neighbors alone."
    )
    tried_shares: tuple[float, ...] = setting(
        (), Numbers(0, 1, open=True), "On is also evaluated with these nested shares of the database's documents."
    )
    tried_databases: tuple[str, ...] = setting(
        (), Names(), "On is also evaluated with the databases in these data directories (same encoder)."
    )
    answer_tokens: int = setting(32, between(1, INT32), "Tokens of an answer to a question at most.")
    contaminated: float = setting(
        0.0,
        between(0, 1),
        "Documents of which this share of 13-grams stands in one training document are not counted; 0: all are.",
    )
    clean_database: float = setting(
        0.0,
        between(0, 1),
        "Training documents that hold this share of the 13-grams of a document of the set are not searched; 0: all are.",
    )


def check_evaluate(evaluate: EvaluateConfig) -> None:
    """Raises ValueError where documents would be left out of a database that was never compared with the sets."""
    if evaluate.clean_database and evaluate.tried_databases:
        raise ValueError(
            f"config.evaluate.clean_database={evaluate.clean_database:g} leaves out training documents of the build's own "
            f"database; those in config.evaluate.tried_databases={evaluate.tried_databases} were never compared with the sets, "
            f"so copies would stay in them. Evaluate twice: with config.evaluate.clean_database=0, and with "
            f"config.evaluate.tried_databases=()."
        )
