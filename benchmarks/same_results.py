"""Runs the quickstart of two commits and compares their results: files of the build, parameters, figures.

    make same-results OLD=COMMIT NEW=COMMIT
    .venv/bin/python benchmarks/same_results.py OLD NEW --directory=runs/same-results

Both commits are cloned into DIRECTORY and run `make quickstart SMOKE=1`'s command there. A commit whose lock is equal to
this checkout's shares its virtual environment; another one makes its own. Then the code of NEW reads a copy of what OLD
wrote: `retro database verify`, `retro evaluate`, and `retro train` from the checkpoint before the last, whose parameters
must come out the same. Prints a line for each comparison and ends with 1 where one differs. Started again, it continues.

Left out of the comparison, because they say when, where or by which code a file was made:

* seconds.json, .parts/ (records for continuing a build), events.out.tfevents.*, hosts/, saved.json: no results.
* "sha256" of a JSON file: its seal, over all its keys.
* "versions" (commit, packages), "seconds", "made_from" (fingerprints of the manifests, checked by themselves).
* the keys of metrics.jsonl that measure the machine (train/clock.py lists them).

A key or a file that only NEW has is printed as an addition; a key or a file that only OLD has is a difference.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG, WORK = "--config=configs/quickstart.py:smoke", "runs/quickstart-smoke"
LEFT_OUT = {"sha256", "versions", "seconds", "made_from"}
NO_RESULTS = ("seconds.json", "saved.json")
PARAMETERS = """
import hashlib, json, sys
from pathlib import Path
import jax, numpy as np, orbax.checkpoint as ocp

found = ocp.PyTreeCheckpointer().restore(Path(sys.argv[1]).absolute())
leaves, _ = jax.tree_util.tree_flatten_with_path(found)
print(json.dumps({jax.tree_util.keystr(path): hashlib.sha256(
    f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes()).hexdigest() for path, leaf in leaves}))
"""


class Clone:
    """A commit in a folder of its own."""

    def __init__(self, commit: str, directory: Path):
        self.directory, self.work = directory, directory / WORK
        if not directory.exists():
            subprocess.run(["git", "clone", "--quiet", "--no-checkout", ROOT, directory], check=True)
        subprocess.run(["git", "checkout", "--quiet", commit], cwd=directory, check=True)
        self.python = sys.executable
        lock = Path("requirements.lock")
        if (directory / lock).read_bytes() != (ROOT / lock).read_bytes():
            print(f"{commit}: the lock is another one; installing it")
            subprocess.run(["make", "setup"], cwd=directory, check=True)
            self.python = str(directory / ".venv/bin/python")

    def run(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
        """A Python command with the commit's packages, its output kept in FOLDER.log."""
        cwd = cwd or self.directory
        environment = os.environ | {"PYTHONPATH": str(self.directory), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run([self.python, *words], cwd=cwd, env=environment, capture_output=True, text=True)
        with open(cwd.with_name(f"{cwd.name}.log"), "a") as log:
            log.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}")
        return done

    def quickstart(self) -> None:
        where = self.run("-c", "import retro_jax; print(retro_jax.__file__)").stdout
        assert Path(where).is_relative_to(self.directory), f"imports {where} instead of the package in {self.directory}"
        done = self.run("-m", "launch.quickstart", CONFIG, f"--workdir={WORK}")
        assert done.returncode == 0, done.stderr[-3000:]

    def parameters(self, work: Path, run: str) -> dict[str, str]:
        """SHA-256 of each parameter of the last checkpoint, read by orbax alone."""
        last = max(int(path.name) for path in (work / run / "checkpoints").iterdir() if path.name.isdigit())
        done = self.run("-c", PARAMETERS, str(work / run / "checkpoints" / str(last) / "params"))
        assert done.returncode == 0, done.stderr[-3000:]
        return {"step": str(last), **json.loads(done.stdout)}


