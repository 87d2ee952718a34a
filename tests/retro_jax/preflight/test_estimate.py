"""The estimate against the traced step, the compiler, and sums by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from jax.interpreters import partial_eval
from jax.sharding import PartitionSpec as P
from test_sharding import EIGHT
from training_fixture import BASELINE, MODEL, make_run

from retro_jax.config import EncoderConfig, MeshConfig, ModelConfig
from retro_jax.interchange.architectures import FAMILY
from retro_jax.models.counts import executed_flops, flops_per_token, parameter_totals
from retro_jax.models.retro import abstract_model
from retro_jax.parallel.sharding import make_mesh
from retro_jax.preflight import hlo
from retro_jax.preflight.compile import parse_out_of_memory
from retro_jax.preflight.estimate import memory_gib, roofline, traffic_bytes
from retro_jax.preflight.step import abstract_step
from retro_jax.presets.topologies import GIB, parse_topology

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def traced(run):
    step, arguments = abstract_step(run, jax.devices()[:1])
    return step.trace(*arguments)


@pytest.mark.parametrize(
    ("model", "change", "accumulation"),
    [
        (MODEL, {}, 1),
        (MODEL, {"remat": "full", "scan": True}, 4),
        (MODEL, {"remat": "dots", "loss_block": 0}, 1),
        (BASELINE, {"remat": "full"}, 2),
    ],
    ids=["plain", "full remat and accumulation", "dots", "baseline"],
)
def test_counted_flops_are_those_of_the_traced_step(model, change, accumulation):
    """Exact to the last product: remat, blocks, position tables and loops included."""
    run = make_run(dataclasses.replace(model, **change), accumulation=accumulation, mesh=MeshConfig(1, 1, 1))
    assert hlo.traced_flops(traced(run).jaxpr.jaxpr) == executed_flops(run)


@pytest.mark.parametrize("change", [{}, {"remat": "full", "scan": True}, {"positions": "rotary"}], ids=str)
def test_counted_flops_of_a_retrofit_are_nearly_those_of_the_traced_step(change):
    """Guards against weight gradients of a frozen decoder, and a backward pass below the first layer that reads neighbors."""
    deep = dataclasses.replace(MODEL, layers=6, retrieval_layers=(3, 6), **change)
    run = make_run(deep, trainable="retrieval", mesh=MeshConfig(1, 1, 1))
    jaxpr = traced(run).jaxpr.jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    assert executed_flops(run) == pytest.approx(hlo.traced_flops(used), rel=0.03)
    everything = make_run(deep, mesh=MeshConfig(1, 1, 1))
    assert executed_flops(run) < 0.9 * executed_flops(everything)
    assert flops_per_token(deep, "retrieval") < 0.9 * flops_per_token(deep)


def test_traced_flops_agree_with_the_compiler_where_it_sees_every_loop():
    """Unrolled, the compiler counts everything, also softmax, norms and Adam, hence the tolerance."""
    wide = {"width": 64, "feed_forward": 256, "heads": 4, "head_dim": 16, "scan": False, "loss_block": 0}
    run = make_run(dataclasses.replace(MODEL, **wide), mesh=MeshConfig(1, 1, 1))
    step = traced(run)
    cost = step.lower().compile({"xla_backend_optimization_level": 0}).cost_analysis()
    products = hlo.traced_flops(step.jaxpr.jaxpr)
    assert products < (cost[0] if isinstance(cost, list) else cost)["flops"] < 1.15 * products


def test_memory_of_what_is_held_is_exact():
    run = make_run(mesh=EIGHT)
    params = flatten_dict(abstract_model(run.model)[1])
    uncut = sum(leaf.size for path, leaf in params.items() if "norm" in path[-1])
    by_tensor = sum(leaf.size for path, leaf in params.items() if path[-1].endswith("_bias"))
    rest = sum(leaf.size for leaf in params.values()) - uncut - by_tensor
    found = memory_gib(run, {"data": 2, "fsdp": 2, "tensor": 2})
    assert found["parameters"] * GIB == 4 * (uncut + by_tensor / 2 + rest / 4)
    assert found["moments"] == 2 * found["parameters"] == 2 * found["gradients"]
    assert found["total"] == pytest.approx(
        sum(found[part] for part in ("parameters", "moments", "gradients", "activations"))
    )


def test_frozen_parameters_have_neither_moments_nor_gradients():
    found = memory_gib(make_run(trainable="retrieval"), ONE)
    assert 0 < found["gradients"] < found["parameters"] / 2 and found["moments"] == 2 * found["gradients"]


# (GiB a device, GB moved) of a step that trains what is named, by the compiler: docs/measured/retrofit_memory.md.
LLAMA_2_7B = {"all": (16.90, 1_795), "retrieval": (13.53, 1_504)}


@pytest.mark.parametrize("trained", LLAMA_2_7B)
def test_a_rotary_decoder_is_estimated_without_the_copies_of_a_position_shift(trained):
    """Guards against figures fitted to relative positions: they said 40 GiB and 3,575 GB."""
    widths = {"layers": 32, "width": 4_096, "heads": 32, "head_dim": 128, "feed_forward": 11_008}
    model = ModelConfig(**FAMILY, **widths, vocabulary=32_000, norm_epsilon=1e-5, tied_readout=False)
    model = dataclasses.replace(model, retrieval_layers=tuple(range(6, 33, 3)), shared_embeddings=True, attention="xla")
    encoder = EncoderConfig(width=4_096, heads=32, head_dim=128, feed_forward=11_008)
    run = make_run(dataclasses.replace(model, encoder=encoder), batch=256, trainable=trained, mesh=MeshConfig(1, 64, 1))
    sizes, chip = {"data": 1, "fsdp": 64, "tensor": 1}, parse_topology("v5p:4x4x4").chip
    memory, moved = LLAMA_2_7B[trained]
    assert memory_gib(run, sizes, chip)["total"] == pytest.approx(memory, rel=0.3)
    assert traffic_bytes(run, sizes, chip) / 1e9 == pytest.approx(moved, rel=0.2)


@pytest.mark.parametrize(
    "change", [{"accumulation": 2}, {"remat": "full"}, {"fsdp": 2}, {"tensor": 2}, {"loss_block": 8}], ids=str
)
def test_every_remedy_lowers_the_estimate(change):
    big = dataclasses.replace(MODEL, vocabulary=4096, loss_block=0)
    sizes = {**ONE, **{axis: size for axis, size in change.items() if axis in ONE}}
    model = {key: value for key, value in change.items() if key in ("remat", "loss_block")}
    train = {key: value for key, value in change.items() if key == "accumulation"}
    changed = make_run(dataclasses.replace(big, **model), **train)
    assert memory_gib(changed, sizes)["total"] < memory_gib(make_run(big), ONE)["total"]


def test_parameters_by_part():
    found = parameter_totals(MODEL)
    parts = sum(count for name, count in found.items() if name not in ("total", "non_embedding"))
    assert found["total"] == parts == found["non_embedding"] + found["embeddings"]
    assert found["embeddings"] == MODEL.vocabulary * (MODEL.width + MODEL.encoder.width)


def test_a_roofline_by_hand():
    """Twice as many devices halve the time of matmuls; a CPU's rates are unknown."""
    run = make_run()
    two, four = (roofline(run, parse_topology(f"h100:{count}"), ONE) for count in (2, 4))
    assert two.compute == executed_flops(run) / 2 / 989e12 == 2 * four.compute
    assert two.seconds == max(two.compute, two.memory, two.interconnect)
    assert two.chip_hours == pytest.approx(two.seconds * run.train.steps * 2 / 3600)
    assert roofline(run, parse_topology("cpu:8"), ONE) is None


