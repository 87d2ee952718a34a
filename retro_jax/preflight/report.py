"""The report of `retro preflight`: whether a training step fits on a slice, and what it costs."""

import dataclasses
from collections.abc import Callable

from retro_jax.config import RunConfig
from retro_jax.models.counts import executed_flops, flops_per_token, parameter_totals
from retro_jax.models.kernels.known import check_attention
from retro_jax.parallel.sharding import check_sizes, mesh_sizes
from retro_jax.preflight.compile import Compiled, check_compiler, compile_step
from retro_jax.preflight.estimate import (
    Roofline,
    attention_on,
    exchanged_bytes,
    memory_gib,
    roofline,
    traffic_bytes,
)
from retro_jax.preflight.remedies import remedies
from retro_jax.presets.recipes import recipe_for
from retro_jax.presets.topologies import Topology

COMPILED_REMEDIES = 2  # of those that the estimate finds, so many are compiled


def preflight(
    run: RunConfig, topology: Topology, compiling: bool, say: Callable[[str], None], recipes: bool = True
) -> dict:
    """The report as plain JSON values; memory is in GiB a device, times in seconds of one step.

    Args:
      compiling: compile the step too; the compiler's figures then replace the estimate of memory.
      say: takes a line of progress.
      recipes: apply the recipe of this size and topology, if there is one, instead of the config's own values.

    Raises:
      ValueError: sizes that the mesh cannot cut, or no compiler for the topology.
    """
    given, recipe = run, recipe_for(run, topology) if recipes else None
    if recipe is not None:
        run = recipe.apply(run)
        say(f"the recipe for {recipe.size} on {topology.name} is applied: {_choices(run)}")
    sizes = mesh_sizes(run.train.mesh, topology.devices)
    check_sizes(run, sizes)
    check_attention(run.model, topology.chip.platform, topology.chip.device_kind)
    if compiling:
        check_compiler(topology)
    estimate = memory_gib(run, sizes, topology.chip)
    report = {
        "topology": topology.name,
        "devices": topology.devices,
        "recipe": f"{recipe.size},{topology.word}" if recipe else None,
        "mesh": sizes,
        "attention": attention_on(run, topology.chip),
        "remat": run.model.remat,
        "accumulation": run.train.accumulation,
        "loss_block": run.model.loss_block,
        "fits": estimate["total"] <= topology.memory_gib,
        "parameters": parameter_totals(run.model),
        "memory_gib": {**estimate, "limit": topology.memory_gib, "by": "estimate"},
        "flops": {
            "model": flops_per_token(run.model, run.train.trainable) * run.train.batch * run.model.sequence_length,
            "executed": executed_flops(run, attention_on(run, topology.chip)),
        },
        "bytes_a_device": {
            "memory": traffic_bytes(run, sizes, topology.chip),
            "by": "estimate",
            "sent": exchanged_bytes(run, sizes),
        },
        "compile_seconds": None,
    }
    report |= _times(roofline(run, topology, sizes))
    if compiling:
        say(f"compiling the step for {topology.devices} devices ({topology.name}); minutes for the large sizes")
        compiled = compile_step(run, topology)
        report |= _compiled(compiled, estimate)
        if compiled.memory_bytes:
            moved = sum(compiled.memory_bytes.values())
            report["bytes_a_device"] |= {"memory": moved, "by": "compiler", "parts": compiled.memory_bytes}
            report |= _times(roofline(run, topology, sizes, moved))
    if not report["fits"]:
        report["remedies"] = _tried(run, given, topology, compiling, say)
    return report


def _times(found: Roofline | None) -> dict:
    if found is None:
        return {"step_seconds_roofline": None, "chip_hours": None, "roofline": None}
    times = {"step_seconds_roofline": found.seconds, "chip_hours": found.chip_hours}
    return {**times, "roofline": dataclasses.asdict(found)}


