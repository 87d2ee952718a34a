"""Decoder self-attention as a Pallas kernel for TPUs: the scores never reach memory.

Read tiles (the logits of a tile, and how positions enter), forward, backward, attend (padding, and the gradient that JAX
sees). Pallas is imported where a kernel is used. `kernels.flash_gpu` is the twin for GPUs.
"""

HEAD_DIMS = (16, 32, 64)  # that fill the lanes of a vector register side by side
BLOCK = 512  # queries, and keys, of a tile
# [block, block, head size] products of a tile. Forward: content, positions (over twice as many rows), values. Backward: the
# logits again (3), and the gradients of weights, values, keys, content queries, position queries (2) and positions (2).
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 4, 11
OLD_CHIPS = ("TPU v2", "TPU v3", "TPU v4")  # whose vector unit rotates all rows by the same number of places
# Tokens whose keys, values and positions of a head up to 128 wide fit into a chip's fast memory, in float32 too: it was compiled
# for v5e, v5p and v6e.
LONGEST = 8_192


def tile_flops(rows: int, length: int, width: int, block: int = BLOCK) -> int:
    """FLOPs of one [block, block, head size] product in every tile of `rows` sequences and heads of `width` in all."""
    block = min(block, -(-length // 128) * 128)
    blocks = -(-length // block)
    return rows * blocks * (blocks + 1) // 2 * 2 * block**2 * width


def flops(rows: int, length: int, width: int) -> int:
    """FLOPs of both passes of one layer."""
    return (FORWARD_PRODUCTS + BACKWARD_PRODUCTS) * tile_flops(rows, length, width)


def refuse(use) -> str | None:
    """Why the kernel cannot compute a `known.Use`, or None if it can."""
    if use.chip in OLD_CHIPS:
        return f"a {use.chip} cannot rotate each row by another number of places, as the position logits need"
    if not use.positions:
        return "it computes relative positions, and this attention has none"
    if use.head_dim not in HEAD_DIMS and use.head_dim % 128:
        widths = ", ".join(map(str, HEAD_DIMS))
        return f"its heads are {widths} or a multiple of 128 wide"
    longest = LONGEST * 128 // max(128, use.head_dim)
    if use.keys > longest:
        return f"it holds all keys of a head in fast memory, at most {longest:,}"
    return None
