"""Your own text: a file, a folder or a glob, local or in an object store (gs://, s3://), as one subset.

    retro build --config=configs/own_text.py:PATH --workdir=runs/mine
    retro train --config=configs/own_text.py:PATH --workdir=runs/mine

`:PATH,172m` takes a size of the paper (172m, 425m, 1b5, 7b5); `:PATH,smoke` the smallest form. Without either, a model
for a laptop (configs/quickstart.py without its text) and a vocabulary of 4,096.
It reads .txt, .jsonl, .ndjson and .json (a value a line or one array), these also as .gz, .zst, .xz and .bz2, .parquet,
.arrow, a Hugging Face data set folder, and a TFDS data set directory of ArrayRecord files; the build says which files it
leaves out, and .sources.own.format=text reads other endings. Records hold the text under "text" (--config.data.sources.own.text_key) and, if you
like, a subset name (.subset_key; the Pile: meta.pile_set_name) and an id (.id_key). A store's URL needs its package
(gcsfs, s3fs).
Cleaning drops training documents near a held-out one, as the paper does (--config.data.near_duplicate_jaccard=0 leaves
them); .sources.own.evaluation_titles=wiki.test.tokens those of Wikitext; WORKDIR/data/documents/dropped.jsonl lists both.
State the license of your text: --config.data.sources.own.license="...".
Hardware: any; megabytes of text train on 2 CPU cores in minutes. Expected: a gain from retrieval only where your
documents share text; `retro evaluate` reports it beside its controls.
"""

from retro_jax.config import SourceConfig, default_config, to_dict
from retro_jax.presets.sizes import RETRO, set_laptop, set_size, shrink, split_argument

WORDS = [*RETRO, "smoke"]


def get_config(argument: str = ""):
    path, words = argument, []
    while "," in path and path.rsplit(",", 1)[1] in WORDS:  # a path may hold commas of its own
        path, word = path.rsplit(",", 1)
        words.append(word)
    if not path:
        raise ValueError("The path of your text is missing: --config=configs/own_text.py:PATH (a file or a folder).")
    sizes = sorted(split_argument(",".join(words), WORDS) - {"smoke"})
    if len(sizes) > 1:
        raise ValueError(f"One size at most, but '{argument}' has {', '.join(sizes)}.")
    config = default_config()
    if sizes:
        set_size(config, RETRO[sizes[0]])
    else:
        set_laptop(config)
        config.train.update(steps=2_000, warmup_steps=50, checkpoint_every=200)
    if "smoke" in words:
        shrink(config)
    config.data.sources = {"own": to_dict(SourceConfig(path=path))}
    return config
