"""The tensors of an encoder from safetensors files, one or several, renamed to BERT's names.

A pickle (pytorch_model.bin) can run code when it is opened, so it is never read.
"""

from pathlib import Path, PurePosixPath

import numpy as np

from data_pipeline.encoder.directory import REMEDY, BertShape, read_json, section
from data_pipeline.stages.run import StageError
from retro_jax.interchange.safetensors_files import INDEX, WHOLE, Place, header
from retro_jax.interchange.tensors import FLOATS

PICKLE = "pytorch_model.bin"
PREFIXES = ("bert.", "distilbert.", "mpnet.", "roberta.")  # of a model saved with a head upon it
RENAMED = {
    "distilbert": (
        ("transformer.layer.", "encoder.layer."),
        (".attention.q_lin.", ".attention.self.query."),
        (".attention.k_lin.", ".attention.self.key."),
        (".attention.v_lin.", ".attention.self.value."),
        (".attention.out_lin.", ".attention.output.dense."),
        (".sa_layer_norm.", ".attention.output.LayerNorm."),
        (".ffn.lin1.", ".intermediate.dense."),
        (".ffn.lin2.", ".output.dense."),
        (".output_layer_norm.", ".output.LayerNorm."),
    ),
    "mpnet": (
        (".attention.LayerNorm.", ".attention.output.LayerNorm."),
        (".attention.attn.q.", ".attention.self.query."),
        (".attention.attn.k.", ".attention.self.key."),
        (".attention.attn.v.", ".attention.self.value."),
        (".attention.attn.o.", ".attention.output.dense."),
    ),
}
TYPES = "embeddings.token_type_embeddings.weight"
BIAS = "encoder.relative_attention_bias.weight"


def weight_files(directory: Path) -> list[str]:
    """Names of the files that hold the weights, as the library chooses them.

    Raises:
      StageError: none in a format that is read here.
    """
    directory = Path(directory)
    if (directory / WHOLE).is_file():
        return [WHOLE]
    if (directory / INDEX).is_file():
        parts = section(directory / INDEX, read_json(directory / INDEX, dict), "weight_map").values()
        if not parts or any(not isinstance(name, str) or PurePosixPath(name).name != name for name in parts):
            raise StageError(f"{directory / INDEX} has no weight_map of tensors to files beside it. {REMEDY}")
        names = sorted(set(parts))
        if missing := [name for name in names if not (directory / name).is_file()]:
            raise StageError(f"{directory / INDEX} lists {missing[0]}, which is missing. Fetch it.")
        return names
    if (directory / PICKLE).is_file():
        raise StageError(
            f"{directory} has its weights in {PICKLE} alone, a pickle, which can run code when it is opened and is never "
            f"read here. Write {WHOLE} where you trust it, with transformers: "
            f"AutoModel.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r}). {REMEDY}"
        )
    raise StageError(f"{directory} is no encoder: it has no {WHOLE}. {REMEDY}")


def list_tensors(directory: Path, family: str) -> dict[str, Place]:
    """All floating-point tensors by BERT's name for them, from the headers of the files.

    Raises:
      StageError: a file that is truncated or not a safetensors file.
    """
    found: dict[str, Place] = {}
    for name in weight_files(directory):
        path = Path(directory) / name
        for tensor in _header(path):
            if tensor.dtype in FLOATS:
                found[_plain_name(tensor.name, family)] = tensor
    return found


def _header(path: Path) -> list[Place]:
    try:
        return header(path)
    except ValueError as error:
        raise StageError(str(error)) from error


def _plain_name(name: str, family: str) -> str:
    name = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
    for theirs, ours in RENAMED.get(family, ()):
        name = name.replace(theirs, ours)
    if name.endswith((".gamma", ".beta")):  # the first BERTs' names
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return name


def wanted_tensors(shape: BertShape) -> dict[str, tuple[int, ...]]:
    """Every tensor that is computed with, by BERT's name, and the size that config.json gives it."""
    width = shape.width
    wanted = {
        "embeddings.word_embeddings.weight": (shape.vocabulary, width),
        "embeddings.position_embeddings.weight": (shape.positions, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    if shape.buckets:
        wanted[BIAS] = (shape.buckets, shape.heads)
    dense = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (shape.feed_forward, width),
        "output.dense": (width, shape.feed_forward),
    }
    for layer in range(shape.layers):
        for name, size in dense.items():
            wanted[f"encoder.layer.{layer}.{name}.weight"] = size
            wanted[f"encoder.layer.{layer}.{name}.bias"] = size[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            wanted[f"encoder.layer.{layer}.{name}.weight"] = wanted[f"encoder.layer.{layer}.{name}.bias"] = (width,)
    return wanted


def check_tensors(directory: Path, shape: BertShape) -> dict[str, Place]:
    """The tensors that are computed with, their sizes checked; no weights are read.

    Raises:
      StageError: a tensor that is missing or has another size than config.json says.
    """
    there = list_tensors(directory, shape.family)
    wanted = wanted_tensors(shape)
    for name, size in wanted.items():
        if name not in there:
            raise StageError(f"The weights in {directory} have no tensor {name}. {REMEDY}")
        if (found := there[name].shape) != size:
            raise StageError(
                f"{there[name].path} has the tensor {there[name].name} of shape {found}, but {directory}/config.json says "
                f"{size}. {REMEDY}"
            )
    types = {TYPES: there[TYPES]} if TYPES in there and shape.family != "mpnet" else {}
    if types and (types[TYPES].shape[1:] != (shape.width,) or not types[TYPES].shape[0]):
        raise StageError(
            f"{types[TYPES].path} has {TYPES} of shape {types[TYPES].shape}, but vectors of {shape.width} are needed. {REMEDY}"
        )
    return {name: there[name] for name in wanted} | types


def read_weights(directory: Path, shape: BertShape) -> dict[str, np.ndarray]:
    """Reads these tensors as float32, by BERT's names.

    Raises:
      StageError: as `check_tensors`.
    """
    tensors = check_tensors(directory, shape)
    maps = {path: np.memmap(path, np.uint8, "r") for path in {tensor.path for tensor in tensors.values()}}
    return {
        name: maps[t.path][t.begin : t.end].view(FLOATS[t.dtype]).reshape(t.shape).astype(np.float32)
        for name, t in tensors.items()
    }
