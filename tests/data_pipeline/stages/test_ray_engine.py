"""Builds on a local Ray cluster of several nodes give the bytes of a build in one process, under any kill."""

import hashlib
import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import made_up_encoder
import made_up_text
import numpy as np
import pytest
from places import ROOT
from test_build import arguments, contents

import data_pipeline.stages.ray as ray_engine
from data_pipeline.stages.engine import Resource, Shard, using
from data_pipeline.stages.lock import BuildLock
from data_pipeline.stages.ray import RayEngine
from data_pipeline.stages.run import StageError, read_manifest, run_stage
from launch.build import main
from launch.join import main as join

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.filterwarnings("default"),
]  # ray warns and leaves files open
MEMORY = 80_000_000  # bytes of a node's object store, the least it takes
MORE = ["--config.data.index_shards=2", "--config.data.shard_chunks=200"]


class Nodes:
    """A head without CPUs and nodes of one CPU each."""

    def __init__(self, count):
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers = [self.add() for _ in range(count)]
        self.address = self.cluster.address

    def add(self, **more):
        return self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY, **more)


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("ray", reason="make test-ray installs it")
    root = str(ROOT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{root}:{root}/tests/fixtures")
        found = Nodes(3)
        yield found
        found.cluster.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("ray")
    made_up_encoder.write(root / "encoder")
    made_up_text.write_folder(root / "text", documents=24)
    assert main(arguments(root, root / "whole", *MORE)) == 0
    return root


def build(root, nodes, name):
    return main(arguments(root, root / name, *MORE, "--engine=ray", f"--address={nodes.address}"))


def test_a_build_on_a_cluster_has_the_same_bytes(root, nodes):
    assert build(root, nodes, "cluster") == 0
    assert contents(root / "cluster") == contents(root / "whole")


def test_a_set_joined_on_a_cluster_has_the_same_bytes(root, nodes):
    """Reading, embedding, searching and the comparison with training documents: each has shards that hold a resource."""
    made_up_text.write_folder(root / "set", documents=5, seed=4)
    for name, flags in (("here", []), ("there", ["--engine=ray", f"--address={nodes.address}"])):
        shutil.copytree(root / "whole", root / name)
        asked = [f"--workdir={root / name}", "--set=farm2", f"--path={root / 'set'}", "--neighbors=12", "--share=0.5"]
        assert join(asked + flags) == 0
    assert contents(root / "there") == contents(root / "here")
    assert (root / "there" / "data" / "evaluation" / "farm2" / "contamination" / "manifest.json").exists()


@contextmanager
def after(folder, pattern, action):
    """Runs it in a thread as soon as a path that fits the pattern exists; fails if the block ended and none was seen."""
    ended, seen = threading.Event(), threading.Event()

    def wait():
        while not any(folder.glob(pattern)):
            if ended.wait(0.002):
                return
        seen.set()
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert seen.is_set(), f"{folder / pattern} was there too briefly to be seen"


def at_work():
    """Ids of the busy worker processes."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
        except OSError:
            continue
        if title.startswith(("ray::run", "ray::Holder")):  # a node's agents are ray:: too, and take it with them
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("moment", ["chunks/.writing-*", "embeddings/.parts/*", "neighbors/.answers/*/.writing-*"])
def test_workers_killed_in_the_middle(root, nodes, moment):
    """Every process that works for the build gets SIGKILL as soon as the stage has begun: plain tasks and actors."""
    name, killed = f"workers-{moment.split('/')[0]}", []

    def kill():
        for process in at_work():
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    with after(root / name / "data", moment, kill):
        assert build(root, nodes, name) == 0
    assert killed and contents(root / name) == contents(root / "whole")


@pytest.mark.parametrize("stage", ["embeddings", "neighbors/.answers/*"])
def test_a_node_removed_in_the_middle(root, nodes, stage):
    name = f"node-{stage.split('/')[0]}"

    def remove():
        nodes.cluster.remove_node(nodes.workers.pop(), allow_graceful=False)

    with after(root / name / "data", f"{stage}/.parts/*", remove):
        assert build(root, nodes, name) == 0
    nodes.workers.append(nodes.add())
    assert contents(root / name) == contents(root / "whole")


ROUTED = ["--config.data.exact_below=0", "--config.data.index_shards=3", "--config.data.shard_chunks=600"]


@pytest.fixture(scope="module")
def routed(root):
    """A build whose SCaNN index has three shards, of which a query visits those that the recall needs."""
    made_up_text.write_folder(root / "routed" / "text", documents=60, seed=7)
    (root / "routed" / "encoder").symlink_to(root / "encoder")
    assert main(arguments(root / "routed", root / "routed" / "whole", *ROUTED)) == 0
    counts = read_manifest(root / "routed" / "whole" / "data" / "index", "index").counts
    assert counts["kind"] == "scann" and len(counts["shards"]) == 3 and 1 <= counts["routing"]["visits"] < 3
    return root / "routed"


@pytest.mark.parametrize("removed_in", [None, "index", "neighbors/.answers/*"])
def test_a_routed_index_on_a_cluster_has_the_same_bytes(routed, nodes, removed_in):
    """Its shards are made and searched on several nodes, each query in those that it visits; a node may be lost."""
    workdir = routed / f"cluster-{str(removed_in).split('/')[0]}"

    def remove():
        nodes.cluster.remove_node(nodes.workers.pop(), allow_graceful=False)

    with after(workdir / "data", f"{removed_in}/.parts/*", remove) if removed_in else nullcontext():
        flags = ["--engine=ray", f"--address={nodes.address}"]
        assert main(arguments(routed, workdir, *ROUTED, *flags)) == 0
    if removed_in:
        nodes.workers.append(nodes.add())
    assert contents(workdir) == contents(routed / "whole")


@contextmanager
def engine(tmp_path, nodes):
    with BuildLock(tmp_path / "data") as lock, RayEngine(nodes.address, lock) as ray, using(ray):
        yield


def test_a_mistake_in_a_shard_is_the_same_error_as_here(tmp_path, nodes):
    def make(folder):
        raise StageError("The text is upside down. Turn it around.")

    with engine(tmp_path, nodes), pytest.raises(StageError, match="^The text is upside down"):
        run_stage(tmp_path / "s", "made-up", {}, {}, [Shard(f"s{n}", [f"{n}"], make) for n in range(2)])


def test_a_node_that_is_lost_while_it_is_asked_stops_nothing(tmp_path, nodes, monkeypatch):
    """Guards against a build that is refused because Ray still lists a node that has just died."""
    listed, lost = ray_engine._nodes, [[{"NodeID": "0f" * 28, "NodeManagerAddress": "lost"}]]
    monkeypatch.setattr(ray_engine, "_nodes", lambda: listed() + (lost.pop() if lost else []))

    def make(folder):
        np.save(folder / "made.npy", np.zeros(1))
        return {}

    with engine(tmp_path, nodes):
        run_stage(tmp_path / "s", "made-up", {}, {}, [Shard("s0", ["made.npy"], make)])
    assert not lost and (tmp_path / "s" / "made.npy").exists()


def test_a_shard_that_kills_its_process_each_time_is_named(tmp_path, nodes, monkeypatch):
    def make(folder):
        os.kill(os.getpid(), signal.SIGKILL)

    def survive(folder):
        np.save(folder / "survivor.npy", np.zeros(1))
        return {}

    monkeypatch.setattr(ray_engine, "_run", ray_engine._run.options(max_retries=1))
    monkeypatch.setattr(ray_engine, "RETRIES", 1)
    with (
        engine(tmp_path, nodes),
        pytest.raises(StageError, match="Shard s0 was lost 2 times .* memory"),
    ):
        run_stage(
            tmp_path / "s", "made-up", {}, {}, [Shard("s0", ["0"], make), Shard("survivor", ["survivor.npy"], survive)]
        )


def test_one_actor_holds_one_index_shard(tmp_path, nodes):
    """Each resource is opened in one process, all its shards are made there, and more resources than nodes take turns."""

    def make(number, folder, thing):
        np.save(folder / f"{number}.npy", np.array([thing, os.getpid()]))
        return {}

    shards = []
    for number in range(10):
        held = Resource(f"part {number // 2}", os.getpid)
        shards.append(Shard(f"s{number}", [f"{number}.npy"], lambda f, t, number=number: make(number, f, t), held))
    with engine(tmp_path, nodes):
        run_stage(tmp_path / "s", "made-up", {}, {}, shards)
    found = np.array([np.load(tmp_path / "s" / f"{number}.npy") for number in range(10)])
    assert (found[:, 0] == found[:, 1]).all() and (found[::2] == found[1::2]).all()
    assert len(set(found[:, 0].tolist())) == 5


def test_an_index_shard_larger_than_any_node_is_refused(tmp_path, nodes):
    held = Resource("index shard 0", int, bytes=1 << 50)
    shards = [Shard(f"s{n}", [f"{n}"], lambda folder, thing: {}, held) for n in range(2)]
    with engine(tmp_path, nodes), pytest.raises(StageError, match="index_shards .* larger nodes"):
        run_stage(tmp_path / "s", "made-up", {}, {}, shards)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_an_address_where_nothing_answers(root, tmp_path, capsys, address):
    before = time.monotonic()
    assert main(arguments(root, tmp_path / "run", "--engine=ray", f"--address={address}")) == 2
    assert f"No Ray cluster answers at --address={address}" in capsys.readouterr().err
    assert time.monotonic() - before < 30 and not (tmp_path / "run" / "data").exists()


def test_an_accelerator_that_no_node_has(root, tmp_path, nodes, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    flags = ["--engine=ray", f"--address={nodes.address}", "--accelerator=tpu"]
    assert main(arguments(root, tmp_path / "run", *flags)) == 2
    assert "--accelerator=tpu asks for nodes with one, but none of the 3 nodes" in capsys.readouterr().err
    assert not (tmp_path / "run" / "data").exists()


def test_nodes_of_another_program_or_storage_are_refused(tmp_path, nodes, monkeypatch):
    # Here alone: `program` itself would travel to the nodes if it were replaced.
    monkeypatch.setattr(ray_engine, "hashlib", SimpleNamespace(sha256=hashlib.sha512))
    with pytest.raises(StageError, match="has another program than this one"), engine(tmp_path, nodes):
        pass
    monkeypatch.undo()
    with BuildLock(tmp_path / "data") as lock:
        lock.path.write_text("other storage")
        with pytest.raises(StageError, match="has another lock file than this one .*shared storage"):
            RayEngine(nodes.address, lock)
