"""The study's page from the points of its sweep: verdicts on the paper's claims, Table 13, gain against overlap.

    python benchmarks/study RUN PAGE                # or, after the sweep itself: make study
    python benchmarks/study RUN PAGE --no-probe     # without the token probe, which loads the models

RUN is the work directory of `retro sweep --config=configs/study.py`. With a part of the points finished the page has what there is
and says what is missing. The probe's sums are kept in RUN/probe.
"""

import argparse
from pathlib import Path

from page import page, plots
from points import Study

PROBED = "default"


def probes(study: Study) -> dict:
    """The token probe of the default point's seeds."""
    from probe import open_probe

    seeds = study.results.get(PROBED, {})
    return {PROBED: {seed: open_probe(study.workdir, f"{PROBED},seed={seed}") for seed in seeds}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--no-probe", action="store_true", help="leave out what needs the models themselves")
    chosen = parser.parse_args()
    study = Study(chosen.run)
    if not chosen.no_probe:
        study.probes = probes(study)
    chosen.page.parent.mkdir(parents=True, exist_ok=True)
    for name, plot in plots(study).items():
        (chosen.page.parent / name).write_text(plot, encoding="utf-8")
    chosen.page.write_text(page(study), encoding="utf-8")
    print(chosen.page)


if __name__ == "__main__":
    main()
