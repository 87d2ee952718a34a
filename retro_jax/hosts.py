"""Several processes, one run: who takes part, how they find each other, what they agree on.

`start` comes before anything else touches jax. jax's own start-up ends a process that waits in vain without naming the
one that is missing, so a roll call on the coordinator's port comes first: process 0 answers when all have called, or
names those that have not. Nothing is written before everybody is there.
"""

import json
import os
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MODES = ("auto", "one", "slurm", "tpu", "gke", "flags")
GRACE = 10.0  # seconds that the others wait longer than process 0, for its answer
TPU_PORT = 8482  # jax's choice for its coordinator on TPUs
GREETING = "retro_jax"


class HostsError(ValueError):
    """The processes of a run did not find each other."""


@dataclass(frozen=True)
class Hosts:
    """The processes of a run as this one sees them."""

    index: int = 0
    names: tuple[str, ...] = ()  # a host name, or "process I", for every process
    coordinator: str = ""  # HOST:PORT of process 0; empty: one process, or jax asks the TPU's metadata
    local_device: int | None = None  # the accelerator of this process where several share a host

    @property
    def count(self) -> int:
        return len(self.names) or 1


ONE = Hosts(names=(socket.gethostname(),))


def find_hosts(
    mode: str,
    environment: Mapping[str, str],
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Hosts | None:
    """Who takes part, by flags or by the scheduler's environment; None where jax must ask the TPU's metadata itself.

    Raises:
      HostsError: flags that are incomplete or contradict each other, or an environment without what `mode` needs.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if any(value is not None for value in given.values()) or mode == "flags":
        if mode not in ("auto", "flags"):
            raise HostsError(f"{', '.join(given)} belong to --hosts=flags, not to --hosts={mode}; leave one out.")
        return _by_flags(given)
    if mode == "auto":
        mode = _detect(environment)
    if mode == "slurm":
        return _by_slurm(environment)
    if mode == "gke":
        return _by_gke(environment)
    return None if mode == "tpu" else ONE


def _detect(environment: Mapping[str, str]) -> str:
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        return "slurm"
    if "TPU_WORKER_ID" in environment and (
        "," in environment.get("TPU_WORKER_HOSTNAMES", "") or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
    ):
        return "gke"
    return "tpu" if "TPU_NAME" in environment else "one"


def _by_flags(given: Mapping) -> Hosts:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise HostsError(
            f"--hosts=flags needs {', '.join(given)}, but {', '.join(missing)} is missing. For example: "
            f"--coordinator=10.0.0.1:8476 --processes=2 --process=0, and --process=1 on the second host."
        )
    coordinator, count, index = given.values()
    if not re.fullmatch(r".+:\d+", coordinator):
        raise HostsError(f"--coordinator is HOST:PORT of process 0, but is {coordinator!r}; e.g. 10.0.0.1:8476.")
    if not 0 <= index < count:
        raise HostsError(f"--process counts from 0 to --processes - 1, but is {index} of {count}.")
    return ONE if count == 1 else Hosts(index, tuple(f"process {number}" for number in range(count)), coordinator)


def _by_slurm(environment: Mapping[str, str]) -> Hosts:
    def need(*names):
        found = next((environment[name] for name in names if name in environment), None)
        if found is None:
            raise HostsError(f"--hosts=slurm reads {names[0]}, which is not set; start with `srun retro train ...`.")
        return found

    index, count = int(need("SLURM_PROCID")), int(need("SLURM_NTASKS"))
    if count == 1:
        return ONE
    nodes = expand_nodes(need("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))
    tasks = _expand_counts(need("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    names = tuple(name for name, number in zip(nodes, tasks, strict=True) for _ in range(number))
    if len(names) != count:
        raise HostsError(f"SLURM_NTASKS={count}, but the tasks per node {tasks} on {nodes} are {len(names)}.")
    port = 61440 + int(need("SLURM_JOB_ID")) % 4096
    address = nodes[0]
    try:
        socket.getaddrinfo(address, port)
    except OSError:  # a node name that is no host name: srun's own address, for a batch script runs on the first node
        address = environment.get("SLURM_SRUN_COMM_HOST", address)
    shared = max(tasks) > 1
    return Hosts(index, names, f"{address}:{port}", int(need("SLURM_LOCALID")) if shared else None)


def expand_nodes(text: str) -> list[str]:
    """The host names of a SLURM node list: "a[01-02,7],b" is a01, a02, a7, b."""
    names = []
    for prefix, ranges, suffix in re.findall(r"([^,\[]+)(?:\[([^\]]+)\])?([^,\[]*)", text):
        for part in ranges.split(",") if ranges else [""]:
            first, _, last = part.partition("-")
            for number in range(int(first), int(last or first) + 1) if part else [None]:
                middle = "" if number is None else str(number).zfill(len(first))
                names.append(f"{prefix}{middle}{suffix}")
    return names


def _expand_counts(text: str) -> list[int]:
    """Tasks a node: "2(x3),1" is 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(number) for number, times in found for _ in range(int(times or 1))]


def _by_gke(environment: Mapping[str, str]) -> Hosts:
    for name in ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"):
        if name not in environment:
            raise HostsError(f"--hosts=gke reads {name}, which GKE sets in a TPU pod's container; it is not set.")
    here = environment["TPU_WORKER_HOSTNAMES"].split(",")
    slices, number = int(environment.get("MEGASCALE_NUM_SLICES", 1)), int(environment.get("MEGASCALE_SLICE_ID", 0))
    names = [
        here[worker] if part == number else f"worker {worker} of slice {part}"
        for part in range(slices)
        for worker in range(len(here))
    ]
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS", here[0]).split(":")[0]
    index = number * len(here) + int(environment["TPU_WORKER_ID"])
    return ONE if len(names) == 1 else Hosts(index, tuple(names), f"{first}:{TPU_PORT}")


