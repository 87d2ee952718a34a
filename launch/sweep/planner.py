"""Plans a sweep: which builds, trainings and evaluations its points need, each of them once.

Directories are named by a digest of what the verb reads, so points that need the same thing share it, and a sweep that
changes keeps what is still valid:

    WORKDIR/data/DIGEST/     a build           WORKDIR/points/NAME/   the evaluation of a point: an ordinary work directory
    WORKDIR/runs/DIGEST/     a training

A digest leaves out the settings that change no number (`run_directory.identity.FREE_FIELDS`) unless a point changes them.
"""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.pipeline import database_directory
from launch.command.reads import READS, check_reads, is_read
from launch.command.steps import OF_RETRIEVAL, Step, config_flag, of_baseline
from launch.sweep.digests import LETTERS, OF_LINKS, of_build, of_evaluation, of_training
from launch.sweep.plan import Data, Model, Plan, Planned, Task
from launch.sweep.points import POINT, Point, changed, referred, resolved
from retro_jax.config import RunConfig, at_run_time, check_evaluate, resolve
from retro_jax.core.files import digest, read_json
from retro_jax.data.manifests import read_manifest
from retro_jax.run_directory.whole import steps, whole_path


def make_plan(
    base: Mapping, config: str, given: Mapping[str, str], points: Sequence[Point], workdir: Path, baselines: bool = True
) -> Plan:
    """Plans a sweep; nothing is written.

    Args:
      base: the config of the sweep, with what the command line sets, as plain dicts.
      config: FILE.py[:ARGUMENT].
      given: the flags of the command line that set a key, by key.
      baselines: derive the baseline of every point that retrieves.

    Raises:
      ValueError: a key or value that the config does not take, an unknown point, or points that need one another in a circle.
    """
    planner = Planner(base, config, given, points, workdir, baselines)
    return Plan(planner.workdir, base, [planner.planned(name) for name in planner.points], planner.tasks)


