"""The model card of an export, README.md: what the run's own files say and nothing else."""

from collections.abc import Mapping
from pathlib import Path

from retro_jax.config import RunConfig
from retro_jax.core.files import DamagedFile, read_json
from retro_jax.evaluate.summary import table_text
from retro_jax.interchange.architectures import OWN, describe
from retro_jax.models.counts import parameter_totals
from retro_jax.run_directory.origin import RECORD, origin_of

NOT_SAID = "not recorded"


def model_card(run: RunConfig, step: int, directory: Path, workdir: Path, architecture: str, dtype: str) -> str:
    """The text of the card.

    Args:
      directory: of the run, with versions.json, seconds.json and, of an import, imported.json; of what starts from one, origin.json.
      workdir: with results.json, if the model was evaluated there.
    """
    model = run.model
    counts = parameter_totals(model)
    imported, start = _facts(directory / RECORD), run.train.initialize_from
    origin = origin_of(directory) or (origin_of(Path(start)) if start else {})
    results = _facts(workdir / "results.json")
    lines = [
        "---",
        "library_name: " + ("retro_jax" if architecture == OWN else "transformers"),
        f"license: {origin.get('license') or 'other'}",
        "---",
        "",
        f"# {imported.get('name') or directory.name}",
        "",
        f"Exported by retro_jax from step {step:,} of a run, as {dtype}.",
        "",
        "## Model",
        "",
        *_table(
            {
                "architecture": architecture,
                "parameters": f"{counts['total']:,} ({counts['non_embedding']:,} without embeddings)",
                "decoder": f"{model.layers} layers, width {model.width}, {model.heads} heads of {model.head_dim}, "
                f"feed-forward {model.feed_forward}",
                "options": describe(model) or "those of the paper",
                "retrieval": f"chunked cross-attention in layers {', '.join(map(str, model.retrieval_layers))}"
                if model.retrieves
                else "none",
                "vocabulary": f"{model.vocabulary:,}",
                "sequence": f"{model.sequence_length:,} tokens in chunks of {model.chunk_length}",
            }
        ),
        "",
        "## Training",
        "",
        *_table(_training(run, step, directory, imported, origin)),
        "",
        "## Data",
        "",
        *_data(run, results, bool(imported), bool(origin)),
        "",
        "## Results",
        "",
        *_results(results, step),
        "",
        "## Versions",
        "",
        *_table(_versions(directory)),
        "",
    ]
    return "\n".join(lines)


def _training(run: RunConfig, step: int, directory: Path, imported: Mapping, origin: Mapping) -> dict[str, str]:
    train, of_origin = run.train, {}
    if origin:
        of_origin = {
            "imported from" if imported else "decoder imported from": f"{origin['name']}: {origin['architecture']}, "
            f"{', '.join(origin['dtypes'])}, license {origin.get('license') or NOT_SAID}",
            "files": ", ".join(f"{name} (sha256 {sha256[:16]}…)" for name, sha256 in origin["files"].items()),
        }
    if imported:
        return of_origin
    seconds = _facts(directory / "seconds.json").get("seconds")
    tokens = step * train.batch * run.model.sequence_length
    return {
        "steps": f"{step:,} of {train.steps:,}, batch {train.batch}",
        "tokens": f"{tokens:,}",
        "trained": "encoder and cross-attention alone" if train.trainable == "retrieval" else "all parameters",
        "started from": Path(train.initialize_from).name or "random weights",
        **of_origin,
        "peak learning rate": f"{train.learning_rate:g}",
        "time": f"{seconds / 3600:,.2f} hours of wall time, all starts" if seconds else NOT_SAID,
    }


def _results(results: Mapping, step: int) -> list[str]:
    """The tables of every set, of this checkpoint alone."""
    if not results.get("sets"):
        return ["Not evaluated in this work directory."]
    steps = results["made_from"]["steps"]
    if results["settings"].get("retro") or steps.get("retro", steps["baseline"]) != step:
        evaluated = ", ".join(f"{name} at step {number:,}" for name, number in steps.items())
        return [f"The results in this work directory are of another checkpoint: {evaluated}."]
    lines = []
    for name, found in results["sets"].items():
        lines += [f"### {name}", "", "```", table_text(found).rstrip(), "```", ""]
    return lines[:-1]


def _data(run: RunConfig, results: Mapping, imported: bool, from_import: bool) -> list[str]:
    read = "bytes of the database, not trained on" if imported else "bytes trained on"
    if found := results.get("data"):
        rows = {name: f"{each['license']}; {each['train_bytes']:,} {read}" for name, each in found.items()}
    else:
        rows = {name: f"{each.license}; {each.package or each.path}" for name, each in run.data.sources.items()}
    note = ["What the imported model was trained on is not known here.", ""] if from_import else []
    return [*note, *(_table(rows) if rows else [] if note else [f"Sources: {NOT_SAID}."])]


def _versions(directory: Path) -> dict[str, str]:
    found = _facts(directory / "versions.json")
    packages = {name: str(version) for name, version in found.get("packages", {}).items()}
    return {**packages, **{name: str(found.get(name, NOT_SAID)) for name in ("python", "git_revision", "devices")}}


def _table(rows: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows.items())]


def _facts(path: Path) -> dict:
    """A JSON file of the run; empty where it is missing or damaged."""
    try:
        return read_json(path, "") if path.is_file() else {}
    except DamagedFile:
        return {}
