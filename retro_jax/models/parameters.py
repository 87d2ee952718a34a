"""Parameter counts by part: the formula of PAPER.md 3.3, and the same counted from a model's arrays.

Only kernels count, as in the paper's Table 2: embeddings, norm scales and biases are left out.
"""

import math

import jax

from retro_jax.config import ModelConfig
from retro_jax.models.retro import abstract_model

KERNELS = frozenset({"query", "key", "value", "output", "position", "up", "down"})


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Kernel weights of each part and their "total", from the sizes alone."""
    width, inner, feed_forward = config.width, config.heads * config.head_dim, config.feed_forward
    encoder = config.encoder
    encoder_inner = encoder.heads * encoder.head_dim
    # Query, output and position projections are on the asking side's width, key and value on the other's.
    counts = {"decoder": config.layers * (5 * width * inner + 2 * width * feed_forward)}
    if config.retrieves:
        counts["cross_attention"] = len(config.retrieval_layers) * inner * (3 * width + 2 * encoder.width)
        counts["encoder"] = encoder.layers * (
            5 * encoder.width * encoder_inner + 2 * encoder.width * encoder.feed_forward
        )
        counts["encoder_cross_attention"] = (
            len(encoder.cross_attention_layers) * encoder_inner * (3 * encoder.width + 2 * width)
        )
    return {**counts, "total": sum(counts.values())}


def counted_parameters(config: ModelConfig) -> dict[str, int]:
    """The same, counted from the shapes of the model's arrays; allocates nothing."""
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_model(config)[1]):
        names = [key.key for key in path]
        if names[-1] in KERNELS:
            part = part_of(names)
            counts[part] = counts.get(part, 0) + math.prod(leaf.shape)
    return {**counts, "total": sum(counts.values())}


def part_of(names: list[str]) -> str:
    """Which part of the model the parameter at this path of the nested dict belongs to."""
    if names[0] == "encoder":
        return "encoder_cross_attention" if names[1] == "cross_attention" else "encoder"
    return "cross_attention" if names[0] == "cross_attention" else "decoder"
