"""The model card of an export, README.md: what the run's own files say and nothing else."""

from collections.abc import Mapping
from pathlib import Path

from retro_jax.config import RunConfig
from retro_jax.core.files import DamagedFile, read_json
from retro_jax.evaluate.summary import table_text
from retro_jax.interchange.architectures import OWN, describe
from retro_jax.models.counts import parameter_totals

NOT_SAID = "not recorded"


def model_card(run: RunConfig, step: int, directory: Path, workdir: Path, architecture: str, dtype: str) -> str:
    """The text of the card.

    Args:
      directory: of the run, with versions.json, seconds.json and, of an import, imported.json.
      workdir: with results.json, if the model was evaluated there.
    """
    model = run.model
    counts = parameter_totals(model)
    imported = _facts(directory / "imported.json")
    results = _facts(workdir / "results.json")
    lines = [
        "---",
        "library_name: " + ("retro_jax" if architecture == OWN else "transformers"),
        f"license: {imported.get('license') or 'other'}",
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
        *_table(_training(run, step, directory, imported)),
        "",
        "## Data",
        "",
        *_data(run, results, imported),
        "",
        "## Results",
        "",
        *(
            ["```", table_text(results).rstrip(), "```"]
            if results.get("sets")
            else ["Not evaluated in this work directory."]
        ),
        "",
        "## Versions",
        "",
        *_table(_versions(directory)),
        "",
    ]
    return "\n".join(lines)


def _training(run: RunConfig, step: int, directory: Path, imported: Mapping) -> dict[str, str]:
    train = run.train
    if imported:
        files = ", ".join(f"{name} (sha256 {sha256[:16]}…)" for name, sha256 in imported["files"].items())
        return {
            "imported from": f"{imported['name']}: {imported['architecture']}, {', '.join(imported['dtypes'])}",
            "files": files,
        }
    seconds = _facts(directory / "seconds.json").get("seconds")
    tokens = step * train.batch * run.model.sequence_length
    return {
        "steps": f"{step:,} of {train.steps:,}, batch {train.batch}",
        "tokens": f"{tokens:,}",
        "trained": "encoder and cross-attention alone" if train.trainable == "retrieval" else "all parameters",
        "started from": Path(train.initialize_from).name or "random weights",
        "peak learning rate": f"{train.learning_rate:g}",
        "time": f"{seconds / 3600:,.2f} hours of wall time, all starts" if seconds else NOT_SAID,
    }


def _data(run: RunConfig, results: Mapping, imported: Mapping) -> list[str]:
    if found := results.get("data"):
        rows = {name: f"{each['license']}; {each['train_bytes']:,} bytes trained on" for name, each in found.items()}
    else:
        rows = {name: f"{each.license}; {each.package or each.path}" for name, each in run.data.sources.items()}
    note = ["What the imported model was trained on is not known here."] if imported else []
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
