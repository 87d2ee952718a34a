"""The model's structure as the paper's equations give it, with all weights non-zero."""

import dataclasses
import math
import re
from functools import partial

import jax
import numpy as np
import pytest
from tiny_model import TINY, compiled, pack, random_parameters, tiny

from retro_jax.config import ABLATIONS, DECODER_KIND, check_model
from retro_jax.models import reference
from retro_jax.models.chunked_cross_attention import chunked_cross_attention, reading_mask
from retro_jax.models.encoder import Encoder
from retro_jax.models.kernels.known import Attend
from retro_jax.models.positions import cross_distances, position_table
from retro_jax.models.retro import abstract_model, layer_parameters, merge

M, R, C, T = TINY.chunk_length, TINY.retrieved_length, TINY.chunks, TINY.sequence_length
PARAMETERS = random_parameters(TINY)
PACKED = pack(TINY, [7, 4, 10], neighbors=2)  # chunks 0 1 | 2 | 3 4 5


def test_cca_equals_the_loop_of_equation_3():
    """Guards against an addition to the first m - 1 rows of a sequence or document, or another sum than equation 3."""
    x, encoded = _stream(1), _encoded(1)
    got = _cca(x, encoded)[0]
    weights = layer_parameters(TINY, PARAMETERS)["layers"][1]["cross_attention"]
    valid = PACKED.neighbor_tokens >= 0
    looped = reference.chunked_cross_attention(weights, x[0], encoded[0], valid, PACKED.segments, M)
    assert np.abs(got - looped).max() < 1e-5 * np.abs(looped).max()
    starts = [row for chunk in (0, 2, 3) for row in range(chunk * M, chunk * M + M - 1)]
    assert not got[starts].any()
    np.testing.assert_array_equal((x[0] + got)[starts], x[0][starts])
    others = np.setdiff1d(np.arange(T), starts)
    assert (np.abs(got[others]).max(axis=1) > 1e-3).all()


def test_each_chunk_of_encoded_neighbors_is_read_by_its_own_rows():
    """Guards against E_u read by other rows than (u+1)m-1 .. (u+2)m-2, or across its document's end."""
    x, before, after = _stream(C), _encoded(C), _encoded(C)
    after[np.arange(C), np.arange(C)] += 1
    changed = (_cca(x, after) != _cca(x, before)).any(axis=-1)
    readers = [sorted(np.flatnonzero(row).tolist()) for row in changed]
    assert readers == [[3, 4, 5, 6], [7], [11], [15, 16, 17, 18], [19, 20, 21, 22], [23]]


def test_neighbors_have_no_order_and_no_count():
    """Guards against neighbors with an order or a count.

    Permuted or doubled sets give equal logits with non-zero position weights.
    """
    config = dataclasses.replace(TINY, neighbors=3)
    packed = pack(TINY, [7, 4, 10], neighbors=3)
    tokens, segments, neighbors = packed.batch()
    logits = compiled(config)
    expected = np.asarray(logits(PARAMETERS, tokens, segments, neighbors))
    permuted = logits(PARAMETERS, tokens, segments, neighbors[:, :, [2, 0, 1]])
    doubled = logits(PARAMETERS, tokens, segments, np.concatenate([neighbors, neighbors], axis=2))
    limit = 1e-5 * np.abs(expected).max()
    assert np.abs(permuted - expected).max() < limit and np.abs(doubled - expected).max() < limit
    for part in (("cross_attention", "position"), ("cross_attention", "position_bias"), ("cross_attention", "key")):
        without = {**PARAMETERS, part[0]: {**PARAMETERS[part[0]], part[1]: 0 * PARAMETERS[part[0]][part[1]]}}
        assert np.abs(logits(without, tokens, segments, neighbors) - expected).max() > 100 * limit, part
    assert abstract_model(config)[1] == abstract_model(TINY)[1]  # no parameter depends on k


@pytest.mark.parametrize("scan", [True, False])
def test_encoder_runs_once_on_the_stream_after_attention_of_the_first_retro_layer(scan, monkeypatch):
    """Guards against an encoder conditioned on embeddings, on the stream after CCA or feed-forward, or on a normed one.

    Counted as the program runs: a call inside a scanned layer would count at every layer.
    """
    seen, encode = [], Encoder.__call__

    def observed(self, config, neighbors, hidden, *rest):
        jax.debug.callback(lambda hidden: seen.append(np.array(hidden)), hidden)
        return encode(self, config, neighbors, hidden, *rest)

    monkeypatch.setattr(Encoder, "__call__", observed)
    config = tiny(retrieval_layers=(2, 3, 4), scan=scan, encoder={"layers": 1})
    params = random_parameters(config)
    jax.jit(lambda params, *inputs: merge(config, params)(*inputs))(params, *PACKED.batch())
    jax.effects_barrier()
    weights, valid = layer_parameters(config, params), PACKED.tokens >= 0
    first, second = weights["layers"][:2]
    x = weights["embedding"][np.maximum(PACKED.tokens, 0)] * TINY.width**0.5
    x = x + reference.causal_self_attention(first["attention"], x, PACKED.segments, valid, M)
    x = x + reference.feed_forward(first["feed_forward"], x)
    x = x + reference.causal_self_attention(second["attention"], x, PACKED.segments, valid, M)
    assert len(seen) == 1
    assert np.abs(seen[0][0] - x)[valid].max() < 1e-5 * np.abs(x).max()


