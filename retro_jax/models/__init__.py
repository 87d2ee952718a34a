"""The model: the decoder with chunked cross-attention, the neighbor encoder, the loss, and counts of parameters and FLOPs.

Read positions, layers, kernels, attention, chunked_cross_attention, encoder, decoder, stack, retro, loss, counts.
reference.py holds the forward pass as loops over the paper's equations; tests compare the fast model with it. placement.py
says what a model asks of its devices. It imports config and core.
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
