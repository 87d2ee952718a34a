"""The tokenizer of an encoder as the library sets it up: tokenizer.json and the files that modify it.

The only file that imports tokenizers. A class named in tokenizer_config.json (or that of the kind of model) decides how
text is normalized and split, even against tokenizer.json; the generic classes use the file unchanged.
"""

from pathlib import Path

from data_pipeline.encoder.directory import FAMILIES, REMEDY, EncoderDirectory, read_json, section
from data_pipeline.stages.run import StageError
from data_pipeline.tokenizers_library import open_tokenizer

FILE, VOCABULARY, CONFIG = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend")  # of "Fast" or not
WORD_PIECE = ("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer")
BYTES, UNIGRAM = "RobertaTokenizer", "XLMRobertaTokenizer"
MODELS = {**dict.fromkeys(WORD_PIECE, "WordPiece"), BYTES: "BPE", UNIGRAM: "Unigram"}
SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
PROBE = "a \U0010ffff"  # the second letter is in no vocabulary


def tokenizer_file(directory: Path) -> str:
    """tokenizer.json, else vocab.txt; StageError if both are missing."""
    found = next((name for name in (FILE, VOCABULARY) if (Path(directory) / name).is_file()), None)
    if found is None:
        raise StageError(
            f"{directory} is no encoder: it has no {FILE}. Write it with transformers, "
            f"AutoTokenizer.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r}), if it has another "
            f"form of its vocabulary. {REMEDY}"
        )
    return found


