"""A byte-level tokenizer.json is read as a SentencePiece model is: it loses no byte, and its stage is the same wherever it lay."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_tokenizer import MERGES, SPECIAL, VOCABULARY, facts, write_tokenizer

from data_pipeline.stages.run import StageError
from data_pipeline.tokens import Tokenizer, build_tokenizer, model_file, read_given
from retro_jax.config import DataConfig

TEXTS = [
    "",
    " the inn  at\tthe end\n\n",
    "\u00e9 e\u0301 \ufb01",  # NFC would join the second letter and its accent
    "\u2581 \U0001f600 \x00\x7f",
    "<|im_end|> is text here, and <|endoftext|>the",
]


def stage(directory, path, vocabulary=VOCABULARY):
    build_tokenizer(directory, DataConfig(tokenizer=str(path)), vocabulary, directory)
    return Tokenizer(directory)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    root = tmp_path_factory.mktemp("given")
    return stage(root / "data" / "tokenizer", write_tokenizer(root / "model"))


@pytest.mark.parametrize("text", TEXTS)
def test_text_returns_and_the_bytes_of_its_tokens_add_up(tokenizer, text):
    """Guards against normalization, a space before the text, special tokens found in it, and characters counted as bytes."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert not {tokenizer.bos, tokenizer.eos} & set(ids)


@settings(deadline=None, max_examples=60)
@given(text=st.text())
def test_every_text_returns(tokenizer, text):
    text = text.encode("utf-8", errors="replace").decode()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_pieces_are_those_of_the_file(tokenizer):
    """The merges are used, a piece's letters are bytes, and special tokens stand for none."""
    assert tokenizer.decode([VOCABULARY - len(MERGES) + 2]) == " the"
    assert tokenizer.encode(" the") == [VOCABULARY - len(MERGES) + 2]
    assert (tokenizer.bos, tokenizer.eos) == (1, 2)
    assert tokenizer.token_bytes[: len(SPECIAL)].tolist() == [0, 0, 0] and tokenizer.token_bytes[3:].min() == 1
    assert tokenizer.encode_all(["in", " a"]) == [tokenizer.encode("in"), tokenizer.encode(" a")]


def test_the_stage_is_the_same_from_a_model_and_from_another_build(tokenizer, tmp_path):
    """Guards against a fingerprint that depends on where the special tokens are named: a build with an imported model's

    tokenizer must fit that model."""
    again = stage(tmp_path / "again", model_file(tokenizer.directory.parent))
    assert again.fingerprint == tokenizer.fingerprint
    other = write_tokenizer(tmp_path / "other", {"bos_token": SPECIAL[0], "eos_token": SPECIAL[0]})
    assert stage(tmp_path / "others", other).fingerprint != tokenizer.fingerprint


def test_rows_without_a_token_are_never_given(tmp_path):
    """A model's vocabulary may be a little larger than its tokenizer's, for alignment."""
    found = stage(tmp_path / "stage", write_tokenizer(tmp_path / "model"), VOCABULARY + 7)
    assert found.vocabulary == VOCABULARY + 7 == len(found.token_bytes) and not found.token_bytes[VOCABULARY:].any()


def test_a_text_with_a_byte_that_has_no_token_is_refused(tmp_path):
    """Guards against a character that is lost silently, as the library loses it: SmolLM2 has no token for U+0004."""
    model = facts()["model"]
    vocab = {piece: id for piece, id in model["vocab"].items() if piece != "\u0104"}
    path = write_tokenizer(tmp_path, model={**model, "vocab": vocab})
    found = read_given(DataConfig(tokenizer=str(path)), VOCABULARY)
    assert found.encode_all(["fine"])
    with pytest.raises(
        StageError, match=r"no token for the byte 0x04, .* in the character U\+0004 .*Take that character"
    ):
        found.encode_all(["fine", "not\x04fine"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"eos_token": {"content": SPECIAL[2]}}, (2, 2)),  # without a BOS documents open with EOS
        ({"bos_token_id": 1, "eos_token_id": [0, 2]}, (1, 0)),
    ],
)
def test_special_tokens_are_found_beside_the_file(tmp_path, config, expected):
    path = write_tokenizer(tmp_path, config)
    found = read_given(DataConfig(tokenizer=str(path)), VOCABULARY)
    assert (found.bos, found.eos) == expected


UNIGRAM = {"type": "Unigram", "vocab": [["a", 0.0]]}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
LEVEL = facts()["pre_tokenizer"]


@pytest.mark.parametrize(
    ("vocabulary", "config", "changes", "message"),
    [
        (VOCABULARY - 1, None, {}, "has 265 tokens, but config.model.vocabulary=264: the tokenizer does not belong"),
        (VOCABULARY * 2, None, {}, "the tokenizer does not belong to that model. Set config.model.vocabulary=265"),
        (VOCABULARY, {}, {}, "does not say which tokens open and close a document"),
        (VOCABULARY, {"bos_token_id": 99, "eos_token_id": 2}, {}, "The BOS of .* has id 99, which is no special token"),
        (VOCABULARY, None, {"model": UNIGRAM}, "is not a tokenizer.json of the BPE kind"),
        (VOCABULARY, None, {"pre_tokenizer": {"type": "Metaspace"}}, "is not of the byte-level kind"),
        (
            VOCABULARY,
            None,
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, LEVEL]}},
            "cuts text by Split, which may lose some of it",
        ),
        (
            VOCABULARY,
            None,
            {
                "added_tokens": [
                    *facts()["added_tokens"],
                    {"id": 264, "content": "ab", "special": False, "rstrip": True},
                ]
            },
            "strips spaces around 'ab'",
        ),
        (
            VOCABULARY,
            {"bos_token_id": 0, "eos_token_id": 0},
            {"model": {**facts()["model"], "vocab": {k: v for k, v in facts()["model"]["vocab"].items() if k != "q"}}},
            "has no token for the byte 0x71",
        ),
        (
            VOCABULARY,
            None,
            {"model": {**facts()["model"], "merges": ["not here"]}},
            "cannot be read by tokenizers .* is damaged",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:40],
)
def test_a_tokenizer_that_would_lose_text_or_is_of_another_model_is_refused(
    tmp_path, vocabulary, config, changes, message
):
    path = write_tokenizer(tmp_path, config, **changes)
    with pytest.raises(StageError, match=message):
        read_given(DataConfig(tokenizer=str(path)), vocabulary)


def test_a_damaged_file_is_named(tmp_path):
    path = write_tokenizer(tmp_path)
    path.write_text(json.dumps(facts())[:100])
    with pytest.raises(StageError, match="tokenizer.json is not a tokenizer.json of the BPE kind"):
        read_given(DataConfig(tokenizer=str(path)), VOCABULARY)
