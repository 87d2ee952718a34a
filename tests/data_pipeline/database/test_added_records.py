"""Records without ids that a database and an addition share, as files of the Pile do."""

import joined_set
import made_up_text
from joined_set import write_records

from data_pipeline.database.changes import add
from data_pipeline.database.database import Database
from data_pipeline.documents.stage import DocumentTable, read_documents_manifest
from retro_jax.config import SourceConfig


def test_a_record_that_is_there_already_is_a_duplicate(tmp_path):
    """Guards against an addition that is refused for one repeated record: its subset and text give it the id of the first."""
    texts = [(made_up_text.text(number, 60), "mills") for number in range(14)]
    write_records(tmp_path / "one.jsonl", texts[:12])
    write_records(tmp_path / "two.jsonl", texts[11:])

    def source(name):
        return SourceConfig(path=str(tmp_path / name), subset_key="meta.pile_set_name")

    run = joined_set.make_build(tmp_path / "a", sources={"pile": source("one.jsonl")})
    data = tmp_path / "a" / "data"
    there = {document.text: document.id for document in DocumentTable(data / "documents").read()}
    counts = add(data, run, {"more": source("two.jsonl")}, tmp_path / "a" / "encoder")
    assert counts["documents"] == 2 and counts["copies"] == 0
    added = read_documents_manifest(data / "additions" / "00000" / "documents").counts["subsets"]["mills"]
    assert added["dropped"]["duplicate"] == 1
    shared = there.get(texts[11][0])
    assert shared is not None and shared not in Database(data).tombstones.documents