class Planner:
    """Makes the tasks that points need, each once, what comes before first; the arguments are those of `make_plan`."""

    def __init__(self, base, config, given, points, workdir, baselines):
        self.base, self.config, self.given, self.workdir, self.baselines = base, config, given, Path(workdir), baselines
        self.base_run = resolve(base)
        self.points = {point.name: point for point in points}
        self.tasks: dict[str, Task] = {}
        self._known: dict[tuple[str, str], Any] = {}
        self._open: list[tuple[str, str]] = []

    def planned(self, name: str) -> Planned:
        check_evaluate(self.run(name).evaluate)
        model = self.model(name)
        baseline = self.baseline(name) if model.retrieves else None
        data = self.data(name)
        return Planned(
            self.points[name], self.run(name), data, model, baseline, self._evaluation(name, data, model, baseline)
        )

    def _once(self, what: str, name: str, make):
        """What `make` gives, once a name.

        Raises:
          ValueError: it needs itself.
        """
        if (what, name) not in self._known:
            with self._entered(what, name):
                self._known[what, name] = make()
        return self._known[what, name]

    @contextmanager
    def _entered(self, what: str, name: str):
        if (what, name) in self._open:
            circle = [*self._open[self._open.index((what, name)) :], (what, name)]
            way = [one + ("/baseline" if kind == "baseline" else "") for kind, one in circle]
            raise ValueError(f"Points need one another in a circle: {' -> '.join(way)}.")
        self._open.append((what, name))
        yield
        self._open.pop()

    def overrides(self, name: str) -> Mapping[str, Any]:
        """Of a point; one that evaluates the model of another point has the other's before its own."""
        return self._once("overrides", name, lambda: self._overrides(name))

    def _overrides(self, name: str) -> Mapping[str, Any]:
        own = self.points[name].overrides
        source = own.get("evaluate.retro", "")
        if not str(source).startswith(POINT):
            return own
        other, baseline = self._refer(name, "evaluate.retro", source)
        if baseline:
            raise ValueError(f"Point {name!r}: evaluate.retro={source} must be the model of a point, not a baseline.")
        try:
            check_reads("evaluate", own)
        except ValueError as error:
            raise ValueError(f"Point {name!r} evaluates the model of {other!r} and trains none: {error}") from None
        return {**self.overrides(other), **own}

    def run(self, name: str) -> RunConfig:
        """The config of a point."""
        point = replace(self.points[name], overrides=self.overrides(name))
        return self._once("config", name, lambda: resolved(self.base, point))

    def data(self, name: str) -> Data:
        """The data of a point, with the task that builds them."""
        return self._once("data", name, lambda: self._data(name))

    def _data(self, name: str) -> Data:
        run = self.run(name)
        if run.data.directory:
            idle = [key for key in self.overrides(name) if key.startswith("data.") and key != "data.directory"]
            if idle:
                raise ValueError(
                    f"Point {name!r}: {idle[0]} would change nothing, because the data of {run.data.directory} are finished "
                    f"(data.directory); remove one of them."
                )
            return Data(Path(run.data.directory), self._fingerprint(run.data.directory))
        identity = of_build(run)
        directory, fraction = self.workdir / "data" / identity[:LETTERS], run.data.database_fraction
        of_view = identity if fraction == 1 else digest([identity, fraction])
        key = f"build-{of_view[:LETTERS]}"
        view = database_directory(directory, fraction)
        if key not in self.tasks:
            words = self._flags(
                "build", {**self.overrides(name), "data.directory": directory}, ("model.retrieval_layers",)
            )
            step = Step("build the database and the training shards", "build", [*words, f"--workdir={directory}"])
            self.tasks[key] = Task(key, step, view, (), run, of_view, writes=f"build-of-{identity[:LETTERS]}")
        return Data(view, of_view, key)

    def _fingerprint(self, directory: str) -> str:
        """The identity of a finished database: that of its shards and tokenizer."""

        def make():
            found = [read_manifest(Path(directory) / stage, stage, verify=False) for stage in ("joined", "tokenizer")]
            return digest([one.fingerprint for one in found])

        return self._once("fingerprint", directory, make)

    def model(self, name: str) -> Model:
        """The model that a point evaluates, with the task that trains it."""
        return self._once("model", name, lambda: self._model(name))

    def _model(self, name: str) -> Model:
        run = self.run(name)
        if not run.evaluate.retro:
            return self._train(name, as_baseline=not run.model.retrieves)
        found = self._named(name, "evaluate.retro", run.evaluate.retro)
        if found.run is not None and found.retrieves:
            at_run_time(found.run.model, run.model, f"{run.evaluate.retro!r}, which point {name!r} evaluates,")
        return found

    def baseline(self, name: str) -> Model | None:
        """The baseline that a point is compared with; None where there is none."""
        return self._once("baseline", name, lambda: self._baseline(name))

    def _baseline(self, name: str) -> Model | None:
        run = self.run(name)
        if run.evaluate.baseline:
            return self._named(name, "evaluate.baseline", run.evaluate.baseline)
        if not self.baselines:
            return None
        if source := run.evaluate.retro:
            return self.baseline(referred(source)[0]) if source.startswith(POINT) else None
        if not run.model.retrieves:
            return self.model(name)
        if source := run.train.initialize_from:  # a retrofit is compared with the decoder that it starts from
            found = self._named(name, "train.initialize_from", source)
            return None if found.retrieves else found
        return self._train(name, as_baseline=True)

    def _named(self, name: str, key: str, value: str) -> Model:
        """The model of "point:NAME", of "point:NAME/baseline", or of a run directory."""
        if not value.startswith(POINT):
            return self._outside(name, key, Path(value).absolute())
        other, baseline = self._refer(name, key, value)
        found = self.baseline(other) if baseline else self.model(other)
        if found is None:
            raise ValueError(f"Point {name!r}: {key}={value}, but {other!r} has no baseline.")
        return found

    def _refer(self, name: str, key: str, value: str) -> tuple[str, bool]:
        """(name, whether its baseline is meant) of a reference; ValueError for an unknown point."""
        other, baseline = referred(value)
        if other not in self.points:
            near = difflib.get_close_matches(other, self.points, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"points: {', '.join(map(repr, self.points))}."
            raise ValueError(f"Point {name!r}: {key}={value} names no point of this sweep; {hint:.500}")
        return other, baseline

    def _outside(self, name: str, key: str, directory: Path) -> Model:
        """A model trained outside of the sweep."""
        remedy = f"Point {name!r} needs it ({key}): name the directory of a finished run, or a point as point:NAME."
        model = read_json(directory / "config.json", remedy, keys=("model",))["model"]
        return Model(directory, self._content(directory, model), bool(model.get("retrieval_layers")))

    def _content(self, directory: Path, model: Mapping) -> str:
        """The identity of a run outside of the sweep: its newest weights, wherever it lies. Without any, evaluation says so."""

        def make():
            listed = [whole_path(directory / "checkpoints" / str(step)) for step in steps(directory / "checkpoints")]
            listed = [path.read_text(encoding="utf-8") for path in listed if path.exists()]
            return digest([model, listed[-1] if listed else str(directory)])

        return self._once("content", str(directory), make)

    def _train(self, name: str, as_baseline: bool) -> Model:
        """The training of a point, or of its baseline.

        Of a baseline, the point's values of keys that no baseline reads are left out, so that points which differ in these share it.
        """
        own, data, read = self.run(name), self.data(name), dict(self.overrides(name))
        derived = as_baseline and own.model.retrieves
        if as_baseline:
            read = {key: value for key, value in read.items() if not is_read(key, OF_RETRIEVAL)}
        values = dict(read)
        if as_baseline:
            values |= of_baseline(self.base_run) | {"train.trainable": "all"}
            values |= {"train.initialize_from": ""} if derived else {}
        start = None
        if not derived and own.train.initialize_from:
            start = self._named(name, "train.initialize_from", own.train.initialize_from)
            values["train.initialize_from"] = str(start.directory)
        run = resolve(changed(self.base, values))
        identity = of_training(run, self.base_run, read, data, start)
        key, directory = f"train-{identity[:LETTERS]}", self.workdir / "runs" / identity[:LETTERS]
        if key not in self.tasks:
            words = self._flags("train", {**values, "data.directory": data.directory})
            title = "train a decoder without retrieval" if as_baseline else "train RETRO"
            step = Step(title, "train", [*words, f"--workdir={directory}"])
            needs = tuple(filter(None, (data.task, start.task if start else "")))
            self.tasks[key] = Task(key, step, directory, needs, run, identity)
        return Model(directory, identity, not as_baseline, run, key)

    def _evaluation(self, name: str, data: Data, model: Model, baseline: Model | None) -> str:
        """The key of the evaluation of a point."""
        run, values = self.run(name), dict(self.overrides(name))
        links = {"data": data.directory, "retro" if model.retrieves else "baseline": model.directory}
        if not model.retrieves:
            values = {key: value for key, value in values.items() if not is_read(key, OF_RETRIEVAL)}
            values |= of_baseline(self.base_run)
        if baseline is not None:
            links["baseline"] = baseline.directory
        identity = of_evaluation(run, data, model, baseline)
        directory = self.workdir / "points" / name
        step = Step("evaluate", "evaluate", [*self._flags("evaluate", values, OF_LINKS), f"--workdir={directory}"])
        needs = dict.fromkeys(filter(None, (data.task, baseline.task if baseline else "", model.task)))
        key = f"evaluate-{name}"
        self.tasks[key] = Task(key, step, directory, tuple(needs), run, identity, links)
        return key

    def _flags(self, verb: str, values: Mapping[str, Any], without: Sequence[str] = ()) -> list[str]:
        """--config, and the flags of the keys that the verb reads; values replace what the command line gives."""
        flags = {**self.given, **{key: config_flag(key, value) for key, value in values.items()}}
        kept = [word for key, word in flags.items() if is_read(key, READS[verb]) and key not in without]
        return [f"--config={self.config}", *kept]
