"""Nine subsets of real text from pinned packages, 86 MB in all; docs/measured/database.md measures them.

    retro build --config=configs/nine_subsets.py:10 --workdir=runs/nine-10

`:10` takes a tenth of every subset, `:100` or nothing all of it. Documents are taken in the order of a hash of their
ids, so a smaller share is a part of a larger one (the paper's database sizes of Figure 1: 1, 3, 10, 30, 100%).
Hardware: any; embedding all of it takes half an hour on 2 CPU cores. Expected: of `legal` a sixth and of `email` a
thirtieth of the documents have a near duplicate, no other subset has one; SCaNN finds 95% of the ten nearest chunks.
"""

from retro_jax.config import default_config
from retro_jax.presets.sizes import sources

TRAIN_BYTES = {  # about what each package holds, less the held-out twentieth
    "books": 10_400_000,
    "code": 24_100_000,
    "dm_mathematics": 720_000,
    "email": 7_500_000,
    "legal": 13_600_000,
    "recipes": 2_600_000,
    "reference": 5_500_000,
    "speeches": 11_600_000,
    "wiki": 4_800_000,
}


def get_config(argument: str = ""):
    try:
        percent = float(argument or 100)
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise ValueError(f"configs/nine_subsets.py takes a percentage in (0, 100], but got '{argument}'; e.g. :10.")
    config = default_config()
    config.model.update(vocabulary=16_384, sequence_length=512, layers=4, width=128, heads=4, head_dim=32)
    config.model.update(feed_forward=512, retrieval_layers=(2, 4), compute_dtype="float32", remat="none", scan=False)
    config.model.encoder.update(layers=1, width=128, heads=4, head_dim=32, feed_forward=512)
    config.data.sources = sources(TRAIN_BYTES)
    if percent < 100:
        for name, size in TRAIN_BYTES.items():
            config.data.sources[name].max_train_bytes = round(size * percent / 100)
            config.data.sources[name].max_validation_bytes = round(size * percent / 100 / 19)
    return config
