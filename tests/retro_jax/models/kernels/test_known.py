"""Implementations of attention: each against the slow twin, one added from outside, and what is refused by name."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import KINDS as SHAPES
from test_sharding import EIGHT, make_batch
from tiny_model import TINY, pack, random_parameters
from training_fixture import MODEL, make_run

from retro_jax.config import MeshConfig
from retro_jax.models.decoder import causal_mask
from retro_jax.models.kernels import known
from retro_jax.models.kernels.known import Attend, Implementation, Mask, Use, check_attention, choose, register
from retro_jax.models.kernels.slow import attend_slowly
from retro_jax.models.kernels.trial import try_self_attention
from retro_jax.models.positions import causal_distances
from retro_jax.models.retro import merge
from retro_jax.parallel.sharding import make_mesh
from retro_jax.train.step import batch_nll

OF_KIND = dict(zip(known.KINDS, ("decoder self", "chunked cross", "encoder self", "conditioning"), strict=True))
SIZES = ((3, 4), (2, 64))  # (rows, head size); an implementation is tested at those that it does not refuse


def inputs(kind, rows, size, positioned):
    """Arrays, mask and distances of one kind; for "self" the mask's ids say what its matrix says."""
    distances, query_groups, key_groups = SHAPES[OF_KIND[kind]]
    if kind == "self":
        distances = causal_distances(64 if size == 64 else 8)
    generator = np.random.default_rng(0)
    queries, keys = distances.queries * query_groups, distances.keys * key_groups
    shapes = [(2, rows, length, size) for length in (queries, queries, keys, keys)]
    shapes.append((2, len(distances.rows()), size))
    arrays = [jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in shapes]
    if not positioned:
        arrays[1] = arrays[4] = None
    if kind != "self":
        mask = generator.random((rows, queries, keys)) < 0.7
        mask[0, 1] = False  # a query without keys
        return arrays, Mask(jnp.asarray(mask)), distances
    segments = jnp.asarray([[0, 1], [0, 0], [2, -1]])[:rows]
    valid = jnp.asarray(generator.random((rows, keys)) < 0.8)
    return arrays, causal_mask(segments, valid), distances


@pytest.mark.parametrize("positioned", [True, False], ids=["positions", "no positions"])
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, one in known.IMPLEMENTATIONS.items() for kind in one.kinds]
)
def test_an_implementation_equals_the_slow_twin(name, kind, positioned):
    """Values, and gradients leaf by leaf."""
    found, platform, tested = known.IMPLEMENTATIONS[name], jax.default_backend(), 0
    if found.platforms and platform not in found.platforms:
        pytest.skip(f"{name} runs on {found.platforms}; test_flash has it in interpret mode")
    for rows, size in SIZES:
        arrays, mask, distances = inputs(kind, rows, size, positioned)
        use = Use(kind, platform, size, arrays[0].shape[2], arrays[2].shape[2], positioned)
        if found.refuse(use):
            continue
        weight = jnp.cos(jnp.arange(arrays[0].size)).reshape(arrays[0].shape)
        given = [number for number, array in enumerate(arrays) if array is not None]

        def loss(form, mask, *changed, arrays=arrays, given=given, weight=weight, distances=distances):
            filled = list(arrays)
            for number, array in zip(given, changed, strict=True):
                filled[number] = array
            return jnp.sum(form(*filled, mask, distances) * weight)

        changed = [arrays[number] for number in given]
        every = tuple(range(2, 2 + len(given)))
        fast = jax.jit(jax.value_and_grad(loss, every), static_argnums=0)(Attend(name, kind), mask, *changed)
        slow = jax.value_and_grad(loss, every)(attend_slowly, mask.allowed, *changed)
        for got, expected in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-5, rtol=2e-5)
        tested += 1
    assert tested, f"{name} refuses every size of this test; add one to SIZES."


