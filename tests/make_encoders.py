"""Tiny random encoders of many kinds, saved by transformers and sentence-transformers, and the library's vectors.

    python tests/make_encoders.py DIRECTORY     (in an environment with sentence-transformers: make test-encoders)

Each folder holds what a published directory of its kind holds and `vectors.npy`, float32 [texts, E], what
`SentenceTransformer(folder).encode` gives for TEXTS one by one. tests/golden/encoders was made by this file, with the
versions in its versions.json; tests/test_encoders.py compares with it, and `make test-encoders` with fresh ones.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

WIDTH, HEADS, LAYERS, HIDDEN, POSITIONS = 16, 4, 2, 24, 72
TEXTS = [
    "",
    "the mill",
    "The MILL by the Café, not the river!",
    " leading and trailing space \n",
    "a river\tran past 河 mill\u2028and\u00a0on",
    "one two three four five six seven eight nine ten",
    "tokens like [SEP] and <pad> and </s> in a text",
    "x9_unknown \U0001f600 w\u00f6rter nai\u0308ve",
    "past the mill and on and on past the river " * 2,
]
WORDS = "the mill by not river a ran past and on one two three four five six seven eight nine ten The MILL cafe Cafe in"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!_é"
WORD_PIECES = [*WORDS.split(), *LETTERS, *(f"##{letter}" for letter in LETTERS[:26] + "0123456789é")]
WORD_PIECES = list(dict.fromkeys(WORD_PIECES))


def pieces(*special: str) -> dict[str, int]:
    return {piece: number for number, piece in enumerate([*special, *WORD_PIECES])}


def bert_tokenizer(**options):
    from transformers import BertTokenizer

    return BertTokenizer(
        vocab=pieces("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), model_max_length=POSITIONS, **options
    )


def mpnet_tokenizer():
    from transformers import MPNetTokenizer

    return MPNetTokenizer(vocab=pieces("<s>", "<pad>", "</s>", "[UNK]", "<mask>"), model_max_length=POSITIONS - 2)


def roberta_tokenizer():
    from tokenizers import pre_tokenizers
    from transformers import RobertaTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "l"), ("il", "l"), ("m", "ill"), ("Ġ", "mill"), ("a", "n")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, *("".join(pair) for pair in merges), "<mask>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS - 2)


def xlm_roberta_tokenizer():
    from transformers import XLMRobertaTokenizer

    scored = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    scored += [(f"▁{word}", -3.0 - number / 7) for number, word in enumerate(WORDS.split())]
    scored += [("▁", -5.0), *((letter, -6.0 - number / 9) for number, letter in enumerate(LETTERS)), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=scored, model_max_length=POSITIONS - 2)


def model(kind: str, tokenizer, seed: int, **options):
    """A random model of the kind, its weights rounded to half precision, so that they can be stored as such."""
    import torch
    import transformers

    names = {"distilbert": ("DistilBertConfig", "DistilBertModel"), "bert": ("BertConfig", "BertModel")}
    names |= {"mpnet": ("MPNetConfig", "MPNetModel"), "roberta": ("RobertaConfig", "RobertaModel")}
    names |= {"xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel")}
    sizes = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=HIDDEN)
    if kind == "distilbert":
        sizes = dict(dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=HIDDEN)
    config, network = (getattr(transformers, name) for name in names[kind])
    sizes |= dict(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, initializer_range=0.4)
    torch.manual_seed(seed)
    made = network(config(**sizes, **options), **({} if kind == "distilbert" else {"add_pooling_layer": False}))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:  # biases 0 and scales 1 would hide a tensor that is taken for another
                parameter.add_(0.3 * torch.randn_like(parameter))
            parameter.copy_(parameter.half().float())
    return made.eval()


def write_plain(folder: Path, kind: str, tokenizer, seed: int, **options) -> Path:
    model(kind, tokenizer, seed, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_modules(folder: Path, kind: str, tokenizer, seed: int, pooling, normalize: bool, prompts=None, **options):
    """As sentence-transformers saves it today."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    prompts, activation = prompts or {}, options.pop("activation", {})
    plain = write_plain(folder.with_name("plain"), kind, tokenizer, seed, **activation)
    parts = [Transformer(str(plain)), Pooling(WIDTH, pooling_mode=pooling), *([Normalize()] if normalize else [])]
    SentenceTransformer(modules=parts, **prompts, **options).save(str(folder), create_model_card=False)
    shutil.rmtree(plain)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def change_json(path: Path, **changes) -> None:
    write_json(path, {**(json.loads(path.read_text()) if path.exists() else {}), **changes})


