"""The BERT's forward pass and pooling, in plain JAX functions, and its weights as the tree that they read."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from data_pipeline.encoder.directory import BertShape
from data_pipeline.encoder.weights import BIAS, TYPES

NEAREST = 128  # distance from which on MPNet's relative positions are equal
ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), partial(jax.nn.gelu, approximate=False)),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), partial(jax.nn.gelu, approximate=True)),
    **dict.fromkeys(("silu", "swish"), jax.nn.silu),
    "relu": jax.nn.relu,
}


@partial(jax.jit, static_argnames=("shape", "normalize", "group"))
def embed_tokens(
    parameters: Mapping,
    tokens: Int32[Array, "B T"],
    lengths: Int32[Array, "B"],
    groups: Int32[Array, ""],
    shape: BertShape,
    normalize: bool,
    group: int,
) -> Float32[Array, "B E"]:
    """The BERT forward pass (post-norm) and its pooling over the first `lengths` tokens of each row.

    Args:
      groups: how many groups of `group` rows are computed; the vectors of the others mean nothing.
    """
    batch, length = tokens.shape
    if group == batch:
        x = _hidden(parameters, tokens, lengths, shape)
    else:

        def step(number, x):
            part = (jax.lax.dynamic_slice_in_dim(array, number * group, group) for array in (tokens, lengths))
            return jax.lax.dynamic_update_slice_in_dim(x, _hidden(parameters, *part, shape), number * group, 0)

        x = jax.lax.fori_loop(0, groups, step, jnp.zeros((batch, length, shape.width), jnp.float32))
    valid = jnp.arange(length) < lengths[:, None]
    vector = _pool(x, valid, lengths, shape.pooling)
    if normalize:
        vector = vector / jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), 1e-12)
    return vector


def _hidden(
    parameters: Mapping, tokens: Int32[Array, "B T"], lengths: Int32[Array, "B"], shape: BertShape
) -> Float32[Array, "B T D"]:
    """The last layer's hidden state."""
    batch, length = tokens.shape
    valid = jnp.arange(length) < lengths[:, None]
    table = parameters["embedding"]
    x = table["words"][jnp.where(valid, tokens, 0)] + _positions(table["positions"], tokens, valid, shape)
    bias = table["relative"][_buckets(length, shape.buckets)] if shape.buckets else None
    activation = ACTIVATIONS[shape.activation]
    # All rows of a group are one matrix: plain two-dimensional products run closest to the matrix-multiply rate.
    x = _layer_norm(x.reshape(batch * length, shape.width), table["norm"], shape.epsilon)
    for layer in parameters["layers"]:  # unrolled: a scan would copy every layer's weights out of the stack
        mixed = _attend(_linear(x, layer["query_key_value"]), valid, shape, layer["output"]["kernel"].dtype, bias)
        x = _layer_norm(x + _linear(mixed, layer["output"]), layer["attention_norm"], shape.epsilon)
        hidden = activation(_linear(x, layer["up"]))
        x = _layer_norm(x + _linear(hidden, layer["down"]), layer["feed_forward_norm"], shape.epsilon)
    return x.reshape(batch, length, shape.width)


def _positions(table: Float[Array, "P D"], tokens, valid: Bool[Array, "B T"], shape: BertShape) -> Float[Array, "..."]:
    """The position vectors of the tokens; `table` begins with the padding's row if positions are counted from it."""
    if shape.padding < 0:
        return table[: tokens.shape[1]]
    real = valid & (tokens != shape.padding)
    return table[jnp.where(real, jnp.cumsum(real, axis=1), 0)]


def _buckets(length: int, buckets: int) -> Int32[np.ndarray, "T T"]:
    """The row of MPNet's relative bias for each pair of places, in float32 steps as the library takes them."""
    places = np.arange(length)
    apart = places[:, None] - places
    half, exact, distance = buckets // 2, buckets // 4, np.maximum(np.abs(apart), 1).astype(np.float32)
    far = np.log(distance / np.float32(exact)) / np.float32(math.log(NEAREST / exact)) * np.float32(half - exact)
    row = np.where(np.abs(apart) < exact, np.abs(apart), np.minimum(exact + np.maximum(far, 0).astype(int), half - 1))
    return (row + np.where(apart < 0, half, 0)).astype(np.int32)


