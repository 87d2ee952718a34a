"""Embeddings: one function for keys and queries; a killed stage ends with the bytes of an undisturbed one."""

import dataclasses
import shutil

import made_up_encoder
import made_up_text
import numpy as np
import pytest
from file_contents import contents

import data_pipeline.encoder.stage as embeddings
from data_pipeline.chunks import ChunkTable, build_chunks
from data_pipeline.documents.stage import build_documents
from data_pipeline.encoder.bert import FrozenEncoder
from data_pipeline.encoder.stage import EmbeddingTable, build_embeddings, open_encoder
from data_pipeline.pipeline import describe
from data_pipeline.stages.run import StageError, read_manifest
from data_pipeline.tokens import Tokenizer, build_tokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Seven words a document and up: some 40 chunks of 16 tokens in several shards, with their embeddings."""
    root = tmp_path_factory.mktemp("embeddings")
    text = made_up_text.write_folder(root / "text", documents=6)
    config = made_up_text.config(text, shard_chunks=20)
    made_up_encoder.write(root / "encoder")
    build_documents(root / "documents", config)
    build_tokenizer(root / "tokenizer", config, made_up_text.VOCABULARY, root / "documents")
    build_chunks(root / "chunks", config, 16, root / "documents", root / "tokenizer")
    build(root, config)
    return root, config


def build(root, config, name="embeddings", chunks="chunks", tokenizer="tokenizer", encoder="encoder"):
    return build_embeddings(root / name, config, root / chunks, root / tokenizer, root / encoder)


def test_rows_are_the_chunks_texts(root):
    """Held-out chunks too; padding is removed before decoding, BOS and EOS give no text."""
    root, config = root
    table, vectors, tokenizer = (
        ChunkTable(root / "chunks"),
        EmbeddingTable(root / "embeddings"),
        Tokenizer(root / "tokenizer"),
    )
    assert len(table.shard_rows) > 1 and len(vectors) == len(table) > vectors.database_chunks == table.database_chunks
    dtype = read_manifest(root / "embeddings", "embeddings").config["compute_dtype"]
    encoder = FrozenEncoder(root / "encoder", compute_dtype=dtype)
    texts = [tokenizer.decode([token for token in row if token != -1]) for row in table.tokens[:].tolist()]
    assert np.array_equal(vectors[:], encoder.embed(texts))
    assert vectors.database().shape == (table.database_chunks, made_up_encoder.WIDTH)


def test_a_query_of_a_chunks_text_is_at_distance_zero(root):
    """Guards against queries embedded another way than keys. A query of a stored text has the key's bits."""
    root, _ = root
    table, vectors, tokenizer = (
        ChunkTable(root / "chunks"),
        EmbeddingTable(root / "embeddings"),
        Tokenizer(root / "tokenizer"),
    )
    encoder = open_encoder(root / "embeddings", root / "encoder")
    for row in (0, 7, len(table) - 1):
        tokens = table.tokens[row]
        assert np.array_equal(encoder.embed([tokenizer.decode(tokens[tokens != -1])])[0], vectors[row])


def test_shards_change_no_vector(root):
    root, config = root
    other = dataclasses.replace(config, shard_chunks=1000)
    build_chunks(root / "chunks-whole", other, 16, root / "documents", root / "tokenizer")
    build(root, other, "embeddings-whole", chunks="chunks-whole")
    whole = EmbeddingTable(root / "embeddings-whole")
    assert len(ChunkTable(root / "chunks-whole").shard_rows) < len(ChunkTable(root / "chunks").shard_rows)
    assert np.array_equal(whole[:], EmbeddingTable(root / "embeddings")[:])


def test_killed_anywhere_the_bytes_are_the_same(root, monkeypatch):
    """Guards against a killed stage that ends with other bytes.

    Killed before, in and after writing a shard, then run again.
    """
    root, config = root
    whole = contents(root / "embeddings")
    save = np.save
    for survive in range(3):
        calls = []

        def dying(path, array, survive=survive, calls=calls):
            calls.append(path)
            if len(calls) > survive:
                path.write_bytes(b"half a shard")
                raise KeyboardInterrupt
            save(path, array)

        monkeypatch.setattr(embeddings.np, "save", dying)
        shutil.rmtree(root / "killed", ignore_errors=True)
        with pytest.raises(KeyboardInterrupt):
            build(root, config, "killed")
        monkeypatch.setattr(embeddings.np, "save", save)
        assert not (root / "killed" / "manifest.json").exists()
        build(root, config, "killed")
        assert contents(root / "killed") == whole


