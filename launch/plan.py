"""`retro build --plan`: builds samples of the config's text in a temporary directory and extrapolates."""

import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from data_pipeline import plan as planning
from data_pipeline.documents.stage import training_sources
from data_pipeline.encoder.bert import encoder_directory
from data_pipeline.pipeline import stages
from data_pipeline.plan import CHUNKS, Rates
from data_pipeline.tokens import model_file
from retro_jax.config import RunConfig
from retro_jax.presets.topologies import CHIPS


def make_plan(run: RunConfig, tokens: float, nodes: int, accelerator: str) -> dict:
    """Builds samples and runs `data_pipeline.plan.plan` on them.

    Args:
      tokens: of the corpus; 0 takes the text of the config's sources.
      accelerator: a chip of `retro_jax.presets.topologies`, for "chip_hours" of embedding at its published rate; or empty.

    Raises:
      ValueError: an unknown accelerator, a build that searches another database, or a corpus that cannot be planned for.
    """
    if run.data.database:
        raise ValueError(
            f"--plan is for builds with a database of their own, but config.data.database={run.data.database} is set. "
            f"Leave it out: the plan then counts an index and a search of its own text as well."
        )
    known = [name for name, chip in CHIPS.items() if chip.peak_flops]
    if accelerator and accelerator not in known:
        raise ValueError(f"--plan_accelerator={accelerator} is not known; take one of {', '.join(known)}.")
    rates, total = measure(run, tokens)
    tokens = tokens or total / rates.text.text_bytes * rates.text.tokens
    found = planning.plan(rates, tokens, nodes)
    if accelerator:
        peak = CHIPS[accelerator].peak_flops
        hours = planning.chip_hours(tokens, encoder_directory(run.data), peak)
        found |= {"accelerator": accelerator, "chip_hours": hours}
    return found


def measure(run: RunConfig, tokens: float = 0) -> tuple[Rates, float]:
    """What the samples took, and the bytes of the corpus (infinite where it is given by its tokens)."""
    sizes, total = dict.fromkeys(training_sources(run.data), 1.0), math.inf
    if not tokens:
        sizes = planning.source_bytes(run)
        total = sum(sizes.values())
    with tempfile.TemporaryDirectory(prefix="retro-plan-") as name:
        folder = Path(name)
        wanted = planning.text_wanted(run, total)
        short = planning.sample_run(run, sizes, wanted, folder / "text", run.data.tokenizer)
        text, _ = _make(short, until="chunks")
        model = run.data.tokenizer or str(model_file(Path(short.data.directory)))
        keys = text.keys * (tokens / text.tokens if tokens else total / text.text_bytes) * run.data.database_fraction
        below = run.data.exact_below if keys < run.data.exact_below else 0  # the search that the full corpus will have
        run = replace(run, model=short.model, data=replace(run.data, exact_below=below))
        samples = []
        for chunks in CHUNKS:
            bytes_wanted = min(total * chunks / CHUNKS[1], text.text_bytes * chunks / text.chunks)
            sample, facts = _make(planning.sample_run(run, sizes, bytes_wanted, folder / str(chunks), model))
            samples.append(sample)
        scan = planning.scan_seconds(folder / str(CHUNKS[1]) / "data")
    leaves = facts["index"]["shards"]["index-00000"]["leaves_searched"]
    shards, visits, fraction = run.data.index_shards, run.data.index_shards_visited, run.data.database_fraction
    return Rates(text, *samples, facts["embeddings"]["width"], leaves, scan, shards, fraction, visits), total


def _make(run: RunConfig, until: str = ""):
    """The stages of a sample, up to one of them or all."""
    data = Path(run.data.directory)
    for stage, (directory, make) in stages(run, data).items():
        print(f"plan: {stage} of a sample", file=sys.stderr, flush=True)
        make(directory)
        if stage == until:
            break
    return planning.read_sample(data)
