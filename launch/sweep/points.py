"""The points of a sweep: from `sweep()` of the config file, from --grid and from --seeds.

A point is a name and overrides, {"model.neighbors": 1}. Where a run directory is expected, "point:NAME" stands for the run
that another point trains, and "point:NAME/baseline" for that point's baseline.
"""

import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launch.command.arguments import check_key
from launch.command.reads import check_reads
from retro_jax.config import RunConfig, SourceConfig, resolve, to_dict
from retro_jax.config.local_paths import with_local_paths

REFERENCES = ("train.initialize_from", "evaluate.baseline", "evaluate.retro")  # keys that may name another point
POINT, BASELINE = "point:", "/baseline"
SEED = "train.seed"
OWN_SEED = re.compile(r",seed=\d+(?=,|$)")  # of a sweep that yields its seeds
NAME = re.compile(r"[\w(][\w.,=+@() -]{0,159}")  # of a folder


@dataclass(frozen=True)
class Point:
    """One config of a sweep.

    Attributes:
      group: its name without the seed that --seeds or the sweep itself gave it; points of one group differ in the seed alone.
    """

    name: str
    overrides: Mapping[str, Any]
    group: str = ""


def make_points(swept: Sequence[tuple[str, Mapping]] | None, grid: str, seeds: str) -> list[Point]:
    """The points of `sweep()`, times --grid, times --seeds.

    Raises:
      ValueError: no points, a name that is no folder's, two points of one name, a grid or seeds that cannot be read.
    """
    if swept is None and not grid:
        raise ValueError(
            "A sweep needs points: the config file defines no sweep(), and --grid is missing; for example "
            "--grid='train.learning_rate=1e-4,2e-4 model.neighbors=1,2'."
        )
    points = [Point(name, dict(_leaves(overrides))) for name, overrides in ([("", {})] if swept is None else swept)]
    points = [_both(point, *more) for point in points for more in parse_grid(grid)]
    points = [replace(point, group=point.group or OWN_SEED.sub("", point.name)) for point in points]
    if seeds:
        points = [_both(point, f"seed={seed}", {SEED: seed}) for point in points for seed in parse_seeds(seeds)]
    _check_names(points)
    return points


def _leaves(overrides: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _both(point: Point, name: str, overrides: Mapping) -> Point:
    """A point with further overrides; the points that it refers to are those with the same ones."""
    if not name:
        return point
    if twice := sorted(set(point.overrides) & set(overrides)):
        raise ValueError(f"The point {point.name!r} sets {twice[0]} already; remove it from --grid or --seeds.")
    own = {key: _renamed(value, name) if key in REFERENCES else value for key, value in point.overrides.items()}
    return replace(point, name=f"{point.name},{name}".lstrip(","), overrides={**own, **overrides})


def _renamed(value: Any, suffix: str) -> Any:
    if not (isinstance(value, str) and value.startswith(POINT)):
        return value
    name, baseline = referred(value)
    return f"{POINT}{name},{suffix}{BASELINE if baseline else ''}"


def referred(value: str) -> tuple[str, bool]:
    """(name, whether its baseline is meant) of "point:NAME" or "point:NAME/baseline"."""
    name = value.removeprefix(POINT)
    return name.removesuffix(BASELINE), name.endswith(BASELINE)


def parse_grid(text: str) -> list[tuple[str, dict]]:
    """(name, overrides) of every combination in 'train.learning_rate=1e-4,2e-4 model.retrieval_layers=(2,4),(4,)'.

    Raises:
      ValueError: a word that is not KEY=VALUE,VALUE, or a key given twice.
    """
    axes: dict[str, list[str]] = {}
    for word in _split(text, " \t\n"):
        key, equals, values = word.partition("=")
        if not equals or not key or "" in (found := _split(values, ",")):
            raise ValueError(f"--grid holds {word!r}, which is not KEY=VALUE,VALUE, as in model.neighbors=1,2.")
        if axes.setdefault(key.removeprefix("config."), found) is not found:
            raise ValueError(f"--grid sets {key} twice; give all its values once.")
    short = Counter(key.rpartition(".")[2] for key in axes)
    labels = {key: last if short[last := key.rpartition(".")[2]] == 1 else key for key in axes}
    return [
        (
            ",".join(f"{labels[key]}={_plain(value)}" for key, value in zip(axes, chosen, strict=True)),
            {key: parse_value(value) for key, value in zip(axes, chosen, strict=True)},
        )
        for chosen in itertools.product(*axes.values())
    ]


def _split(text: str, separators: str) -> list[str]:
    """Parts between separators that are outside of brackets and quotes; at white space, empty parts are left out."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter in separators and not depth:
            parts.append("")
            continue
        parts[-1] += letter
    return [part for part in parts if part] if " " in separators else parts


def _plain(text: str) -> str:
    return re.sub(r"[^\w.,=+@()-]", "_", text.replace(" ", "").strip("'\""))


def parse_value(text: str) -> Any:
    """A value as a config file would write it; a word that is no Python literal is a text."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text


def parse_seeds(text: str) -> list[int]:
    """The whole numbers of --seeds=0,1,2."""
    seeds = [parse_value(word) for word in text.split(",")]
    if wrong := [seed for seed in seeds if type(seed) is not int]:
        raise ValueError(f"--seeds={text} must be whole numbers such as 0,1,2, but holds {wrong[0]!r}.")
    return seeds


def _check_names(points: Sequence[Point]) -> None:
    if not points:
        raise ValueError("sweep() yields no points; yield a name and a dict of overrides for each.")
    for point in points:
        if not NAME.fullmatch(point.name):
            raise ValueError(
                f"The name of a point is the name of its folder, but one is {point.name!r:.200}; take up to 160 letters, digits "
                f"and any of . , = + @ ( ) - _."
            )
    twice = [name for name, count in Counter(point.name for point in points).items() if count > 1]
    if twice:
        raise ValueError(f"Two points are named {twice[0]!r}; give each a name of its own.")


def resolved(base: Mapping, point: Point) -> RunConfig:
    """The config of a point.

    Args:
      base: of the sweep, as plain dicts.

    Raises:
      ValueError: an unknown key (with the nearest known one), or a value that the config does not take; the point is named.
    """
    try:
        facts = changed(base, point.overrides)
        check_reads("sweep", point.overrides)
        return with_local_paths(resolve(facts))
    except ValueError as error:
        raise ValueError(f"Point {point.name!r}: {error}") from None


def changed(base: Mapping, overrides: Mapping[str, Any]) -> dict:
    """`base` with overrides, as plain dicts.

    Raises:
      ValueError: an unknown key, with the nearest known one.
    """
    facts = _copy(base)
    for key in overrides:
        parts = key.split(".")
        if parts[:2] == ["data", "sources"] and len(parts) == 4 and parts[3] in ("path", "package"):
            facts["data"]["sources"].setdefault(parts[2], to_dict(SourceConfig()))
    for key, value in overrides.items():
        *sections, last = key.split(".")
        check_key(["config", *sections, last], facts)
        here = facts
        for section in sections:
            here = here[section]
        here[last] = value
    return facts


def _copy(value):
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def value_of(run: RunConfig, key: str) -> Any:
    """The value of a key ("train.steps") in a config; None where a map has no such name."""
    here: Any = run
    for part in key.split("."):
        here = here.get(part) if isinstance(here, Mapping) else getattr(here, part, None)
    return here
