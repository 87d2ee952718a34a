"""Writes docs/measured/scaling.md: every recipe's preflight.

    .venv-tpu/bin/python benchmarks/compiled/scaling.py runs/scaling docs/measured/scaling.md     # or: make scaling

Each row is one JSON file in the given folder; an existing row is not compiled again, so an interrupted run
continues. Rows for GPUs are the estimate; `--no-compile` writes the page from the rows there are.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from scaling_page import database_section, page

from data_pipeline.stages import known
from launch.command.config_files import load_config
from retro_jax.config import RunConfig, resolve
from retro_jax.preflight.report import preflight
from retro_jax.presets.recipes import RECIPES, XLA_RECIPES, Recipe
from retro_jax.presets.topologies import CHIPS, parse_topology

ROOT = Path(__file__).resolve().parents[2]
PLANS = {1e8: 1, 1e9: 1, 1e10: 16, 1e11: 256, 1.75e12: 4096}  # tokens: nodes; the last are the paper's 28 billion keys
# Without the tokenizer, whose training does not grow with the text.
STAGES = tuple(name for name, one in known.STAGES.items() if one.wanted(RunConfig()) and name != "tokenizer")


def measure(recipe: Recipe, attention: str, compiling: bool, folder: Path) -> dict:
    """The row of a recipe: from its file, or made (and kept, if it was compiled)."""
    topology = parse_topology(recipe.topology)
    path = folder / f"{recipe.size}-{topology.word}{'-xla' if attention == 'xla' else ''}.json"
    run = resolve(load_config(f"{ROOT}/configs/retro.py:{recipe.size}"))
    run = replace(run, model=replace(run.model, attention=attention))
    if path.exists():
        row, estimate = json.loads(path.read_text()), preflight(run, topology, False, lambda line: None)
        same = ("attention", "mesh", "accumulation", "remat", "loss_block")
        if all(row["report"].get(key) == estimate[key] for key in same):
            return row | {"estimate": estimate}
    compiling = compiling and topology.chip.compiles

    def say(line):
        print(f"scaling: {recipe.size} {topology.name}: {line}", file=sys.stderr, flush=True)

    row = {
        "estimate": preflight(run, topology, False, lambda line: None),
        "report": preflight(run, topology, compiling, say if compiling else lambda line: None),
        "date": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
    }
    if compiling:
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(row, indent=2))
        partial.replace(path)
    return row


def measure_database(folder: Path) -> dict:
    """Plans by tokens: from their file, or made from one set of samples and kept."""
    path = folder / "database.json"
    if not path.exists():
        from data_pipeline import plan as planning
        from data_pipeline.encoder.bert import encoder_directory
        from launch.plan import measure as measure_rates

        run = resolve(load_config(f"{ROOT}/configs/nine_subsets.py"))
        print("scaling: samples for the plan of the database", file=sys.stderr, flush=True)
        rates, _ = measure_rates(run, max(PLANS))
        encoder, peak = encoder_directory(run.data), CHIPS["h100"].peak_flops
        plans = [planning.plan(rates, tokens, nodes) for tokens, nodes in PLANS.items()]
        for plan in plans:
            plan["chip_hours"] = planning.chip_hours(plan["tokens"], encoder, peak)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"plans": plans, "date": time.strftime("%Y-%m-%d"), "cpus": os.cpu_count()}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(facts, indent=2))
        partial.replace(path)
    return json.loads(path.read_text())


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-compile", action="store_true", help="only the rows that were compiled before")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args(argv)
    rows, database = {}, database_section(measure_database(options.folder), STAGES)
    for recipes, attention in ((RECIPES, "auto"), (XLA_RECIPES, "xla")):
        for recipe in recipes.values():
            rows[recipe, attention] = measure(recipe, attention, not options.no_compile, options.folder)
            options.page.write_text(page(rows, database))


if __name__ == "__main__":
    main(sys.argv[1:])
