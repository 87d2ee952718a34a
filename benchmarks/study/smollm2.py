"""docs/measured/retrofit_smollm2.md from the sweep of configs/imported.py:RUN,laptop.

    python benchmarks/study/smollm2.py RUN PAGE        # or, with import and sweep: make retrofit-smollm2 GGUF=FILE

RUN is the work directory of the sweep.
"""

import argparse
from pathlib import Path

import numpy as np
from cells import difference, value
from points import SET, Missing, Study, overlap_between
from quantities import Expression, estimate

from retro_jax.config.file import read_config_file
from retro_jax.core.files import read_json
from retro_jax.evaluate.conditions import CONDITIONS
from retro_jax.evaluate.report.figures.charts import Series, lines
from retro_jax.models.counts import parameter_totals
from retro_jax.train.metrics import read_metrics

POINT = "frozen"
PLOT = "retrofit_smollm2.svg"
# (its name here, the evaluation's)
SHOWN = (
    ("source", "baseline"),
    *((name, name) for name in ("off", "on", "random", "shuffled", "empty", "oracle")),
)
DIFFERENCES = (
    ("On less the source, which is Off", "off"),
    ("On less random neighbors", "random"),
    ("On less the neighbors of another chunk of the batch", "shuffled"),
    ("On less an empty database", "empty"),
)
OVERLAPS = ((-1.0, 0.125), (0.125, 0.5), (0.5, 1.0))  # of chunks, above the first number and up to the second
CURVE = {"on": "On", "off": "Off", "random": "random neighbors"}  # conditions of the checks of training
REMEDY = "Run `make retrofit-smollm2` again."


def page(study: Study) -> str:
    """The page as Markdown.

    Raises:
      Missing: the point is not evaluated yet.
    """
    (seed,) = study.seeds(POINT)
    subsets = study.results[POINT][seed]["sets"][SET]["subsets"]
    return "\n".join(
        [
            "# SmolLM2-135M with retrieval",
            "",
            "Written by `make retrofit-smollm2`; do not edit.",
            "",
            *setting(study, seed),
            "",
            "## Bits per byte",
            "",
            "Held-out documents; lower is better. `legal` recurs in other documents, `wiki` hardly does.",
            "",
            f"| subset | documents | bytes | {' | '.join(name for name, _ in SHOWN)} |",
            f"|---|{'---|' * (2 + len(SHOWN))}",
            *(
                f"| {subset} | {facts['documents']} | {facts['bytes']:,} | "
                f"{' | '.join(value(study, POINT, condition, subset) for _, condition in SHOWN)} |"
                for subset, facts in subsets.items()
            ),
            "",
            same_bits(study, seed),
            "",
            "## What retrieval gives",
            "",
            "Differences paired by document, with 95% intervals over documents; negative is better. A difference whose interval",
            "holds 0 is not shown. The cross-attention also learns the style of the training text, which random neighbors serve as",
            "well as any; what the neighbors themselves give is On less random ones.",
            "",
            f"| difference | {' | '.join(subsets)} |",
            f"|---|{'---|' * len(subsets)}",
            *(
                f"| {words} | {' | '.join(cell(study, other, subset) for subset in subsets)} |"
                for words, other in DIFFERENCES
            ),
            "",
            "By the overlap r(C) of a chunk, all subsets:",
            "",
            "| overlap | On less the source | On less random neighbors |",
            "|---|---|---|",
            *(row_of_overlap(study, seed, low, high) for low, high in OVERLAPS),
            "",
            "## While it trains",
            "",
            "Loss of 16 held-out sequences in nats a token, every 50 steps.",
            "",
            f"![Loss by step]({PLOT})",
            "",
            "| step | On | Off | random neighbors |",
            "|---|---|---|---|",
            *(
                f"| {record['step']} | {' | '.join(f'{record[key(kind)]:.4f}' for kind in CURVE)} |"
                for record in checks(study, seed)
            ),
            "",
        ]
    )


