"""Several processes: discovery, missing ones, and a run of two that equals a run of one after any failure."""

import json
import signal
import threading
import time
import zlib

import pytest
from processes import differences, finish, free_port, log_path, run_to_end, start_run, wait_for
from training_fixture import build_data

from retro_jax.parallel import agreement
from retro_jax.parallel.hosts import ONE, Hosts, HostsError, expand_nodes, find_hosts, require_one_process
from retro_jax.parallel.roll_call import roll_call

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "localhost,n[08-09]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
}
GKE = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a.svc,b.svc"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("a,b-c,d7", ["a", "b-c", "d7"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[008-010,2],login", ["n008", "n009", "n010", "n2", "login"]),
        ("rack[1-2]-gpu,x[5]", ["rack1-gpu", "rack2-gpu", "x5"]),
    ],
)
def test_node_lists_of_slurm(text, names):
    assert expand_nodes(text) == names


def test_slurm_is_found_by_its_environment():
    found = find_hosts("auto", SLURM)
    assert found == Hosts(2, ("localhost", "n08", "n09"), "localhost:61441", None)
    assert find_hosts("auto", SLURM | {"SLURM_NTASKS": "1"}) is ONE
    assert find_hosts("one", SLURM) is ONE


def test_tasks_that_share_a_node_share_its_accelerators():
    environment = SLURM | {
        "SLURM_STEP_NODELIST": "localhost,b",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        "SLURM_LOCALID": "1",
    }
    assert find_hosts("slurm", environment) == Hosts(2, ("localhost", "localhost", "b"), "localhost:61441", 1)


def test_a_node_name_that_is_no_host_name_is_reached_by_sruns_address(monkeypatch):
    def unknown(*_):
        raise OSError("unknown host")

    monkeypatch.setattr("retro_jax.parallel.hosts.socket.getaddrinfo", unknown)
    environment = SLURM | {"SLURM_STEP_NODELIST": "node[1-3]", "SLURM_SRUN_COMM_HOST": "10.1.2.3"}
    assert find_hosts("slurm", environment).coordinator == "10.1.2.3:61441"


def test_gke_and_tpu_are_found_by_their_environment():
    assert find_hosts("auto", GKE) == Hosts(1, ("a.svc", "b.svc"), "a.svc:8482")
    slices = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "first.svc:8080"}
    found = find_hosts("auto", GKE | slices)
    assert found == Hosts(3, ("worker 0 of slice 0", "worker 1 of slice 0", "a.svc", "b.svc"), "first.svc:8482")
    assert find_hosts("auto", {"TPU_NAME": "pod"}) is None  # jax asks the metadata
    assert find_hosts("auto", {}) is ONE


def test_flags_mean_several_processes():
    found = find_hosts("auto", SLURM, coordinator="10.0.0.1:8476", processes=2, process=1)
    assert found == Hosts(1, ("process 0", "process 1"), "10.0.0.1:8476")


@pytest.mark.parametrize(
    ("mode", "flags", "message"),
    [
        ("flags", {}, "--coordinator, --processes, --process is missing. For example"),
        ("auto", {"process": 1}, "but --coordinator, --processes is missing"),
        ("slurm", {"process": 1}, "belong to --hosts=flags, not to --hosts=slurm"),
        ("flags", {"coordinator": "x", "processes": 2, "process": 0}, "HOST:PORT of process 0, but is 'x'"),
        ("flags", {"coordinator": "x:1", "processes": 2, "process": 2}, "from 0 to --processes - 1, but is 2 of 2"),
        ("slurm", {}, "reads SLURM_PROCID, which is not set; start with `srun retro train"),
        ("gke", {}, "reads TPU_WORKER_ID"),
    ],
)
def test_what_cannot_be_meant(mode, flags, message):
    with pytest.raises(HostsError, match=message):
        find_hosts(mode, {}, **flags)


def test_verbs_of_one_process_say_so():
    with pytest.raises(HostsError, match="`retro sample` runs in one process.*srun --ntasks=1"):
        require_one_process("sample", SLURM)
    require_one_process("sample", {})