def start(hosts: Hosts | None, timeout: float) -> None:
    """Joins the processes; jax must not have started yet. Does nothing for one process.

    Raises:
      HostsError: after `timeout` seconds without all of them; those that are missing are named.
    """
    if hosts is not None and hosts.count == 1:
        return
    import jax

    if hosts is None:
        jax.distributed.initialize(initialization_timeout=int(timeout))
        return
    roll_call(hosts, timeout)
    jax.distributed.initialize(
        hosts.coordinator,
        hosts.count,
        hosts.index,
        local_device_ids=hosts.local_device,
        initialization_timeout=int(max(timeout, 60)),
        cluster_detection_method="deactivate",
    )


def started() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def leave_together() -> None:
    """Parts from the other processes when all have come to this point."""
    if started():
        sys.modules["jax"].distributed.shutdown()


def leave_alone(code: int) -> None:
    """Ends this process at once if it has not left together with the others: they may never come to that point."""
    if not started():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.modules["jax"].process_index() == 0:
        time.sleep(2)  # jax ends the others when this process goes: let them say why they stop
    os._exit(code)


def end_within(seconds: float, code: int) -> None:
    """Ends this process with `code` if it is still there after `seconds`: threads of a library may never end."""

    def end():
        time.sleep(seconds)
        sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=end, daemon=True).start()


def roll_call(hosts: Hosts, timeout: float) -> None:
    """Returns on every process when all are there; raises HostsError on all of them when one is not."""
    deadline = time.monotonic() + timeout
    missing = _take_calls(hosts, deadline) if hosts.index == 0 else _call(hosts, deadline)
    if missing:
        one = len(missing) == 1
        listed = ", ".join(f"{hosts.names[number]} (process {number} of {hosts.count})" for number in missing)
        raise HostsError(
            f"{'This host' if one else 'These hosts'} did not join within {timeout:g} s: {listed}. Nothing was "
            f"written. Look at the log there, and whether {hosts.coordinator} can be reached from there; "
            f"--join_timeout=SECONDS waits longer."
        )


def _take_calls(hosts: Hosts, deadline: float) -> list[int]:
    """Process 0: waits for a call of every other process, then answers all; the numbers of those that did not call."""
    port = int(hosts.coordinator.rsplit(":", 1)[1])
    callers: dict[int, socket.socket] = {}
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=hosts.count)
    except OSError as error:
        raise HostsError(
            f"Process 0 cannot listen on port {port} ({error.strerror}): another program has it, or an earlier run is "
            f"still ending. Choose another with --coordinator, or wait."
        ) from None
    with server:
        while len(callers) < hosts.count - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                caller = server.accept()[0]
                caller.settimeout(5)
                greeting, index, count = caller.recv(100).decode().split()
            except (OSError, ValueError):  # nobody, or somebody else
                continue
            if greeting == GREETING and int(count) == hosts.count:
                callers[int(index)] = caller
    missing = sorted(set(range(1, hosts.count)) - set(callers))
    for caller in callers.values():
        with caller:
            caller.sendall(f"{json.dumps(missing)}\n".encode())
    return missing


def _call(hosts: Hosts, deadline: float) -> list[int]:
    """Another process: calls process 0 until it answers with who is missing; [0] where it never does."""
    host, port = hosts.coordinator.rsplit(":", 1)
    while (left := deadline + GRACE - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, int(port)), timeout=min(left, 5)) as server:
                server.settimeout(left)
                server.sendall(f"{GREETING} {hosts.index} {hosts.count}\n".encode())
                if answer := server.makefile().readline():
                    return json.loads(answer)
        except OSError:
            time.sleep(0.2)
    return [0]


def lost_host(error: BaseException) -> bool:
    """Whether an error of jax says that another process is gone."""
    words = ("Gloo", "UNAVAILABLE", "heartbeat", "Connection closed by peer", "Connection reset", "Barrier")
    return any(word in str(error) for word in words)


def require_one_process(verb: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises HostsError where a verb that runs in one process was started with several."""
    if _detect(environment) in ("slurm", "gke"):
        raise HostsError(
            f"`retro {verb}` runs in one process, but this is one of several (SLURM tasks or TPU workers). "
            f"Start it on one: srun --ntasks=1 retro {verb} ..., or on the first worker alone."
        )


def share(value):
    """The JSON value of process 0, on every process; all must call it at the same point."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.resize(text, length)  # what the others give is not looked at
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def joined_crc32(crc: int, size: int) -> int:
    """The CRC-32 of what all processes read, one after the other, from that of `size` bytes on each; on all of them."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return crc
    parts = np.asarray(multihost_utils.process_allgather(np.uint32(crc))).tolist()
    zeros, joined = bytes(size), parts[0]
    for part in parts[1:]:  # CRC-32 is linear: moving over `size` bytes is the same for every content
        joined = zlib.crc32(zeros, joined) ^ zlib.crc32(zeros) ^ part
    return joined


def on_first(action: Callable[[], object]):
    """Runs `action` on process 0 alone and returns its JSON value everywhere; a ValueError there is raised everywhere."""
    import jax

    if jax.process_count() == 1:
        return action()
    result = error = None
    if jax.process_index() == 0:
        try:
            result = action()
        except (ValueError, OSError) as caught:
            error = caught
    result, message = share([result, None if error is None else str(error)])
    if error is not None:
        raise error
    if message is not None:
        raise HostsError(message)
    return result