def test_encoder_is_conditioned_on_its_own_chunk_and_on_nothing_without_cross_attention():
    """Guards against a shifted or missing H_u.

    It reaches E_u for every neighbor of chunk u; with P_enc = () nothing does.
    """
    valid = np.ones((C, T), bool)
    before, after = _stream(C), _stream(C)
    rows = np.arange(C)
    for i in range(M):
        after[rows, rows * M + i] += 1
    neighbors = PACKED.batch(C)[2]
    real = neighbors >= 0

    def changed(config):
        encoder = merge(config, random_parameters(config)).encoder
        encode = jax.jit(lambda hidden: encoder(config, neighbors, hidden, valid))
        return np.abs(encode(after) - encode(before)).max(axis=-1)

    conditioned = changed(TINY)
    own = np.eye(C, dtype=bool)
    assert conditioned[own][real[own]].min() > 1e-4
    assert conditioned[~own].max() == 0
    assert changed(tiny(encoder={"cross_attention_layers": ()})).max() == 0


def test_encoder_reads_no_padded_decoder_tokens():
    """Guards against an encoder that reads padding.

    Only padding reads that encoding, so no real token would show it.
    """
    valid = np.ones((1, T), bool)
    valid[0, M - 1] = valid[0, 2 * M + 1 :] = False
    before, neighbors = _stream(1), PACKED.batch(1)[2]
    encoder = merge(TINY, random_parameters(TINY)).encoder
    encode = jax.jit(lambda hidden: encoder(TINY, neighbors, hidden, valid))
    after = np.where(valid[..., None], before, before + 1)
    np.testing.assert_array_equal(encode(after), encode(before))


def test_every_cca_layer_reads_the_encoder():
    """Guards against an encoder that some CCA layers do not read.

    Each layer alone gives every encoder weight a gradient.
    """
    config = tiny(layers=3, retrieval_layers=(1, 2, 3), encoder={"cross_attention_layers": (1, 2)})
    params = random_parameters(config)

    @jax.jit
    def encoder_gradient(params):
        return jax.grad(lambda params: (merge(config, params)(*PACKED.batch()) ** 2).mean())(params)["encoder"]

    for index in range(3):
        alone = np.zeros((3, 1, 1), np.float32)
        alone[index] = 1
        reader = {**params["cross_attention"], "output": params["cross_attention"]["output"] * alone}
        gradient = encoder_gradient({**params, "cross_attention": reader})
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            stacked = path[0].key in ("layers", "cross_attention")
            per_layer = np.abs(leaf).reshape(leaf.shape[0] if stacked else 1, -1).max(axis=1)
            assert per_layer.min() > 1e-6, (index, jax.tree_util.keystr(path))


def test_layers_are_counted_from_one():
    """Guards against layers counted from 0. P = (2,) is the second layer, index 1 of the weights."""
    config = tiny(retrieval_layers=(2,), encoder={"cross_attention_layers": (2,)})
    weights = layer_parameters(config, random_parameters(config))
    assert [number for number, layer in enumerate(weights["layers"], 1) if "cross_attention" in layer] == [2]
    in_encoder = weights["encoder"]["layers"]
    assert [number for number, layer in enumerate(in_encoder, 1) if "cross_attention" in layer] == [2]
    for outside in ((0, 3), (3, 5)):
        with pytest.raises(ValueError, match=r"layers are numbered from 1 to config.model.layers=4"):
            check_model(dataclasses.replace(TINY, retrieval_layers=outside))


