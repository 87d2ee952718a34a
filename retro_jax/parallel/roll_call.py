"""Joining the processes of a run, and leaving it.

`start` must run before anything else uses jax. jax's own start-up aborts a process that waits too long without naming the
missing one, so a roll call on the coordinator's port runs first: process 0 answers when all have called, or
names those that have not. Nothing is written before all have joined.
"""

import json
import os
import socket
import sys
import threading
import time

from retro_jax.parallel.hosts import Hosts, HostsError
from retro_jax.parallel.preemption import EXIT_CODE

GRACE = 10.0  # seconds that the others wait longer than process 0, for its answer
GREETING = "retro_jax"


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
    """Leaves the other processes when all have reached this point."""
    if started():
        sys.modules["jax"].distributed.shutdown()


def leave_alone(code: int) -> None:
    """Exits this process at once if it has not left together with the others, who may never reach that point."""
    if not started():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.modules["jax"].process_index() == 0 and code != EXIT_CODE:
        time.sleep(2)  # jax aborts the others when this process exits: give them time to log why they stop
    os._exit(code)


def end_within(seconds: float, code: int) -> None:
    """Exits this process with `code` if it still runs after `seconds`: a library's threads may never end."""

    def end():
        time.sleep(seconds)
        sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=end, daemon=True).start()


def roll_call(hosts: Hosts, timeout: float) -> None:
    """Returns on every process when all have joined; raises HostsError on all of them when one is missing."""
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
    """Process 0: waits for every other process to call, then answers all; returns the numbers of those that did not."""
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
            except (OSError, ValueError):  # no process, or another program
                continue
            if greeting == GREETING and int(count) == hosts.count:
                callers[int(index)] = caller
    missing = sorted(set(range(1, hosts.count)) - set(callers))
    for caller in callers.values():
        with caller:
            caller.sendall(f"{json.dumps(missing)}\n".encode())
    return missing


def _call(hosts: Hosts, deadline: float) -> list[int]:
    """Other processes: call process 0 until it answers with the missing numbers; [0] if it never does."""
    host, port = hosts.coordinator.rsplit(":", 1)
    while (left := deadline + GRACE - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, int(port)), timeout=min(left, 5)) as server:
                server.settimeout(left)
                server.sendall(f"{GREETING} {hosts.index} {hosts.count}\n".encode())
                if answer := server.makefile().readline():
                    return json.loads(answer)
        except (OSError, ValueError):  # no process yet, or another program
            time.sleep(0.2)
    return [0]


def lost_host(error: BaseException) -> bool:
    """Whether an error of jax says that another process is gone."""
    words = ("Gloo", "UNAVAILABLE", "heartbeat", "Connection closed by peer", "Connection reset", "Barrier")
    return any(word in str(error) for word in words)
