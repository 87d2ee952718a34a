"""The full model: arrangement of layers, Off, gradients in both precisions, parameters as a dict, bad shapes."""

import dataclasses
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, pack, random_parameters, tiny

from retro_jax.models.retro import (
    abstract_model,
    apply_hidden,
    initialize,
    layer_parameters,
    merge,
    params_of,
    zero_cca_updates,
)
from retro_jax.models.stack import UNROLLED, _runs, is_scanned

PACKED = pack(TINY, [14, 6], 2)
SEQUENCE = PACKED.batch(2)


def _loss(config, params, *batch):
    hidden = apply_hidden(config, params, *batch).astype(jnp.float32)
    return jnp.sum(hidden**2 * jnp.cos(jnp.arange(hidden[0].size)).reshape(hidden[0].shape))


@lru_cache
def _compiled(config, gradients):
    """The loss, or the loss and its gradients; compiled without optimization, which these sizes do not need."""
    function = jax.value_and_grad(_loss, argnums=1) if gradients else _loss
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda params, *batch: function(config, params, *batch), compiler_options=options)


def _value_and_gradients(config, params, batch=SEQUENCE):
    return _compiled(config, True)(params, *batch)


@pytest.mark.parametrize(
    ("layers", "reading", "runs"),
    [
        (12, (), [(12, 1, False)]),
        (4, (1,), [(1, 1, True), (3, 1, False)]),
        (12, (6, 9, 12), [(5, 1, False), (1, 1, True), (2, 1, False), (1, 3, True), (1, 1, True)]),
        (32, tuple(range(6, 33, 3)), [(5, 1, False), (1, 1, True), (2, 1, False), (8, 3, True)]),
        (6, (2, 5), [(1, 1, False), (1, 1, True), (2, 1, False), (1, 2, True)]),
        (3, (1, 2, 3), [(1, 1, True), (2, 1, True)]),
        (5, (1, 2, 4), [(1, 1, True), (2, 2, True)]),
    ],
)
def test_groups_of_layers(layers, reading, runs):
    """(groups, layers in a group, does its first layer read): the first reading layer alone, equal groups together."""
    assert _runs(layers, reading, scan=True) == runs
    assert sum(groups * size for groups, size, _ in runs) == layers
    assert sum(groups for groups, _, reads in runs if reads) == len(reading)


@pytest.mark.parametrize("reading", [(), (1,), (1, 2, 3, 4, 5, 6, 7), (2, 5), (2, 4, 6)], ids=str)
def test_scanned_equals_unrolled_for_every_set_of_layers(reading):
    """Guards against scanned layers that compute something else than unrolled ones."""
    config = tiny(layers=7, retrieval_layers=reading, encoder={"layers": 1}, scan=True)
    params = random_parameters(config)
    value = _compiled(config, False)(params, *SEQUENCE)
    expected = _compiled(dataclasses.replace(config, scan=False), False)(params, *SEQUENCE)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("scan", "platform", "remat", "layers", "scanned"),
    [
        ("auto", "cpu", "none", 12, False),
        ("auto", "cpu", "none", UNROLLED, False),
        ("auto", "cpu", "none", UNROLLED + 1, True),
        ("auto", "cpu", "full", 12, True),
        ("auto", "tpu", "none", 12, True),
        ("auto", "gpu", "none", 2, True),
        (True, "cpu", "none", 2, True),
        (False, "tpu", "full", 99, False),
    ],
)
def test_layers_are_unrolled_where_that_is_faster(scan, platform, remat, layers, scanned):
    assert is_scanned(tiny(scan=scan, remat=remat), layers, platform) is scanned


def test_auto_is_the_unrolled_program_on_a_cpu_and_every_form_has_the_same_parameters():
    """Guards against checkpoints that fit one arrangement alone."""
    forms = {scan: tiny(layers=5, retrieval_layers=(1, 2, 4), scan=scan) for scan in ("auto", True, False)}
    params = random_parameters(forms[True])
    texts = {}
    for scan, one in forms.items():
        lowered = jax.jit(lambda params, *batch, one=one: _loss(one, params, *batch)).lower(params, *SEQUENCE)
        texts[scan] = lowered.as_text()
    assert texts["auto"] == texts[False]
    assert "stablehlo.while" in texts[True] and "stablehlo.while" not in texts[False]
    assert len({str(abstract_model(one)[1]) for one in forms.values()}) == 1


