"""The frozen encoder: the packaged weights give the published cosines, and NumPy gives equal vectors."""

import copy
import json
from pathlib import Path

import made_up_encoder
import made_up_text
import numpy as np
import pytest

import data_pipeline.encoder.bert as bert
from data_pipeline.encoder.bert import FrozenEncoder, encoder_directory, rows_at_once
from data_pipeline.encoder.reference import embed_reference
from data_pipeline.encoder.weights import read_weights
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig

SOURCES = sorted((Path(bert.__file__).parent).glob("*.py"))


@pytest.fixture(scope="module")
def packaged():
    return FrozenEncoder(encoder_directory(DataConfig()))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return FrozenEncoder(made_up_encoder.write(tmp_path_factory.mktemp("encoder")), batch=4)


def real_texts() -> list[str]:
    """Pieces of this project's own English and Python, from a few word pieces to some 170."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    return [text[start : start + size] for start, size in ((0, 20), (40, 240), (900, 300), (2000, 120), (3000, 600))]


def test_published_cosines(packaged):
    vectors = packaged.embed(
        ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    )
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[1:] @ vectors[0], [0.6946, 0.9429, 0.2569], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_agrees_with_plain_numpy_on_real_text(packaged):
    texts, weights = real_texts(), read_weights(packaged.directory, packaged.shape)
    ids = packaged.token_ids(texts)
    assert min(map(len, ids)) < 16 and max(map(len, ids)) > 128
    expected = [embed_reference(weights, row, layers=6, heads=12, normalize=True) for row in ids]
    assert np.abs(packaged.embed(texts) - expected).max() < 1e-5


def test_bfloat16_products_keep_the_direction(packaged):
    """The dtype of a database that was embedded where bfloat16 is faster (`data_pipeline.encoder.dtype`)."""
    fast = FrozenEncoder(packaged.directory, compute_dtype="bfloat16")
    cosines = (fast.embed(real_texts()) * packaged.embed(real_texts())).sum(1)
    assert cosines.min() > 0.9995
    assert fast.fingerprint != packaged.fingerprint


@pytest.mark.parametrize("normalize", [True, False])
def test_every_length_agrees_with_plain_numpy(tmp_path, normalize):
    """Guards against padding that changes a vector: of a text to its program's length, and of a batch to its rows."""
    directory = made_up_encoder.write(tmp_path, normalize=normalize)
    encoder = FrozenEncoder(directory, batch=3)
    texts = ["", "mill", *(" ".join((made_up_text.WORDS * 2)[:count]) for count in (*range(2, 40, 5), 58))]
    weights = read_weights(directory, encoder.shape)
    expected = [
        embed_reference(weights, row, layers=2, heads=4, normalize=normalize) for row in encoder.token_ids(texts)
    ]
    np.testing.assert_allclose(encoder.embed(texts), expected, atol=1e-5)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_a_vector_depends_on_its_text_alone(tmp_path, compute_dtype):
    """Guards against vectors that depend on their batch, to the bit: a killed stage would end with other bytes."""
    encoder = FrozenEncoder(made_up_encoder.write(tmp_path), batch=4, compute_dtype=compute_dtype)
    texts = [made_up_text.text(seed, 2 + seed % 17) for seed in range(30)]
    together = encoder.embed(texts)
    order = np.random.default_rng(0).permutation(30)
    assert np.array_equal(encoder.embed([texts[row] for row in order]), together[order])
    assert np.array_equal(np.concatenate([encoder.embed([text]) for text in texts]), together)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_batches_at_the_same_time_give_what_one_after_the_other_gives(tmp_path, monkeypatch, compute_dtype):
    """Guards against vectors in the rows of other texts, and against a mistake in a thread that nobody hears of."""
    encoder = FrozenEncoder(made_up_encoder.write(tmp_path), batch=2, compute_dtype=compute_dtype)
    texts = [made_up_text.text(seed, 2 + seed % 17) for seed in range(60)]
    found = []
    for count in (1, 3, 16):
        monkeypatch.setattr(bert, "batches_at_once", lambda platform, count=count: count)
        found.append(encoder.embed(texts))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    # 17 batches of one length, the last of them in a thread.
    numbers, compute = iter(range(100)), encoder._compute
    monkeypatch.setattr(encoder, "_compute", lambda *given: 1 / 0 if next(numbers) == 16 else compute(*given))
    with pytest.raises(ZeroDivisionError):
        encoder.embed(["mill"] * 34)


