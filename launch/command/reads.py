"""The settings that each verb reads. Others are an error on its command line instead of being ignored.

A config file holds the settings of all verbs, so settings beyond these are for the others. A key includes all keys
below it. tests/launch/test_reads.py compares this table with the reads of running verbs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields

from retro_jax.config import ModelConfig

# Whether there are retrieval layers: a baseline's data need no neighbors.
BUILD = ("data", "model.vocabulary", "model.sequence_length", "model.chunk_length", "model.retrieval_layers")
TRAIN = ("model", "train", "data.directory")
# A trained model keeps its parameters: keys of the model that they depend on must equal the run's config, the
# others (`retro_jax.config.RUNTIME`) may differ. `at_run_time` compares them with the run.
EVALUATE = ("evaluate", "model", "train.mesh", "data.directory")
MODEL_OF_SAMPLE = tuple(f"model.{field.name}" for field in fields(ModelConfig) if field.name != "loss_block")
# Of the joined shards that a set of questions is fine-tuned on.
OF_QUESTIONS = ("model.sequence_length", "data.shard_sequences", "data.validation_fraction")
PLACE = ("data.directory", "data.database_fraction")

READS: dict[str, tuple[str, ...]] = {
    "build": BUILD,
    "train": TRAIN,
    "evaluate": EVALUATE,
    "sample": ("sample", *MODEL_OF_SAMPLE, "data.directory", "data.encoder", "data.encoder_dtype"),
    # It answers for `retro train` with the same flags, so it takes all that shape, time or name that run's step.
    "preflight": ("model", "train", "evaluate.batch"),
    "quickstart": tuple(dict.fromkeys((*BUILD, *TRAIN, *EVALUATE))),
    "sweep": tuple(dict.fromkeys((*BUILD, *TRAIN, *EVALUATE))),
    "join": (
        *PLACE,
        "data.sources",
        "data.encoder",
        "data.encoder_dtype",
        "data.max_document_memory",
        "data.shard_chunks",
        *OF_QUESTIONS,
    ),
    "database info": PLACE,
    "database verify": (*PLACE, "data.encoder", "data.encoder_dtype"),
    "database verify --repair": BUILD,  # repairs run the build's own stages
    "database add": (
        *PLACE,
        "data.sources",
        "data.encoder",
        "data.encoder_dtype",
        "data.encoder_batch",
        "data.minimum_characters",
        "data.max_document_memory",
        "data.shard_chunks",
        "data.exact_below",
        "data.index_leaves",
        "data.index_leaves_searched",
        "data.index_reorder",
        "data.neighbors_stored",
        "data.recall_sample",
        "data.recall_target",
    ),
    "database remove": PLACE,
}


def is_read(key: str, reads: Sequence[str]) -> bool:
    """Whether a key ("train.steps") is in `reads` or below one of them."""
    return any(key == one or key.startswith(f"{one}.") for one in reads)


def check_reads(verb: str, keys: Iterable[str]) -> None:
    """Raises ValueError for the first key that the verb does not read, with the verbs that do.

    Args:
      verb: a key of READS.
      keys: as on the command line, without "config.".
    """
    for key in keys:
        if not is_read(key, READS[verb]):
            others = [
                other for other, reads in READS.items() if is_read(key, reads) and other not in ("quickstart", "sweep")
            ]
            known = f"It is read by: {', '.join(f'retro {other}' for other in others)}. " if others else ""
            raise ValueError(
                f"retro {verb} does not read config.{key}, so --config.{key} would change nothing. {known}Remove it; "
                f"retro {verb} reads config.{', config.'.join(READS[verb])}."
            )
