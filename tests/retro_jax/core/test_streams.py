"""Printing and logging never stop training, and no message overwrites a progress bar's line."""

import ast
import contextlib
import errno
import io
import os
import re
import subprocess
import sys
import termios

import pytest
from places import ROOT
from processes import log_path, start_run
from training_fixture import build_data

from launch.command.run import Verb, run_verb
from retro_jax.core import streams
from retro_jax.core.progress import close_bars, progress
from retro_jax.core.streams import ERASE, OutputLost, Stream, deliver, fresh_line, protect, side_channel
from retro_jax.parallel import watchdog
from retro_jax.run_directory.checkpoints import newest_whole
from retro_jax.train.metrics import read_metrics

END = "--- end ---"
VERB = Verb("try", "tries", "")
GOOD = ["--config=configs/quickstart.py:smoke", "--workdir=x"]


class Failing(io.StringIO):
    """A stream whose reader is gone."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


ERRORS = [BrokenPipeError(errno.EPIPE, "Broken pipe")]
ERRORS += [OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EIO, errno.EBADF)]
ERRORS += [ValueError("I/O operation on closed file"), RuntimeError("reentrant call inside <_io.BufferedWriter>")]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_a_stream_that_fails_is_remembered_and_raises_nothing(error, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Failing(error))
    protect()
    print("one", file=sys.stderr, flush=True)
    sys.stderr.writelines(["two"])
    with progress(description="x", total=2) as bar:
        bar.update()
    assert sys.stderr.fault is error
    stream = sys.stderr
    protect()
    assert sys.stderr is stream  # wrapped once


def test_what_the_encoding_does_not_have_is_printed_as_its_number():
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, "ascii"))
    stream.write("5 % … \udce9\n")
    assert raw.getvalue() == b"5 % \\u2026 \\udce9\n" and stream.fault is None


def test_a_reader_that_has_stopped_reading_stops_nobody(monkeypatch):
    """With a paused pager or Ctrl-S text is lost, and printing resumes when there is room."""
    monkeypatch.setattr(streams, "PATIENCE_MS", 1)
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "w") as writer:
        stream = Stream(writer)
        for _ in range(200):
            stream.write("x" * 1000)  # more than a pipe holds
        assert isinstance(stream.fault, BlockingIOError)
        assert set(reader.read(10**6)) == set(b"x")
        stream.write("again")
        assert reader.read(10**6).endswith(b"again")


def run_program(text: str, redirections: str = "", **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, text],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )


def test_closed_descriptors_are_taken_by_nothing(tmp_path):
    """Guards against files opened as descriptor 1 or 2, which would receive a library's messages."""
    program = f"""
from retro_jax.core.streams import protect
protect()
import os, subprocess, sys
file = open({str(tmp_path / "data")!r}, "w")
assert file.fileno() > 2
print("lost"), print("lost", file=sys.stderr), os.write(1, b"lost"), os.write(2, b"lost")
subprocess.run(["sh", "-c", "echo lost && echo lost >&2"], check=True)
"""
    assert run_program(program, "<&- >&- 2>&-").returncode == 0
    assert (tmp_path / "data").read_bytes() == b""


def test_the_exit_code_is_not_that_of_a_flush():
    program = "from retro_jax.core.streams import protect; protect(); print(1); import sys; print(2, file=sys.stderr)"
    assert run_program(program, ">/dev/full 2>/dev/full").returncode == 0


def attempt(execute, arguments=GOOD):
    return run_verb(VERB, execute, arguments)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ERRORS[0], 141, ""),
        (ERRORS[1], 3, "retro try: standard output could not be written: No space left on device.\n"),
        (ERRORS[2], 2, "retro try: standard output could not be written: Input/output error.\n"),
    ],
)
def test_a_product_that_is_lost_is_an_error_and_a_summary_is_not(monkeypatch, capsys, error, code, words):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "stdout", Failing(error))
    assert attempt(lambda invocation: deliver("the product")) == code
    assert attempt(lambda invocation: None, ["--help"]) == code
    assert capsys.readouterr().err == 2 * words
    assert attempt(lambda invocation: print("a summary")) == 0
    assert capsys.readouterr().err == (words.replace("\n", " The work is done.\n"))


def test_a_closed_standard_output_loses_a_product(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputLost, match="standard output could not be written: it is closed"):
        deliver("the product")
    sys.stdout.close()


def test_a_verb_really_loses_its_output():
    program = "import sys; from launch.__main__ import main; sys.exit(main(['--help']))"
    done = run_program(program, ">/dev/full")
    assert done.returncode == 3
    assert done.stderr == "retro: standard output could not be written: No space left on device.\n"
    done = run_program(program, ">&-")
    assert done.returncode == 2 and done.stderr == "retro: standard output could not be written: it is closed.\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("streams") / "data")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["2>&1 | head -1", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_the_command_trains_to_its_end_without_anybody_to_read(tmp_path, data, way):
    workdir = tmp_path / "run"
    running = start_run(workdir, data, devices=1, program=["-c", IN_A_SHELL, way])
    assert [process.wait() for process in running] == [0], log_path(workdir).read_text()
    assert newest_whole(workdir / "checkpoints") == 12
    assert [record["step"] for record in read_metrics(workdir / "metrics.jsonl")] == list(range(1, 13))