def test_the_ids_of_a_causal_mask_say_what_its_matrix_says():
    """A kernel reads the ids, and XLA the matrix."""
    valid = jnp.asarray([[1, 1, 0, 1, 1, 1, 0, 0], [1] * 8], bool)
    mask = causal_mask(jnp.asarray([[0, 0, 1, -1], [0, -1, -1, 3]]), valid)
    by_ids = mask.query_ids[:, :, None] == mask.key_ids[:, None, :]
    np.testing.assert_array_equal(mask.allowed, by_ids & np.tril(np.ones((8, 8), bool)))


@pytest.fixture
def added(monkeypatch):
    """Adds implementations for one test."""
    monkeypatch.setattr(known, "IMPLEMENTATIONS", dict(known.IMPLEMENTATIONS))
    return register


def by_ids(content_queries, position_queries, keys, values, positions, mask, distances):
    """A made-up implementation: the slow form, from the ids alone."""
    length = content_queries.shape[2]
    allowed = mask.query_ids[:, :, None] == mask.key_ids[:, None, :]
    allowed &= jnp.tril(jnp.ones((length, length), bool))
    return attend_slowly(content_queries, position_queries, keys, values, positions, allowed, distances)


def test_an_implementation_from_outside_runs_through_the_model(added):
    """Registered here, chosen by the config; the kinds that it does not declare are computed by XLA."""
    seen = []

    def attend(*arguments):
        seen.append(arguments[0].shape)
        return by_ids(*arguments)

    added(Implementation("made up", attend, kinds=("self",)))
    config = dataclasses.replace(TINY, attention="made up", layers=3)
    params, batch = random_parameters(config), pack(config, [7, 4, 10], 2).batch()
    got, expected = (
        jax.jit(lambda params, *batch, one=one: merge(one, params)(*batch))(params, *batch)
        for one in (config, dataclasses.replace(config, attention="xla"))
    )
    assert set(seen) == {(config.heads, 1, config.sequence_length, config.head_dim)}
    real = batch[0] >= 0
    np.testing.assert_allclose(got[real], expected[real], atol=1e-5 * np.abs(expected).max())


