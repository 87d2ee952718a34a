"""The tokenizer loses nothing, counts every byte, and is deterministic."""

import io
import subprocess
import sys

import made_up_text
import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.documents.stage import Document, DocumentTable, build_documents
from data_pipeline.stages.run import StageError
from data_pipeline.tokens import BLOCK, Tokenizer, _blocks, build_tokenizer, read_token_bytes, training_blocks
from retro_jax.config import DataConfig

# Every character that UTF-8 can write (halves of surrogate pairs are none), with those that tokenizers trip over
# more often: SentencePiece's own U+2581, U+2047 and U+2585, controls, line ends, and what looks like its own pieces.
ODD = [
    "\u2581",
    "\u2047",
    "\u2585",
    "\ufeff",
    "\ufffd",
    "\0",
    "\t",
    "\n",
    "\r\n",
    "  ",
    "<s>",
    "</s>",
    "<unk>",
    "<0x41>",
]
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(st.one_of(st.sampled_from([*ODD, "the mill "]), st.text(CHARACTERS, max_size=5)), max_size=12).map(
    "".join
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    made_up_text.build(root)
    return root


@pytest.fixture(scope="module")
def tokenizer(built):
    return Tokenizer(built / "tokenizer")


def serialized(**changes) -> bytes:
    """A SentencePiece model trained outside this project."""
    out = io.BytesIO()
    arguments = {"vocab_size": 360, "byte_fallback": True, "minloglevel": 2, "model_type": "unigram", **changes}
    lines = [line for seed in range(20) for line in made_up_text.text(seed).splitlines()]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **arguments)
    return out.getvalue()


def give(root, name, **changes):
    """The tokenizer stage of a given model."""
    path = root / f"{name}.model"
    path.write_bytes(serialized(**changes))
    build_tokenizer(root / name, DataConfig(tokenizer=str(path)), changes.get("vocab_size", 360), root / "documents")
    return Tokenizer(root / name)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS)
@example("")
@example(" ")
@example("\u2581 \u2581")
@example("e\u0301 \u1e9b\u0323 \ufb01 \uac00")  # what NFKC or NFC would change
@example("\n\n \t\t  a  b \r\r\n")
def test_text_returns_and_its_bytes_add_up(tokenizer, text):
    """Guards against bits per byte over other bytes than the text's. The tokens' bytes add up to its UTF-8 bytes."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.encode_all(["x", text, "y"])[1] == ids
    assert tokenizer.bos not in ids and tokenizer.eos not in ids


def test_every_character_of_the_basic_plane_returns(tokenizer):
    text = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_newlines_and_indentation_are_kept(tokenizer):
    text = "def mill():\n    grain = 1\n\n\treturn grain\r\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_stand_for_nothing(tokenizer):
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("bread"), tokenizer.eos]) == "bread"
    assert tokenizer.token_bytes[[0, tokenizer.bos, tokenizer.eos]].tolist() == [0, 0, 0]


def test_a_character_cut_in_two_is_shown_as_such(tokenizer):
    ids = tokenizer.encode("\U00012345")  # four byte tokens
    assert tokenizer.token_bytes[ids].tolist() == [1, 1, 1, 1]
    assert tokenizer.decode(ids[:2]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, made_up_text.VOCABULARY])
def test_what_is_no_token_cannot_be_decoded(tokenizer, token):
    with pytest.raises(ValueError, match=f"{token} is not a token"):
        tokenizer.decode([5, token])


def test_training_is_deterministic(built, tmp_path):
    """Also in another process with another hash seed and other cores."""
    build_tokenizer(
        tmp_path / "again", made_up_text.config(built / "text"), made_up_text.VOCABULARY, built / "documents"
    )
    program = (
        "import os, sys, pathlib; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from data_pipeline.tokens import train_sentencepiece as t\n"
        f"sys.stdout.buffer.write(t(pathlib.Path({str(built / 'documents')!r}), {made_up_text.VOCABULARY}))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    model = (built / "tokenizer" / "tokenizer.model").read_bytes()
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == model == other


def test_only_training_documents_are_seen(tmp_path):
    folder = made_up_text.write_folder(tmp_path / "text", documents=40)
    settings = made_up_text.config(folder, validation_fraction=0.5)
    build_documents(tmp_path / "documents", settings)
    documents = list(DocumentTable(tmp_path / "documents").read())
    seen = "".join(training_blocks(tmp_path / "documents", 10**9))
    assert {document.split for document in documents} == {"train", "validation"}
    assert seen == "".join(document.text for document in documents if document.split == "train")


def test_a_sample_is_a_share_of_every_document(built):
    whole = list(training_blocks(built / "documents", 10**9))
    total = sum(len(block.encode()) for block in whole)
    half = list(training_blocks(built / "documents", total // 2))
    assert set(half) < set(whole) and 0.25 < len(half) / len(whole) < 0.75


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.text(CHARACTERS, max_size=40), max_size=6), st.integers(0, 3000))
def test_blocks_lose_nothing_and_stay_short(parts, run):
    text = "\n".join(parts) + "x" * run
    blocks = list(_blocks(Document(0, "s", "n", "train", "l", text)))
    assert "".join(blocks) == text
    assert all(0 < len(block) <= BLOCK for block in blocks)


def test_token_bytes_are_read_without_sentencepiece(built, tokenizer):
    program = (
        "import sys; sys.modules['sentencepiece'] = None\n"
        "from data_pipeline.tokens import read_token_bytes\n"
        f"print(int(read_token_bytes({str(built / 'tokenizer')!r}).sum()))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(out) == tokenizer.token_bytes.sum() == read_token_bytes(built / "tokenizer").sum()


def test_a_given_model_is_copied_and_made_lossless(built):
    """SentencePiece's defaults normalize (NFKC), squeeze spaces and put one before the text; here they do not."""
    given_model = give(built, "defaults")
    assert (built / "defaults" / "tokenizer.model").read_bytes() == (built / "defaults.model").read_bytes()
    for text in ("  the \ufb01eld\u3000and \u2460 \n\n mill ", "\u2581", "the mill", " the mill"):
        ids = given_model.encode(text)
        assert given_model.decode(ids) == text
        assert given_model.token_bytes[ids].sum() == len(text.encode())


