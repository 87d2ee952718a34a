"""Properties of reading, documents and chunks over any text: nothing is lost or changed, memory stays small."""

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.chunks import cut
from data_pipeline.documents.stage import DocumentTable, build_documents
from data_pipeline.sources.readers import read_source
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig

# Any text a file can hold; odd line ends, marks and controls come up often.
ODD = st.sampled_from(["\r\n", "\r", "\n", "\x0b", "\x85", "\u2028", "\u2029", "\0", "\ufeff", "\u200b", "\U0010ffff"])
TEXT = st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), ODD), max_size=6).map("".join)
HUGE = "é\r\n" * 300_000  # a million bytes
FORMATS = ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"]


def write(folder, form, texts):
    path = Path(folder) / f"in.{form}"
    if form in ("parquet", "arrow"):
        table = pa.table({"text": pa.array(texts, pa.string())})
        if form == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table)
        return path
    pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[form]
    path.write_bytes(pack("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()))
    return path


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(TEXT, max_size=8), st.sampled_from(FORMATS))
@example(["", "x", HUGE, "\r", HUGE + "y"], "jsonl")
@example([HUGE, ""], "jsonl.zst")
@example([HUGE, "a"], "parquet")
def test_every_format_gives_back_every_text_as_it_was(texts, form):
    with tempfile.TemporaryDirectory() as folder:
        source = SourceConfig(path=str(write(folder, form, texts)))
        assert [raw.text for raw in read_source("s", source)] == texts


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.none(), TEXT), max_size=12), st.sampled_from(FORMATS), st.sampled_from([0.0, 0.8]))
def test_documents_in_are_documents_kept_and_dropped_with_a_reason(texts, form, jaccard):
    """Nulls, copies, empty and near texts; kept texts are unchanged, and the list names what cleaning dropped."""
    with tempfile.TemporaryDirectory() as folder:
        source = SourceConfig(path=str(write(folder, form, texts)), max_train_bytes=40)
        config = DataConfig(sources={"s": source}, minimum_characters=1, validation_fraction=0.4)
        config = DataConfig(**{**vars(config), "near_duplicate_jaccard": jaccard})
        try:
            counts = build_documents(Path(folder) / "d", config).counts
        except StageError as error:
            assert "No document is left" in str(error)
            return
        (count,) = counts["subsets"].values()
        kept = list(DocumentTable(Path(folder) / "d").read())
        assert count["read"] == len(texts) == len(kept) + sum(count["dropped"].values())
        assert count["dropped"]["null"] == texts.count(None) and count["dropped"]["short"] == texts.count("")
        assert {d.text for d in kept} <= set(texts) and len({d.text for d in kept}) == len(kept)
        listed = (Path(folder) / "d" / "dropped.jsonl").read_text().splitlines()
        assert len(listed) == count["dropped"]["near_duplicate"]
        if not (count["dropped"]["budget"] or listed):
            assert {d.text for d in kept} == {text for text in texts if text}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(3, 99), max_size=40), max_size=8), st.integers(2, 9))
@example([[], [5], [7] * 5000], 4)
def test_chunks_hold_every_token_once_and_no_other(documents, length):
    """Documents of no, one and thousands of tokens: BOS, the tokens and EOS in order, the rest is padding."""
    table, rows = cut([np.array(document, np.int32) for document in documents], length, 1, 2)
    assert rows.sum() == len(table) and len(rows) == len(documents)
    for document, part in zip(documents, np.split(table, np.cumsum(rows)[:-1]) if documents else [], strict=True):
        flat = part.reshape(-1)
        whole = [1, *document, 2]
        assert flat[: len(whole)].tolist() == whole and (flat[len(whole) :] == -1).all()
        assert len(flat) - len(whole) < length


MEMORY = """
import resource, sys
from pathlib import Path
from data_pipeline.documents.stage import build_documents
from retro_jax.config import DataConfig, SourceConfig
source = SourceConfig(path=sys.argv[1])
build_documents(Path(sys.argv[2]), DataConfig(sources={"s": source}, near_duplicate_jaccard=float(sys.argv[3])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def corpus(path, form, megabytes):
    """Documents of 4 kB, every one different, and one of 2 MB."""
    source = np.random.default_rng(0)

    def texts():
        yield "long " * 400_000
        for number in range(megabytes * 250):
            yield f"{number} " + " ".join(f"{word:x}" for word in source.integers(0, 1 << 24, 620))

    if form == "jsonl.gz":
        with gzip.open(path, "wt", compresslevel=1) as file:
            for text in texts():
                file.write(json.dumps({"text": text}) + "\n")
        return
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        batch = []
        for text in texts():
            batch.append(text)
            if len(batch) == 2000:
                writer.write_table(pa.table({"text": batch}))
                batch = []
        writer.write_table(pa.table({"text": pa.array(batch, pa.string())}))


@pytest.mark.slow
@pytest.mark.parametrize("form, jaccard", [("jsonl.gz", 0.0), ("parquet", 0.0), ("parquet", 0.8)])
def test_memory_does_not_grow_with_the_file(tmp_path, form, jaccard):
    """Ten times the text takes at most 24 MB more: the facts and signatures of 45,000 more documents are 26 MB on disk."""
    peaks = []
    for megabytes in (20, 200):
        path = tmp_path / f"{megabytes}.{form}"
        corpus(path, form, megabytes)
        run = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / f"d{megabytes}"), str(jaccard)]
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(float(done.stdout))
        path.unlink()
    print(f"{form}, near duplicates {jaccard}: {peaks[0]:.0f} MB at 20 MB, {peaks[1]:.0f} MB at 200 MB")
    assert peaks[1] < peaks[0] + 24
