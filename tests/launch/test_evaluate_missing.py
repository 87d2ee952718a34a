"""Neighbors that an evaluation searches itself: while another process writes into the data, it waits."""

import os
from dataclasses import replace
from types import SimpleNamespace

import joined_set
import pytest
from file_contents import contents

from data_pipeline.evaluation.sets import open_set
from data_pipeline.stages.lock import BuildLock
from data_pipeline.stages.run import StageError
from launch import evaluate
from launch.evaluate import search_missing, wait_for_missing
from retro_jax.core.lock import Busy


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A build, and a config that tries a share of its database."""
    root = tmp_path_factory.mktemp("missing")
    run = joined_set.make_build(root)
    return root / "data", replace(run, evaluate=replace(run.evaluate, tried_shares=(0.5,)))


def test_what_is_missing_is_searched_when_the_other_process_has_ended(built, monkeypatch, capsys):
    """Guards against two evaluations that share a build and delete each other's unfinished folders."""
    data, run = built
    before, lock, turns = contents(data), BuildLock(data), []
    monkeypatch.setattr(evaluate, "PAUSE", 0.0)

    def stop_here(verb):
        turns.append(contents(data) == before)
        if len(turns) == 3:
            lock.release()

    lock.acquire()
    wait_for_missing(lambda: search_missing(run, data, ["held_out"]), SimpleNamespace(stop_here=stop_here), data)
    assert turns == [True] * 3, "nothing was written meanwhile"
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("evaluate: ")] == [
        f"evaluate: process {os.getpid()} on {os.uname().nodename} writes into {data}, where neighbors are missing; "
        f"waiting for it."
    ]
    assert open_set(data, "held_out").neighbors(k=2, share=0.5).facts["share"] == 0.5 and not lock.path.exists()


def test_where_nothing_is_missing_no_lock_is_needed(built):
    """Guards against an evaluation that writes into data that cannot be written to, or waits without need."""
    data, run = built
    assert search_missing(run, data, ["held_out"]) == ""
    with BuildLock(data):
        assert search_missing(run, data, ["held_out"]) == ""
        more = replace(run, evaluate=replace(run.evaluate, contaminated=0.8))
        assert search_missing(more, data, ["held_out"]) == f"process {os.getpid()} on {os.uname().nodename}"
    assert search_missing(more, data, ["held_out"]) == ""


def test_a_lock_that_cannot_be_written_is_not_busy(tmp_path):
    """Guards against an evaluation that waits for ever where the storage is read-only."""
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match="cannot be written to") as raised:
        BuildLock(tmp_path / "file" / "data").acquire()
    assert not isinstance(raised.value, Busy)
    with BuildLock(tmp_path / "data"), pytest.raises(StageError, match="One build at a time") as raised:
        BuildLock(tmp_path / "data").acquire()
    assert isinstance(raised.value, Busy) and raised.value.holder.startswith(f"process {os.getpid()} on ")
