"""docs/measured/scaling.md from the rows of scaling.py."""

from retro_jax.presets.recipes import Recipe

HEAD = """# Scaling

Written by `make scaling`; do not edit. Every row is `retro preflight --config=configs/retro.py:SIZE --topology=SLICE` with
that slice's recipe (`configs/retro.py:SIZE,SLICE` trains with it), at the paper's batch: 256 sequences of 2,048 tokens,
1,024 for 7b5; vocabulary 128,000, k = 2, 419 billion tokens in all.

GiB are a device's. Rows proven by the compiler were compiled for that TPU with no TPU there; the others are the estimate
alone, because no compiler for the device works without it, or because the row was not compiled yet. Seconds are a
roofline: the most that the chip's published rates allow. A real step takes longer, so tokens a second and model FLOP
utilization (MFU) are upper bounds, and chip-hours a lower one.

Attention "flash" is the decoder's kernel for TPUs, "flash_gpu" its twin for GPUs, "xla" the compiler's own arrangement with the recipe that suits it
(config.model.attention="xla"). GB moved are what a device reads and writes in its memory in a step: of a compiled row counted in
the compiled program, operation by operation and loops as often as they turn (`retro_jax/preflight/traffic.py`); else the
estimate, in brackets. The bound of a row has the same basis.

| size | slice | attention | data x fsdp x tensor | accumulation | remat | fits | proof | GiB needed | GiB there are | estimate | compile s | GB moved | estimate | step s | bound by | tokens/s | MFU | chip-hours |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""
MOVED = """
## GB moved in memory by part of the model, by the compiled program

| size | slice | attention | {parts} |
|---|---|---|{lines}
"""
PARTS = """
## GiB a device by part, by the estimate

| size | slice | attention | parameters | moments | gradients | activations and temporaries |
|---|---|---|---|---|---|---|
"""


DATABASE = """
## The database, on paper

`retro build --plan --plan_tokens=TOKENS --plan_nodes=NODES`, from rates measured on samples of configs/nine_subsets.py on
this machine ({cpus} CPU cores, {date}) and the laws of growth in data_pipeline/plan.py: beyond two million keys a key is in
two of several index shards, and a chunk visits those near it (docs/measured/routing.md). Nodes are machines like this one;
chip-hours are those of embedding alone at the published rate of an H100, which no real run reaches.

| tokens | chunks | index shards | visited | nodes | TB on disk | index a node, GB | embedding, H100-hours at least | {stages} | wall hours |
|---|---|---|---|---|---|---|---|{lines}---|
"""


def table_row(recipe: Recipe, row: dict) -> str:
    report, memory, times = row["report"], row["report"]["memory_gib"], row["report"]["roofline"]
    moved, estimated = (row[key]["bytes_a_device"] for key in ("report", "estimate"))
    gigabytes = f"{moved['memory'] / 1e9:,.0f}"
    bounds = {name: times[name] for name in ("compute", "memory", "interconnect")}
    cells = [
        recipe.size,
        recipe.topology,
        report["attention"],
        " x ".join(str(size) for size in report["mesh"].values()),
        report["accumulation"],
        report["remat"],
        "yes" if report["fits"] else "no",
        memory["by"],
        f"{memory['total']:.2f}",
        f"{memory['limit']:.2f}",
        f"{row['estimate']['memory_gib']['total']:.2f}",
        "-" if report["compile_seconds"] is None else f"{report['compile_seconds']:.0f}",
        gigabytes if moved["by"] == "compiler" else f"({gigabytes})",
        f"{estimated['memory'] / 1e9:,.0f}",
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
    return "| " + " | ".join([recipe.size, recipe.topology, row["report"]["attention"], *parts]) + " |"


def moved_section(rows: dict[tuple[Recipe, str], dict]) -> str:
    """What compiled rows move, by part of the model; empty where none was compiled."""
    moved = {key: row["report"]["bytes_a_device"].get("parts") for key, row in rows.items()}
    moved = {key: parts for key, parts in moved.items() if parts}
    names = sorted({name for parts in moved.values() for name in parts})
    lines = [MOVED.format(parts=" | ".join(names), lines="---|" * len(names))] if moved else []
    for (recipe, attention), parts in moved.items():
        cells = [f"{parts.get(name, 0.0) / 1e9:,.0f}" for name in names]
        name = rows[recipe, attention]["report"]["attention"]
        lines.append("| " + " | ".join([recipe.size, recipe.topology, name, *cells]) + " |\n")
    return "".join(lines)


def database_section(facts: dict, names: tuple[str, ...]) -> str:
    """The plans of the database for sizes of text; `names` are the stages that have a column."""
    stages = " | ".join(f"{stage}, node-hours" for stage in names)
    lines = [DATABASE.format(cpus=facts["cpus"], date=facts["date"], stages=stages, lines="---|" * len(names))]
    for plan in facts["plans"]:
        cells = [
            f"{plan['tokens']:.3g}",
            f"{plan['chunks']:.3g}",
            f"{plan['index_shards']:,}",
            f"{plan['visits']:,.3g}",
            f"{plan['nodes']:,}",
            f"{sum(stage['bytes'] for stage in plan['stages'].values()) / 1e12:,.3g}",
            f"{plan['memory_a_node'] / 1e9:,.3g}",
            f"{plan['chip_hours']:,.3g}",
            *(f"{plan['stages'][stage]['node_hours']:,.3g}" for stage in names),
            f"{plan['wall_hours']:,.3g}",
        ]
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def page(rows: dict[tuple[Recipe, str], dict], database: str) -> str:
    """The page from rows by (recipe, attention asked for), and the section on the database."""
    compiled = [row for row in rows.values() if row["report"]["compile_seconds"] is not None]
    note = "\nNo row was compiled yet.\n"
    if compiled:
        dates = sorted({row["date"] for row in compiled})
        note = f"\nCompiled on {compiled[0]['cpus']} CPU cores, shared with other work, {' and '.join(dates)}.\n"
    table = "\n".join(table_row(recipe, row) for (recipe, _), row in rows.items())
    parts = "\n".join(parts_row(recipe, row) for (recipe, _), row in rows.items())
    return f"{HEAD}{table}\n{note}{moved_section(rows)}{PARTS}{parts}\n{database}"
