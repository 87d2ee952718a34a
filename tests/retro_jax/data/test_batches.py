"""Batches: equal on every run, after resuming, and for any number of processes; and the data that is refused."""

import asyncio
import collections
import dataclasses
import itertools
import json
import logging

import jax
import numpy as np
import pytest
from made_up_shards import M, build, made_up

from retro_jax.config import ModelConfig, TrainConfig
from retro_jax.data.batches import (
    Batch,
    make_batch,
    random_neighbors,
    segments,
    sequence_order,
    train_iterator,
    validation_examples,
)

T = 16
MODEL = ModelConfig(vocabulary=100_000, sequence_length=T, chunk_length=M, neighbors=2)
TRAIN = TrainConfig(batch=4, seed=7)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("joined")
    build(directory, *made_up(1, training=30), sequence_length=T)
    return directory


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def keys(batches):
    """A name for each sequence drawn: its tokens."""
    return [row.tobytes() for batch in batches for row in batch.tokens]


def test_segments_number_documents_by_appearance():
    assert segments(np.array([90, 90, 7, 7, 50, -1, -1])).tolist() == [0, 0, 1, 1, 2, -1, -1]
    assert segments(np.array([-1, -1])).tolist() == [-1, -1]


def test_a_batch_holds_what_the_shards_hold(shards):
    examples = validation_examples(shards, MODEL)
    batch = make_batch([examples[0], examples[1]], neighbors=2)
    assert batch.tokens.shape == (2, T) and batch.tokens.dtype == np.int32
    assert batch.loss_mask.shape == (2, T) and batch.loss_mask.dtype == np.float32
    assert batch.segments.shape == (2, T // M) and batch.segments.dtype == np.int32
    assert batch.neighbor_tokens.shape == (2, T // M, 2, 2 * M)
    np.testing.assert_array_equal(batch.neighbor_tokens[1], examples[1]["neighbor_tokens"][:, :2])  # the nearest two
    np.testing.assert_array_equal(batch.targets[0], examples[0]["targets"])
    assert examples[0]["subset"] in ("wiki", "legal") and examples[0]["document_ids"].dtype == np.int64


def test_a_decoder_without_retrieval_reads_no_neighbors(shards):
    model = dataclasses.replace(MODEL, retrieval_layers=())
    assert next(train_iterator(shards, model, TRAIN)).neighbor_tokens.shape == (4, T // M, 0, 2 * M)


def test_order_is_the_same_on_every_start_and_another_with_another_seed(shards):
    first, second = (take(train_iterator(shards, MODEL, TRAIN), 8) for _ in range(2))
    assert equal(first, second)
    other = take(train_iterator(shards, MODEL, dataclasses.replace(TRAIN, seed=8)), 8)
    assert not equal(first, other)


def test_every_pass_draws_each_sequence_once_in_another_order(shards):
    total = len(train_source(shards))
    drawn = keys(take(train_iterator(shards, MODEL, dataclasses.replace(TRAIN, batch=1)), 2 * total))
    once, again = drawn[:total], drawn[total:]
    assert sorted(once) == sorted(again) and len(set(once)) == total
    assert once != again


def train_source(shards):
    from retro_jax.data.batches import open_examples

    return open_examples(shards, "train", MODEL)


@pytest.mark.parametrize("consumed", [0, 1, 5, 23])
def test_resumed_iterator_gives_the_remaining_batches(shards, consumed):
    """Guards against a resumed run that reads other batches. Equal bit for bit, after read-ahead, through JSON."""
    iterator = train_iterator(shards, MODEL, TRAIN)
    take(iterator, consumed)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 12)
    resumed = train_iterator(shards, MODEL, TRAIN)
    take(resumed, 3)  # a state replaces whatever was read
    resumed.set_state(state)
    assert equal(take(resumed, 12), expected)


def test_orbax_saves_and_restores_the_iterator(shards, tmp_path):
    """The protocol that orbax v1 calls."""

    class Created:
        async def await_creation(self):
            from etils import epath

            return epath.Path(tmp_path)

    async def save(iterator):
        await (await iterator.save(Created()))

    async def load(iterator):
        from etils import epath

        await (await iterator.load(epath.Path(tmp_path)))

    iterator = train_iterator(shards, MODEL, TRAIN)
    take(iterator, 4)
    asyncio.run(save(iterator))
    expected = take(iterator, 4)
    resumed = train_iterator(shards, MODEL, TRAIN)
    asyncio.run(load(resumed))
    assert equal(take(resumed, 4), expected)


def test_processes_share_a_batch_and_a_state(shards):
    """Two or four processes read together exactly the rows of one, and one's state resumes another count."""
    whole = take(train_iterator(shards, MODEL, TRAIN), 5)
    for count in (2, 4):
        iterators = [
            train_iterator(shards, MODEL, TRAIN, process_index=index, process_count=count) for index in range(count)
        ]
        parts = [take(iterator, 5) for iterator in iterators]
        joined = [jax.tree.map(lambda *rows: np.concatenate(rows), *step) for step in zip(*parts, strict=True)]
        assert equal(joined, whole)
        assert len({json.dumps(iterator.get_state()) for iterator in iterators}) == 1
    iterators[3].set_state({"next_index": 2})
    assert equal(next(iterators[3]).tokens, whole[2].tokens[3:])
    with pytest.raises(ValueError, match="batch=4 is not a multiple of the 3 processes; take 3"):
        train_iterator(shards, MODEL, TRAIN, process_index=0, process_count=3)


def test_mixture_frequencies_match_the_weights():
    """Guards against subsets drawn at other rates than their weights; weights that sum to 2 are halved."""
    subsets = {"wiki": (0, 5000), "legal": (5000, 5800), "books": (5800, 9000)}
    order = sequence_order(subsets, {"wiki": 0.5, "legal": 1.1, "books": 0.4}, seed=0)
    drawn = [order[k] for k in range(4000)]
    names = [next(n for n, (a, b) in subsets.items() if a <= number < b) for number in drawn]
    share = collections.Counter(names)
    assert [round(share[name] / 4000, 3) for name in subsets] == [0.25, 0.55, 0.2]
    legal = [number for number in drawn if 5000 <= number < 5800]
    first, second = legal[:800], legal[800:1600]
    assert sorted(first) == sorted(second) == list(range(5000, 5800)) and first != second  # each pass whole


def test_weights_are_renormalized_with_a_notice(shards, caplog):
    with caplog.at_level(logging.WARNING):
        train_iterator(shards, MODEL, dataclasses.replace(TRAIN, subset_weights={"wiki": 3.0}))
    assert "sum to 3 and are renormalized; not drawn: legal" in caplog.text
    caplog.clear()
    train_iterator(shards, MODEL, dataclasses.replace(TRAIN, subset_weights={"wiki": 0.25, "legal": 0.75}))
    assert not caplog.text


def test_a_mixture_resumes_too(shards):
    train = dataclasses.replace(TRAIN, subset_weights={"wiki": 0.3, "legal": 0.7})
    iterator = train_iterator(shards, MODEL, train)
    take(iterator, 9)
    state = iterator.get_state()
    resumed = train_iterator(shards, MODEL, train)
    resumed.set_state(state)
    assert equal(take(resumed, 9), take(iterator, 9))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"wikis": 1.0}, "names 'wikis', but the shards hold legal, wiki"),
        ({"wiki": -1.0}, "wiki must be 0 or more, but is -1"),
        ({"wiki": 0.0}, "are all 0"),
    ],
)
def test_weights_that_cannot_be_meant(shards, weights, message):
    with pytest.raises(ValueError, match=message):
        train_iterator(shards, MODEL, dataclasses.replace(TRAIN, subset_weights=weights))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neighbors": 4}, r"neighbors=4, but the shards in .* store 3 neighbors.*neighbors_stored=4"),
        ({"sequence_length": 32}, r"sequence_length=32, but the shards in .* were made with 16"),
        ({"chunk_length": 8}, r"chunk_length=8, but .* were made with 4"),
        ({"vocabulary": 128}, r"vocabulary=128, but .* were made with 100000"),
    ],
)
def test_shards_that_do_not_fit_the_model(shards, change, message):
    """The error has the rule, both numbers and the remedy."""
    with pytest.raises(ValueError, match=message):
        train_iterator(shards, dataclasses.replace(MODEL, **change), TRAIN)


