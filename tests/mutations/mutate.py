"""Plants known mistakes in a copy of the source, one at a time, and prints those that no test detects.

    make mutations                                  # all; run again, it continues where it stopped
    .venv/bin/python tests/mutations/mutate.py --only=NAME    # the mistakes whose name contains NAME; --list prints all

A mistake is data in tests/mutations/*.toml: the text to replace, and the test that must fail once it is replaced. Each
test must pass before its mistake is planted. Nothing is written into the checkout but runs/mutations: a log with one
line for each test run, keyed by a hash of source and mistake, and JAX's compilation cache.
"""

import argparse
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from retro_jax.core.progress import progress

ROOT = Path(__file__).resolve().parents[2]
DATA = Path("tests/mutations")
TIMEOUT = 900.0  # seconds for one test, or for all tests of one file
OUTCOMES = {0: "passed", 1: "failed"}  # pytest's exit codes; any other says that no test ran


@dataclass(frozen=True)
class Mutation:
    """A mistake: `new` replaces `old`, which occurs once in `file`, and `test` must fail."""

    name: str
    covers: tuple[str, ...]  # topics of topics.toml
    file: str
    old: str
    new: str
    test: str  # pytest's id, with or without parameters

    def plant(self, text: str) -> str:
        """The file's text with the mistake.

        Raises:
          ValueError: `old` does not occur exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"The mistake '{self.name}' replaces a text that must occur once in {self.file}, but it occurs {count} "
                f"times: {self.old!r}. Write the present text into {DATA}/*.toml."
            )
        return text.replace(self.old, self.new)


def load(root: Path = ROOT) -> tuple[list[Mutation], dict[str, str]]:
    """All mistakes, in the order of their files, and the meaning of each topic."""
    found, topics = [], {}
    for path in sorted((root / DATA).glob("*.toml")):
        content = tomllib.loads(path.read_text())
        topics |= content.get("topics", {})
        found += [Mutation(**entry | {"covers": tuple(entry["covers"])}) for entry in content.get("mutation", [])]
    return found, topics


def source_digest(root: Path) -> str:
    """SHA-256 of everything that the tests read: all files but documentation, the mistakes and this command."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root)
        if path.suffix != ".md" and DATA not in name.parents and name.name not in ("mutate.py", "test_mutations.py"):
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def copy_source(root: Path, target: Path) -> Path:
    """Copies the files that git does not ignore."""
    ignored = [line.rstrip("/") for line in (root / ".gitignore").read_text().split()]
    return Path(shutil.copytree(root, target, ignore=shutil.ignore_patterns(".git", *ignored)))


class Runner:
    """Runs tests in copies of the source; `close` ends what is running."""

    def __init__(self, copies: Sequence[Path], cache: Path):
        self._copies: queue.Queue[Path] = queue.Queue()
        for copy in copies:
            self._copies.put(copy)
        self._cache, self._running = cache, set()

    def passes(self, tests: Sequence[str]) -> tuple[str, str]:
        """Outcome ("passed", "failed", or what went wrong) and the end of the output, without a mistake."""
        copy = self._copies.get()
        try:
            return self._pytest(copy, tests)
        finally:
            self._copies.put(copy)

    def finds(self, mutation: Mutation) -> tuple[str, str]:
        """The outcome of the mutation's test with the mistake planted."""
        copy = self._copies.get()
        path = copy / mutation.file
        text = path.read_text()
        try:
            path.write_text(mutation.plant(text))
            return self._pytest(copy, [mutation.test])
        finally:
            path.write_text(text)
            self._copies.put(copy)

    def _pytest(self, copy: Path, tests: Sequence[str]) -> tuple[str, str]:
        scratch = copy.with_name(f"{copy.name}-scratch")
        options = ["-q", "-x", "--tb=short", "-o", "addopts=", "-p", "no:cacheprovider", f"--basetemp={scratch}"]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(copy), str(copy / "tests" / "fixtures")]),  # before the checkout's own
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # no test needs one, and loading them takes longer than many tests
            "PYTHONDONTWRITEBYTECODE": "1",  # a mistake of the same length in the same second would go unnoticed
            "COLUMNS": "250",  # of the line that the log keeps of a failure
            "JAX_COMPILATION_CACHE_DIR": str(self._cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options, *tests],
                cwd=copy,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
            try:
                code = process.wait(TIMEOUT)
                outcome = OUTCOMES.get(code, f"pytest ended with {code}")
            except subprocess.TimeoutExpired:
                outcome = f"no end within {TIMEOUT:.0f} s"
            finally:
                _kill(process)
                self._running.discard(process)
            output.seek(0)
            return outcome, output.read().decode(errors="replace")[-3000:]

    def close(self) -> None:
        for process in list(self._running):
            _kill(process)


