"""Sampling: what is drawn, when it retrieves, and that it computes what a whole forward pass computes."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_model import random_parameters, tiny

from retro_jax.config import SampleConfig
from retro_jax.data.joined import windows
from retro_jax.generate.sampling import Predictor, choose, cut_before, keep_top_mass, sample, window_start
from retro_jax.models.retro import merge

MODEL = tiny()  # 6 chunks of 4 tokens
M = MODEL.chunk_length
BOS, EOS = 0, 1
GREEDY = SampleConfig(tokens=20, temperature=0.0)


class Letters:
    """Tokens 2.. are the letters a.. ; what `decode` gives is what a retriever is asked."""

    bos, eos = BOS, EOS

    def encode(self, text):
        return [ord(letter) - ord("a") + 2 for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("a") + token - 2) for token in ids if token > 1)


class MadeUp:
    """Neighbors that are a function of the text asked for; remembers the questions."""

    def __init__(self):
        self.asked = []

    def search(self, text, k):
        self.asked.append(text)
        return 100 * len(self.asked) + np.arange(k), np.arange(k) / 10

    def values(self, ids):
        generator = np.random.default_rng([ord(letter) for letter in self.asked[-1]] or [0])
        return generator.integers(2, MODEL.vocabulary, (len(ids), MODEL.retrieved_length)).astype(np.int32)

    def sources(self, ids):
        return [("letters", f"about {self.asked[-1]}")] * len(ids)


@pytest.fixture(scope="module")
def params():
    params = random_parameters(MODEL)
    params["embedding"] = np.asarray(params["embedding"]).copy()
    params["embedding"][[BOS, EOS]] *= 1e-3  # so that the greedy text neither ends nor begins again
    return params


def teacher_forced(params, tokens, retrieved):
    """Logits of every position by one forward pass over the whole text."""
    padded = np.full((1, MODEL.sequence_length), -1, np.int32)
    padded[0, : len(tokens)] = tokens
    neighbors = np.full((1, MODEL.chunks, MODEL.neighbors, MODEL.retrieved_length), -1, np.int32)
    for place, found in enumerate(retrieved):
        neighbors[0, place] = found.tokens
    segments = np.where(np.arange(MODEL.chunks) * M < len(tokens), 0, -1)[None]
    return np.asarray(forward(params, padded, segments, neighbors))[0, : len(tokens)]


@jax.jit
def forward(params, *batch):
    return merge(MODEL, params)(*batch)


@pytest.mark.parametrize("prompt", ["", "ab", "abc", "abcdefg"])
def test_greedy_decoding_equals_the_teacher_forced_forward_pass(params, prompt):
    """Guards against sampling that differs from the forward pass, for texts ending at any place of a chunk, or neighbors that come late."""
    retriever = MadeUp()
    drawn = sample(MODEL, params, Letters(), prompt, dataclasses.replace(GREEDY, tokens=16), retriever)
    assert len(drawn.tokens) == 1 + len(prompt) + 16 and drawn.tokens[0] == BOS
    logits = teacher_forced(params, drawn.tokens, drawn.retrieved)
    first = len(prompt)
    assert logits[first:-1].argmax(-1).tolist() == drawn.tokens[first + 1 :]
    predict = Predictor(MODEL, params)
    for end in range(1, len(drawn.tokens) + 1):
        one = predict(drawn.tokens[:end], drawn.retrieved[: end // M])
        assert np.allclose(one, logits[end - 1], rtol=1e-4, atol=1e-4), end


def test_retrieval_reaches_what_is_sampled(params):
    """Guards against neighbors without effect. They first matter where the first chunk is full."""
    on = sample(MODEL, params, Letters(), "abc", GREEDY, MadeUp())
    off = sample(MODEL, params, Letters(), "abc", dataclasses.replace(GREEDY, tokens=4), None)
    assert len(on.retrieved) == 5 and off.retrieved == []
    predict = Predictor(MODEL, params)
    assert not np.allclose(predict([0, 2, 3, 4], on.retrieved[:1]), predict([0, 2, 3, 4], []), atol=1e-3)


def test_every_full_chunk_is_asked_once_with_its_own_text(params):
    retriever = MadeUp()
    drawn = sample(MODEL, params, Letters(), "abcdef", dataclasses.replace(GREEDY, tokens=6), retriever)
    assert retriever.asked[0] == "abc" and len(retriever.asked) == 3  # 13 tokens; the last chunk is not full
    for chunk, text in enumerate(retriever.asked):
        assert Letters().decode(drawn.tokens[chunk * M : (chunk + 1) * M]) == text
    assert [found.ids[0] for found in drawn.retrieved] == [100, 200, 300]
    assert [found.sources[0] for found in drawn.retrieved] == [("letters", f"about {text}") for text in retriever.asked]


def test_no_retrieval_is_made_that_nothing_reads(params):
    """The last token fills a chunk: nothing comes after it."""
    retriever = MadeUp()
    sample(MODEL, params, Letters(), "ab", dataclasses.replace(GREEDY, tokens=1), retriever)
    assert retriever.asked == []


def test_window_starts_are_those_of_evaluation():
    """Beyond the sequence length the text is cut as a held-out document is (paper 5.1)."""
    assert [window_start(position, 4, 2) for position in range(16)] == [0] * 8 + [2] * 4 + [4] * 4
    for chunks in (1, 2, 3, 4, 7):
        for length in range(1, 30):
            for first, end, scored in windows(length, chunks):
                for chunk in range(scored, end):
                    assert window_start(chunk * 2, chunks, 2) == window_start(chunk * 2 + 1, chunks, 2) == first


def test_a_prompt_longer_than_a_sequence_slides(params):
    prompt = "abcdefghij" * 4  # 41 tokens with BOS, a sequence holds 24
    retriever = MadeUp()
    drawn = sample(MODEL, params, Letters(), prompt, dataclasses.replace(GREEDY, tokens=9), retriever)
    assert len(drawn.tokens) == 50 and len(drawn.retrieved) == 12
    start = window_start(48, MODEL.chunks, M)
    window = drawn.tokens[start * M : 49]
    logits = teacher_forced(params, window, drawn.retrieved[start:12])
    assert logits[-1].argmax() == drawn.tokens[49]


def test_eos_ends_the_text(params):
    params = {**params, "embedding": np.asarray(params["embedding"]).copy()}
    bits = Predictor(MODEL, params)([0, 2], [])
    params["embedding"][EOS] = 3 * params["embedding"][int(bits.argmax())]  # now EOS is likelier still
    drawn = sample(MODEL, params, Letters(), "a", GREEDY, None)
    assert drawn.continuation == "" and drawn.tokens == [0, 2]


def test_top_p_keeps_the_mass_p():
    """Guards against top-p inverted. The likeliest tokens with at least p together stay, the others go."""
    probabilities = np.array([0.05, 0.5, 0.15, 0.3])
    assert np.allclose(keep_top_mass(probabilities, 0.5), [0, 1, 0, 0])
    assert np.allclose(keep_top_mass(probabilities, 0.7), [0, 0.625, 0, 0.375])
    assert np.allclose(keep_top_mass(probabilities, 0.81), [0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95])
    assert np.allclose(keep_top_mass(probabilities, 1.0), probabilities)
    assert np.allclose(keep_top_mass(probabilities, 1e-6), [0, 1, 0, 0])  # never empty


def test_kept_mass_is_at_least_p_and_minimal():
    generator = np.random.default_rng(0)
    for top_p in (0.1, 0.5, 0.9, 0.99):
        probabilities = generator.dirichlet(np.full(50, 0.3))
        kept = keep_top_mass(probabilities, top_p) > 0
        assert probabilities[kept].sum() >= top_p > probabilities[kept].sum() - probabilities[kept].min()
        assert probabilities[kept].min() >= probabilities[~kept].max()


def test_temperature_scales_logits_before_the_softmax():
    logits = np.log(np.array([0.2, 0.8]))
    drawn = [choose(logits, 0.5, 1.0, np.random.default_rng(seed)) for seed in range(3000)]
    assert np.isclose(np.mean(drawn), 0.64 / 0.68, atol=0.015)  # squared and renormalized
    assert choose(logits, 0.0, 1.0, np.random.default_rng(0)) == 1


def test_the_same_seed_gives_the_same_text(params):
    settings = SampleConfig(tokens=10, temperature=2.0, top_p=0.9, seed=4)
    one, other = (sample(MODEL, params, Letters(), "ab", settings, MadeUp()) for _ in range(2))
    assert one.tokens == other.tokens
    assert sample(MODEL, params, Letters(), "ab", dataclasses.replace(settings, seed=5), MadeUp()).tokens != one.tokens


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tokens": 0}, "tokens=0"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"top_p": 0.0}, "top_p=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_settings_that_cannot_be_meant(changes, words):
    with pytest.raises(ValueError, match=f"config.sample.{words}"):
        sample(MODEL, {}, Letters(), "", dataclasses.replace(GREEDY, **changes), None)


def test_sampling_stops_with_the_first_of_the_given_strings(params):
    """The string may span tokens; what stands before it is returned, and nothing is drawn behind it."""
    free = sample(MODEL, params, Letters(), "abc", dataclasses.replace(GREEDY, tokens=12), MadeUp())
    stop = free.continuation[4:6]
    end = free.continuation.index(stop)
    drawn = sample(
        MODEL, params, Letters(), "abc", dataclasses.replace(GREEDY, tokens=12), MadeUp(), until=("??", stop)
    )
    assert drawn.continuation == free.continuation[:end]
    assert drawn.tokens == free.tokens[: 4 + end + len(stop)]
    assert cut_before("abcabc", ("c", "b")) == "a" and cut_before("abc", ()) == "abc" == cut_before("abc", ("d",))
