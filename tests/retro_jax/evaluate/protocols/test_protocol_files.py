"""Files of the public forms, opened by the readers of `retro build`, give protocols the records that they expect."""

from pathlib import Path

import made_up_sets
import pyarrow as pa
import pyarrow.parquet
import pytest
from made_up_sets import LAMBADA_OPENAI, PILE, WIKI_RAW, wikitext_rows

from data_pipeline.formats.files import SourceFile
from data_pipeline.formats.known import FORMATS, Wanted
from retro_jax.evaluate.protocols import get
from retro_jax.evaluate.protocols.csv_rows import csv_rows


def records_of(form: str, path: Path, columns=("text",)):
    file = SourceFile(str(path), path.name, path.stat().st_size)
    return [record for _, _, record in FORMATS[form].read(file, Wanted(1 << 20, columns, "--path"))]


def write_table(path: Path, rows: list[dict]) -> Path:
    """As the Hugging Face Hub has tables (.parquet) and as its library caches them (.arrow, a stream)."""
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return path


@pytest.mark.parametrize("name", ["validation-00000-of-00001.parquet", "wikitext-validation.arrow"])
def test_wikitext103_as_a_table_is_wikitext103_as_a_file(tmp_path, name):
    protocol = get("wikitext103")
    path = write_table(tmp_path / name, wikitext_rows(WIKI_RAW))
    table = list(protocol.texts(records_of(path.suffix[1:], path)))
    raw = made_up_sets.write_wikitext(tmp_path, WIKI_RAW, "wiki.valid.raw")
    assert table == list(protocol.texts(made_up_sets.records(raw, "lines")))
    assert "".join(text.text for _, text in table).encode() == raw.read_bytes()


def test_the_pile_as_lines_and_as_a_table(tmp_path):
    protocol = get("pile")
    lines = list(protocol.texts(records_of("jsonl", made_up_sets.write_pile(tmp_path))))
    rows = [{"text": text, "meta": {"pile_set_name": name}} for name, text in PILE]
    table = write_table(tmp_path / "test.parquet", rows)
    assert lines == list(protocol.texts(records_of("parquet", table, protocol.columns)))
    assert len(lines) == len(PILE)


def test_c4_is_read_with_its_names(tmp_path):
    protocol = get("documents")
    found = list(protocol.texts(records_of("jsonl", made_up_sets.write_c4(tmp_path, ["a", "", "Tōkyō"]))))
    assert [(text.text, text.name[-1]) for _, text in found] == [("a", "0"), ("", "1"), ("Tōkyō", "2")]


def test_lambada_as_lines_and_as_a_table(tmp_path):
    protocol = get("lambada")
    lines = list(protocol.texts(records_of("jsonl", made_up_sets.write_lambada_openai(tmp_path))))
    table = write_table(tmp_path / "test.parquet", [{"text": text} for text in LAMBADA_OPENAI])
    assert lines == list(protocol.texts(records_of("parquet", table)))


def test_curation_as_csv_and_as_a_table_with_nulls(tmp_path):
    protocol = get("curation")
    path = made_up_sets.write_curation(tmp_path)
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv_rows(lines))
    nulls = [{key: value or None for key, value in row.items()} for row in rows]
    table = write_table(tmp_path / "curation.parquet", nulls)
    expected = list(protocol.texts(rows))
    columns = (*protocol.columns, *protocol.optional)
    assert list(protocol.texts(records_of("parquet", table, columns))) == expected
    assert expected == list(protocol.texts(made_up_sets.records(path, "csv")))
