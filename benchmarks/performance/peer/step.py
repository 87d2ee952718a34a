"""The public PyTorch RETRO (PyPI retro-pytorch) as one side of `benchmarks/performance/training_step.py`, which starts this file.

It runs in an environment of its own (requirements.txt) with `stand_ins/` on the path, because importing the package
imports faiss and autofaiss. Nothing of the package is edited, but one option is made to work: `RETRO(heads=...)` drops
its argument and its encoder and decoder keep their default of 8, so that default is set to what was asked for.
"""

import functools
import importlib.metadata
import time
from collections.abc import Callable, Mapping

import retro_pytorch.retro_pytorch as peer
import torch
from worker import serve


def build(settings: Mapping) -> tuple[dict, Callable[[], dict]]:
    """The peer's model at the settings' shape, and a step: loss and gradients, then clipping and AdamW."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    shape = settings["shape"]
    model = _model(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    # Token 0 is the peer's padding; one token more than the sequence, for it makes its labels by shifting.
    tokens = torch.randint(1, shape["vocabulary"], (shape["batch"], shape["sequence_length"] + 1))
    chunks = shape["sequence_length"] // shape["chunk_length"]
    retrieved = torch.randint(
        1, shape["vocabulary"], (shape["batch"], chunks, shape["neighbors"], 2 * shape["chunk_length"])
    )
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings["precision"] == "bfloat16")

    def step() -> dict:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = model(tokens, retrieved, return_loss=True)
        loss.backward()
        between = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ended = time.perf_counter()
        return {"forward_backward": between - started, "step": ended - started, "loss": loss.item()}

    return {"versions": _versions(), "parameters": _parameters(model)}, step


def _model(shape: Mapping) -> peer.RETRO:
    peer.Encoder = functools.partial(peer.Encoder, heads=shape["heads"])
    peer.Decoder = functools.partial(peer.Decoder, heads=shape["heads"])
    return peer.RETRO(
        num_tokens=shape["vocabulary"],
        max_seq_len=shape["sequence_length"],
        chunk_size=shape["chunk_length"],
        dec_dim=shape["width"],
        dec_depth=shape["layers"],
        dec_cross_attn_layers=tuple(shape["retrieval_layers"]),
        enc_dim=shape["encoder_width"],
        enc_depth=shape["encoder_layers"],
        enc_cross_attn_layers=tuple(shape["encoder_cross_attention_layers"]),
        heads=shape["heads"],
        dim_head=shape["head_dim"],
    ).train()


def _parameters(model: torch.nn.Module) -> dict:
    """Counts, the embeddings and the readout apart."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    outer = sum(size for name, size in sizes.items() if name.startswith(("token_emb", "pos_emb", "to_logits")))
    return {"all": sum(sizes.values()), "embeddings_and_readout": outer, "rest": sum(sizes.values()) - outer}


def _versions() -> dict:
    return {name: importlib.metadata.version(name) for name in ("torch", "retro-pytorch")}


if __name__ == "__main__":
    serve(build)
