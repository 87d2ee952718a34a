"""Reads and writes safetensors files, one tensor at a time. The only file that imports safetensors."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from retro_jax.core.files import atomic_path, read_json, write_json
from retro_jax.interchange.tensors import FLOATS, Tensor, refuse_pointer

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ALIGNMENT = 8  # of the header's length, as the format asks
FILE_BYTES = 5 << 30  # of one file, at most (a larger tensor has a file of its own)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file, by its header."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def header(path: Path) -> list[Place]:
    """Every tensor of a file. The library checks that they fill it.

    Raises:
      ValueError: the file is truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}). Fetch it again.") from error
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        facts = json.loads(file.read(size))
    facts.pop("__metadata__", None)
    return [
        Place(path, name, each["dtype"], tuple(each["shape"]), *(8 + size + edge for edge in each["data_offsets"]))
        for name, each in facts.items()
    ]


def files_of(directory: Path) -> list[Path]:
    """The safetensors files of a model: one, or those that the index names.

    Raises:
      ValueError: there is none, one of several is missing or a Git LFS pointer, or the index is damaged.
    """
    directory = Path(directory)
    if (directory / WHOLE).is_file():
        found = [WHOLE]
    elif (directory / INDEX).is_file():
        refuse_pointer(directory / INDEX)
        named = read_json(directory / INDEX, "Fetch it again.", keys=("weight_map",))["weight_map"]
        if not isinstance(named, dict) or any(PurePosixPath(str(name)).name != name for name in named.values()):
            raise ValueError(f"{directory / INDEX} has no weight_map of tensors to files beside it. Fetch it again.")
        found = sorted(set(named.values()))
        if missing := [name for name in found if not (directory / name).is_file()]:
            raise ValueError(
                f"{directory / INDEX} names {len(found)} files, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} "
                f"missing. Fetch what is missing."
            )
    else:
        raise ValueError(
            f"{directory} has neither {WHOLE} nor {INDEX}. Other formats (pickle can run code when it is opened) are not "
            f"read: save the model as safetensors, or give a .gguf file."
        )
    for name in found:
        refuse_pointer(directory / name)
    return [directory / name for name in found]


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a model by name, memory-mapped; raises as `files_of` and `header`, or where a type is not read."""
    found: dict[str, Tensor] = {}
    for path in files_of(directory):
        mapped = np.memmap(path, np.uint8, "r")
        for place in header(path):
            if place.dtype not in FLOATS:
                raise ValueError(
                    f"{path} has {place.name} of type {place.dtype}, but only {', '.join(FLOATS)} are read: quantized "
                    f"safetensors are not. Fetch the model unquantized, or as GGUF."
                )
            array = mapped[place.begin : place.end].view(FLOATS[place.dtype]).reshape(place.shape)
            read = lambda start, stop, array=array: array[start:stop]  # noqa: E731
            found[place.name] = Tensor(path, place.name, place.dtype, place.shape, read)
    return found


@dataclass(frozen=True)
class Written:
    """A tensor to write: `make` gives it when its turn comes, so that one at a time is in memory."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def write_tensors(directory: Path, tensors: Iterable[Written], dtype: str, most: int = FILE_BYTES) -> list[str]:
    """Writes model.safetensors, or several files and their index; returns the names.

    Args:
      dtype: a key of FLOATS.
    """
    parts = list(_parts(tensors, np.dtype(FLOATS[dtype]).itemsize, most))
    count = len(parts)
    names = [WHOLE] if count == 1 else [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    for name, part in zip(names, parts, strict=True):
        _write_file(Path(directory) / name, part, dtype)
    if count > 1:
        total = sum(_bytes(one, dtype) for part in parts for one in part)
        placed = {one.name: name for name, part in zip(names, parts, strict=True) for one in part}
        write_json(Path(directory) / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
        names.append(INDEX)
    return names


def _parts(tensors: Iterable[Written], size: int, most: int) -> Iterator[list[Written]]:
    part, filled = [], 0
    for one in tensors:
        more = size * int(np.prod(one.shape))
        if part and filled + more > most:
            yield part
            part, filled = [], 0
        part.append(one)
        filled += more
    yield part


def _bytes(one: Written, dtype: str) -> int:
    return int(np.prod(one.shape)) * np.dtype(FLOATS[dtype]).itemsize


def _write_file(path: Path, tensors: list[Written], dtype: str) -> None:
    facts, offset = {"__metadata__": {"format": "pt"}}, 0
    for one in tensors:
        end = offset + _bytes(one, dtype)
        facts[one.name] = {"dtype": dtype, "shape": list(one.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in tensors:
            array = np.ascontiguousarray(one.make().astype(FLOATS[dtype]))
            if array.shape != one.shape:
                raise ValueError(f"{one.name} has the shape {array.shape}, but {one.shape} was announced.")
            file.write(array.tobytes())
