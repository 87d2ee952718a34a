"""The parts of results.json besides the figures: database, models, data, versions, seconds by stage."""

from collections.abc import Mapping
from pathlib import Path

from retro_jax.config import RunConfig
from retro_jax.core.files import DamagedFile, file_sha256, read_json
from retro_jax.data.manifests import Manifest, StageError, database_of, made_stages, note, read_manifest, read_seconds
from retro_jax.models.counts import parameter_counts, parameter_totals
from retro_jax.run_directory.directory import git_revision
from retro_jax.train.metrics import read_metrics

VERSION_KEYS = ("python", "packages", "devices")  # of a run's versions.json, as far as the report shows them

FORMAT = 3  # of results.json; results of another format are computed again
REMEDY = "The figures are computed again."
RESULT_KEYS = ("made_from", "sets", "verdict", "database", "model", "data", "versions", "settings")


def find_results(workdir: Path, made_from: Mapping) -> tuple[dict, list] | None:
    """Results and passages of an earlier call with the same `made_from`; None where they must be computed.

    Damaged results, and those of an earlier format, give None and a line on standard error.
    """
    path = workdir / "results.json"
    if not path.exists():
        return None
    try:
        results = read_json(path, REMEDY, keys=("made_from",))
        found = dict(results["made_from"])
        if found.get("format") != FORMAT:
            note(f"{path} has format {found.get('format')} of an earlier version (now {FORMAT}). {REMEDY}")
            return None
        results = read_json(path, REMEDY, keys=RESULT_KEYS)
        passages = read_json(workdir / "passages.json", REMEDY, kind=list)
        if found.pop("passages", None) != file_sha256(workdir / "passages.json"):
            raise DamagedFile(workdir / "passages.json", "was altered", REMEDY)
    except DamagedFile as error:
        note(str(error))
        return None
    except (TypeError, ValueError) as error:
        note(f"{path} does not have the expected form ({error}). {REMEDY}")
        return None
    return (results, passages) if found == made_from else None


def database_facts(data: Path) -> dict:
    """Size and measured recall of the database that the neighbors come from.

    Of a share of a database (config.data.database_fraction) only the chunks are counted anywhere; the sums of all are left out.
    """
    place = database_of(data)
    chunks, index = (read_manifest(place / stage, stage, verify=False) for stage in ("chunks", "index"))
    train = [splits["train"] for splits in chunks.counts["by_subset"].values() if "train" in splits]
    kind, fraction = index.counts["kind"], index.config.get("database_fraction", 1.0)
    whole = {name: sum(split[name] for split in train) for name in ("documents", "tokens", "bytes")}
    return {
        "chunks": index.counts.get("database_chunks", chunks.counts["database_chunks"]),
        **(whole if fraction == 1 else {"fraction": fraction}),
        "chunk_length": chunks.counts["chunk_length"],
        "index": f"{kind} ({index.counts['why']})" if "why" in index.counts else kind,
        "recall": {key: index.counts["recall"][key] for key in ("k", "value")},
    }


def model_facts(run: RunConfig, baseline: RunConfig | None, trained: Mapping[str, int]) -> dict:
    """Parameter counts by the paper's rule (without embeddings, norms and biases), and with the embeddings.

    Args:
      trained: steps of the checkpoints, by run.
    """
    model, steps = run.model, trained.get("retro", trained.get("baseline", 0))
    sequences = run.train.batch * steps
    facts = {
        "parameters": parameter_counts(model)["total"],
        "baseline_parameters": None if baseline is None else parameter_counts(baseline.model)["total"],
        "parameters_with_embeddings": parameter_counts(model)["total"] + parameter_totals(model)["embeddings"],
        "parts": parameter_counts(model),
        "settings": {
            "layers": model.layers,
            "width": model.width,
            "retrieval_layers": ", ".join(map(str, model.retrieval_layers)),
            "sequence_length": model.sequence_length,
            "chunk_length": model.chunk_length,
            "vocabulary": model.vocabulary,
            "compute_dtype": model.compute_dtype,
            "steps": steps,
            "training_tokens": f"{sequences * model.sequence_length:,}",
            "peak_learning_rate": run.train.learning_rate,
        },
    }
    if baseline is not None:
        same = baseline.train.batch * trained["baseline"] * baseline.model.sequence_length
        facts["settings"]["baseline_training_tokens"] = f"{same:,}" if trained["baseline"] else "of another project"
    return facts


def data_facts(documents: Manifest) -> dict:
    """License, size and dropped documents of each subset."""
    return {
        name: {
            "license": count["license"],
            "train_bytes": count["train"]["bytes"],
            "train_documents": count["train"]["documents"],
            "validation_bytes": count["validation"]["bytes"],
            "validation_documents": count["validation"]["documents"],
            "dropped": {reason: number for reason, number in count["dropped"].items() if number},
        }
        for name, count in documents.counts["subsets"].items()
    }


def version_facts(run_directory: Path) -> dict:
    """Packages and devices of the training run, and the current revision of the source."""
    try:
        trained = read_json(
            run_directory / "versions.json", "The report omits the versions of that run.", keys=VERSION_KEYS
        )
    except DamagedFile as error:
        note(str(error))
        trained = {}
    facts = {"source": git_revision(), "python": trained.get("python", "unknown")}
    return {**facts, **trained.get("packages", {}), "devices": trained.get("devices", "unknown")}


def stage_seconds(data: Path, runs: Mapping[str, Path]) -> dict[str, float]:
    """Seconds of every stage and run that recorded them, in the order in which they were made."""
    places = {stage: data / stage for stage in made_stages(data)} | {
        f"train {name}": path for name, path in runs.items()
    }
    found = {name: read_seconds(path) for name, path in places.items() if (path / "seconds.json").exists()}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def run_metrics(runs: Mapping[str, Path]) -> dict[str, list[dict]]:
    """Records of metrics.jsonl by run; empty where a run has no such file."""
    return {
        name: read_metrics(path / "metrics.jsonl") if (path / "metrics.jsonl").exists() else []
        for name, path in runs.items()
    }


def require_documents(data: Path) -> Manifest:
    """The manifest of the documents that the chunks were cut from.

    Raises:
      StageError: the chunks were cut from other documents than those in `data`.
    """
    documents, chunks = (read_manifest(data / stage, stage, verify=False) for stage in ("documents", "chunks"))
    if chunks.inputs["documents"] != documents.fingerprint:
        raise StageError(
            f"{data}/chunks was cut from other documents (fingerprint {chunks.inputs['documents'][:16]}…) than "
            f"{data}/documents ({documents.fingerprint[:16]}…). Run `retro build` into another --workdir."
        )
    return documents