IN_A_SHELL = """
import shlex, subprocess, sys
command = shlex.join([sys.executable, "-m", "launch.train", *sys.argv[2:]])
sys.exit(subprocess.run(["bash", "-c", f"{command} {sys.argv[1]}; exit ${{PIPESTATUS[0]}}"]).returncode)
"""


def test_a_damaged_heartbeat_of_another_process_is_no_heartbeat(tmp_path):
    (tmp_path / "hosts").mkdir()
    for number, text in enumerate(["[]", "{}", "", '{"host": "h"}']):
        (tmp_path / "hosts" / f"{number}.json").write_text(text)
    assert set(watchdog.read_beats(tmp_path, 5).values()) == {None}


def test_an_error_of_a_side_channel_is_told_once_and_an_interruption_passes(capsys):
    channel = side_channel("board")
    for _ in range(2):
        with channel:
            raise OSError("no network")
    assert channel.failed and capsys.readouterr().err == "board: OSError: no network; training continues.\n"
    with pytest.raises(KeyboardInterrupt), channel:
        raise KeyboardInterrupt


@contextlib.contextmanager
def terminal():
    """Standard error is a terminal; yields the lines that a person sees at the end."""
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    lines, text = [], b""
    with open(leader, "rb", buffering=0) as shown:
        with open(follower, "w") as stderr, contextlib.redirect_stderr(Stream(stderr)):
            yield lines
            print(END, file=sys.stderr)
            while END.encode() not in text:
                text += shown.read(10**5)
    lines += screen(text.decode().split(END)[0])


def screen(text: str) -> list[str]:
    """The lines of a terminal of endless width, by the few codes that are in use here."""
    lines, row, column = [""], 0, 0
    for code in re.findall(r"\x1b\[A|\x1b\[J|.|\n", text, re.DOTALL):
        if code == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif code == "\r":
            column = 0
        elif code == "\x1b[A":
            row -= 1
        elif code == "\x1b[J":
            lines[row:] = [lines[row][:column]]
        else:
            lines[row] = lines[row][:column].ljust(column) + code + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_a_message_on_a_terminal_takes_the_bar_away():
    with terminal() as lines:
        bar = progress(description="outer", total=3)
        inner = progress(description="inner", total=5)
        print("a warning", file=sys.stderr)
        bar.refresh()
        inner.refresh()
        sys.stderr.write("^C")  # a terminal's echo
        fresh_line()
        print("an error", file=sys.stderr)
        close_bars()
        print("the end", file=sys.stderr)
    assert lines[:2] == ["a warning", "an error"] and lines[-2:] == ["the end", ""]
    assert sorted(line[:6] for line in lines[2:-2] if line) == ["inner:", "outer:"]


def test_an_error_in_a_loop_closes_its_bar_before_it_is_told(monkeypatch):
    monkeypatch.chdir(ROOT)

    def execute(invocation):
        for _ in progress(range(3), description="loop"):
            with progress(description="within", total=2):
                bar = progress(description="left open", total=2)
                raise ValueError(f"it failed at {bar.n}")

    with terminal() as lines:
        assert attempt(execute) == 2
    assert lines[-2:] == ["retro try: it failed at 0", ""]
    assert {line.split(":")[0] for line in lines[:-2] if line} == {"loop", "within", "left open"}


def test_in_a_log_a_bar_is_lines(monkeypatch, capsys):
    with progress(description="outer", total=2) as bar:
        with progress(description="inner", total=2):
            print("a message", file=sys.stderr)
        bar.set_postfix_str("loss 1")
    err = capsys.readouterr().err
    assert "\r" not in err and "\x1b" not in err
    lines = err.splitlines()
    assert "a message" in lines and all(re.match("outer: |inner: |a message$", line) for line in lines)
    assert ERASE not in err and len(lines) == len(set(lines))


def calls(name: str):
    """(file, call) of every call of a name in the program."""
    for path in sorted(
        path for folder in ("retro_jax", "data_pipeline", "launch") for path in ROOT.glob(f"{folder}/**/*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield path.name, ast.unparse(node)


def test_every_print_goes_where_it_is_safe():
    """A product goes through `deliver`; summaries of finished work are named here; the rest goes to standard error, and
    starts no line by hand to get away from a bar."""
    summaries = {
        "pipeline.py": 2,
        "join.py": 4,
        "evaluate.py": 1,
        "compare.py": 1,
        "quickstart.py": 1,
        "database.py": 2,
        "export.py": 1,
        "import.py": 1,
        "verb.py": 3,  # of a sweep
        "streams.py": 1,
    }
    logs = {"run.py": 1, "on_ray.py": 2}  # of the steps of a sweep
    tools = {"gke.py": 1, "cost.py": 1}  # of the launch scripts: they write nothing
    found: dict[str, int] = {}
    for file, call in calls("print"):
        if "file=sys.stderr" not in call:
            found[file] = found.get(file, 0) + 1
        assert not re.match(r"print\(f?['\"]\\n[^'\"]", call) or "[{number}/" in call, call  # the heading of a step
    assert found == summaries | tools | logs


def test_signals_and_bars_have_one_owner():
    assert {file for file, _ in calls("signal.signal")} == {"preemption.py", "run.py"}
    assert {file for file, _ in calls("tqdm")} == {"progress.py"}
