"""Estimates a training step from shapes alone: memory a device, FLOPs, memory traffic and traffic between devices.

Memory of parameters, moments and gradients is exact. That of activations and temporaries is a model of what the step
keeps (what a layer's backward pass needs) and of the largest thing it works on (attention scores, feed-forward, a block
of logits); docs/measured/scaling.md compares it with the compiler. Times are a roofline: the largest of products at the chip's
peak, memory traffic and traffic between devices at theirs. A real step takes longer.
"""

import math
from dataclasses import dataclass

import jax
from flax.traverse_util import flatten_dict

from retro_jax.config import RunConfig
from retro_jax.models.counts import KERNEL_FLOPS, attentions, executed_flops, flops_per_token
from retro_jax.models.kernels.flash_gpu import LOGITS_BYTES
from retro_jax.models.kernels.known import FALLBACK, self_attention
from retro_jax.models.retro import abstract_model
from retro_jax.parallel.sharding import AXES, parameter_specs
from retro_jax.presets.topologies import GIB, LIVE_SCORES, Chip, Topology
from retro_jax.train.optimizer import split_trainable


@dataclass(frozen=True)
class Passes:
    """Times that a number is written or read in memory in one training step: forward, again and backward."""

    scores: int  # of an attention that keeps them in memory, in float32
    rotary_scores: int  # of one without a position shift
    streams: int  # of a layer's [B, T, D] stream, feed-forward included, at 2 bytes; the encoder's too
    logits: int  # of the readout, in float32


# Of TPUs fitted to the program compiled for 172m on v5p:2x2x4 with XLA's attention (docs/measured/scaling.md): the position
# shift relays every matrix of scores several times. Of rotary positions fitted to Llama-2-7B on v5p:4x4x4
# (docs/measured/retrofit_memory.md). No compiler said what GPUs do; their figures are guesses.
TPU_PASSES, OTHER_PASSES = Passes(36, 10, 285, 9), Passes(16, 10, 60, 6)
ROTARY_LIVE_SCORES = 5  # matrices of scores in memory at once, fitted there too


def held(params: dict, sizes: dict[str, int]) -> float:
    """Numbers of a tree of parameters that one device holds."""
    total = 0.0
    specs = flatten_dict(parameter_specs(params))
    for path, leaf in flatten_dict(params).items():
        cuts = math.prod(sizes[axis] for axis in jax.tree.leaves(tuple(specs[path])) if axis)
        total += math.prod(leaf.shape) / cuts
    return total


def attention_on(run: RunConfig, chip: Chip | None) -> str:
    """What computes the decoder's self-attention on that chip; XLA where none is named."""
    return self_attention(run.model, chip.platform, chip.device_kind) if chip else FALLBACK


def memory_gib(run: RunConfig, sizes: dict[str, int], chip: Chip | None = None) -> dict[str, float]:
    """GiB a device of "parameters", "moments", "gradients", "activations" (temporaries included) and "total".

    Args:
      chip: it may have an attention of its own, and an own number of live scores.
    """
    params = abstract_model(run.model)[1]
    trained = held(split_trainable(params, run.train.trainable)[0], sizes)
    parts = {"parameters": 4 * held(params, sizes), "moments": 8 * trained, "gradients": 4 * trained}
    parts["activations"] = sum(activation_bytes(run, sizes, chip).values())
    parts = {name: size / GIB for name, size in parts.items()}
    return {**parts, "total": sum(parts.values())}


def activation_bytes(run: RunConfig, sizes: dict[str, int], chip: Chip | None) -> dict[str, float]:
    """Bytes a device of what one micro-batch keeps for its backward pass, works on, and gathers."""
    live_scores = chip.live_scores if chip else LIVE_SCORES
    model, encoder, tensor = run.model, run.model.encoder, sizes["tensor"]
    rows = run.train.batch / (sizes["data"] * sizes["fsdp"] * run.train.accumulation)
    dtype = 2 if model.compute_dtype == "bfloat16" else 4
    kinds = attentions(model)
    stream = rows * model.sequence_length * model.width
    wide = rows * model.sequence_length * model.feed_forward / tensor
    scores = {
        name: rows * kind.scores(encoder.heads if name in ("encoder", "conditioning") else model.heads) / tensor
        for name, kind in kinds.items()
    }
    layer = (stream * 6 + wide * 2) * dtype  # what a layer keeps beside its scores
    every = (stream * 14 + wide * 12) * dtype  # the same without remat, fitted to what an H100's compiler keeps
    outputs = 0.0  # of a kernel, kept in float32 whatever remat is
    own = (ROTARY_LIVE_SCORES if model.positions == "rotary" else live_scores) * 4 * scores["self"]
    if (kernel := attention_on(run, chip)) in KERNEL_FLOPS:
        # A GPU's holds the gradients of some heads' logits, by key and by distance, and copies of them.
        own = 4 * min(scores["self"] * dtype, LOGITS_BYTES) if kernel == "flash_gpu" else 0.0
        scores["self"], outputs = 0.0, rows * model.sequence_length * kinds["self"].inner / tensor * 4
    kept = {"full": stream * dtype, "dots": layer, "none": every + scores["self"] * dtype}[model.remat]
    kept = (kept + outputs) * model.layers
    work = {"self": own, "feed_forward": wide * 12, "loss": _loss_bytes(run, rows, tensor)}
    if "read" in kinds:
        retrieved = rows * kinds["encoder"].rows
        kept += retrieved * encoder.width * dtype * (encoder.layers + 2)
        work["read"] = live_scores * 4 * scores["read"] + retrieved * 2 * kinds["read"].inner / tensor * dtype
        work["encoder"] = live_scores * 4 * scores["encoder"] + retrieved * encoder.width * 8
        work["encoder_feed_forward"] = retrieved * (encoder.feed_forward / tensor * 12 + encoder.width * 8)
    layer_weights = (5 * kinds["self"].inner + 2 * model.feed_forward) * model.width / tensor
    entries = min(model.loss_block or model.vocabulary, model.vocabulary)  # of the readout, gathered block by block
    gathered = (3 * layer_weights + entries * model.width / tensor) * (dtype + 4)
    return {"kept": kept, "work": max(work.values()) + stream * 12, "gathered": gathered if sizes["fsdp"] > 1 else 0.0}


