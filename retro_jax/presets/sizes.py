"""The paper's sizes (Tables 2 and 10) and schedule (C.1) as configs, and their laptop form; the files of `configs/` use it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from ml_collections import ConfigDict

from retro_jax.config import RunConfig, SourceConfig, default_config, resolve, to_dict

TOKENS = 419_430_400_000  # of pre-training, for every size
RETROFIT_SEQUENCES = 6_000_000  # 3% of the pre-training sequences (4.2, C.3)
RETROFIT_BATCH = 256
PACKAGES = ("wiki", "legal", "books", "speeches", "recipes", "code")


@dataclass(frozen=True)
class Size:
    width: int  # D
    feed_forward: int
    heads: int
    head_dim: int
    layers: int
    learning_rate: float
    batch: int  # sequences

    @property
    def retrieval_layers(self) -> tuple[int, ...]:
        return every_third(self.layers)


def every_third(layers: int) -> tuple[int, ...]:
    """P: every third layer from 6, as the paper's parameter counts imply; its Table 10 differs."""
    return tuple(range(6, layers + 1, 3))


# By the name of the RETRO model and of its baseline.
SIZES = {
    ("172m", "132m"): Size(896, 3_584, 16, 64, 12, 2e-4, 256),
    ("425m", "368m"): Size(1_536, 6_144, 12, 128, 12, 2e-4, 256),
    ("1b5", "1b3"): Size(2_048, 8_192, 16, 128, 24, 2e-4, 256),
    ("7b5", "7b"): Size(4_096, 16_384, 32, 128, 32, 1e-4, 1_024),
}
RETRO = {retro: size for (retro, _), size in SIZES.items()}
BASELINE_OF = {retro: baseline for retro, baseline in SIZES}
BASELINE = {baseline: size for (_, baseline), size in SIZES.items()}


def split_argument(argument: str, known: Iterable[str]) -> set[str]:
    """The comma-separated words after the colon of `--config=FILE.py:ARGUMENT`.

    Raises:
      ValueError: a word that is not known, with the nearest that is.
    """
    words, known = [word for word in argument.split(",") if word], list(known)
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(f"'{word}' is not an argument of this config; {hint}Known: {', '.join(known)}.")
    return set(words)


def retro(argument: str) -> RunConfig:
    """A RETRO model of the paper's Table 2 by name: "172m", "425m", "1b5" or "7b5"; ",smoke" behind it shrinks it."""
    return resolve(paper_config(argument, RETRO))


def baseline(argument: str) -> RunConfig:
    """The plain decoder of the same table: "132m", "368m", "1b3" or "7b"; ",smoke" behind it shrinks it."""
    return resolve(paper_config(argument, BASELINE))


def paper_config(argument: str, sizes: dict[str, Size]) -> ConfigDict:
    """The config of one of `sizes` at the paper's schedule; `,smoke` shrinks it.

    Raises:
      ValueError: not exactly one size.
    """
    words = split_argument(argument, [*sizes, "smoke"])
    named = sorted(words - {"smoke"})
    if len(named) != 1:
        raise ValueError(
            f"One size is needed after the colon, but there are {len(named)} in '{argument}'; choose from {', '.join(sizes)}."
        )
    config = default_config()
    set_size(config, sizes[named[0]])
    if sizes is BASELINE:
        config.model.retrieval_layers = ()
    # MassiveText is not public. These packages install anywhere; configs/own_text.py takes your own text.
    config.data.sources = sources(PACKAGES)
    if "smoke" in words:
        shrink(config)
    return config


def set_size(config: ConfigDict, size: Size) -> None:
    """Sets shape and schedule: 2048 tokens, 128,000 words, 419B tokens in all."""
    config.model.update(
        vocabulary=128_000,
        sequence_length=2_048,
        chunk_length=64,
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        head_dim=size.head_dim,
        feed_forward=size.feed_forward,
        retrieval_layers=size.retrieval_layers,
        neighbors=2,
    )
    config.train.batch = size.batch
    config.train.steps = TOKENS // (size.batch * 2_048)
    config.train.learning_rate = size.learning_rate


def retrofit_schedule(config: ConfigDict, shrunk: bool) -> None:
    """Trains encoder and chunked cross-attention alone, on 3% of the sequences at batch 256 for every size (4.2, C.3)."""
    config.train.trainable = "retrieval"
    if not shrunk:
        config.train.update(batch=RETROFIT_BATCH, steps=-(-RETROFIT_SEQUENCES // RETROFIT_BATCH))


def set_laptop(config: ConfigDict) -> None:
    """Sets the quickstart's model, 1.31 M parameters in chunks of 16 tokens: minutes of training on 2 CPU cores.

    Chunks of 16 tokens, not 64: with so little training a decoder learns to read what follows a chunk only where that is near
    (docs/decisions/model.md), and the paper's own caution for small scale is m = 16 to 32.
    """
    config.model.update(vocabulary=4_096, sequence_length=256, chunk_length=16, layers=4, width=128)
    config.model.update(heads=4, head_dim=32, feed_forward=512, retrieval_layers=(2, 4), neighbors=2)
    config.model.update(compute_dtype="float32", remat="none", scan=False, loss_block=0)
    config.model.encoder.update(layers=1, width=128, heads=4, head_dim=32, feed_forward=512)
    config.train.update(batch=8, learning_rate=4e-3)


def sources(packages: Iterable[str], **limits: int) -> ConfigDict:
    """Pinned packages as sources, each a subset of its name; `limits` as max_train_bytes."""
    return ConfigDict({name: to_dict(SourceConfig(package=name, **limits)) for name in packages})


def shrink(config: ConfigDict) -> None:
    """Shrinks sizes and steps to a laptop's: the same kinds of layers, minutes from text to a trained model."""
    config.model.update(
        vocabulary=1_024,
        sequence_length=64,
        chunk_length=16,
        layers=4,
        width=64,
        heads=4,
        head_dim=16,
        feed_forward=256,
        retrieval_layers=(2, 4) if config.model.retrieval_layers else (),
        loss_block=256,
    )
    config.model.encoder.update(width=32, heads=2, head_dim=16, feed_forward=128)
    config.train.update(batch=8, steps=30, warmup_steps=5, learning_rate=3e-3, log_every=5)
    config.train.update(checkpoint_every=15, retrieval_check_every=15)
    config.data.sources = sources(("wiki", "legal"), max_train_bytes=100_000, max_validation_bytes=10_000)
    config.data.update(recall_sample=100, shard_chunks=2_048, shard_sequences=256)
