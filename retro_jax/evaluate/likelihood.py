"""Log likelihood of any part of any text, with retrieval on or off, for benchmarks.

    texts = [continuation(tokenizer, "The mill stands", " by the river."), whole(tokenizer, document)]
    found = likelihoods(model, params, texts, find, batch=8)     # find(chunk texts) -> tokens of their neighbors
    found[0].nats, found[0].greedy

A text is BOS and its tokens, cut into chunks from its own start, like a document of the database. Each scored token is
predicted from the same window as in evaluation and sampling (length T, stride T/2, paper 5.1), so the likelihood of a
complete document equals the sum of `retro evaluate`.

A complete chunk retrieves with its true text, in context and continuation alike. Its neighbors are first read at its
last token, which predicts the first token of the next chunk. So no token is predicted from neighbors that were
retrieved with that token.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.core.dimensions import PADDING, check_ids
from retro_jax.core.progress import progress
from retro_jax.generate.sampling import OTHER_TOKENIZER, window_start
from retro_jax.models.loss import first_choice, token_nll
from retro_jax.models.retro import merge

# Texts of N chunks -> tokens [N, F] of the K neighbors of each, nearest first, -1 where there is none.
Find = Callable[[Sequence[str]], Int[np.ndarray, "N K R"]]
KEPT_CHUNKS = 20_000  # chunks whose neighbors are cached: windows overlap, and few-shot examples repeat


@dataclass(frozen=True)
class Text:
    """Tokens, BOS first; those from index `first` (1 or more) on are scored."""

    tokens: Sequence[int]
    first: int


@dataclass(frozen=True)
class Likelihood:
    """The result for the scored tokens of one text."""

    nats: float  # log likelihood, 0 or less
    greedy: bool  # whether each is the most likely token at its position; True if none is scored


@dataclass(frozen=True)
class Window:
    """Predictions from one forward pass: positions [scored, end) of a text, read from position `start` on."""

    text: int
    start: int
    scored: int
    end: int


def whole(tokenizer, text: str) -> Text:
    """A text of which all tokens are scored, the first one after BOS alone."""
    return Text([tokenizer.bos, *tokenizer.encode(text)], 1)


def continuation(tokenizer, context: str, text: str) -> Text:
    """A text of which only tokens with bytes of `text` are scored.

    Context and text are encoded together, as the model reads text in training. A token with bytes of both (the space that
    ends a context and the word behind it) belongs to the continuation.

    Args:
      tokenizer: `data_pipeline.tokens.Tokenizer`.
    """
    ids = tokenizer.encode(context + text)
    ends = np.cumsum(tokenizer.token_bytes[ids]) if ids else np.zeros(0, int)
    return Text([tokenizer.bos, *ids], 1 + int(np.searchsorted(ends, len(context.encode()), side="right")))


def windows_of(number: int, text: Text, model: ModelConfig) -> Iterator[Window]:
    """The windows that predict the scored tokens of a text, each token once."""
    position, last = text.first - 1, len(text.tokens) - 1
    while position < last:
        start = window_start(position, model.chunks, model.chunk_length) * model.chunk_length
        end = min(start + model.sequence_length, last)
        yield Window(number, start, position, end)
        position = end


def likelihoods(
    model: ModelConfig,
    params: dict,
    tokenizer,
    texts: Sequence[Text],
    find: Find | None,
    *,
    batch: int,
    greedy: bool = True,
    description: str = "score",
) -> list[Likelihood]:
    """The likelihood of each text, in the order given.

    Windows are sorted by length and padded to a power of two of chunks. Every forward pass has the same number of
    tokens, so one function is compiled for each power of two up to C.

    Args:
      find: None scores with retrieval off.
      batch: windows of full length in a forward pass.
      greedy: False skips the search for the most likely tokens; `Likelihood.greedy` is then True everywhere.

    Raises:
      ValueError: tokens outside of the model's vocabulary, or a batch below 1.
    """
    if batch < 1:
        raise ValueError(f"A forward pass takes 1 window or more, but batch={batch} was given.")
    neighbors = None if find is None or not (model.retrieves and model.neighbors) else Neighbors(tokenizer, find)
    windows = [window for number, text in enumerate(texts) for window in windows_of(number, text, model)]
    nats, likeliest = np.zeros(len(texts)), np.ones(len(texts), bool)
    passes = list(_passes(windows, model, batch))
    with progress(description=description, total=len(windows), unit="window") as bar:
        for chunks, part in passes:
            rows = batch * (model.chunks // chunks)
            inputs = _inputs(model, texts, part, rows, chunks, neighbors)
            nll, best = jax.device_get(_score(model, greedy, params, *inputs))
            sums, all_best = nll.astype(np.float64).sum(axis=1), best.all(axis=1)
            for row, window in enumerate(part):
                nats[window.text] -= sums[row]
                likeliest[window.text] &= all_best[row]
            bar.update(len(part))
    return [Likelihood(float(sum_), bool(all_)) for sum_, all_ in zip(nats, likeliest, strict=True)]


def _passes(windows: Sequence[Window], model: ModelConfig, batch: int) -> Iterator[tuple[int, list[Window]]]:
    """(chunks, windows of at most so many chunks) of each forward pass, longest first: too large a batch fails at once."""
    by_size: dict[int, list[Window]] = {}
    for window in windows:
        used = -(-(window.end - window.start) // model.chunk_length)
        by_size.setdefault(min(model.chunks, 1 << (used - 1).bit_length()), []).append(window)
    for chunks in sorted(by_size, reverse=True):
        rows = batch * (model.chunks // chunks)
        for first in range(0, len(by_size[chunks]), rows):
            yield chunks, by_size[chunks][first : first + rows]


def _inputs(model, texts, part: Sequence[Window], rows: int, chunks: int, neighbors: "Neighbors | None"):
    """(tokens, segments, targets, neighbor tokens or None) of one forward pass, padded with -1."""
    length = model.chunk_length
    tokens = np.full((rows, chunks * length), PADDING, np.int32)
    targets, segments = tokens.copy(), np.full((rows, chunks), PADDING, np.int32)
    for row, window in enumerate(part):
        text, size = texts[window.text].tokens, window.end - window.start
        tokens[row, :size] = text[window.start : window.end]
        targets[row, window.scored - window.start : size] = text[window.scored + 1 : window.end + 1]
        segments[row, : -(-size // length)] = 0
    for ids in (tokens, targets):
        check_ids("Tokens of a text, config.model.vocabulary", ids, model.vocabulary, OTHER_TOKENIZER)
    if neighbors is None:
        return tokens, segments, targets, None
    read = np.full((rows, chunks, model.neighbors, model.retrieved_length), PADDING, np.int32)
    cut = tokens.reshape(rows, chunks, length)
    # A chunk with padding is the last of its window, so no later chunk reads its neighbors.
    full = (cut != PADDING).all(axis=-1)
    read[full] = neighbors(cut[full])
    check_ids("Tokens of neighbors, config.model.vocabulary", read, model.vocabulary, OTHER_TOKENIZER)
    return tokens, segments, targets, read


class Neighbors:
    """Tokens of the neighbors of chunks, with a cache of the most recently used ones."""

    def __init__(self, tokenizer, find: Find, kept: int = KEPT_CHUNKS):
        self._decode, self._find, self._kept = tokenizer.decode, find, kept
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __call__(self, chunks: Int[np.ndarray, "N M"]) -> Int[np.ndarray, "N K R"]:
        keys = [chunk.tobytes() for chunk in chunks]
        new = {key: chunk for key, chunk in zip(keys, chunks, strict=True) if key not in self._known}
        if new:
            found = self._find([self._decode(chunk) for chunk in new.values()])
            self._known.update(zip(new, found, strict=True))
        for key in keys:
            self._known.move_to_end(key)
        neighbors = np.stack([self._known[key] for key in keys]) if keys else np.zeros((0, 1, 1), np.int32)
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
        return neighbors


@partial(jax.jit, static_argnums=(0, 1))
def _score(
    config, greedy, params, tokens, segments, targets, neighbor_tokens
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """(nats of each target, whether it is the most likely token); 0 and True where the target is negative."""
    model = merge(config, params)
    hidden = model.hidden(tokens, segments, neighbor_tokens)
    nll = token_nll(hidden, model.readout, targets, config.loss_block)
    if not greedy:
        return nll, jnp.ones(targets.shape, bool)
    return nll, (targets < 0) | (first_choice(hidden, model.readout, config.loss_block) == targets)