def call_all(numbers, count, timeout):
    """Roll calls of some processes at once: number -> None or the error."""
    port, names = free_port(), tuple(f"host{number}" for number in range(count))
    answers = {}

    def call(number):
        try:
            answers[number] = roll_call(Hosts(number, names, f"localhost:{port}"), timeout)
        except HostsError as error:
            answers[number] = str(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return answers


def test_all_are_there():
    assert call_all([2, 0, 1], 3, 20) == {0: None, 1: None, 2: None}


def test_a_host_that_never_joins_is_named_on_every_other():
    answers = call_all([0, 2], 3, 1)
    assert sorted(answers) == [0, 2]
    for answer in answers.values():
        assert "This host did not join within 1 s: host1 (process 1 of 3). Nothing was written." in answer


def test_a_first_host_that_never_comes_is_named(monkeypatch):
    monkeypatch.setattr("retro_jax.parallel.roll_call.GRACE", 0.2)
    assert "host0 (process 0 of 2)" in call_all([1], 2, 0.3)[1]


def test_parts_join_to_the_crc_of_the_whole(monkeypatch):
    import jax
    from jax.experimental import multihost_utils

    parts = [b"first part", b"and second", b"with third"]
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda own: [zlib.crc32(part) for part in parts])
    import numpy as np

    monkeypatch.setattr(
        multihost_utils, "process_allgather", lambda own: np.uint32([zlib.crc32(part) for part in parts])
    )
    assert agreement.joined_crc32(zlib.crc32(parts[1]), 10) == zlib.crc32(b"".join(parts))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hosts")
    build_data(root / "data")
    return root


@pytest.fixture(scope="module")
def whole(root):
    """The undisturbed run: one process with two devices."""
    assert run_to_end(root / "whole", root / "data") == [0]
    return root / "whole"


def test_two_processes_one_killed_are_the_run_of_one(root, whole):
    """SIGKILL for one of two; the other reports it and ends; one process finishes, bit for bit the undisturbed run."""
    workdir = root / "two"
    running = start_run(workdir, root / "data", processes=2)
    wait_for(workdir, 4, running)
    running[1].send_signal(signal.SIGKILL)
    assert finish(running) == [75, -signal.SIGKILL]
    log = log_path(workdir, 0).read_text()
    assert "another process of this run is gone (process 1 on" in log and "Traceback" not in log
    assert run_to_end(workdir, root / "data") == [0]
    assert differences(workdir, whole, 12) == []
    assert sorted(path.name for path in (workdir / "hosts").iterdir()) == ["0.json", "1.json"]
    assert json.loads((workdir / "hosts" / "0.json").read_text())["phase"] == "done"


@pytest.mark.slow
def test_two_processes_restart_on_one_and_one_on_two(root, whole):
    """The global batches and every bit, over 2 -> 1 -> 2 processes, with SIGTERM to only one of two between."""
    workdir = root / "many"
    running = start_run(workdir, root / "data", processes=2)
    wait_for(workdir, 2, running)
    running[1].send_signal(signal.SIGTERM)
    assert finish(running) == [75, 75]  # both save the same step
    running = start_run(workdir, root / "data")
    wait_for(workdir, 7, running)
    running[0].send_signal(signal.SIGKILL)
    assert finish(running) == [-signal.SIGKILL]
    assert run_to_end(workdir, root / "data", processes=2) == [0, 0]
    assert differences(workdir, whole, 12) == []


@pytest.mark.slow
def test_a_run_without_one_of_its_hosts_writes_nothing(root):
    workdir = root / "alone"
    running = start_run(workdir, root / "data", "--join_timeout=2", processes=2)
    running[1].kill()
    assert finish(running)[0] == 2
    assert "did not join within 2 s: process 1 (process 1 of 2)" in log_path(workdir, 0).read_text()
    assert not workdir.exists()


@pytest.mark.parametrize("error", [ValueError("another config"), OSError("No space left on device")])
def test_an_error_of_the_first_process_is_one_everywhere(monkeypatch, error):
    """The error has its message everywhere; on the first process it is the original."""
    import jax

    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement, "share", lambda value: sent.append(value) or sent[0])

    def fail():
        raise error

    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(type(error), match=str(error)):
        agreement.on_first(fail)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(HostsError, match=str(error)):
        agreement.on_first(lambda: pytest.fail("the second process acts too"))
