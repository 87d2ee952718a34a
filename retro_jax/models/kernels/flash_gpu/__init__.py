"""The flash kernel's twin for GPUs, in Pallas on Triton.

Read tiles (the logits of a tile, and how positions enter), passes (the kernels), attend (padding, and the gradient that JAX
sees). `config.model.attention="flash_gpu"` chooses it, and "auto" where it was measured to be faster than XLA.
"""

HEAD_DIMS = (16, 32, 64, 128)  # Triton's arrays have sizes that are powers of two
BLOCK = 64  # queries, and keys, of a tile
FASTER_ON, FASTER_UP_TO = ("H100", "H200"), 64  # names of GPUs, width of a head; in bfloat16 (docs/decisions/model.md)
LOGITS_BYTES = 2**28  # of the heads' logits whose gradients the backward pass holds at once


def flops(rows: int, length: int, width: int) -> int:
    """FLOPs of both passes of one layer of `rows` sequences and heads of `width` in all.

    Products of a tile: content, positions (over twice as many rows) and values; backward the logits again, and the gradients of
    weights, values and keys. Those of queries and of positions are over all pairs of a query and a key.
    """
    blocks = -(-length // BLOCK)
    tiles = blocks * (blocks + 1) // 2
    return rows * 2 * width * BLOCK**2 * ((4 + 6) * tiles + 3 * blocks**2)


def faster(use) -> bool:
    """Whether it was measured to be faster than XLA for a `known.Use`."""
    on = any(name in use.chip for name in FASTER_ON)
    return on and use.dtype == "bfloat16" and use.head_dim <= FASTER_UP_TO


def refuse(use) -> str | None:
    """Why the kernel cannot compute a `known.Use`, or None if it can."""
    if not use.positions:
        return "it computes relative positions, and this attention has none"
    if use.head_dim not in HEAD_DIMS:
        return f"its heads are {', '.join(map(str, HEAD_DIMS))} wide"
    return None
