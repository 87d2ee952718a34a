"""Table 13: every row is a change of the config, which model, NumPy loops and counts of FLOPs follow."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from table_13 import TABLE_13, ablated
from test_reference import assert_close, loops
from tiny_model import TINY, pack, random_parameters
from training_fixture import MODEL, make_run

from retro_jax.config import ABLATIONS, MeshConfig, ModelConfig, RunConfig, check_model, resolve, to_dict
from retro_jax.models import reference
from retro_jax.models.counts import executed_flops, flops_per_token
from retro_jax.models.retro import abstract_model, layer_parameters, merge
from retro_jax.preflight import hlo
from retro_jax.preflight.step import abstract_step

CHANGES = [row for row in TABLE_13 if row != "default"]


@pytest.mark.parametrize("row", CHANGES)
def test_a_row_equals_the_loops_and_is_not_the_default(row):
    """An ablation that one side ignores would show here: every weight is far from zero."""
    config = ablated(TINY, row)
    params, sequence = random_parameters(config), pack(config, [7, 4, 10], max(config.neighbors, 2))
    if config.retrieves:  # the loops get what the model's batches hold: the first k neighbors
        sequence = dataclasses.replace(sequence, neighbor_tokens=sequence.neighbor_tokens[:, : config.neighbors])
    function = jax.jit(
        lambda params, *batch: merge(config, params)(*batch), compiler_options={"xla_backend_optimization_level": 0}
    )
    got = np.asarray(function(params, *sequence.batch()))[0]
    expected = loops(config, params, sequence)
    assert_close(got, expected, sequence)
    if row in ("neighbor_only", "continuation_only"):
        whole = loops(dataclasses.replace(config, neighbor_parts="both"), params, sequence)
        assert np.abs(whole - expected).max() > 1e-2


def test_a_part_of_the_neighbor_keeps_its_positions():
    """F alone is N hidden: with the encoder's self-attention removed, masking N and not reading it are the same."""
    config = ablated(TINY, "continuation_only")
    params, sequence = random_parameters(config), pack(config, [24], 2)
    params["encoder"]["layers"]["attention"]["output"] *= 0
    hidden = sequence.neighbor_tokens.copy()
    hidden[:, :, : config.chunk_length] = -1
    weights = layer_parameters(config, params)
    arguments = (weights, sequence.tokens, sequence.segments)
    masked = reference.logits(*arguments, hidden, config.chunk_length)
    cut = reference.logits(*arguments, sequence.neighbor_tokens, config.chunk_length, neighbor_parts="continuation")
    np.testing.assert_allclose(cut, masked, rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", TABLE_13)
def test_counted_flops_follow_the_traced_step(row):
    run = make_run(dataclasses.replace(ablated(MODEL, row), remat="full"), mesh=MeshConfig(1, 1, 1))
    step, arguments = abstract_step(run, jax.devices()[:1])
    assert hlo.traced_flops(step.trace(*arguments).jaxpr.jaxpr) == executed_flops(run)


def test_model_flops_of_what_is_not_computed_are_not_counted():
    """The utilization of an ablated run is measured by what that run computes."""
    whole = flops_per_token(MODEL)
    less = ("no_query_conditioning", "no_positions", "neighbor_only", "train_k_1")
    assert all(flops_per_token(ablated(MODEL, row)) < whole for row in less)
    parts = [flops_per_token(ablated(MODEL, row)) for row in ("neighbor_only", "continuation_only")]
    assert parts[0] == parts[1]


def test_what_an_ablation_removes_has_no_weights():
    paths = {"/".join(path) for path in flatten_dict(abstract_model(ablated(TINY, "no_positions"))[1])}
    positions = {path for path in paths if "position" in path}
    assert positions == {
        f"{side}layers/attention/{name}" for side in ("", "encoder/") for name in ("position", "position_bias")
    }
    assert "embedding" not in abstract_model(ablated(TINY, "shared_embeddings"))[1]["encoder"]


def test_an_ablated_config_comes_back_from_json():
    for row in TABLE_13:
        run = RunConfig(model=ablated(ModelConfig(), row))
        assert resolve(json.loads(json.dumps(to_dict(run)))) == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"shared_embeddings": True},
            r"width=16 and config.model.encoder.width=12 .* take config.model.encoder.width=16",
        ),
        *(
            ({"retrieval_layers": (), name: value}, rf"config.model.{name}={value} would change nothing")
            for name, value in zip(ABLATIONS, ("neighbor", False, True, True), strict=True)
        ),
    ],
    ids=str,
)
def test_a_combination_that_cannot_be_meant_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_model(dataclasses.replace(TINY, **change))
