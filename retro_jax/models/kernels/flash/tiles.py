"""What both passes of the kernel compute on a tile: the logits of a block of queries and a block of keys.

A tile of b queries and b keys has 2b - 1 distances, which are consecutive rows of the position table. So the position
logits are one product [b, 2b] with these rows, of which query i needs the entries that start b - 1 - i places to the right:
a rotation of each row by its own number of places (`shift`), in registers. Nothing of size T x T reaches memory.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from retro_jax.models.kernels.flash import tile_flops

LANES = 128  # of a vector register: a grid step takes as many columns of [N, T, H S], so several narrow heads at once
MASKED = -1e30
FAST_MEMORY = 96 * 2**20  # bytes that the kernel may use of a chip's vector memory (VMEM)


@dataclass(frozen=True)
class Tiling:
    """How arrays [N, T, H S] are cut. T is a multiple of `block`, and H S one of `lanes`."""

    head_dim: int
    block: int  # queries, and keys, of a tile
    interpret: bool = False  # run by XLA on any device, for tests

    @property
    def lanes(self) -> int:
        return max(LANES, self.head_dim)

    @property
    def heads(self) -> int:
        """Heads side by side in the lanes."""
        return self.lanes // self.head_dim

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    def specs(self, length: int):
        """Block specs of (query rows, all keys, position table, query ids, key ids, log-sum-exp); grid (lanes, N, queries)."""
        block, lanes = self.block, self.lanes
        return (
            pl.BlockSpec((1, block, lanes), lambda h, n, a: (n, a, h)),
            pl.BlockSpec((1, length, lanes), lambda h, n, a: (n, 0, h)),
            pl.BlockSpec((length + block, lanes), lambda h, n, a: (0, h)),
            pl.BlockSpec((1, 1, block), lambda h, n, a: (n, 0, a)),
            pl.BlockSpec((1, 1, length), lambda h, n, a: (n, 0, 0)),
            pl.BlockSpec((1, 1, self.heads, block), lambda h, n, a: (h, n, 0, a)),
        )

    def options(self, products: int, shape: tuple[int, int, int], arrays) -> dict:
        """The arguments of `pallas_call` that both passes share; `products` is the number of [b, b, S] products a tile."""
        rows, length, width = shape
        flops = tile_flops(rows, length, width, self.block)
        cost = pl.CostEstimate(
            flops=products * flops,
            transcendentals=flops // (2 * self.head_dim),
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in arrays),
        )
        semantics = ("parallel", "arbitrary", "arbitrary")
        return {
            "grid": (width // self.lanes, rows, length // self.block),
            "interpret": self.interpret,
            "cost_estimate": cost,
            "compiler_params": pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=FAST_MEMORY),
        }


def product(left, right, contract: str = "nn") -> Float[Array, "I J"]:
    """left @ right summed in float32; "nt" transposes the right and "tn" the left."""
    dimensions = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}[contract]
    return jax.lax.dot_general(left, right, (dimensions, ((), ())), preferred_element_type=jnp.float32)


def shift(x: Float[Array, "b W"]) -> Float[Array, "b b"]:
    """[b, 2b] by table row to [b, b] by key: out[i, j] = x[i, j - i + b - 1]."""
    block = x.shape[0]
    return pltpu.roll(x, block + 1, 1, stride=1, stride_axis=0)[:, :block]


def unshift(x: Float[Array, "b b"]) -> Float[Array, "b W"]:
    """The transpose of `shift`: out[i, w] = x[i, w + i - (b - 1)], zero where that is no key.

    The vector unit rotates row i by i places to the right only. To the left: three selects by the bits of i within a
    register of 8 rows, then a rotation a register.
    """
    block = x.shape[0]
    width = 2 * block
    x = pltpu.roll(jnp.concatenate([x, jnp.zeros_like(x)], 1), block - 1, 1)
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for bit in range(3):
        x = jnp.where((row >> bit) & 1 == 1, pltpu.roll(x, width - (1 << bit), 1), x)
    registers = [x[at : at + 8] for at in range(0, block, 8)]
    return jnp.concatenate([pltpu.roll(one, (width - 8 * i) % width, 1) for i, one in enumerate(registers)], 0)


def column(row: Array) -> Array:
    """[1, b] as [b, 1]."""
    return jnp.transpose(jnp.broadcast_to(row, (LANES, row.shape[1])))[:, :1]


def as_row(column: Array) -> Array:
    """[b, 1] as [1, b]."""
    return jnp.transpose(jnp.broadcast_to(column, (column.shape[0], LANES)))[:1]


def of_head(tiling: Tiling, head: int, x: Array) -> Array:
    """x with zeros in the lanes of other heads, so that products over all lanes are those of one head."""
    if tiling.heads == 1:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, tiling.lanes), 1) // tiling.head_dim
    return jnp.where(lane == head, x, jnp.zeros((), x.dtype))


@dataclass(frozen=True)
class Tile:
    """Query block `a` and key block `c` of the arrays in fast memory."""

    tiling: Tiling
    length: int
    a: Int[Array, ""]
    c: Int[Array, ""]

    @property
    def keys(self):
        return pl.ds(pl.multiple_of(self.c * self.tiling.block, self.tiling.block), self.tiling.block)

    @property
    def window(self):
        """The rows of the position table: distances from (a - c + 1) b - 1 down to (a - c - 1) b."""
        first = self.length - (self.a - self.c + 1) * self.tiling.block
        return pl.ds(pl.multiple_of(first, self.tiling.block), 2 * self.tiling.block)

    def logits(self, content_queries, position_queries, keys, table, query_ids, key_ids) -> Float[Array, "b b"]:
        """Scaled logits, MASKED where a query may not read a key; queries are of one head, the others references."""
        content = product(content_queries, keys[0, self.keys, :], "nt")
        position = shift(product(position_queries, table[self.window, :], "nt"))
        return jnp.where(self._allowed(query_ids, key_ids), self.tiling.scale * (content + position), MASKED)

    def _allowed(self, query_ids, key_ids) -> Bool[Array, "b b"]:
        shape = (self.tiling.block, self.tiling.block)
        rows, columns = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
        return (query_ids == key_ids[0, :, self.keys]) & ((self.c < self.a) | (columns <= rows))


def weights(logits: Float[Array, "b b"], offset: Float[Array, "b 1"]) -> Float[Array, "b b"]:
    """exp(logits - offset), exactly zero where masked, also in a row without keys."""
    return jnp.where(logits > MASKED / 2, jnp.exp(logits - offset), 0.0)


def over_keys(a, step, start):
    """Folds `step(c, carry)` over the key blocks that query block `a` may read."""
    return jax.lax.fori_loop(0, a + 1, step, start)
