"""The command line: help that works when pasted, one clear message for each mistake, exit codes."""

import errno
import importlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags
from places import ROOT

from data_pipeline.pipeline import data_directory
from launch.__main__ import VERBS, main
from launch.command.arguments import Verb, check_key, parse
from launch.command.run import explain, run_verb

CONFIG = "--config=configs/quickstart.py:smoke"


def define(values):
    flags.DEFINE_string("prompt", None, "the text to continue", flag_values=values)


VERB = Verb("try", "tries things", f"{CONFIG} --workdir=runs/smoke", define)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RETRO_TRACEBACK", raising=False)


def attempt(arguments, execute=lambda invocation: None):
    return run_verb(VERB, execute, arguments)


def test_flags_and_overrides_reach_the_verb():
    seen = []
    arguments = [
        "--config.train.steps=70",  # also before --config
        CONFIG,
        "--config.model.retrieval_layers=(1,3)",
        "--config.train.subset_weights.wiki=0.5",
        "--config.data.sources.mine.path=texts",
        "--config.train.learning_rate=1",
        "--noconfig.model.scan",
        "--workdir=runs/x",
        "--prompt=one two",
    ]
    assert attempt(arguments, seen.append) == 0
    run, workdir = seen[0].run, seen[0].workdir
    assert run.train.steps == 70 and run.model.retrieval_layers == (1, 3) and not run.model.scan
    assert run.train.subset_weights == {"wiki": 0.5} and run.train.learning_rate == 1.0
    assert run.data.sources["mine"].path == "texts" and "legal" in run.data.sources
    assert workdir == Path("runs/x") and seen[0].flags.prompt == "one two"
    assert seen[0].data_directory == Path("runs/x/data")
    elsewhere = parse(VERB, [CONFIG, "--workdir=runs/x", "--config.data.directory=/big/data"])
    assert data_directory(elsewhere.run, elsewhere.workdir) == Path("/big/data")


def test_one_call_leaves_nothing_to_the_next():
    assert parse(VERB, [CONFIG, "--workdir=a", "--config.train.steps=70"]).run.train.steps == 70
    assert parse(VERB, [CONFIG, "--workdir=a"]).run.train.steps == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing. For example: retro try --config=configs/quickstart.py:smoke --workdir=runs/smoke"),
        (["--confg=x"], "Unknown command line flag 'confg'. Did you mean: config ?"),
        ([CONFIG], "--workdir is missing"),
        ([CONFIG, "--workdri=x"], "Unknown command line flag 'workdri'. Did you mean: workdir ?"),
        ([CONFIG, "--workdir=x", "stray"], "'stray' is not a flag"),
        (["--config=configs/quickstat.py", "--workdir=x"], "did you mean configs/quickstart.py?"),
        (["--config=nowhere/x.py", "--workdir=x"], "There is no config file nowhere/x.py"),
        (["--config=pyproject.toml", "--workdir=x"], "is not a Python config file"),
        (["--config=retro_jax/core/dimensions.py", "--workdir=x"], "defines no get_config"),
        (["--config=configs/retro.py:127m", "--workdir=x"], "did you mean '172m'?"),
        ([CONFIG, "--workdir=x", "--config.train.stepz=3"], "did you mean config.train.steps?"),
        ([CONFIG, "--workdir=x", "--config.trian.steps=3"], "did you mean config.train?"),
        ([CONFIG, "--workdir=x", "--config.model.encoder.widht=3"], "did you mean config.model.encoder.width?"),
        ([CONFIG, "--workdir=x", "--config.train.steps.x=3"], "config.train.steps is a single value"),
        ([CONFIG, "--workdir=x", "--config.data.sources.lega.license=x"], "did you mean config.data.sources.legal?"),
        ([CONFIG, "--workdir=x", "--config.train.steps=abc"], "config.train.steps=abc"),
        ([CONFIG, "--workdir=x", "--config.train.steps=1e3"], "config.train.steps=1e3"),
        (
            [CONFIG, "--workdir=x", "--config.train.steps=0"],
            "config.train.steps must be from 1 to 2147483647, but is 0. Optimizer steps",
        ),
        ([CONFIG, "--workdir=x", "--config.model.retrieval_layers=(9,)"], "holds layer 9"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, message, capsys):
    assert attempt(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("retro try: ")
    assert "Traceback" not in err and not out and len(err.strip().splitlines()) == 1


def test_flags_of_two_words_and_of_one_dash(tmp_path):
    """Guards against `--config FILE` being read as a missing --config."""
    for argv in (
        ["--config", "configs/quickstart.py:smoke", "--workdir", "runs/x", "--config.train.steps", "70"],
        ["-config", "configs/quickstart.py:smoke", "-workdir", "runs/x", "-config.train.steps=70"],
        ["-config=configs/quickstart.py:smoke", "-workdir=runs/x", "--config.train.steps=70", "--prompt", "--config=x"],
        ["--prompt", "config.train.steps=3", "--workdir=runs/x", CONFIG, "--config.train.steps=70", CONFIG],
        [CONFIG, "--workdir=runs/x", "--config.train.steps=3", "--config.train.steps=70"],  # the last counts
    ):
        invocation = parse(VERB, argv)
        assert invocation.run.train.steps == 70 and invocation.workdir == Path("runs/x"), argv
    for word, scan in (
        ("--noconfig.model.scan", False),
        ("--config.model.scan", True),
        ("--config.model.scan=true", True),
        ("--config.model.scan=auto", "auto"),
    ):
        assert parse(VERB, [CONFIG, "--workdir=x", word]).run.model.scan == scan
    with pytest.raises(ValueError, match="config.model.scan must be one of auto, True, False, but is 'autom'"):
        parse(VERB, [CONFIG, "--workdir=x", "--config.model.scan=autom"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "--workdir=x"], "--config needs a value: --config=..."),
        (["--config="], "--config is empty"),
        (["--config=configs"], "--config=configs is a folder; give a config file in it: configs/baseline.py"),
        (
            [CONFIG, "--config=configs/quickstart.py"],
            "--config is given twice, --config=configs/quickstart.py:smoke and",
        ),
        ([CONFIG, "--workdir=a", "--workdir=b"], "--workdir is given twice, --workdir=a and --workdir=b"),
        ([CONFIG, "--workdir"], "--workdir needs a value"),
        ([CONFIG, "--config.train.steps"], "--config.train.steps needs a value"),
        (["--config=configs/quickstart.py:smok", "--workdir=x"], "configs/quickstart.py, line "),
    ],
)
def test_what_a_command_line_cannot_mean(arguments, message, capsys):
    assert attempt(arguments) == 2
    assert message in capsys.readouterr().err


