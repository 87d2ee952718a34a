"""A run's model as safetensors with config.json: of the architecture that computes it, else of our own."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from retro_jax.config import ModelConfig
from retro_jax.core.files import write_json
from retro_jax.interchange.architectures import OWN, architecture_of, config_json
from retro_jax.interchange.names import HUGGING_FACE, Stored, stored_tensors
from retro_jax.interchange.safetensors_files import Written, write_tensors

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
LARGEST_HALF = 65_504.0


def export_model(
    directory: Path,
    model: ModelConfig,
    params: Mapping,
    special: Mapping[str, int],
    dtype: str = "float32",
    architecture: str = "",
    most: int = 5 << 30,
    positions: int | None = None,
) -> str:
    """Writes config.json and the tensors into a directory that exists; returns the architecture.

    Args:
      params: arrays, on one device or cut over a mesh; one tensor at a time is brought to the host.
      special: {"bos": id, "eos": id}.
      dtype: float32 keeps every bit; the others round.
      architecture: the one that the model came from; it is kept if it still fits.
      most: bytes of a file.
      positions: the longest text that an imported model was made for; None: config.model.sequence_length.

    Raises:
      ValueError: a number that float16 cannot hold.
    """
    chosen = architecture_of(model, architecture)
    flat = flatten_dict(params)
    names = None if chosen == OWN else HUGGING_FACE
    tensors = [
        Written(one.name, one.shape, lambda one=one: _value(one, flat[one.parameter], dtype))
        for one in stored_tensors(model, names)
    ]
    write_tensors(directory, tensors, DTYPES[dtype], most)
    ids = {"bos_token_id": special["bos"], "eos_token_id": special["eos"]}
    write_json(Path(directory) / "config.json", config_json(model, chosen, dtype, ids, positions))
    return chosen


def _value(one: Stored, leaf, dtype: str) -> np.ndarray:
    found = np.asarray(leaf if one.layer is None else leaf[one.layer])
    found = found.T if one.transposed else found.reshape(one.shape)
    if dtype == "float16" and found.size and float(np.abs(found).max()) > LARGEST_HALF:
        raise ValueError(
            f"{one.name} has numbers up to {float(np.abs(found).max()):g}, but float16 ends at {LARGEST_HALF:g}; take "
            f"--dtype=bfloat16 or --dtype=float32."
        )
    return found


def size_of(model: ModelConfig, dtype: str) -> int:
    """Bytes of all tensors."""
    each = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    return each * sum(math.prod(one.shape) for one in stored_tensors(model, None))
