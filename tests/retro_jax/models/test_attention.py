"""The attention core against its slow form: values, gradients leaf by leaf, masks, and both precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from retro_jax.models.attention import Attention, with_bias
from retro_jax.models.kernels.known import Attend, Mask
from retro_jax.models.kernels.slow import attend_slowly
from retro_jax.models.kernels.xla import attend
from retro_jax.models.layers import linear
from retro_jax.models.positions import (
    causal_distances,
    conditioning_distances,
    cross_distances,
    position_table,
    signed_distances,
)

HEADS, ROWS, SIZE = 2, 3, 4
KINDS = {  # distances, groups of queries, groups of keys: neighbors side by side
    "decoder self": (causal_distances(6), 1, 1),
    "encoder self": (signed_distances(6), 1, 1),
    "chunked cross": (cross_distances(3, 6), 1, 2),
    "conditioning": (conditioning_distances(6, 3), 2, 1),
}
NAMES = ("content_queries", "position_queries", "keys", "values", "positions")


def _inputs(kind, dtype=np.float32):
    distances, query_groups, key_groups = KINDS[kind]
    generator = np.random.default_rng(0)
    queries, keys = distances.queries * query_groups, distances.keys * key_groups
    shapes = [(HEADS, ROWS, length, SIZE) for length in (queries, queries, keys, keys)]
    shapes.append((HEADS, len(distances.rows()), SIZE))
    arrays = [jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes]
    mask = generator.random((ROWS, queries, keys)) < 0.7
    if distances.causal:
        mask &= np.tril(np.ones((queries, keys), bool))
    mask[1, 2] = False  # a query without keys
    mask[2] = False  # and a row of them
    return arrays, jnp.asarray(mask), distances


def _objective(form, mask, distances):
    weights = np.random.default_rng(1).standard_normal((HEADS, ROWS, mask.shape[1], SIZE)).astype(np.float32)
    return lambda *arrays: jnp.sum(form(*arrays, mask, distances).astype(jnp.float32) * weights)


@pytest.mark.parametrize("kind", KINDS)
def test_core_equals_the_slow_form(kind):
    arrays, mask, distances = _inputs(kind)
    fast = jax.jit(attend, static_argnums=6)(*arrays, mask, distances)
    np.testing.assert_allclose(fast, attend_slowly(*arrays, mask, distances), atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_the_slow_form_leaf_by_leaf(kind):
    """Guards against one wrong gradient leaf hidden in a total. Each leaf is compared by itself."""
    arrays, mask, distances = _inputs(kind)
    every = tuple(range(5))
    fast = jax.jit(jax.grad(_objective(attend, mask, distances), every))(*arrays)
    slow = jax.grad(_objective(attend_slowly, mask, distances), every)(*arrays)
    for name, got, expected in zip(NAMES, fast, slow, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_bfloat16_are_near_float32_leaf_by_leaf(kind):
    """Guards against bfloat16 gradients off by more than rounding, or an operation that this backend lacks."""
    arrays, mask, distances = _inputs(kind)
    every = tuple(range(5))
    exact = jax.grad(_objective(attend_slowly, mask, distances), every)(*arrays)
    rough = jax.jit(jax.grad(_objective(attend, mask, distances), every))(
        *(array.astype(jnp.bfloat16) for array in arrays)
    )
    for name, got, expected in zip(NAMES, rough, exact, strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.linalg.norm(got.astype(np.float32) - expected) / np.linalg.norm(expected)
        assert error < 0.02, (name, error)


def test_bfloat16_gradients_survive_a_part_that_all_keys_and_values_share():
    """Guards against softmax gradients from a rounded output.

    What all keys share must cancel although P and O are rounded.
    """
    distances, length = cross_distances(4, 64), 256
    generator = np.random.default_rng(0)
    shapes = [(2, 3, count, 8) for count in (4, 4, length, length)] + [(2, len(distances.rows()), 8)]
    arrays = [generator.standard_normal(shape) for shape in shapes]
    arrays[2:4] = 0.3 * arrays[2] + 2, arrays[3] + 4
    rough = [jnp.asarray(array, jnp.bfloat16) for array in arrays]
    mask, every = jnp.ones((3, 1, length), bool), tuple(range(5))
    weights = jnp.asarray(generator.standard_normal(shapes[0]), jnp.bfloat16).astype(jnp.float32)

    def objective(form):
        return lambda *arrays: jnp.sum(form(*arrays, mask, distances).astype(jnp.float32) * weights)

    exact = jax.grad(objective(attend_slowly), every)(*(array.astype(jnp.float32) for array in rough))
    for name, got, expected in zip(NAMES, jax.grad(objective(attend), every)(*rough), exact, strict=True):
        error = np.linalg.norm(got.astype(np.float32) - expected) / np.linalg.norm(expected)
        assert error < 0.02, (name, error)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_query_without_keys_gives_exact_zeros(kind, dtype):
    """Guards against NaN, or a mean over masked keys, in the value or a gradient."""
    arrays, mask, distances = _inputs(kind, dtype)
    arrays[2] = arrays[2].at[:, 2].set(3e4)
    outputs = attend(*arrays, mask, distances)
    empty = ~np.asarray(mask).any(axis=-1)
    assert empty.sum() > 1
    assert not np.asarray(outputs, np.float32)[:, empty].any()
    gradients = jax.grad(_objective(attend, mask, distances), tuple(range(5)))(*arrays)
    for gradient in gradients:
        assert np.isfinite(np.asarray(gradient, np.float32)).all()
    for queries in gradients[:2]:
        assert not np.asarray(queries, np.float32)[:, empty].any()
    for memory in gradients[2:4]:
        assert not np.asarray(memory, np.float32)[:, 2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_masked_keys_get_no_attention(kind):
    """Guards against attention to masked keys. What stands there changes no bit."""
    arrays, _, distances = _inputs(kind)
    queries, keys = arrays[0].shape[2], arrays[2].shape[2]
    mask = jnp.asarray(np.broadcast_to(np.arange(keys) != 1, (ROWS, 1, keys)))
    other = [*arrays[:2], arrays[2].at[:, :, 1].add(5.0), arrays[3].at[:, :, 1].add(5.0), arrays[4]]
    before, after = attend(*arrays, mask, distances), attend(*other, mask, distances)
    assert before.shape == (HEADS, ROWS, queries, SIZE)
    np.testing.assert_array_equal(before, after)


def test_position_logits_depend_on_the_distance_alone_and_are_the_same_for_every_row_and_neighbor():
    """Guards against a bias that depends on more than the distance.

    With content logits at zero one matrix of d gives all weights.
    """
    distances, _, neighbors = KINDS["chunked cross"]
    by_row = jnp.asarray(np.random.default_rng(0).standard_normal(len(distances.rows())), jnp.float32)
    queries = jnp.zeros((1, ROWS, distances.queries, SIZE))
    keys = neighbors * distances.keys
    memory = jnp.broadcast_to(jnp.eye(keys), (1, ROWS, keys, keys))  # values that spell out the softmax weights
    mask = jnp.ones((ROWS, 1, keys), bool)
    weights = attend(
        queries @ jnp.zeros((SIZE, keys)),
        jnp.ones((1, ROWS, distances.queries, keys)),
        jnp.zeros_like(memory),
        memory,
        jnp.broadcast_to(by_row[:, None] / keys**0.5, (1, len(by_row), keys)),
        mask,
        distances,
    )
    logit = dict(zip(distances.rows().tolist(), by_row.tolist(), strict=True))
    bias = np.vectorize(logit.get)(distances.matrix())
    expected = np.tile(np.exp(bias), neighbors)
    expected /= expected.sum(axis=-1, keepdims=True)
    for chunk in np.asarray(weights)[0]:
        np.testing.assert_allclose(chunk, expected, rtol=1e-5)


def test_linear_has_the_gradient_of_a_product():
    generator = np.random.default_rng(0)
    kernel = jnp.asarray(generator.standard_normal((5, 3)), jnp.float32)
    for shape in ((4, 5), (2, 4, 5), (2, 2, 4, 5)):
        x = jnp.asarray(generator.standard_normal(shape), jnp.float32)
        got = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(linear(x, kernel))), (0, 1))(x, kernel)
        expected = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(x @ kernel)), (0, 1))(x, kernel)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_linear_keeps_the_gradient_of_a_float32_kernel_in_float32():
    x, kernel = jnp.ones((3, 2), jnp.bfloat16), jnp.ones((2, 4), jnp.float32)
    to_x, to_kernel = jax.grad(lambda x, kernel: jnp.sum(linear(x, kernel)), (0, 1))(x, kernel)
    assert (to_x.dtype, to_kernel.dtype) == (jnp.bfloat16, jnp.float32)


def test_attention_without_keys_adds_nothing():
    """Guards against a bias in the output projection, which would change queries without keys."""
    attention = Attention(8, 6, HEADS, SIZE, 0.1, nnx.Rngs(0))
    asking, memory = jnp.ones((ROWS, 4, 8)), jnp.ones((ROWS, 16, 6))
    mask = jnp.zeros((ROWS, 1, 16), bool).at[0].set(True)
    table = position_table(cross_distances(4, 8), 8, jnp.float32)
    update = attention(asking, memory, Mask(mask), table, Attend("xla", "read"))
    assert np.asarray(update[0]).any()
    assert not np.asarray(update[1:]).any()


def test_gates_and_biases_are_summed_in_float32():
    """Guards against gradients that are sums over all rows in bfloat16, which stop growing."""
    length, width, heads = 64, 32, 2
    mask = Mask(jnp.ones((64, length, length), bool), None, None)

    def gradient(dtype):
        table = position_table(causal_distances(length), width, dtype)
        attention = Attention(width, width, heads, 16, 1.0, nnx.Rngs(0), gate=True)
        attention.update_gate[...] = jnp.float32(0.5)
        graph, params = nnx.split(attention)
        x = jax.random.normal(jax.random.key(1), (64, length, width), dtype)

        def loss(params):
            update = nnx.merge(graph, params)(x, x, mask, table, Attend("xla", "self"))
            return jnp.abs(update.astype(jnp.float32)).sum()

        return float(nnx.to_pure_dict(jax.grad(loss)(params))["update_gate"])

    assert gradient(jnp.bfloat16) == pytest.approx(gradient(jnp.float32), rel=0.03)
    rows = jnp.zeros((heads, 64, 1024, 4), jnp.bfloat16)
    found = jax.grad(lambda bias: with_bias(rows, bias).astype(jnp.float32).sum())(jnp.zeros((heads, 4)))
    np.testing.assert_array_equal(found, np.full((heads, 4), 64 * 1024.0))