def literal_batch():
    """Two sequences of three chunks; chunk c of sequence b holds neighbors named 10 * b + c; the last is padding."""
    names = np.array([[0, 1, 2], [10, 11, -1]])
    return Batch(
        tokens=np.zeros((2, 3), np.int32),
        targets=np.zeros((2, 3), np.int32),
        loss_mask=np.ones((2, 3), np.float32),
        segments=np.array([[0, 0, 1], [0, 1, -1]], np.int32),
        neighbor_tokens=np.broadcast_to(names[..., None, None], (2, 3, 2, 4)).astype(np.int32),
    )


def test_random_neighbors_are_always_anothers():
    batch = literal_batch()
    seen = set()
    for seed in range(60):
        names = random_neighbors(batch, seed).neighbor_tokens[..., 0, 0]
        assert sorted(names.reshape(-1).tolist()) == [-1, 0, 1, 2, 10, 11]
        assert names[1, 2] == -1  # the padding chunk
        assert (names != batch.neighbor_tokens[..., 0, 0]).sum() == 5
        seen.add(tuple(names.reshape(-1).tolist()))
    assert len(seen) > 12  # of the 24 cycles through five chunks
    assert equal(random_neighbors(batch, 3), random_neighbors(batch, 3))
    np.testing.assert_array_equal(batch.neighbor_tokens, literal_batch().neighbor_tokens)  # the input stays


def test_random_neighbors_of_a_single_chunk_stay():
    batch = dataclasses.replace(literal_batch(), segments=np.array([[0, -1, -1], [-1, -1, -1]], np.int32))
    np.testing.assert_array_equal(random_neighbors(batch, 0).neighbor_tokens, batch.neighbor_tokens)
