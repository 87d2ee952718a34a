"""data_pipeline: from text to a retrieval database and joined shards.

    from data_pipeline import build

    build(run, "runs/mine")      # documents, tokenizer, chunks, embeddings, index, neighbors, joined shards

Read it in the order of the data: pipeline, stages (known.py has their list), formats, packages, sources, documents, tokens,
chunks, encoder, search, joined; then database, evaluation, plan and inputs. It imports retro_jax, and never launch.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "build": "pipeline",
        "Database": "database.database",
        "Retriever": "database.retriever",
        "Tokenizer": "tokens",
        "FrozenEncoder": "encoder.bert",
        "join": "evaluation.join",
        "open_sets": "evaluation.sets",
    },
)
