"""The declaration of a setting: its default, its range and its documentation.

    steps: int = setting(800_000, at_least(1), "Number of optimizer steps.")

Both are data. `check_ranges` goes over the declarations, so no range is written twice, and documentation can be made
from `declarations`.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

LONGEST = 100  # characters of a value in a message
INT32, INT64 = 2**31 - 1, 2**63 - 1
SEED_MAX = 2**32 - 1  # jax.random.key drops the bits above: two seeds would be one


class Range(typing.Protocol):
    """The range of a setting."""

    @property
    def text(self) -> str:
        """Follows on "must be"."""
        ...

    def holds(self, value) -> bool:
        """Whether a value of the right type is in the range."""
        ...


@dataclass(frozen=True)
class Number:
    """Whole or real numbers from `low` to `high`. NaN and infinities are never in the range."""

    low: float
    high: float | None = None  # None: 2**63 - 1 for whole numbers, any finite real number
    above: bool = False  # `low` itself is not in the range
    below: bool = False  # `high` itself is not in the range
    also: int | None = None  # an extra value with a special meaning

    @property
    def text(self) -> str:
        low = f"above {self.low}" if self.above else f"{self.low} or more"
        high = "" if self.high is None else f" and {'below' if self.below else 'at most'} {self.high}"
        found = f"from {self.low} to {self.high}" if high and not (self.above or self.below) else low + high
        return found if self.also is None else f"{found}, or {self.also}"

    def holds(self, value: float) -> bool:
        if self.also is not None and value == self.also:
            return True
        if isinstance(value, float) and not math.isfinite(value):
            return False
        high = self.high if self.high is not None else INT64 if isinstance(value, int) else math.inf
        return (self.low < value if self.above else self.low <= value) and (
            value < high if self.below else value <= high
        )


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple

    @property
    def text(self) -> str:
        return f"one of {', '.join(str(value) if str(value) else 'empty' for value in self.values)}"

    def holds(self, value) -> bool:
        return value in self.values


@dataclass(frozen=True)
class Text:
    """A text or path without NUL characters, at which the operating system would cut a path."""

    empty: bool = True

    @property
    def text(self) -> str:
        return f"a text without NUL characters{'' if self.empty else ' that is not empty'}"

    def holds(self, value: str) -> bool:
        return "\0" not in value and (self.empty or bool(value.strip()))


@dataclass(frozen=True)
class Rising:
    """Layer numbers: counted from 1, rising, without repeats."""

    text: typing.ClassVar[str] = "rising layer numbers, counted from 1, without repeats"

    def holds(self, value: tuple[int, ...]) -> bool:
        return sorted(set(value)) == list(value) and all(1 <= layer <= INT32 for layer in value)


@dataclass(frozen=True)
class Numbers:
    """Several numbers from `low` to `high`, each once."""

    low: float
    high: float
    open: bool = False  # neither `low` nor `high` is in the range

    @property
    def text(self) -> str:
        ends = f"between {self.low} and {self.high}" if self.open else f"from {self.low} to {self.high}"
        return f"different numbers {ends}, such as (A, B)"

    def holds(self, value: tuple) -> bool:
        inside = (self.low < one < self.high if self.open else self.low <= one <= self.high for one in value)
        return len(set(value)) == len(value) and all(inside)


@dataclass(frozen=True)
class Names:
    """Several texts, each once and none empty."""

    text: typing.ClassVar[str] = "different texts that are not empty, such as ('A', 'B')"

    def holds(self, value: tuple[str, ...]) -> bool:
        return len(set(value)) == len(value) and all(Text(empty=False).holds(one) for one in value)


@dataclass(frozen=True)
class Named:
    """A map from names to values that are each in one range, or to sections that declare their own."""

    each: Range | None = None

    @property
    def text(self) -> str:
        return f"a map from names to values{f', each {self.each.text}' if self.each else ''}"

    def holds(self, value: Mapping) -> bool:
        names = Text(empty=False)
        return all(names.holds(name) and (not self.each or self.each.holds(item)) for name, item in value.items())


def at_least(low: float) -> Number:
    return Number(low)


def above(low: float) -> Number:
    return Number(low, above=True)


def between(low: float, high: float) -> Number:
    return Number(low, high)


def one_of(*values) -> Choice:
    return Choice(values)


SEED = Number(0, SEED_MAX)
SWITCH = Choice((False, True))
TEXT, NAME = Text(), Text(empty=False)


@dataclass(frozen=True)
class Setting:
    """The declaration of a field."""

    range: Range | None  # None: a section, whose fields have their own
    doc: str


def setting(default, range: Range, doc: str):
    """A dataclass field with its range and its documentation.

    Args:
      default: a value in the range; a dict is copied for every instance.
      doc: what the setting is, in one sentence or two, special values too ("0 turns clipping off.").
    """
    metadata = {"setting": Setting(range, doc)}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, doc: str):
    """A dataclass field that is a section of settings."""
    return field(default_factory=kind, metadata={"setting": Setting(None, doc)})


@dataclass(frozen=True)
class Declared:
    """A setting with its full key and type."""

    key: str  # "model.encoder.layers"; NAME stands for the names of a map: "data.sources.NAME.path"
    kind: object  # the annotation
    default: object
    setting: Setting


def declarations(kind: type, prefix: str = "") -> Iterator[Declared]:
    """Every field of a config dataclass and of the sections in it, in order."""
    types = typing.get_type_hints(kind)
    for one in dataclasses.fields(kind):
        key, annotation = f"{prefix}{one.name}", types[one.name]
        default = one.default if one.default is not dataclasses.MISSING else one.default_factory()
        yield Declared(key, annotation, default, one.metadata["setting"])
        if dataclasses.is_dataclass(annotation):
            yield from declarations(annotation, f"{key}.")
        elif item := item_section(annotation):
            yield from declarations(item, f"{key}.NAME.")


def item_section(annotation) -> type | None:
    """The dataclass that a map's values are; None where the annotation is no such map."""
    item = (*typing.get_args(annotation), None, None)[1]
    return item if dataclasses.is_dataclass(item) else None


