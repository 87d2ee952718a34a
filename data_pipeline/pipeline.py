"""A build: the stages of `data_pipeline.stages.known` one after the other, from text to joined shards.

    build(run, workdir)         makes what is missing of WORKDIR/data
    stages(run, data)           {name: (directory, maker)}, in the order of the data

Nothing here imports jax before a stage runs.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from data_pipeline.stages import summaries
from data_pipeline.stages.known import STAGES
from retro_jax.config import RunConfig, to_dict


def data_directory(run: RunConfig, workdir: Path) -> Path:
    """Where the stages of `retro build` are: config.data.directory, or WORKDIR/data where that is empty."""
    return Path(run.data.directory or Path(workdir) / "data")


def build(run: RunConfig, workdir: Path) -> dict[str, Mapping]:
    """Makes what is missing and prints a summary.

    Returns:
      Counts of every stage's manifest, by stage, each with "seconds" of work in all runs together.

    Raises:
      ValueError, StageError: see the stages; also a single document, which has no neighbors. Finished stages are kept.
    """
    from data_pipeline.documents.stage import training_sources
    from data_pipeline.inputs import check_inputs
    from data_pipeline.search.neighbors import check_documents
    from data_pipeline.stages.run import check_claim, read_seconds

    data = data_directory(run, workdir)
    rows, counts, started = [], {}, time.monotonic()
    check_inputs(run, data)
    made = stages(run, data)
    for stage, (directory, _) in made.items():
        check_claim(directory, stage, *STAGES[stage].known(run, directory))
    if run.data.database:
        from data_pipeline.database.other_build import link

        link(data, Path(run.data.database))
    for number, (stage, (directory, make)) in enumerate(made.items(), start=1):
        print(f"[{number}/{len(made)}] {stage}", file=sys.stderr, flush=True)
        before = time.monotonic()
        manifest = make(directory)
        seconds = read_seconds(directory) or 0.0
        counts[stage] = {**manifest.counts, "seconds": seconds}
        if stage == "documents" and not run.data.database and not (made["neighbors"][0] / "manifest.json").exists():
            paths = [source.path for source in training_sources(run.data).values()]
            if note := check_documents(manifest.counts, paths, wanted=run.model.retrieves):
                print(f"note: {note}", file=sys.stderr, flush=True)
        rows.append((stage, describe(stage, manifest.counts, manifest.config), seconds, time.monotonic() - before))
    keep_config(run, made["joined"][0].parent)
    for name, source in run.data.sources.items():
        if source.role == "evaluation":
            from data_pipeline.evaluation.join import describe_set, join

            print(f"evaluation set {name}", file=sys.stderr, flush=True)
            print(describe_set(name, join(run, made["joined"][0].parent, name, source)))
    print(summaries.table(rows, made["joined"][0].parent, time.monotonic() - started))
    return counts


def keep_config(run: RunConfig, data: Path) -> None:
    """Writes the resolved config beside the stages, where `retro database` finds it."""
    from retro_jax.core.files import DamagedFile, read_json, write_json

    path = data / "config.json"
    try:
        found = read_json(path, "")
    except DamagedFile:
        found = None
    if found != json.loads(json.dumps(to_dict(run))):
        write_json(path, to_dict(run), seal=True)


def stages(run: RunConfig, data: Path) -> dict[str, tuple[Path, Callable]]:
    """Directory and maker of each stage that the config wants, in order."""
    own = _view(data, run.data.database_fraction)
    at = {name: (data if stage.shared else own) / name for name, stage in STAGES.items()}
    wanted = [stage for stage in STAGES.values() if stage.wanted(run)]
    return {stage.name: (at[stage.name], partial(stage.make, run=run, at=at)) for stage in wanted}


def database_directory(data: Path, fraction: float) -> Path:
    """The data directory of a share of the database: DATA/subset-FRACTION; `data` for all, or where it is that folder."""
    name = f"subset-{fraction:g}"
    return data if fraction == 1 or data.name == name else data / name


def _view(data: Path, fraction: float) -> Path:
    """The directory of the stages that are not shared. A share of the database has its own directory below DATA. Links
    to the shared stages make it a complete data directory (config.data.directory)."""
    view = database_directory(data, fraction)
    if view == data:
        return data
    view.mkdir(parents=True, exist_ok=True)
    for name in (name for name, stage in STAGES.items() if stage.shared):
        if not (view / name).is_symlink():
            (view / name).symlink_to(Path("..") / name)
    return view


def describe(stage: str, counts: Mapping, config: Mapping) -> str:
    """What a finished stage holds, in a few words."""
    return STAGES[stage].describe(counts, config)
