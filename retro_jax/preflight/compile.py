"""Compiles the real training step for devices that need not exist, in a process of its own.

A process of its own, because the number of virtual CPU devices is set before jax starts, because libtpu belongs to one
platform and stays loaded, and because a compiler that fails may end its process.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from retro_jax.config import RunConfig, resolve, to_dict
from retro_jax.core.files import read_json
from retro_jax.presets.topologies import Topology, parse_topology

GIB = 2**30
OUT_OF_MEMORY = (  # the second where temporaries alone are too large
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
UNITS = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's figures for one step; memory in GiB a device, FLOPs and bytes of one step a device."""

    fits: bool
    seconds: float  # to trace, lower and compile
    total_gib: float
    limit_gib: float
    arguments_gib: float = 0.0  # parameters, moments, batch; given back in place
    temporaries_gib: float = 0.0
    program_gib: float = 0.0
    flops: float = 0.0  # counted in the traced step, every iteration of every loop
    once_flops: float = 0.0  # of the compiler's own cost analysis: the body of a loop counts once
    collectives: dict = dataclasses.field(default_factory=dict)  # kind -> {"count", "bytes"}
    memory_bytes: dict = dataclasses.field(default_factory=dict)  # part of the model -> read and written in a step


class LibtpuError(ValueError):
    """libtpu is not installed."""


def check_compiler(topology: Topology) -> None:
    """Raises ValueError where this installation has no compiler for the topology."""
    if not topology.chip.compiles:
        raise ValueError(
            f"There is no compiler for an absent {topology.chip.name}; take --no-compile for the analytic answer."
        )
    if topology.chip.name != "cpu" and importlib.util.find_spec("libtpu") is None:
        raise LibtpuError(
            f"Compiling for {topology.name} needs libtpu: pip install 'retro_jax[tpu]'. "
            f"Without it, --no-compile gives the analytic answer."
        )


def compile_step(
    run: RunConfig, topology: Topology, timeout: float = 3600.0, save_text: Path | None = None, step: str = "train"
) -> Compiled:
    """Compiles a step of `run` for `topology`.

    Args:
      step: "train", or "evaluate" for the forward pass of `retro evaluate`.
      timeout: seconds after which the compiler is stopped.
      save_text: where the compiled program's text is written, for a look by eye.

    Raises:
      ValueError: no compiler for this topology, sizes that the mesh cannot cut, or a compiler that fails for
        another reason than memory (with the end of its output).
    """
    check_compiler(topology)
    request = {"run": to_dict(run), "topology": topology.name, "save_text": str(save_text or ""), "step": step}
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    if topology.chip.name == "cpu":
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={topology.devices}"
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        try:
            process = subprocess.run(
                [sys.executable, "-m", "retro_jax.preflight.compile", str(answer)],
                input=json.dumps(request),
                env=environment,
                cwd=Path(__file__).resolve().parents[2],
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"The compiler did not end within {timeout:.0f} s for {topology.name}.") from error
        if not answer.exists():
            end = "\n".join((process.stderr or process.stdout).strip().splitlines()[-8:])
            raise ValueError(f"The compiler for {topology.name} failed (exit code {process.returncode}):\n{end}")
        found = read_json(answer, "The compiler's process was killed; run the same command again.")
    if "error" in found:
        raise ValueError(found["error"])
    return Compiled(**found)


def parse_out_of_memory(message: str) -> tuple[float, float] | None:
    """(GiB needed, GiB available) of a TPU compiler's message; None for other messages."""
    found = next((match for form in OUT_OF_MEMORY if (match := form.search(message))), None)
    if found is None:
        return None
    used, used_unit, limit, limit_unit = found.groups()
    return float(used) * UNITS[used_unit], float(limit) * UNITS[limit_unit]


def _answer(request: dict) -> dict:
    """The entry point of the process: compiles and reports."""
    import jax

    from retro_jax.preflight import hlo, traffic
    from retro_jax.preflight.step import abstract_evaluation, abstract_step

    run, topology = resolve(request["run"]), parse_topology(request["topology"])
    started = time.perf_counter()
    abstract = abstract_evaluation if request["step"] == "evaluate" else abstract_step
    step, arguments = abstract(run, _devices(topology))
    with jax.set_mesh(jax.tree.leaves(arguments)[0].sharding.mesh):  # where a kernel asks for its chip
        traced = step.trace(*arguments)
        lowered = traced.lower()
    flops = hlo.traced_flops(traced.jaxpr.jaxpr) / topology.devices
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = parse_out_of_memory(str(error))
        if memory is None:
            raise
        return {
            "fits": False,
            "seconds": time.perf_counter() - started,
            "total_gib": memory[0],
            "limit_gib": memory[1],
            "flops": flops,
        }
    seconds = time.perf_counter() - started
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    if request["save_text"]:
        Path(request["save_text"]).write_text(text, encoding="utf-8")
    # The step gives its state back in place (donated): outputs that are not aliases come on top.
    parts = {
        "arguments_gib": memory.argument_size_in_bytes / GIB,
        "temporaries_gib": (memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes) / GIB,
        "program_gib": memory.generated_code_size_in_bytes / GIB,
    }
    total = sum(parts.values())
    return {
        "fits": total <= topology.memory_gib,
        "seconds": seconds,
        "total_gib": total,
        "limit_gib": topology.memory_gib,
        "flops": flops,
        "once_flops": (cost[0] if isinstance(cost, list) else cost).get("flops", 0.0),
        "collectives": hlo.collectives(text),
        "memory_bytes": traffic.memory_traffic(text),
        **parts,
    }


def _devices(topology: Topology):
    import jax
    from jax.experimental import topologies

    if topology.chip.name == "cpu":
        return jax.devices()
    # The two cores of a v4 chip work as one device; later chips do so by default.
    options = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices


def main(argv) -> None:
    request = json.load(sys.stdin)
    try:
        found = _answer(request)
    except ValueError as error:
        found = {"error": str(error)}
    Path(argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv)
