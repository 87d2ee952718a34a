"""Parameter counts by part against the paper's tables, from shapes alone."""

import dataclasses

import pytest

from retro_jax.config import ModelConfig
from retro_jax.models.parameters import counted_parameters, parameter_counts

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
    for config in (retro, baseline):
        assert counted_parameters(config) == parameter_counts(config)
    assert set(parameter_counts(baseline)) == {"decoder", "total"}


@pytest.mark.parametrize("reading", [(), (1,), (1, 2)])
def test_conditioning_layers_of_the_encoder_are_counted(reading):
    encoder = dataclasses.replace(ModelConfig().encoder, cross_attention_layers=reading)
    config = dataclasses.replace(ModelConfig(), encoder=encoder)
    counted = counted_parameters(config)
    assert counted.get("encoder_cross_attention", 0) == parameter_counts(config)["encoder_cross_attention"]
    assert counted["total"] == parameter_counts(config)["total"] == 167_903_232 + len(reading) * 4_587_520
