"""Log likelihoods of texts against the logits that sampling computes token by token, from what stands before each token."""

import dataclasses

import numpy as np
import pytest
from jax.nn import log_softmax
from test_sampling import Letters
from tiny_model import random_parameters, tiny

from retro_jax.evaluate import likelihood
from retro_jax.evaluate.likelihood import Neighbors, Text, continuation, likelihoods, whole, windows_of
from retro_jax.evaluate.protocols.spans import scored_tokens
from retro_jax.generate.sampling import Predictor, Retrieved

MODEL = tiny(layers=2, retrieval_layers=(1, 2))  # 6 chunks of 4 tokens
M, T = MODEL.chunk_length, MODEL.sequence_length


def find(texts):
    """Neighbors as a function of the chunk's text; every third text has one neighbor only."""
    found = []
    for text in texts:
        draw = np.random.default_rng([len(text), *map(ord, text)])
        tokens = draw.integers(0, MODEL.vocabulary, (MODEL.neighbors, MODEL.retrieved_length)).astype(np.int32)
        tokens[1:] = -1 if sum(map(ord, text)) % 3 == 0 else tokens[1:]
        found.append(tokens)
    return np.stack(found)


def text_of(length, first, seed=0):
    """A text of so many tokens, BOS included."""
    return Text([0, *np.random.default_rng([seed, length]).integers(2, 28, length - 1).tolist()], first)


def slow(params, text, on):
    """Nats and greediness, one token after the other: nothing but the tokens before it is ever looked at."""
    predict, nats, greedy = Predictor(MODEL, params), 0.0, True
    for place in range(text.first, len(text.tokens)):
        past, retrieved = text.tokens[:place], []
        for start in range(0, place - M + 1, M) if on else ():
            tokens = find([Letters().decode(past[start : start + M])])[0]
            retrieved.append(Retrieved(np.arange(2), np.zeros(2), tokens, []))
        logits = np.asarray(predict(past, retrieved), np.float64)
        nats += float(log_softmax(logits)[text.tokens[place]])
        greedy &= int(logits.argmax()) == text.tokens[place]
    return nats, greedy


@pytest.fixture(scope="module")
def params():
    return random_parameters(MODEL)


SHAPES = [
    (1, 1),
    (2, 1),
    (4, 1),
    (5, 4),
    (6, 5),
    (9, 3),
    (24, 1),
    (25, 24),
    (25, 25),
    (26, 9),
    (61, 1),
    (61, 55),
    (50, 30),
]


@pytest.mark.parametrize("on", [False, True])
def test_a_likelihood_is_that_of_its_tokens_one_after_the_other(params, on):
    """Continuations that begin inside a chunk, fill it, cross it or cross windows; and no neighbor is read too early."""
    texts = [text_of(*shape) for shape in SHAPES]
    found = likelihoods(MODEL, params, Letters(), texts, find if on else None, batch=2)
    for shape, text, one in zip(SHAPES, texts, found, strict=True):
        nats, greedy = slow(params, text, on)
        assert one.nats == pytest.approx(nats, rel=2e-5, abs=2e-5), shape
        assert one.greedy == greedy, shape


def test_neighbors_matter_from_the_first_full_chunk_on(params):
    """Off and On agree exactly where no chunk is full before the scored tokens, and nowhere else."""
    texts = [text_of(M, 1), text_of(M + 1, 1), text_of(M + 1, M)]
    off, on = (likelihoods(MODEL, params, Letters(), texts, given, batch=2) for given in (None, find))
    same = [a.nats == pytest.approx(b.nats, abs=1e-4) for a, b in zip(off, on, strict=True)]
    assert same == [True, False, False]


def test_greedy_continuations_are_told_from_others(params):
    predict, tokens = Predictor(MODEL, params), [0, 5, 6]
    for _ in range(4):
        tokens.append(int(predict(tokens, []).argmax()))
    other = [*tokens[:-1], (tokens[-1] + 1) % MODEL.vocabulary]
    texts = [Text(tokens, 3), Text(other, 3), Text(other, 7), Text(tokens, 7)]
    found = likelihoods(MODEL, params, Letters(), texts, None, batch=1)
    assert [one.greedy for one in found] == [True, False, True, True]
    assert found[2].nats == found[3].nats == 0.0


def test_neither_batch_nor_company_nor_order_changes_a_likelihood(params):
    texts = [text_of(*shape, seed=1) for shape in SHAPES]
    alone = [likelihoods(MODEL, params, Letters(), [text], find, batch=2)[0] for text in texts]
    together = likelihoods(MODEL, params, Letters(), texts[::-1], find, batch=2)[::-1]
    assert [one.greedy for one in together] == [one.greedy for one in alone]
    assert np.allclose([one.nats for one in together], [one.nats for one in alone], rtol=1e-5, atol=1e-5)
    one_by_one = likelihoods(MODEL, params, Letters(), [texts[10]], find, batch=1)
    assert one_by_one[0].nats == pytest.approx(alone[10].nats, rel=1e-5)


