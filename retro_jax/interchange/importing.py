"""A model of another project as a run directory: opened, checked in full, then placed and saved.

`open_model` and `check` write nothing. `place` reads each device's part of each parameter from the mapped files, so that no
process holds more of the model than its devices do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from retro_jax.config import ModelConfig, check_model
from retro_jax.core.files import file_sha256, read_json
from retro_jax.interchange import safetensors_files
from retro_jax.interchange.architectures import OWN, longest, model_of
from retro_jax.interchange.gguf_files import GgufFile
from retro_jax.interchange.names import GGUF, HUGGING_FACE, IGNORED, Stored, stored_tensors
from retro_jax.interchange.tensors import Tensor, check_finite, refuse_pointer, shown
from retro_jax.models.retro import abstract_model
from retro_jax.parallel.sharding import Mesh, shardings
from retro_jax.run_directory.origin import origin_of

CONFIG = "config.json"
READOUT = {"lm_head.weight": "model.embed_tokens.weight", "output.weight": "token_embd.weight"}


@dataclass(frozen=True)
class Source:
    """An opened model.

    Attributes:
      config: its config.json, or a GGUF file's metadata in that form.
      wanted: where each parameter is.
      tokenizer: (tokenizer.json, ids of BOS and EOS) of a GGUF file; None where the tokenizer is a file in `path`.
    """

    path: Path
    architecture: str
    model: ModelConfig
    config: Mapping
    tensors: Mapping[str, Tensor]
    wanted: list[Stored]
    tokenizer: tuple[bytes, Mapping[str, int]] | None = None
    metadata: Mapping = field(default_factory=dict)

    def facts(self) -> dict:
        """What a model card says about where the model came from; plain JSON."""
        files = sorted({tensor.path for tensor in self.tensors.values()})
        before = origin_of(self.path) if self.path.is_dir() else {}  # of an export of ours
        return {
            "architecture": self.architecture,
            "dtypes": sorted({tensor.dtype for tensor in self.tensors.values()}),
            "files": {file.name: file_sha256(file) for file in files},
            "license": str(self.metadata.get("general.license") or before.get("license", "")),
            "max_position_embeddings": longest(self.config, self.architecture),
            "name": str(self.metadata.get("general.name") or before.get("name") or self.path.name),
        }


def open_model(path: Path, length: int = 0) -> Source:
    """Opens a directory of safetensors with a config.json, or a GGUF file; reads no weights.

    Args:
      length: tokens of a sequence; 0: as many as the model takes, up to 2,048.

    Raises:
      ValueError: a file that is missing or damaged, something that is not supported, or tensors that are not those of
        config.json.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        opened = GgufFile(path)
        config, tensors, names = opened.config(), opened.tensors(), GGUF
        architecture, model = model_of(config, path, length)
        more = {"tokenizer": opened.tokenizer(), "metadata": opened.facts}
    elif path.is_dir():
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path} has no {CONFIG}, so it is no directory of a Hugging Face model. Fetch it too.")
        refuse_pointer(path / CONFIG)
        config = read_json(path / CONFIG, "Fetch it again.")
        architecture, model = model_of(config, path / CONFIG, length)
        tensors, more = safetensors_files.read_tensors(path), {}
        names = None if architecture == OWN else HUGGING_FACE
    else:
        what = "is no GGUF file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {what}; give a directory with {CONFIG} and safetensors, or a .gguf file.")
    check_model(model)
    wanted = stored_tensors(model, names)
    _check_tensors(path, wanted, tensors)
    return Source(path, architecture, model, config, tensors, wanted, **more)


def _check_tensors(path: Path, wanted: list[Stored], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError with every kind of difference between the tensors of the files and those of config.json."""
    shapes = {one.name: one.shape for one in wanted}
    extra = [
        name
        for name in tensors
        if name not in shapes and not name.endswith(IGNORED) and not _same_as_embedding(name, tensors)
    ]
    wrong = [
        f"{name} is {tensors[name].shape} and must be {shape}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [
        ("missing", [name for name in shapes if name not in tensors]),
        ("not known", extra),
        ("of another shape", wrong),
    ]
    if any(names for _, names in problems):
        listed = "; ".join(f"{len(names):,} {what}: {shown(names)}" for what, names in problems if names)
        raise ValueError(
            f"The tensors of {path} are not those of its config: {listed}. Fetch config and files of one model."
        )


def _same_as_embedding(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether it is the readout of a model that ties it, stored twice."""
    other = tensors.get(READOUT.get(name, ""))
    if other is None or other.shape != tensors[name].shape:
        return False
    return all(np.array_equal(a, b) for a, b in zip(tensors[name].blocks(), other.blocks(), strict=True))


def check(source: Source) -> None:
    """Raises ValueError where a number of the model is infinite or NaN; reads the files once."""
    check_finite(source.tensors[one.name] for one in source.wanted)


def place(source: Source, mesh: Mesh) -> dict:
    """The parameters as float32 on the mesh, cut as in training."""
    places: dict[tuple, list[Stored]] = {}
    for one in source.wanted:
        places.setdefault(one.parameter, []).append(one)
    _, abstract = abstract_model(source.model)
    wanted = flatten_dict(shardings(abstract, mesh))
    leaves = {
        path: jax.make_array_from_callback(
            leaf.shape, wanted[path], lambda index, path=path, leaf=leaf: _part(source, places[path], leaf.shape, index)
        )
        for path, leaf in flatten_dict(abstract).items()
    }
    return unflatten_dict(leaves)


def _part(source: Source, layers: list[Stored], shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
    """The numbers of a parameter that `index` asks for; only the rows that hold them are read."""
    bounds = [range(*cut.indices(size)) for cut, size in zip(index, shape, strict=True)]
    if layers[0].layer is None:
        return _cut(source.tensors[layers[0].name], layers[0], bounds, shape)
    found = np.empty([len(bound) for bound in bounds], np.float32)
    for number, layer in enumerate(bounds[0]):
        found[number] = _cut(source.tensors[layers[layer].name], layers[layer], bounds[1:], shape[1:])
    return found


def _cut(tensor: Tensor, stored: Stored, bounds: list[range], shape: tuple[int, ...]) -> np.ndarray:
    if not bounds:
        return np.asarray(tensor.all(), np.float32).reshape(())
    if stored.transposed:
        columns, rows = bounds
        return tensor.read(rows.start, rows.stop)[:, columns.start : columns.stop].astype(np.float32).T
    if len(stored.shape) != len(shape):  # a bias of heads, stored flat
        whole = tensor.all().reshape(shape)
        return whole[tuple(slice(bound.start, bound.stop) for bound in bounds)].astype(np.float32)
    rest = tuple(slice(bound.start, bound.stop) for bound in bounds[1:])
    return tensor.read(bounds[0].start, bounds[0].stop)[(slice(None), *rest)].astype(np.float32)
