"""A format registered from another module is one entry: it is listed, read, counted and named in messages."""

import pytest

from data_pipeline.documents.stage import DocumentTable, build_documents
from data_pipeline.formats import known
from data_pipeline.formats.files import open_file
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig

TALES = ["the grain and the mill of a river", "the boat that a miller built at the mill"]


def read_tales(file, wanted):
    """A text between lines of stars."""
    with open_file(file) as stream:
        for number, text in enumerate(stream.read().decode().split("\n***\n"), start=1):
            yield number, f"{file.url}, tale {number}", {wanted.columns[0]: text}


@pytest.fixture
def tales(tmp_path, monkeypatch):
    monkeypatch.setitem(known.FORMATS, "tales", known.Format((".tales",), read_tales))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.tales").write_text("\n***\n".join(TALES))
    return tmp_path


@pytest.mark.parametrize("form", ["", "tales"])
def test_an_added_format_is_read_by_its_ending_or_its_name(tales, form):
    sources = {"mine": SourceConfig(path=str(tales / "text"), format=form)}
    manifest = build_documents(
        tales / "documents", DataConfig(sources=sources, minimum_characters=1, validation_fraction=0.0)
    )
    assert sorted(document.text for document in DocumentTable(tales / "documents").read()) == sorted(TALES)
    assert manifest.counts["source_files"]["mine"]["read"] == {
        ".tales": [1, (tales / "text" / "a.tales").stat().st_size]
    }


def test_messages_know_it(tales):
    assert ".tales" in known.known_endings()
    (tales / "b.unknown").write_text("x")
    with pytest.raises(StageError, match=r"\.tales"):
        build_documents(tales / "documents", DataConfig(sources={"mine": SourceConfig(path=str(tales / "b.unknown"))}))
    with pytest.raises(StageError, match="format must be text, jsonl, parquet, arrow, tales or tfds"):
        build_documents(
            tales / "documents", DataConfig(sources={"mine": SourceConfig(path=str(tales / "text"), format="talles")})
        )
