"""`retro preflight --step=evaluate`: does the forward pass of an evaluation fit on a slice that is not there?"""

from collections.abc import Callable
from dataclasses import replace

from retro_jax.config import RunConfig
from retro_jax.models.counts import parameter_totals
from retro_jax.models.retro import abstract_model
from retro_jax.parallel.sharding import check_batch, check_model_sizes, mesh_sizes
from retro_jax.preflight.compile import GIB, check_compiler, compile_step
from retro_jax.preflight.estimate import activation_bytes, held
from retro_jax.presets.recipes import recipe_for
from retro_jax.presets.topologies import Chip, Topology


def preflight_evaluation(
    run: RunConfig, topology: Topology, compiling: bool, say: Callable[[str], None], recipes: bool = True
) -> dict:
    """The report as plain JSON values; memory in GiB a device. Arguments as for `report.preflight`.

    Raises:
      ValueError: a batch or sizes that the mesh cannot cut, or no compiler for the topology.
    """
    recipe = recipe_for(run, topology) if recipes else None
    if recipe is not None:
        run = recipe.apply(run)
        mesh = run.train.mesh
        say(
            f"the recipe for {recipe.size} on {topology.name} is applied: mesh {mesh.data} x {mesh.fsdp} x {mesh.tensor}"
        )
    sizes = mesh_sizes(run.train.mesh, topology.devices)
    check_model_sizes(run.model, sizes)
    check_batch(run.evaluate.batch, sizes, "config.evaluate.batch")
    if compiling:
        check_compiler(topology)
    parts = memory_gib(run, sizes, topology.chip)
    report = {
        "step": "evaluate",
        "topology": topology.name,
        "devices": topology.devices,
        "recipe": f"{recipe.size},{topology.word}" if recipe else None,
        "mesh": sizes,
        "batch": run.evaluate.batch,
        "neighbors": run.model.neighbors,
        "fits": parts["total"] <= topology.memory_gib,
        "parameters": parameter_totals(run.model),
        "memory_gib": {**parts, "limit": topology.memory_gib, "by": "estimate"},
        "compile_seconds": None,
    }
    if compiling:
        say(f"compiling the forward pass for {topology.devices} devices ({topology.name}); minutes for the large sizes")
        found = compile_step(run, topology, step="evaluate")
        rest = found.total_gib - parts["parameters"]
        memory = {"parameters": parts["parameters"], "activations": rest, "total": found.total_gib}
        report |= {
            "fits": found.fits,
            "compile_seconds": found.seconds,
            "memory_gib": {**memory, "limit": found.limit_gib, "by": "compiler", "estimated_total": parts["total"]},
        }
    return report


def memory_gib(run: RunConfig, sizes: dict[str, int], chip: Chip) -> dict[str, float]:
    """GiB a device of "parameters", "activations" (the largest temporaries of one layer, and what is gathered) and "total"."""
    once = replace(run, train=replace(run.train, batch=run.evaluate.batch, accumulation=1))
    found = activation_bytes(once, sizes, chip)
    parts = {
        "parameters": 4 * held(abstract_model(run.model)[1], sizes) / GIB,
        "activations": (found["work"] + found["gathered"]) / GIB,
    }
    return {**parts, "total": sum(parts.values())}


def evaluation_text(report: dict) -> str:
    """The report for a reader."""
    memory = report["memory_gib"]
    gap = memory["limit"] - memory["total"]
    mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
    lines = [
        f"{report['topology']}, evaluation: {'fits' if report['fits'] else 'DOES NOT FIT'}, {memory['total']:.2f} of "
        f"{memory['limit']:.2f} GiB a device (by the {memory['by']}), {abs(gap):.2f} GiB {'left' if gap >= 0 else 'too much'}",
        f"  {mesh}, {report['batch']} sequences at once, {report['neighbors']} neighbors",
        f"  GiB a device: parameters {memory['parameters']:.2f}, activations {memory['activations']:.2f}",
    ]
    if report["compile_seconds"] is not None:
        lines.append(f"  compiled in {report['compile_seconds']:.0f} s")
    if not report["fits"]:
        lines.append("  Remedies: a smaller config.evaluate.batch, or more of config.train.mesh.fsdp and tensor.")
    return "\n".join(lines)
