"""A Hugging Face tokenizer.json of the byte-level kind (GPT-2, Llama 3, Qwen, SmolLM), read so that it loses no byte.

    tokenizer.json        the file as it was given
    special_tokens.json   {"bos": id, "eos": id}

Every piece is a run of bytes, so the bytes a token are exact, and decoding joins them. Text is not normalized and no
space is put before it, as with SentencePiece (`tokens.py`); a text that spells a special token ("<|endoftext|>") is cut as
the text that it is, because a document must not end in the middle.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.stages.run import StageError
from data_pipeline.tokenizers_library import open_tokenizer
from retro_jax.core.files import DamagedFile, digest, read_json

FILE, SPECIAL = "tokenizer.json", "special_tokens.json"
BESIDE = ("tokenizer_config.json", "config.json")  # of a Hugging Face directory: names of BOS and EOS, or their ids
LOSSLESS = ("ByteLevel", "Digits", "Split")  # pre-tokenizers that only cut
# Bytes of UTF-8 text. A vocabulary may lack others, and those of RARE (control characters, planes without characters), as
# SmolLM2's lacks eight: a text that has one of these is an error.
UTF8 = [*range(0x00, 0xC0), *range(0xC2, 0xF5)]
RARE = {*range(0x20), 0x7F, *range(0xF1, 0xF5)} - set(b"\t\n\r")
UNUSED = 16  # a model may have rows without a token, for alignment: fewer than this part of its vocabulary
REMEDY = "Give a tokenizer.json of the byte-level kind (GPT-2, Llama 3, Qwen, SmolLM), or a SentencePiece model."


@dataclass(frozen=True)
class Special:
    """The tokens that open and close a document; they may be one."""

    bos: int
    eos: int


class ByteLevel:
    """The tokenizer of a tokenizer.json.

    Attributes:
      vocabulary: of the model; ids without a token are never given.
      bos, eos: ids.
      pieces: the UTF-8 bytes of each id; b"" for special tokens and ids without a token.
      lacking: the bytes of UTF-8 without a token.
    """

    def __init__(self, content: bytes, special: Special, vocabulary: int, where: str):
        """Raises StageError where it is not of the byte-level kind, loses bytes, or does not fit the vocabulary."""
        self.vocabulary, self.bos, self.eos = vocabulary, special.bos, special.eos
        self.pieces = _pieces(_facts(content, where), vocabulary, where)
        for name, token in (("BOS", self.bos), ("EOS", self.eos)):
            if not 0 <= token < vocabulary or self.pieces[token]:
                raise StageError(
                    f"The {name} of {where} has id {token}, which is no special token of it: the two do not belong "
                    f"together. {REMEDY}"
                )
        self._tokenizer = _open(content, where)
        self.lacking = frozenset(_lacking(self.pieces))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Raises StageError where a text has a byte without a token."""
        for text in texts if self.lacking else ():
            if found := self.lacking.intersection(text.encode()):
                byte = min(found)
                letter = next(letter for letter in text if byte in letter.encode())
                raise StageError(
                    f"The tokenizer has no token for the byte 0x{byte:02X}, which the text holds in the character "
                    f"U+{ord(letter):04X} ({text[max(0, text.index(letter) - 20) :][:40]!r}). Take that character out of the "
                    f"text, or build with another tokenizer."
                )
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def find_special(path: Path) -> Special:
    """BOS and EOS of a tokenizer.json, by the files beside it.

    Without a BOS of its own (Qwen) documents open with EOS, as in the family's own training.

    Raises:
      StageError: no file beside it names an EOS.
    """
    path = Path(path)
    own = path.with_name(SPECIAL)
    if own.is_file():
        facts = _json(own)
        try:
            return Special(int(facts["bos"]), int(facts["eos"]))
        except (KeyError, TypeError, ValueError):
            raise StageError(f'{own} must hold {{"bos": ID, "eos": ID}}, but holds {facts!r:.80}.') from None
    ids = {token["content"]: token["id"] for token in _facts(path.read_bytes(), str(path)).get("added_tokens") or []}
    for name in BESIDE:
        if path.with_name(name).is_file():
            facts = _json(path.with_name(name))
            bos, eos = (_id(facts, kind, ids) for kind in ("bos", "eos"))
            if eos is not None:
                return Special(eos if bos is None else bos, eos)
    raise StageError(
        f"{path} does not say which tokens open and close a document. Put {' or '.join(BESIDE)} of its model beside it, or "
        f'{SPECIAL} with {{"bos": ID, "eos": ID}}.'
    )