LOOP = """HloModule step

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %gathered = bf16[16,4]{1,0} all-gather(%x), dimensions={0}
  %reduced = (f32[8]{0}, f32[2]{0}) all-reduce(%a, %b), to_apply=%add
}

%condition (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[] constant(7)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1.clone (input.1: f32[64,4]) -> f32[8,4] {
  %sum = f32[64,4]{1,0:T(8,128)} all-reduce(%input.1), to_apply=%add
  ROOT %part = f32[8,4]{1,0:T(8,128)} dynamic-slice(%sum, %place, %zero), dynamic_slice_sizes={8,4}
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %scattered = f32[8,4]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1.clone
  %loop = (s32[], f32[8,4]) while(%start), condition=%condition, body=%body
  %known = (s32[], f32[8,4]) while(%loop), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %begun = (f32[4]{0}, f32[16]{0}) all-gather-start(%y), dimensions={0}
  %ended = f32[16]{0} all-gather-done(%begun)
}
"""


def test_collectives_count_as_often_as_their_loop_turns():
    assert hlo.collectives(LOOP) == {
        "all-gather": {"count": 11, "bytes": 10 * 16 * 4 * 2 + 16 * 4},
        "all-reduce": {"count": 10, "bytes": 10 * (8 + 2) * 4},
        "reduce-scatter": {"count": 1, "bytes": 8 * 4 * 4},  # as the TPU's compiler writes it
    }


def test_collectives_of_a_compiled_loop():
    """A matrix cut over 8 devices, gathered in each of 5 turns."""
    from retro_jax.parallel.sharding import make_mesh, shardings

    mesh = make_mesh(MeshConfig(1, 8, 1))
    cut = shardings({"up": jax.ShapeDtypeStruct((64, 64), jnp.float32)}, mesh)["up"]

    def turns(x, kernel):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ kernel), None), x, None, length=5)[0].sum()

    arrays = [jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=cut) for _ in range(2)]
    found = hlo.collectives(jax.jit(turns).lower(*arrays).compile().as_text())
    assert any(kind["count"] >= 1 for kind in found.values()), found


def test_an_out_of_memory_message_gives_its_gigabytes():
    message = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 55.71G of 15.75G hbm. Exceeded hbm capacity by 39.96G."
    assert parse_out_of_memory(message) == (55.71, 15.75)
    assert parse_out_of_memory("Used 512.00M of 1.00T hbm") == (0.5, 1024.0)
    message = "the total memory required for HLO temporaries (73.74G) exceeds available HBM (15.75G)."
    assert parse_out_of_memory(f"RESOURCE_EXHAUSTED: Ran out of memory on HBM, {message}") == (73.74, 15.75)
    assert parse_out_of_memory("INTERNAL: something else") is None


def test_what_runs_on_each_device_counts_for_all():
    """Guards against a kernel within shard_map whose part of one device is divided by the devices again."""

    def product(a, b):
        return a @ b

    whole = jax.make_jaxpr(product)(jnp.ones((8, 16)), jnp.ones((16, 4)))
    mesh = make_mesh(MeshConfig(data=8))
    cut = jax.shard_map(product, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    parts = jax.make_jaxpr(cut)(jnp.ones((8, 16)), jnp.ones((16, 4)))
    assert hlo.traced_flops(parts.jaxpr) == hlo.traced_flops(whole.jaxpr) == 2 * 8 * 16 * 4
