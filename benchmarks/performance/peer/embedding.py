"""The peer's side of embedding.py: the same BERT in PyTorch, with its fused attention, as sentence-transformers runs it.

Texts sorted by length, 32 a batch, each batch padded to its longest; bfloat16 means the full model in bfloat16.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from worker import serve

BATCH = 32


def build(settings):
    torch.set_num_threads(settings["threads"])
    precision = getattr(torch, settings["precision"])
    weights = {name: tensor.to(precision) for name, tensor in read_safetensors(settings["encoder"]).items()}
    config = json.loads((Path(settings["encoder"]) / "config.json").read_text())
    with np.load(settings["ids"], allow_pickle=False) as stored:
        ids = np.split(stored["flat"], np.cumsum(stored["lengths"])[:-1])
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    batches = []
    for start in range(0, len(order), BATCH):
        rows = [ids[row] for row in order[start : start + BATCH]]
        tokens = np.zeros((len(rows), len(rows[0])), np.int64)
        for line, row in enumerate(rows):
            tokens[line, : len(row)] = row
        lengths = torch.tensor([len(row) for row in rows])
        batches.append((torch.from_numpy(tokens), torch.arange(tokens.shape[1])[None] < lengths[:, None]))

    def step(of):
        started = time.perf_counter()
        with torch.inference_mode():
            for tokens, valid in batches:
                embed(weights, config, tokens, valid)
        return {"step": time.perf_counter() - started}

    first = step("pieces")["step"]
    step("pieces")
    return {"torch": torch.__version__, "first_seconds": first, "matmul_gflops": matmul_rate(precision)}, step


def embed(weights, config, tokens, valid):
    batch, length = tokens.shape
    heads, width, epsilon = config["num_attention_heads"], config["hidden_size"], config["layer_norm_eps"]

    def linear(x, name):
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)

    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][:length]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    # Without padding the mask is left out: PyTorch's fused attention is faster without one.
    mask = None if bool(valid.all()) else valid[:, None, None, :]
    for number in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{number}"
        parts = [linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
        query, key, value = (part.view(batch, length, heads, -1).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = linear(mixed.transpose(1, 2).reshape(batch, length, width), f"{name}.attention.output.dense")
        x = norm(x + mixed, f"{name}.attention.output.LayerNorm")
        hidden = functional.gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    chosen = valid[..., None].to(torch.float32)
    return functional.normalize((x.float() * chosen).sum(1) / chosen.sum(1), dim=-1)


def read_safetensors(directory) -> dict:
    """The float32 tensors of model.safetensors: a length, a JSON header, then the bytes."""
    content = (Path(directory) / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    return {
        name: torch.frombuffer(
            data, dtype=torch.float32, offset=entry["data_offsets"][0], count=np.prod(entry["shape"])
        )
        .view(entry["shape"])
        .clone()
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "F32"
    }


def matmul_rate(precision, rows: int = 1024, width: int = 384, columns: int = 1536) -> float:
    left, right = torch.ones(rows, width, dtype=precision), torch.ones(width, columns, dtype=precision)
    best = float("inf")
    for _ in range(50):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * rows * width * columns / best / 1e9


if __name__ == "__main__":
    serve(build)
