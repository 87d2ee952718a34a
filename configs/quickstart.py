"""The quickstart: from encyclopedia and license texts to a trained RETRO, a baseline and a report on a laptop.

    make quickstart              # or: python -m launch.quickstart --config=configs/quickstart.py --workdir=runs/quickstart
    make quickstart SMOKE=1      # :smoke, the same path in under 3 minutes

Hardware: 2 CPU cores, 8 GiB of memory; about 8 minutes. Expected: On is below Off and below random
neighbors on `legal`, where two thirds of the text recur elsewhere; on `wiki`, where almost none does, no gain is promised.
"""

from retro_jax.config import default_config
from retro_jax.presets.sizes import set_laptop, sources, split_argument


def get_config(argument: str = ""):
    words = split_argument(argument, ["smoke"])
    config = default_config()
    set_laptop(config)
    config.train.update(steps=400, warmup_steps=30, log_every=20)
    config.train.update(checkpoint_every=200, retrieval_check_every=100)
    config.data.sources = sources(("wiki", "legal"), max_train_bytes=1_900_000, max_validation_bytes=100_000)
    config.data.sources.wiki.update(max_train_bytes=400_000, max_validation_bytes=50_000)
    # Many short licenses rather than few long ones: a text recurs in another document, not in its own.
    config.data.sources.legal.max_document_bytes = 4_000
    config.data.shard_sequences = 512
    if "smoke" in words:
        config.model.update(vocabulary=1_024, sequence_length=128, width=64, heads=2, feed_forward=256)
        config.model.encoder.update(width=64, heads=2, feed_forward=256)
        config.train.update(steps=40, warmup_steps=10, log_every=5, checkpoint_every=20, retrieval_check_every=20)
        config.data.sources = sources(("wiki", "legal"), max_train_bytes=150_000, max_validation_bytes=15_000)
        config.data.sources.legal.max_document_bytes = 4_000
        config.data.recall_sample = 100
        config.evaluate.update(bootstrap=500, passages=3)
    return config
