"""Tables and data set folders: Parquet, both forms of Arrow, Hugging Face folders, TFDS; damage is named."""

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_pipeline.sources.readers import read_source
from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig

ROWS = [
    {"text": "one\r\n", "meta": {"pile_set_name": "Github"}, "n": 1},
    {"text": None, "meta": {"pile_set_name": "ArXiv"}, "n": 2},
    {"text": "thrée\u2028", "meta": {"pile_set_name": "Github"}, "n": 3},
]
FOUND = [("Github", 1, "one\r\n", ""), ("ArXiv", 2, "", "null"), ("Github", 3, "thrée\u2028", "")]


def read(path, **options):
    return list(read_source("mine", SourceConfig(path=str(path), **options)))


def write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif "stream" in path.name:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_tables(tmp_path, name):
    found = read(write(tmp_path / name), subset_key="meta.pile_set_name", license="CC0")
    assert [(r.subset, int(r.name.rpartition(":")[2]), r.text, r.dropped) for r in found] == FOUND
    assert {r.license for r in found} == {"CC0"} and found[0].name == f"{name}:1"


def test_a_row_is_the_same_document_in_every_format(tmp_path):
    """The key is the text, so a corpus moved from JSON lines to Parquet keeps its ids and splits."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    packed = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(packed))
    forms = [write(tmp_path / "a.parquet"), write(tmp_path / "a.arrow"), tmp_path / "a.jsonl", tmp_path / "a.jsonl.zst"]
    kept = [[(r.subset, r.key, r.text, r.dropped) for r in read(path)] for path in forms]
    assert kept[0] == kept[1] == kept[2] == kept[3]


def test_a_hugging_face_folder(tmp_path):
    """Files as the hub or save_to_disk leaves them; its JSON and its script are not read, let alone run."""
    folder = tmp_path / "set"
    write(folder / "data" / "train-00000-of-00001.parquet", [{"text": "parquet"}])
    write(folder / "test" / "data-00000-of-00001-stream.arrow", [{"text": "arrow"}])
    (folder / "more.jsonl").write_text('{"text": "lines"}\n')
    (folder / "c4.00000-of-00001.json.gz").write_bytes(gzip.compress(b'{"text": "c4"}\n'))
    for name in ("dataset_info.json", "state.json", "dataset_dict.json", "README.md"):
        (folder / name).write_text("{}")
    (folder / "set.py").write_text("raise SystemExit('this script was run')")
    assert [raw.text for raw in read(folder)] == ["c4", "parquet", "lines", "arrow"]
    assert [raw.text for raw in read(folder, format="parquet")] == ["parquet"]
    assert [raw.text for raw in read(f"{folder}/data/train-*")] == ["parquet"]


def test_columns_that_are_not_in_every_file_are_named(tmp_path):
    write(tmp_path / "1.parquet", [{"text": "a"}])
    write(tmp_path / "2.parquet", [{"body": "b", "n": 1}])
    with pytest.raises(StageError, match=r"2.parquet has no column 'text'; it has: body, n. Set .*mine.text_key"):
        read(tmp_path)
    with pytest.raises(StageError, match=r"1.parquet, row 1 has no text under 'n', but 7"):
        read(write(tmp_path / "n" / "1.parquet", [{"n": 7}]), text_key="n")
    with pytest.raises(StageError, match=r"row 2 has an empty name under 'meta.name'"):
        rows = [{"text": "a", "meta": {"name": "x"}}, {"text": "a", "meta": {"name": None}}]
        read(write(tmp_path / "m" / "1.parquet", rows), subset_key="meta.name")


@pytest.mark.parametrize("name, kind", [("a.parquet", "Parquet"), ("a.arrow", "Arrow"), ("stream.arrow", "Arrow")])
def test_a_damaged_table_is_said(tmp_path, name, kind):
    rows = [{"text": f"{n} " * 50} for n in range(3000)]
    content = write(tmp_path / name, rows).read_bytes()
    for number, broken in enumerate((content[: len(content) // 2], content[:-1], b"no such table", b"")):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(broken)
        with pytest.raises(
            StageError, match=rf"{name} is damaged or no {kind} file \(after row .*Fetch or make it again"
        ):
            read(path)


def test_an_arrow_stream_with_zeros_or_a_second_stream_is_not_read_in_part(tmp_path):
    """Guards against lost rows: the library reads either as the end."""
    content = write(tmp_path / "stream.arrow", [{"text": f"{n} " * 50} for n in range(9)]).read_bytes()
    start = content.index(b"\xff\xff\xff\xff", len(content) // 2)  # where a batch begins
    for number, broken in enumerate((content[:start] + bytes(64) + content[start + 64 :], content + content)):
        path = tmp_path / str(number) / "stream.arrow"
        path.parent.mkdir()
        path.write_bytes(broken)
        with pytest.raises(
            StageError, match=r"is damaged or no Arrow file .* it ends at byte [0-9,]+ of [0-9,]+; what foll"
        ):
            read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.parquet"])
def test_a_document_over_the_limit_is_named(tmp_path, name):
    path = tmp_path / name
    line = json.dumps({"text": "x" * 5000}).encode() + b"\n"
    small = b'{"text": "small"}\n'
    if name == "a.parquet":
        write(path, [{"text": "small"}, {"text": "x" * 5000}])
    elif name == "a.txt":
        path.write_text("x" * 5000)
    else:
        pack = {"jsonl": bytes, "gz": gzip.compress, "zst": zstandard.compress}[name.rpartition(".")[2]]
        path.write_bytes(pack(small + line))
    source = SourceConfig(path=str(path))
    where = "" if name == "a.txt" else ", row 2" if name == "a.parquet" else ", line 2"
    with pytest.raises(
        StageError, match=rf"{name}{where} is a document of more than .*max_document_memory=4,000 bytes"
    ):
        list(read_source("mine", source, 4000))
    assert len(list(read_source("mine", source, 6000))) == (1 if name == "a.txt" else 2)


def test_utf16_is_recognized(tmp_path):
    (tmp_path / "a.txt").write_bytes("text".encode("utf-16"))
    with pytest.raises(StageError, match="byte 0 is 0xff. Convert it, for example: iconv -f utf-16"):
        read(tmp_path / "a.txt")


TFDS = """
import sys
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

