"""Stage 2, tokenizer: a SentencePiece model, trained on the training split or given, that loses no byte.

    tokenizer.model   the SentencePiece model; or tokenizer.json and special_tokens.json (`byte_level.py`)
    token_bytes.npy   int32 [V]: the UTF-8 bytes that each token stands for

decode(encode(text)) == text for every string, and the bytes of the tokens add up to the bytes of the text, because the
text is not normalized, no space is put before it, and what no piece covers becomes byte tokens. Two oddities of
SentencePiece are handled here: it writes a space as U+2581, so that a real U+2581 would come back as a space (it is
encoded as its three bytes instead); and its own decoder may strip spaces, so decoding joins the bytes of the tokens.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from data_pipeline import byte_level
from data_pipeline.documents.stage import Document, DocumentTable, read_documents_manifest
from data_pipeline.stages.run import (
    REPAIR,
    Manifest,
    Shard,
    StageError,
    file_sha256,
    fingerprint,
    read_manifest,
    run_stage,
)
from retro_jax.config import DataConfig
from retro_jax.core.files import load_array

STAGE = "tokenizer"
MODEL, BYTES = "tokenizer.model", "token_bytes.npy"
SPACE = "\u2581"  # how SentencePiece writes a space in a piece
BLOCK = 2048  # characters of a training block; SentencePiece's "sentence"
THREADS = 4  # the trainer sums in the order of its threads, so their number is part of the result
# A NormalizerSpec (field 3 of a SentencePiece ModelProto) that is appended to a model as it is loaded: repeated
# fields of a message merge, the last value wins. It says: name "identity", no character map, no dummy prefix, keep
# extra spaces, write a space as U+2581.
IDENTITY = b"\x0a\x08identity\x12\x00\x18\x00\x20\x00\x28\x01"
OVERRIDE = bytes([3 << 3 | 2, len(IDENTITY)]) + IDENTITY


def build_tokenizer(directory: Path, config: DataConfig, vocabulary: int, documents: Path) -> Manifest:
    """Trains a unigram model with byte fallback on the training split, or takes the one that the config gives.

    A given SentencePiece model keeps its pieces but not its normalization: text is read as in `IDENTITY`, so the byte counts are
    exact; only the first word of a document may be cut differently than with the model's own dummy prefix.

    Args:
      vocabulary: V; a given model must have exactly that many pieces.
      documents: directory of the documents stage.

    Raises:
      StageError: the text has too little for so large a vocabulary (or too many letters for so small a one), or the
        given model has no byte fallback, no BOS or EOS, or another size.
    """
    inputs = given_inputs(config) or {"documents": read_documents_manifest(documents).fingerprint}

    def make(temporary: Path) -> dict:
        reader = read_given(config, vocabulary) if config.tokenizer else None
        reader = reader or SentencePieces(train_sentencepiece(documents, vocabulary), vocabulary)
        for name, content in _contents(reader, config).items():
            (temporary / name).write_bytes(content)
        np.save(temporary / BYTES, np.array([len(piece) for piece in reader.pieces], np.int32))
        return {"vocabulary": vocabulary}

    names = [byte_level.FILE, byte_level.SPECIAL] if is_byte_level(config) else [MODEL]
    facts = stage_config(config, vocabulary)
    return run_stage(directory, STAGE, facts, inputs, [Shard("tokenizer", [*names, BYTES], make)])


def is_byte_level(config: DataConfig) -> bool:
    """Whether the config gives a tokenizer.json, and not a SentencePiece model."""
    return config.tokenizer.endswith(".json")


def _contents(reader, config: DataConfig) -> dict[str, bytes]:
    """The files of the stage besides the bytes a token."""
    if not is_byte_level(config):
        return {MODEL: reader.proto}
    given = Path(config.tokenizer).expanduser()
    special = byte_level.Special(reader.bos, reader.eos)
    return {byte_level.FILE: given.read_bytes(), byte_level.SPECIAL: byte_level.special_file(special)}


def stage_config(config: DataConfig, vocabulary: int) -> dict:
    """The settings that the stage depends on; part of its plan."""
    return {"vocabulary": vocabulary, **({} if config.tokenizer else {"training_bytes": training_bytes(vocabulary)})}


def given_inputs(config: DataConfig) -> dict[str, str]:
    """The stage's input where the config gives a model; empty where one is trained. StageError if it is not a file."""
    if not config.tokenizer:
        return {}
    given = Path(config.tokenizer).expanduser()
    if not given.is_file():
        raise StageError(
            f"config.data.tokenizer={config.tokenizer!r} does not exist; give a SentencePiece model or a tokenizer.json."
        )
    more = byte_level.given_inputs(given) if is_byte_level(config) else {}
    return {"given tokenizer": file_sha256(given)} | more


