"""The JAX forward pass against the NumPy loops, their gradients against finite differences, and golden numbers."""

import jax
import numpy as np
import pytest
from tiny_model import compiled, pack, random_parameters, tiny

from retro_jax.models import reference
from retro_jax.models.positions import conditioning_distances, cross_distances, relative_shift, signed_distances
from retro_jax.models.retro import layer_parameters, merge

# name: (config, tokens of the packed documents, neighbors)
CASES = {
    "k=0": (tiny(layers=3), [7, 4, 10], 0),
    "k=1, P=(4,), no query conditioning": (
        tiny(retrieval_layers=(4,), encoder={"cross_attention_layers": ()}),
        [24],
        1,
    ),
    "k=2, three documents": (tiny(), [7, 4, 10], 2),
    "k=2, unrolled": (tiny(scan=False, layers=3), [7, 4, 10], 2),
    "k=2, one token, m=1": (tiny(chunk_length=1, sequence_length=1), [1], 2),
    "k=3, m=5, padding chunks at the end": (tiny(chunk_length=5, sequence_length=25, vocabulary=11), [6, 8], 3),
    "k=3, P=(1,4), three encoder layers, P_enc=(1,3)": (
        tiny(retrieval_layers=(1, 4), encoder={"layers": 3, "cross_attention_layers": (1, 3), "width": 22}),
        [13, 8],
        3,
    ),
    "k=4, m=3, heads 3, one document": (tiny(chunk_length=3, heads=3, head_dim=5, width=18), [24], 4),
    "k=4, P=(1,2,3,4), P_enc=(2,), one encoder head": (
        tiny(retrieval_layers=(1, 2, 3, 4), encoder={"cross_attention_layers": (2,), "heads": 1}),
        [1, 3, 16],
        4,
    ),
    "k=5, P=(1,), one encoder layer": (tiny(retrieval_layers=(1,), encoder={"layers": 1}), [9, 12], 5),
    "baseline": (tiny(retrieval_layers=()), [7, 4, 10], 2),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_equalsloops(name):
    """Over every real token: largest difference under 1e-5 of the largest logit, and 1e-5 in the Euclidean norm."""
    config, documents, neighbors = CASES[name]
    params, sequence = random_parameters(config), pack(config, documents, neighbors)
    expected = loops(config, params, sequence)
    got = np.asarray(compiled(config)(params, *sequence.batch()))[0]
    assert np.isfinite(got).all()  # at padded positions too
    assert_close(got, expected, sequence)


def test_forward_off_equalsloops():
    config = tiny()
    params, sequence = random_parameters(config), pack(config, [7, 4, 10], 2)
    off = reference.logits(layer_parameters(config, params), sequence.tokens, sequence.segments, None, 4)
    assert_close(np.asarray(compiled(config, on=False)(params, *sequence.batch()))[0], off, sequence)


def test_loops_in_float32_stay_near_float64():
    """The loops' own rounding is of the size of the tolerance, so the agreement does not depend on the dtype."""
    config = tiny(layers=3)
    params, sequence = random_parameters(config), pack(config, [9, 12], 2)
    assert_close(loops(config, params, sequence, np.float32), loops(config, params, sequence), sequence)


def test_golden_logits():
    """Guards against a changed function, e.g.

    a residual from the normed stream. Both forms must give the stored numbers.
    """
    config = tiny(vocabulary=5, chunk_length=2, sequence_length=6, layers=2, retrieval_layers=(1, 2))
    params = _formula_parameters(config)
    tokens, segments = np.array([[4, 1, 0, 2, 3, 3]], np.int32), np.array([[0, 0, 0]], np.int32)
    neighbors = np.array([[[[1, 2, 3, 4]], [[0, 3, -1, -1]], [[2, 2, 1, 0]]]], np.int32)
    inputs = (tokens[0], segments[0], neighbors[0])
    looped = reference.logits(layer_parameters(config, params), *inputs, chunk_length=2)
    np.testing.assert_allclose(looped, GOLDEN, rtol=0, atol=2e-5)
    np.testing.assert_allclose(compiled(config)(params, tokens, segments, neighbors)[0], GOLDEN, rtol=0, atol=2e-5)


# The first row is that of a decoder alone: m = 2, so retrieval starts at position 1.
GOLDEN = [
    [-3.460218, -3.148627, 5.101960, 8.261194, -2.357402],
    [4.138510, 1.760943, -3.156409, 4.709886, -1.300505],
    [-2.275541, -7.348149, 2.059057, 6.365387, -3.989282],
    [-2.017038, -2.453573, 4.679894, 2.165903, -2.262829],
    [-7.240122, -6.524826, 9.479240, 5.366078, -3.453808],
    [-4.594331, -7.568316, 5.300589, 6.624908, 0.874856],
]


def test_gradients_equal_finite_differences_of_theloops():
    """Leaf by leaf, along a random direction, for a random linear function of the logits."""
    config = tiny(
        vocabulary=7, chunk_length=2, sequence_length=6, layers=2, retrieval_layers=(1, 2), width=8, feed_forward=6
    )
    params, sequence = random_parameters(config), pack(config, [5], 2)
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((6, 7)) * (sequence.tokens >= 0)[:, None]

    def looped(params):
        return float((loops(config, params, sequence) * weight).sum())

    def fast(params):
        return (merge(config, params)(*sequence.batch())[0] * weight.astype(np.float32)).sum()

    gradient = jax.jit(jax.grad(fast))(params)
    double = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    leaves, structure = jax.tree.flatten(double)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(double)]
    for number, (name, got) in enumerate(zip(names, jax.tree.leaves(gradient), strict=True)):
        direction = generator.standard_normal(got.shape)

        def moved(step, number=number, direction=direction):
            changed = leaves[number] + step * direction
            return looped(jax.tree.unflatten(structure, [*leaves[:number], changed, *leaves[number + 1 :]]))

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        size = float(np.linalg.norm(got)) * np.linalg.norm(direction)
        assert size > 0, name
        assert abs(slope - float((np.asarray(got) * direction).sum())) < 2e-5 * size, name


