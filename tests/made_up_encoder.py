"""A Hugging Face directory of a BERT with random weights, small enough to read and to run anywhere."""

import json
from pathlib import Path

import made_up_text
import numpy as np
from safetensors.numpy import save_file

WIDTH, HEADS, LAYERS, FEED_FORWARD, POSITIONS = 16, 4, 2, 24, 60
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?()_-"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *made_up_text.WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
PIECES = list(dict.fromkeys(PIECES))
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "vocab_size": len(PIECES),
    "max_position_embeddings": POSITIONS,
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": FEED_FORWARD,
    "layer_norm_eps": 1e-12,
}
MEAN = {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def tokenizer() -> dict:
    specials = [
        {
            "id": i,
            "content": PIECES[i],
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i in range(4)
    ]
    single = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    tokens = {name: {"id": name, "ids": [PIECES.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    return {
        "version": "1.0",
        # Both are in the packaged file too, and neither may reach a chunk: it is embedded whole.
        "truncation": {"max_length": 12, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 12},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": specials,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: number for number, piece in enumerate(PIECES)},
        },
    }


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    source = np.random.default_rng(seed)

    def tensor(*shape):
        return source.normal(0, 0.4, shape).astype(np.float32)

    found = {
        "embeddings.position_ids": np.arange(POSITIONS, dtype=np.int64)[None],
        "embeddings.word_embeddings.weight": tensor(len(PIECES), WIDTH),
        "embeddings.position_embeddings.weight": tensor(POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": tensor(2, WIDTH),
        "embeddings.LayerNorm.weight": 1 + tensor(WIDTH),
        "embeddings.LayerNorm.bias": tensor(WIDTH),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part, rows, columns in (
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", FEED_FORWARD, WIDTH),
            ("output.dense", WIDTH, FEED_FORWARD),
        ):
            found[f"{name}.{part}.weight"], found[f"{name}.{part}.bias"] = tensor(rows, columns), tensor(rows)
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            found[f"{name}.{part}.weight"], found[f"{name}.{part}.bias"] = 1 + tensor(WIDTH), tensor(WIDTH)
    return found


def write(directory: Path, *, seed: int = 0, normalize: bool = True, config=None, tensors=None, pooling=None) -> Path:
    """The directory; `config` and `pooling` replace single keys, `tensors` all weights."""
    (directory / "1_Pooling").mkdir(parents=True, exist_ok=True)
    modules = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    files = {
        "config.json": {**CONFIG, **(config or {})},
        "tokenizer.json": tokenizer(),
        "modules.json": [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(modules)
        ],
        "1_Pooling/config.json": {**MEAN, **(pooling or {})},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    save_file(weights(seed) if tensors is None else tensors, directory / "model.safetensors")
    return directory
