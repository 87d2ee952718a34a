"""Continues a prompt token by token, with retrieval after every full chunk (paper 2.7).

Each token takes a full forward pass, so that sampling computes what training and evaluation do; caches
come later. The text lies on the chunk grid from its BOS on. Where it outgrows the model's sequence length, the window
moves on by half of it, as in evaluation (paper 5.1): token p is predicted from the earliest such window that holds p.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from retro_jax.config import ModelConfig, SampleConfig
from retro_jax.core.dimensions import PADDING, check_ids
from retro_jax.models.retro import merge

OTHER_TOKENIZER = "Give the tokenizer and the database that the model was trained with (--config.data.directory)."


@dataclass(frozen=True)
class Retrieved:
    """The neighbors that one chunk retrieved, nearest first."""

    ids: Int[np.ndarray, "K"]  # -1 where there is none
    distances: Float[np.ndarray, "K"]
    tokens: Int[np.ndarray, "K R"]  # [N, F]
    sources: Sequence[tuple[str, str]]  # (subset, document name) of each neighbor


class Retriever(Protocol):
    """The database, searched as the build searches it (`data_pipeline.Retriever`)."""

    def search(self, text: str, k: int) -> tuple[Int[np.ndarray, "K"], Float[np.ndarray, "K"]]:
        """Ids and distances of the k nearest chunks to a chunk's text."""
        ...

    def values(self, ids: Int[np.ndarray, "K"]) -> Int[np.ndarray, "K R"]: ...

    def sources(self, ids: Int[np.ndarray, "K"]) -> Sequence[tuple[str, str]]: ...


class Tokenizer(Protocol):
    """The interface of `data_pipeline.Tokenizer`."""

    bos: int
    eos: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Sample:
    prompt: str
    continuation: str
    tokens: list[int]  # BOS, the prompt's, the sampled ones
    retrieved: list[Retrieved]  # of each full chunk that a later token read; empty without retrieval


def sample(
    model: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    prompt: str,
    settings: SampleConfig,
    retriever: Retriever | None,
    report: Callable[[int], None] = lambda tokens: None,
    until: Sequence[str] = (),
) -> Sample:
    """Continues `prompt` (it may be empty, or longer than a sequence) up to EOS or `settings.tokens` tokens.

    Args:
      retriever: None samples with retrieval off.
      report: called with the number of tokens after each.
      until: sampling stops with the first of these strings in the continuation, which is cut before it.

    Raises:
      ValueError: settings outside their range.
    """
    check_settings(settings)
    generator = np.random.default_rng(settings.seed)
    predict = Predictor(model, params)
    tokens = [tokenizer.bos, *tokenizer.encode(prompt)]
    retrieved: list[Retrieved] = []
    first = len(tokens)
    while len(tokens) - first < settings.tokens:
        if retriever is not None and model.retrieves and model.neighbors:
            retrieve_full_chunks(model, tokenizer, retriever, tokens, retrieved)
        token = choose(predict(tokens, retrieved), settings.temperature, settings.top_p, generator)
        if token == tokenizer.eos:
            break
        tokens.append(token)
        report(len(tokens) - first)
        if any(stop in tokenizer.decode(tokens[first:]) for stop in until):
            break
    return Sample(prompt, cut_before(tokenizer.decode(tokens[first:]), until), tokens, retrieved)


def cut_before(text: str, until: Sequence[str]) -> str:
    """The text before the first place where one of the strings stands; all of it where none does."""
    return text[: min((text.find(stop) for stop in until if stop in text), default=len(text))]


def check_settings(settings: SampleConfig) -> None:
    """Raises ValueError where a setting is outside its range."""
    if settings.tokens < 1:
        raise ValueError(f"config.sample.tokens={settings.tokens} must be 1 or more.")
    if not settings.temperature >= 0:
        raise ValueError(f"config.sample.temperature={settings.temperature} must be 0 (the likeliest token) or more.")
    if not 0 < settings.top_p <= 1:
        raise ValueError(
            f"config.sample.top_p={settings.top_p} is the share of probability that stays: above 0, and 1 keeps all."
        )


def retrieve_full_chunks(
    model: ModelConfig, tokenizer: Tokenizer, retriever: Retriever, tokens: list[int], retrieved: list[Retrieved]
) -> None:
    """Retrieves for each new full chunk of `tokens` and appends the result."""
    length = model.chunk_length
    for chunk in range(len(retrieved), len(tokens) // length):
        text = tokenizer.decode(tokens[chunk * length : (chunk + 1) * length])
        ids, distances = retriever.search(text, model.neighbors)
        retrieved.append(Retrieved(ids, distances, retriever.values(ids), retriever.sources(ids)))


class Predictor:
    """Logits of the token after a text; compiled once for each power of two of chunks.

    Raises ValueError where a token of the text or of a neighbor is not one of config.model.vocabulary.
    """

    def __init__(self, model: ModelConfig, params: dict):
        self.model, self._params = model, params

    def __call__(self, tokens: Sequence[int], retrieved: Sequence[Retrieved]) -> Float[np.ndarray, "V"]:
        """Float32 logits; `retrieved` holds that of every full chunk of `tokens`, or is empty with retrieval off."""
        model, length = self.model, self.model.chunk_length
        start = window_start(len(tokens) - 1, model.chunks, length)
        window = np.asarray(tokens[start * length :], np.int32)
        used = -(-len(window) // length)
        chunks = min(model.chunks, 1 << (used - 1).bit_length())
        padded = np.full((1, chunks * length), PADDING, np.int32)
        padded[0, : len(window)] = window
        check_ids("Tokens of the text, config.model.vocabulary", padded, model.vocabulary, OTHER_TOKENIZER)
        segments = np.where(np.arange(chunks) < used, 0, PADDING)[None].astype(np.int32)
        neighbors = None
        if retrieved:
            neighbors = np.full((1, chunks, model.neighbors, model.retrieved_length), PADDING, np.int32)
            for place, found in enumerate(retrieved[start : start + chunks]):
                neighbors[0, place] = found.tokens
            check_ids("Tokens of neighbors, config.model.vocabulary", neighbors, model.vocabulary, OTHER_TOKENIZER)
        return np.asarray(_logits(model, self._params, padded, segments, neighbors, len(window) - 1))


@partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens, segments, neighbor_tokens, last) -> Float[Array, "V"]:
    merged = merge(model, params)
    hidden = merged.hidden(tokens, segments, neighbor_tokens)[0, last]
    readout = merged.readout.astype(hidden.dtype)
    return jnp.einsum("d,vd->v", hidden, readout, preferred_element_type=jnp.float32)


def window_start(position: int, chunks: int, length: int) -> int:
    """First chunk of the window from which the token after `position` is predicted."""
    stride = max(1, chunks // 2)
    beyond = position // length - chunks + 1
    return max(0, -(-beyond // stride) * stride)


def choose(logits: Float[np.ndarray, "V"], temperature: float, top_p: float, generator: np.random.Generator) -> int:
    """Draws a token from the softmax of logits / temperature, cut to its top mass; temperature 0 takes the likeliest."""
    if temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    kept = keep_top_mass(probabilities / probabilities.sum(), top_p)
    return int(generator.choice(len(kept), p=kept))


def keep_top_mass(probabilities: Float[np.ndarray, "V"], top_p: float) -> Float[np.ndarray, "V"]:
    """The likeliest tokens that together have at least `top_p`, renormalized; all others 0."""
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros_like(probabilities)
    chosen = order[before < top_p]
    kept[chosen] = probabilities[chosen]
    return kept / kept.sum()
