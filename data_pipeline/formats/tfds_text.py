"""Reads text from foreign TFDS data sets: ArrayRecord files and two JSON files in a version's folder.

The library gives empty records for a shard that was cut off, so every shard is opened first and its count compared with
what `dataset_info.json` says.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.stages.run import StageError

INFO, FEATURES = "dataset_info.json", "features.json"
SHARD = re.compile(r".+\.(array_record|tfrecord|riegeli)-\d{5}-of-\d{5}")
VERSION = re.compile(r"\d+\.\d+\.\d+")


def is_data_set(folder: Path) -> bool:
    """Whether a folder holds a data set, even a damaged one."""
    return (folder / FEATURES).is_file() or any(SHARD.fullmatch(path.name) for path in folder.iterdir())


def data_set_folder(path: Path, where: str) -> Path | None:
    """The version's folder of a TFDS data set: `path`, or its only subfolder named as a version; None if there is none.

    Raises:
      StageError: it has several versions.
    """
    if not path.is_dir():
        return None
    if is_data_set(path):
        return path
    inside = sorted(folder for folder in path.iterdir() if VERSION.fullmatch(folder.name) and folder.is_dir())
    versions = [folder for folder in inside if is_data_set(folder)]
    if len(versions) > 1:
        raise StageError(
            f"{where}={str(path)!r} holds the versions {', '.join(folder.name for folder in versions)} of a TFDS data set. "
            f"Give the folder of one, for example {versions[-1]}."
        )
    return versions[0] if versions else None


def split_lengths(folder: Path, split: str, where: str) -> dict[str, int]:
    """Examples of each split (or of the one given) of a data set, every shard of which was opened and counted.

    Args:
      where: the source in the config, for messages.

    Raises:
      StageError: a file that is missing, damaged or has another count than the metadata says; another format; no such split.
    """
    info = _builder(folder).info
    if info.file_format.value != "array_record":
        raise StageError(
            f"{where}.path={str(folder)!r} holds {info.file_format.value} files, which need TensorFlow; only array_record "
            "is read here. Write it again with tfds build --file_format=array_record, or export it to Parquet."
        )
    if split and split not in info.splits:
        there = ", ".join(sorted(info.splits))
        raise StageError(f"{where}.split={split!r} is not a split of {folder}; it has: {there}.")
    found = {}
    for name, facts in sorted(info.splits.items()):
        if split in ("", name):
            for shard, expected in zip(_shards(folder, facts), facts.shard_lengths, strict=True):
                _check_shard(shard, int(expected), name)
            found[name] = facts.num_examples
    return found


def split_records(folder: Path, split: str, start: int, stop: int) -> Iterator[tuple[int, str, dict]]:
    """Yields (number from 1, where, example) of examples [start, stop) of a split.

    Raises:
      StageError: an example that is damaged, with the shard that holds it.
    """
    import tensorflow_datasets as tfds

    builder = _builder(folder)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split, deserialize_method=raw)
    facts = builder.info.splits[split]
    for number in range(start, stop):
        try:
            record = source[number]
            if not record:
                raise EOFError("it is empty")
            example = builder.info.features.deserialize_example_np(record)
        except Exception as error:  # of array_record, protobuf and tfds, none of them named
            shard, row = _place(folder, facts, number)
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StageError(
                f"{shard} is damaged: its record {row + 1:,}, of split {split}, cannot be read "
                f"({said:.160}). Fetch or make it again."
            ) from None
        yield number + 1, f"{folder}, split {split}, example {number + 1:,}", example


def _builder(folder: Path):
    """The library's reader of a folder whose two JSON files are valid."""
    import tensorflow_datasets as tfds

    for name in (INFO, FEATURES):
        path = folder / name
        try:
            json.loads(path.read_bytes())
        except FileNotFoundError:
            raise StageError(
                f"{path} is missing: a TFDS data set has {INFO}, {FEATURES} and its shards in one folder. Fetch or make it "
                "again."
            ) from None
        except ValueError as error:
            raise StageError(f"{path} is damaged ({str(error)[:80]}). Fetch or make it again.") from None
    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # the library's errors for valid JSON that is not its metadata
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StageError(
            f"{folder} is no TFDS data set, or its {INFO} or {FEATURES} is damaged ({type(error).__name__}: {said:.160}). "
            "Fetch or make it again."
        ) from None


def _shards(folder: Path, facts) -> list[Path]:
    return [folder / Path(str(name)).name for name in facts.filenames]


def _check_shard(path: Path, expected: int, split: str) -> None:
    from array_record.python import array_record_module

    if not path.is_file():
        raise StageError(
            f"{path} is missing, with {expected:,} examples of split {split} by {INFO}. Fetch or make the data set again."
        )
    reader = array_record_module.ArrayRecordReader(str(path))
    whole = reader.ok()
    found = reader.num_records() if whole else 0
    try:
        reader.close()
        said = "no index at its end"
    except RuntimeError as error:  # of a reader that is not ok; it says why
        said = (str(error).splitlines() or ["no index at its end"])[0]
    if not whole:
        raise StageError(
            f"{path} is damaged or truncated ({path.stat().st_size:,} bytes; {said:.160}): none of its {expected:,} examples "
            f"of split {split} can be read. Fetch or make it again."
        )
    if found != expected:
        raise StageError(
            f"{path} holds {found:,} examples, but {INFO} says {expected:,}. Shards and metadata are not of one data set, or "
            "one of them is damaged. Fetch or make it again."
        )


def _place(folder: Path, facts, number: int) -> tuple[Path, int]:
    """The shard that holds an example of a split, and its row there."""
    for path, length in zip(_shards(folder, facts), facts.shard_lengths, strict=True):
        if number < length:
            return path, number
        number -= length
    return folder, number
