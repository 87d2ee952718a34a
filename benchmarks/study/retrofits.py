"""docs/measured/retrofit_imported.md from the points of configs/retrofit_imported.py.

    python benchmarks/study/retrofits.py RUN PAGE          # or, after the sweep itself: make retrofit-imported

RUN is the work directory of the sweep. With a part of the points finished the page says what is missing.
"""

import argparse
from pathlib import Path

from cells import difference as shown
from cells import value
from points import Missing, Study
from quantities import estimate

from retro_jax.config.file import read_config_file
from retro_jax.models.counts import parameter_totals

POINTS = ("from_scratch", "frozen", "everything")
CONDITIONS = ("baseline", "off", "on", "random", "empty")
SUBSETS = ("legal", "wiki")
# (what it says, a point and condition, another one)
DIFFERENCES = (
    *((f"retrieval of `{name}`: On less Off", (name, "on"), (name, "off")) for name in POINTS),
    *((f"neighbors of `{name}`: On less random ones", (name, "on"), (name, "random")) for name in POINTS),
    ("train everything less frozen, On", ("everything", "on"), ("frozen", "on")),
    ("frozen less from scratch, On", ("frozen", "on"), ("from_scratch", "on")),
    ("everything less from scratch, On", ("everything", "on"), ("from_scratch", "on")),
    ("frozen, On, less the decoder trained as long again", ("frozen", "on"), ("continued", "baseline")),
    ("everything, On, less the decoder trained as long again", ("everything", "on"), ("continued", "baseline")),
    ("everything, Off, less the decoder trained as long again", ("everything", "off"), ("continued", "baseline")),
    ("frozen, Off, less the decoder that it starts from", ("frozen", "off"), ("from_scratch", "baseline")),
)


def page(study: Study) -> str:
    """The page as Markdown."""
    seeds = {name: len(found) for name, found in study.results.items()}
    lines = [
        "# Retrofit of a Llama-family decoder: frozen, everything, from scratch",
        "",
        "Written by `make retrofit-imported`; do not edit. The points are those of `configs/retrofit_imported.py`: a decoder without",
        "retrieval (`baseline` of `from_scratch`), then RETRO from it with the decoder `frozen` or with `everything` trained, the",
        "same RETRO from random weights (`from_scratch`), and the decoder alone trained as long again (`continued`). Each trains on",
        "the same number of tokens; `frozen`, `everything` and `continued` start from a decoder that has read as many before.",
        f"Seeds finished: {', '.join(f'{name} {count}' for name, count in sorted(seeds.items()))}.",
        "",
        *sizes(study),
        "",
        "## Bits per byte",
        "",
        "Means over seeds; lower is better. `legal` recurs in other documents, `wiki` does not.",
        "",
        f"| point | subset | {' | '.join(CONDITIONS)} |",
        f"|---|---|{'---|' * len(CONDITIONS)}",
        *(row(study, name, subset) for subset in SUBSETS for name in (*POINTS, "continued")),
        "",
        "## Differences",
        "",
        "Paired by document and seed, with 95% intervals over both; negative is better. A difference whose interval holds 0 is not",
        "shown by this experiment.",
        "",
        f"| difference | {' | '.join(SUBSETS)} |",
        f"|---|{'---|' * len(SUBSETS)}",
        *(difference(study, *one) for one in DIFFERENCES),
    ]
    return "\n".join(lines) + "\n"


def sizes(study: Study) -> list[str]:
    """A table of what each point trains."""
    lines = ["| point | parameters | trained | tokens |", "|---|---|---|---|"]
    for name in POINTS:
        if name not in study.results:
            continue
        seed = study.seeds(name)[0]
        directory = study.workdir / "points" / f"{name},seed={seed}" / "retro"
        run = read_config_file(directory / "config.json", "Run `make retrofit-imported` again.")
        total = parameter_totals(run.model)["total"]
        decoder = read_config_file(
            study.workdir / "points" / f"from_scratch,seed={seed}" / "baseline" / "config.json", ""
        )
        frozen = parameter_totals(decoder.model)["total"] if run.train.trainable == "retrieval" else 0
        tokens = run.train.steps * run.train.batch * run.model.sequence_length
        lines.append(f"| {name} | {total:,} | {total - frozen:,} | {tokens:,} |")
    return lines


def row(study: Study, name: str, subset: str) -> str:
    return f"| {name} | {subset} | {' | '.join(value(study, name, condition, subset) for condition in CONDITIONS)} |"


def difference(study: Study, what: str, one: tuple[str, str], other: tuple[str, str]) -> str:
    cells = []
    for subset in SUBSETS:
        try:
            found = estimate(study.bits(*one, subset) - study.bits(*other, subset))
        except Missing as missing:
            cells.append(f"missing: {missing}")
            continue
        cells.append(shown(found))
    return f"| {what} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args()
    chosen.page.write_text(page(Study(chosen.run)), encoding="utf-8")
    print(chosen.page)


if __name__ == "__main__":
    main()
