"""Records of an evaluation set's files as text to score."""

from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.sources.readers import Unit, read_unit
from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig

DOCUMENTS = "documents"  # the protocol that scores whole texts, and reads every format that a build reads


@dataclass(frozen=True)
class Entry:
    """A document of a set."""

    subset: str
    name: str  # for people
    place: str  # where it stands in the set's files: its id comes from this
    license: str
    text: str
    scored: tuple[tuple[int, int], ...] = ()  # byte ranges; (): all of it
    words: int = 0
    dropped: str = ""  # why it is no document


def check_protocol(name: str) -> None:
    """Raises StageError where there is no such protocol."""
    if name != DOCUMENTS:
        raise StageError(f"There is no protocol {name!r}; there is: {DOCUMENTS}.")


def read_entries(name: str, source: SourceConfig, unit: Unit, limit: int) -> Iterator[Entry]:
    """Yields the documents of one unit of a source, in the order of its files.

    Args:
      limit: bytes of one document.

    Raises:
      StageError: a record that is not of the format, with file and line.
    """
    check_protocol(source.protocol)
    for raw in read_unit(name, source, unit, limit):
        yield Entry(raw.subset, raw.title or raw.name, raw.name, raw.license, raw.text, dropped=raw.dropped)