def _id(facts: Mapping, kind: str, ids: Mapping[str, int]) -> int | None:
    """The id of "bos" or "eos" in a tokenizer_config.json (a text) or config.json (an id, or a list of them)."""
    named, number = facts.get(f"{kind}_token"), facts.get(f"{kind}_token_id")
    named = named.get("content") if isinstance(named, dict) else named
    number = number[0] if isinstance(number, list) and number else number
    return ids.get(named) if named is not None else number if isinstance(number, int) else None


def given_inputs(path: Path) -> dict[str, str]:
    """What a stage that takes this tokenizer depends on besides the file: the special tokens, from wherever they come."""
    special = find_special(path)
    return {"special tokens": digest({"bos": special.bos, "eos": special.eos})}


def special_file(special: Special) -> bytes:
    return json.dumps({"bos": special.bos, "eos": special.eos}).encode()


def byte_of_letter() -> dict[str, int]:
    """The byte that each letter of a byte-level piece stands for (GPT-2): printable ones as they are, the others moved."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + number): byte for number, byte in enumerate(moved)}


def _facts(content: bytes, where: str) -> dict:
    try:
        facts = json.loads(content)
        if isinstance(facts["model"]["vocab"], dict):
            return facts
    except (ValueError, KeyError, TypeError):
        pass
    raise StageError(f"{where} is not a tokenizer.json of the BPE kind. {REMEDY}")


def _json(path: Path) -> dict:
    try:
        found = read_json(path, "Fetch it again.")
    except DamagedFile as error:
        raise StageError(str(error)) from None
    return found if isinstance(found, dict) else {}


def _pieces(facts: dict, vocabulary: int, where: str) -> list[bytes]:
    if facts["model"].get("type", "BPE") != "BPE":
        raise StageError(f"{where} is of the kind {facts['model']['type']!r}, but only BPE is read. {REMEDY}")
    if facts["model"].get("byte_fallback") or not any(part["type"] == "ByteLevel" for part in _cutters(facts)):
        raise StageError(
            f"{where} is not of the byte-level kind, so the bytes of its tokens are not known. Give the tokenizer.model "
            f"(SentencePiece) that such models come with, or a byte-level tokenizer.json."
        )
    if other := [part["type"] for part in _cutters(facts) if part["type"] not in LOSSLESS or _removes(part)]:
        raise StageError(f"{where} cuts text by {other[0]}, which may lose some of it. {REMEDY}")
    added = facts.get("added_tokens") or []
    plain = [token for token in added if not token.get("special")]
    if stripping := [token["content"] for token in plain if token.get("lstrip") or token.get("rstrip")]:
        raise StageError(f"{where} strips spaces around {stripping[0]!r}, which loses text. {REMEDY}")
    ids = {**facts["model"]["vocab"], **{token["content"]: token["id"] for token in added}}
    count = max(ids.values()) + 1
    if count > vocabulary or vocabulary - count >= max(vocabulary / UNUSED, 1):
        raise StageError(
            f"{where} has {count:,} tokens, but config.model.vocabulary={vocabulary:,}: the tokenizer does not belong to that "
            f"model. Set config.model.vocabulary={count}, or give the model's own tokenizer."
        )
    letters, pieces = byte_of_letter(), [b""] * vocabulary
    for text, token in facts["model"]["vocab"].items():
        if all(letter in letters for letter in text):
            pieces[token] = bytes(letters[letter] for letter in text)
    for token in added:
        pieces[token["id"]] = b"" if token.get("special") else token["content"].encode()
    if missing := [byte for byte in _lacking(pieces) if byte not in RARE]:
        raise StageError(f"{where} has no token for the byte 0x{missing[0]:02X}, so it would lose text. {REMEDY}")
    return pieces


def _lacking(pieces: Sequence[bytes]) -> list[int]:
    """The bytes of UTF-8 that are no piece of their own."""
    single = {piece for piece in pieces if len(piece) == 1}
    return [byte for byte in UTF8 if bytes([byte]) not in single]


def _cutters(facts: Mapping) -> list[dict]:
    """The pre-tokenizers, one after the other."""
    found = facts.get("pre_tokenizer") or {}
    parts = found.get("pretokenizers") if found.get("type") == "Sequence" else [found] if found else []
    return [part for part in parts or [] if isinstance(part, dict) and "type" in part]


def _removes(part: Mapping) -> bool:
    return part["type"] == "Split" and part.get("behavior") == "Removed"


def _open(content: bytes, where: str):
    """The library's tokenizer, which only cuts: no normalization, no space before the text, no special tokens in it."""
    facts = json.loads(content) | {"normalizer": None, "post_processor": None, "truncation": None, "padding": None}
    for part in _cutters(facts):
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    tokenizer = open_tokenizer(facts, where, REMEDY)
    tokenizer.encode_special_tokens = True
    return tokenizer
