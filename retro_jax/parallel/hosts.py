"""The processes of a run, from the command's flags or from the scheduler's environment."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

MODES = ("auto", "one", "slurm", "tpu", "gke", "flags")
TPU_PORT = 8482  # jax's choice for its coordinator on TPUs


class HostsError(ValueError):
    """The processes of a run did not find each other."""


@dataclass(frozen=True)
class Hosts:
    """The processes of a run, from this one's view."""

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
    """The processes, by flags or by the scheduler's environment; None where jax must ask the TPU's metadata itself.

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
    if _number(environment, "SLURM_NTASKS", "1") > 1 and "SLURM_PROCID" in environment:
        return "slurm"
    if "TPU_WORKER_ID" in environment and (
        "," in environment.get("TPU_WORKER_HOSTNAMES", "") or _number(environment, "MEGASCALE_NUM_SLICES", "1") > 1
    ):
        return "gke"
    return "tpu" if "TPU_NAME" in environment else "one"


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    """The integer in an environment variable."""
    text = environment.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise HostsError(
            f"{name} is a number that the scheduler sets, but is {text!r}. Unset it, or name the processes by --hosts=flags "
            f"(--hosts=one: this process alone)."
        ) from None


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

    def number(name):
        need(name)
        return _number(environment, name)

    index, count = number("SLURM_PROCID"), number("SLURM_NTASKS")
    if count == 1:
        return ONE
    nodes = expand_nodes(need("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))
    tasks = _expand_counts(need("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    names = tuple(name for name, share in zip(nodes, tasks, strict=False) for _ in range(share))
    if len(names) != count or len(nodes) != len(tasks):
        raise HostsError(f"SLURM_NTASKS={count}, but the tasks per node {tasks} on {nodes} are {len(names)}.")
    port = 61440 + number("SLURM_JOB_ID") % 4096
    address = nodes[0]
    try:
        socket.getaddrinfo(address, port)
    except OSError:  # not a host name: use srun's own address, because a batch script runs on the first node
        address = environment.get("SLURM_SRUN_COMM_HOST", address)
    shared = max(tasks) > 1
    return Hosts(index, names, f"{address}:{port}", number("SLURM_LOCALID") if shared else None)


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
    slices, number = _number(environment, "MEGASCALE_NUM_SLICES", "1"), _number(environment, "MEGASCALE_SLICE_ID", "0")
    worker = _number(environment, "TPU_WORKER_ID")
    for name, value, count in (("TPU_WORKER_ID", worker, len(here)), ("MEGASCALE_SLICE_ID", number, slices)):
        if not 0 <= value < count:
            raise HostsError(
                f"{name} counts from 0, but is {value} of {count}: TPU_WORKER_HOSTNAMES and MEGASCALE_NUM_SLICES say how "
                f"many there are. Unset variables left by another job, or name the processes by --hosts=flags."
            )
    names = [
        here[worker] if part == number else f"worker {worker} of slice {part}"
        for part in range(slices)
        for worker in range(len(here))
    ]
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS", here[0]).split(":")[0]
    index = number * len(here) + worker
    return ONE if len(names) == 1 else Hosts(index, tuple(names), f"{first}:{TPU_PORT}")


def require_one_process(verb: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises HostsError where a verb that runs in one process was started with several."""
    if _detect(environment) in ("slurm", "gke"):
        raise HostsError(
            f"`retro {verb}` runs in one process, but this is one of several (SLURM tasks or TPU workers). "
            f"Start it on one: srun --ntasks=1 retro {verb} ..., or on the first worker alone."
        )
