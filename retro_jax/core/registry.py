"""Records by name: how conditions, metrics, protocols, policies, stages and implementations are added from any module."""

from typing import Protocol, TypeVar


class Named(Protocol):
    """A record with a name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


def add(known: dict[str, T], record: T, kind: str) -> T:
    """Appends a record to the known ones and returns it.

    Args:
      kind: what the message calls it ("a metric").

    Raises:
      ValueError: a record of that name exists.
    """
    if record.name in known:
        raise ValueError(f"There is {kind} named {record.name!r} already; give this one another name.")
    known[record.name] = record
    return record
