"""Retrofit of a Llama-family decoder at small scale: frozen, trained with everything, and from scratch, at equal tokens.

    make retrofit-imported  # retro sweep --config=configs/retrofit_imported.py --workdir=runs/retrofit_imported, and the page

A tiny decoder of the Llama family (rotary positions, grouped heads, gated feed-forward) is trained on the quickstart's text
without retrieval; it stands for a model that was imported. From it start `frozen` (encoder and cross-attention train),
`everything` (all weights train) and `continued` (the decoder alone, as long again). `from_scratch` is the same RETRO from random
weights. All train on as many tokens as the decoder did, with three seeds.
Hardware: 2 CPU cores, 8 GiB of memory; about 20 minutes when idle. Resumes.
Expected: docs/measured/retrofit_imported.md.
"""

from collections.abc import Iterator

from retro_jax.config import default_config
from retro_jax.presets.overrides import Overrides
from retro_jax.presets.sizes import set_laptop, shrink, sources, split_argument

SEEDS = (0, 1, 2)


def get_config(argument: str = ""):
    words = split_argument(argument, ["smoke"])
    config = default_config()
    set_laptop(config)
    config.model.update(vocabulary=1_024, sequence_length=128, width=64, heads=2, feed_forward=192)
    config.model.encoder.update(width=64, heads=2, feed_forward=256)
    config.train.update(steps=400, warmup_steps=30, log_every=40, checkpoint_every=400, retrieval_check_every=0)
    config.data.sources = sources(("wiki", "legal"), max_train_bytes=700_000, max_validation_bytes=40_000)
    config.data.sources.wiki.update(max_train_bytes=150_000, max_validation_bytes=20_000)
    if "smoke" in words:
        shrink(config)
        config.model.encoder.update(width=config.model.width)  # as wide as the decoder, whose embedding it reads
    config.data.sources.legal.max_document_bytes = 4_000  # many short licenses: a text recurs in another document
    config.model.update(positions="rotary", key_heads=config.model.heads // 2, gated_feed_forward=True)
    config.model.update(scaled_embedding=False, norm_epsilon=1e-5, shared_embeddings=True)
    config.evaluate.update(bootstrap=500 if "smoke" in words else 2_000, passages=0)
    return config


def sweep(argument: str = "") -> Iterator[tuple[str, Overrides]]:
    for seed in (0,) if "smoke" in split_argument(argument, ["smoke"]) else SEEDS:
        start = {"train.initialize_from": f"point:from_scratch,seed={seed}/baseline"}
        points = {
            "from_scratch": {},
            "frozen": {**start, "train.trainable": "retrieval"},
            "everything": start,
            "continued": {**start, "model.retrieval_layers": (), "model.shared_embeddings": False},
        }
        for name, overrides in points.items():
            yield f"{name},seed={seed}", {**overrides, "train.seed": seed}
