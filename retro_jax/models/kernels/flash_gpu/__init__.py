"""The flash kernel's twin for GPUs, in Pallas on Triton: right on an H200, with less memory than XLA and no faster.

Read tiles (the logits of a tile, and how positions enter), passes (the kernels), attend (padding, and the gradient that JAX
sees). `config.model.attention="flash_gpu"` chooses it; "auto" does not.
"""

HEAD_DIMS = (16, 32, 64, 128)  # Triton's arrays have sizes that are powers of two


def refuse(use) -> str | None:
    """Why the kernel cannot compute a `known.Use`, or None if it can."""
    if not use.positions:
        return "it computes relative positions, and this attention has none"
    if use.head_dim not in HEAD_DIMS:
        return f"its heads are {', '.join(map(str, HEAD_DIMS))} wide"
    return None
