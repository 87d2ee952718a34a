"""Where a question stands: its answer's first token is predicted at the end of the prompt, from its passages alone."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_model import compiled, random_parameters, tiny

from retro_jax.evaluate.questions.layout import answer_text, example, passage_row, passage_text, prompt_row, prompt_text
from retro_jax.models import reference
from retro_jax.models.retro import layer_parameters

MODEL = tiny()  # chunks of 4 tokens, 2 neighbors of 8
M, R, EOS = MODEL.chunk_length, MODEL.retrieved_length, 2
PARAMS = random_parameters(MODEL)
PASSAGES = np.random.default_rng(0).integers(3, MODEL.vocabulary, (2, R)).astype(np.int32)


def test_the_texts_are_those_of_the_paper():
    assert prompt_text("who is there") == "question: who is there \n answer:"
    assert answer_text("the lamp") == " the lamp"
    assert passage_text("Lamp", "It burns.") == "title: Lamp, source: It burns."


def test_a_prompt_ends_its_chunk_and_a_passage_is_cut_or_padded():
    assert prompt_row([5, 6, 7], 4).tolist() == [-1, 5, 6, 7]
    assert prompt_row([5, 6, 7, 8], 4).tolist() == [5, 6, 7, 8]
    assert prompt_row([5, 6, 7, 8, 9], 4).tolist() == [-1, -1, -1, 5, 6, 7, 8, 9]
    assert passage_row([5, 6], 3).tolist() == [5, 6, -1] and passage_row([5, 6, 7, 8], 3).tolist() == [5, 6, 7]


def test_an_example_in_full():
    made = example(prompt_row([1, 5, 6], M), [7, 8], EOS, PASSAGES, M, 3)
    assert made.tokens.tolist() == [-1, 1, 5, 6, 7, 8, 2, -1, -1, -1, -1, -1]
    assert made.targets.tolist() == [-1, -1, -1, 7, 8, 2, -1, -1, -1, -1, -1, -1]
    assert made.loss_mask.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert made.chunks == 2
    np.testing.assert_array_equal(made.neighbor_tokens[0], PASSAGES)
    assert (made.neighbor_tokens[1:] == -1).all()
    longer = example(prompt_row([1, 5, 6, 7, 8], M), [9], EOS, PASSAGES, M, 3)
    np.testing.assert_array_equal(longer.neighbor_tokens[1], PASSAGES)
    assert (longer.neighbor_tokens[[0, 2]] == -1).all()


def test_an_answer_that_fills_the_sequence_still_predicts_its_end():
    made = example(prompt_row([1, 5], M), [7, 8, 9, 10], EOS, PASSAGES, M, 2)
    assert made.tokens.tolist() == [-1, -1, 1, 5, 7, 8, 9, 10] and made.targets[-1] == EOS and made.chunks == 2
    assert example(prompt_row([1, 5], M), [7, 8, 9, 10, 11], EOS, PASSAGES, M, 2) is None


def logits(prompt, answer, passages):
    made = example(prompt, answer, EOS, PASSAGES if passages is None else passages, M, 3)
    segments = np.where(np.arange(3) < made.chunks, 0, -1).astype(np.int32)
    inputs = made.tokens[None], segments[None]
    found = compiled(MODEL, on=passages is not None)(PARAMS, *inputs, made.neighbor_tokens[None])
    on = made.neighbor_tokens if passages is not None else None
    expected = reference.logits(layer_parameters(MODEL, PARAMS), made.tokens, segments, on, M)
    real = made.tokens >= 0
    np.testing.assert_allclose(np.asarray(found)[0][real], expected[real], atol=2e-4)
    return np.asarray(found)[0]


def changed(one, other) -> list[int]:
    return np.flatnonzero(np.abs(one - other).max(axis=1) > 1e-3).tolist()


def test_the_first_token_of_the_answer_is_the_first_that_reads_the_passages():
    """Guards against an answer that begins a chunk too early or late, or passages at another chunk."""
    prompt, answer = prompt_row([1, 5, 6], M), [7, 8, 9]
    others = PASSAGES[:, ::-1].copy()
    first, second = logits(prompt, answer, PASSAGES), logits(prompt, answer, others)
    made = example(prompt, answer, EOS, PASSAGES, M, 3)
    used = np.flatnonzero(made.tokens >= 0)
    assert [place for place in changed(first, second) if place in used] == [3, 4, 5, 6, 7]
    assert np.flatnonzero(made.loss_mask)[0] == 3 == len(prompt) - 1


def test_off_ignores_the_passages_and_missing_ones_are_off():
    prompt, answer = prompt_row([1, 5, 6], M), [7, 8]
    off = logits(prompt, answer, None)
    missing = logits(prompt, answer, np.full_like(PASSAGES, -1))
    np.testing.assert_allclose(missing[1:6], off[1:6], atol=1e-5)
    assert changed(logits(prompt, answer, PASSAGES)[1:6], off[1:6])


@pytest.mark.parametrize("on", [True, False])
def test_left_padding_changes_no_logit(on):
    """A prompt of 4 tokens, with no padding, and the same behind a whole chunk of padding and more."""
    prompt = np.array([1, 5, 6, 7], np.int32)
    plain = logits(prompt, [8, 9], PASSAGES if on else None)
    moved = np.concatenate([np.full(M, -1, np.int32), prompt])
    padded = logits(moved, [8, 9], PASSAGES if on else None)
    np.testing.assert_allclose(padded[M : M + 6], plain[:6], atol=1e-5)


def test_left_padding_within_the_chunk_is_as_if_it_were_not_there():
    """Off, the same tokens at the beginning of a sequence: positions are relative, so only what is seen counts."""
    off = replace(MODEL, retrieval_layers=())
    params = {key: value for key, value in PARAMS.items() if key not in ("encoder", "cross_attention")}
    segments = np.zeros((1, 2), np.int32)
    left = np.array([[-1, -1, 1, 5, 6, 7, -1, -1]], np.int32)
    right = np.array([[1, 5, 6, 7, -1, -1, -1, -1]], np.int32)
    one, other = (np.asarray(compiled(off, on=False)(params, rows, segments))[0] for rows in (left, right))
    np.testing.assert_allclose(one[2:6], other[:4], atol=1e-5)
