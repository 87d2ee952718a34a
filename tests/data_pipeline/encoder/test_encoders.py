"""Encoders of many kinds: the library's vectors to 1e-5, or a refusal that names the setting.

tests/fixtures/golden/encoders holds tiny directories with the vectors of sentence-transformers, made by tests/fixtures/make_encoders.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import made_up_encoder
import make_encoders
import numpy as np
import pytest
from places import FIXTURES
from safetensors.numpy import load_file, save_file

import data_pipeline.encoder.bert as bert
from data_pipeline.encoder.bert import FrozenEncoder, check_encoder
from data_pipeline.encoder.reference import embed_reference
from data_pipeline.encoder.weights import read_weights
from data_pipeline.stages.run import StageError

GOLDEN = FIXTURES / "golden" / "encoders"
KINDS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def change(path: Path, **changes) -> None:
    make_encoders.change_json(path, **changes)


@pytest.fixture
def directory(tmp_path):
    return made_up_encoder.write(tmp_path / "encoder")


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_the_librarys(kind, monkeypatch):
    monkeypatch.setattr(bert, "LENGTHS", (128,))  # one program a kind
    encoder = FrozenEncoder(GOLDEN / kind)
    expected = np.load(GOLDEN / kind / "vectors.npy")
    assert encoder.width == expected.shape[1]
    assert np.abs(encoder.embed(make_encoders.TEXTS) - expected).max() < 1e-5


@pytest.mark.encoders
def test_vectors_are_those_of_the_library_installed(tmp_path):
    """As above with new directories. The library runs in a process of its own: two frameworks share no threads."""
    program = Path(make_encoders.__file__)
    subprocess.run(
        [sys.executable, "-W", "ignore", program, tmp_path], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    for folder in sorted(path for path in tmp_path.iterdir() if path.is_dir()):
        expected = np.load(folder / "vectors.npy")
        assert np.abs(FrozenEncoder(folder).embed(make_encoders.TEXTS) - expected).max() < 1e-5, folder.name


def test_a_setting_that_decides_a_vector_is_in_the_fingerprint(directory):
    """Changes settings one at a time, each with the files that go with it; a setting without effect changes nothing."""
    seen = [FrozenEncoder(directory).fingerprint]
    for name, changes in (
        ("tokenizer_config.json", {"do_lower_case": False}),
        ("tokenizer_config.json", {"do_lower_case": True, "strip_accents": True}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("config_sentence_transformers.json", {"prompts": {"p": "past: "}, "default_prompt_name": "p"}),
        ("config_sentence_transformers.json", {"prompts": {"p": "on: "}}),
        ("config_sentence_transformers.json", {"truncate_dim": 8}),
    ):
        change(directory / name, **changes)
        seen.append(FrozenEncoder(directory).fingerprint)
    assert len(set(seen)) == len(seen)
    change(directory / "config_sentence_transformers.json", __version__={}, similarity_fn_name="dot")
    change(directory / "sentence_bert_config.json", max_seq_length=7)
    assert FrozenEncoder(directory).fingerprint == seen[-1]


def test_the_parts_of_sharded_weights_are_in_the_fingerprint(tmp_path):
    directory = made_up_encoder.write(tmp_path)
    whole = FrozenEncoder(directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: tensors[name] for name in own}, directory / part)
    index = {name: part for part, own in parts.items() for name in own}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    sharded = FrozenEncoder(directory)
    assert np.array_equal(whole.embed(["the mill"]), sharded.embed(["the mill"]))
    save_file({name: tensors[name] + 1 for name in parts["b.safetensors"]}, directory / "b.safetensors")
    assert FrozenEncoder(directory).fingerprint != sharded.fingerprint
    (directory / "b.safetensors").unlink()
    with pytest.raises(StageError, match="lists b.safetensors, which is missing"):
        FrozenEncoder(directory)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_long_text_is_pooled_over_windows(tmp_path, normalize):
    """Guards against truncation: the vector is the mean over the tokens of windows of nearly one length."""
    directory = made_up_encoder.write(tmp_path, normalize=normalize)
    encoder = FrozenEncoder(directory, batch=3)
    texts = ["mill river " * count for count in (29, 30, 59)]
    weights, vectors = read_weights(directory, encoder.shape), encoder.embed(texts)
    for text, vector in zip(texts, vectors, strict=True):
        (ids,) = encoder.token_ids([text])
        windows = np.array_split(ids[1:-1], -(-(len(ids) - 2) // (made_up_encoder.POSITIONS - 2)))
        windows = [[ids[0], *window, ids[-1]] for window in windows]
        means = [embed_reference(weights, window, layers=2, heads=4, normalize=False) for window in windows]
        expected = np.average(means, axis=0, weights=[len(window) for window in windows])
        expected = expected / np.linalg.norm(expected) if normalize else expected
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert np.array_equal(encoder.embed(texts[::-1]), vectors[::-1])


def test_ids_that_the_model_has_no_vector_for(directory):
    """Guards against tokens added to the tokenizer alone, which would all read the last row of the table."""
    path = directory / "tokenizer.json"
    facts = json.loads(path.read_text())
    rows = len(made_up_encoder.PIECES)
    added = [{**facts["added_tokens"][0], "id": rows + n, "content": f"term{n}", "special": False} for n in range(3)]
    change(path, added_tokens=[*facts["added_tokens"], *added])
    with pytest.raises(
        StageError, match=rf"ids up to {rows + 2} \('term2'\), but the model has vectors for {rows} .*3 tok"
    ):
        check_encoder(directory)


def remove(name):
    return lambda directory: (directory / name).unlink()


def changed(name, **changes):
    return lambda directory: change(directory / name, **changes)


def part_of_tomorrow(directory):
    change(directory / "tokenizer.json", pre_tokenizer={"type": "BertPreTokenizerOfTomorrow"})
    change(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def modules(*kinds, package="sentence_transformers.models"):
    parts = [{"type": f"{package}.{kind}", "path": "1_Pooling" if kind == "Pooling" else ""} for kind in kinds]
    return lambda directory: (directory / "modules.json").write_text(json.dumps(parts))


def pickle_alone(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


PROMPT = {"prompts": {"p": "past: "}, "default_prompt_name": "p"}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (changed("config.json", is_decoder=True), "is_decoder True, but only False"),
        (changed("config.json", add_cross_attention=True), "add_cross_attention True"),
        (changed("config.json", pruned_heads={"1": [0]}), "pruned_heads"),
        (changed("config.json", quantization_config={"bits": 4}), "quantization_config"),
        (changed("config.json", auto_map={"AutoModel": "own.Model"}), "code of its own .*'own.Model'"),
        (changed("config.json", model_type="nomic_bert"), "model_type 'nomic_bert'"),
        (changed("config.json", position_embedding_type="alibi"), "position_embedding_type 'alibi'"),
        (changed("config.json", tokenizer_class="BertJapaneseTokenizer"), "tokenizer_class 'BertJapaneseTokenizer'"),
        (changed("adapter_config.json", r=8), "adapter_config.json changes the weights"),
        (pickle_alone, "pytorch_model.bin alone, a pickle.*save_pretrained"),
        (part_of_tomorrow, r"tokenizer.json cannot be read by tokenizers \d+.*another release"),
        (changed("tokenizer.json", model={"type": "Unigram"}), "is of the kind 'Unigram', but the class BertTokenizer"),
        (
            changed("tokenizer_config.json", sep_token="</s>"),
            r"puts \['\[CLS\]', '\[SEP\]'\] around a text, but the class",
        ),
        (changed("tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B", None]}), "code of its own"),
        (
            changed("tokenizer_config.json", added_tokens_decoder={"7": {"content": "new"}}),
            "adds the token 'new' with id 7",
        ),
        (changed("added_tokens.json", new=7), "added_tokens.json adds the token 'new'"),
        (modules("Transformer", "Pooling", "Dense"), "lists Dense"),
        (modules("Transformer", "Pooling", package="own_code"), r"lists Transformer \(own_code.Transformer\)"),
        (
            modules("Transformer", "Normalize", "Pooling"),
            "lists Transformer, Normalize, Pooling, but the encoder must be",
        ),
        (modules(), "lists no module"),
        (changed("1_Pooling/config.json", include_prompt=False, x=0), "has x 0"),
        (changed("1_Pooling/config.json", pooling_mode=["mean", "sum"]), r"pools by \['mean', 'sum'\]"),
        (
            changed("1_Pooling/config.json", embedding_dimension=3),
            "embedding_dimension 3, but config.json has hidden_size",
        ),
        (changed("sentence_bert_config.json", query_expansion={"length": 9}), "query_expansion"),
        (changed("sentence_bert_config.json", transformer_task="fill-mask"), "transformer_task 'fill-mask'"),
        (
            changed("sentence_bert_config.json", tokenizer_args={"do_lower_case": True}),
            "tokenizer_args {'do_lower_case'",
        ),
        (
            changed("config_sentence_transformers.json", default_prompt_name="q", prompts={"p": ""}),
            "default_prompt_name 'q'",
        ),
        (changed("config_sentence_transformers.json", model_type="SparseEncoder"), "model_type 'SparseEncoder'"),
        (changed("2_Normalize/config.json", module_input_name="token_embeddings"), "token_embeddings"),
    ],
)
def test_what_is_not_known_is_refused_by_name(directory, mistake, message):
    mistake(directory)
    with pytest.raises(StageError, match=message):
        check_encoder(directory)


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "x", ["x"], [[]], {"x": 1}], ids=repr)
def test_a_value_of_another_kind_is_no_traceback(directory, value):
    """Any value under a key is ignored as if missing, or refused with a message."""
    for name, keys in (
        ("config.json", ("model_type", "hidden_act", "layer_norm_eps", "auto_map", "vocab_size", "pruned_heads")),
        ("tokenizer.json", ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")),
        (
            "tokenizer_config.json",
            ("added_tokens_decoder", "do_lower_case", "cls_token", "tokenizer_class", "auto_map"),
        ),
        ("sentence_bert_config.json", ("do_lower_case", "model_args", "modality_config", "max_seq_length")),
        ("config_sentence_transformers.json", ("prompts", "default_prompt_name", "truncate_dim", "model_type")),
        ("1_Pooling/config.json", ("pooling_mode", "embedding_dimension", "include_prompt")),
        ("model.safetensors.index.json", ("weight_map",)),
    ):
        path = directory / name
        before = path.read_text() if path.exists() else None
        for key in keys:
            change(path, **{key: value})
            try:
                check_encoder(directory)
            except StageError as error:
                assert path.name.split(".")[0] in str(error), (name, key)
            path.unlink() if before is None else path.write_text(before)


def test_a_prompt_that_is_not_pooled_is_refused(directory):
    change(directory / "1_Pooling/config.json", include_prompt=False)
    check_encoder(directory)  # without a prompt it means nothing
    change(directory / "config_sentence_transformers.json", **PROMPT)
    with pytest.raises(StageError, match="include_prompt false: the default prompt 'past: '"):
        check_encoder(directory)


def test_no_word_of_a_padding_file_reaches_a_vector(directory):
    """Sides of padding and truncation, and limits of length, change nothing: neither is applied here."""
    before = FrozenEncoder(directory).embed(["the mill", "mill " * 40])
    for side in ("padding_side", "truncation_side"):
        change(directory / "tokenizer_config.json", **{side: "left", "model_max_length": 5})
    change(directory / "sentence_bert_config.json", max_seq_length=5, do_lower_case=False)
    assert np.array_equal(FrozenEncoder(directory).embed(["the mill", "mill " * 40]), before)