def test_cross_attention_distances():
    """Guards against equation 6 off by some places.

    For m = 4 row 0 is at distance 0 from the neighbor's token m - 1.
    """
    expected = [
        [3, 2, 1, 0, -1, -2, -3, -4],
        [4, 3, 2, 1, 0, -1, -2, -3],
        [5, 4, 3, 2, 1, 0, -1, -2],
        [6, 5, 4, 3, 2, 1, 0, -1],
    ]
    np.testing.assert_array_equal(reference.cross_attention_distances(4, 8), expected)
    np.testing.assert_array_equal(_distances_in_use(cross_distances(4, 8)), expected)
    paper = cross_distances(64, 128).matrix()
    assert (paper.min(), paper.max(), len(np.unique(paper))) == (-64, 126, 191)


def test_encoder_distances():
    """Guards against equation 7 with another sign. For m = 2, d = i' - i; the encoder's self-attention is signed."""
    expected = [[0, -1], [1, 0], [2, 1], [3, 2]]
    np.testing.assert_array_equal(reference.encoder_cross_attention_distances(4, 2), expected)
    np.testing.assert_array_equal(_distances_in_use(conditioning_distances(4, 2)), expected)
    signed = [[0, -1, -2], [1, 0, -1], [2, 1, 0]]
    np.testing.assert_array_equal(reference.self_distances(3), signed)
    np.testing.assert_array_equal(_distances_in_use(signed_distances(3)), signed)


def _distances_in_use(distances):
    """What the shift of the fast attention makes of a table whose every row holds its own distance."""
    table = np.broadcast_to(distances.rows().astype(np.float32), (distances.queries, len(distances.rows())))
    return np.asarray(relative_shift(table, distances.keys)).astype(int)


def loops(config, params, sequence, dtype=np.float64):
    inputs = (sequence.tokens, sequence.segments, sequence.neighbor_tokens)
    weights = layer_parameters(config, params)
    kind = reference.kind_of(config)
    return reference.logits(weights, *inputs, config.chunk_length, dtype, config.neighbor_parts, kind)


def assert_close(got, expected, sequence):
    real = sequence.tokens >= 0
    difference, expected = got[real] - expected[real], expected[real]
    assert np.abs(difference).max() < 1e-5 * np.abs(expected).max()
    assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(expected)


def _formula_parameters(config):
    """Weights from a formula rather than a random generator, so that the golden numbers depend on nothing else."""
    shapes = random_parameters(config)
    leaves, structure = jax.tree.flatten(shapes)
    values = [
        (1.5 * np.sin(1.7 * np.arange(leaf.size) ** 1.5 + number)).reshape(leaf.shape).astype(np.float32)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, values)