def older_layout(folder: Path, pooling: str, normalize: bool, transformer: str = "", **sentence) -> None:
    """What sentence-transformers wrote up to 5.3."""
    kinds = [
        ("Transformer", transformer),
        ("Pooling", "1_Pooling"),
        *([("Normalize", "2_Normalize")] if normalize else []),
    ]
    write_json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (kind, path) in enumerate(kinds)
        ],
    )
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens")}
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": WIDTH, **modes})
    write_json(
        folder / transformer / "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False, **sentence}
    )


def rename_tensors(path: Path, rename) -> None:
    from safetensors.torch import load_file, save_file

    save_file(
        {rename(name): tensor.clone() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"}
    )


def first_names(name: str) -> str:
    """bert-base-uncased's own."""
    return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def make_all(root: Path) -> None:
    """Writes every folder, without the vectors."""
    import torch

    cased, uncased = bert_tokenizer(do_lower_case=False), bert_tokenizer()
    older_layout(write_plain(root / "minilm", "bert", uncased, 0), "mean_tokens", True)
    write_modules(root / "bge", "bert", uncased, 1, "cls", True)
    write_modules(
        root / "e5", "bert", uncased, 2, "mean", True, dict(prompts={"query": "query: ", "passage": "passage: "})
    )
    prompts = dict(prompts={"passage": "the river: "}, default_prompt_name="passage")
    write_modules(root / "default_prompt", "bert", uncased, 3, "mean", False, prompts)
    older_layout(write_plain(root / "lower_by_module", "bert", cased, 4), "mean_tokens", False, do_lower_case=True)
    change_json(root / "lower_by_module/tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    write_plain(root / "lower_by_class", "bert", cased, 5)
    change_json(root / "lower_by_class/tokenizer_config.json", do_lower_case=True)
    write_plain(root / "cased_by_class", "bert", uncased, 6)
    change_json(root / "cased_by_class/tokenizer_config.json", do_lower_case=False, strip_accents=True)
    folder = write_plain(root / "first_bert", "bert", uncased, 7)
    rename_tensors(folder / "model.safetensors", first_names)
    (folder / "tokenizer_config.json").unlink()
    folder = write_plain(root / "vocabulary_only", "bert", cased, 8)
    (folder / "tokenizer.json").unlink()
    vocabulary = cased.get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf-8")
    folder = root / "subfolder"
    write_plain(folder / "0_Transformer", "bert", uncased, 9, hidden_act="gelu_new")
    older_layout(folder, "cls_token", False, "0_Transformer")
    write_modules(root / "distilbert", "distilbert", uncased, 10, "mean", False, activation={"activation": "relu"})
    write_modules(root / "mpnet", "mpnet", mpnet_tokenizer(), 11, "mean", True)
    write_modules(root / "roberta", "roberta", roberta_tokenizer(), 12, "mean", False)
    write_modules(root / "xlm_roberta", "xlm-roberta", xlm_roberta_tokenizer(), 13, "cls", True)
    modes = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    write_modules(root / "poolings", "bert", uncased, 14, modes, False, truncate_dim=90)
    folder = root / "parts"
    made = model("bert", uncased, 15, hidden_act="silu").to(torch.bfloat16)
    made.save_pretrained(folder, max_shard_size="6KB")
    uncased.save_pretrained(folder)


def library_vectors(folder: Path) -> np.ndarray:
    import torch
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    return np.stack([encoder.encode(text, show_progress_bar=False) for text in TEXTS])


def shrink(folder: Path) -> None:
    """Weights as half-precision numbers, which they are, and JSON without spaces."""
    import torch
    from safetensors.torch import load_file, save_file

    for path in folder.rglob("model.safetensors"):
        tensors = {name: tensor.to(torch.float16) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    for path in folder.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()), separators=(",", ":")))


def main(root: Path) -> None:
    import sentence_transformers
    import tokenizers
    import torch
    import transformers

    make_all(root)
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        shrink(folder)
        np.save(folder / "vectors.npy", library_vectors(folder).astype(np.float32))
        print(folder.name, np.load(folder / "vectors.npy").shape, flush=True)
    versions = {
        module.__name__: module.__version__ for module in (sentence_transformers, tokenizers, torch, transformers)
    }
    write_json(root / "versions.json", versions)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
