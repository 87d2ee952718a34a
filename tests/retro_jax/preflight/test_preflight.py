"""`retro preflight` from its command line."""

import dataclasses
import importlib.util
import json

import pytest
from places import ROOT

from launch.preflight import main
from retro_jax.preflight import report as module
from retro_jax.preflight.compile import Compiled, LibtpuError, check_compiler, compile_step
from retro_jax.presets.topologies import parse_topology

SMOKE = "--config=configs/retro.py:172m,smoke"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RETRO_TRACEBACK", raising=False)


def report(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_analytic_answer(capsys):
    found = report(capsys, "--config=configs/retro.py:7b5", "--topology=v5p:8x8x4", "--no-compile")
    assert found["fits"] and found["recipe"] == "7b5,v5p-8x8x4"
    assert found["parameters"]["non_embedding"] == 7_532_182_784
    assert found["parameters"]["total"] == found["parameters"]["non_embedding"] + 128_000 * (4096 + 896)
    assert found["memory_gib"]["total"] < found["memory_gib"]["limit"] == 95.74
    # 256 chips of 459 TFLOP/s; the floor is 6 x 7.5e9 parameters x 2M tokens
    assert 0.8 < found["step_seconds_roofline"] < 10 and found["compile_seconds"] is None


def test_the_text_says_the_same(capsys):
    assert main(["--config=configs/retro.py:172m", "--topology=v5e:4x4", "--no-compile"]) == 0
    output = capsys.readouterr()
    assert "v5e:4x4: fits, " in output.out and "chip-hours" in output.out
    assert "the recipe for 172m on v5e:4x4 is applied" in output.err


def test_what_does_not_fit_names_what_makes_it_fit(capsys):
    found = report(capsys, "--config=configs/retro.py:7b5", "--topology=v5p:4x4x4", "--no-compile")
    assert not found["fits"] and found["memory_gib"]["total"] > 150
    tried = {row["change"]: row for row in found["remedies"]}
    assert {"more fsdp", "more tensor", "more accumulation"} <= set(tried)
    fitting = [row for row in found["remedies"] if row["fits"]]
    assert fitting and all(row["memory_gib"] <= 95.74 for row in fitting)
    flags = fitting[0]["flags"].split()
    again = report(capsys, "--config=configs/retro.py:7b5", "--topology=v5p:4x4x4", "--no-compile", *flags)
    assert again["fits"] and again["memory_gib"]["total"] == fitting[0]["memory_gib"]


def test_the_flags_of_a_remedy_are_of_the_config_given(capsys):
    """Guards against flags that leave the recipe out, which was applied before: the run would not fit by far."""
    config = ("--config=configs/retro.py:172m", "--topology=v5e:4x4", "--no-compile", "--config.model.neighbors=16")
    found = report(capsys, *config)
    assert found["recipe"] and not found["fits"]
    for row in [row for row in found["remedies"] if row["fits"]][:2]:
        again = report(capsys, *config, *row["flags"].split())
        assert again["recipe"] is None and again["memory_gib"]["total"] == pytest.approx(row["memory_gib"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "attention=xl",
            "config.model.attention must be one of auto, xla, flash, flash_gpu, but is 'xl' (did you mean xla?)",
        ),
        ("shared_embeddings=True", "config.model.width=64 and config.model.encoder.width=32"),
    ],
)
def test_a_model_that_cannot_run_is_refused(flag, message, capsys):
    """An ablation or attention that `retro train` would refuse is refused here too."""
    assert main([SMOKE, "--topology=v5e:2x2", "--no-compile", f"--config.model.{flag}"]) == 2
    assert message in capsys.readouterr().err


def test_remedies_are_compiled_until_one_fits(monkeypatch, capsys):
    """The estimate proposes, the compiler decides: here it refuses the config and takes the first remedy."""
    seen = []

    def compile_step(run, topology):
        seen.append(run)
        fits = len(seen) == 2
        return Compiled(fits=fits, seconds=1.0, total_gib=3.0 if fits else 99.0, limit_gib=15.75)

    monkeypatch.setattr(module, "compile_step", compile_step)
    monkeypatch.setattr(module, "check_compiler", lambda topology: None)
    found = report(capsys, SMOKE, "--topology=v5e:2x2")
    assert not found["fits"] and found["memory_gib"]["total"] == 99.0 and len(seen) == 2
    assert [row["compiled_gib"] for row in found["remedies"] if "compiled_gib" in row] == [3.0]


