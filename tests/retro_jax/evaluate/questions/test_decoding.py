"""Greedy decoding in batches against a loop that runs the reference, or the plain model, once a token and a question."""

import numpy as np
import pytest
from made_up_questions import NEWLINE, Questions
from one_device import one_device
from tiny_model import compiled, random_parameters, tiny

from retro_jax.config import MeshConfig
from retro_jax.evaluate.questions.conditions import QUESTION_CONDITIONS, another, with_fewer
from retro_jax.evaluate.questions.decoding import Decoder
from retro_jax.evaluate.questions.scoring import QuestionTask, answer_block, answer_texts
from retro_jax.models import reference
from retro_jax.models.retro import layer_parameters
from retro_jax.parallel.sharding import make_mesh

MODEL = tiny(vocabulary=12)
PARAMS = random_parameters(MODEL)
PARAMS["embedding"] = PARAMS["embedding"] / 20  # else the readout repeats each token, whatever was read
LIMIT = 6
QUESTIONS = Questions(MODEL, [3, 4, 1, 6, 2, 4, 9, 3], stops=(2, NEWLINE, 7, 10))


def task(**changes):
    facts = {
        "questions": QUESTIONS,
        "k": 2,
        "batch": 3,
        "limit": LIMIT,
        "seed": 5,
        "models": {"retro": {}, "baseline": {}},
    }
    return QuestionTask(**(facts | changes))


def slow(next_logits, number, passages, least=0) -> list[int]:
    """One question, token by token: the sequence is laid out again for each token, in as few chunks as hold it, or `least`."""
    prompt, m = QUESTIONS.rows[number], MODEL.chunk_length
    answer = []
    while len(answer) < LIMIT:
        tokens = np.concatenate([prompt, np.array(answer, np.int32)])
        chunks = max(least, -(-len(tokens) // m))
        padded = np.full(chunks * m, -1, np.int32)
        padded[: len(tokens)] = tokens
        neighbors = None
        if passages is not None:
            neighbors = np.full((chunks, *passages.shape), -1, np.int32)
            neighbors[len(prompt) // m - 1] = passages
        answer.append(int(np.argmax(next_logits(padded, np.zeros(chunks, np.int32), neighbors)[len(tokens) - 1])))
        if QUESTIONS.stops[answer[-1]]:
            break
    return answer


def by_reference(tokens, segments, neighbors):
    return reference.logits(layer_parameters(MODEL, PARAMS), tokens, segments, neighbors, MODEL.chunk_length)


def by_model(tokens, segments, neighbors):
    call = compiled(MODEL, on=neighbors is not None)
    return np.asarray(call(PARAMS, tokens[None], segments[None], None if neighbors is None else neighbors[None]))[0]


def read(row) -> list[int]:
    return row[row >= 0].tolist()


def seen(name, number):
    others = another(len(QUESTIONS), 5)
    return {"on": QUESTIONS.table[number], "random": QUESTIONS.table[others[number]], "off": None}.get(
        name, np.full_like(QUESTIONS.table[number], -1)
    )


@pytest.fixture(scope="module")
def decoder():
    return Decoder(MODEL, PARAMS, QUESTIONS.stops, LIMIT, one_device())


@pytest.mark.parametrize("name", ["on", "off", "random", "empty"])
def test_batches_give_what_a_loop_a_question_gives(decoder, name):
    """Prompts of one to three chunks; guards against a wrong column, a missed stop, passages of another question."""
    answers = answer_block(task(), QUESTION_CONDITIONS[name], decoder, 0, len(QUESTIONS))
    for number, row in enumerate(answers):
        assert read(row) == slow(by_model, number, seen(name, number), 5), number
        if number == 0:
            assert read(row) == slow(by_reference, number, seen(name, number))
        assert (row[len(read(row)) :] == -1).all()
    stopped = [bool(QUESTIONS.stops[read(row)[-1]]) for row in answers]
    assert name != "on" or (any(stopped) and not all(stopped))


def test_parts_batches_and_fewer_passages_agree(decoder):
    on = QUESTION_CONDITIONS["on"]
    whole = answer_block(task(), on, decoder, 0, len(QUESTIONS))
    np.testing.assert_array_equal(answer_block(task(batch=1), on, decoder, 2, 5), whole[2:5])
    (one,) = with_fewer((1,))
    first = answer_block(task(), one, decoder, 0, 2)
    assert [read(row) for row in first] == [slow(by_model, number, QUESTIONS.table[number][:1], 5) for number in (0, 1)]


def test_a_mesh_gives_the_answers_of_one_device(decoder):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = Decoder(MODEL, PARAMS, QUESTIONS.stops, LIMIT, mesh)
    on = QUESTION_CONDITIONS["on"]
    expected = answer_block(task(), on, decoder, 0, len(QUESTIONS))
    np.testing.assert_array_equal(answer_block(task(batch=4), on, sharded, 0, len(QUESTIONS)), expected)


def test_every_question_gets_the_passages_of_another():
    for count in (2, 3, 50):
        others = another(count, 1)
        assert sorted(others) == list(range(count)) and (others != np.arange(count)).all()


def test_an_answer_ends_before_a_line_end():
    rows = np.array([[5, 6, 2, -1], [7, NEWLINE, -1, -1], [NEWLINE, -1, -1, -1], [5, 6, 7, 8]])
    assert answer_texts(QUESTIONS, rows) == ["5 6", "7", "", "5 6 7 8"]


def test_a_tokenizer_of_another_size_is_refused():
    with pytest.raises(ValueError, match="config.model.vocabulary=12, but the tokenizer has 5"):
        Decoder(MODEL, PARAMS, QUESTIONS.stops[:5], LIMIT, one_device())