folder, kind = sys.argv[1:]
features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": np.int64})
infos = []
for split, texts in (("train", ["one", "zw\\u00f6lf"]), ("test", ["three"])):
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name="made", split=split, filetype_suffix=kind)
    name = f"{folder}/made-{split}.{kind}-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(name, "group_size:1")
    for number, text in enumerate(texts):
        writer.write(features.serialize_example({"text": text, "n": number}))
    writer.close()
    infos.append(tfds.core.SplitInfo(name=split, shard_lengths=[len(texts)], num_bytes=9, filename_template=template))
tfds.folder_dataset.write_metadata(
    data_dir=folder, features=features, split_infos=infos, version="1.0.0", check_data=False
)
"""


def test_a_tfds_directory(tmp_path):
    made = subprocess.run([sys.executable, "-c", TFDS, str(tmp_path), "array_record"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    found = read(tmp_path)
    assert [(r.subset, r.name, r.text) for r in found] == [
        ("mine", "test:1", "three"),
        ("mine", "train:1", "one"),
        ("mine", "train:2", "zwölf"),
    ]
    assert [r.text for r in read(tmp_path, format="tfds", split="test")] == ["three"]
    with pytest.raises(StageError, match="mine.split='val' is not a split of .*; it has: test, train"):
        read(tmp_path, split="val")
    with pytest.raises(StageError, match="split test, example 1 has no key 'body'; it has: n, text"):
        read(tmp_path, text_key="body")
    with pytest.raises(StageError, match="split train, example 2 is a document of more than .*max_document_memory=5 "):
        list(read_source("mine", SourceConfig(path=str(tmp_path)), 5))
    info = tmp_path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(StageError, match="holds tfrecord files, which need TensorFlow; only array_record is read here"):
        read(tmp_path)
