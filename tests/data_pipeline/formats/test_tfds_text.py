"""TFDS data sets as text: damaged, missing or inconsistent files are named and never become fewer documents."""

import json
import shutil

import numpy as np
import pytest

from data_pipeline.documents.stage import build_documents
from data_pipeline.sources.readers import list_source, read_source, source_digest
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig

SHARDS, EACH = 3, 40
NAME = "made-train.array_record-{:05d}-of-00003"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """made/1.0.0 with three shards of 40 texts."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    folder = tmp_path_factory.mktemp("tfds") / "made" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": np.int64})
    source = np.random.default_rng(0)
    for shard in range(SHARDS):
        writer = array_record_module.ArrayRecordWriter(str(folder / NAME.format(shard)), "group_size:1")
        for number in range(shard * EACH, shard * EACH + EACH):
            words = " ".join(f"{word:x}" for word in source.integers(0, 1 << 30, 200))
            writer.write(features.serialize_example({"text": f"{number} {words}", "n": number}))
        writer.close()
    template = tfds.core.ShardedFileTemplate(
        data_dir=str(folder), dataset_name="made", split="train", filetype_suffix="array_record"
    )
    info = tfds.core.SplitInfo(name="train", shard_lengths=[EACH] * SHARDS, num_bytes=9, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[info], version="1.0.0", check_data=False
    )
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "made" / "1.0.0")
    return tmp_path / "made" / "1.0.0"


def read(path, **options):
    return list(read_source("mine", SourceConfig(path=str(path), **options)))


def test_the_folder_above_the_version(folder):
    assert [raw.text for raw in read(folder.parent)] == [raw.text for raw in read(folder)]
    digests = {source_digest("m", SourceConfig(path=str(path))) for path in (folder, folder.parent, f"file://{folder}")}
    assert len(digests) == 1
    shutil.copytree(folder, folder.with_name("1.0.1"))
    with pytest.raises(StageError, match=r"holds the versions 1.0.0, 1.0.1 of a TFDS data set. Give the folder of one"):
        read(folder.parent)
    with pytest.raises(StageError, match="A TFDS data set is in its folder made/1.0.0: give that folder"):
        read(folder.parent.parent)
    (folder.parent.parent / "a.txt").write_text("text")
    listing = list_source("s", SourceConfig(path=str(folder.parent.parent)))
    assert listing.notes[0] == "made/1.0.0 is a TFDS data set and is not read here; make it a source of its own"
    with pytest.raises(StageError, match="holds no TFDS data set: a folder with features.json"):
        read(folder.parent.parent, format="tfds")
    with pytest.raises(StageError, match="TFDS data sets are read from this machine. Copy"):
        read("gs://bucket/made/1.0.0", format="tfds")


def cut(share):
    def damage(folder):
        path = folder / NAME.format(1)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return damage


def flip(folder):
    path = folder / NAME.format(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 8] ^= 255
    path.write_bytes(content)


def empty_record(folder):
    """The library's answer for records that it cannot find: an example without a text."""
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(folder / NAME.format(1)), "group_size:1")
    for _ in range(EACH):
        writer.write(b"")
    writer.close()


def other_count(folder):
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace('"40"', '"41"', 1))


def swap(folder):
    path = folder / "features.json"
    path.write_text(path.read_text().replace('"text"', '"body"'))


SHARD = NAME.format(1)
DAMAGE = {
    "tail": (cut(0.98), rf"{SHARD} is damaged or truncated \([0-9,]+ bytes; .*none of its 40 examples of split train"),
    "half": (cut(0.5), rf"{SHARD} is damaged or truncated .*none of its 40 examples"),
    "empty": (cut(0), rf"{SHARD} is damaged or truncated \(0 bytes; .*none of its 40 examples"),
    "flipped": (flip, rf"{SHARD} is damaged: its record [0-9]+, of split train, cannot be read"),
    "empty record": (
        empty_record,
        rf"{SHARD} is damaged: its record 1, of split train, cannot be read \(it is empty\)",
    ),
    "missing": (lambda folder: (folder / SHARD).unlink(), rf"{SHARD} is missing, with 40 examples of split train"),
    "count": (other_count, f"{NAME.format(0)} holds 40 examples, but dataset_info.json says 41"),
    "no info": (
        lambda folder: (folder / "dataset_info.json").unlink(),
        "dataset_info.json is missing: a TFDS data set",
    ),
    "no features": (lambda folder: (folder / "features.json").unlink(), "features.json is missing: a TFDS data set"),
    "cut features": (
        lambda folder: (folder / "features.json").write_text((folder / "features.json").read_text()[:40]),
        "features.json is damaged",
    ),
    "cut info": (
        lambda folder: (folder / "dataset_info.json").write_text("{"),
        "dataset_info.json is damaged",
    ),
    "other info": (
        lambda folder: (folder / "dataset_info.json").write_text(json.dumps({"splits": 3})),
        r"is no TFDS data set, or its dataset_info.json or features.json is damaged",
    ),
    "other features": (
        lambda folder: (folder / "features.json").write_text(json.dumps({"a": 1})),
        r"is no TFDS data set, or its dataset_info.json or features.json is damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_an_error_that_names_the_file(folder, tmp_path, name):
    """Guards against a shard cut in half that reads as "120 documents, 40 dropped"."""
    damage, message = DAMAGE[name]
    damage(folder)
    config = DataConfig(sources={"mine": SourceConfig(path=str(folder))})
    with pytest.raises(StageError, match=message):
        build_documents(tmp_path / "d", config)
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_other_files_beside_the_shards_are_left_out(folder):
    (folder / "README.md").write_text("x")
    (folder / ".DS_Store").write_text("x")
    source = SourceConfig(path=str(folder))
    assert list_source("s", source).left_out == {".md": (1, 1), "hidden files": (1, 1)}
    assert len(read(folder)) == SHARDS * EACH