def setting(study: Study, seed: int) -> list[str]:
    """What was retrofitted, on what, and how long it took."""
    results, directory = study.results[POINT][seed], study.workdir / "points" / f"{POINT},seed={seed}"
    run = read_config_file(directory / "retro" / "config.json", REMEDY)
    source = read_config_file(directory / "baseline" / "config.json", REMEDY)
    origin = read_json(directory / "baseline" / "imported.json", REMEDY)
    total, frozen = (parameter_totals(one.model)["total"] for one in (run, source))
    train, model, files = run.train, run.model, ", ".join(f"`{name}`" for name in origin["files"])
    sizes = ", ".join(f"{name} {facts['train_bytes']:,}" for name, facts in results["data"].items())
    return [
        f"The source is {files} ({', '.join(origin['dtypes'])}; license {origin['license']}), {frozen:,} parameters, frozen.",
        f"Encoder and cross-attention ({total - frozen:,} parameters; layers {', '.join(map(str, model.retrieval_layers))})",
        f"train for {train.steps} steps of {train.batch} sequences of {model.sequence_length} tokens in chunks of "
        f"{model.chunk_length}, {train.steps * train.batch * model.sequence_length:,} tokens,",
        f"with k = {model.neighbors}, learning rate {train.learning_rate:g} and {model.compute_dtype} products. Training text and "
        f"database, in bytes: {sizes}.",
        f"Training took {results['seconds']['train retro'] / 60:.0f} minutes on {results['versions']['devices']}, the "
        f"evaluation {results['seconds']['evaluate'] / 60:.0f}.",
    ]


def same_bits(study: Study, seed: int) -> str:
    bits = study.point(POINT, seed).bits
    equal, count = int(np.sum(bits["baseline"] == bits["off"])), len(bits["off"])
    return (
        f"Off has the source's bits in {equal} of {count} documents, compared in every digit. Empty runs the cross-attention on no\n"
        "neighbors, in another program: what differs from Off is rounding."
    )


def cell(study: Study, other: str, subset: str) -> str:
    return difference(estimate(study.bits(POINT, "on", subset) - study.bits(POINT, other, subset)))


def row_of_overlap(study: Study, seed: int, low: float, high: float) -> str:
    inside = overlap_between(low, high)

    def less(other: str) -> Expression:
        return study.bits(POINT, "on", "", inside) - study.bits(POINT, other, "", inside)

    name = f"up to {high:.1%}" if low < 0 else f"{low:.1%} to {high:.1%}"
    point = study.point(POINT, seed)
    if not point.chunk_bytes[inside(point.overlap)].sum():
        return f"| {name} | no chunks | no chunks |"
    return f"| {name} | {' | '.join(difference(estimate(less(other))) for other in ('baseline', 'random'))} |"


def key(kind: str) -> str:
    return f"validation_loss_{kind}"


def checks(study: Study, seed: int) -> list[dict]:
    directory = study.workdir / "points" / f"{POINT},seed={seed}" / "retro"
    return [record for record in read_metrics(directory / "metrics.jsonl") if key("on") in record]


def plot(study: Study) -> str:
    """The curve as SVG."""
    (seed,) = study.seeds(POINT)
    records = checks(study, seed)
    series = [
        Series(name, [(record["step"], record[key(kind)]) for record in records], CONDITIONS[kind].color)
        for kind, name in CURVE.items()
    ]
    return lines("Held-out loss of SmolLM2-135M", series, "step", "nats a token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args()
    study = Study(chosen.run)
    try:
        text, curve = page(study), plot(study)
    except Missing as missing:
        raise SystemExit(f"The page needs {missing}. {REMEDY}") from None
    chosen.page.parent.mkdir(parents=True, exist_ok=True)
    (chosen.page.parent / PLOT).write_text(curve, encoding="utf-8")
    chosen.page.write_text(text, encoding="utf-8")
    print(chosen.page)


if __name__ == "__main__":
    main()
