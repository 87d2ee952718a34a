"""The study: does what the paper says of RETRO hold at small scale? Claims 17 to 27, Table 13, overlap, and BM25 re-ranking.

    make study              # retro sweep --config=configs/study.py --workdir=runs/study, then docs/measured/study.md
    make study SMOKE=1      # :smoke, the same kinds of points, one seed, a few minutes

The text is the quickstart's: licenses, which recur in each other (`legal`), and encyclopedia entries, which do not (`wiki`), with
twice the share held out. A point is a model, or another evaluation of a model that an earlier point trained; three seeds each.
Points stand in the order of what they are worth, so that a study that was stopped answers the first questions.

Hardware: 2 CPU cores, 8 GiB of memory; COST
Expected: docs/measured/study.md, which says of each claim whether it was reproduced, and why not.
"""

from collections.abc import Iterator

from retro_jax.config import default_config, resolve
from retro_jax.presets.ablations import ROWS, Overrides
from retro_jax.presets.sizes import set_laptop, shrink, sources, split_argument

SEEDS = (0, 1, 2)
FIRST_ROWS = ("neighbor_only", "continuation_only")  # the most robust rows of Table 13
OTHER_ROWS = [name for name in ROWS if name not in ("default", "no_retrieval", *FIRST_ROWS)]  # the baselines have none


def get_config(argument: str = ""):
    words = split_argument(argument, ["smoke"])
    config = default_config()
    set_laptop(config)
    config.train.update(steps=800, warmup_steps=40, log_every=40, checkpoint_every=400, retrieval_check_every=200)
    config.data.sources = sources(("wiki", "legal"), max_train_bytes=2_000_000, max_validation_bytes=200_000)
    config.data.sources.wiki.update(max_train_bytes=500_000, max_validation_bytes=60_000)
    config.data.sources.legal.max_document_bytes = 4_000  # many short licenses: a text recurs in another document
    config.data.update(validation_fraction=0.1, exact_below=150_000, shard_sequences=512)
    config.evaluate.passages = 0
    if "smoke" in words:
        shrink(config)
        config.data.sources.legal.max_document_bytes = 4_000
        config.evaluate.bootstrap = 500
    return config


def sweep(argument: str = "") -> Iterator[tuple[str, Overrides]]:
    smoke = "smoke" in split_argument(argument, ["smoke"])
    for name, changes, seeds in _points(argument, smoke):
        for seed in (0,) if smoke else seeds:
            named = {
                key: value.format(seed=seed) if isinstance(value, str) else value for key, value in changes.items()
            }
            yield f"{name},seed={seed}", {**named, "train.seed": seed}


def _points(argument: str, smoke: bool) -> Iterator[tuple[str, Overrides, tuple[int, ...]]]:
    """Name, change and seeds of each point; "{seed}" in a text stands for the seed."""
    config = get_config(argument)
    model, steps = resolve(config).model, config.train.steps
    same = {"evaluate.baseline": "point:default,seed={seed}/baseline"}  # the decoder trained on the same shards

    tried = {"evaluate.tried_neighbors": (1, 3, 5, 10, 20), "evaluate.tried_shares": (0.01, 0.03, 0.1, 0.3)}
    yield "default", tried, SEEDS
    for name in FIRST_ROWS:
        yield name, {**ROWS[name].overrides(model), **same}, SEEDS
    # Documents that hold a tenth of the 13-grams of a held-out document leave the database; nothing is trained.
    yield "deleted", {"evaluate.clean_database": 0.1, **same}, SEEDS
    for name, share in (("retrofit", 10), ("retrofit_long", 2)):
        start = {"train.initialize_from": same["evaluate.baseline"], "train.trainable": "retrieval"}
        short = {"train.steps": steps // share, "train.warmup_steps": max(steps // share // 10, 1)}
        yield name, {**start, **short, **same}, SEEDS
    yield "bm25", {"data.rerank": "bm25"}, SEEDS
    tenth = {
        f"data.sources.{name}.max_train_bytes": source.max_train_bytes // 10
        for name, source in config.data.sources.items()
    }
    yield "tiny", {**tenth, "model.vocabulary": model.vocabulary // 4}, SEEDS
    if smoke:
        return
    for name in OTHER_ROWS:
        yield name, {**ROWS[name].overrides(model), **same}, SEEDS
    for chunk in (16, 32):
        yield f"large_m{chunk}", _large(chunk), SEEDS[:1]


def _large(chunk: int) -> Overrides:
    """A model of some 7 M parameters on four times the text."""
    width = {"width": 256, "heads": 4, "head_dim": 64, "feed_forward": 1_024}
    shape = {f"model.{key}": value for key, value in {**width, "layers": 6, "retrieval_layers": (3, 6)}.items()}
    encoder = {f"model.encoder.{key}": value for key, value in width.items()}
    schedule = {"train.steps": 1_600, "train.warmup_steps": 80, "train.learning_rate": 2e-3}
    text = {
        "data.sources.legal.max_train_bytes": 5_000_000,
        "data.sources.legal.max_document_bytes": 20_000,
        "data.sources.wiki.max_train_bytes": 2_000_000,
    }
    return {"model.chunk_length": chunk, **shape, **encoder, **schedule, **text}
