"""`config.sample`: how `retro sample` continues a prompt."""

from dataclasses import dataclass

from retro_jax.config.settings import SEED, Number, at_least, setting


@dataclass(frozen=True)
class SampleConfig:
    """How tokens are drawn."""

    tokens: int = setting(128, at_least(1), "Tokens to generate at most.")
    temperature: float = setting(0.8, at_least(0), "Divides the logits; 0 takes the likeliest token.")
    top_p: float = setting(
        0.95, Number(0, 1, above=True), "The likeliest tokens that together have this probability stay; 1 keeps all."
    )
    seed: int = setting(0, SEED, "Seed of the draws.")