def test_a_given_byte_pair_model_works(built):
    bpe = give(built, "bpe", model_type="bpe", user_defined_symbols=["<sep>"])
    assert bpe.decode(bpe.encode(" the<sep>mill\n")) == " the<sep>mill\n"


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("nofallback", {"byte_fallback": False, "vocab_size": 90}, "no byte fallback"),
        ("nobos", {"bos_id": -1}, "no BOS or EOS"),
    ],
)
def test_a_given_model_that_does_not_fit_is_refused(built, name, changes, message):
    with pytest.raises(StageError, match=message):
        give(built, name, **changes)


def test_a_given_model_of_another_size_is_refused(built):
    (built / "size.model").write_bytes(serialized())
    with pytest.raises(StageError, match=r"has 360 pieces, but config.model.vocabulary=512"):
        build_tokenizer(built / "size", DataConfig(tokenizer=str(built / "size.model")), 512, built / "documents")


def test_a_file_that_is_no_model_is_refused(built):
    (built / "text.model").write_text("not a model")
    with pytest.raises(StageError, match="no SentencePiece model"):
        build_tokenizer(built / "text.m", DataConfig(tokenizer=str(built / "text.model")), 512, built / "documents")
    with pytest.raises(StageError, match="does not exist"):
        build_tokenizer(built / "none.m", DataConfig(tokenizer="nowhere.model"), 512, built / "documents")


@pytest.mark.parametrize("vocabulary, message", [(30_000, "too little for more than"), (270, "Raise the vocabulary")])
def test_a_vocabulary_that_does_not_fit_the_text_is_refused(built, tmp_path, vocabulary, message):
    with pytest.raises(StageError, match=message):
        build_tokenizer(tmp_path / "t", made_up_text.config(built / "text"), vocabulary, built / "documents")
    assert not (tmp_path / "t" / "manifest.json").exists()


def test_the_stored_byte_table_is_the_models(built, tokenizer):
    np.testing.assert_array_equal(read_token_bytes(built / "tokenizer"), tokenizer.token_bytes)
    assert tokenizer.vocabulary == made_up_text.VOCABULARY == len(tokenizer.token_bytes)
