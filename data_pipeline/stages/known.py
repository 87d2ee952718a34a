"""The list of stages, once: one record each, in the order in which they are made.

`register(Stage(...))` appends one from any module, before `retro build` runs. The build then makes it, and it appears
in the build's summary, in `retro database info` and in `verify`. Makers import their stage when they are called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.stages import summaries
from data_pipeline.stages.run import Manifest, require_fingerprint
from retro_jax.config import RunConfig
from retro_jax.core.files import DamagedFile, read_json
from retro_jax.core.registry import add
from retro_jax.data.manifests import has_other_database

Places = Mapping[str, Path]  # the directory of every stage of a build, by name


@dataclass(frozen=True)
class Stage:
    """One stage of a build, a map over shards (`data_pipeline.stages.run.run_stage`).

    Attributes:
      name: of its directory and in its manifest; stages that read it list it among their inputs by this name.
      make: makes what is missing of it. It gets its directory, the config, and the directory of every stage by name.
      describe: its content in a few words, from the counts and config of its manifest.
      known: the part of its plan's config and inputs that follows from the config alone, so that a stage that was made from
        another config is refused before the first stage runs. It gets the config and its directory.
      wanted: whether a build with this config has it.
      there: whether the build in this data directory has it.
      shared: whether all shares of a database (config.data.database_fraction) have it in common.
      added: whether an addition to a database has one of its own.
    """

    name: str
    make: Callable[[Path, RunConfig, Places], Manifest]
    describe: Callable[[Mapping, Mapping], str]
    known: Callable[[RunConfig, Path], tuple[Mapping, Mapping]] = lambda run, directory: ({}, {})
    wanted: Callable[[RunConfig], bool] = lambda run: True
    there: Callable[[Path], bool] = lambda data: True
    shared: bool = True
    added: bool = False


STAGES: dict[str, Stage] = {}  # in the order in which they are made


def register(stage: Stage) -> Stage:
    """Appends a stage.

    Raises:
      ValueError: a stage of that name exists.
    """
    return add(STAGES, stage, "a stage")


def made_with_additions() -> list[str]:
    """Names of the stages that an addition to a database has of its own."""
    return [stage.name for stage in STAGES.values() if stage.added]


def _documents(directory: Path, run: RunConfig, at: Places) -> Manifest:
    from data_pipeline.documents.stage import build_documents

    return build_documents(directory, run.data, to_train=True)


def _known_of_documents(run: RunConfig, directory: Path):
    from data_pipeline.documents.stage import stage_config

    return stage_config(run.data), {}


def _tokenizer(directory: Path, run: RunConfig, at: Places) -> Manifest:
    from data_pipeline.tokens import build_tokenizer

    return build_tokenizer(directory, run.data, run.model.vocabulary, at["documents"])


def _known_of_tokenizer(run: RunConfig, directory: Path):
    from data_pipeline.tokens import given_inputs, stage_config

    return stage_config(run.data, run.model.vocabulary), given_inputs(run.data)


def _chunks(directory: Path, run: RunConfig, at: Places) -> Manifest:
    from data_pipeline.chunks import build_chunks

    return build_chunks(directory, run.data, run.model.chunk_length, at["documents"], at["tokenizer"])


def _known_of_chunks(run: RunConfig, directory: Path):
    from data_pipeline.chunks import stage_config

    return stage_config(run.data, run.model.chunk_length), {}


def _embeddings(directory: Path, run: RunConfig, at: Places) -> Manifest:
    from data_pipeline.encoder.bert import encoder_directory
    from data_pipeline.encoder.dtype import require_dtype
    from data_pipeline.encoder.stage import build_embeddings

    config = run.data
    if config.database:  # its vectors are searched, so these are computed as they were
        dtype = require_dtype(config.encoder_dtype, Path(config.database) / "embeddings")
        config = replace(config, encoder_dtype=dtype)
    return build_embeddings(directory, config, at["chunks"], at["tokenizer"], encoder_directory(config))


def _known_of_embeddings(run: RunConfig, directory: Path):
    """Empty where the stage has no record, or where the encoder's package is not downloaded yet."""
    from data_pipeline.encoder.bert import check_encoder, encoder_directory, encoder_fingerprint
    from data_pipeline.encoder.dtype import choose_dtype, recorded_dtype
    from data_pipeline.encoder.stage import stage_config
    from data_pipeline.packages import catalogue

    if recorded_dtype(directory) is None:
        return {}, {}
    dtype = choose_dtype(run.data.encoder_dtype, directory)
    if not (run.data.encoder or catalogue.is_fetched(catalogue.ENCODER)):
        return {}, {}
    found, tokenizer = check_encoder(encoder_directory(run.data))
    return stage_config(run.data, encoder_fingerprint(found, tokenizer.settings, dtype), dtype), {}