def test_every_size_in_the_config_shapes_the_model():
    """Guards against an ignored field.

    Each changes some parameter's shape; the exceptions are listed with what they change.
    """
    without_shape = {
        "sequence_length": "inputs",
        "chunk_length": "inputs, masks and distances",
        "neighbors": "inputs",
        "neighbor_parts": "inputs of the encoder",
        "compute_dtype": "arithmetic",
        "attention": "arithmetic",
        "remat": "memory",
        "scan": "compilation",
        "loss_block": "memory",
        "encoder": "below",
    }
    # A size that one kind of layer ignores still shapes the others: so also without cross-attention, of either side.
    for base in (TINY, tiny(retrieval_layers=()), tiny(encoder={"cross_attention_layers": ()})):
        shapes = abstract_model(base)[1]
        for part in (base, base.encoder) if base.retrieves else (base,):
            for field in dataclasses.fields(part):
                if part is base and field.name in without_shape:
                    continue
                if not base.retrieves and field.name in ABLATIONS:
                    continue  # refused in a baseline
                if field.name in DECODER_KIND:
                    continue  # test_decoder_kinds.py
                value = getattr(part, field.name)
                another = value[:1] if isinstance(value, tuple) else value + 2
                other = {(): (1,), (1,): ()}.get(value, another)
                other = not value if isinstance(value, bool) else other
                changed = dataclasses.replace(part, **{field.name: other})
                config = changed if part is base else dataclasses.replace(base, encoder=changed)
                assert abstract_model(config)[1] != shapes, field.name


def test_cost_is_affine_in_the_number_of_neighbors():
    """Guards against cost that grows faster than k.

    XLA counts equal steps for each further neighbor, near the matmuls' own.
    """
    sizes = {"heads": 4, "head_dim": 16}
    config = tiny(
        scan=False, layers=2, retrieval_layers=(1, 2), width=64, feed_forward=128, chunk_length=8, sequence_length=64,
        encoder={"layers": 1, "width": 48, "feed_forward": 96, **sizes}, **sizes,
    )  # fmt: skip
    params = random_parameters(config)
    flops = [
        compiled(config).lower(params, *pack(config, [64], k).batch()).cost_analysis()["flops"] for k in range(1, 6)
    ]
    slopes = np.diff(flops)
    assert len(set(slopes)) == 1
    tokens, inner, asked = 16, 64, 8  # of one neighbor; heads * head width; decoder tokens that read it
    encoder = tokens * (4 * 48 * inner + 2 * 48 * 96 + 2 * tokens * inner + 2 * tokens * inner)
    conditioning = tokens * (2 * 48 * inner + 2 * asked * inner + (asked + tokens) * inner)
    reading = tokens * (2 * 48 * inner) + asked * (2 * tokens * inner)
    products = 2 * config.chunks * (encoder + conditioning + 2 * reading)
    assert products < slopes[0] < 1.05 * products


def test_scores_take_memory_for_one_chunk_a_query():
    """Guards against scores of all chunks at once.

    No array of CCA exceeds H scores for each token and token that its chunk reads.
    """
    heads = 6  # with heads 2 wide, scores (H m per retrieved token) outgrow keys (H * 2)
    config = tiny(heads=heads, head_dim=2)
    for chunks, neighbors in ((6, 16), (12, 16), (24, 16), (6, 32)):
        x, mask = np.zeros((1, chunks * M, TINY.width), np.float32), np.ones((1, chunks, M, neighbors * R), bool)
        encoded = np.zeros((1, chunks, neighbors, R, TINY.encoder.width), np.float32)
        update = jax.jit(partial(_cca_update, config, random_parameters(config)))
        text = update.lower(x, encoded, mask).as_text()
        largest = max(math.prod(map(int, shape.split("x"))) for shape in re.findall(r"tensor<([\dx]+)xf32>", text))
        assert largest == heads * (chunks * M) * (neighbors * R)


def _stream(batch):
    return np.repeat(np.random.default_rng(2).standard_normal((1, T, TINY.width)).astype(np.float32), batch, axis=0)


def _encoded(batch):
    shape = (1, *PACKED.neighbor_tokens.shape, TINY.encoder.width)
    return np.repeat(np.random.default_rng(3).standard_normal(shape).astype(np.float32), batch, axis=0)


def _cca(x, encoded):
    """The update by the CCA of layer 2, the first of P, on PACKED's documents and padding."""
    mask = _reading_mask(PACKED.segments[None], PACKED.neighbor_tokens[None] >= 0, M)
    return np.asarray(_update(x, encoded, np.repeat(np.asarray(mask), len(x), axis=0)))


def _cca_update(config, params, x, encoded, mask):
    first = jax.tree.map(lambda leaf: leaf[0], merge(config, params).cross_attention)
    table = position_table(cross_distances(M, R), x.shape[-1], x.dtype)
    return chunked_cross_attention(first, x, encoded, mask, table, Attend("xla", "read"))


_update = jax.jit(partial(_cca_update, TINY, PARAMETERS))
_reading_mask = jax.jit(reading_mask, static_argnums=2)
