"""Counts of parameters against the paper's tables and against the model's arrays, from shapes alone."""

import dataclasses
import math

import jax
import pytest
from table_13 import TABLE_13, ablated

from retro_jax.config import ModelConfig
from retro_jax.models.counts import parameter_counts, parameter_totals
from retro_jax.models.retro import abstract_model

KERNELS = frozenset({"query", "key", "value", "output", "position", "up", "down", "gate"})
SIZES = {
    "172m": ModelConfig(),
    "425m": ModelConfig(width=1536, heads=12, head_dim=128, feed_forward=6144),
    "1b5": ModelConfig(
        layers=24, width=2048, heads=16, head_dim=128, feed_forward=8192, retrieval_layers=tuple(range(6, 25, 3))
    ),
    "7b5": ModelConfig(
        layers=32, width=4096, heads=32, head_dim=128, feed_forward=16_384, retrieval_layers=tuple(range(6, 33, 3))
    ),
}
# Millions: decoder, encoder, one CCA layer and how many, encoder cross-attention, total; the total as the paper prints it.
TABLE = {
    "172m": (132.12, 22.02, 4.59, 3, 4.59, 172.49, 172),
    "425m": (368.05, 22.02, 9.83, 3, 5.90, 425.46, 425),
    "1b5": (1308.62, 22.02, 16.25, 7, 6.95, 1451.36, 1451),
    "7b5": (6979.32, 22.02, 57.67, 9, 11.14, 7531.53, 7532),
}


def in_arrays(config: ModelConfig) -> dict[str, int]:
    """`parameter_totals`, counted from the shapes of the model's arrays."""
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_model(config)[1]):
        names = [key.key for key in path]
        part = "embeddings" if names[-1] in ("embedding", "unembedding") else "norms_and_biases"
        if names[-1] in KERNELS:
            crossing, of_encoder = "cross_attention" in names, names[0] == "encoder"
            part = ("encoder_" if of_encoder else "") + "cross_attention"
            part = part if crossing else "encoder" if of_encoder else "decoder"
        counts[part] = counts.get(part, 0) + math.prod(leaf.shape)
    total = sum(counts.values())
    return {**counts, "non_embedding": total - counts["embeddings"], "total": total}


def without_zeros(counts: dict[str, int]) -> dict[str, int]:
    return {part: count for part, count in counts.items() if count}


@pytest.mark.parametrize("size", SIZES)
def test_the_papers_table_by_part(size):
    """Guards against a config field without effect.

    Every part has the table's digits, every total the integer that the paper prints.
    """
    decoder, encoder, reader, readers, conditioning, total, printed = TABLE[size]
    counts = parameter_counts(SIZES[size])
    millions = {part: round(count / 1e6, 2) for part, count in counts.items()}
    assert millions["decoder"] == decoder and millions["encoder"] == encoder
    assert round(counts["cross_attention"] / readers / 1e6, 2) == reader
    assert millions["encoder_cross_attention"] == conditioning and millions["total"] == total
    assert round(counts["total"] / 1e6) == printed


@pytest.mark.parametrize("size", SIZES)
def test_arrays_hold_what_the_formula_says(size):
    """Guards against a formula that counts other arrays than the model has, for RETRO and its baseline."""
    retro = SIZES[size]
    baseline = dataclasses.replace(retro, retrieval_layers=())
    for config in (retro, baseline, dataclasses.replace(retro, neighbors=0)):
        assert in_arrays(config) == parameter_totals(config)
    assert set(parameter_counts(baseline)) == {"decoder", "total"}


@pytest.mark.parametrize("row", TABLE_13)
def test_an_ablation_removes_its_weights(row):
    """Every row of Table 13: arrays and formula agree, and a row that removes something has fewer parameters."""
    usual, config = ModelConfig(), ablated(ModelConfig(), row)
    assert without_zeros(in_arrays(config)) == without_zeros(parameter_totals(config))
    removed = parameter_totals(usual)["total"] - parameter_totals(config)["total"]
    inner, width = usual.heads * usual.head_dim, usual.width
    expected = {
        "no_query_conditioning": 5 * inner * width + 2 * width + 2 * inner,
        "no_positions": (3 + 1) * (inner * width + inner),
        "shared_embeddings": usual.vocabulary * width,
        "neighbor_only": 0,
        "continuation_only": 0,
        "train_k_1": 0,
        "train_k_4": 0,
        "middle_layer": 2 * (5 * inner * width + width + 2 * inner),
    }
    assert row not in expected or removed == expected[row]


@pytest.mark.parametrize("reading", [(), (1,), (1, 2)])
def test_conditioning_layers_of_the_encoder_are_counted(reading):
    encoder = dataclasses.replace(ModelConfig().encoder, cross_attention_layers=reading)
    config = dataclasses.replace(ModelConfig(), encoder=encoder)
    assert in_arrays(config).get("encoder_cross_attention", 0) == parameter_counts(config)["encoder_cross_attention"]
    assert parameter_counts(config)["total"] == 167_903_232 + len(reading) * 4_587_520