def test_float16_halves_the_space(root):
    root, config = root
    build(root, dataclasses.replace(config, embedding_dtype="float16"), "half")
    half, whole = EmbeddingTable(root / "half"), EmbeddingTable(root / "embeddings")
    assert np.load(root / "half" / "embeddings-00000.npy").dtype == np.float16
    assert half[:3].dtype == np.float32
    np.testing.assert_allclose(half[:], whole[:], atol=1e-3)


def test_an_unknown_storage_type(root):
    root, config = root
    with pytest.raises(ValueError, match="embedding_dtype must be float32 or float16, but is 'int8'"):
        build(root, dataclasses.replace(config, embedding_dtype="int8"), "other")


def test_another_tokenizer_is_refused(root):
    """Guards against artifacts of different builds mixed. Nothing is embedded, nothing is written."""
    root, config = root
    build_tokenizer(root / "tokenizer-320", config, 320, root / "documents")
    with pytest.raises(StageError, match="tokenizer .* does not match: found fingerprint"):
        build(root, config, "mixed", tokenizer="tokenizer-320")
    assert not (root / "mixed").exists()


def test_another_encoder_is_refused(root):
    """Guards against artifacts of different builds mixed, by the stage or by a query; existing files stay."""
    root, config = root
    made_up_encoder.write(root / "encoder-b", seed=1)
    before = contents(root / "embeddings")
    with pytest.raises(StageError, match="what differs: config.encoder"):
        build(root, config, encoder="encoder-b")
    with pytest.raises(StageError, match="encoder .* does not match"):
        open_encoder(root / "embeddings", root / "encoder-b")
    assert contents(root / "embeddings") == before


def test_broken_weights(root):
    root, config = root
    tensors = made_up_encoder.weights()
    tensors["embeddings.LayerNorm.bias"] = np.full(made_up_encoder.WIDTH, np.nan, np.float32)
    made_up_encoder.write(root / "encoder-nan", tensors=tensors)
    with pytest.raises(StageError, match="not finite; its weights are broken"):
        build(root, config, "broken", encoder="encoder-nan")


def test_a_chunk_longer_than_the_encoders_positions_loses_nothing(root):
    """Guards against silent truncation at the encoder's last position; the manifest counts chunks in windows."""
    root, config = root
    assert "chunks_in_windows" not in read_manifest(root / "embeddings", "embeddings").counts
    tensors = made_up_encoder.weights()
    name = "embeddings.position_embeddings.weight"
    tensors[name] = tensors[name][:12]
    made_up_encoder.write(root / "encoder-12", config={"max_position_embeddings": 12}, tensors=tensors)
    manifest = build(root, config, "windows", encoder="encoder-12")
    encoder, table = FrozenEncoder(root / "encoder-12"), ChunkTable(root / "chunks")
    tokenizer = Tokenizer(root / "tokenizer")
    texts = [tokenizer.decode(row[row != -1]) for row in table.tokens[:]]
    longer = [len(ids) > 12 for ids in encoder.token_ids(texts)]
    assert 0 < manifest.counts["chunks_in_windows"] == sum(longer)
    assert f"{sum(longer)} chunks longer than the encoder's positions" in describe(
        "embeddings", manifest.counts, manifest.config
    )
    row = longer.index(True)
    assert not np.allclose(encoder.embed([texts[row] + " mill"]), encoder.embed([texts[row]]), atol=1e-4)


def test_an_altered_vector_is_noticed(root):
    """Guards against damaged vectors that are used."""
    root, config = root
    build(root, config, "altered")
    path = root / "altered" / "embeddings-00001.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StageError, match="was altered"):
        EmbeddingTable(root / "altered")


def test_manifest_says_what_made_it(root):
    root, _ = root
    manifest = read_manifest(root / "embeddings", "embeddings")
    dtype = manifest.config["compute_dtype"]
    assert manifest.config["encoder"] == FrozenEncoder(root / "encoder", compute_dtype=dtype).fingerprint
    assert set(manifest.inputs) == {"chunks", "tokenizer"}
    assert manifest.counts["width"] == made_up_encoder.WIDTH
