"""What the trainings of a sweep take: steps, tokens, FLOPs, and time by preflight's roofline or by finished runs.

Memory is compared first with a bound that needs no trace of the model; only a training that is above it is estimated as
preflight does. So hundreds of points are planned in seconds.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.sweep.plan import Plan, Task
from retro_jax.config import RunConfig
from retro_jax.core.files import DamagedFile, read_json
from retro_jax.models.counts import executed_flops, parameter_totals
from retro_jax.presets.topologies import GIB, Topology, parse_topology

BYTES = 16  # of a parameter in training: itself, its gradient, two moments
ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0")
ASK = """
import jax
found = jax.devices()
print(found[0].device_kind, len(found), sep="\\t")
"""
KINDS = {"a100": "a100", "h100": "h100", "v4": "v4", "v5 lite": "v5e", "v5e": "v5e", "v5p": "v5p", "v6": "v6e"}
DIMENSIONS = {1: "{}", 2: "{}x1", 3: "{}x1x1"}


def costs(plan: Plan, keys: Sequence[str], topology: str, here: bool = True) -> dict[str, dict]:
    """What each training takes, by task.

    Returns:
      "steps", "tokens", "flops"; "seconds" and "chip_hours", None where unknown, and "seconds_by"; "problem": why it does not
      fit, with preflight's remedy, or empty.

    Args:
      topology: of each point, as in preflight; empty: the devices of this machine.
      here: the points run on this machine.
    """
    if not keys:
        return {}
    devices = parse_topology(topology) if topology else this_machine() if here else None
    _leave_devices()
    rate, found = _measured_rate(plan), {}
    for key in keys:
        problem = "" if devices is None else misfit(plan, plan.tasks[key], devices)
        found[key] = {**_cost(plan.tasks[key].run, None if problem else devices, rate), "problem": problem}
    return found


def _cost(run: RunConfig, devices: Topology | None, rate: float | None) -> dict:
    from retro_jax.parallel.sharding import mesh_sizes
    from retro_jax.preflight.estimate import roofline

    flops = executed_flops(run) * run.train.steps
    found = {
        "steps": run.train.steps,
        "tokens": run.train.steps * run.train.batch * run.model.sequence_length,
        "flops": flops,
        "seconds": None,
        "seconds_by": "",
        "chip_hours": None,
    }
    if devices is not None and devices.chip.peak_flops:
        bound = roofline(run, devices, mesh_sizes(run.train.mesh, devices.devices))
        found |= {"seconds": bound.seconds * run.train.steps, "seconds_by": "roofline, a lower bound"}
        found["chip_hours"] = bound.chip_hours
    elif rate is not None:
        found |= {"seconds": flops * rate, "seconds_by": "the FLOP/s of finished runs"}
    return found


def _measured_rate(plan: Plan) -> float | None:
    """Seconds a FLOP of the finished trainings of this sweep; None where there are none."""
    seconds = flops = 0.0
    for task in plan.tasks.values():
        if task.step.verb == "train" and (task.directory / "checkpoints" / str(task.run.train.steps)).exists():
            try:
                seconds += float(read_json(task.directory / "seconds.json", "", keys=("seconds",))["seconds"])
            except DamagedFile:
                continue
            flops += executed_flops(task.run) * task.run.train.steps
    return seconds / flops if flops else None


def misfit(plan: Plan, task: Task, devices: Topology) -> str:
    """Why a training cannot run on the devices, with the first remedy of preflight that helps; empty where it can."""
    from retro_jax.parallel.sharding import check_sizes, mesh_sizes
    from retro_jax.preflight.estimate import activation_bytes, memory_gib
    from retro_jax.preflight.remedies import remedies

    run, limit = task.run, devices.memory_gib
    names = [one.point.name for one in plan.points if task.key in (one.model.task, one.baseline and one.baseline.task)]
    what = f"Point {names[0]!r} ({task.step.title})"
    try:
        sizes = mesh_sizes(run.train.mesh, devices.devices)
        check_sizes(run, sizes)
    except ValueError as error:
        return f"{what} cannot run on {devices.name}: {error}"
    activations = sum(activation_bytes(run, sizes, devices.chip).values())
    if BYTES * parameter_totals(run.model)["total"] + activations <= limit * GIB:
        return ""
    total = memory_gib(run, sizes, devices.chip)["total"]
    if total <= limit:
        return ""
    fitting = [one for one in remedies(run, devices) if one.gib <= limit]
    remedy = "No change of mesh, remat or accumulation helps."
    if fitting:
        remedy = f"It fits with {fitting[0].flags} ({fitting[0].gib:.2f} GiB)."
    return (
        f"{what} does not fit on {devices.name}: about {total:.2f} GiB a device are needed, and there are {limit:.2f}. {remedy} "
        f"`retro preflight` says more."
    )


def this_machine() -> Topology | None:
    """The devices of this machine; None where their kind is not known. Asked in another process, which frees them at its end."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms.startswith("cpu") or not any(Path(path).exists() for path in ACCELERATORS):
        count = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
        return parse_topology(f"cpu:{count[1] if count else 1}")
    try:
        done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=120, check=True)
        kind, count = done.stdout.strip().splitlines()[-1].split("\t")
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    chip = next((chip for name, chip in KINDS.items() if name in kind.lower()), None)
    return _slice(chip, int(count)) if chip else None


def _slice(chip: str, count: int) -> Topology:
    from retro_jax.presets.topologies import CHIPS

    return parse_topology(f"{chip}:{DIMENSIONS[CHIPS[chip].dimensions].format(count)}")


def _leave_devices() -> None:
    """Lets jax take no accelerator in this process: those are for the processes of the sweep."""
    import jax

    jax.config.update("jax_platforms", "cpu")
