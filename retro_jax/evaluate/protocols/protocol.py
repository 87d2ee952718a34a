"""What a protocol is: how the records of a public file become text to score, and how that text is scored.

    register(Protocol("haiku", "poems of three lines", "none", read=read_haiku, forms={".csv": "csv"}))

adds a protocol from any module, before `retro join` runs. A reader is a function of one record:

    def read_haiku(record: Record, number: int) -> EvaluationText:
        return EvaluationText("\\n".join(field(record, name, number) for name in ("first", "second", "third")))
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from retro_jax.core.registry import add

Record = Mapping | str

# How a file gives its records.
FORMS = {
    "text": "the whole file is one record",
    "lines": "a line is a record, with its line ending",
    "json": "a JSON object a line is a record",
    "table": "a row of a Parquet or Arrow table is a record",
    "csv": "a row of a CSV file with a header is a record",
}
# The endings that most protocols read; a compressed file has the compression's ending behind it.
USUAL_FORMS = {
    ".txt": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "table",
    ".arrow": "table",
}


@dataclass(frozen=True)
class EvaluationText:
    """A document to score.

    Attributes:
      text: all of it, context included.
      scored: UTF-8 byte ranges [start, end) of the text that are scored, in order and disjoint; () scores all.
      words: words of the original tokenization in the scored text; 0 where the protocol counts none.
      name: what a report calls it (a title or an address); "" if the record has none.
      subset: "" leaves the subset to the set's source.
    """

    text: str
    scored: tuple[tuple[int, int], ...] = ()
    words: int = 0
    name: str = ""
    subset: str = ""


@dataclass(frozen=True)
class Excluded:
    """A well-formed record that the protocol leaves out; left-out records are counted by `reason`, which is short."""

    reason: str


def _each_alone(records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
    yield from enumerate(records, start=1)


@dataclass(frozen=True)
class Protocol:
    """A way to read and score a public evaluation set.

    Attributes:
      name: what config, command line, and results.json call it.
      meaning: what is scored, for listings and reports.
      paper: the sections and tables of arXiv 2112.04426 that use it.
      read: one record and its number in the file (for messages) -> text, or Excluded. It raises ValueError with the
        number, what was expected, and what was found.
      overlap: the share of a window that is context only; windows start (1 - overlap) of their length apart.
      greedy: also score whether every scored token is the most likely one.
      metrics: names in `metrics.METRICS` that are shown for it, the main one first.
      forms: ending of a file's name (compression aside) -> its form, a key of FORMS.
      columns: fields that a record needs; of a table no other columns need to be read, except `optional`.
      optional: fields that are read where a table has them.
      cut: the records of one file in order -> (number, record) for `read`. By default each record is read alone and
        numbers count from 1.
    """

    name: str
    meaning: str
    paper: str
    read: Callable[[Record, int], EvaluationText | Excluded]
    overlap: float = 0.5
    greedy: bool = False
    metrics: tuple[str, ...] = ("bpb", "perplexity")
    forms: Mapping[str, str] = dataclass_field(default_factory=lambda: USUAL_FORMS)
    columns: tuple[str, ...] = ("text",)
    optional: tuple[str, ...] = ()
    cut: Callable[[Iterable[Record]], Iterator[tuple[int, Record]]] = _each_alone

    def __post_init__(self):
        if not 0 <= self.overlap < 1:
            raise ValueError(f"Protocol {self.name!r}: overlap must be in [0, 1), not {self.overlap}.")
        for ending, form in self.forms.items():
            if form not in FORMS:
                raise ValueError(f"Protocol {self.name!r}: {ending} has form {form!r}; forms are {', '.join(FORMS)}.")

    def form_of(self, file_name: str) -> str:
        """The form of a file by its name, without a compression's ending.

        Raises:
          ValueError: the protocol reads no file of that ending.
        """
        for ending in sorted(self.forms, key=len, reverse=True):
            if file_name.lower().endswith(ending):
                return self.forms[ending]
        raise ValueError(
            f"{file_name}: protocol {self.name!r} reads files that end in {', '.join(self.forms)}. Rename the file, or "
            f"choose another of {', '.join(PROTOCOLS)}."
        )

    def texts(self, records: Iterable[Record]) -> Iterator[tuple[int, EvaluationText | Excluded]]:
        """Yields (number, text or Excluded) for the records of one file in order, as its form gives them."""
        for number, record in self.cut(records):
            yield number, self.read(record, number)


PROTOCOLS: dict[str, Protocol] = {}  # in the order of listings


def register(protocol: Protocol) -> Protocol:
    """Adds a protocol.

    Raises:
      ValueError: one of that name exists.
    """
    return add(PROTOCOLS, protocol, "a protocol")


def get(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
      ValueError: no such protocol; lists those that exist.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"There is no protocol {name!r}; there is: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def field(record: Record, name: str, number: int) -> str:
    """The text of a record's field.

    Raises:
      ValueError: no such field, or no string in it.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"record {number:,}: expected an object with the field {name!r}, found {shown(record)}.")
    if name not in record:
        there = ", ".join(map(repr, record)) or "none"
        raise ValueError(f"record {number:,}: expected a field {name!r}, found the fields {there}.")
    if not isinstance(record[name], str):
        raise ValueError(f"record {number:,}: expected text in {name!r}, found {shown(record[name])}.")
    return record[name]


def first_field(record: Mapping, names: Iterable[str]) -> str:
    """The first of these fields that holds text, "" where none does."""
    return next((record[name] for name in names if isinstance(record.get(name), str)), "")


def shown(value: object) -> str:
    """A value of a record as messages show it: its type, and how it begins."""
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"