def read_given(config: DataConfig, vocabulary: int):
    """The tokenizer that the config gives: `SentencePieces` or `ByteLevel`.

    Raises:
      StageError: a missing file, neither of the two, or one that `build_tokenizer` refuses.
    """
    given_inputs(config)
    path = Path(config.tokenizer).expanduser()
    if is_byte_level(config):
        return byte_level.ByteLevel(path.read_bytes(), byte_level.find_special(path), vocabulary, str(path))
    return SentencePieces(path.read_bytes(), vocabulary)


class Tokenizer:
    """The tokenizer of a finished stage.

    Attributes:
      vocabulary: V.
      bos, eos: the ids that open and close a document; `encode` adds neither.
      pieces: the UTF-8 bytes of each token; b"" for BOS, EOS and other control tokens.
      token_bytes: Int[np.ndarray, "V"], the number of these bytes.
      lacking: the bytes of UTF-8 that no token can write; a text that has one is refused.
      fingerprint: of the stage's manifest.
    """

    def __init__(self, directory: Path):
        self.directory = directory = Path(directory)
        self.fingerprint = read_manifest(directory, STAGE).fingerprint
        self._reader = _open(directory)
        self.vocabulary: int = self._reader.vocabulary
        self.bos: int = self._reader.bos
        self.eos: int = self._reader.eos
        self.pieces: Sequence[bytes] = self._reader.pieces
        self.token_bytes = np.array([len(piece) for piece in self.pieces], np.int32)
        self.lacking: frozenset[int] = self._reader.lacking

    def __reduce__(self):
        """Pickles as its path."""
        return Tokenizer, (self.directory,)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS and EOS."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, over all cores; each exactly as `encode` gives it."""
        return self._reader.encode_all(texts)

    def decode(self, ids: Sequence[int] | Int[np.ndarray, "N"]) -> str:
        """The text of token ids; control tokens give nothing, and a character cut by the ends of `ids` is U+FFFD.

        Raises:
          ValueError: an id that is not a token (remove padding, -1, first).
        """
        ids = [int(token) for token in ids]
        for token in ids:
            if not 0 <= token < self.vocabulary:
                raise ValueError(
                    f"{token} is not a token: ids run from 0 to {self.vocabulary - 1}. Remove padding (-1) first."
                )
        return b"".join(self.pieces[token] for token in ids).decode("utf-8", errors="replace")


def _open(directory: Path):
    """The tokenizer in the files of a finished stage."""
    if (directory / MODEL).exists():
        return SentencePieces((directory / MODEL).read_bytes())
    path = directory / byte_level.FILE
    vocabulary = len(load_array(directory / BYTES, REPAIR))
    return byte_level.ByteLevel(path.read_bytes(), byte_level.find_special(path), vocabulary, str(path))


class SentencePieces:
    """A SentencePiece model whose normalization is replaced, so that it loses no byte.

    Attributes:
      pieces: the UTF-8 bytes of each token; b"" for control tokens.
      lacking: empty, since every byte has a token.
    """

    lacking: frozenset[int] = frozenset()

    def __init__(self, proto: bytes, vocabulary: int | None = None):
        """Raises StageError where the model cannot write every text, or has another size than `vocabulary`."""
        self.proto, self._model = proto, _processor(proto)
        self.vocabulary: int = self._model.vocab_size()
        self.bos: int = self._model.bos_id()
        self.eos: int = self._model.eos_id()
        self.pieces = _pieces(self._model, vocabulary or self.vocabulary)
        self._space_bytes = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        plain = [text for text in texts if SPACE not in text]
        encoded = iter(self._model.encode(plain, num_threads=-1))
        return [self._encode_odd(text) if SPACE in text else next(encoded) for text in texts]

    def _encode_odd(self, text: str) -> list[int]:
        """Encodes around every U+2581, which becomes its bytes."""
        ids = []
        for part in re.split(f"({SPACE})", text):
            ids += self._space_bytes if part == SPACE else self._model.encode(part)
        return ids


def model_file(data: Path) -> Path:
    """What config.data.tokenizer names to take the tokenizer of a data directory."""
    found = Path(data) / STAGE / MODEL
    return found if found.exists() else found.with_name(byte_level.FILE)


def identity(directory: Path) -> str:
    """16 digits that equal tokenizers share, however their builds came by them: of the files without the bytes a token."""
    files = read_manifest(directory, STAGE, verify=False).files
    return fingerprint({file.name: file.sha256 for file in files if file.name != BYTES})[:16]


