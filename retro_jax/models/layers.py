"""Basic layers: a linear map with its own gradient, RMSNorm, embedding lookup, feed-forward, initial weights.

Parameters are float32; activations have the dtype of the incoming stream.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from retro_jax.models.placement import ONE_DEVICE

NORM_EPSILON = 1e-6
BIAS_SCALE = 0.02
PRODUCT = "product"  # the checkpoint name of `linear`'s result
ATTENDED = "attended"  # that of what an attention kernel keeps for its backward pass


def kernel(rngs: nnx.Rngs, inputs: int, outputs: int, gain: float = 1.0) -> nnx.Param:
    """[inputs, outputs], normal with variance gain^2 / inputs, so that a matmul keeps the scale of its input.

    The paper does not state its initialization. A fixed 0.02 suits widths near 2,000 alone: at width 128 the same
    steps ended 0.8 nats a token higher (docs/decisions/model.md).
    """
    return _normal(rngs, (inputs, outputs), gain / inputs**0.5)


def bias(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """The u and v of Transformer-XL: small and non-zero, so that heads start different."""
    return _normal(rngs, shape, BIAS_SCALE)


def table(rngs: nnx.Rngs, entries: int, width: int) -> nnx.Param:
    """An embedding of variance 1 / width; `embed` multiplies by sqrt(width), the tied readout does not."""
    return _normal(rngs, (entries, width), width**-0.5)


def _normal(rngs, shape, deviation):
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))


def ones(size: int) -> nnx.Param:
    return nnx.Param(jnp.ones((size,), jnp.float32))


def zeros(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def last_scale(vocabulary: int, width: int) -> nnx.Param:
    """The scale of the norm before the tied readout: log(vocabulary) / sqrt(width), at most 1.

    The stream holds the token's own vector times sqrt(width). At scale 1 an untrained model therefore predicts that each
    token repeats, with a logit of sqrt(width). With this scale that probability is at most half, and the loss starts near the
    vocabulary's logarithm. A scale of 1 / sqrt(width) learned slower (docs/decisions/model.md).
    """
    return nnx.Param(jnp.full((width,), min(1.0, math.log(vocabulary) / width**0.5), jnp.float32))


def linear(x: Float[Array, "*B D"], kernel: Float[Array, "D F"]) -> Float[Array, "*B F"]:
    """x @ kernel in the dtype of x, summed in float32; named, so that remat "dots" can keep it.

    Its gradient is written by hand for two reasons. Autodiff through `preferred_element_type` would multiply float32
    cotangents with bfloat16 weights, off the fast matrix path; and the kernel's gradient stays float32 here instead
    of passing through bfloat16.
    """
    return checkpoint_name(_linear(x, kernel), PRODUCT)


@jax.custom_vjp
def _linear(x, kernel):
    return _product("...d,df->...f", x, kernel.astype(x.dtype)).astype(x.dtype)


def _linear_forward(x, kernel):
    return _linear(x, kernel), (x, kernel)


def _linear_backward(saved, gradient):
    x, kernel = saved
    to_x = _product("...f,df->...d", gradient, kernel.astype(x.dtype)).astype(x.dtype)
    # Contracting two dimensions (z is 1 if there is only one) keeps bfloat16 on the matrix units of
    # XLA's CPU backend; with one leading dimension contracted it silently computes in float32.
    x, gradient = (array.reshape(1, -1, array.shape[-1]) for array in (x, gradient))
    return to_x, _product("znd,znf->df", x, gradient)


_linear.defvjp(_linear_forward, _linear_backward)


def _product(form, left, right):
    return jnp.einsum(form, left, right, preferred_element_type=jnp.float32)


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], epsilon: float = NORM_EPSILON) -> Float[Array, "*B D"]:
    """x over its root mean square, times `scale`; computed in float32, returned in the dtype of x. A zero row stays zero."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale).astype(x.dtype)


def embed(
    tokens: Int[Array, "*B"], table: Float[Array, "V D"], dtype, pin: Callable = ONE_DEVICE.pin, scaled: bool = True
) -> Float[Array, "*B D"]:
    """Rows of `table` times sqrt(D), as in Transformer-XL, so that the first updates do not outweigh the token.

    Padding (negative tokens) gives zero rows and no gradient. Without `scaled` rows are taken as they are (the Llama family).
    """
    rows = jnp.take(table, jnp.maximum(tokens, 0), axis=0)
    rows = (table.shape[-1] ** 0.5 * rows if scaled else rows).astype(dtype)
    return pin(jnp.where((tokens >= 0)[..., None], rows, jnp.zeros((), dtype)), looked_up=True)


class FeedForward(nnx.Module):
    """FFW of paper eq 2 without its residual: RMSNorm, up, GELU (tanh form), down; no biases.

    With `gated` it is that of the Llama family: up times SiLU of a third projection, then down.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        output_gain: float,
        rngs: nnx.Rngs,
        gated: bool = False,
        epsilon: float = NORM_EPSILON,
    ):
        self.epsilon = epsilon
        self.norm = ones(width)
        self.up = kernel(rngs, width, hidden)
        self.down = kernel(rngs, hidden, width, output_gain)
        if gated:
            self.gate = kernel(rngs, width, hidden)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        normed = rms_norm(x, self.norm[...], self.epsilon)
        hidden = linear(normed, self.up[...]).astype(jnp.float32)
        if hasattr(self, "gate"):
            hidden = jax.nn.silu(linear(normed, self.gate[...]).astype(jnp.float32)) * hidden
        else:
            hidden = jax.nn.gelu(hidden, approximate=True)
        return linear(hidden.astype(x.dtype), self.down[...])