def check_ranges(config, where: str = "config") -> None:
    """Raises ValueError where a value is out of its declared range, with the field, the range and the documentation.

    Args:
      config: a config dataclass whose values have the right types.
      where: how messages name it.
    """
    types = typing.get_type_hints(type(config))
    for one in dataclasses.fields(config):
        value, key, declared = getattr(config, one.name), f"{where}.{one.name}", one.metadata["setting"]
        if declared.range is not None and not declared.range.holds(value):
            raise ValueError(_message(key, value, declared, one.default))
        if dataclasses.is_dataclass(value):
            check_ranges(value, key)
        elif item_section(types[one.name]):
            for name, item in value.items():
                check_ranges(item, f"{key}.{name}")


def _message(key: str, value, declared: Setting, default) -> str:
    allowed, text = declared.range, declared.range.text
    if isinstance(allowed, Named):
        wrong = next(name for name in value if not allowed.holds({name: value[name]}))
        if not NAME.holds(wrong):
            return f"A name in {key} must be {NAME.text}, but is {wrong!r}."
        key, value, text, default = f"{key}.{wrong}", value[wrong], allowed.each.text, dataclasses.MISSING
    if isinstance(value, int) and abs(value) > INT64:  # repr refuses very long ones
        shown, text = f"a number of {value.bit_length()} bits", f"{text} (a whole number has at most 63 bits)"
    else:
        shown = repr(value) if len(repr(value)) < LONGEST else f"{repr(value)[:LONGEST]}…"
    if isinstance(value, float) and not math.isfinite(value):
        text = f"a finite number, {text}"
    close = difflib.get_close_matches(str(value), [*map(str, getattr(allowed, "values", ()))], n=1)
    near = f" (did you mean {close[0]}?)" if close else ""
    usual = "" if default is dataclasses.MISSING or default == "" else f" The default is {default}."
    return f"{key} must be {text}, but is {shown}{near}. {declared.doc}{usual}"
