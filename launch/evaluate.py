"""`retro evaluate`: scores of every set under every condition, then results.json, plots and the report."""

import sys
from collections.abc import Sequence

from launch.command import processes
from launch.command.arguments import Invocation, Verb
from retro_jax.parallel.preemption import Preempted
from retro_jax.parallel.roll_call import leave_together
from retro_jax.parallel.runtime import keep_memory

VERB = Verb(
    "evaluate",
    "bits per byte of held-out text and of joined sets, by subset: baseline, retrieval off, on and every control; writes "
    "results.json and report.html into WORKDIR; continues where it was stopped",
    "--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke",
    define_flags=processes.define_flags,
    reads_run=True,
    interrupted="Scores are kept block by block: the same command continues.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return processes.run_together(VERB, _evaluate, argv)


def _evaluate(invocation: Invocation) -> None:
    keep_memory()
    processes.check_flags(invocation.flags)
    processes.start_processes(invocation.flags)
    try:
        text = evaluate_directory(invocation.run, invocation.workdir)
    except Preempted:
        leave_together()
        raise
    leave_together()
    if text:
        print(text)


def evaluate_directory(run, workdir) -> str:
    """Evaluates a work directory under its lock; returns the table as text, on process 0."""
    import jax

    from data_pipeline.evaluation.questions.stored import open_question_sets
    from data_pipeline.evaluation.sets import open_sets
    from retro_jax.config import check_evaluate
    from retro_jax.core.lock import lock_directory
    from retro_jax.evaluate.evaluation import evaluate
    from retro_jax.evaluate.questions.summary import table_text as question_text
    from retro_jax.evaluate.summary import table_text
    from retro_jax.parallel.agreement import on_first
    from retro_jax.parallel.preemption import Preemption
    from retro_jax.run_directory.directory import data_directory

    check_evaluate(run.evaluate)
    first = jax.process_index() == 0
    lock = lock_directory(workdir, "evaluate")
    on_first(lock.acquire)
    preemption = Preemption(jax.process_count())
    try:
        data = data_directory(run, workdir)
        questions = open_question_sets(data, run.evaluate.sets)
        names = [name for name in run.evaluate.sets if name not in questions]
        sets = {} if run.evaluate.sets and not names else open_sets(data, names)
        on_first(lambda: search_missing(run, data, list(sets)))
        results = evaluate(run, workdir, sets, lambda: preemption.stop_here("evaluate"), questions)
    finally:
        preemption.close()
        if first:
            lock.release()
    if not first:
        return ""
    tables = [f"{name}\n{table_text(found)}" for name, found in results["sets"].items()]
    tables += [question_text(name, found) for name, found in results.get("questions", {}).items()]
    return "\n\n".join([*tables, results["verdict"]["text"], f"Report: {workdir / 'report.html'}"])


def search_missing(run, data, names) -> None:
    """Searches the neighbors that no finished stage has: of a changed or another database, of a share, or more of them.

    Raises:
      ValueError, StageError: a database of another encoder or tokenizer.
    """
    from data_pipeline.evaluation.contamination import build_contamination
    from data_pipeline.evaluation.join import join_neighbors
    from data_pipeline.evaluation.sets import open_set
    from data_pipeline.evaluation.tables import open_tables

    settings = run.evaluate
    wanted = [(run.model.neighbors, 1.0, ""), *((k, 1.0, "") for k in settings.tried_neighbors)]
    wanted += [(run.model.neighbors, share, "") for share in settings.tried_shares]
    wanted += [(run.model.neighbors, 1.0, database) for database in settings.tried_databases]
    for name in names:
        if settings.contaminated or settings.clean_database:
            build_contamination(open_tables(data, name))
        without = frozenset()
        if settings.clean_database:
            without = open_set(data, name).overlapping_documents(settings.clean_database)
        for k, share, database in [(0, 1.0, ""), *wanted]:
            join_neighbors(data, name, k, share, database, without)


if __name__ == "__main__":
    sys.exit(main())
