"""Reads an encoder directory as sentence-transformers does: model type, sizes, pooling and prompt.

Every setting that decides a vector is applied here or is an error that names it; settings beyond a plain mean are in
`EncoderDirectory.settings`, which is part of the encoder's fingerprint. Weights and tokenizer have files of their own
(`encoder_weights.py`, `encoder_tokenizer.py`); `bert.py` computes the vectors.

Limits of length (max_seq_length, model_max_length) are not applied: the library truncates a longer text silently,
and a chunk is embedded in full (`bert.FrozenEncoder.embed_ids`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_pipeline.stages.run import StageError
from retro_jax.core import files

ACTIVATIONS = ("gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish")
POOLING = {  # sentence-transformers' names, in the order in which several are concatenated; up to 5.3 a key each
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
POOLING_KEYS = {"pooling_mode", "embedding_dimension", "word_embedding_dimension", "include_prompt", *POOLING.values()}
SENTENCE_CONFIGS = [  # of the module Transformer, the first that exists
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
PLAIN_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
# Keys of the module Transformer that change no vector of a text, or whose value here changes none.
NEUTRAL = {
    "max_seq_length": None,
    "query_length": None,
    "document_length": None,
    "unpad_inputs": None,
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": (PLAIN_TEXT,),
}
NEUTRAL_ARGUMENTS = {"torch_dtype", "dtype", "attn_implementation", "trust_remote_code", "model_max_length"}
ARGUMENTS = ("model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs")
REMEDY = (
    "Give config.data.encoder the Hugging Face directory of a BERT, DistilBERT, MPNet, RoBERTa or XLM-RoBERTa, or leave "
    "it empty for all-MiniLM-L6-v2."
)


@dataclass(frozen=True)
class Family:
    """How a model_type differs from BERT in the names of its sizes and in its positions."""

    tokenizer: str  # the library's class if no file names one
    names: Mapping[str, str] = field(default_factory=dict)  # of keys in config.json, for BERT's
    counted: bool = False  # positions are counted over tokens that are no padding, from the padding's id on


FAMILIES = {
    "bert": Family("BertTokenizer"),
    "distilbert": Family(
        "DistilBertTokenizer",
        {
            "num_hidden_layers": "n_layers",
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
    ),
    "mpnet": Family("MPNetTokenizer", counted=True),
    "roberta": Family("RobertaTokenizer", counted=True),
    "xlm-roberta": Family("XLMRobertaTokenizer", counted=True),
}


@dataclass(frozen=True)
class BertShape:
    """Sizes of an encoder and the kinds of its parts, from config.json; all that a compiled program depends on."""

    vocabulary: int
    positions: int  # rows of the table
    layers: int
    width: int
    heads: int
    feed_forward: int
    epsilon: float
    family: str = "bert"
    activation: str = "gelu"
    padding: int = -1  # the padding's id, where positions are counted from it on
    buckets: int = 0  # of MPNet's relative positions
    pooling: tuple[str, ...] = ("mean",)

    @property
    def longest(self) -> int:
        """Tokens of a text, the special ones among them, that the table has positions for."""
        return self.positions - (self.padding + 1)


@dataclass(frozen=True)
class EncoderDirectory:
    """A directory whose settings are all known.

    Attributes:
      root: as given.
      model: the folder of config.json, weights and tokenizer: `root`, or the one that modules.json names.
      normalize: vectors are scaled to length 1.
      prompt: put before every text, key and query alike (the library's default prompt).
      lower_case: text is lower-cased before the tokenizer's own rules.
      dimensions: the first so many numbers of a vector are kept; 0: all.
    """

    root: Path
    model: Path
    shape: BertShape
    normalize: bool = False
    prompt: str = ""
    lower_case: bool = False
    dimensions: int = 0

    @property
    def width(self) -> int:
        """E, numbers in a vector."""
        whole = len(self.shape.pooling) * self.shape.width
        return min(self.dimensions, whole) or whole

    @property
    def settings(self) -> dict:
        """The settings that decide a vector and differ from the default; part of the fingerprint."""
        found = {
            "model": self.model.relative_to(self.root).as_posix() if self.model != self.root else "",
            "pooling": list(self.shape.pooling) if self.shape.pooling != ("mean",) else [],
            "prompt": self.prompt,
            "lower_case": self.lower_case,
            "dimensions": self.dimensions,
        }
        return {key: value for key, value in found.items() if value}


def read_directory(directory: Path) -> EncoderDirectory:
    """Reads all settings, without weights.

    Raises:
      StageError: a missing or broken file, or a setting that is not known here; the message names file, key and value.
    """
    root = Path(directory)
    if not root.is_dir():
        raise StageError(
            f"{root} is not an encoder: this directory does not exist (models of a hub are not downloaded; do so yourself). {REMEDY}"
        )
    if not (root / "modules.json").is_file():  # the library then takes the mean without a prompt
        return EncoderDirectory(root, root, read_shape(root))
    folder, pooling, normalize = _read_modules(root)
    shape = read_shape(folder)
    dimensions, prompt = _read_prompt(root)
    modes = _read_pooling(pooling, shape.width, prompt)
    shape = BertShape(**{**shape.__dict__, "pooling": modes})
    lower_case = _read_sentence_config(folder)
    return EncoderDirectory(root, folder, shape, normalize, prompt, lower_case, dimensions)


def read_shape(directory: Path) -> BertShape:
    """Sizes and kinds in config.json.

    Raises:
      StageError: a kind of model that is not computed here; the message names the key.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise StageError(f"{directory} is not an encoder: it has no config.json. {REMEDY}")
    config = read_json(path, dict)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise StageError(
            f"{path} has model_type {kind!r}, but the encoder must be one of {', '.join(FAMILIES)}. {REMEDY}"
        )
    family = FAMILIES[kind]

    def get(key: str, default=None):
        return config.get(family.names.get(key, key), default)

    _check_config(path, config)
    activation = get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        name = family.names.get("hidden_act", "hidden_act")
        raise StageError(f"{path} has {name} {activation!r}; known are {', '.join(ACTIVATIONS)}. {REMEDY}")
    keys = {
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "feed_forward": "intermediate_size",
    }
    sizes = {ours: get(theirs) for ours, theirs in keys.items()}
    if wrong := [family.names.get(keys[k], keys[k]) for k, v in sizes.items() if type(v) is not int or v <= 0]:
        raise StageError(f"{path} lacks whole positive numbers for {', '.join(wrong)}. {REMEDY}")
    if sizes["width"] % sizes["heads"]:
        raise StageError(
            f"{path}: hidden_size {sizes['width']} is not a multiple of num_attention_heads {sizes['heads']}. {REMEDY}"
        )
    padding = -1
    if family.counted:
        padding = 1 if kind == "mpnet" else config.get("pad_token_id", 1)  # MPNet's is fixed in the library
        if type(padding) is not int or not 0 <= padding < sizes["positions"] - 2:
            raise StageError(
                f"{path} has pad_token_id {padding!r} and {sizes['positions']} positions, but positions are counted from "
                f"the padding's id on. {REMEDY}"
            )
    buckets = get("relative_attention_num_buckets", 32) if kind == "mpnet" else 0
    if type(buckets) is not int or (buckets < 4) != (kind != "mpnet"):
        raise StageError(f"{path} has relative_attention_num_buckets {buckets!r}; 4 or more are needed. {REMEDY}")
    epsilon = get("layer_norm_eps", 1e-12) if kind != "distilbert" else 1e-12
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise StageError(f"{path} has layer_norm_eps {epsilon!r}, but a small positive number is needed. {REMEDY}")
    return BertShape(
        **sizes, epsilon=float(epsilon), family=kind, activation=activation, padding=padding, buckets=buckets
    )


def _check_config(path: Path, config: Mapping) -> None:
    """Raises StageError for settings that would make another model of the same sizes."""
    wanted = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
        "quantization_config": None,
        "pruned_heads": {},
    }
    for key, value in wanted.items():
        if (found := config.get(key) or value) != value:
            raise StageError(f"{path} has {key} {found!r:.60}, but only {value!r} is computed here. {REMEDY}")
    if model := section(path, config, "auto_map").get("AutoModel"):
        raise StageError(
            f"{path} computes with code of its own (auto_map: AutoModel {model!r}), which is not run here. {REMEDY}"
        )
    if (adapter := path.with_name("adapter_config.json")).is_file():
        raise StageError(
            f"{adapter} changes the weights (an adapter of PEFT), which is not known here. Merge it into the model "
            f"(merge_and_unload) and save that. {REMEDY}"
        )