def test_a_cpu_computes_a_batch_a_core(monkeypatch):
    monkeypatch.setattr(bert.os, "sched_getaffinity", lambda process: {0, 3, 5})
    assert bert.batches_at_once("cpu") == 3 and bert.batches_at_once("gpu") == bert.AHEAD
    monkeypatch.setattr(bert.os, "sched_getaffinity", lambda process: set(range(64)))
    assert bert.batches_at_once("cpu") == bert.AHEAD


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_groups_of_rows_give_what_a_batch_gives(tmp_path, monkeypatch, compute_dtype):
    """Guards against rows of a group that is not computed, or computed twice; the last batch of a length is partly empty."""
    encoder = FrozenEncoder(made_up_encoder.write(tmp_path), batch=16, compute_dtype=compute_dtype)
    texts = [" ".join((made_up_text.WORDS * 2)[:count]) for count in [*range(30, 58), *[50] * 17]]
    ids = encoder.token_ids(texts)
    grouped, sizes = encoder.embed(texts), {rows_at_once(16, length, "cpu") for length in map(len, ids)}
    assert sizes == {4, 8}
    assert np.array_equal(encoder.embed(texts[:1])[0], grouped[0])
    monkeypatch.setattr(bert, "rows_at_once", lambda rows, length, platform: rows)
    np.testing.assert_allclose(encoder.embed(texts), grouped, atol=2e-6)


def test_a_group_depends_on_the_padded_length_alone():
    assert [rows_at_once(16, length, "cpu") for length in (12, 16, 20, 32, 64, 128, 256, 512)] == [
        16,
        16,
        8,
        8,
        4,
        2,
        1,
        1,
    ]
    assert [rows_at_once(rows, 64, "cpu") for rows in (1, 3, 6, 7, 512)] == [1, 3, 3, 1, 4]
    assert rows_at_once(16, 512, "tpu") == rows_at_once(16, 12, "gpu") == 16


@pytest.mark.parametrize(
    ("count", "mean", "spread", "most"),
    [(512, 62, 13, 0.12), (8192, 62, 13, 0.06), (512, 14, 3, 0.2), (8192, 14, 3, 0.14)],
)
def test_padding_costs_little(small, count, mean, spread, most):
    """Chunks of 64 and of 16 tokens, in a small set and in half a shard; whole batches of 16 cost 40% in the small set."""
    lengths = np.clip(np.random.default_rng(0).normal(mean, spread, count).round().astype(int), 3, 128)
    encoder = copy.copy(small)
    encoder.batch, encoder._lengths = 16, np.array(bert.LENGTHS)
    assert encoder.computed_pieces([range(length) for length in lengths]) / lengths.sum() - 1 < most


def test_packaged_vector_depends_on_its_text_alone(packaged):
    fast = FrozenEncoder(packaged.directory, compute_dtype="bfloat16")
    texts = [SOURCES[0].name + text for text in real_texts()[1].split("\n")]
    together = fast.embed([*texts, *texts])
    assert np.array_equal(together[: len(texts)], together[len(texts) :])
    assert np.array_equal(fast.embed(texts[::-1]), together[: len(texts)][::-1])


def test_one_tokenization_for_keys_and_queries(small):
    """Guards against keys and queries tokenized differently.

    [CLS] and [SEP] stand around every text; cutting and padding are off.
    """
    classify, separate = made_up_encoder.PIECES.index("[CLS]"), made_up_encoder.PIECES.index("[SEP]")
    texts = ["", "the mill", " ".join(["mill"] * 50), " ".join(["mill"] * 500)]
    ids = small.token_ids(texts)
    assert [len(row) for row in ids] == [2, 4, 52, 502]
    assert all(row[0] == classify and row[-1] == separate and 0 not in row for row in ids)
    assert [small.token_ids([text])[0] for text in texts] == ids


def test_packaged_text_is_not_cut_at_128_pieces(packaged):
    """Guards against a key of only part of a chunk.

    tokenizer.json asks for 128 pieces, padded; a long chunk is embedded in full.
    """
    assert len(packaged.token_ids(["word " * 300])[0]) == 302
    assert len(packaged.token_ids(["word " * 3000])[0]) == 3002


