"""RETRO's forward pass as NumPy loops over the paper's equations; tests compare the fast model with it.

Written from the paper (arXiv 2112.04426: equations 2 to 4 and 6 to 7, Algorithm 1), not from the JAX model; the two
share only the names of the weights (`retro_jax.models.retro.layer_parameters`) and the norm's epsilon. All sizes are
read off the weights, P off the layers that hold a "cross_attention"; attention without a "position" kernel has no position
logits, and an encoder without an embedding reads the decoder's (the ablations of Table 13). A decoder of the Llama family
differs by its weights (a "gate", an "unembedding", "query_norm", "query_bias") and by what no weight shows, `Kind`. It is
slow and means to be read: one sequence at a time, and inside an attention one query, head and key at a time.

Code counts positions, chunks and neighbors from 0 where the paper counts from 1: token i of chunk u sits at u*m + i.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from retro_jax.config import ModelConfig
from retro_jax.core.dimensions import PADDING
from retro_jax.models.layers import NORM_EPSILON


@dataclass(frozen=True)
class Kind:
    """What the weights of a decoder do not show; the defaults are the paper's.

    Attributes:
      rotary_theta: the base of rotary angles; None: relative positions.
      head_dim: width of a rotary head.
    """

    rotary_theta: float | None = None
    rotary_scaling: tuple[float, ...] = ()
    head_dim: int = 0
    norm_epsilon: float = NORM_EPSILON
    scaled_embedding: bool = True


PAPER = Kind()


def kind_of(model: ModelConfig) -> Kind:
    theta = model.rotary_theta if model.positions == "rotary" else None
    return Kind(theta, model.rotary_scaling, model.head_dim, model.norm_epsilon, model.scaled_embedding)


def logits(
    parameters: Mapping,
    tokens: Int[np.ndarray, "T"],
    segments: Int[np.ndarray, "C"],
    neighbor_tokens: Int[np.ndarray, "C K R"] | None,
    chunk_length: int,
    dtype=np.float64,
    neighbor_parts: str = "both",
    kind: Kind = PAPER,
) -> Float[np.ndarray, "T V"]:
    """Next-token logits of one sequence: Algorithm 1.

    Args:
      parameters: the weights a layer, as `layer_parameters` gives them.
      tokens: -1 is padding; the output at padded positions has no meaning.
      segments: the document of each chunk; documents do not attend to each other.
      neighbor_tokens: RET(C_u) for every chunk u, -1 where missing; None is Retro[Off].
      chunk_length: m.
      dtype: of every number; the weights are converted.
      neighbor_parts: what is read of every RET(C_u) = [N, F]: "both", "neighbor" (N) or "continuation" (F). Tokens of F
        keep their positions, m to 2m - 1.
    """
    parameters = _convert(parameters, dtype)
    valid = tokens != PADDING
    start = chunk_length if neighbor_parts == "continuation" else 0
    if neighbor_tokens is not None and neighbor_parts != "both":
        neighbor_tokens = neighbor_tokens[:, :, start : start + chunk_length]
    x = _embed(parameters["embedding"], tokens, kind.scaled_embedding)
    encoded = None
    for layer in parameters["layers"]:
        x = x + causal_self_attention(layer["attention"], x, segments, valid, chunk_length, kind)
        # min(P): the encoder runs once, on the stream after this layer's self-attention (Algorithm 1).
        if "cross_attention" in layer and neighbor_tokens is not None:
            if encoded is None:
                encoder = {"embedding": parameters["embedding"], **parameters["encoder"]}
                encoded = encode(encoder, neighbor_tokens, x, valid, chunk_length, start)
            x = x + chunked_cross_attention(
                layer["cross_attention"], x, encoded, neighbor_tokens != PADDING, segments, chunk_length, start, kind
            )
        x = x + feed_forward(layer["feed_forward"], x, kind.norm_epsilon)
    readout = parameters.get("unembedding", parameters["embedding"])
    return rms_norm(x, parameters["final_norm"], kind.norm_epsilon) @ readout.T


def causal_self_attention(
    weights: Mapping,
    x: Float[np.ndarray, "T D"],
    segments: Int[np.ndarray, "C"],
    valid: np.ndarray,
    chunk_length: int,
    kind: Kind = PAPER,
) -> Float[np.ndarray, "T D"]:
    """ATTN's update (equation 2): a token sees itself and the earlier tokens of its own document."""
    normed = rms_norm(x, weights["norm"], kind.norm_epsilon)

    def sees(i, j):
        return j <= i and valid[j] and segments[i // chunk_length] == segments[j // chunk_length]

    if kind.rotary_theta is not None:
        return rotary_attention(weights, normed, sees, kind)
    return attention(weights, normed, normed, self_distances(len(x)), sees)


def chunked_cross_attention(
    weights: Mapping,
    x: Float[np.ndarray, "T D"],
    encoded: Float[np.ndarray, "C K R D2"],
    encoded_valid: np.ndarray,
    segments: Int[np.ndarray, "C"],
    chunk_length: int,
    start: int = 0,
    kind: Kind = PAPER,
) -> Float[np.ndarray, "T D"]:
    """CCA's update (equation 3): row um + i - 1 reads E_u, for u = 1..l and i = 1..m; the first m - 1 rows are zero.

    `start` is the place in [N, F] of the first token that was encoded.

    Row i = 1 is the last token of C_u. The other rows lie in C_{u+1}, and read E_u only if that chunk continues
    the document of C_u: the first chunk of every document is a C_1.
    """
    m, chunks, length = chunk_length, len(encoded), len(x)
    normed = rms_norm(x, weights["norm"], kind.norm_epsilon)
    gate = np.tanh(weights["update_gate"]) if "update_gate" in weights else 1
    update = np.zeros_like(x)
    neighbors, retrieved = encoded.shape[1:3]
    one_neighbor = cross_attention_distances(m, start + retrieved)[:, start:]
    for u in range(1, chunks + 1):  # as printed, from 1
        # The neighbor and time axes of E_u are merged under one softmax; positions restart in every neighbor.
        memory = encoded[u - 1].reshape(neighbors * retrieved, encoded.shape[-1])
        memory_valid = encoded_valid[u - 1].reshape(-1)
        distances = np.concatenate([one_neighbor] * neighbors, axis=1) if neighbors else np.zeros((m, 0), int)
        for i in range(1, m + 1):
            row = (u * m + i - 1) - 1  # the last - 1: from positions 1..n to rows 0..n-1
            if row >= length or segments[row // m] != segments[u - 1]:
                continue
            read = attention(
                weights, normed[row : row + 1], memory, distances[i - 1 : i], lambda _, j, seen=memory_valid: seen[j]
            )
            update[row] = gate * read[0]
    return update


def encode(
    weights: Mapping,
    neighbor_tokens: Int[np.ndarray, "C K R"],
    stream: Float[np.ndarray, "T D"],
    stream_valid: np.ndarray,
    chunk_length: int,
    start: int = 0,
) -> Float[np.ndarray, "C K R D2"]:
    """E = ENCODER(RET, H) (Algorithm 1): each neighbor of each chunk separately, conditioned on its chunk H_u.

    `start` is the place in [N, F] of the first of `neighbor_tokens`.
    """
    chunks, neighbors, retrieved = neighbor_tokens.shape
    encoded = np.zeros((chunks, neighbors, retrieved, weights["embedding"].shape[1]), stream.dtype)
    for u in range(chunks):
        rows = slice(u * chunk_length, (u + 1) * chunk_length)
        for j in range(neighbors):
            encoded[u, j] = _encode_neighbor(weights, neighbor_tokens[u, j], stream[rows], stream_valid[rows], start)
    return encoded


def _encode_neighbor(weights, tokens, chunk_rows, chunk_valid, start):
    """One neighbor through ATTN_enc (bidirectional), CA_enc in the layers P_enc, and FFW_enc."""
    valid = tokens != PADDING
    e = _embed(weights["embedding"], tokens)
    for layer in weights["layers"]:
        normed = rms_norm(e, layer["attention"]["norm"])
        distances = self_distances(len(tokens))  # signed: keys lie on both sides
        e = e + attention(layer["attention"], normed, normed, distances, lambda _, j: valid[j])
        if "cross_attention" in layer:
            asking = layer["cross_attention"]
            e = e + attention(
                asking,
                rms_norm(e, asking["norm"]),
                rms_norm(chunk_rows, asking["memory_norm"]),
                encoder_cross_attention_distances(start + len(tokens), len(chunk_rows))[start:],
                lambda _, j: chunk_valid[j],
            )
        e = e + feed_forward(layer["feed_forward"], e)
    return rms_norm(e, weights["final_norm"])


def attention(
    weights: Mapping,
    queries: Float[np.ndarray, "I D"],
    memory: Float[np.ndarray, "J D2"],
    distances: Int[np.ndarray, "I J"],
    sees: Callable[[int, int], bool],
) -> Float[np.ndarray, "I D"]:
    """CA(h, Y) (equation 4) with heads and Transformer-XL's relative positions; a row without visible keys stays zero.

    logit(i, j) = ((W_Q h_i + u) . W_K y_j + (W_Q h_i + v) . W_R s(d(i, j))) / sqrt(head width)

    Weights without a "position" kernel W_R have no second term.
    """
    heads, width = weights["content_bias"].shape
    q, k, v = (
        (rows @ weights[name]).reshape(len(rows), heads, width)
        for rows, name in ((queries, "query"), (memory, "key"), (memory, "value"))
    )
    positioned = "position" in weights
    positions = {
        d: (sinusoid(d, queries.shape[1]).astype(queries.dtype) @ weights["position"]).reshape(heads, width)
        for d in (set(distances.reshape(-1).tolist()) if positioned else ())
    }
    read = np.zeros_like(q)
    for i in range(len(queries)):
        seen = [j for j in range(len(memory)) if sees(i, j)]
        for head in range(heads if seen else 0):
            content = q[i, head] + weights["content_bias"][head]
            scores = [content @ k[j, head] / math.sqrt(width) for j in seen]
            if positioned:
                position = q[i, head] + weights["position_bias"][head]
                by_distance = [position @ positions[int(distances[i, j])][head] / math.sqrt(width) for j in seen]
                scores = [score + more for score, more in zip(scores, by_distance, strict=True)]
            largest = max(scores)
            exponentials = [math.exp(score - largest) for score in scores]
            for j, exponential in zip(seen, exponentials, strict=True):
                read[i, head] += exponential / sum(exponentials) * v[j, head]
    return read.reshape(len(queries), heads * width) @ weights["output"]


def rotary_attention(
    weights: Mapping, normed: Float[np.ndarray, "T D"], sees: Callable[[int, int], bool], kind: Kind
) -> Float[np.ndarray, "T D"]:
    """Self-attention of the Llama family (RoFormer, arXiv 2104.09864): queries and keys are turned by their positions.

    Head h of the queries reads head h // (heads / key heads) of keys and values.
    """
    width, length = kind.head_dim, len(normed)

    def project(name):
        rows = (normed @ weights[name]).reshape(length, -1, width)
        rows = rows + weights[f"{name}_bias"] if f"{name}_bias" in weights else rows
        if f"{name}_norm" in weights:
            rows = np.stack([rms_norm(row, weights[f"{name}_norm"], kind.norm_epsilon) for row in rows])
        return rows

    q, k, v = project("query"), project("key"), project("value")
    for i in range(length):
        for t in range(width // 2):  # the pair (t, t + width/2) as a complex number, turned by an angle
            turn = np.exp(1j * i * rotary_frequency(kind.rotary_theta ** (-2 * t / width), kind.rotary_scaling))
            for rows in (q, k):
                turned = (rows[i, :, t] + 1j * rows[i, :, t + width // 2]) * turn
                rows[i, :, t], rows[i, :, t + width // 2] = turned.real, turned.imag
    shared = q.shape[1] // k.shape[1]
    read = np.zeros_like(q)
    for i in range(length):
        seen = [j for j in range(length) if sees(i, j)]
        for head in range(q.shape[1] if seen else 0):
            scores = [q[i, head] @ k[j, head // shared] / math.sqrt(width) for j in seen]
            exponentials = [math.exp(score - max(scores)) for score in scores]
            for j, exponential in zip(seen, exponentials, strict=True):
                read[i, head] += exponential / sum(exponentials) * v[j, head // shared]
    return read.reshape(length, -1) @ weights["output"]


def rotary_frequency(frequency: float, scaling: tuple[float, ...]) -> float:
    """The angle a position, slowed by a factor, or as Llama 3.1 does by the length of the wave."""
    if len(scaling) == 1:
        return frequency / scaling[0]
    if len(scaling) == 4:
        factor, low, high, length = scaling
        wave = 2 * math.pi / frequency
        if wave > length / low:
            return frequency / factor
        if wave >= length / high:
            smooth = (length / wave - low) / (high - low)
            return (1 - smooth) * frequency / factor + smooth * frequency
    return frequency


def feed_forward(
    weights: Mapping, x: Float[np.ndarray, "I D"], epsilon: float = NORM_EPSILON
) -> Float[np.ndarray, "I D"]:
    """FFW's update (equation 2): GPT-2's two projections with GELU (its tanh form) between them; with a gate, SiLU's."""
    normed = rms_norm(x, weights["norm"], epsilon)
    hidden = normed @ weights["up"]
    if "gate" in weights:
        gate = normed @ weights["gate"]
        return (gate / (1 + np.exp(-gate)) * hidden) @ weights["down"]
    gelu = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    return gelu @ weights["down"]


def rms_norm(
    x: Float[np.ndarray, "I D"], scale: Float[np.ndarray, " D"], epsilon: float = NORM_EPSILON
) -> Float[np.ndarray, "I D"]:
    """Each row over its root mean square, times a scale (paper 2.5)."""
    return np.stack([row / np.sqrt(np.mean(row * row) + x.dtype.type(epsilon)) * scale for row in x])


def sinusoid(distance: int, width: int) -> Float[np.ndarray, " D"]:
    """s(d) = [sin, cos](d * 10000^(-2t/width)) for t = 0..width/2-1, sines first."""
    angles = [distance * 10000 ** (-2 * t / width) for t in range(width // 2)]
    return np.array([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])


def self_distances(length: int) -> Int[np.ndarray, "I J"]:
    """d = i - j for query i and key j."""
    return np.array([[i - j for j in range(length)] for i in range(length)])


def cross_attention_distances(chunk_length: int, retrieved: int) -> Int[np.ndarray, "M R"]:
    """Equation 6: d(i, i') = i - i' + m - 1 for token i of C_u^+ and retrieved token i', both from 1."""
    m = chunk_length
    return np.array([[i - i_ + m - 1 for i_ in range(1, retrieved + 1)] for i in range(1, m + 1)])


def encoder_cross_attention_distances(retrieved: int, chunk_length: int) -> Int[np.ndarray, "R M"]:
    """Equation 7: d_enc(i', i) = i' - i for retrieved token i' and data token i, both from 1."""
    return np.array([[i_ - i for i in range(1, chunk_length + 1)] for i_ in range(1, retrieved + 1)])


def _embed(table, tokens, scaled=True):
    """Rows of the embedding times sqrt(D), as Transformer-XL does; a padded token takes row 0, hidden by every mask."""
    rows = np.stack([table[token if token != PADDING else 0] for token in tokens])
    return rows * rows.dtype.type(math.sqrt(rows.shape[1])) if scaled else rows


def _convert(tree, dtype):
    if isinstance(tree, Mapping):
        return {name: _convert(value, dtype) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_convert(value, dtype) for value in tree]
    return np.asarray(tree).astype(dtype)