def _read_modules(root: Path) -> tuple[Path, Path, bool]:
    """From modules.json: the folder of the model, the config of its pooling, and whether vectors are normalized."""
    path = root / "modules.json"
    modules = read_json(path, list)
    kinds, folders = [], []
    for module in modules:
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("type", "path")):
            raise StageError(f"{path} has a module without type and path: {module!r:.80}. {REMEDY}")
        package, _, kind = module["type"].rpartition(".")
        known = package.split(".")[0] == "sentence_transformers" and kind in ("Transformer", "Pooling", "Normalize")
        if not known:
            raise StageError(f"{path} lists {kind} ({module['type']}), which is not known here. {REMEDY}")
        place = PurePosixPath(module["path"])
        if place.is_absolute() or ".." in place.parts:
            raise StageError(f"{path} has the path {module['path']!r}, which leads out of the directory. {REMEDY}")
        kinds.append(kind)
        folders.append(root / place)
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        raise StageError(
            f"{path} lists {', '.join(kinds) or 'no module'}, but the encoder must be Transformer, Pooling and, if you "
            f"like, Normalize, in this order. {REMEDY}"
        )
    for folder in folders[2:]:
        named = read_json(folder / "config.json", dict) if (folder / "config.json").is_file() else {}
        if other := {key: value for key, value in named.items() if value not in ("sentence_embedding", None)}:
            raise StageError(f"{folder}/config.json has {other!r:.80}, but only the vector can be normalized. {REMEDY}")
    return folders[0], folders[1] / "config.json", bool(folders[2:])