class EncoderTokenizer:
    """Text to ids.

    Attributes:
      settings: normalization and splitting that differ from tokenizer.json; part of the fingerprint.
      first, last: the numbers of special tokens before and after a text.
    """

    def __init__(self, found: EncoderDirectory):
        """Raises StageError where the tokenizer cannot be read, or where it gives ids that the model has no vector for."""
        self._prompt = found.prompt
        directory, name = found.model, tokenizer_file(found.model)
        self.path = directory / name
        config = _read_config(directory)
        kind = _class_name(directory, config, found.shape.family)
        facts = read_json(self.path, dict) if name == FILE else _from_vocabulary(self.path, config, kind)
        before = {part: facts.get(part) for part in ("normalizer", "pre_tokenizer")}
        after = _rules(self.path, facts, config, kind)
        if found.lower_case:
            own = after["normalizer"]
            own = own["normalizers"] if _is(own, "Sequence") else [own] if own else []
            after["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *own]}
        self.settings = {} if after == before and name == FILE else after
        if name == VOCABULARY:
            self.settings = self.settings | {"post_processor": facts["post_processor"]}
        self._tokenizer = self._open(facts | after if self.settings else None)
        if config.get("split_special_tokens"):
            self._tokenizer.encode_special_tokens = True
            self.settings = self.settings | {"split_special_tokens": True}
        _check_added(directory, config, self._tokenizer)
        self._check_ids(found)
        self.first, self.last = self._probe(kind, config)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text with special tokens and the default prompt, not truncated."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch([self._prompt + text for text in texts])]

    def _open(self, changed: dict | None):
        """The library's tokenizer, from the file or from its content with other rules."""
        tokenizer = open_tokenizer(changed or self.path, self.path, REMEDY)
        # The file may ask for padding and truncation at 128 pieces; a chunk is embedded in full and padded later.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def _check_ids(self, found: EncoderDirectory) -> None:
        vocabulary, rows = self._tokenizer.get_vocab(with_added_tokens=True), found.shape.vocabulary
        if beyond := {token: id for token, id in vocabulary.items() if id >= rows}:
            token = max(beyond, key=beyond.get)
            raise StageError(
                f"{self.path} gives ids up to {beyond[token]} ({token!r}), but the model has vectors for {rows} (ids 0 to "
                f"{rows - 1}): {len(beyond)} tokens were added to the tokenizer alone, and their texts would share one "
                f"vector. Resize the model to its tokenizer (resize_token_embeddings), or take the tokens out."
            )

    def _probe(self, kind: str, config: dict) -> tuple[int, int]:
        """Special tokens before and behind a text; StageError where they are not the class's own."""
        try:
            encoded = self._tokenizer.encode(PROBE)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a vocabulary without its unknown token, special tokens without an id
            raise StageError(f"{self.path} cannot encode every text ({error}). {REMEDY}") from None
        mask = encoded.special_tokens_mask
        first = next((number for number, special in enumerate(mask) if not special), 0)
        last = next((number for number, special in enumerate(reversed(mask)) if not special), 0)
        if any(encoded.type_ids):
            raise StageError(
                f"{self.path} puts a text into segment {max(encoded.type_ids)}, but texts are of segment 0 here. {REMEDY}"
            )
        if kind not in AS_IT_IS:
            opens, closes = _special(config, "cls_token", kind), _special(config, "sep_token", kind)
            around = [*encoded.tokens[:first], *encoded.tokens[len(mask) - last :]]
            if (first, last) != (1, 1) or around != [opens, closes]:
                raise StageError(
                    f"{self.path} puts {around} around a text, but the class {kind} by {CONFIG} {[opens, closes]}. {REMEDY}"
                )
        return first, last


def _read_config(directory: Path) -> dict:
    """tokenizer_config.json, with the special tokens that older releases kept in a file of their own."""
    older, path = directory / "special_tokens_map.json", directory / CONFIG
    special = read_json(older, dict) if older.is_file() else {}
    return special | (read_json(path, dict) if path.is_file() else {})


def _class_name(directory: Path, config: dict, family: str) -> str:
    """The library's class, without "Fast": of tokenizer_config.json, of config.json, or that of the kind of model."""
    model = read_json(directory / "config.json", dict)
    named = config.get("tokenizer_class") or model.get("tokenizer_class") or FAMILIES[family].tokenizer
    kind = str(named).removesuffix("Fast")
    if kind not in MODELS and kind not in AS_IT_IS:
        raise StageError(
            f"{directory / CONFIG} has tokenizer_class {named!r}; known are {', '.join(MODELS)} and PreTrainedTokenizerFast. "
            f"{REMEDY}"
        )
    if code := config.get("auto_map"):
        raise StageError(
            f"{directory / CONFIG} has code of its own (auto_map {code!r:.60}), which is not run here. {REMEDY}"
        )
    return kind


def _rules(path: Path, facts: dict, config: dict, kind: str) -> dict:
    """The normalizer and pre-tokenizer with which the class replaces the file's."""
    own = {part: facts.get(part) for part in ("normalizer", "pre_tokenizer")}
    model = facts.get("model")
    if not isinstance(model, dict):
        raise StageError(f"{path} has no model, so it is no tokenizer. {REMEDY}")
    if kind in AS_IT_IS:
        return own
    if model.get("type", MODELS[kind]) != MODELS[kind]:
        raise StageError(f"{path} is of the kind {model['type']!r}, but the class {kind} is {MODELS[kind]}. {REMEDY}")
    if kind in WORD_PIECE:
        normalizer = {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": _flag(path, config, "tokenize_chinese_chars", True),
            "strip_accents": _flag(path, config, "strip_accents", None),
            "lowercase": _flag(path, config, "do_lower_case", True),
        }
        return {"normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}}
    if kind == BYTES:
        space = _flag(path, config, "add_prefix_space", False)
        there = own["pre_tokenizer"]
        same = _is(there, "ByteLevel") and there.get("use_regex", True) and there.get("add_prefix_space") == space
        if same and not own["normalizer"]:
            return own
        split = {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": True, "use_regex": True}
        return {"normalizer": None, "pre_tokenizer": split}
    there = own["normalizer"]
    parts = there.get("normalizers") if _is(there, "Sequence") else [there]
    mapped = next((part for part in parts or [] if _is(part, "Precompiled")), None)
    scheme = "always" if _flag(path, config, "add_prefix_space", True) else "never"
    words = [
        {"type": "WhitespaceSplit"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True},
    ]
    return {"normalizer": mapped, "pre_tokenizer": {"type": "Sequence", "pretokenizers": words}}


def _flag(path: Path, config: dict, name: str, default: bool | None) -> bool | None:
    """A boolean of tokenizer_config.json; StageError for another type."""
    found = config.get(name, default)
    if found is not default and not isinstance(found, bool):
        raise StageError(
            f"{path.with_name(CONFIG)} has {name} {found!r:.60}, which is neither true nor false. {REMEDY}"
        )
    return found


def _is(part, kind: str) -> bool:
    return isinstance(part, dict) and part.get("type") == kind


def _special(config: dict, name: str, kind: str) -> str:
    """The text of a special token, named in tokenizer_config.json or the class's own."""
    default = {"cls_token": "<s>", "sep_token": "</s>"} if kind in ("MPNetTokenizer", BYTES, UNIGRAM) else SPECIAL
    found = config.get(name) or default[name]
    return str(found.get("content")) if isinstance(found, dict) else str(found)


def _check_added(directory: Path, config: dict, tokenizer) -> None:
    """StageError where tokens were added beside tokenizer.json that it does not have."""
    where, extra = directory / CONFIG, directory / "added_tokens.json"
    wanted = section(where, config, "added_tokens_decoder")
    if not wanted and extra.is_file():
        where, wanted = extra, {id: token for token, id in read_json(extra, dict).items() if isinstance(id, int)}
    for id, token in wanted.items():
        token = token.get("content") if isinstance(token, dict) else token
        there = tokenizer.id_to_token(int(id)) if str(id).isdecimal() else None
        if there != token:
            raise StageError(
                f"{where} adds the token {token!r} with id {id}, but {FILE} has {there!r} there. Save the tokenizer again "
                f"(save_pretrained), so that both agree. {REMEDY}"
            )


def _from_vocabulary(path: Path, config: dict, kind: str) -> dict:
    """The tokenizer.json for a vocab.txt (a token a line), for the classes with word pieces."""
    if kind not in WORD_PIECE:
        raise StageError(f"{path} is a list of word pieces, but the class {kind} needs {FILE}. {REMEDY}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(f"{path} cannot be read as UTF-8 ({error}). Fetch it again.") from None
    lines = lines[:-1] if lines[-1] == "" else lines
    vocabulary = {token: number for number, token in enumerate(lines)}
    special = {name: _special({**SPECIAL, **config}, name, kind) for name in SPECIAL}
    if missing := [token for name, token in special.items() if token not in vocabulary and name != "mask_token"]:
        raise StageError(f"{path} has no line {missing[0]}, so it is no vocabulary of word pieces. {REMEDY}")
    opens, closes = special["cls_token"], special["sep_token"]
    single = [
        {"SpecialToken": {"id": opens, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": closes, "type_id": 0}},
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    template = {token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in (opens, closes)}
    added = sorted((vocabulary[token], token) for token in set(special.values()) if token in vocabulary)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": token, **flags} for id, token in added],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": single,
            "special_tokens": template,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": special["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