def _kill(process: subprocess.Popen) -> None:
    """Ends the process and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


class Log:
    """Outcomes by key, kept in a file of JSON lines."""

    def __init__(self, path: Path, source: str):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self._path, self._source = path, source
        self._outcomes = {line["key"]: line["outcome"] for line in map(json.loads, lines)}

    def __getitem__(self, facts: Sequence[str]) -> str | None:
        return self._outcomes.get(self._key(facts))

    def write(self, facts: Sequence[str], outcome: str, **more) -> None:
        key = self._key(facts)
        self._outcomes[key] = outcome
        with open(self._path, "a") as file:
            file.write(json.dumps({"key": key, "outcome": outcome, **more}) + "\n")

    def _key(self, facts: Sequence[str]) -> str:
        return hashlib.sha256(json.dumps([self._source, *facts]).encode()).hexdigest()


def run_all(jobs: int, description: str, work: Mapping[object, Callable[[], tuple[str, str]]]) -> Iterator[tuple]:
    """Runs the work, `jobs` at a time, and yields (key, outcome, output, seconds)."""

    def timed(function):
        started = time.monotonic()
        return *function(), round(time.monotonic() - started, 1)

    executor = ThreadPoolExecutor(jobs)
    futures = {executor.submit(timed, function): key for key, function in work.items()}
    try:
        for future in progress(as_completed(futures), description=description, total=len(futures), unit="run"):
            yield futures[future], *future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def check(root: Path, mutations: Sequence[Mutation], jobs: int) -> list[str]:
    """Plants every mistake and returns a line for each undetected one.

    Raises:
      ValueError: a missing text, or a test that fails without a mistake.
    """
    home = root / "runs" / "mutations"
    with tempfile.TemporaryDirectory() as temporary:
        copies = [copy_source(root, Path(temporary) / f"copy-{number}") for number in range(jobs)]
        for mutation in mutations:
            mutation.plant((copies[0] / mutation.file).read_text())
        log, runner = Log(home / "log.jsonl", source_digest(copies[0])), Runner(copies, home / "cache")
        try:
            _require_passing(log, runner, mutations, jobs)
            facts = {mutation: (mutation.file, mutation.old, mutation.new, mutation.test) for mutation in mutations}
            missing = [mutation for mutation in mutations if log[facts[mutation]] not in OUTCOMES.values()]
            work = {mutation: (lambda mutation=mutation: runner.finds(mutation)) for mutation in missing}
            for mutation, outcome, output, seconds in run_all(jobs, "mistakes", work):
                said = next((line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
                log.write(facts[mutation], outcome, name=mutation.name, said=said[:300], seconds=seconds)
        finally:
            runner.close()
    return [
        f"{mutation.name} ({mutation.file}): {mutation.test} {log[facts[mutation]]}"
        for mutation in mutations
        if log[facts[mutation]] != "failed"
    ]


def _require_passing(log: Log, runner: Runner, mutations: Sequence[Mutation], jobs: int) -> None:
    """Runs the tests without mistakes, file by file."""
    by_file: dict[str, set[str]] = {}
    for mutation in mutations:
        if log[(mutation.test,)] != "passed":
            by_file.setdefault(mutation.test.partition("::")[0], set()).add(mutation.test)
    work = {file: (lambda tests=tests: runner.passes(sorted(tests))) for file, tests in by_file.items()}
    for file, outcome, output, seconds in run_all(jobs, "tests without a mistake", work):
        if outcome != "passed":
            raise ValueError(
                f"Tests of {file} do not pass without any mistake ({outcome}); correct that first.\n{output}"
            )
        for test in by_file[file]:
            log.write((test,), outcome, test=test, seconds=seconds)


def main(argv: Sequence[str], root: Path = ROOT) -> int:
    """Returns 0 if every mistake was detected, 1 if not, 2 if that could not be tested, 130 when stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the mistakes whose name contains this")
    parser.add_argument("--list", action="store_true", help="print name, file, test and topics, and plant nothing")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=2, help="tests at a time")
    options = parser.parse_args(argv)
    mutations = [mutation for mutation in load(root)[0] if options.only in mutation.name]
    if not mutations:
        parser.error(f"no mistake has {options.only!r} in its name; --list prints all names.")
    if options.list:
        for mutation in mutations:
            print(f"{mutation.name}\n    {mutation.file}  {mutation.test}  [{', '.join(mutation.covers)}]")
        return 0
    try:
        survived = check(root, mutations, options.jobs)
    except ValueError as error:
        print(f"mutations: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mutations: stopped; the same command continues.", file=sys.stderr)
        return 130
    for line in survived:
        print(f"not found: {line}")
    print(f"{len(mutations)} mistakes planted, {len(mutations) - len(survived)} found by their tests.")
    return 1 if survived else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the test that is running too
    sys.exit(main(sys.argv[1:]))