def test_a_kernel_gets_each_devices_heads_and_sequences(added):
    """Over 8 devices: the shapes that it sees, its loss and every gradient, also of what all devices share."""
    seen = []

    def attend(*arguments):
        seen.append(arguments[0].shape)
        return by_ids(*arguments)

    added(Implementation("made up", attend, kinds=("self",), a_device=True))
    batch = make_batch()

    def gradients(name, mesh):
        run = make_run(dataclasses.replace(MODEL, attention=name, layers=2, retrieval_layers=(2,)))
        used = random_parameters(run.model)
        loss = jax.value_and_grad(lambda params: batch_nll(run.model, params, batch, batch.neighbor_tokens, mesh).sum())
        return jax.jit(loss, compiler_options={"xla_backend_optimization_level": 0})(used)

    alone = gradients("xla", make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    together = gradients("made up", make_mesh(EIGHT))
    assert set(seen) == {(MODEL.heads // 2, 8 // 4, MODEL.sequence_length, MODEL.head_dim)}
    for (path, got), expected in zip(
        jax.tree_util.tree_leaves_with_path(together), jax.tree.leaves(alone), strict=True
    ):
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(got / scale, expected / scale, atol=5e-5, err_msg=jax.tree_util.keystr(path))


def test_what_an_implementation_cannot_compute_is_refused_by_name(added):
    def refuse(use):
        return None if use.head_dim % 64 == 0 else "head_dim must be a multiple of 64"

    added(Implementation("made up", by_ids, kinds=("self",), platforms=("gpu",), refuse=refuse))
    config = dataclasses.replace(TINY, attention="made up")
    with pytest.raises(ValueError, match=r"it runs on gpu, and the device is a cpu. Take config.model.attention=xla"):
        check_attention(config, "cpu")
    with pytest.raises(ValueError, match=r"made up cannot compute the self attention of head_dim=6, 24 queries and 24"):
        check_attention(config, "gpu")
    check_attention(dataclasses.replace(config, head_dim=64), "gpu")  # its encoder's heads are of XLA
    assert choose("made up", Use("read", "gpu", 6, 4, 16)).name == known.FALLBACK


def test_a_kernel_that_computes_something_else_on_its_device_is_refused(added):
    """Guards against a kernel that compiles and is wrong: here one that reads no mask of documents."""

    def wrong(*arrays):
        *arrays, mask, distances = arrays
        return by_ids(
            *arrays, dataclasses.replace(mask, query_ids=0 * mask.query_ids, key_ids=0 * mask.key_ids), distances
        )

    added(Implementation("right", by_ids, kinds=("self",)))
    added(Implementation("wrong", wrong, kinds=("self",)))
    for name in ("auto", "right"):
        try_self_attention(dataclasses.replace(TINY, attention=name))
    with pytest.raises(ValueError, match=r"attention=wrong computes other values than xla .* its outputs differ by"):
        try_self_attention(dataclasses.replace(TINY, attention="wrong"))


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, jax.errors.JaxRuntimeError])
def test_a_kernel_that_its_device_cannot_run_is_refused_by_name(added, kind):
    """As JAX 0.12 refuses a GPU that it does not know; else training would start with a traceback from a compiler."""

    def unknown(*arrays):
        raise kind("No supported GPU devices found.\nMore of it.")

    added(Implementation("unknown", unknown, kinds=("self",)))
    refusal = (
        r"^config.model.attention=unknown cannot run on this device \(cpu\): No supported GPU devices found. "
        r"Take config.model.attention=xla.$"
    )
    with pytest.raises(ValueError, match=refusal):
        try_self_attention(dataclasses.replace(TINY, attention="unknown"))


def test_the_first_run_gives_its_arrays_as_arguments(added, monkeypatch):
    """Guards against constants, of which the compiler works out the attention itself: 40 s for four heads of 128."""
    compiled, programs = jax.jit, []

    def jit(function):
        def run(*arguments):
            programs.append(compiled(function).lower(*arguments).as_text())
            return compiled(function)(*arguments)

        return run

    added(Implementation("right", by_ids, kinds=("self",)))
    monkeypatch.setattr(jax, "jit", jit)
    try_self_attention(dataclasses.replace(TINY, attention="right"))
    assert len(programs) == 2
    assert not [
        found for text in programs for found in re.findall(r'dense<"0x\w+"> : tensor<[x\d]+x(?:bf16|f32)>', text)
    ]


def test_names_that_are_not_known_or_there_twice(added):
    with pytest.raises(
        ValueError,
        match=r"config.model.attention must be one of auto, xla, flash, flash_gpu, but is 'xl' \(did you mean xla",
    ):
        check_attention(dataclasses.replace(TINY, attention="xl"), "cpu")
    with pytest.raises(ValueError, match="There is an attention named 'xla' already"):
        added(Implementation("xla", by_ids))
    with pytest.raises(ValueError, match="of the kinds self, read, encoder, conditioning, but 'mine' has 'cross'"):
        added(Implementation("mine", by_ids, kinds=("cross",)))


def test_an_implementation_without_positions_serves_a_rotary_decoder(added):
    """Guards against a first run that asks for position logits, which a rotary decoder never has."""
    rotary = dataclasses.replace(TINY, positions="rotary", retrieval_layers=())

    def without(content_queries, position_queries, keys, values, positions, mask, distances):
        assert position_queries is None and positions is None
        return by_ids(content_queries, None, keys, values, None, mask, distances)

    added(Implementation("no positions", without, ("self",)))
    added(Implementation("twice", lambda *given: 2 * without(*given), ("self",)))
    try_self_attention(dataclasses.replace(rotary, attention="no positions"))
    with pytest.raises(ValueError, match="config.model.attention=twice computes other values than xla"):
        try_self_attention(dataclasses.replace(rotary, attention="twice"))
