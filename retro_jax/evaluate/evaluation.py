"""Evaluates the models of a work directory on sets of text: scores, then results.json, passages, plots and report.html.

    results = evaluate(run, workdir, {"held_out": held_out})

Scores are computed block by block and stored (scores.py). So a killed evaluation continues, and another condition or
metric costs only its own computation. Every process calls `evaluate` with the same arguments; process 0 writes.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from retro_jax.config import RunConfig, check_evaluate, to_dict
from retro_jax.core.files import file_sha256, read_json, write_json
from retro_jax.core.paths import file_name
from retro_jax.evaluate import protocols
from retro_jax.evaluate import results as facts
from retro_jax.evaluate.conditions import CONDITIONS, Condition, variants
from retro_jax.evaluate.metrics import METRICS
from retro_jax.evaluate.models import Models
from retro_jax.evaluate.questions.decoding import Decoder
from retro_jax.evaluate.questions.scoring import QuestionTask, evaluate_questions, question_scores
from retro_jax.evaluate.questions.sets import QuestionSet
from retro_jax.evaluate.report.export import write_exports
from retro_jax.evaluate.report.page import make_report, write_text
from retro_jax.evaluate.report.passages import Choice, choose, describe
from retro_jax.evaluate.report.plots import make_plots
from retro_jax.evaluate.scorers import Scorer
from retro_jax.evaluate.scoring import Task, open_condition, open_text, score_block, score_set
from retro_jax.evaluate.sets import TextSet
from retro_jax.evaluate.summary import add_up, summarize
from retro_jax.parallel.agreement import on_first
from retro_jax.run_directory.directory import data_directory, token_bytes

FIRST = "held_out"  # the set that gives the verdict of the run, if it is evaluated


def evaluate(
    run: RunConfig,
    workdir: Path,
    sets: Mapping[str, TextSet],
    stop: Callable[[], None] = lambda: None,
    questions: Mapping[str, QuestionSet] | None = None,
) -> dict:
    """Evaluates the models of `workdir` (or those that config.evaluate names) and returns what results.json holds.

    Args:
      sets: by name; `data_pipeline.evaluation.open_sets` opens them.
      stop: called after each batch; raises to stop. Scores computed until then are kept.
      questions: sets of questions by name; `data_pipeline.evaluation.questions.stored` opens them.

    Raises:
      ValueError, StageError: a model, set or neighbors that are missing, unfinished or do not match.
    """
    workdir, started = Path(workdir), time.monotonic()
    evaluation = Evaluation(run, workdir, sets, questions or {})
    kept = on_first(lambda: facts.find_results(workdir, evaluation.made_from()) is not None)
    if not kept:
        summaries, passages = evaluation.measure(stop)
        answered = evaluation.answer(stop)
        on_first(lambda: evaluation.write(summaries, answered, passages, time.monotonic() - started))
    elif jax.process_index() == 0:
        print(f"evaluate: {workdir}/results.json is up to date; writing the report.", file=sys.stderr)
    results = on_first(lambda: evaluation.report())
    return results


class Evaluation:
    """The models, sets and settings of one evaluation. The constructor raises where they do not match."""

    def __init__(
        self, run: RunConfig, workdir: Path, sets: Mapping[str, TextSet], questions: Mapping[str, QuestionSet]
    ):
        check_evaluate(run.evaluate)
        self.run, self.workdir = run, Path(workdir)
        self.data = data_directory(run, self.workdir)
        self.models = Models(run, self.workdir, self.data)
        self.model = self.models.model
        self.conditions = self._conditions()
        self.tasks = {name: self._task(text) for name, text in sets.items()}
        self.asked = {name: self._question_task(found) for name, found in questions.items()}

    def _conditions(self) -> list[Condition]:
        settings = self.run.evaluate
        tried = variants(settings.tried_neighbors, settings.tried_shares, settings.tried_databases)
        return [one for one in (*CONDITIONS.values(), *tried) if one.model in self.models.runs]

    def _task(self, text: TextSet) -> Task:
        settings, rule = self.run.evaluate, protocols.get(text.protocol)
        return Task(
            text=text,
            token_bytes=token_bytes(self.data, self.model),
            chunks=self.model.chunks,
            overlap=settings.overlap or rule.overlap,
            k=self.model.neighbors,
            batch=settings.batch,
            seed=settings.seed,
            overlap_neighbors=settings.overlap_neighbors,
            models=self.models.identities(),
            greedy=rule.greedy,
            without=text.overlapping_documents(settings.clean_database) if settings.clean_database else frozenset(),
        )

    def _question_task(self, questions: QuestionSet) -> QuestionTask:
        settings = self.run.evaluate
        if questions.chunk_length != self.model.chunk_length:
            raise ValueError(
                f"The questions {questions.name!r} are laid out in chunks of {questions.chunk_length} tokens, but the model "
                f"has config.model.chunk_length={self.model.chunk_length}. Join them to the model's own data."
            )
        return QuestionTask(
            questions=questions,
            k=self.model.neighbors,
            batch=settings.batch,
            limit=settings.answer_tokens,
            seed=settings.seed,
            models=self.models.identities(),
            tried=settings.tried_neighbors,
        )

    def made_from(self) -> dict:
        """What the results depend on, as plain JSON."""
        scores = {}
        for name, task in self.tasks.items():
            opened = {one.name: open_condition(task, self.workdir, one) for one in self.conditions}
            opened["text"] = open_text(task, self.workdir)
            scores[name] = {kind: found.directory.name for kind, (found, _) in opened.items()}
        for name, asked in self.asked.items():
            answers = question_scores(asked, self.workdir)
            scores[name] = {kind: found.directory.name for kind, (found, _) in answers.items()}
        found = {
            "scores": scores,
            "steps": self.models.steps,
            "settings": to_dict(self.run.evaluate),
            "format": facts.FORMAT,
            "metrics": list(METRICS),
        }
        return json.loads(json.dumps(found))  # as it comes back from the file: tuples become lists

    def answer(self, stop: Callable[[], None]) -> dict:
        """The figures of the sets of questions, by name; existing answers are reused."""
        found = {}
        for name, task in self.asked.items():
            decoders: dict[str, Decoder] = {}

            def decoder(model: str, task: QuestionTask = task, decoders: dict = decoders) -> Decoder:
                if model not in decoders:
                    decoders[model] = Decoder(
                        *self.models.load(model), task.questions.stops, task.limit, self.models.mesh
                    )
                return decoders[model]

            resamples = self.run.evaluate.bootstrap
            found[name] = evaluate_questions(task, self.workdir, decoder, resamples=resamples, stop=stop)
        return found

    def measure(self, stop: Callable[[], None]) -> tuple[dict, list[dict]]:
        """(summaries by set, passages); existing scores are reused."""
        summaries, passages = {}, []
        for name, task in self.tasks.items():

            def scorer(model: str, greedy: bool = task.greedy) -> Scorer:
                return self.models.scorer(model, greedy)

            text, scored = score_set(task, self.workdir, self.conditions, scorer, stop)
            chosen = on_first(lambda text=text, scored=scored, task=task: self._choose(text, scored, task))
            passages += [self._passage(task, *one, scorer) for one in chosen]
            if jax.process_index() == 0:
                summaries[name] = self._summary(task, text, scored)
        return summaries, passages

    def _summary(self, task: Task, text, scored) -> dict:
        settings, keep, left_out = self.run.evaluate, None, []
        counts = {}
        if settings.contaminated:
            gone = task.text.contaminated(settings.contaminated)
            keep, left_out = ~gone, np.flatnonzero(gone).tolist()
            counts = {"contaminated_documents": len(left_out), "of": len(gone)}
        if task.without:
            counts["documents_not_searched"] = len(task.without)
        totals = add_up(text, scored, task.text.subset_names, keep)
        return {
            "protocol": task.text.protocol,
            "overlap": task.overlap,
            "facts": {**task.text.facts, **counts},
            "left_out": left_out,  # numbers of documents that are scored and do not count
            "databases": {one.name: dict(task.source(one).facts) for one in self.conditions if one.neighbors},
            **summarize(totals, resamples=settings.bootstrap, seed=settings.seed),
        }

    def _choose(self, text, scored, task: Task) -> list[tuple]:
        if not {"on", "off"} <= scored.keys():
            return []  # a baseline alone: passages show what retrieval changes
        found = choose(text, scored, self.run.evaluate.passages, task.text.chunk_length)
        return [(one.kind, one.subset, one.document, one.chunks.start, one.chunks.stop, one.gain) for one in found]

    def _passage(self, task: Task, kind, subset, document, start, stop, gain, scorer) -> dict:
        """The passage with the bits of its tokens; its document is scored again for them."""
        block = task.block(document, document + 1)
        bits = {
            name: score_block(task, block, CONDITIONS[name], scorer("retro"), 0)[0].astype(np.float64)
            for name in ("off", "on")
        }
        choice = Choice(kind, subset, document, range(start, stop), gain)
        return describe(choice, task, block, bits, task.source(CONDITIONS["on"]))

    def write(self, summaries: Mapping, answered: Mapping, passages: Sequence[Mapping], seconds: float) -> None:
        """Writes results.json and passages.json."""
        write_json(self.workdir / "passages.json", list(passages))
        first = summaries.get(FIRST) or next(iter([*summaries.values(), *answered.values()]))
        trained = self.models.trained
        results = {
            "sets": summaries,
            "questions": answered,
            "verdict": first["verdict"],
            "conditions": [_described(one) for one in self.conditions],
            "database": facts.database_facts(self.data) | next(iter(first.get("databases", {}).values()), {}),
            "model": facts.model_facts(trained[self.models.main], trained.get("baseline"), self.models.steps),
            "data": facts.data_facts(facts.require_documents(self.data)),
            "versions": facts.version_facts(self.models.runs[self.models.main]),
            "settings": {**to_dict(self.run.evaluate), "neighbors": self.model.neighbors},
            "seconds": facts.stage_seconds(self.data, self.models.runs) | {"evaluate": seconds},
            "made_from": self.made_from() | {"passages": file_sha256(self.workdir / "passages.json")},
        }
        write_json(self.workdir / "results.json", results, seal=True)

    def report(self) -> dict:
        """Makes plots and report.html from the files; returns the results."""
        results = read_json(self.workdir / "results.json", facts.REMEDY)
        passages = read_json(self.workdir / "passages.json", facts.REMEDY, kind=list)
        write_exports(results, self.workdir)
        plots = make_plots(results, facts.run_metrics(self.models.runs))
        for name, plot in plots.items():
            write_text(self.workdir / "plots" / f"{file_name(name)}.svg", plot)
        title = f"RETRO report: {self.workdir.name}"
        write_text(self.workdir / "report.html", make_report(results, passages, plots, title))
        return results


def _described(condition: Condition) -> dict:
    names = ("name", "meaning", "model", "control", "k", "share", "database")
    return {name: getattr(condition, name) for name in names}
