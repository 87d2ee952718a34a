"""One file of text is damaged at a random place: every document is read, or an error names the file; never fewer."""

import bz2
import gzip
import io
import json
import lzma
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from made_up_text import text

from data_pipeline.sources.readers import read_source
from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig

TEXTS = [text(number, 40) for number in range(20)]
LINES = "".join(json.dumps({"text": content}) + "\n" for content in TEXTS).encode()
TRIALS = 25  # of each form and damage


def table(form):
    rows, buffer = pa.table({"text": TEXTS}), io.BytesIO()
    if form == "parquet":
        pq.write_table(rows, buffer, row_group_size=5, write_page_checksum=True)
    else:
        with (pa.ipc.new_stream if form == "stream" else pa.ipc.new_file)(buffer, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=5)
    return buffer.getvalue()


FORMS = {
    "a.jsonl": LINES,
    "a.json": json.dumps([{"text": content} for content in TEXTS], indent=1).encode(),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(LINES),
    "a.jsonl.xz": lzma.compress(LINES),
    "a.jsonl.bz2": bz2.compress(LINES),
    "a.parquet": table("parquet"),
    "stream.arrow": table("stream"),
    "file.arrow": table("file"),
}
WITH_CHECKSUM = (".gz", ".zst", ".xz", ".bz2", ".parquet")


def flip(content, place, source):
    content[place] ^= 1 << source.randrange(8)


def cut(content, place, source):
    del content[place:]


def zero(content, place, source):
    content[place : place + 512] = bytes(len(content[place : place + 512]))


def insert(content, place, source):
    content[place:place] = source.randbytes(9)


@pytest.mark.parametrize("damage", [flip, cut, zero, insert])
@pytest.mark.parametrize("name", FORMS)
def test_no_document_is_lost_without_a_word(tmp_path, name, damage):
    """Letters may change where a format has no checksum. A text file cut between two lines is a valid, shorter file."""
    source = random.Random(f"{name} {damage.__name__}")
    for trial in range(TRIALS):
        content = bytearray(FORMS[name])
        place = source.randrange(len(content))
        damage(content, place, source)
        if name == "a.jsonl" and damage is cut and content.endswith(b"\n"):
            continue
        (tmp_path / name).write_bytes(content)
        try:
            found = [raw.text for raw in read_source("s", SourceConfig(path=str(tmp_path / name)))]
        except StageError as error:
            assert name in str(error), "the file is named"
            continue
        if name == "a.jsonl" and not content:
            continue
        assert len(found) == len(TEXTS), f"trial {trial}: {damage.__name__} at {place}"
        assert found == TEXTS or not name.endswith(WITH_CHECKSUM), f"trial {trial}: {damage.__name__} at {place}"
