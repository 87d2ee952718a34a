"""A tile of the GPU kernel: logits of a block of queries and a block of keys, in one program (thread block).

As on TPUs (`flash.tiles`) a tile's position logits are one product [b, 2b] with consecutive rows of the position table, of
which query i needs the entries that start b - 1 - i places to the right. A program cannot move values between its threads by a
different number of places a row; so it writes the product into a scratch of its own in memory, which is small enough to stay in
the cache, and reads it back at other places.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from retro_jax.models.kernels.flash_gpu import LOGITS_BYTES

MASKED = -1e30


@dataclass(frozen=True)
class Tiling:
    """T is a multiple of `block`."""

    block: int
    interpret: bool = False  # run by XLA on any device, for tests
    logits_bytes: int = LOGITS_BYTES

    def heads_at_once(self, heads: int, bytes_a_head: int) -> int:
        """How many heads the backward pass takes at once: as many of a divisor of `heads` as fit, at least one."""
        return max(
            n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * bytes_a_head <= self.logits_bytes)
        )

    def wait(self) -> None:
        """All threads of the program have written what others read."""
        if not self.interpret:
            triton.debug_barrier()

    def rows_and_columns(self):
        shape = (self.block, self.block)
        return (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))

    def shift(self, scratch, x):
        """[b, 2b] by table row to [b, b] by key: out[i, j] = x[i, j - i + b - 1]."""
        rows, columns = self.rows_and_columns()
        scratch[...] = x
        self.wait()
        found = scratch[rows, columns - rows + self.block - 1]
        self.wait()
        return found

    def at(self, block_number):
        return pl.ds(block_number * self.block, self.block)

    def window(self, length, apart):
        """The rows of the position table for blocks so far apart: distances from (apart + 1) b - 1 down to (apart - 1) b."""
        return pl.ds(length - (apart + 1) * self.block, 2 * self.block)

    def logits(self, arrays, a, c, scratch):
        """Scaled logits of query block `a` and key block `c`, MASKED where a query may not read a key."""
        rows, columns = self.rows_and_columns()
        queries, keys = self.at(a), self.at(c)
        content = arrays["content"][queries, :]
        window = arrays["table"][self.window(arrays["keys"].shape[0], a - c), :]
        x = product(content, arrays["keys"][keys, :].T)
        x += self.shift(scratch, product(arrays["position"][queries, :], window.T))
        same = arrays["query_ids"][queries][:, None] == arrays["key_ids"][keys][None, :]
        return jnp.where(same & ((c < a) | (columns <= rows)), content.shape[1] ** -0.5 * x, MASKED)


def product(left, right):
    return jnp.dot(left, right, preferred_element_type=jnp.float32)


def weights(logits, offset):
    """exp(logits - offset), exactly zero where masked, also in a row without keys."""
    return jnp.where(logits > MASKED / 2, jnp.exp(logits - offset[:, None]), 0.0)
