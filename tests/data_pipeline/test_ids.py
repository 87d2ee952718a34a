"""Ids beyond a table are refused on the host: JAX would read the nearest row, NumPy wrap around."""

import dataclasses
import json

import made_up_shards
import numpy as np
import pytest
from tiny_model import TINY, random_parameters

from data_pipeline.joined import build_joined
from retro_jax.config import ModelConfig, TrainConfig
from retro_jax.core.dimensions import check_ids
from retro_jax.core.files import read_json
from retro_jax.data.batches import open_examples, train_iterator
from retro_jax.generate.sampling import Predictor, Retrieved

MODEL = ModelConfig(vocabulary=100_000, sequence_length=16, chunk_length=made_up_shards.M, neighbors=2)


def test_the_rule():
    check_ids("ids", np.array([-1, 0, 6]), 7)
    check_ids("ids", np.zeros((0, 3), int), 0)
    for wrong in (7, -2):
        with pytest.raises(
            ValueError, match=f"ids of here: {wrong} is not a valid id; ids run from 0 to 6 .*Correct it"
        ):
            check_ids("ids of here", np.array([[0, wrong]]), 7, "Correct it.")


def joined(directory, vocabulary=100_000):
    table, neighbors = made_up_shards.made_up()
    build_joined(
        directory,
        table,
        neighbors,
        sequence_length=16,
        vocabulary=vocabulary,
        shard_sequences=3,
        inputs={"chunks": "c"},
    )
    return directory


def test_joined_shards_are_not_made_from_chunks_of_a_larger_vocabulary(tmp_path):
    with pytest.raises(
        ValueError, match=r"Tokens of the chunks for retro_joined-train.* is not a valid id.*vocabulary"
    ):
        joined(tmp_path, vocabulary=5_000)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Intact shards whose manifest states a smaller vocabulary than their tokens have, as another program may write them."""
    directory = joined(tmp_path_factory.mktemp("joined"))
    path = directory / "manifest.json"
    facts = read_json(path, "")
    facts["config"]["vocabulary"] = 5_000
    path.write_text(json.dumps(facts))
    return directory


def test_a_token_of_joined_shards_beyond_the_models_vocabulary(shards):
    """Guards against training on the last row of the embedding: errors name shard, sequence and token."""
    model = dataclasses.replace(MODEL, vocabulary=5_000)
    message = r"{}, {} sequence \d+, .*config.model.vocabulary: \d+ is not a valid id; ids run from 0 to 4999"
    examples = open_examples(shards, "validation", model)
    with pytest.raises(ValueError, match=message.format(shards, "validation")):
        examples.__getitems__(list(range(len(examples))))
    with pytest.raises(ValueError, match=message.format(shards, "train")):
        iterator = train_iterator(shards, model, TrainConfig(batch=8), process_index=0, process_count=1)
        for _ in range(4):
            next(iterator)


def test_a_manifest_that_counts_sequences_that_are_not_there(tmp_path):
    path = joined(tmp_path) / "manifest.json"
    facts = read_json(path, "")
    facts["counts"]["subsets"]["train"]["wiki"][1] += 100
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"Sequences of .*, train in its manifest.json: \d+ is not a valid id"):
        open_examples(tmp_path, "train", MODEL)


def test_a_token_beyond_the_models_vocabulary_is_not_sampled_from():
    predict = Predictor(TINY, random_parameters(TINY))
    with pytest.raises(ValueError, match=f"Tokens of the text, .*{TINY.vocabulary} is not a valid id"):
        predict([1, TINY.vocabulary], [])
    width = (TINY.neighbors, TINY.retrieved_length)
    found = Retrieved(np.zeros(1, int), np.zeros(1), np.full(width, TINY.vocabulary + 3), [])
    with pytest.raises(ValueError, match=f"Tokens of neighbors, .*{TINY.vocabulary + 3} is not a valid id"):
        predict([1] * TINY.chunk_length, [found])
