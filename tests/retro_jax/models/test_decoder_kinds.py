"""Decoders of the Llama family: the JAX model against the NumPy loops, their counts, and what the config refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_kinds import FAMILY, KINDS
from test_counts import in_arrays, without_zeros
from test_reference import assert_close, loops
from tiny_model import TINY, pack, random_parameters, tiny
from training_fixture import MODEL, make_run

from retro_jax.config import DECODER_KIND, MeshConfig, ModelConfig, RunConfig, check_model, completed, resolve, to_dict
from retro_jax.config.model import OF_ROTARY
from retro_jax.models.counts import executed_flops, parameter_totals
from retro_jax.models.kernels.known import uses
from retro_jax.models.positions import rotary, rotate
from retro_jax.models.retro import abstract_model, initialize, merge, zero_cca_updates
from retro_jax.preflight import hlo
from retro_jax.preflight.step import abstract_step

GATED = {"cross_attention_gate": True}


def logits(config, params, *batch):
    function = jax.jit(
        lambda params, *batch: merge(config, params)(*batch), compiler_options={"xla_backend_optimization_level": 0}
    )
    return np.asarray(function(params, *batch))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_with_retrieval_equals_the_loops(kind):
    """Packed documents, padding and neighbors; every weight is far from zero, so an option that one side ignores shows."""
    config = tiny(**KINDS[kind], **GATED)
    params, sequence = random_parameters(config), pack(config, [7, 4, 10], 2)
    assert_close(logits(config, params, *sequence.batch()), loops(config, params, sequence), sequence)


@pytest.mark.parametrize("option", DECODER_KIND)
def test_each_option_changes_the_logits_of_the_loops_and_of_the_model(option):
    """Guards against an option that both sides leave out: alone, it makes another model."""
    full = {**KINDS["llama"], "query_key_norm": True, "attention_biases": True}
    config = tiny(retrieval_layers=(), **full)
    off = {option: getattr(ModelConfig, option)}
    if option == "positions":
        off |= {name: getattr(ModelConfig, name) for name in OF_ROTARY}
    other = dataclasses.replace(config, **off)
    check_model(other)
    sequence = pack(config, [7, 4, 10], 0)
    found = [
        logits(each, random_parameters(each), *sequence.batch()[:2])[sequence.tokens >= 0] for each in (config, other)
    ]
    size = 1e-6 if option == "norm_epsilon" else 1e-2
    assert np.abs(found[0] - found[1]).max() > size
    assert_close(
        logits(other, random_parameters(other), *sequence.batch()[:2]),
        loops(other, random_parameters(other), sequence),
        sequence,
    )


def test_rotary_logits_depend_on_differences_of_positions():
    """Guards against angles that restart or grow with another step: moving queries and keys alike changes nothing."""
    queries, keys = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    turn = rotary(64, 8, 100.0)
    q, k = rotate(np.tile(queries, (64, 1)), turn), rotate(np.tile(keys, (64, 1)), turn)
    products = np.asarray(q @ k.T)
    for distance in (-5, 0, 3):
        along = np.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], rtol=0, atol=1e-5)
    assert abs(products[3, 0] - products[0, 3]) > 1e-2  # and on their sign
    np.testing.assert_allclose(rotate(queries[None], rotary(1, 8, 100.0)), queries[None])  # position 0 is not turned


def test_a_document_reads_the_same_wherever_it_stands_in_a_sequence():
    config = tiny(retrieval_layers=(), **KINDS["qwen3"])
    params, sequence = random_parameters(config), pack(config, [8, 12], 0)
    alone = np.full_like(sequence.tokens, -1)
    alone[:12] = sequence.tokens[8:20]
    segments = np.where(np.arange(config.chunks) < 3, 0, -1).astype(np.int32)
    first = logits(config, params, alone[None], segments[None])[:12]
    np.testing.assert_allclose(logits(config, params, *sequence.batch()[:2])[8:20], first, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_and_flops_are_those_counted(kind):
    for base in (TINY, tiny(retrieval_layers=())):
        config = dataclasses.replace(base, **KINDS[kind], **(GATED if base.retrieves else {}))
        assert without_zeros(in_arrays(config)) == without_zeros(parameter_totals(config))
    model = dataclasses.replace(MODEL, remat="full", **KINDS[kind])
    run = make_run(model, mesh=MeshConfig(1, 1, 1))
    step, arguments = abstract_step(run, jax.devices()[:1])
    assert hlo.traced_flops(step.trace(*arguments).jaxpr.jaxpr) == executed_flops(run)


def test_the_size_of_smollm2_135m():
    """The number of parameters that its authors give."""
    config = ModelConfig(
        vocabulary=49_152, layers=30, width=576, heads=9, head_dim=64, feed_forward=1536, retrieval_layers=(),
        **{**KINDS["smollm"], "key_heads": 3, "rotary_scaling": ()},
    )  # fmt: skip
    assert parameter_totals(config)["total"] == 134_515_008


def test_an_untrained_model_predicts_nothing():
    """The loss starts near the vocabulary's logarithm, tied or not."""
    for kind in ("llama", "smollm"):
        config = tiny(retrieval_layers=(), **KINDS[kind])
        sequence = pack(config, [24], 0)
        found = logits(config, jax.jit(lambda config=config: initialize(config, 0))(), *sequence.batch()[:2])
        nats = np.log(np.exp(found - found.max(1, keepdims=True)).sum(1)) + found.max(1)
        targets = found[np.arange(23), sequence.tokens[1:24]]
        assert abs((nats[:23] - targets).mean() - np.log(config.vocabulary)) < 1.0


