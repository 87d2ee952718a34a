"""A database that gains its relevant documents only at evaluation: what does retrieval buy before and after?

    python benchmarks/databases/later_database.py [--work=runs/later_database] [--folder=DIR]     # or: make later-database

Half of FOLDOC (a dictionary of computing) is the training text and the database. The Jargon File, of which two thirds of the
chunks share an 8-gram with FOLDOC, is joined as an evaluation set. Both models are evaluated on it; then `retro database add`
gives the other half of FOLDOC to the database, and both are evaluated again. Nothing is trained in between.

The texts come from two Debian packages (dict-foldoc, GFDL; dict-jargon, public domain), fetched by `apt-get download`, or from
a folder that holds foldoc.dict.dz, foldoc.index, jargon.dict.dz and jargon.index. Resumes. Writes docs/measured/later_database.md.
"""

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIGITS = {
    letter: place for place, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}
PACKAGES = {"foldoc": "dict-foldoc", "jargon": "dict-jargon"}
CONDITIONS = ("baseline", "off", "on", "random", "shuffled", "empty", "oracle")
TRAIN = (
    "--config.train.steps=600",
    "--config.train.warmup_steps=30",
    "--config.train.checkpoint_every=200",
    "--config.train.retrieval_check_every=200",
    "--config.train.log_every=20",
)


def number(text: str) -> int:
    """A number of a dictd index, in base 64."""
    value = 0
    for letter in text:
        value = value * 64 + DIGITS[letter]
    return value


def entries(folder: Path, name: str) -> list[tuple[str, str]]:
    """(headword, text) of every entry of a dictd dictionary, each text once, in the order of the file."""
    content = gzip.decompress((folder / f"{name}.dict.dz").read_bytes())
    found: dict[tuple[int, int], str] = {}
    for line in (folder / f"{name}.index").read_text(encoding="utf-8").splitlines():
        word, start, length = line.split("\t")[:3]
        if not word.startswith("00"):  # what the dictionary says of itself
            found.setdefault((number(start), number(length)), word)
    return [(word, content[a : a + b].decode("utf-8", "replace").strip()) for (a, b), word in sorted(found.items())]


def fetch(work: Path) -> Path:
    """The folder of the dictionaries, out of their Debian packages."""
    folder = work / "packages"
    if not (folder / "usr/share/dictd/jargon.index").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for package in PACKAGES.values():
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
            archive = next(folder.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=folder, check=True)
    return folder / "usr/share/dictd"


def write_texts(folder: Path, work: Path) -> dict[str, Path]:
    """train.jsonl and later.jsonl, halves of FOLDOC by a hash of the headword, and jargon.jsonl."""
    texts = work / "text"
    texts.mkdir(parents=True, exist_ok=True)
    halves: dict[str, list] = {"train": [], "later": []}
    for word, text in entries(folder, "foldoc"):
        half = hashlib.sha256(word.encode()).digest()[0] % 2
        halves[("train", "later")[half]].append({"title": word, "text": text})
    parts = {**halves, "jargon": [{"title": word, "text": text} for word, text in entries(folder, "jargon")]}
    for name, records in parts.items():
        path = texts / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return {name: texts / f"{name}.jsonl" for name in parts}


def retro(*arguments: str) -> None:
    """A command of retro; ends this program where it fails."""
    print("retro", *arguments, file=sys.stderr, flush=True)
    code = subprocess.run([sys.executable, "-m", "launch", *arguments], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def run(work: Path, texts: dict[str, Path]) -> None:
    """Builds, trains, joins, evaluates, adds, evaluates again; each step is passed over where it is done."""
    config, data = f"--config=configs/own_text.py:{texts['train']}", work / "data"
    built = f"--config.data.directory={data}"
    retro("build", config, f"--workdir={work}")
    retro("train", config, f"--workdir={work}/baseline", built, *TRAIN, "--config.model.retrieval_layers=()")
    retro("train", config, f"--workdir={work}/retro", built, *TRAIN)
    if not (work / "after" / "results.json").exists():
        if not (data / "additions" / "00000" / "finished.json").exists():
            retro("join", f"--workdir={work}", "--set=jargon", f"--path={texts['jargon']}")
            evaluate(work, "before", config)
            retro("database", "add", f"--workdir={work}", f"--config.data.sources.later.path={texts['later']}")
        evaluate(work, "after", config)


def evaluate(work: Path, name: str, config: str) -> None:
    models = [f"--config.evaluate.{model}={work}/{model}" for model in ("retro", "baseline")]
    retro("evaluate", config, f"--workdir={work / name}", f"--config.data.directory={work / 'data'}", *models)


def page(work: Path) -> str:
    """The measured page, of the two results.json and of the paired differences between them."""
    sys.path.insert(0, str(ROOT))
    from retro_jax.evaluate.report.comparison import compare, open_runs

    runs = open_runs([work / "before", work / "after"])
    paired = compare(runs)["sets"]
    model, versions = runs[0].results["model"], runs[0].results["versions"]
    lines = [
        "# A database that gains its documents only at evaluation",
        "",
        "Written by `make later-database`; do not edit. Half of FOLDOC is the training text and the database; `before` is that.",
        "`after` has the other half too, added by `retro database add` behind the training. Weights, tokenizer and text are the same.",
        "`jargon` (the Jargon File) is a set joined later; `held_out` is held-out text of the training half.",
        "",
        f"RETRO of {model['parameters']:,} parameters, baseline of {model['baseline_parameters']:,}, "
        f"{model['settings']['steps']} steps; jax {versions.get('jax', '?')}. Bits per byte, lower is better.",
        "",
        f"| set | database | chunks | overlap | {' | '.join(CONDITIONS)} | On - Off (95% interval) | On - random | On - baseline |",
        f"|{'---|' * (len(CONDITIONS) + 7)}",
    ]
    for name in paired:
        for one in runs:
            found = one.results["sets"][name]
            figures, source = found["all"], next(iter(found["databases"].values()))
            cells = [name, one.name, f"{source['chunks']:,}", f"{figures['overlap']:.3f}"]
            cells += [f"{figures['bpb'][condition]:.4f}" for condition in CONDITIONS]
            cells += [gap(figures[f"on_minus_{other}"]) for other in ("off", "random", "baseline")]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "On after less On before, paired by document:", ""]
    lines += [f"* {name}: {gap(found['differences']['after'])}" for name, found in paired.items()]
    lines += ["", "By overlap, On - Off where at most 12.5% of a chunk stands in its neighbors:", ""]
    for name in paired:
        for one in runs:
            low = one.results["sets"][name]["leakage"]["all"]
            share = low["byte_share"][0]
            lines.append(f"* {name}, {one.name}: {gap(low['on_minus_off_at_lowest_alpha'])}, {share:.0%} of the bytes")
    return "\n".join(lines) + "\n"


def gap(found: dict | None) -> str:
    if found is None or found["low"] is None:
        return "-"
    shown = "" if found["shown"] else ", not shown"
    return f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f}){shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/later_database"))
    parser.add_argument("--folder", type=Path, help="holds the dictionaries; else they are fetched from Debian")
    chosen = parser.parse_args()
    work = chosen.work.resolve()
    run(work, write_texts(chosen.folder or fetch(work), work))
    output = ROOT / "docs" / "measured" / "later_database.md"
    output.write_text(page(work), encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main()
