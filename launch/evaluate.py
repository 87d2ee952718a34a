"""`retro evaluate`: bits per byte under every condition, then results.json, plots and the report."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.arguments import Invocation, Verb
from launch.command import run_verb
from launch.config_files import model_directory
from retro_jax.config import RUNTIME, RunConfig, at_run_time, to_dict
from retro_jax.core.files import DamagedFile, file_sha256, read_json, write_json
from retro_jax.core.lock import lock_directory
from retro_jax.data.manifests import note, read_manifest, require_fingerprint
from retro_jax.parallel.hosts import require_one_process

FORMAT = 2  # of results.json: figures of another are made anew

REMEDY = "The figures are measured anew."
RESULT_KEYS = ("made_from", "subsets", "all", "verdict", "leakage", "database", "model", "data", "versions", "settings")
VERB = Verb(
    "evaluate",
    "bits per byte of held-out text by subset: baseline, retrieval off, on and every control; writes results.json and "
    "report.html into WORKDIR",
    "--config=configs/quickstart.py:smoke --workdir=runs/quickstart-smoke",
    reads_run=True,
    interrupted="Figures are written when all are computed: the same command computes them from the start.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run_verb(VERB, _evaluate, argv)


def _evaluate(invocation: Invocation) -> None:
    require_one_process("evaluate")
    with lock_directory(invocation.workdir, "evaluate"):
        print(evaluate(invocation.run, invocation.workdir))


def evaluate(run: RunConfig, workdir: Path) -> str:
    """Evaluates the models of `workdir` (or those that config.evaluate names) and returns the table as text.

    Figures that are there already, of the same checkpoints, data and settings, are kept; the report is made anew.

    Raises:
      ValueError, StageError: a model or stage that is missing, unfinished or does not fit the others.
    """
    from retro_jax.evaluate import results as facts
    from retro_jax.evaluate.plots import make_plots
    from retro_jax.evaluate.report import make_report, write_text
    from retro_jax.evaluate.summary import table_text
    from retro_jax.run_directory.directory import data_directory

    data = data_directory(run, workdir)
    runs = find_runs(run, workdir)
    made_from = inputs(run, data, runs)
    path = workdir / "results.json"
    found = find_results(workdir, made_from)
    if found is None:
        started = time.monotonic()
        results, passages = measure(run, data, runs)
        seconds = facts.stage_seconds(data, runs) | {"evaluate": time.monotonic() - started}
        write_json(workdir / "passages.json", passages)
        made_from |= {"passages": file_sha256(workdir / "passages.json")}
        write_json(path, {**results, "seconds": seconds, "made_from": made_from}, seal=True)
        results = read_json(path, REMEDY)
    else:
        results, passages = found
        print(f"evaluate: {path} is of these checkpoints and settings already; making the report.", file=sys.stderr)
    plots = make_plots(results, facts.run_metrics(runs))
    for name, plot in plots.items():
        write_text(workdir / "plots" / f"{name}.svg", plot)
    write_text(workdir / "report.html", make_report(results, passages, plots, f"RETRO report: {workdir.name}"))
    return "\n".join([table_text(results), "", results["verdict"]["text"], f"Report: {workdir / 'report.html'}"])


def find_results(workdir: Path, made_from: Mapping) -> tuple[dict, list] | None:
    """Results and passages that an earlier call made from the same; None where they are to be made.

    Damaged ones are made anew, with a line on standard error; so are those of an earlier version.
    """
    path = workdir / "results.json"
    if not path.exists():
        return None
    try:
        results = read_json(path, REMEDY, keys=RESULT_KEYS)
        found = dict(results["made_from"])
        passages = read_json(workdir / "passages.json", REMEDY, kind=list)
        if found.pop("passages", None) not in (None, file_sha256(workdir / "passages.json")):
            raise DamagedFile(workdir / "passages.json", "was altered", REMEDY)
    except (DamagedFile, TypeError, ValueError) as error:
        note(str(error))
        return None
    return (results, passages) if found == made_from else None


def find_runs(run: RunConfig, workdir: Path) -> dict[str, Path]:
    """{"baseline": directory, "retro": directory}, without a baseline where none was trained (with a line that says so)."""
    runs = {"retro": Path(run.evaluate.retro or model_directory(workdir))}
    baseline = Path(run.evaluate.baseline or workdir / "baseline")
    if run.evaluate.baseline or baseline.exists():
        return {"baseline": baseline, **runs}
    print(
        f"evaluate: there is no baseline in {baseline}, so its column stays empty. To have one: retro train with "
        f"--config.model.retrieval_layers='()' --workdir={baseline} --config.data.directory={workdir / 'data'}",
        file=sys.stderr,
    )
    return runs


def inputs(run: RunConfig, data: Path, runs: dict[str, Path]) -> dict:
    """What the figures depend on: data, checkpoints, settings.

    Raises:
      ValueError: no whole checkpoint, or a config with another model than the run's.
      StageError: a model that was trained with another tokenizer, database or shards than those in `data`.
    """
    from retro_jax.run_directory.checkpoints import load_fingerprints, read_config
    from retro_jax.run_directory.directory import fingerprints
    from retro_jax.run_directory.whole import require_whole

    current = fingerprints(data)
    steps = {}
    for name, directory in runs.items():
        try:
            steps[name] = require_whole(directory)
        except ValueError as error:
            raise ValueError(f"{error} The {name} model is named by --config.evaluate.{name}=DIRECTORY.") from None
        for what, found in load_fingerprints(directory, steps[name]).items():
            require_fingerprint(
                f"{what} in {data}",
                current[what],
                found,
                f"That is what {directory} (step {steps[name]}) was trained with: evaluate it with its own data "
                f"(--config.data.directory).",
            )
    at_run_time(read_config(runs["retro"]).model, run.model, runs["retro"])
    from data_pipeline.database.database import Database
    from retro_jax.evaluate.conditions import CONDITIONS
    from retro_jax.evaluate.metrics import METRICS

    settings, version = to_dict(run.evaluate), Database(data).version
    return {
        "fingerprints": current,
        "database_version": version,
        "steps": steps,
        "neighbors": run.model.neighbors,
        "compute_dtype": run.model.compute_dtype,
        "settings": settings,
        "format": FORMAT,
        "conditions": list(CONDITIONS),
        "metrics": list(METRICS),
    }


def measure(run: RunConfig, data: Path, runs: dict[str, Path]) -> tuple[dict, list[dict]]:
    """(results without seconds, passages), both plain JSON."""
    import jax

    from data_pipeline.database.database import CurrentExamples, Database
    from data_pipeline.database.provenance import Provenance
    from retro_jax.data.batches import validation_examples
    from retro_jax.data.joined import pack
    from retro_jax.evaluate import results as facts
    from retro_jax.evaluate.passages import choose, describe
    from retro_jax.evaluate.scoring import check_bytes, make_scorer, score
    from retro_jax.evaluate.summary import summarize
    from retro_jax.models.kernels.known import check_attention
    from retro_jax.run_directory.checkpoints import load_params
    from retro_jax.run_directory.directory import token_bytes

    loaded = {name: load_params(directory) for name, directory in runs.items()}
    trained = loaded["retro"][1]
    if not trained.model.retrieves:
        raise ValueError(
            f"{runs['retro']} holds a model without retrieval layers; name a RETRO model with --config.evaluate.retro."
        )
    settings, model = run.evaluate, at_run_time(trained.model, run.model, runs["retro"])
    check_attention(model, jax.default_backend())
    if not model.neighbors:
        raise ValueError(
            "config.model.neighbors=0 leaves nothing to evaluate: On would be Off. Take 1 or more; the condition 'off' is "
            "always evaluated beside it."
        )
    same = {name: getattr(model, name) for name in RUNTIME}
    models = {name: dataclasses.replace(found.model, **same) for name, (_, found, _) in loaded.items()}
    database = Database(data)
    table = database.table
    documents = facts.require_documents(data)
    provenance = Provenance(data / "documents", data / "tokenizer", table)
    stored = read_manifest(data / "joined", "joined", verify=False).config["neighbors_stored"]
    examples = validation_examples(data / "joined", model)
    if database.changed:
        print(f"evaluate: {database.describe()}; neighbors are searched anew.", file=sys.stderr)
        examples = CurrentExamples(examples, pack(table, model.chunks)["validation"].chunk_ids, database)
    held_out = score(
        examples,
        table,
        token_bytes(data, model),
        model,
        {name: make_scorer(models[name], params) for name, (params, _, _) in loaded.items()},
        batch=settings.batch,
        seed=settings.seed,
        overlap_neighbors=settings.overlap_neighbors,
        removed=database.removed,
    )
    check_bytes(held_out, provenance.document_bytes[provenance.number(held_out.first) :])
    results = summarize(held_out, table.subset_names, resamples=settings.bootstrap, seed=settings.seed)
    results |= {
        "database": facts.database_facts(data) | database.facts(),
        "model": facts.model_facts(
            trained,
            loaded["baseline"][1] if "baseline" in loaded else None,
            {name: step for name, (_, _, step) in loaded.items()},
        ),
        "data": facts.data_facts(documents),
        "versions": facts.version_facts(runs["retro"]),
        "settings": {
            **to_dict(settings),
            "overlap_neighbors": min(settings.overlap_neighbors, stored),
            "neighbors": model.neighbors,
        },
    }
    chosen = choose(held_out, settings.passages)
    return results, [describe(choice, held_out, database, model.neighbors) for choice in chosen]


if __name__ == "__main__":
    sys.exit(main())
