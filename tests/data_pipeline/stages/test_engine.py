"""Engines make shards with equal bytes: serialized arguments, resources, one build at a time."""

import os
import signal
import subprocess
import sys

import cloudpickle
import made_up_encoder
import made_up_text
import numpy as np
import pytest
from test_build import arguments, contents

from data_pipeline.stages.engine import InProcess, Resource, Shard, current_engine, using
from data_pipeline.stages.lock import BuildLock
from data_pipeline.stages.run import StageError, run_stage
from launch.build import main

LARGEST = 20_000  # bytes of a shard's description; the tables of the build below hold more


class Traveling:
    """Serializes every shard, as a cluster does, runs the last first, and makes one twice."""

    accelerated = False

    def __init__(self):
        self.sizes, self.opened = {}, []

    def map(self, function, shards):
        for number, shard in reversed(list(enumerate(shards))):
            sent = cloudpickle.dumps((function, shard))
            self.sizes[shard.name] = len(sent)
            for _ in range(2 if number == 0 else 1):
                function_there, shard_there = cloudpickle.loads(sent)
                thing = None
                if shard_there.resource is not None:
                    assert shard_there.resource.here is None
                    thing = shard_there.resource.get()
                    self.opened.append(shard_there.resource.key)
                with using(InProcess()):
                    facts = function_there(shard_there, thing)
            yield number, facts


@pytest.mark.parametrize("rerank", ["none", "bm25"])
def test_a_build_whose_shards_travel_has_the_same_bytes(tmp_path, rerank):
    """All stages; two index shards; shards in another order, one made twice; no shard carries a table or an encoder."""
    made_up_encoder.write(tmp_path / "encoder")
    made_up_text.write_folder(tmp_path / "text", documents=24)
    more = ["--config.data.index_shards=2", f"--config.data.rerank={rerank}"]
    assert main(arguments(tmp_path, tmp_path / "here", *more)) == 0
    engine = Traveling()
    with using(engine):
        assert main(arguments(tmp_path, tmp_path / "there", *more)) == 0
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert set(engine.opened) == {"encoder", "index shard 0", "index shard 1"}
    assert max(engine.sizes.values()) < LARGEST, engine.sizes


def test_a_resource_is_opened_once_for_its_shards_and_only_one_is_held(tmp_path):
    """An open resource is not opened again; a shard without a resource gets none."""
    log = []

    def resource(key, here=None):
        return Resource(key, lambda: log.append(f"open {key}") or key, here=here)

    def shard(number, held):
        def make(folder, *thing):
            log.append((number, *thing))
            (folder / f"{number}").write_text(str(number))
            return {}

        return Shard(f"s{number}", [f"{number}"], make, held)

    held = [resource("a"), resource("a"), None, resource("b"), resource("c", here="had")]
    run_stage(tmp_path, "made-up", {}, {}, [shard(number, thing) for number, thing in enumerate(held)])
    assert log == ["open a", (0, "a"), (1, "a"), (2,), "open b", (3, "b"), (4, "had")]


def test_the_engine_in_use_ends_with_its_block():
    engine = Traveling()
    with pytest.raises(RuntimeError), using(engine):
        assert current_engine() is engine
        raise RuntimeError
    assert isinstance(current_engine(), InProcess)


def test_what_a_lost_process_left_is_not_in_the_result(tmp_path):
    """Guards against leftovers of another process's shard folder."""

    def make(folder):
        (folder.parent / ".writing-s0-lost").mkdir()
        np.save(folder / "0.npy", np.zeros(3))
        return {}

    run_stage(tmp_path, "made-up", {}, {}, [Shard("s0", ["0.npy"], make)])
    assert not list(tmp_path.glob(".writing-*"))


HOLD = """
import sys, time
from data_pipeline.stages.lock import BuildLock
with BuildLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_builds_in_one_directory(tmp_path, capsys):
    """The second is refused with the first one's name; a killed one blocks nobody, though its file remains."""
    data = tmp_path / "run" / "data"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(data)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    with pytest.raises(StageError, match=rf"process {child.pid} on {os.uname().nodename} is doing so now"):
        BuildLock(data).__enter__()
    made_up_text.write_folder(tmp_path / "text", documents=2)
    assert main(arguments(tmp_path, tmp_path / "run")) == 2
    assert "One build at a time" in capsys.readouterr().err and not data.exists()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert (tmp_path / "run" / "data.lock").read_text() == f"{os.uname().nodename} {child.pid}"
    with BuildLock(data) as lock:
        assert lock.path.read_text() == f"{os.uname().nodename} {os.getpid()}"
    assert not lock.path.exists()


RACE = """
import os, sys
from data_pipeline.stages.lock import BuildLock
from data_pipeline.stages.run import StageError
entered = 0
while entered < 200:
    try:
        with BuildLock(sys.argv[1]) as lock:
            os.close(os.open(sys.argv[1] + ".inside", os.O_CREAT | os.O_EXCL))  # fails where another is inside
            os.unlink(sys.argv[1] + ".inside")
            entered += 1
    except StageError:
        pass
"""


def test_several_builds_at_once_and_one_goes_on(tmp_path):
    """Guards against two holders of one lock, with several processes that open, lock and remove the file."""
    command = [sys.executable, "-c", RACE, str(tmp_path / "data")]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(child.communicate()[1], child.returncode) for child in children] == [("", 0)] * 3


@pytest.mark.parametrize("flag", ["--address=10.0.0.1:6379", "--accelerator=gpu"])
def test_flags_of_ray_without_ray_are_a_mistake(tmp_path, capsys, flag):
    assert main(["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path / 'run'}", flag]) == 2
    assert "are of --engine=ray, but --engine=process" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ray_that_is_not_installed_is_named(tmp_path, capsys, monkeypatch):
    import data_pipeline.stages.ray as ray_engine

    monkeypatch.setattr(ray_engine, "ray", None)
    assert main(["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path / 'run'}", "--engine=ray"]) == 2
    assert "pip install 'retro_jax[ray]'" in capsys.readouterr().err and not (tmp_path / "run" / "data").exists()
