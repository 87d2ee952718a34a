"""Retrofit of an imported model (paper 4.2, C.3): its decoder with retrieval, `:RUN`, `:RUN,laptop` or `:RUN,smoke`.

    retro import --path=DIR_OR_FILE --workdir=runs/smollm2
    retro build --config=configs/own_text.py:my_text --workdir=runs/mine --config.model.vocabulary=49152 \
        --config.data.tokenizer=runs/smollm2/data/tokenizer/tokenizer.json
    retro train --config=configs/imported.py:runs/smollm2 --workdir=runs/mine/retro --config.data.directory=runs/mine/data

The decoder is that of RUN and stays frozen; every third layer from the sixth reads neighbors, encoded by two layers that are
as wide as the decoder and read its embedding. Batch and steps are the paper's; `,smoke` takes 20 steps of 4 short sequences.
`--config.train.trainable=all` trains the decoder too. Sequence and chunk length must be those of the joined shards.
`,laptop` takes the quickstart's text and a few hundred steps of short sequences; it is a sweep, which builds the data, trains and
evaluates with the imported model as the baseline:

    retro sweep --config=configs/imported.py:runs/smollm2,laptop --workdir=runs/smollm2_retrofit

Hardware: an accelerator for more than these two (SmolLM2-135M: 2 CPU cores, 6 GiB and an hour for `,laptop`); `retro preflight --config=configs/imported.py:RUN` says which.
Expected: Off equals the imported model bit for bit; On below Off where text recurs in the database.
"""

from collections.abc import Iterator
from pathlib import Path

from retro_jax.config import as_config_dict
from retro_jax.config.file import read_config_file
from retro_jax.presets.overrides import Overrides
from retro_jax.presets.sizes import RETROFIT_SEQUENCES, sources

BATCH = 256
FIRST, EVERY = 6, 3  # layers that read neighbors


def get_config(argument: str = ""):
    run, words = _parts(argument)
    config = as_config_dict(read_config_file(Path(run) / "config.json", "Import a model there with `retro import`."))
    model, layers = config.model, config.model.layers
    model.retrieval_layers = tuple(range(FIRST, layers + 1, EVERY)) or (layers // 2 + 1,)
    model.shared_embeddings = True
    model.encoder.update(width=model.width, heads=model.heads, head_dim=model.head_dim, feed_forward=model.feed_forward)
    config.train.update(trainable="retrieval", initialize_from=run, batch=BATCH, steps=-(-RETROFIT_SEQUENCES // BATCH))
    config.data.directory = ""
    if "laptop" in words:
        _set_laptop(config, Path(run))
    if "smoke" in words:
        model.sequence_length = min(model.sequence_length, 4 * model.chunk_length)
        config.train.update(batch=4, steps=20, warmup_steps=2, retrieval_check_every=0, log_every=1)
    return config


def _parts(argument: str) -> tuple[str, list[str]]:
    run, *words = argument.split(",")
    if not run or set(words) - {"laptop", "smoke"}:
        raise ValueError(
            f"configs/imported.py takes a run directory, RUN, RUN,laptop or RUN,smoke, but '{argument}' was given."
        )
    return run, words


def _set_laptop(config, run: Path) -> None:
    tokenizers = sorted((run / "data" / "tokenizer").glob("tokenizer.*"))  # tokenizer.json, or a SentencePiece model
    config.model.update(
        sequence_length=256, chunk_length=32, remat="none", scan="auto"
    )  # computes in the dtype of the import
    config.train.update(batch=4, steps=600, warmup_steps=20, learning_rate=1e-3)
    config.train.update(log_every=5, checkpoint_every=50, retrieval_check_every=50)
    config.data.sources = sources(("wiki", "legal"), max_train_bytes=3_000_000, max_validation_bytes=80_000)
    config.data.sources.wiki.update(max_train_bytes=300_000, max_validation_bytes=40_000)
    config.data.sources.legal.max_document_bytes = 4_000  # many short licenses: a text recurs in another document
    config.data.tokenizer = str(tokenizers[0]) if tokenizers else ""
    config.evaluate.update(baseline=str(run), passages=0)


def sweep(argument: str = "") -> Iterator[tuple[str, Overrides]]:
    yield "frozen,seed=0", {}