def _read_pooling(path: Path, width: int, prompt: str) -> tuple[str, ...]:
    """The kinds of pooling in either spelling; several are concatenated."""
    facts = read_json(path, dict)
    if unknown := sorted(set(facts) - POOLING_KEYS):
        raise StageError(f"{path} has {unknown[0]} {facts[unknown[0]]!r:.60}, which is not known here. {REMEDY}")
    older = [mode for mode, key in POOLING.items() if facts.get(key)]
    found = facts.get("pooling_mode", older or "mean")
    modes = (found,) if isinstance(found, str) else tuple(found) if isinstance(found, list) else (found,)
    if not modes or any(not isinstance(mode, str) or mode not in POOLING for mode in modes):
        raise StageError(f"{path} pools by {found!r}; known are {', '.join(POOLING)}. {REMEDY}")
    for key in ("embedding_dimension", "word_embedding_dimension"):
        if facts.get(key, width) != width:
            raise StageError(f"{path} has {key} {facts[key]!r}, but config.json has hidden_size {width}. {REMEDY}")
    if not facts.get("include_prompt", True) and prompt:
        raise StageError(
            f"{path} has include_prompt false: the default prompt {prompt!r} is read, but not pooled, which is not known "
            f"here. {REMEDY}"
        )
    return modes


def _read_prompt(root: Path) -> tuple[int, str]:
    """(numbers of a vector that are kept, or 0; the default prompt) from config_sentence_transformers.json."""
    path = root / "config_sentence_transformers.json"
    facts = read_json(path, dict) if path.is_file() else {}
    if (kind := facts.get("model_type") or "SentenceTransformer") != "SentenceTransformer":
        raise StageError(f"{path} has model_type {kind!r}, which does not give one vector a text. {REMEDY}")
    dimensions = facts.get("truncate_dim") or 0
    if type(dimensions) is not int or dimensions < 0:
        raise StageError(f"{path} has truncate_dim {dimensions!r}, which is no number of dimensions. {REMEDY}")
    prompts, name = section(path, facts, "prompts"), facts.get("default_prompt_name")
    if name is None:
        return dimensions, ""
    if not isinstance(name, str) or not isinstance(prompts.get(name) or "", str):
        raise StageError(f"{path} has prompts {prompts!r:.80}, which are no texts by name. {REMEDY}")
    if name not in prompts and name not in ("query", "document"):  # these two are empty where nothing is said
        raise StageError(f"{path} has default_prompt_name {name!r}, but prompts {sorted(prompts)}. {REMEDY}")
    return dimensions, prompts.get(name) or ""


def _read_sentence_config(folder: Path) -> bool:
    """Whether sentence_bert_config.json (or one of its other names) asks for lower case."""
    path = next((folder / name for name in SENTENCE_CONFIGS if (folder / name).is_file()), None)
    facts = read_json(path, dict) if path else {}
    for key, value in facts.items():
        if key in ARGUMENTS:
            value = {name: item for name, item in section(path, facts, key).items() if name not in NEUTRAL_ARGUMENTS}
        neutral = key == "do_lower_case" or (key in NEUTRAL and (not NEUTRAL[key] or value in NEUTRAL[key]))
        if value and not neutral:
            raise StageError(f"{path} has {key} {value!r:.60}, which is not known here. {REMEDY}")
    return bool(facts.get("do_lower_case"))


def section(path: Path, facts: Mapping, key: str) -> dict:
    """The JSON object under a key, empty if it is missing; StageError for another type."""
    found = facts.get(key) or {}
    if not isinstance(found, dict):
        raise StageError(f"{path} has {key} {found!r:.60}, but a JSON object is expected. {REMEDY}")
    return found


def read_json(path: Path, kind: type):
    """The content of a JSON file that holds a `kind` (dict or list); StageError otherwise."""
    if not path.is_file():
        raise StageError(f"{path} is missing; fetch it. {REMEDY}")
    try:
        return files.read_json(path, REMEDY, kind=kind)
    except files.DamagedFile as error:
        raise StageError(str(error)) from None
