"""Damages one file of a finished work directory, then runs a verb: the result is right, or the message names the file.

`make fuzz` makes 500 trials and prints what came of them; here there are fewer, the same ones every time.
"""

import collections
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from finished_run import Answer, FinishedRun
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from data_pipeline.stages.known import STAGES
from retro_jax.run_directory.checkpoints import load_params

TRIALS = int(os.environ.get("TRIALS", 40))
EXIT_CODES = (0, 2, 3)
VERBS = (
    *("build", "info", "verify", "repair", "add", "remove"),
    *("retro", "resume", "baseline", "retrofit", "evaluate", "evaluate_anew", "sample"),
)


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[int(at * len(content))] ^= 1 << int(at * 8 * len(content)) % 8
    path.write_bytes(content)


def truncate(path: Path, at: float) -> None:
    path.write_bytes(path.read_bytes()[: int(at * path.stat().st_size)])


def empty(path: Path, at: float) -> None:
    path.write_bytes(b"")


def remove(path: Path, at: float) -> None:
    path.unlink()


def folder(path: Path, at: float) -> None:
    path.unlink()
    path.mkdir()


def zeros(path: Path, at: float) -> None:
    """A file of NUL bytes, as after a power failure before the content was written."""
    path.write_bytes(bytes(path.stat().st_size))


def append(path: Path, at: float) -> None:
    path.write_bytes(path.read_bytes() + b"\x00garbage")


def other_json(path: Path, at: float) -> None:
    """JSON of another shape: `{}`, or other bytes for a file that is not JSON."""
    path.write_bytes(b"{}\n" if at < 0.5 else b"[1]\n")


KINDS = (flip, truncate, empty, remove, folder, zeros, append, other_json)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    finished = FinishedRun(tmp_path_factory.mktemp("finished"))
    finished.expected = {}
    for verb in VERBS:
        finished.restore()
        answer = finished.run(verb)
        assert answer.code == 0, (verb, answer)
        finished.expected[verb] = result(finished.work, verb, answer)
    return finished


def result(work: Path, verb: str, answer: Answer):
    """The result of a verb, without the seconds it took."""
    data = work / "data"
    if verb in ("build", "repair"):
        return contents(data, STAGES if verb == "build" else (*STAGES, "additions/*/*"))
    if verb == "add":
        return answer.out, contents(data, ("additions/00001/*",))
    if verb == "remove":
        return answer.out, json.loads((data / "removed.json").read_bytes())
    if verb in ("retro", "resume", "baseline", "retrofit"):
        directory = work / ("retro" if verb == "resume" else verb)
        params, _, step = load_params(directory)
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        figures = [(record["step"], record["loss"], record["bpb"]) for record in records if "loss" in record]
        return step, [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(params))], figures
    if verb.startswith("evaluate"):
        results = json.loads((work / "results.json").read_bytes())
        results = {key: value for key, value in results.items() if key not in ("seconds", "sha256")}
        results["versions"] = results["versions"].get("jax")  # the source's revision may change meanwhile
        return results, json.loads((work / "passages.json").read_bytes()), (work / "report.html").exists()
    if verb == "info":
        return re.sub(r" +(\d+\.\d|nan)  ", " ", answer.out)
    return answer.out


def contents(data: Path, stages) -> dict[str, bytes]:
    """Bytes of the stages' files, without their records."""
    return {
        str(path.relative_to(data)): path.read_bytes()
        for stage in stages
        for path in data.glob(f"{stage}/**/*")
        if path.is_file() and ".parts" not in path.parts and path.name not in ("seconds.json", "plan.json")
    }


def judge(finished: FinishedRun, verb: str, name: str, answer: Answer) -> str:
    """The outcome of a trial: "right", "worded" and "told" are good."""
    if answer.code is None or "Traceback" in answer.err:
        return "traceback"
    if answer.code not in EXIT_CODES:
        return f"exit code {answer.code}"
    path, words = finished.work / name, answer.err + answer.out
    stage = str(path.parent.parent if path.parent.name == ".parts" else path.parent)
    named = path.name in words or (len(Path(name).parts) > 2 and stage in words)
    named = named or re.search(r"checkpoints/(\d+)/", name) and f"step {Path(name).parts[2]} " in words
    if answer.code:
        return "worded" if named else "unnamed"
    if verb == "verify":
        books = re.match(rf"data/(additions/\d+/)?({'|'.join(STAGES)})/", name) and not name.endswith("/seconds.json")
        return "not found" if books else "right"
    try:
        same = result(finished.work, verb, answer) == finished.expected[verb]
    except Exception as error:
        return f"unreadable afterwards: {error!r:.200}"
    return "right" if same else ("told" if named else "wrong")


def trial(finished: FinishedRun, verb: str, name: str, kind, at: float) -> tuple[str, Answer]:
    finished.restore()
    kind(finished.work / name, at)
    before = finished.work / name
    if before.is_file() and before.read_bytes() == (finished.copy / name).read_bytes():
        return "nothing damaged", Answer(0, "", "")
    answer = finished.run(verb)
    return judge(finished, verb, name, answer), answer


GOOD = ("right", "worded", "told", "nothing damaged")


def test_a_damaged_file_gives_the_right_result_or_a_message_that_names_it(finished, capsys):
    outcomes, codes, bad = collections.Counter(), collections.Counter(), []

    @settings(
        max_examples=TRIALS, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(
        st.sampled_from(VERBS),
        st.sampled_from(finished.files),
        st.sampled_from(KINDS),
        st.floats(0, 1, exclude_max=True),
    )
    def trials(verb, name, kind, at):
        outcome, answer = trial(finished, verb, name, kind, at)
        outcomes[outcome] += 1
        codes[answer.code] += 1
        if outcome not in GOOD:
            bad.append((outcome, verb, kind.__name__, name, at, answer.code, answer.err[-600:]))

    trials()
    with capsys.disabled():
        print(f"\n{sum(outcomes.values())} trials: {dict(outcomes)}; exit codes {dict(codes)}; bad: {len(bad)}")
    assert not bad, "\n".join(map(str, bad[:20]))


@pytest.mark.parametrize("name", ["results.json", "passages.json"])
def test_an_altered_figure_is_measured_anew(finished, name):
    """Guards against a report with a digit that changed on disk."""
    finished.restore()
    path = finished.work / name
    text = path.read_text()
    at = next(found.start(1) for found in re.finditer(r"\d\.\d{3}(\d)", text))
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    answer = finished.evaluate()
    assert answer.code == 0 and f"{name} was altered" in answer.err
    assert path.read_text() == text or name == "results.json"
    assert result(finished.work, "evaluate", answer) == finished.expected["evaluate"]


def test_results_of_an_earlier_version_are_measured_anew(finished):
    """Guards against a KeyError."""
    finished.restore()
    path = finished.work / "results.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({"made_from": {**found["made_from"], "format": 2}, "subsets": {}}))
    answer = finished.evaluate()
    assert answer.code == 0 and "results.json has format 2 of an earlier version" in answer.err
    assert result(finished.work, "evaluate", answer) == finished.expected["evaluate"]