@pytest.mark.parametrize("options", [{}, GATED], ids=["outputs", "gate"])
def test_a_retrofit_starts_with_a_gate_or_outputs_at_zero(options):
    """Guards against both at zero, where neither has a gradient: On is Off, and what is zero has a gradient."""
    config = tiny(layers=1, retrieval_layers=(1,), encoder={"layers": 1}, **KINDS["smollm"], **options)
    params, sequence = zero_cca_updates(random_parameters(config)), pack(config, [24], 2)
    tokens, segments, neighbors = sequence.batch()

    def both(cross):
        on, off = (merge(config, params | {"cross_attention": cross})(tokens, segments, n) for n in (neighbors, None))
        return (on**2).mean(), jnp.abs(on - off).max()

    function = jax.jit(jax.grad(both, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    gradient, difference = function(params["cross_attention"])
    assert difference < 1e-5
    zeros = [name for name, leaf in params["cross_attention"].items() if not np.any(leaf)]
    assert zeros == (["update_gate"] if options else ["output"])
    assert np.abs(gradient[zeros[0]]).max() > 1e-6


def test_the_defaults_are_the_papers_decoder():
    """Guards against a new key that changes older runs: without the keys a config is read as the paper's."""
    config = to_dict(RunConfig())
    for name in (*DECODER_KIND, "cross_attention_gate"):
        del config["model"][name]
    assert resolve(completed(json.loads(json.dumps(config)))) == RunConfig()
    layers = abstract_model(TINY)[1]["layers"]
    assert set(layers["attention"]) == {
        "norm",
        "query",
        "key",
        "value",
        "output",
        "position",
        "content_bias",
        "position_bias",
    }
    assert set(layers["feed_forward"]) == {"norm", "up", "down"}


def test_a_use_of_rotary_attention_has_no_position_logits():
    """A kernel for relative positions may refuse it."""
    for positions in ("relative", "rotary"):
        found = uses(tiny(positions=positions), "cpu")
        assert [use.positions for use in found] == [positions == "relative", True, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_heads": 1}, "config.model.key_heads=1 needs config.model.positions=rotary"),
        ({"rotary_theta": 2.0}, "config.model.rotary_theta=2.0 needs config.model.positions=rotary"),
        ({"query_key_norm": True}, "config.model.query_key_norm=True needs"),
        ({**FAMILY, "rotary_scaling": (1.0, 2.0)}, r"is \(\), \(FACTOR,\) or .* but is \(1.0, 2.0\)"),
        ({**FAMILY, "rotary_scaling": (8.0, 4.0, 1.0, 64.0)}, "with LOW below HIGH"),
        ({"attention_biases": True}, "config.model.attention_biases=True needs"),
        ({**FAMILY, "heads": 6, "key_heads": 4}, "heads=6 is not a multiple of config.model.key_heads=4"),
        ({**FAMILY, "head_dim": 5}, "config.model.head_dim=5 is odd; take 6"),
        ({"retrieval_layers": (), **GATED}, "cross_attention_gate=True would change nothing"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_model(dataclasses.replace(TINY, **change))
