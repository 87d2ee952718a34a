"""The Wikitext-103 experiment of the paper (4.1, C.2, Table 4): a baseline, its retrofit with Wikipedia, and RETRO from scratch.

    retro sweep --config=configs/wikitext103.py:FOLDER --workdir=runs/wikitext103 --topology=v5p:2x2x4 --plan
    retro sweep --config=configs/wikitext103.py:FOLDER,smoke --workdir=runs/wikitext103-smoke

FOLDER holds wikitext/ (training articles, one a record, in any format of a build), wikipedia/ (the same of Wikipedia),
wiki.valid.tokens and wiki.test.tokens (docs/guides/protocols.md), and titles.txt, whose articles leave Wikipedia: both files, one
behind the other. Only wikitext/ is trained on; both are searched. 18 layers and embeddings shared between decoder and encoder.
Different from the paper: no dropout (there 0.25), and the retrofit starts from the last step of the baseline (there the best, 35,000).
Hardware: as configs/retro.py:425m. By the roofline of `--plan`, a lower bound: 324 chip-hours on v5p:2x2x4.
Expected, perplexity on validation and test: baseline 21.53 / 22.96, retrofit with Wikipedia 18.46 / 18.97 (k = 10); from scratch RETRO
over-fits and is weaker than its baseline. Not reproduced here: no package holds Wikitext-103.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from retro_jax.config import SourceConfig, default_config, to_dict
from retro_jax.presets.overrides import Overrides
from retro_jax.presets.sizes import every_third, shrink

SETS = {"wikitext103_valid": "wiki.valid.tokens", "wikitext103_test": "wiki.test.tokens"}


def get_config(argument: str = ""):
    folder, smoke = argument.removesuffix(",smoke"), argument.endswith(",smoke")
    if not folder:
        raise ValueError("The folder of the texts is missing: --config=configs/wikitext103.py:FOLDER[,smoke].")
    config = default_config()
    config.model.update(sequence_length=3_072, layers=18, width=1_024, heads=16, head_dim=64, feed_forward=4_096)
    config.model.update(retrieval_layers=every_third(18), shared_embeddings=True)
    config.train.update(batch=128, steps=100_000, warmup_steps=4_000, learning_rate=2.5e-4, final_fraction=0.08)
    if smoke:
        shrink(config)
    config.model.encoder.width = config.model.width
    texts = {
        "wikitext": SourceConfig(path=f"{folder}/wikitext"),
        "wikipedia": SourceConfig(path=f"{folder}/wikipedia", evaluation_titles=f"{folder}/titles.txt"),
    }
    for name, file in SETS.items():
        # An overlap of 0.875 needs 8 chunks; a laptop's sequence has 4.
        protocol = "wikitext103_75" if smoke else "wikitext103"
        texts[name] = SourceConfig(role="evaluation", protocol=protocol, path=f"{folder}/{file}")
    config.data.sources = ConfigDict({name: to_dict(source) for name, source in texts.items()})
    config.train.subset_weights = {"wikitext": 1.0, "wikipedia": 0.0}
    config.evaluate.update(sets=tuple(SETS), tried_neighbors=(10,))
    return config


def sweep(argument: str = "") -> Iterator[tuple[str, Overrides]]:
    yield "baseline", {"model.retrieval_layers": (), "model.shared_embeddings": False}
    yield "retrofit", {"train.initialize_from": "point:baseline", "train.trainable": "retrieval"}
    yield "from_scratch", {}
