"""What the quickstart hands on to the verbs that it runs."""

from pathlib import Path

import pytest
from places import ROOT

from launch import quickstart
from launch.command.arguments import parse
from launch.train import VERB as TRAIN

CONFIG = "--config=configs/quickstart.py:smoke"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def training(*flags: str):
    """The configs with which the baseline and RETRO train, resolved as `retro train` does."""
    argv = [CONFIG, "--workdir=runs/x", *flags]
    run = parse(quickstart.VERB, argv).run
    steps = [step for step in quickstart.steps(run, Path("runs/x"), argv) if step.verb == "train"]
    return [parse(TRAIN, step.arguments).run.model for step in steps]


def test_an_ablation_of_retrieval_is_of_retro_alone():
    """A baseline refuses what it cannot have, so the quickstart must not hand it on."""
    flags = ("--config.model.neighbor_parts=neighbor", "--config.model.cross_attention_positions=False")
    baseline, retro = training(*flags)
    assert not baseline.retrieves and baseline.neighbor_parts == "both" and baseline.cross_attention_positions
    assert retro.retrieves and retro.neighbor_parts == "neighbor" and not retro.cross_attention_positions
