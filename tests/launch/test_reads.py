"""Every verb reads or refuses every key: the table of launch/command/reads.py against running verbs.

That the table says what the verbs read while they run is held by `recording.assert_reads`, in the tests that run them.
"""

import dataclasses
import importlib
import re

import pytest
from absl import flags
from places import ROOT

from launch import database, quickstart
from launch.__main__ import VERBS
from launch.command.arguments import parse
from launch.command.reads import READS, check_reads, is_read
from launch.hosts import cost
from retro_jax.config import ModelConfig, RunConfig, at_run_time, declarations
from retro_jax.config.settings import Choice, Named, Names, Number, Numbers, Rising, Text

CONFIG = "--config=configs/quickstart.py:smoke"
LEAVES = [one for one in declarations(RunConfig) if one.setting.range is not None and one.key != "data.sources"]
MORE = {"sample": ["--prompt=a"], "preflight": ["--topology=cpu:1"]}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def verbs():
    """(name, Verb, main, first words) of every verb."""
    for name in VERBS:
        module = importlib.import_module(f"launch.{name}")
        if name != "database":
            yield name, module.VERB, module.main, []
    for action, (verb, _) in database.ACTIONS.items():
        yield verb.name, verb, database.main, [action]
    yield "quickstart", quickstart.VERB, quickstart.main, []


ALL = {name: (verb, main, first) for name, verb, main, first in verbs() if verb.needs_config}


def test_every_verb_is_in_the_table():
    assert {*ALL, "database verify --repair"} == set(READS)
    known = {one.key for one in declarations(RunConfig)}
    assert {key for reads in READS.values() for key in reads} <= known
    assert all(any(is_read(one.key, reads) for reads in READS.values()) for one in LEAVES)


@pytest.mark.parametrize("verb", ALL)
def test_every_key_is_taken_or_refused_by_name(verb):
    for one in LEAVES:
        if is_read(one.key, READS[verb]):
            check_reads(verb, [one.key])
            continue
        with pytest.raises(ValueError) as caught:
            check_reads(verb, [one.key])
        message = str(caught.value)
        assert (
            message.startswith(f"retro {verb} does not read config.{one.key},") and "It is read by: retro " in message
        )


def a_value_outside(one) -> str:
    match one.setting.range:
        case Number() as range:
            return str(-7 if range.low <= 1 else range.low - 1)
        case Choice() if one.kind is bool:
            return "maybe"
        case Choice():
            return "nonsense"
        case Text() as range:
            return "a\0b"
        case Rising() | Numbers():
            return "(1,1)"
        case Names():
            return "('a','a')"
        case Named():
            return "-1.0"
    raise AssertionError(one.key)


@pytest.mark.parametrize("verb", ALL)
def test_a_value_out_of_range_is_refused_before_anything_is_done(verb, tmp_path, capsys):
    """Over all keys that the verb reads: exit code 2, the message names field and range, and nothing is written."""
    definition, main, first = ALL[verb]
    workdir = tmp_path / "work"
    place = [f"--workdir={workdir}"] if definition.needs_workdir else []
    for one in LEAVES:
        if not is_read(one.key, READS[verb]):
            continue
        key = one.key.replace("NAME", "legal")
        key += ".legal" if isinstance(one.setting.range, Named) else ""
        argv = [*first, CONFIG, *place, *MORE.get(verb, []), f"--config.{key}={a_value_outside(one)}"]
        assert main(argv) == 2, key
        message = capsys.readouterr().err
        assert f"config.{key}" in message and "Traceback" not in message, message
        assert " must be " in message or one.kind is bool, message
        assert list(tmp_path.iterdir()) == [], key


