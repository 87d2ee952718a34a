"""Writes docs/measured/scaling.md: every recipe's preflight.

    .venv-tpu/bin/python benchmarks/scaling.py runs/scaling docs/measured/scaling.md     # or: make scaling

Each row is one JSON file in the given folder; an existing row is not compiled again, so an interrupted run
continues. Rows for GPUs are the estimate; `--no-compile` writes the page from the rows there are.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from data_pipeline.stages import known
from launch.command.config_files import load_config
from retro_jax.config import RunConfig, resolve
from retro_jax.preflight.report import preflight
from retro_jax.presets.recipes import RECIPES, Recipe
from retro_jax.presets.topologies import CHIPS, parse_topology

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Scaling

Written by `make scaling`; do not edit. Every row is `retro preflight --config=configs/retro.py:SIZE --topology=SLICE` with
that slice's recipe (`configs/retro.py:SIZE,SLICE` trains with it), at the paper's batch: 256 sequences of 2,048 tokens,
1,024 for 7b5; vocabulary 128,000, k = 2, 419 billion tokens in all.

GiB are a device's. Rows proven by the compiler were compiled for that TPU with no TPU there; the others are the estimate
alone, because no compiler for the device works without it, or because the row was not compiled yet. Seconds are a
roofline: the most that the chip's published rates allow. A real step takes longer, so tokens a second and model FLOP
utilization (MFU) are upper bounds, and chip-hours a lower one.

| size | slice | data x fsdp x tensor | accumulation | remat | fits | proof | GiB needed | GiB there are | estimate | compile s | step s | bound by | tokens/s | MFU | chip-hours |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""
PARTS = """
## GiB a device by part, by the estimate

| size | slice | parameters | moments | gradients | activations and temporaries |
|---|---|---|---|---|---|
"""


DATABASE = """
## The database, on paper

`retro build --plan --plan_tokens=TOKENS --plan_nodes=NODES`, from rates measured on samples of configs/nine_subsets.py on
this machine ({cpus} CPU cores, {date}) and the laws of growth in data_pipeline/plan.py: beyond two million keys an index
shard each chunk is searched in every shard, so the neighbors' work is quadratic in the text. Nodes are machines like this
one; chip-hours are those of embedding alone at the published rate of an H100, which no real run reaches.

| tokens | chunks | index shards | nodes | TB on disk | index a node, GB | embedding, H100-hours at least | {stages} | wall hours |
|---|---|---|---|---|---|---|{lines}---|
"""
PLANS = {1e8: 1, 1e9: 1, 1e10: 16, 1e11: 256, 1.75e12: 4096}  # tokens: nodes; the last are the paper's 28 billion keys
# Without the tokenizer, whose training does not grow with the text.
STAGES = tuple(name for name, one in known.STAGES.items() if one.wanted(RunConfig()) and name != "tokenizer")


def measure(recipe: Recipe, compiling: bool, folder: Path) -> dict:
    """The row of a recipe: from its file, or made (and kept, if it was compiled)."""
    topology = parse_topology(recipe.topology)
    path = folder / f"{recipe.size}-{topology.word}.json"
    run = resolve(load_config(f"{ROOT}/configs/retro.py:{recipe.size}"))
    if path.exists():
        row = json.loads(path.read_text())
        choices = {"accumulation": recipe.accumulation, "remat": recipe.remat, "loss_block": recipe.loss_block}
        if all(row["report"][key] == value for key, value in choices.items()):
            return row | {"estimate": preflight(run, topology, False, lambda line: None)}
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


def table_row(recipe: Recipe, row: dict) -> str:
    report, memory, times = row["report"], row["report"]["memory_gib"], row["estimate"]["roofline"]
    bounds = {name: times[name] for name in ("compute", "memory", "interconnect")}
    cells = [
        recipe.size,
        recipe.topology,
        " x ".join(str(size) for size in report["mesh"].values()),
        report["accumulation"],
        report["remat"],
        "yes" if report["fits"] else "no",
        memory["by"],
        f"{memory['total']:.2f}",
        f"{memory['limit']:.2f}",
        f"{row['estimate']['memory_gib']['total']:.2f}",
        "-" if report["compile_seconds"] is None else f"{report['compile_seconds']:.0f}",
        f"{row['estimate']['step_seconds_roofline']:.2f}",
        max(bounds, key=bounds.get),
        f"{times['tokens_per_second']:,.0f}",
        f"{times['model_flops_utilization']:.0%}",
        f"{times['chip_hours']:,.0f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def parts_row(recipe: Recipe, row: dict) -> str:
    memory = row["estimate"]["memory_gib"]
    parts = [f"{memory[name]:.2f}" for name in ("parameters", "moments", "gradients", "activations")]
    return "| " + " | ".join([recipe.size, recipe.topology, *parts]) + " |"


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


def database_section(folder: Path) -> str:
    facts = measure_database(folder)
    stages = " | ".join(f"{stage}, node-hours" for stage in STAGES)
    lines = [DATABASE.format(cpus=facts["cpus"], date=facts["date"], stages=stages, lines="---|" * len(STAGES))]
    for plan in facts["plans"]:
        cells = [
            f"{plan['tokens']:.3g}",
            f"{plan['chunks']:.3g}",
            f"{plan['index_shards']:,}",
            f"{plan['nodes']:,}",
            f"{sum(stage['bytes'] for stage in plan['stages'].values()) / 1e12:,.3g}",
            f"{plan['memory_a_node'] / 1e9:,.3g}",
            f"{plan['chip_hours']:,.3g}",
            *(f"{plan['stages'][stage]['node_hours']:,.3g}" for stage in STAGES),
            f"{plan['wall_hours']:,.3g}",
        ]
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-compile", action="store_true", help="only the rows that were compiled before")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args(argv)
    rows, database = {}, database_section(options.folder)
    for recipe in RECIPES.values():
        rows[recipe] = measure(recipe, not options.no_compile, options.folder)
        write(rows, options.page, database)


def write(rows: dict[Recipe, dict], page: Path, database: str) -> None:
    compiled = [row for row in rows.values() if row["report"]["compile_seconds"] is not None]
    note = "\nNo row was compiled yet.\n"
    if compiled:
        note = f"\nCompiled on {compiled[0]['cpus']} CPU cores, shared with other work, {compiled[-1]['date']}.\n"
    table = "\n".join(table_row(recipe, row) for recipe, row in rows.items())
    parts = "\n".join(parts_row(recipe, row) for recipe, row in rows.items())
    page.write_text(f"{HEAD}{table}\n{note}{PARTS}{parts}\n{database}")


if __name__ == "__main__":
    main(sys.argv[1:])