WHOLE = "from retro_jax.config import default_config\n"


@pytest.mark.parametrize(
    ("source", "argument", "message"),
    [
        ("def get_config(:\n", "", "x.py, line 1 is not valid Python"),
        ("x = 1\nimport no_such_package\n", "", "x.py, line 2: ModuleNotFoundError: No module named 'no_such_package'"),
        ("def get_config():\n    return 1 / 0\n", "", "x.py, line 2: ZeroDivisionError"),
        ("def get_config():\n    return int('a')\n", "", "x.py, line 2: invalid literal for int()"),
        ("raise SystemExit(3)\n", "", "x.py, line 1: SystemExit: 3"),
        ("get_config = 3\n", "", "defines no get_config"),
        ("def get_config():\n    pass\n", "", "must return an ml_collections.ConfigDict, but returned NoneType"),
        ("def get_config():\n    return {}\n", "", "ConfigDict, but returned dict"),
        (f"{WHOLE}def get_config():\n    return default_config()\n", "172mm", "x.py takes no argument, but --config="),
        (
            f"{WHOLE}def get_config():\n    c = default_config()\n    c.train.update(stepz=3)\n    return c\n",
            "",
            "stepz",
        ),
        (
            "import ml_collections as m\ndef get_config():\n    return m.ConfigDict({'trian': {}})\n",
            "",
            "did you mean config.t",
        ),
        (
            "import ml_collections as m\ndef get_config():\n    return m.ConfigDict({'data': 3})\n",
            "",
            "must be a section",
        ),
        (
            "import ml_collections as m\ndef get_config():\n    return m.ConfigDict({'train': {'steps': 0}})\n",
            "",
            "from 1 to",
        ),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(source, argument, message, tmp_path, capsys):
    path = tmp_path / "x.py"
    path.write_text(source)
    assert attempt([f"--config={path}{f':{argument}' if argument else ''}", "--workdir=x"]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1, err


def test_get_config_may_take_no_argument_and_leave_keys_out(tmp_path):
    """Guards against a TypeError for missing sections; they have their defaults."""
    path = tmp_path / "x.py"
    path.write_text(
        "import ml_collections as m\n"
        "def get_config():\n"
        "    config = m.ConfigDict({'train': {'steps': 100, 'clip_norm': 1}, 'data': {'sources': {'own': {'path': 'a'}}}})\n"
        "    config.train.warmup_steps = config.train.get_oneway_ref('steps') // 10\n"
        "    return config\n"
    )
    run = parse(
        VERB, [f"--config={path}", "--workdir=x", "--config.train.steps=200", "--config.train.clip_norm=0.5"]
    ).run
    assert run.train.steps == 200 and run.train.warmup_steps == 20  # a reference follows the command line
    assert run.train.clip_norm == 0.5 and run.model.layers == 12
    assert run.data.sources["own"].path == "a" and run.data.sources["own"].text_key == "text"
    more = parse(VERB, [f"--config={path}", "--workdir=x", "--config.data.sources.new.path=b"]).run
    assert set(more.data.sources) == {"own", "new"}


def raising(error):
    def execute(invocation):
        raise error

    return execute


GOOD = [CONFIG, "--workdir=x"]


def test_errors_of_the_work_itself(capsys, monkeypatch):
    assert attempt(GOOD, raising(ValueError("k is 5, but 3 are stored"))) == 2
    assert attempt(GOOD, raising(FileNotFoundError(errno.ENOENT, "No such file or directory", "text.txt"))) == 2
    assert attempt(GOOD, raising(ModuleNotFoundError("no", name="sentencepiece"))) == 2
    err = capsys.readouterr().err
    assert "k is 5" in err and "No such file or directory: text.txt" in err and "retro_jax[build]" in err
    assert attempt(GOOD, raising(KeyboardInterrupt())) == 130
    assert "interrupted by SIGINT. Finished files are kept" in capsys.readouterr().err
    with pytest.raises(KeyError):  # a mistake of ours keeps its traceback
        attempt(GOOD, raising(KeyError("x")))
    monkeypatch.setenv("RETRO_TRACEBACK", "1")
    with pytest.raises(ValueError, match="k is 5"):
        attempt(GOOD, raising(ValueError("k is 5")))


def test_a_full_disk_has_its_own_message_and_exit_code(capsys, tmp_path):
    path = str(tmp_path / "not" / "yet" / "there.npy")
    assert attempt(GOOD, raising(OSError(errno.ENOSPC, "No space left on device", path))) == 3
    err = capsys.readouterr().err
    assert "the disk is full" in err and path in err and "make room" in err
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    code, message = explain(wrapped, VERB)
    assert code == 3 and "saving failed" in message and "MiB" not in message  # it does not say which disk
    assert explain(OSError("100 requested and 7 written"), VERB)[0] == 3
    assert explain(RuntimeError("write: No space left on device [tensorstore]"), VERB)[0] == 3


def test_a_disk_that_is_really_full(capsys):
    def execute(invocation):
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    assert attempt(GOOD, execute) == 3


def test_help_shows_an_example_that_parses(capsys):
    assert attempt(["--help"]) == 0
    text = capsys.readouterr().out
    example = next(line for line in text.splitlines() if line.strip().startswith("retro try --"))
    assert parse(VERB, example.split()[2:]).run.model.retrieves
    assert "--prompt" in text and "the text to continue" in text and "--config.SECTION.KEY=VALUE" in text


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "database"])  # its actions: test_database.py
def test_the_example_of_every_verb_parses(verb, capsys):
    module = importlib.import_module(f"launch.{verb}")
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    example = next(line for line in text.splitlines() if line.strip().startswith(f"retro {verb} "))
    words = shlex.split(example)[2:]
    if module.VERB.reads_build and "--config=" not in example:  # the config is that of a finished build
        words.append("--config=configs/quickstart.py:smoke")
    assert parse(module.VERB, words).run


def test_retro_lists_its_verbs(capsys):
    assert main([]) == 2
    assert main(["biuld"]) == 2
    err = capsys.readouterr().err
    assert "'biuld' is not a verb; did you mean build?" in err and all(f"  {verb} " in err for verb in VERBS)
    assert main(["--help"]) == 0
    assert "retro VERB --help" in capsys.readouterr().out


def test_check_key_follows_the_sections():
    check_key(["config", "data", "sources", "a", "path"], {"data": {"sources": {"a": {}}}})
    check_key(["config", "train", "subset_weights", "anything"], {})
    with pytest.raises(ValueError, match=r"config.data.sources.b is not a known config key; known keys: aaaa"):
        check_key(["config", "data", "sources", "b", "path"], {"data": {"sources": {"aaaa": {}}}})


def test_help_answers_at_once_and_without_jax():
    program = (
        "import sys; from launch.__main__ import main; code = main(['--help']);"
        "import launch.command.run; assert not {'jax', 'tensorflow_datasets', 'grain'} & set(sys.modules); sys.exit(code)"
    )
    started = time.monotonic()
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "build" in run.stdout, run.stderr
    assert time.monotonic() - started < 5  # a third of a second on an idle machine


def test_a_path_that_is_not_utf8_is_a_mistake_of_every_verb(capsys):
    """ArrayRecord, SCaNN and tensorstore raise a TypeError each for such paths."""
    for arguments in (["--workdir=/tmp/\udc80"], ["--workdir=/tmp/x", "--config.data.directory=/tmp/\udc80"]):
        assert main(["build", "--config=configs/quickstart.py:smoke", *arguments]) == 2
        assert "must be UTF-8, but is b'/tmp/\\x80'; rename the folder" in capsys.readouterr().err