@pytest.mark.parametrize(("scan", "remat"), [(False, "none"), (False, "dots"), (True, "full"), (True, "dots")])
def test_scan_and_rematerialization_change_no_gradient(scan, remat):
    """Guards against gradients that change with scan or remat, with two groups of two layers under one scan."""
    config = tiny(layers=5, retrieval_layers=(1, 2, 4), encoder={"layers": 1}, scan=True)
    params = random_parameters(config)
    expected, expected_gradients = _value_and_gradients(config, params)
    value, gradients = _value_and_gradients(dataclasses.replace(config, scan=scan, remat=remat), params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    _assert_near(gradients, expected_gradients)


def test_bfloat16_runs_forward_and_backward_near_float32():
    """Guards against bfloat16 that gives NaN or leaves float32, with padding, missing neighbors and packed documents."""
    params = random_parameters(TINY)
    tokens, segments, neighbors = SEQUENCE
    neighbors = neighbors.copy()
    neighbors[0, 1] = -1  # a chunk that retrieved nothing
    batch = (tokens, segments, neighbors)
    _, exact = _value_and_gradients(TINY, params, batch)
    value, rough = _value_and_gradients(tiny(compute_dtype="bfloat16"), params, batch)
    assert np.isfinite(value)
    for (path, got), expected in zip(jax.tree_util.tree_leaves_with_path(rough), jax.tree.leaves(exact), strict=True):
        name = jax.tree_util.keystr(path)
        assert got.dtype == jnp.float32, name
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert error < 0.1, (name, error)  # NaN fails too


def test_nothing_retrieved_equals_off():
    """Guards against empty retrieval that differs from Off. Padded sets and K = 0 equal Off, and On differs."""
    params = random_parameters(TINY)
    tokens, segments, neighbors = SEQUENCE
    off = apply_hidden(TINY, params, tokens, segments, None)
    np.testing.assert_array_equal(apply_hidden(TINY, params, tokens, segments, neighbors[:, :, :0]), off)
    padded = apply_hidden(TINY, params, tokens, segments, np.full_like(neighbors, -1))
    assert np.abs(padded - off).max() < 1e-6 * np.abs(off).max()  # two programs: to rounding, not to the bit
    assert np.abs(apply_hidden(TINY, params, *SEQUENCE) - off).max() > 0.1


def test_a_baseline_is_the_decoder_alone():
    """A RETRO model's decoder entries are a baseline's parameters: same names, same shapes, Off the same bits."""
    params = random_parameters(TINY)
    baseline = tiny(retrieval_layers=())
    names = set(abstract_model(baseline)[1])
    assert names == {"embedding", "layers", "final_norm"}
    decoder = {name: params[name] for name in names}
    tokens, segments, _ = SEQUENCE
    np.testing.assert_array_equal(
        apply_hidden(baseline, decoder, tokens, segments), apply_hidden(TINY, params, tokens, segments)
    )


def test_zero_output_projections_start_at_off():
    """Guards against a retrofit that starts elsewhere. Before its first step On is Off; only the CCA output changes."""
    params = random_parameters(TINY)
    zeroed = zero_cca_updates(params)
    tokens, segments, neighbors = SEQUENCE
    off = apply_hidden(TINY, params, tokens, segments)
    on = apply_hidden(TINY, zeroed, tokens, segments, neighbors)
    assert np.abs(on - off).max() < 1e-6 * np.abs(off).max()  # two programs: to rounding, not to the bit
    changed = jax.tree.map(lambda one, other: bool(np.any(one != other)), zeroed, params)
    assert changed["cross_attention"].pop("output") and not any(jax.tree.leaves(changed))


def test_initial_parameters_follow_the_abstract_ones_and_the_seed():
    drawn = jax.jit(lambda seed: initialize(TINY, seed))
    params = drawn(3)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), abstract_model(TINY)[1]
    )
    again, other = drawn(3), drawn(4)
    assert all(
        np.array_equal(one, two) for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True)
    )
    assert not np.array_equal(other["embedding"], params["embedding"])
    query = np.asarray(params["layers"]["attention"]["query"])
    assert not np.array_equal(query[0], query[1])  # layers of a stack are drawn apart
    output, inner = params["layers"]["attention"]["output"], TINY.heads * TINY.head_dim
    assert query.std() == pytest.approx(TINY.width**-0.5, rel=0.1)
    assert output.std() == pytest.approx((inner * 2 * TINY.layers) ** -0.5, rel=0.1)
    round_trip = params_of(merge(TINY, params))
    assert jax.tree.structure(round_trip) == jax.tree.structure(params)


