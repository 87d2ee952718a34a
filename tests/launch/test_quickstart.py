"""The quickstart's steps: what each is given, which are passed over, and how a failure ends them."""

import json
from importlib import import_module

from made_up_checkpoints import write_whole

from launch import quickstart
from launch.command import steps as launch_steps
from retro_jax.config import to_dict


def test_quickstart_hands_its_flags_on(tmp_path):
    argv = ["--config=configs/quickstart.py:smoke", "--workdir", str(tmp_path), "--config.train.steps=70"]
    invocation = quickstart.parse(quickstart.VERB, argv)
    steps = quickstart.steps(invocation.run, invocation.workdir, argv)
    assert [step.verb for step in steps] == ["build", "train", "train", "evaluate"]
    parsed = [quickstart.parse(quickstart.VERB, step.arguments) for step in steps]
    assert [invocation.workdir.name for invocation in parsed] == [
        tmp_path.name,
        "baseline",
        "retro",
        tmp_path.name,
    ]
    assert [invocation.run.model.retrieves for invocation in parsed] == [True, False, True, True]
    assert {invocation.run.train.steps for invocation in parsed[1:3]} == {70}
    assert {invocation.run.data.directory for invocation in parsed[1:]} == {str(tmp_path / "data")}


def test_quickstart_gives_each_step_what_it_reads(tmp_path):
    """A flag that a step does not read would end it; one that is set twice would be refused."""
    argv = ["-config", "configs/quickstart.py:smoke", "--workdir", str(tmp_path), "--config.train.seed", "3"]
    argv += ["--config.model.width=96", "--config.model.retrieval_layers=(2,)", "--noconfig.model.scan"]
    argv += ["--config.data.recall_sample=7", "--config.evaluate.passages=1", "--config.data.directory=elsewhere"]
    invocation = quickstart.parse(quickstart.VERB, argv)
    planned = quickstart.steps(invocation.run, invocation.workdir, argv)
    verbs = [import_module(f"launch.{step.verb}").VERB for step in planned]
    build, baseline, retro, evaluate = (
        quickstart.parse(verb, step.arguments) for verb, step in zip(verbs, planned, strict=True)
    )
    assert build.run.data.recall_sample == 7 and build.run.data.directory == "elsewhere"
    assert baseline.run.model.retrieval_layers == () and retro.run.model.retrieval_layers == (2,)
    assert {one.run.train.seed for one in (baseline, retro)} == {3}
    assert {one.run.model.width for one in (baseline, retro, evaluate)} == {96}
    assert evaluate.run.evaluate.passages == 1 and evaluate.run.model == retro.run.model
    assert {one.run.data.directory for one in (build, baseline, retro, evaluate)} == {"elsewhere"}


def test_quickstart_passes_over_a_trained_model(tmp_path):
    arguments = ["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}"]
    step = launch_steps.Step("train", "train", arguments)
    assert not quickstart.is_trained(step)
    run = quickstart.parse(quickstart.VERB, arguments).run
    (tmp_path / "config.json").write_text(json.dumps(to_dict(run)))
    assert not quickstart.is_trained(step)
    checkpoint = write_whole(tmp_path / "checkpoints", run.train.steps)
    assert quickstart.is_trained(step)
    assert not quickstart.is_trained(launch_steps.Step("train", "train", [*arguments, "--config.train.seed=1"]))
    (checkpoint / "run" / "data.json").unlink()  # a damaged model, and then a damaged config, are repaired by the verb
    assert not quickstart.is_trained(step)
    (tmp_path / "config.json").write_text("")
    assert not quickstart.is_trained(step)


def test_quickstart_stops_at_the_step_that_fails(tmp_path, monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(quickstart, "run_step", lambda step: tried.append(step.title) or len(tried) - 1)
    assert quickstart.main(["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}"]) == 1
    assert len(tried) == 2 and "[2/4]" in capsys.readouterr().err


def test_a_step_that_was_killed_has_the_exit_code_of_a_shell(monkeypatch):
    class Killed:
        def __init__(self, command):
            pass

        def wait(self):
            return -9

    monkeypatch.setattr(launch_steps.subprocess, "Popen", Killed)
    assert launch_steps.run_step(launch_steps.Step("", "train", [])) == 137
