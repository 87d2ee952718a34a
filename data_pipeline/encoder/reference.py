"""BERT in plain NumPy, one text at a time; tests compare `bert.py` with it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64


def embed_reference(
    weights: Mapping[str, np.ndarray],
    ids: Sequence[int],
    *,
    layers: int,
    heads: int,
    normalize: bool,
    epsilon: float = 1e-12,
) -> Float64[np.ndarray, "E"]:
    """The mean of the last layer over the tokens `ids` of one text, in float64 and without padding."""
    w = {name: np.asarray(tensor, np.float64) for name, tensor in weights.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def layer_norm(x, name):
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    erf = np.vectorize(math.erf)
    x = w["embeddings.word_embeddings.weight"][list(ids)] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = layer_norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for number in range(layers):
        name = f"encoder.layer.{number}"
        query, key, value = (linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        size = x.shape[1] // heads
        mixed = np.empty_like(x)
        for head in range(heads):
            columns = slice(head * size, (head + 1) * size)
            scores = query[:, columns] @ key[:, columns].T / math.sqrt(size)
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, columns] = chances / chances.sum(-1, keepdims=True) @ value[:, columns]
        x = layer_norm(x + linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        hidden = linear(x, f"{name}.intermediate.dense")
        hidden = 0.5 * hidden * (1.0 + erf(hidden / math.sqrt(2.0)))
        x = layer_norm(x + linear(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean) if normalize else mean
