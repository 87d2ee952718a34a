"""Records of question files: JSON arrays and lines, and DPR's rows of question and answers."""

import codecs
import csv
from collections.abc import Iterator

from data_pipeline.formats.compression import COMPRESSIONS, open_plain
from data_pipeline.formats.files import SourceFile, check_unchanged
from data_pipeline.formats.json_records import json_records, too_large
from data_pipeline.sources.listing import Listing, list_files
from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig
from retro_jax.evaluate.questions.question import Question, read, read_row

JSON, ROWS = (".json", ".jsonl", ".ndjson"), (".tsv", ".csv")


def list_questions(name: str, source: SourceConfig) -> Listing:
    """The files of a set of questions.

    Raises:
      StageError: no file of questions.
    """
    where = f"config.data.sources.{name}.path"
    listing = list_files(source.path, where, any_ending=True)
    files = tuple(file for file in listing.files if _plain_name(file.name).endswith(JSON + ROWS))
    if not files:
        raise StageError(
            f"{where}={source.path!r} has no file of questions: they end in {', '.join(JSON + ROWS)} (each also compressed: "
            f"{', '.join(COMPRESSIONS)}). Give others."
        )
    return Listing(files, listing.left_out, listing.notes)


def read_questions(file: SourceFile, at_most: int, limit: int) -> Iterator[tuple[str, Question]]:
    """Yields (place, question) of a file, in order.

    Args:
      at_most: passages of a question.
      limit: bytes of one record.

    Raises:
      StageError: a record that is not a question; the message has the file, the place in it, and what was expected.
    """
    records = _rows(file, limit) if _plain_name(file.name).endswith(ROWS) else _objects(file, limit)
    for where, record in records:
        try:
            yield where, read(read_row(record) if isinstance(record, list) else record, at_most)
        except ValueError as error:
            raise StageError(f"{where}: {error} {HELP}") from None
    check_unchanged(file)


HELP = "docs/guides/question_answering.md describes the formats."


def _objects(file: SourceFile, limit: int) -> Iterator[tuple[str, object]]:
    for _, where, record in json_records(file, limit):
        yield where, None if isinstance(record, list) else record


def _rows(file: SourceFile, limit: int) -> Iterator[tuple[str, list[str]]]:
    csv.field_size_limit(min(limit, 2**31 - 1))
    rows = csv.reader(_lines(file, limit), delimiter="\t", strict=True)
    while True:
        where = f"{file.url}, line {rows.line_num + 1:,}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise StageError(f"{where}: expected two columns with a tab between ({error}). {HELP}") from None
        if row is None:
            return
        if row:
            yield where, row


def _lines(file: SourceFile, limit: int) -> Iterator[str]:
    with open_plain(file) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(limit + 1), b""), start=1):
            where = f"{file.url}, line {number:,}"
            if len(line) > limit:
                raise too_large(where, limit)
            try:
                yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
            except UnicodeDecodeError as error:
                raise StageError(f"{where} is not UTF-8 (byte {error.start} of the line). Convert the file.") from None


def _plain_name(name: str) -> str:
    """A file name in lower case, without the ending of its compression."""
    lower = name.lower()
    return next((lower[: -len(packed)] for packed in COMPRESSIONS if lower.endswith(packed)), lower)
