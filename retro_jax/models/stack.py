"""Stacks of layers: weights with a leading layer axis, applied by a scan over equal groups.

The weights of all layers are stacked in layer order, and those of all cross-attentions beside them, whatever the set
P and whether layers are scanned: a checkpoint of one arrangement is a checkpoint of all, and a baseline's layers are
a RETRO model's layers.
"""

from collections.abc import Callable
from itertools import groupby

import jax
from flax import nnx
from jaxtyping import Array, Float

from retro_jax.config import ModelConfig
from retro_jax.models.attention import Attention, RotaryAttention
from retro_jax.models.layers import ATTENDED, PRODUCT, FeedForward
from retro_jax.models.placement import ONE_DEVICE

# Layers up to which "auto" unrolls on a CPU; the compilation takes longer with each (docs/decisions/model.md).
UNROLLED = 24


def is_scanned(config: ModelConfig, layers: int, platform: str) -> bool:
    """Whether equal groups of a stack's layers run as a scan; "auto" unrolls on a CPU, which is faster there.

    With remat "auto" scans: the CPU's compiler merges what unrolled layers recompute with what they computed, so that
    nothing is saved.
    """
    if config.scan != "auto":
        return config.scan
    return platform != "cpu" or config.remat != "none" or layers > UNROLLED


class Layer(nnx.Module):
    """LM(H) = FFW(ATTN(H)) of paper eq 2; a RETRO layer has a cross-attention, kept in a stack of its own, between."""

    def __init__(self, width: int, heads: int, head_dim: int, feed_forward: int, output_gain: float, rngs: nnx.Rngs):
        self.attention = Attention(width, width, heads, head_dim, output_gain, rngs)
        self.feed_forward = FeedForward(width, feed_forward, output_gain, rngs)


class DecoderLayer(nnx.Module):
    """A `Layer` of the decoder, built as the config's DECODER_KIND says; with the defaults it is that of the paper."""

    def __init__(self, config: ModelConfig, output_gain: float, rngs: nnx.Rngs):
        sizes, epsilon = (config.heads, config.head_dim, output_gain, rngs), config.norm_epsilon
        if config.positions == "rotary":
            self.attention = RotaryAttention(
                config.width,
                *sizes,
                key_heads=config.decoder_key_heads,
                query_key_norm=config.query_key_norm,
                biases=config.attention_biases,
                epsilon=epsilon,
            )
        else:
            self.attention = Attention(config.width, config.width, *sizes, epsilon=epsilon)
        self.feed_forward = FeedForward(
            config.width, config.feed_forward, output_gain, rngs, config.gated_feed_forward, epsilon
        )


def stacked(count: int, make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules as one, every weight with a leading axis of that size."""
    build = nnx.vmap(make, transform_metadata={nnx.PARTITION_NAME: None})
    return nnx.split_rngs(splits=count)(build)(rngs)


def split_stack(stack: nnx.Module, sizes: list[int]) -> list[nnx.Module]:
    """Splits a stack into shorter ones along the layer axis.

    One `lax.split` for all pieces: its gradient is one concatenation, where indexing would add up padded copies.
    """
    leaves, structure = jax.tree.flatten(stack)
    pieces = zip(*(jax.lax.split(leaf, sizes) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(structure, piece) for piece in pieces]


def apply_stack(
    x: Float[Array, "*B D"],
    layers: Layer,
    cross_attention: Attention | None,
    reading: tuple[int, ...],
    self_update: Callable,
    read_update: Callable | None = None,
    prepare: Callable | None = None,
    *,
    scan: bool,
    remat: str,
    pin: Callable = ONE_DEVICE.pin,
) -> Float[Array, "*B D"]:
    """Runs all layers on x; those numbered in `reading` (from 1) have cross-attention between self-attention and feed-forward.

    `self_update(attention, x)` and `read_update(cross, x, memory)` give the residual updates; `memory` is
    `prepare(x)`, called once with the stream after the self-attention of the first reading layer. With `scan`, equal
    groups (a reading layer and the plain ones after it) run as one `lax.scan`; without, every layer is unrolled.
    `pin` is the sharding constraint of the stream between layers, which the backward pass keeps for each layer. The scopes
    are those that `preflight.traffic` counts by.
    """
    rematerialized = _rematerialized(remat)

    def after_attention(x, layer, cross, memory):
        if cross is not None:
            with jax.named_scope("cross_attention"):
                x = x + read_update(cross, x, memory)
        with jax.named_scope("feed_forward"):
            return pin(x + layer.feed_forward(x))

    def attention_update(attention, x):
        with jax.named_scope("self_attention"):
            return self_update(attention, x)

    @rematerialized
    def step(x, layer, cross, memory):
        return after_attention(x + attention_update(layer.attention, x), layer, cross, memory)

    def group(x, plain, cross, memory):
        for layer in split_stack(plain, [1] * _count(plain)):
            x, cross = step(x, _first(layer), cross, memory), None
        return x

    runs = _runs(_count(layers), reading, scan)
    layer_runs = split_stack(layers, [groups * size for groups, size, _ in runs])
    cross_runs = iter(split_stack(cross_attention, [groups for groups, _, reads in runs if reads]) if reading else ())
    memory, x = None, pin(x)
    for (groups, size, reads), run in zip(runs, layer_runs, strict=True):
        run_cross = next(cross_runs) if reads else None
        if reads and memory is None:
            layer, cross = _first(run), _first(run_cross)
            x = pin(x + rematerialized(attention_update)(layer.attention, x))
            memory = prepare(x)
            x = rematerialized(after_attention)(x, layer, cross, memory)
        elif groups == 1:
            x = group(x, run, _first(run_cross), memory)
        else:
            run = jax.tree.map(lambda leaf, shape=(groups, size): leaf.reshape(*shape, *leaf.shape[1:]), run)
            x, _ = jax.lax.scan(
                lambda x, weights, memory=memory: (group(x, *weights, memory), None), x, (run, run_cross)
            )
    return x


def _runs(count: int, reading: tuple[int, ...], scan: bool) -> list[tuple[int, int, bool]]:
    """Layers as runs of equal groups: (groups, layers a group, whether a group's first layer reads)."""
    if not scan:
        return [(1, 1, number in reading) for number in range(1, count + 1)]
    first, *sizes = [end - start for start, end in zip((1, *reading), (*reading, count + 1), strict=True)]
    runs = [(first, 1, False)]
    if sizes:  # the first reading layer is outside the scan, since the encoder runs inside it
        runs += [(1, 1, True), (sizes[0] - 1, 1, False)]
        runs += [(len(list(equal)), size, True) for size, equal in groupby(sizes[1:])]
    return [run for run in runs if run[0]]


def _count(stack: nnx.Module) -> int:
    return jax.tree.leaves(stack)[0].shape[0]


def _first(stack: nnx.Module | None) -> nnx.Module | None:
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[1:]), stack)


def _rematerialized(policy: str) -> Callable:
    """The remat policy of a layer: store all, recompute all, or recompute all but matmuls; a kernel's results are stored."""
    if policy == "none":
        return lambda step: step
    names = {"full": (ATTENDED,), "dots": (ATTENDED, PRODUCT)}[policy]
    return lambda step: jax.checkpoint(step, policy=jax.checkpoint_policies.save_only_these_names(*names))