def read_token_bytes(directory: Path) -> Int[np.ndarray, "V"]:
    """UTF-8 bytes of every token of a finished stage; needs no SentencePiece."""
    read_manifest(directory, STAGE)
    return load_array(Path(directory) / BYTES, REPAIR)


def training_bytes(vocabulary: int) -> int:
    """How much text the trainer sees: some hundred tokens a piece, and 3 MB at least."""
    return max(3_000_000, 500 * vocabulary)


def train_sentencepiece(documents: Path, vocabulary: int) -> bytes:
    """The serialized model; a function of the documents and the vocabulary alone."""
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_blocks(documents, training_bytes(vocabulary)),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocabulary,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,  # indentation is many spaces and worth a piece
            seed_sentencepiece_size=10 * vocabulary,  # candidates; the default million is slower and no better
            max_sentence_length=4 * BLOCK,  # UTF-8 bytes; longer ones would be skipped
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,  # padding is -1 everywhere, no token
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise StageError(_training_problem(str(error), vocabulary)) from None
    return written.getvalue()


def _training_problem(message: str, vocabulary: int) -> str:
    rule = f"config.model.vocabulary={vocabulary:,} does not fit the text of the training split: "
    if high := re.search(r"too high .* value <= (\d+)", message):
        return rule + f"it is too little for more than {int(high.group(1)):,} pieces. Lower the vocabulary or add text."
    if low := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return (
            rule
            + f"its letters, the 256 bytes and 3 control tokens alone are {int(low.group(1)):,}. Raise the vocabulary."
        )
    return rule + f"SentencePiece says: {message.strip()}. Try another vocabulary, or give config.data.tokenizer."


def training_blocks(documents: Path, limit: int) -> Iterator[str]:
    """Yields blocks of whole lines of training documents, up to about `limit` bytes of them.

    Which blocks is decided by a hash of the document's id and the block's number, so long documents give no more than
    their share and other documents coming or going change nothing about a block's rank.
    """
    counts = read_documents_manifest(documents).counts["subsets"]
    total = sum(count["train"]["bytes"] for count in counts.values())
    if not total:
        raise StageError("The training split has no document. Lower config.data.validation_fraction or add text.")
    threshold = min(1.0, limit / total) * 2.0**64
    for document in DocumentTable(documents).read():
        if document.split != "train":
            return
        for number, block in enumerate(_blocks(document)):
            rank = hashlib.blake2b(f"{document.id} {number}".encode(), digest_size=8).digest()
            if int.from_bytes(rank, "big") < threshold:
                yield block.replace("\0", " ")  # the trainer skips text with NUL; the tokenizer gives it a byte token


def _blocks(document: Document) -> Iterator[str]:
    """Yields the text in blocks of whole lines up to BLOCK characters; only a longer line is cut."""
    block = ""
    for line in document.text.splitlines(keepends=True):
        if len(block) + len(line) > BLOCK and block:
            yield block
            block = ""
        while len(line) > BLOCK:
            yield line[:BLOCK]
            line = line[BLOCK:]
        block += line
    if block:
        yield block


def _processor(proto: bytes):
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=proto + OVERRIDE)
    except RuntimeError as error:
        raise StageError(
            f"config.data.tokenizer is no SentencePiece model: {error}. Give a tokenizer.model or tokenizer.json file."
        ) from None


def _pieces(model, vocabulary: int) -> list[bytes]:
    """The UTF-8 bytes of every token; StageError where the model cannot write every text, or has another size."""
    if model.vocab_size() != vocabulary:
        raise StageError(
            f"The tokenizer has {model.vocab_size():,} pieces, but config.model.vocabulary={vocabulary:,}; make them equal."
        )
    if model.bos_id() < 0 or model.eos_id() < 0:
        raise StageError("The tokenizer has no BOS or EOS, which open and close documents; give one that has both.")
    pieces, single = [], set()
    for token in range(vocabulary):
        piece = model.id_to_piece(token)
        if model.is_control(token) or model.is_unknown(token):
            pieces.append(b"")
        elif model.is_byte(token):
            pieces.append(bytes([int(piece[3:-1], 16)]))
            single.add(pieces[-1])
        else:
            pieces.append(piece.replace(SPACE, " ").encode())
    if len(single) < 256:
        raise StageError(
            "The tokenizer has no byte fallback, so it would lose characters and byte counts. Give one that was trained "
            "with byte_fallback=true."
        )
    return pieces