def test_shapes_are_few_and_hold_the_same_number_of_tokens(params, monkeypatch):
    """Texts of 1 to 80 tokens: 1, 2, 4 or 6 chunks, and as many rows as make a batch of full windows."""
    shapes, real = set(), likelihood._score

    def spy(model, greedy, params, tokens, *others):
        shapes.add(tokens.shape)
        return real(model, greedy, params, tokens, *others)

    monkeypatch.setattr(likelihood, "_score", spy)
    likelihoods(MODEL, params, Letters(), [text_of(length, 1) for length in range(1, 81)], None, batch=2)
    assert shapes == {(12, M), (6, 2 * M), (2, 4 * M), (2, T)}


@pytest.mark.parametrize("chunks", [1, 2, 3, 6, 7])
def test_each_scored_token_is_in_one_window(chunks):
    model = dataclasses.replace(MODEL, sequence_length=chunks * M)
    for length in range(1, 70):
        for first in range(1, length + 1):
            windows = list(windows_of(0, Text(range(length), first), model))
            targets = [place + 1 for window in windows for place in range(window.scored, window.end)]
            assert targets == list(range(first, length))
            assert all(0 <= window.end - window.start <= chunks * M for window in windows)
            for window in windows[1:]:
                assert window.scored - window.start >= chunks // 2 * M  # half a window of context


def test_a_chunk_is_asked_for_once_and_with_its_own_text(params):
    asked = []

    def remember(texts):
        asked.extend(texts)
        return find(texts)

    text = text_of(61, 1)
    likelihoods(MODEL, params, Letters(), [text, text, Text(text.tokens[:30], 28)], remember, batch=1)
    assert sorted(asked) == sorted(Letters().decode(text.tokens[start : start + M]) for start in range(0, 60, M))


def test_remembered_neighbors_are_bounded():
    calls = []
    neighbors = Neighbors(Letters(), lambda texts: calls.extend(texts) or find(texts), kept=3)
    chunks = np.arange(2, 2 + 5 * M, dtype=np.int32).reshape(5, M)
    whole_answer = neighbors(chunks)
    assert len(neighbors._known) == 3 and len(calls) == 5
    assert np.array_equal(neighbors(chunks[2:]), whole_answer[2:]) and len(calls) == 5
    assert np.array_equal(neighbors(chunks[:1]), whole_answer[:1]) and len(calls) == 6


class Pieces:
    """Greedy longest match over a few pieces; ids from 2 on."""

    bos, pieces = 0, ["the", " mill", " milled", " ", "b", "by", "é", "l"]
    token_bytes = np.array([0, 0, *(len(piece.encode()) for piece in pieces)])

    def encode(self, text):
        ids = []
        while text:
            piece = max((piece for piece in self.pieces if text.startswith(piece)), key=len)
            ids.append(2 + self.pieces.index(piece))
            text = text[len(piece) :]
        return ids


@pytest.mark.parametrize(
    ("context", "text", "scored"),
    [
        ("the", " mill", [" mill"]),
        ("the ", "mill", [" mill"]),  # the space and the word are one token
        ("the mill", "ed", [" milled"]),  # so are the word and its ending
        ("", "the mill", ["the", " mill"]),
        ("the", "", []),
        ("é", "é", ["é"]),  # two bytes
        ("the é", " ", [" "]),
        ("", "", []),
    ],
)
def test_the_continuation_begins_with_the_token_that_holds_its_first_byte(context, text, scored):
    made = continuation(Pieces(), context, text)
    assert made.tokens[0] == Pieces.bos and made.first >= 1
    assert [Pieces.pieces[id - 2] for id in made.tokens[made.first :]] == scored
    sizes, start = Pieces.token_bytes[made.tokens][None], len(context.encode())
    inside = scored_tokens(sizes, [(start, start + len(text.encode()))])[0][0]  # as the protocols choose
    assert np.flatnonzero(inside).tolist() == list(range(made.first, len(made.tokens)))


def test_a_whole_text_is_scored_from_its_first_token_on():
    assert whole(Pieces(), "the") == Text([0, 2], 1) and whole(Pieces(), "") == Text([0], 1)


def test_what_cannot_be_scored_is_refused(params):
    with pytest.raises(ValueError, match="1 window or more, but batch=0"):
        likelihoods(MODEL, params, Letters(), [text_of(5, 1)], None, batch=0)
    with pytest.raises(ValueError, match="config.model.vocabulary: 37 is not a valid id"):
        likelihoods(MODEL, params, Letters(), [Text([0, 37, 3], 1)], None, batch=1)
    with pytest.raises(ValueError, match="Tokens of neighbors, config.model.vocabulary: 99 is not a valid id"):
        likelihoods(MODEL, params, Letters(), [text_of(9, 1)], lambda texts: find(texts) * 0 + 99, batch=1)
    assert likelihoods(MODEL, params, Letters(), [], find, batch=1) == []