def test_a_remedy_that_no_device_can_run_is_refused_and_the_next_is_tried(monkeypatch, capsys):
    """Guards against a report that ends with the mistake of its own proposal, as with heads cut over hosts."""
    seen = []

    def compile_step(run, topology):
        seen.append(run)
        if len(seen) == 2:
            raise ValueError("cuts heads over devices of the processes 0, 1")
        return Compiled(fits=len(seen) == 3, seconds=1.0, total_gib=99.0, limit_gib=15.75)

    monkeypatch.setattr(module, "compile_step", compile_step)
    monkeypatch.setattr(module, "check_compiler", lambda topology: None)
    assert main([SMOKE, "--topology=v5e:2x2"]) == 0 and len(seen) == 3
    output = capsys.readouterr().out
    assert output.count("refused: cuts heads over devices of the processes 0, 1") == 1
    assert ", fits (" in output


def test_a_real_compilation_on_virtual_devices(capsys):
    found = report(
        capsys, SMOKE, "--topology=cpu:4", "--config.train.mesh.fsdp=2", "--config.model.layers=2",
        "--config.model.retrieval_layers=(2,)", "--config.model.encoder.layers=1",
    )  # fmt: skip
    assert found["fits"] and found["compile_seconds"] > 0 and found["memory_gib"]["by"] == "compiler"
    assert found["compiler"]["traced_flops_a_device"] == found["flops"]["executed"] / 4
    assert found["compiler"]["collectives"]["all-gather"]["count"] > 0
    assert found["step_seconds_roofline"] is None  # a CPU's rates are not known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SMOKE,), "--topology is missing"),
        ((SMOKE, "--topology=v7:8"), "--topology=v7:8 is not known"),
        ((SMOKE, "--topology=v5e:4x4", "--config.train.mesh.fsdp=3"), "number of devices, 16 here"),
        ((SMOKE, "--topology=v5e:4x4", "--config.train.mesh.tensor=8"), "config.model.heads into equal parts"),
        ((SMOKE, "--topology=v5e:8x8"), "config.train.batch=8 is not a multiple of that; take 64"),
        (("--config=configs/retro.py:7b5", "--topology=v5e:16x16", "--config.train.mesh.fsdp=256"), "encoder.width"),
        ((SMOKE, "--topology=h100:8"), "no compiler for an absent h100; take --no-compile"),
    ],
)
def test_mistakes_are_named_before_anything_is_compiled(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(module, "compile_step", lambda *arguments: pytest.fail("compiled"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert main(list(arguments)) == 2
    assert message in capsys.readouterr().err


def test_a_missing_libtpu_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LibtpuError, match=r"pip install 'retro_jax\[tpu\]'.*--no-compile"):
        check_compiler(parse_topology("v5e:4x4"))


@pytest.mark.tpu
def test_an_absent_tpu_is_compiled_for(capsys):
    found = report(capsys, SMOKE, "--topology=v5e:2x2", "--config.train.mesh.fsdp=4")
    assert found["fits"] and found["memory_gib"]["limit"] == 15.75


@pytest.mark.tpu
def test_what_does_not_fit_says_by_how_much():
    from launch.command.config_files import load_config
    from retro_jax.config import resolve

    run = resolve(load_config("configs/retro.py:132m".replace("retro", "baseline")))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, layers=1, remat="none", loss_block=0))
    found = compile_step(run, parse_topology("v5e:2x2"))
    assert not found.fits and found.total_gib > found.limit_gib == 15.75


def test_evaluation_keeps_no_moments_and_names_a_batch_that_does_not_cut(capsys):
    arguments = ("--config=configs/retro.py:7b5", "--topology=v5p:8x8x4", "--no-compile")
    training = report(capsys, *arguments)
    assert main([*arguments, "--step=evaluate"]) == 2
    assert "config.evaluate.batch=16 is not a multiple of that; take " in capsys.readouterr().err
    small = ("--config=configs/retro.py:172m,smoke", "--topology=v5e:2x4", "--no-compile", "--step=evaluate")
    assert main([*small, "--config.train.mesh.tensor=8"]) == 2
    assert "cuts config.model.heads into equal parts, but 4 is not a multiple of 8" in capsys.readouterr().err
    batch = training["mesh"]["data"] * training["mesh"]["fsdp"]
    found = report(capsys, *arguments, "--step=evaluate", f"--config.evaluate.batch={batch}")
    assert found["fits"] and found["memory_gib"]["parameters"] == training["memory_gib"]["parameters"]
    assert found["memory_gib"]["total"] < training["memory_gib"]["total"]


def test_the_evaluation_step_compiles_on_virtual_devices(capsys):
    """The compiler's memory holds the parameters of a device and little else; no moments and no gradients."""
    found = report(
        capsys, SMOKE, "--topology=cpu:4", "--step=evaluate", "--config.train.mesh.fsdp=2", "--config.model.layers=2",
        "--config.model.retrieval_layers=(2,)", "--config.model.encoder.layers=1", "--config.evaluate.batch=4",
    )  # fmt: skip
    assert found["fits"] and found["memory_gib"]["by"] == "compiler" and found["compile_seconds"] > 0
    assert found["memory_gib"]["activations"] > 0