def leaves(value, path: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf of a JSON value under its keys, without those that are left out."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            if key not in LEFT_OUT:
                yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def built(data: Path) -> dict[str, object]:
    """Every file of a build: digests of bytes, and the leaves of manifests, plans and configs."""
    found: dict[str, object] = {}
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data)
        if path.is_dir() or name.name in NO_RESULTS or ".parts" in name.parts:
            continue
        if name.name in ("manifest.json", "plan.json", "config.json"):
            found |= dict(leaves(json.loads(path.read_text()), str(name)))
        else:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def figures(work: Path) -> dict[str, object]:
    """results.json and the passages of the report."""
    return {
        name: value
        for file in ("results.json", "passages.json")
        for name, value in leaves(json.loads((work / file).read_text()), file)
    }


def metrics(work: Path, run: str) -> dict[str, object]:
    """Losses, gradient norms and checks of every step."""
    from retro_jax.train.clock import OF_THE_MACHINE

    records = [json.loads(line) for line in (work / run / "metrics.jsonl").read_text().splitlines()]
    return dict(leaves([{k: v for k, v in record.items() if k not in OF_THE_MACHINE} for record in records]))


def compare(what: str, old: Mapping[str, object], new: Mapping[str, object]) -> bool:
    """Prints what differs, and what was added; returns whether nothing differs."""
    differing = [
        f"  {key}: {old[key]!r} -> {new.get(key, 'missing')!r}" for key in old if old[key] != new.get(key, ...)
    ]
    added = [key for key in new if key not in old]
    print(f"{'equal' if not differing else 'DIFFERS':<8} {what}: {len(old) - len(differing):,} of {len(old):,}")
    for line in differing[:20]:
        print(line)
    if added:
        print(f"  added: {', '.join(added[:8])}{f' and {len(added) - 8} more' if len(added) > 8 else ''}")
    return not differing


def continued(new: Clone, old: Clone, directory: Path) -> bool:
    """Whether the code of NEW reads a work directory that OLD wrote, and continues its training to the same parameters."""
    shutil.rmtree(directory, ignore_errors=True)
    work = directory / WORK
    shutil.copytree(old.work, work)
    shutil.copytree(new.directory / "configs", directory / "configs")
    last = max(
        (path for path in (work / "retro/checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )
    shutil.rmtree(last)
    last.with_name(f"{last.name}.whole.json").unlink()
    (work / "results.json").unlink()
    good = True
    for verb, *words in (
        ["database", "verify", CONFIG, f"--workdir={WORK}"],
        ["train", CONFIG, f"--workdir={WORK}/retro", f"--config.data.directory={WORK}/data"],
        ["evaluate", CONFIG, f"--workdir={WORK}"],
    ):
        done = new.run("-m", "launch", verb, *words, cwd=directory)
        said = ((done.returncode == 0 and done.stdout) or done.stderr).strip().splitlines()
        print(f"{'read' if done.returncode == 0 else 'REFUSED':<8} retro {verb}: {said[-1] if said else ''}"[:300])
        good &= done.returncode == 0
    if not good:
        return False
    good &= compare(
        "parameters of OLD's run continued by NEW", old.parameters(old.work, "retro"), new.parameters(work, "retro")
    )
    return good & compare("figures of OLD's run evaluated by NEW", figures(old.work), figures(work))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--directory", type=Path, default=ROOT / "runs" / "same-results")
    options = parser.parse_args()
    directory = options.directory.absolute()
    clones = []
    for given in (options.old, options.new):
        commit = subprocess.run(
            ["git", "rev-parse", "--verify", f"{given}^{{commit}}"], cwd=ROOT, capture_output=True, text=True
        )
        if commit.returncode:
            raise SystemExit(f"{given} is no commit of this repository; give two commits, such as HEAD~1 HEAD.")
        name = commit.stdout.strip()
        clones.append(Clone(name, directory / name[:12]))
        clones[-1].quickstart()
    old, new = clones
    good = [compare("files of the build", built(old.work / "data"), built(new.work / "data"))]
    for run in ("baseline", "retro"):
        good.append(compare(f"parameters of {run}", old.parameters(old.work, run), new.parameters(new.work, run)))
        good.append(compare(f"metrics of {run}", metrics(old.work, run), metrics(new.work, run)))
    good.append(compare("figures of results.json and passages.json", figures(old.work), figures(new.work)))
    good.append(continued(new, old, directory / "old-read-by-new"))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
