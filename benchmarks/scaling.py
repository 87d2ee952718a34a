"""Writes docs/scaling.md: every recipe's preflight, `python benchmarks/scaling.py runs/scaling docs/scaling.md [--no-compile]`.

Each row is one JSON file in the given folder; a row that is there is not compiled again, so an interrupted run
continues. Rows for GPUs are the estimate; `--no-compile` writes the page from the rows there are.
"""

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from launch.command import load_config  # noqa: E402
from retro_jax.config import resolve  # noqa: E402
from retro_jax.preflight import preflight  # noqa: E402
from retro_jax.recipes import RECIPES, Recipe  # noqa: E402
from retro_jax.topologies import parse_topology  # noqa: E402

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


def measure(recipe: Recipe, compiling: bool, folder: Path) -> dict:
    """The row of a recipe: from its file, or made (and kept, if it was compiled)."""
    topology = parse_topology(recipe.topology)
    path = folder / f"{recipe.size}-{topology.word}.json"
    if path.exists():
        row = json.loads(path.read_text())
        choices = {"accumulation": recipe.accumulation, "remat": recipe.remat, "loss_block": recipe.loss_block}
        if all(row["report"][key] == value for key, value in choices.items()):
            return row
    run = resolve(load_config(f"{ROOT}/configs/retro.py:{recipe.size}"))
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
    report, memory, times = row["report"], row["report"]["memory_gib"], row["report"]["roofline"]
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
        f"{report['step_seconds_roofline']:.2f}",
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


def main(folder: Path, page: Path, compiling: bool) -> None:
    rows = {}
    for recipe in RECIPES.values():
        rows[recipe] = measure(recipe, compiling, folder)
        write(rows, page)


def write(rows: dict[Recipe, dict], page: Path) -> None:
    compiled = [row for row in rows.values() if row["report"]["compile_seconds"] is not None]
    note = "\nNo row was compiled yet.\n"
    if compiled:
        note = f"\nCompiled on {compiled[0]['cpus']} CPU cores, shared with other work, {compiled[-1]['date']}.\n"
    table = "\n".join(table_row(recipe, row) for recipe, row in rows.items())
    parts = "\n".join(parts_row(recipe, row) for recipe, row in rows.items())
    page.write_text(f"{HEAD}{table}\n{note}{PARTS}{parts}\n")


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if word != "--no-compile"]
    main(Path(arguments[0]), Path(arguments[1]), "--no-compile" not in sys.argv)