@pytest.mark.parametrize("verb", ALL)
def test_a_key_of_another_verb_ends_the_verb(verb, tmp_path, capsys):
    definition, main, first = ALL[verb]
    other = next((one.key for one in LEAVES if not is_read(one.key, READS[verb]) and ".NAME." not in one.key), None)
    if other is None or verb == "database verify":
        pytest.skip("it reads all")
    value = next(one.default for one in LEAVES if one.key == other)
    place = [f"--workdir={tmp_path / 'work'}"] if definition.needs_workdir else []
    assert main([*first, CONFIG, *place, *MORE.get(verb, []), f"--config.{other}={value}"]) == 2
    assert f"retro {verb} does not read config.{other}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_refused_by_field_and_what_touches_no_parameter_is_taken():
    trained = ModelConfig()
    wanted = dataclasses.replace(
        trained, neighbors=5, compute_dtype="float32", attention="mine", remat="none", scan=False, loss_block=0
    )
    assert at_run_time(trained, wanted, "runs/x") == wanted
    without_effect = {"neighbors", "compute_dtype", "attention", "remat", "scan", "loss_block", "encoder"}
    for field in dataclasses.fields(ModelConfig):
        if field.name not in without_effect:
            value = getattr(trained, field.name)
            other = dataclasses.replace(
                trained, **{field.name: not value if isinstance(value, bool) else value * 2 or 1}
            )
            with pytest.raises(
                ValueError, match=rf"runs/x holds a model that differs.*config.model.{field.name} \(there "
            ):
                at_run_time(trained, other, "runs/x")
    encoder = dataclasses.replace(trained.encoder, layers=9)
    with pytest.raises(ValueError, match=r"config.model.encoder.layers \(there 2, here 9\)"):
        at_run_time(trained, dataclasses.replace(trained, encoder=encoder), "runs/x")


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("build", ["--plan_tokens=1e9"], r"--plan_tokens=1000000000.0 is of --plan; add --plan"),
        ("build", ["--plan_nodes=3"], "is of --plan"),
        ("build", ["--plan_accelerator=h100"], "is of --plan"),
        ("build", ["--json"], "--json=True is of --plan"),
        ("build", ["--plan", "--engine=ray"], "--engine=ray is of a build, but --plan"),
        ("build", ["--address=a:1"], "are of --engine=ray"),
        ("build", ["--accelerator=gpu"], "are of --engine=ray"),
        ("build", ["--plan", "--plan_tokens=-1"], "A plan needs tokens and nodes"),
        ("build", ["--plan", "--plan_tokens=nan"], "A plan needs tokens and nodes"),
        ("build", ["--plan", "--plan_nodes=0"], "A plan needs tokens and nodes"),
        ("train", ["--config.model.neighbors=0"], "neighbors=0 leaves encoder and cross-attention nothing to train on"),
        ("train", ["--join_timeout=-1"], "--join_timeout=-1.0 must be"),
        ("train", ["--join_timeout=nan"], "--join_timeout=nan must be"),
        ("train", ["--hosts=one", "--process=1"], "belong to --hosts=flags"),
        ("sample", ["--retrieval=off", "--config.model.neighbors=1"], "--retrieval=off reads no neighbors"),
        ("sample", ["--retrieval=off", "--config.data.encoder=x"], "config.data.encoder would change nothing"),
        ("sample", ["--retrieval=on", "--config.model.neighbors=0"], "--retrieval=on, but the model .*neighbors=0"),
        ("sample", ["--retrieval=on", "--config.model.retrieval_layers=()"], "no retrieval layers"),
        ("sweep", ["--json"], "--json=True is of --plan"),
        ("sweep", ["--launcher_flags=--nodes=2"], "--launcher_flags=--nodes=2 is of --launcher; add it"),
        ("sweep", ["--launcher=slurm", "--engine=ray"], "so --engine=ray would be ignored"),
        ("sweep", ["--launcher=slurm", "--parallel=2"], "--parallel=2 is of steps on this machine"),
        ("sweep", ["--parallel=0"], "--parallel=0 must be 1 or more"),
        ("sweep", ["--address=a:1"], "are of --engine=ray"),
        (
            "database verify",
            ["--config.data.recall_target=0.9"],
            "database verify does not read config.data.recall_target",
        ),
    ],
)
def test_a_flag_that_another_one_makes_idle_is_refused(verb, arguments, message, tmp_path, capsys):
    definition, main, first = ALL[verb]
    assert main([*first, CONFIG, f"--workdir={tmp_path / 'work'}", *MORE.get(verb, []), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_the_cost_note_asks_with_what_preflight_reads(monkeypatch):
    """The launch scripts have the flags of `retro train`, and preflight refuses those of the data."""
    asked = []
    monkeypatch.setattr(cost.subprocess, "run", lambda command, **_: asked.append(command) or pytest.fail(str(command)))
    given = ["--config=configs/retro.py:172m", "--config.data.directory=gs://b/data", "--config.train.steps=3000"]
    with pytest.raises(pytest.fail.Exception):
        cost.ask_preflight("retro", "cpu:1", [*given, "--noconfig.model.scan", "--hosts=one"])
    arguments = [word for word in asked[0][2:] if not word.startswith("--no-compile")]
    invocation = parse(ALL["preflight"][0], arguments)
    assert invocation.given == ("train.steps", "model.scan")


def test_preflight_takes_no_workdir(capsys):
    assert ALL["preflight"][1](["--config=configs/retro.py:7b5", "--topology=v5p:8x8x4", "--workdir=runs/x"]) == 2
    assert "writes no files, so --workdir=runs/x means nothing" in capsys.readouterr().err


def test_a_recipe_gives_way_to_what_the_command_line_says(capsys):
    """A value that equals the default is refused too."""
    argv = ["--config=configs/retro.py:7b5", "--topology=v5p:8x8x4", "--no-compile", "--json"]
    preflight = ALL["preflight"][1]
    assert preflight(argv) == 0 and '"recipe": "7b5,v5p-8x8x4"' in capsys.readouterr().out
    for given in ("train.accumulation=1", "model.remat=dots", "model.remat=full"):
        assert preflight([*argv, f"--config.{given}"]) == 0
        out = capsys.readouterr().out
        assert '"recipe": null' in out and ("dots" in out) == given.endswith("dots")


def test_a_source_of_the_database_is_not_read_again():
    with pytest.raises(ValueError, match="the source 'legal' is in the database already and is not read again"):
        database.require_new(["data.encoder", "data.sources.legal.path"], {"mine": None})
    database.require_new(["data.sources.mine.path", "data.encoder"], {"mine": None})


def test_a_repair_reads_the_keys_of_the_build():
    """Guards against a repair that refuses the build's own flags: it runs the stages of the build."""
    verify, argv = ALL["database verify"][0], [CONFIG, "--workdir=x", "--config.data.recall_target=0.9"]
    for repair in ("--repair", "--repair=true"):
        assert parse(verify, [*argv, repair]).given == ("data.recall_target",)
    for check in ([], ["--norepair"], ["--repair=false"]):
        with pytest.raises(ValueError, match=r"retro database verify does not read config.data.recall_target"):
            parse(verify, [*argv, *check])
    with pytest.raises(ValueError, match=r"retro database verify --repair does not read config.train.steps"):
        parse(verify, [*argv, "--repair", "--config.train.steps=3"])
    with pytest.raises(flags.UnrecognizedFlagError, match="repairs"):
        parse(verify, [*argv, "--repairs"])


def test_every_flag_of_a_verb_is_known_here():
    """A new flag needs a case above if another flag can make it ineffective."""
    known = {
        "build": {"engine", "accelerator", "address", "plan", "plan_tokens", "plan_nodes", "plan_accelerator", "json"},
        "train": {"hosts", "coordinator", "processes", "process", "join_timeout", "profile", "restart"},
        "join": {
            *("set", "path", "protocol", "neighbors", "share", "database", "without", "train"),
            *("engine", "accelerator", "address"),
        },
        "evaluate": {"hosts", "coordinator", "processes", "process", "join_timeout"},
        "sample": {"prompt", "retrieval"},
        "preflight": {"topology", "step", "no-compile", "json"},
        "sweep": {
            *("grid", "seeds", "baseline", "metric", "only", "plan", "json", "parallel", "topology", "launcher"),
            *("launcher_flags", "launcher_workdir"),
            *("engine", "accelerator", "address"),
        },
        "database verify": {"repair", "all"},
        "database remove": {"documents", "source"},
    }
    for name, (verb, _, _) in ALL.items():
        values = flags.FlagValues()
        if verb.define_flags:
            verb.define_flags(values)
        assert set(values) == known.get(name, set()), name


def test_what_was_given_is_known_to_the_verb():
    argv = [CONFIG, "--workdir=x", "--config.train.steps", "70", "--noconfig.model.scan"]
    assert parse(ALL["train"][0], argv).given == ("train.steps", "model.scan")
