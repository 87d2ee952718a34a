"""The study: does what the paper says of RETRO hold at small scale? Claims 17 to 27, Table 13, overlap, and BM25 re-ranking.

    make study              # retro sweep --config=configs/study.py --workdir=runs/study, then docs/measured/study.md
    make study SMOKE=1      # :smoke, the same kinds of points, one seed, a few minutes

The text is the quickstart's: licenses, which recur in each other (`legal`), and encyclopedia entries, which do not (`wiki`), with
twice the share held out. A point is a model, or another evaluation of a model that an earlier point trained; three seeds each.
Points stand in the order of what they are worth, so that a study that was stopped answers the first questions.

Hardware: 2 CPU cores, 8 GiB of memory. About 4 hours on idle cores, in pieces that resume: 1.8 for Table 13 (45 trainings of 1.3 M
parameters and 0.8 M tokens, 80 s each, and as many evaluations), 1.4 for two models of 7 M parameters on four times the text, 0.6
for retrofits, BM25 and a tenth of the text, each with its data and baselines. Estimated from the quickstart's rate on idle cores, the
larger models by their FLOPs; after the first trainings `--plan` has the rate of this machine and says what is left.
Expected: docs/measured/study.md, which says of each claim whether it was reproduced, and why not.
"""

from collections.abc import Iterator

from retro_jax.config import default_config, resolve
from retro_jax.presets.ablations import ROWS
from retro_jax.presets.overrides import Overrides
from retro_jax.presets.sizes import set_laptop, shrink, sources, split_argument

SEEDS = (0, 1, 2)
NEIGHBORS, SHARES = (1, 3, 5, 10, 20), (0.01, 0.03, 0.1, 0.3)  # tried at evaluation
FIRST_ROWS = ("neighbor_only", "continuation_only")  # the most robust rows of Table 13
OTHER_ROWS = [name for name in ROWS if name not in ("default", "no_retrieval", *FIRST_ROWS)]  # the baselines have none


def get_config(argument: str = ""):
    words = split_argument(argument, ["smoke"])
    config = default_config()
    set_laptop(config)
    config.train.update(steps=400, warmup_steps=30, log_every=20, checkpoint_every=200, retrieval_check_every=200)
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
            own = {key: _of_seed(value, seed) for key, value in changes.items()}
            yield f"{name},seed={seed}", own if "evaluate.retro" in own else {**own, "train.seed": seed}


def _of_seed(value: object, seed: int) -> object:
    """A value; of "point:NAME" or "point:NAME/baseline" the point with this seed."""
    if not (isinstance(value, str) and value.startswith("point:")):
        return value
    name, slash, baseline = value.partition("/")
    return f"{name},seed={seed}{slash}{baseline}"


def _points(argument: str, smoke: bool) -> Iterator[tuple[str, Overrides, tuple[int, ...]]]:
    """Name, change and seeds of each point."""
    config = get_config(argument)
    model, steps = resolve(config).model, config.train.steps
    shares = SHARES[smoke:]  # a hundredth of a smoke database is one document
    yield "default", {"evaluate.tried_neighbors": NEIGHBORS, "evaluate.tried_shares": shares}, SEEDS
    for name in FIRST_ROWS:
        yield name, ROWS[name].overrides(model), SEEDS
    # Documents that hold a tenth of the 13-grams of a held-out document leave the database; nothing is trained.
    tried = {"evaluate.tried_neighbors": (), "evaluate.tried_shares": ()}  # those of `default` would be taken over
    yield "deleted", {"evaluate.retro": "point:default", "evaluate.clean_database": 0.1, **tried}, SEEDS
    for name, part in (("retrofit", 10), ("retrofit_long", 2)):
        start = {"train.initialize_from": "point:default/baseline", "train.trainable": "retrieval"}
        yield name, {**start, "train.steps": steps // part, "train.warmup_steps": max(steps // part // 20, 1)}, SEEDS
    yield "bm25", {"data.rerank": "bm25"}, SEEDS
    tenth = {f"data.sources.{name}.max_train_bytes": size // 10 for name, size in _train_bytes(config).items()}
    yield "tiny", tenth, SEEDS
    if smoke:
        return
    for name in OTHER_ROWS:
        tried = {"evaluate.tried_neighbors": (2,)} if name.startswith("train_k") else {}  # as many as the others read
        yield name, {**ROWS[name].overrides(model), **tried}, SEEDS
    for chunk in (16, 32):
        yield f"large_m{chunk}", _large(chunk), SEEDS[:1]


def _train_bytes(config) -> dict[str, int]:
    return {name: source.max_train_bytes for name, source in config.data.sources.items()}


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