def _loss_bytes(run, rows, tensor):
    block = run.model.loss_block or run.model.vocabulary
    return rows * run.model.sequence_length * min(block, run.model.vocabulary) / tensor * 10


def traffic_bytes(run: RunConfig, sizes: dict[str, int], chip: Chip | None = None) -> float:
    """Bytes that one device reads from and writes to its memory in a step, roughly."""
    model, tensor = run.model, sizes["tensor"]
    params = abstract_model(model)[1]
    held_here = held(params, sizes)
    trained = held(split_trainable(params, run.train.trainable)[0], sizes)  # the rest is read alone
    whole = held_here * sizes["fsdp"]
    sequences = run.train.batch / (sizes["data"] * sizes["fsdp"])
    heads = {"encoder": model.encoder.heads, "conditioning": model.encoder.heads}
    kernel = {"flash": 0, "flash_gpu": 4}.get(attention_on(run, chip))  # a GPU's: gradients of logits, at 2 bytes
    passes = TPU_PASSES if chip and chip.platform == "tpu" else OTHER_PASSES
    own = kernel if kernel is not None else passes.rotary_scores if model.positions == "rotary" else passes.scores
    scores = sum(
        kind.layers * kind.scores(heads.get(name, model.heads)) * (own if name == "self" else passes.scores)
        for name, kind in attentions(model).items()
    )
    encoders = [kind for name, kind in attentions(model).items() if name in ("encoder", "conditioning")]
    streams = model.layers * model.sequence_length * model.width
    streams += sum(kind.layers * kind.rows * kind.width for kind in encoders)
    logits = model.sequence_length * model.vocabulary
    activations = 4 * (scores + passes.logits * logits) / tensor + 2 * passes.streams * streams
    return 24 * trained + 4 * held_here + run.train.accumulation * 14 * whole + sequences * activations


def exchanged_bytes(run: RunConfig, sizes: dict[str, int]) -> dict[str, dict[str, float]]:
    """Mesh axis -> kind of collective -> bytes that one device sends in a step."""
    model, (data, fsdp, tensor) = run.model, (sizes[axis] for axis in AXES)
    params, parts = abstract_model(model)[1], run.train.accumulation
    own, trained = held(params, sizes), held(split_trainable(params, run.train.trainable)[0], sizes)
    gathers = 2 if model.remat == "none" else 3
    turns = 6 if model.remat == "full" else 4
    streams = turns * model.layers * run.train.batch / (data * fsdp) * model.sequence_length * model.width * 2
    return {
        "data": {"all-reduce": parts * 2 * 4 * trained * (data - 1) / data},
        "fsdp": {
            "all-gather": parts * gathers * 2 * own * (fsdp - 1),
            "reduce-scatter": parts * 4 * trained * (fsdp - 1),
        },
        "tensor": {"all-reduce": 2 * streams * (tensor - 1) / tensor},
    }


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step by what bounds it; None where the chip's rates are not known."""

    compute: float
    memory: float
    interconnect: float
    tokens_per_second: float
    model_flops_utilization: float
    chip_hours: float  # of all the run's steps

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.interconnect)


def roofline(
    run: RunConfig, topology: Topology, sizes: dict[str, int], memory_bytes: float | None = None
) -> Roofline | None:
    """The lower bound of a step's time on this topology; None for `cpu`, whose rates are unknown.

    Args:
      memory_bytes: that a device moves in a step, by the compiled program; None takes `traffic_bytes`.
    """
    chip, tokens = topology.chip, run.train.batch * run.model.sequence_length
    if not chip.peak_flops:
        return None
    compute = executed_flops(run, attention_on(run, chip)) / topology.devices / chip.peak_flops
    memory = (memory_bytes or traffic_bytes(run, sizes, chip)) / chip.memory_bandwidth
    interconnect, span = 0.0, 1
    for axis, kinds in reversed(exchanged_bytes(run, sizes).items()):  # the last axis is the innermost
        span *= sizes[axis]
        interconnect += sum(kinds.values()) / topology.link_bandwidth(span)
    seconds = max(compute, memory, interconnect)
    useful = flops_per_token(run.model, run.train.trainable) * tokens / (seconds * topology.devices * chip.peak_flops)
    hours = seconds * run.train.steps * topology.devices / 3600
    return Roofline(compute, memory, interconnect, tokens / seconds, useful, hours)