def test_a_fresh_model_knows_nothing():
    """Guards against an untrained model that predicts repeated tokens because of the tied readout: exp(-16) here."""
    config = tiny(width=256, vocabulary=1_000, layers=2, retrieval_layers=(2,), sequence_length=24)
    tokens, segments, _ = pack(config, [24], 0).batch()
    logits = jax.jit(lambda: merge(config, initialize(config, 0))(tokens, segments))()
    log_probabilities = jax.nn.log_softmax(logits)[0]
    nats = -log_probabilities[np.arange(23), tokens[0, 1:]]
    own = -log_probabilities[np.arange(24), tokens[0]]
    assert abs(nats.mean() - np.log(1_000)) < 0.7  # log 2 for the own token at one half
    assert np.log(2) < own.mean()


def test_layers_as_a_list():
    """Without stacks: layer p's entry holds row p of the stacks, and the cross-attentions of P in their layers."""
    params = random_parameters(TINY)
    layered = layer_parameters(TINY, params)
    assert [sorted(layer) for layer in layered["layers"]] == [
        ["attention", "feed_forward"],
        ["attention", "cross_attention", "feed_forward"],
        ["attention", "cross_attention", "feed_forward"],
        ["attention", "feed_forward"],
    ]
    np.testing.assert_array_equal(layered["layers"][3]["feed_forward"]["up"], params["layers"]["feed_forward"]["up"][3])
    np.testing.assert_array_equal(layered["layers"][2]["cross_attention"]["key"], params["cross_attention"]["key"][1])
    assert ["cross_attention" in layer for layer in layered["encoder"]["layers"]] == [True, False]
    assert "cross_attention" not in layered["encoder"]


def test_padding_takes_no_part():
    """Guards against gradients for padding.

    Tokens that never occur get zero, token 0 (where padding is looked up) included.
    """
    params = random_parameters(TINY)
    tokens, segments, neighbors = (np.where(array == 0, 1, array) for array in SEQUENCE)
    segments = SEQUENCE[1]
    assert (tokens == -1).any() and (neighbors == -1).any()
    _, gradients = _value_and_gradients(TINY, params, (tokens, segments, neighbors))
    assert not np.asarray(gradients["embedding"][0]).any()
    assert not np.asarray(gradients["encoder"]["embedding"][0]).any()
    assert np.asarray(gradients["embedding"][1]).any() and np.asarray(gradients["encoder"]["embedding"][1]).any()


def test_logits_are_the_readout_of_hidden_in_float32():
    params = random_parameters(TINY)
    model = merge(tiny(compute_dtype="bfloat16"), params)
    hidden = model.hidden(*SEQUENCE)
    logits = model(*SEQUENCE)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert logits.shape == (2, TINY.sequence_length, TINY.vocabulary)
    expected = np.asarray(hidden, np.float32) @ np.asarray(params["embedding"].astype(jnp.bfloat16), np.float32).T
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, s, n: (t[:, :-1], s, n), "whole number of chunks"),
        (lambda t, s, n: (t, s[:, :-1], n), "segments must give each of"),
        (lambda t, s, n: (t, s, n[:, :-1]), "neighbor_tokens must be"),
        (lambda t, s, n: (t, s, n[..., :-1]), "neighbor_tokens must be"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        apply_hidden(TINY, random_parameters(TINY), *change(*SEQUENCE))


def test_parameters_of_another_config_are_named():
    params = random_parameters(TINY)
    with pytest.raises(ValueError, match=r"missing \[\], not known .*cross_attention.*encoder"):
        merge(tiny(retrieval_layers=()), params)


def _assert_near(gradients, expected_gradients):
    for (path, got), expected in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(got / scale, expected / scale, atol=2e-5, err_msg=jax.tree_util.keystr(path))