def test_nothing_to_embed(small):
    assert small.embed([]).shape == (0, made_up_encoder.WIDTH)


def test_fingerprint_covers_what_decides_a_vector(tmp_path):
    first = FrozenEncoder(made_up_encoder.write(tmp_path / "a")).fingerprint
    assert FrozenEncoder(made_up_encoder.write(tmp_path / "b")).fingerprint == first
    assert FrozenEncoder(made_up_encoder.write(tmp_path / "c", seed=1)).fingerprint != first
    assert FrozenEncoder(made_up_encoder.write(tmp_path / "d", normalize=False)).fingerprint != first
    path = made_up_encoder.write(tmp_path / "e") / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))
    assert FrozenEncoder(path.parent).fingerprint != first


def test_the_prefix_of_some_directories(tmp_path):
    tensors = {f"bert.{name}": tensor for name, tensor in made_up_encoder.weights().items()}
    plain = FrozenEncoder(made_up_encoder.write(tmp_path / "plain"))
    prefixed = FrozenEncoder(made_up_encoder.write(tmp_path / "prefixed", tensors=tensors))
    assert np.array_equal(plain.embed(["the mill"]), prefixed.embed(["the mill"]))


def short(name, shape):
    return {**made_up_encoder.weights(), name: np.zeros(shape, np.float32)}


def without(name):
    return {key: value for key, value in made_up_encoder.weights().items() if key != name}


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"config": {"model_type": "modernbert"}},
            "model_type 'modernbert'.*one of bert, distilbert, .*Give config.data",
        ),
        ({"config": {"hidden_act": "mish"}}, "hidden_act 'mish'; known are gelu, "),
        ({"config": {"position_embedding_type": "relative_key"}}, "position_embedding_type 'relative_key'"),
        ({"config": {"num_hidden_layers": None}}, "lacks whole positive numbers for num_hidden_layers"),
        ({"config": {"num_attention_heads": 3}}, "hidden_size 16 is not a multiple of num_attention_heads 3"),
        ({"config": {"num_hidden_layers": 3}}, "no tensor encoder.layer.2"),
        ({"tensors": without(QUERY)}, f"no tensor {QUERY}"),
        ({"tensors": short(QUERY, (16, 8))}, r"of shape \(16, 8\), but .*config.json says \(16, 16\)"),
        ({"pooling": {"pooling_mode": "attention"}}, "pools by 'attention'; known are cls, max, mean"),
    ],
)
def test_wrong_directories(tmp_path, changes, message):
    with pytest.raises(StageError, match=message):
        FrozenEncoder(made_up_encoder.write(tmp_path, **changes))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file(tmp_path, name):
    (made_up_encoder.write(tmp_path) / name).unlink()
    with pytest.raises(StageError, match=f"has no {name}.*Give config.data.encoder"):
        FrozenEncoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "truncated or no safetensors file"),
        ("tokenizer.json", "tokenizer.json is cut off"),
        ("config.json", "config.json is cut off"),
    ],
)
def test_a_truncated_file(tmp_path, name, message):
    path = made_up_encoder.write(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StageError, match=message):
        FrozenEncoder(tmp_path)


def test_an_unknown_module(tmp_path):
    path = made_up_encoder.write(tmp_path) / "modules.json"
    path.write_text(
        json.dumps([*json.loads(path.read_text()), {"type": "sentence_transformers.models.Dense", "path": "3"}])
    )
    with pytest.raises(StageError, match="lists Dense .*Dense.*, which is not known"):
        FrozenEncoder(tmp_path)


def test_another_encoder_is_refused(tmp_path, small):
    """Guards against a database searched with vectors of another encoder."""
    other = FrozenEncoder(made_up_encoder.write(tmp_path, seed=1))
    small.require(small.fingerprint, tmp_path)
    with pytest.raises(StageError, match="does not match: found fingerprint .* give config.data.encoder"):
        other.require(small.fingerprint, tmp_path)


@pytest.mark.parametrize(("changes", "message"), [({"batch": 0}, "encoder_batch"), ({"compute_dtype": "int8"}, "int8")])
def test_wrong_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        FrozenEncoder(tmp_path, **changes)