def _compiled(found: Compiled, estimate: dict) -> dict:
    """The entries of the report that the compiler's figures replace."""
    held = {name: estimate[name] for name in ("parameters", "moments")}
    if found.temporaries_gib or found.program_gib:
        # The compiler counts gradients among its temporaries; so they are taken out of them here.
        rest = found.arguments_gib - sum(held.values()) + found.temporaries_gib + found.program_gib
        parts = {**held, "gradients_and_activations": rest}
    else:
        parts = {**held, "gradients_and_activations": found.total_gib - sum(held.values())}
    return {
        "fits": found.fits,
        "memory_gib": {
            **parts,
            "total": found.total_gib,
            "limit": found.limit_gib,
            "by": "compiler",
            "estimated_total": estimate["total"],
        },
        "compile_seconds": found.seconds,
        "compiler": {
            "traced_flops_a_device": found.flops,
            "cost_analysis_flops": found.once_flops,
            "collectives": found.collectives,
        },
    }


def _tried(run: RunConfig, given: RunConfig, topology: Topology, compiling: bool, say) -> list[dict]:
    """The changes that were tried: all by the estimate, the first that fit by the compiler too."""
    found = remedies(run, topology, given)
    rows = {remedy.name: remedy.row(topology.memory_gib) for remedy in found}
    singles = [row for name, row in rows.items() if " + " not in name]
    fitting = [remedy for remedy in found if rows[remedy.name]["fits"]][:COMPILED_REMEDIES]
    for remedy in fitting if compiling else ():
        say(f"compiling with {remedy.name} ({remedy.flags})")
        try:
            compiled = compile_step(remedy.run, topology)
        except ValueError as error:  # heads cut over several hosts, for one, which the shapes alone do not show
            rows[remedy.name] |= {"fits": False, "refused": str(error)}
            continue
        rows[remedy.name] |= {"compiled_gib": compiled.total_gib, "fits": compiled.fits}
        if compiled.fits:
            break
    best = [rows[remedy.name] for remedy in fitting if rows[remedy.name] not in singles]
    return singles + best


def _choices(run: RunConfig) -> str:
    mesh = run.train.mesh
    return (
        f"mesh data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor}, remat {run.model.remat}, "
        f"accumulation {run.train.accumulation}, loss block {run.model.loss_block}"
    )


def report_text(report: dict) -> str:
    """The report as text."""
    memory, parameters, times = report["memory_gib"], report["parameters"], report["roofline"]
    gap = memory["limit"] - memory["total"]
    parts = {name: size for name, size in memory.items() if name not in ("total", "limit", "by", "estimated_total")}
    mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
    lines = [
        f"{report['topology']}: {'fits' if gap >= 0 else 'DOES NOT FIT'}, {memory['total']:.2f} of {memory['limit']:.2f} GiB "
        f"a device (by the {memory['by']}), {abs(gap):.2f} GiB {'left' if gap >= 0 else 'too much'}",
        f"  {mesh}, attention {report['attention']}, remat {report['remat']}, accumulation {report['accumulation']}, loss block {report['loss_block']}",
        "  GiB a device: " + ", ".join(f"{name.replace('_', ' ')} {size:.2f}" for name, size in parts.items()),
        "  parameters: " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in parameters.items()),
        f"  FLOPs a step: {report['flops']['model']:.3g} of the model, {report['flops']['executed']:.3g} executed",
    ]
    if times:
        seconds = report["step_seconds_roofline"]
        lines += [
            f"  roofline, memory traffic by the {report['bytes_a_device']['by']}: {seconds:.3g} s a step (compute {times['compute']:.3g}, memory {times['memory']:.3g}, "
            f"interconnect {times['interconnect']:.3g}), {times['tokens_per_second']:,.0f} tokens/s, "
            f"model FLOP utilization at most {times['model_flops_utilization']:.0%}, "
            f"{times['chip_hours']:,.0f} chip-hours for all steps",
        ]
    if report["compile_seconds"] is not None:
        moved = report["compiler"]["collectives"].items()
        lines.append(f"  compiled in {report['compile_seconds']:.0f} s")
        lines += [f"  {kind}: {found['count']:,} a step, {found['bytes'] / 2**30:.2f} GiB" for kind, found in moved]
    for remedy in report.get("remedies", ()):
        size = remedy.get("compiled_gib", remedy["memory_gib"])
        verdict = "fits" if remedy["fits"] else f"refused: {why}" if (why := remedy.get("refused")) else "does not fit"
        lines.append(f"  tried {remedy['change']}: {size:.2f} GiB, {verdict} ({remedy['flags']})")
    return "\n".join(lines)