def _copies(directory: Path, run: RunConfig, at: Places) -> Manifest:
    from data_pipeline.database.copies import build_copies

    return build_copies(directory, at["documents"], Path(run.data.database))


def _lexical(directory: Path, run: RunConfig, at: Places) -> Manifest:
    from data_pipeline.search.bm25 import build_lexical
    from data_pipeline.tokens import Tokenizer

    tokenizer = Tokenizer(at["tokenizer"])
    return build_lexical(directory, at["chunks"], run.model.vocabulary, (tokenizer.bos, tokenizer.eos))


def _is_ranked(run: RunConfig) -> bool:
    return run.data.rerank == "bm25" and _has_index(run)


def _has_index(run: RunConfig) -> bool:
    """Whether the build searches its own text, not the database of another one."""
    return not run.data.database


def _was_ranked(data: Path) -> bool:
    """Whether the neighbors of a build were re-ranked, by their plan.json or manifest.json, whichever can be read."""
    if has_other_database(data):
        return False
    found = (data / "lexical").exists()
    for name in ("plan.json", "manifest.json"):
        try:
            found = found or "lexical" in read_json(data / "neighbors" / name, "", keys=["inputs"])["inputs"]
        except DamagedFile:
            continue
    return found


def _index(directory: Path, run: RunConfig, at: Places) -> Manifest:
    from data_pipeline.search.stage import build_index

    return build_index(directory, run.data, at["embeddings"], at["chunks"])


def _known_of_index(run: RunConfig, directory: Path):
    from data_pipeline.search.stage import stage_config

    return stage_config(run.data), {}


def _neighbors(directory: Path, run: RunConfig, at: Places) -> Manifest:
    if run.data.database:
        from data_pipeline.database.other_build import build_neighbors_of

        own = (at["chunks"], at["embeddings"], at["copies"])
        return build_neighbors_of(directory, run.data, *own, Path(run.data.database))
    from data_pipeline.search.neighbors import build_neighbors

    words = at["lexical"] if _is_ranked(run) else None
    return build_neighbors(directory, run.data, at["chunks"], at["embeddings"], at["index"], words)


def _known_of_neighbors(run: RunConfig, directory: Path):
    from data_pipeline.search.neighbors import stage_config

    facts = stage_config(run.data)
    if run.data.database:
        from data_pipeline.database.database import Database

        facts["database"] = Database(Path(run.data.database)).version
    return facts, {}


def _joined(directory: Path, run: RunConfig, at: Places) -> Manifest:
    from data_pipeline.chunks import ChunkTable
    from data_pipeline.joined import build_joined
    from data_pipeline.search.neighbors import NeighborTable

    table, found = ChunkTable(at["chunks"]), NeighborTable(at["neighbors"])
    require_fingerprint(
        f"table of chunks {at['chunks']} for {at['neighbors']}",
        table.fingerprint,
        found.inputs["chunks"],
        "Move the neighbors away and run `retro build` again.",
    )
    more: dict = {"inputs": {"chunks": table.fingerprint, "neighbors": found.fingerprint}}
    if run.data.database:
        from data_pipeline.database.other_build import of_joined

        more = of_joined(at["chunks"].parent, Path(run.data.database), at["copies"], more["inputs"])
    return build_joined(
        directory,
        table,
        found,
        sequence_length=run.model.sequence_length,
        vocabulary=run.model.vocabulary,
        shard_sequences=run.data.shard_sequences,
        **more,
    )


def _known_of_joined(run: RunConfig, directory: Path):
    from data_pipeline.joined import stage_config

    data, model = run.data, run.model
    sizes = (model.sequence_length, model.chunk_length, data.neighbors_stored, model.vocabulary, data.shard_sequences)
    return stage_config(*sizes), {}


register(Stage("documents", _documents, summaries.documents, _known_of_documents, added=True))
register(Stage("tokenizer", _tokenizer, summaries.tokenizer, _known_of_tokenizer))
register(Stage("chunks", _chunks, summaries.chunks, _known_of_chunks, added=True))
register(Stage("embeddings", _embeddings, summaries.embeddings, _known_of_embeddings, added=True))
register(
    Stage(
        "lexical",
        _lexical,
        summaries.lexical,
        lambda run, directory: ({"vocabulary": run.model.vocabulary}, {}),
        wanted=_is_ranked,
        there=_was_ranked,
    )
)
register(
    Stage(
        "index",
        _index,
        summaries.index,
        _known_of_index,
        wanted=_has_index,
        there=lambda data: not has_other_database(data),
        shared=False,
        added=True,
    )
)
register(
    Stage("copies", _copies, summaries.copies, wanted=lambda run: bool(run.data.database), there=has_other_database)
)
register(Stage("neighbors", _neighbors, summaries.neighbors, _known_of_neighbors, shared=False))
register(Stage("joined", _joined, summaries.joined, _known_of_joined, shared=False))
