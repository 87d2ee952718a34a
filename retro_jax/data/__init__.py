"""Reading the built data: manifests, rows, evaluation windows, the joined shards' schema and packing, batches.

Read manifests, windows, joined, batches. data_pipeline writes what is read here. It imports config and core.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__, {"train_iterator": "batches", "validation_examples": "batches", "read_manifest": "manifests"}
)
