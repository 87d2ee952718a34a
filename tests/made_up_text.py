"""A few small documents made from a fixed vocabulary of words, and the first three stages built from them."""

import random
from pathlib import Path

from data_pipeline.chunks import build_chunks
from data_pipeline.documents.stage import build_documents
from data_pipeline.tokens import build_tokenizer
from retro_jax.config import DataConfig, SourceConfig

WORDS = (
    "the of a and in to grain mill river wheel stone flour bread baker oven water field harvest market town road "
    "horse cart sack barley rye wheat seed plough winter spring summer autumn rain frost moon night morning bell church"
).split()
VOCABULARY = 340


def text(seed: int, words: int = 120) -> str:
    """Sentences in lines, with the odd tab, run of spaces and letter beyond ASCII."""
    source = random.Random(seed)
    lines = []
    while words > 0:
        count = source.randint(4, 12)
        line = " ".join(source.choice(WORDS) for _ in range(count)).capitalize() + source.choice([".", "!", " – é?"])
        lines.append(source.choice(["", "    ", "\t"]) + line)
        words -= count
    return "\n".join(lines) + "\n"


def write_folder(folder: Path, documents: int = 30, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        (folder / f"{number:03d}.txt").write_text(text(seed * 1000 + number, 40 + 7 * number), newline="")
    return folder


def config(folder: Path, **changes) -> DataConfig:
    sources = {"farm": SourceConfig(path=str(folder), license="CC0")}
    return DataConfig(**{"sources": sources, "validation_fraction": 0.2, "shard_chunks": 100, **changes})


def build(root: Path, chunk_length: int = 8, vocabulary: int = VOCABULARY, **changes) -> DataConfig:
    """documents/, tokenizer/ and chunks/ under `root`."""
    settings = config(write_folder(root / "text"), **changes)
    build_documents(root / "documents", settings)
    build_tokenizer(root / "tokenizer", settings, vocabulary, root / "documents")
    build_chunks(root / "chunks", settings, chunk_length, root / "documents", root / "tokenizer")
    return settings