def _pool(x: Float[Array, "B T D"], valid: Bool[Array, "B T"], lengths, modes: Sequence[str]) -> Float[Array, "B E"]:
    """sentence-transformers' kinds of pooling; several are concatenated."""
    count = lengths[:, None]
    inside = jnp.where(valid[..., None], x, 0.0)
    place = jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)[:, None]
    pooled = {
        "cls": lambda: x[:, 0],
        "max": lambda: jnp.where(valid[..., None], x, -jnp.inf).max(1),
        "mean": lambda: inside.sum(1) / count,
        "mean_sqrt_len_tokens": lambda: inside.sum(1) / jnp.sqrt(count),
        "weightedmean": lambda: (inside * place).sum(1) / (count * (count + 1) / 2),
        "lasttoken": lambda: jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0],
    }
    found = [pooled[mode]() for mode in modes]
    return found[0] if len(found) == 1 else jnp.concatenate(found, axis=-1)


def _attend(
    projected: Float[Array, "BT 3D"], valid: Bool[Array, "B T"], shape: BertShape, dtype, bias=None
) -> Float[Array, "BT D"]:
    batch, length = valid.shape
    split = projected.astype(dtype).reshape(batch, length, 3, shape.heads, shape.width // shape.heads)
    query, key, value = split[:, :, 0], split[:, :, 1], split[:, :, 2]
    scores = _einsum("bqhd,bkhd->bhqk", query, key)
    if bias is not None:
        scores = scores + bias.transpose(2, 0, 1)
    weights = jax.nn.softmax(jnp.where(valid[:, None, None, :], scores, -jnp.inf), axis=-1)
    return _einsum("bhqk,bkhd->bqhd", weights.astype(dtype), value).reshape(batch * length, shape.width)


def _linear(x: Float[Array, "N D"], dense: Mapping) -> Float[Array, "N F"]:
    kernel = dense["kernel"]
    return _einsum("nd,df->nf", x.astype(kernel.dtype), kernel) + dense["bias"]


def _einsum(equation: str, left: Array, right: Array) -> Float32[Array, "..."]:
    # float32 operands are multiplied as such on a GPU too, never rounded to TF32.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)


def _layer_norm(x: Float[Array, "N D"], norm: Mapping, epsilon: float) -> Float[Array, "N D"]:
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + epsilon) * norm["scale"] + norm["bias"]


def pack_parameters(weights: Mapping[str, np.ndarray], shape: BertShape, dtype) -> dict:
    """`encoder_weights.read_weights` as the tree that `embed_tokens` reads: kernels [in, out] in `dtype`, all else float32.

    Query, key and value are one kernel, and the query's scale 1/sqrt(width of a head) is multiplied in.
    """

    def dense(name):
        return weights[f"{name}.weight"].T, weights[f"{name}.bias"]

    def pack(kernel, bias):
        return {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.asarray(bias)}

    def norm(name):
        return {"scale": jnp.asarray(weights[f"{name}.weight"]), "bias": jnp.asarray(weights[f"{name}.bias"])}

    def layer(number):
        prefix = f"encoder.layer.{number}"
        query, key, value = (dense(f"{prefix}.attention.self.{name}") for name in ("query", "key", "value"))
        scale = np.float32((shape.width // shape.heads) ** -0.5)
        joined = [np.concatenate(parts, -1) for parts in zip([item * scale for item in query], key, value, strict=True)]
        return {
            "query_key_value": pack(*joined),
            "output": pack(*dense(f"{prefix}.attention.output.dense")),
            "attention_norm": norm(f"{prefix}.attention.output.LayerNorm"),
            "up": pack(*dense(f"{prefix}.intermediate.dense")),
            "down": pack(*dense(f"{prefix}.output.dense")),
            "feed_forward_norm": norm(f"{prefix}.output.LayerNorm"),
        }

    # Every token is of the first segment, so its type vector is part of the position.
    positions = weights["embeddings.position_embeddings.weight"][max(shape.padding, 0) :]
    types = weights.get(TYPES, np.zeros((1, shape.width), np.float32))
    embedding = {
        "words": jnp.asarray(weights["embeddings.word_embeddings.weight"]),
        "positions": jnp.asarray(positions + types[0]),
        "norm": norm("embeddings.LayerNorm"),
    }
    if shape.buckets:
        embedding["relative"] = jnp.asarray(weights[BIAS])
    return {"embedding": embedding, "layers": [layer(number) for number in range(shape.layers)]}
