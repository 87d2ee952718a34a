"""`retro evaluate`: scores of every set under every condition, then results.json, plots and the report."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache, partial

from launch.command import processes
from launch.command.arguments import Invocation, Verb
from retro_jax.parallel.preemption import Preempted
from retro_jax.parallel.roll_call import leave_together
from retro_jax.parallel.runtime import keep_memory

PAUSE = 1.0  # seconds between two tries to write into the data that another process writes into

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
        wait_for_missing(lambda: on_first(lambda: search_missing(run, data, list(sets))), preemption, data)
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


def wait_for_missing(search, preemption, data) -> None:
    """Searches, again after each pause while another process writes into DATA: a build, or an evaluation that shares it."""
    import jax

    said = False
    while holder := search():
        if not said and jax.process_index() == 0:
            print(
                f"evaluate: {holder} writes into {data}, where neighbors are missing; waiting for it.", file=sys.stderr
            )
        said = True
        preemption.stop_here("evaluate")
        time.sleep(PAUSE)


def search_missing(run, data, names) -> str:
    """Searches the neighbors that no finished stage has: of a changed or another database, of a share, or more of them.

    The lock of the build is taken only where something is missing: data that cannot be written to are evaluated too.

    Returns:
      The process that writes into DATA now, where something is missing; else "".

    Raises:
      ValueError, StageError: a database of another encoder or tokenizer.
    """
    from data_pipeline.evaluation.contamination import build_contamination, read_contamination
    from data_pipeline.evaluation.join import join_neighbors
    from data_pipeline.evaluation.neighbors import default_k
    from data_pipeline.evaluation.sets import open_set
    from data_pipeline.stages.lock import BuildLock
    from retro_jax.core.lock import Busy

    if not names:
        return ""
    settings, locks = run.evaluate, ExitStack()
    wanted = [(k, 1.0, "") for k in (default_k(data), run.model.neighbors, *settings.tried_neighbors)]
    wanted += [(run.model.neighbors, share, "") for share in settings.tried_shares]
    wanted += [(run.model.neighbors, 1.0, database) for database in settings.tried_databases]
    lock = cache(lambda: locks.enter_context(BuildLock(data)))  # once, at the first that is missing

    def complete(read, make) -> None:
        try:
            read()
        except ValueError:
            lock()
            make()

    try:
        with locks:
            for name in names:
                stored, without = open_set(data, name), frozenset()
                if settings.contaminated or settings.clean_database:
                    tables = stored.tables
                    complete(partial(read_contamination, tables), partial(build_contamination, tables))
                if settings.clean_database:
                    without = stored.overlapping_documents(settings.clean_database)
                for k, share, database in wanted:
                    asked = (k, share, database, without)
                    complete(partial(stored.neighbors, *asked), partial(join_neighbors, data, name, *asked))
    except Busy as busy:
        return busy.holder
    return ""


if __name__ == "__main__":
    sys.exit(main())
