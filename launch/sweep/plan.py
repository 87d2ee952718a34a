"""The plan of a sweep as records: its points, and the builds, trainings and evaluations that they need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.command.steps import Step
from launch.sweep.points import REFERENCES, SEED, Point, value_of
from retro_jax.config import RunConfig


@dataclass(frozen=True)
class Task:
    """A build, a training or an evaluation: one process.

    Attributes:
      key: its name in WORKDIR/state and WORKDIR/logs.
      directory: what it writes.
      needs: keys of the tasks that come before.
      run: the config that it runs with.
      digest: of everything that its result depends on.
      links: of a point's work directory, by name.
      writes: what one task at a time may write, where several write into one directory: shares of one database.
    """

    key: str
    step: Step
    directory: Path
    needs: tuple[str, ...]
    run: RunConfig
    digest: str
    links: Mapping[str, Path] = field(default_factory=dict)
    writes: str = ""


@dataclass(frozen=True)
class Data:
    """Where a point's data are: made by a task of the sweep, or in a finished database (no task)."""

    directory: Path
    identity: str
    task: str = ""


@dataclass(frozen=True)
class Model:
    """A model: trained by a task of the sweep, or in a run directory outside of it (no task and no config)."""

    directory: Path
    identity: str
    retrieves: bool
    run: RunConfig | None = None
    task: str = ""


@dataclass(frozen=True)
class Planned:
    """A point with what it needs.

    Attributes:
      model: what is evaluated; a decoder without retrieval is evaluated as a baseline.
      baseline: None where there is none, and where `model` is one.
      task: of its evaluation.
    """

    point: Point
    run: RunConfig
    data: Data
    model: Model
    baseline: Model | None
    task: str

    @property
    def seed(self) -> int:
        return (self.model.run or self.run).train.seed


@dataclass(frozen=True)
class Plan:
    """What a sweep consists of. `tasks` come in an order in which they can run."""

    workdir: Path
    base: Mapping
    points: Sequence[Planned]
    tasks: Mapping[str, Task]

    def needed(self, keys: Sequence[str]) -> set[str]:
        """Those tasks and all that come before them."""
        found: set[str] = set()
        waiting = list(keys)
        while waiting:
            if (key := waiting.pop()) not in found:
                found.add(key)
                waiting += self.tasks[key].needs
        return found

    def users(self) -> dict[str, list[str]]:
        """Names of the points that need each task."""
        found: dict[str, list[str]] = {key: [] for key in self.tasks}
        for one in self.points:
            for key in self.needed([one.task]):
                found[key].append(one.point.name)
        return found

    def axes(self) -> dict[str, list]:
        """The keys that vary, each with its value for every point; without the seed."""
        keys = dict.fromkeys(key for one in self.points for key in one.point.overrides if key != SEED)
        columns = {key: [_shown(one, key) for one in self.points] for key in keys}
        return {key: values for key, values in columns.items() if len(set(map(repr, values))) > 1}


def _shown(planned: Planned, key: str):
    return planned.point.overrides.get(key, "") if key in REFERENCES else value_of(planned.run, key)
