"""The model: the decoder with chunked cross-attention, the neighbor encoder, the loss, and counts of parameters and FLOPs.

Read positions, layers, attention, chunked_cross_attention, encoder, decoder, stack, retro, loss. reference.py holds the
forward pass as loops over the paper's equations; tests compare the fast model with it. It imports config and core.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "Retro": "retro",
        "initialize": "retro",
        "merge": "retro",
        "params_of": "retro",
        "apply_hidden": "retro",
        "token_nll": "loss",
        "flops_per_token": "counts",
        "parameter_counts": "counts",
    },
)
