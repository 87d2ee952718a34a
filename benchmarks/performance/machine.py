"""What a benchmark says of its machine: processor, its units for matmuls, memory, and whether it was idle.

A ratio of two sides that take turns holds on a busy machine too, roughly; seconds do not. So `state` is taken before the
sides of a ratio start, and goes into the result and onto the page.
"""

import os
import platform
import sys
import time
from pathlib import Path

UNITS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}
BUSY = 0.1  # share of the processors' time that others may take on an idle machine
WATCHED = 3.0  # seconds


def machine() -> dict:
    """Describes the machine from /proc: processor, its units for matmuls, memory."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = facts.get("flags", "").split()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": facts.get("model name", platform.machine()),
        "units": {name: flag in flags for flag, name in UNITS.items()},
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
    }


def describe(facts: dict) -> str:
    """The machine in a line."""
    units = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in facts["units"].items())
    return f"{facts['cpus']} CPUs ({facts['processor']}; {units}), {facts['memory_gib']} GiB"


def state(what: str, seconds: float = WATCHED) -> dict:
    """Whether the machine is idle before `what` starts; a busy one is logged.

    Args:
      what: the ratio that is measured next.

    Returns:
      "load" (average of a minute; what this benchmark did before counts), "busy" (share of all processors' time that other
      processes take now, while this one waits) and "idle".
    """
    before, started = _seconds_of_work(), time.monotonic()
    time.sleep(seconds)
    spent = _seconds_of_work() - before
    busy = spent / (time.monotonic() - started) / (os.cpu_count() or 1)
    found = {"load": round(os.getloadavg()[0], 1), "busy": round(busy, 2), "idle": busy <= BUSY}
    if not found["idle"]:
        print(
            f"{what}: the machine is not idle: load average {found['load']}, other processes take {busy:.0%} of "
            f"{os.cpu_count()} processors. The result says so; measure again on an idle machine.",
            file=sys.stderr,
            flush=True,
        )
    return found


def describe_state(found: dict) -> str:
    """The state in a few words of a page."""
    load = f"load average {found['load']} before"
    return f"idle ({load})" if found["idle"] else f"**not idle** ({load}, others took {found['busy']:.0%} of it)"


def _seconds_of_work() -> float:
    """Processor seconds that the machine has worked: all but idle, waiting for the disk, and what a host took away."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
