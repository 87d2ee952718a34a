"""Shardings on 8 virtual devices, and that they change no number."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P
from training_fixture import MODEL, T, make_run

from retro_jax.config import MeshConfig
from retro_jax.data.batches import Batch
from retro_jax.models.retro import abstract_model
from retro_jax.parallel.sharding import (
    check_processes,
    check_sizes,
    make_mesh,
    over_slices,
    parameter_specs,
    place_batch,
    shardings,
)
from retro_jax.train.optimizer import make_optimizer
from retro_jax.train.state import abstract_state, create_state, initial_params
from retro_jax.train.step import make_train_step

EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)
TOKEN_BYTES = np.ones(MODEL.vocabulary, np.int32)


def make_batch(model=MODEL, size=8, seed=0):
    """A batch with two documents a sequence, padding, missing neighbors, and unequal counts of targets."""
    rng = np.random.default_rng(seed)
    chunks = model.chunks
    tokens = rng.integers(3, model.vocabulary, (size, T)).astype(np.int32)
    segments = np.broadcast_to(np.arange(chunks) // 2, (size, chunks)).astype(np.int32).copy()
    segments[0, 2:] = -1
    tokens[0, T // 2 :] = -1
    targets = np.where(tokens >= 0, rng.integers(3, model.vocabulary, (size, T)), -1).astype(np.int32)
    mask = (targets >= 0) & (rng.random((size, T)) < np.linspace(0.2, 1.0, size)[:, None])
    neighbors = rng.integers(3, model.vocabulary, (size, chunks, model.neighbors, model.retrieved_length))
    neighbors[1, 0], neighbors[2, 1, 1] = -1, -1
    return Batch(tokens, targets, mask.astype(np.float32), segments, neighbors.astype(np.int32))


def devices(mesh):
    return jax.devices()[: max(1, mesh.data * mesh.fsdp * mesh.tensor)]


def one_step(mesh_config, model=MODEL, **train):
    """(Adam's first moments after two steps, sums of the second) on a mesh.

    The moments are linear in the gradients, and the second gradient depends on the first update. Updated parameters
    would be compared worse: Adam divides by the gradient's size, so that where a gradient is a sum that cancels
    (a position row that is the same for all distances, say) rounding alone decides the update.
    """
    run = make_run(model, mesh=mesh_config, **train)
    mesh = make_mesh(mesh_config, devices(mesh_config))
    check_sizes(run, mesh)
    optimizer = make_optimizer(run.train)
    state = create_state(run, optimizer, mesh)
    batches = [place_batch(make_batch(model, seed=seed), mesh) for seed in (0, 1)]
    step = make_train_step(run, optimizer, mesh, TOKEN_BYTES).lower(state, batches[0])
    step = step.compile({"xla_backend_optimization_level": 0})  # half the time, and speed is not what is tested
    for batch in batches:
        state, sums = step(state, batch)
    return jax.device_get(state.opt_state[1][0].mu), jax.device_get(sums)


@pytest.fixture(scope="module")
def single():
    return one_step(MeshConfig(data=1))


def assert_equal_runs(found, expected):
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=2e-5, err_msg=name)
    leaves = flatten_dict(found[0])
    for path, leaf in flatten_dict(expected[0]).items():
        np.testing.assert_allclose(leaves[path], leaf, atol=1e-4 * np.abs(leaf).max(), rtol=0, err_msg=str(path))


@pytest.mark.parametrize("mesh", [EIGHT, MeshConfig(data=1, fsdp=4, tensor=2)], ids=str)
def test_sharded_equals_single_device(single, mesh):
    """Guards against a sharded step that computes something else than one device."""
    assert_equal_runs(one_step(mesh), single)


@pytest.mark.parametrize("change", [{"scan": False, "loss_block": 0}, {"remat": "full"}], ids=str)
def test_scan_remat_and_blocks_change_nothing(single, change):
    """Guards against scan, remat or loss blocks that change the step's numbers."""
    assert_equal_runs(one_step(MeshConfig(data=1), dataclasses.replace(MODEL, **change)), single)


def test_accumulation_equals_the_large_batch(single):
    """Micro-batches hold unequal counts of targets; on a mesh they are cut once more."""
    assert_equal_runs(one_step(MeshConfig(data=2, fsdp=1, tensor=1), accumulation=4), single)


def test_lookups_move_neither_the_table_nor_every_row():
    """Each device looks all rows up in its part of the width and sends every other its own: no gradient of the whole
    table on every device, and no rows of the whole batch."""
    model, config = dataclasses.replace(MODEL, vocabulary=1000, loss_block=100), MeshConfig(data=2, fsdp=4)
    run, mesh, width = make_run(model, mesh=config), make_mesh(config), model.width
    optimizer, batch = make_optimizer(run.train), make_batch(model)
    step = make_train_step(run, optimizer, mesh, np.ones(1000, np.int32))
    step = step.lower(abstract_state(run, optimizer, mesh), place_batch(batch, mesh))
    text = step.compile({"xla_backend_optimization_level": 0}).as_text()
    moved = {
        tuple(map(int, shape.split(",")))
        for result in re.findall(r"= ([^=]*?) (?:all-gather|all-reduce|all-to-all)(?:-start)?\(", text)
        for shape in re.findall(r"\[([\d,]+)\]", result)
    }
    own, rows = (100, width), batch.neighbor_tokens.reshape(-1, model.retrieved_length).shape
    assert own in moved  # a block of the loss is read whole
    assert moved.isdisjoint({(1000, width), (*batch.tokens.shape, width), (*rows, width)}), sorted(moved)


def test_specs_of_every_parameter():
    _, params = abstract_model(MODEL)
    specs = {"/".join(path): spec for path, spec in flatten_dict(parameter_specs(params)).items()}
    attention = {
        "content_bias": P(None, "tensor", None),
        "key": P(None, "fsdp", "tensor"),
        "norm": P(None, None),
        "output": P(None, "tensor", "fsdp"),
        "position": P(None, "fsdp", "tensor"),
        "position_bias": P(None, "tensor", None),
        "query": P(None, "fsdp", "tensor"),
        "value": P(None, "fsdp", "tensor"),
    }
    feed_forward = {"norm": P(None, None), "up": P(None, "fsdp", "tensor"), "down": P(None, "tensor", "fsdp")}
    expected = {"embedding": P("tensor", "fsdp"), "final_norm": P(None)}
    expected |= {f"layers/attention/{name}": spec for name, spec in attention.items()}
    expected |= {f"layers/feed_forward/{name}": spec for name, spec in feed_forward.items()}
    expected |= {f"cross_attention/{name}": spec for name, spec in attention.items()}
    encoder = {name: spec for name, spec in expected.items() if name != "final_norm"} | {"final_norm": P(None)}
    expected |= {f"encoder/{name}": spec for name, spec in encoder.items()}
    expected["encoder/cross_attention/memory_norm"] = P(None, None)
    assert specs == expected


def test_moments_are_sharded_like_their_parameters():
    """Guards against `jax.jit(optimizer.init)(params)` alone, which silently puts every moment on every device."""
    run = make_run(mesh=EIGHT)
    mesh = make_mesh(EIGHT)
    optimizer = make_optimizer(run.train)
    state = create_state(run, optimizer, mesh)
    moments = state.opt_state[1][0]
    for tree in (moments.mu, moments.nu):
        found = jax.tree.map(lambda leaf, like: leaf.sharding == like.sharding, tree, state.params)
        assert all(jax.tree.leaves(found)), found
    kernel = moments.mu["layers"]["attention"]["query"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4  # fsdp x tensor


def test_initial_parameters_do_not_depend_on_the_mesh():
    one = initial_params(make_run(), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    eight = initial_params(make_run(), make_mesh(EIGHT))
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_a_batch_is_cut_by_sequences():
    batch = place_batch(make_batch(), make_mesh(EIGHT))
    assert batch.tokens.sharding.spec == P(("data", "fsdp"))
    assert batch.tokens.addressable_shards[0].data.shape == (2, T)


def test_a_leaf_without_axes_is_an_error():
    with pytest.raises(ValueError, match=r"\['mixer'\] has no logical axes; add 'mixer' to LEAVES"):
        shardings({"mixer": jnp.zeros((2, 2))}, make_mesh(EIGHT))


@pytest.mark.parametrize(
    "config, message",
    [
        (MeshConfig(data=3), "number of devices, 8 here, but are config.train.mesh.data=3"),
        (MeshConfig(data=-1, fsdp=3), "to a divisor of 8"),
        (MeshConfig(data=2, fsdp=2, tensor=1), "number of devices, 8 here"),
    ],
)
def test_mesh_sizes_must_multiply_to_the_devices(config, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(config)


def test_minus_one_takes_the_rest():
    assert dict(make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    "mesh, model, train, message",
    [
        (MeshConfig(1, 8, 1), {"width": 20}, {}, "'fsdp' cuts config.model.width into equal parts, but 20 is not"),
        (
            MeshConfig(1, 1, 8),
            {},
            {},
            "'tensor' cuts config.model.heads into equal parts, but 2 is not a multiple of 8",
        ),
        (EIGHT, {"vocabulary": 65}, {}, "config.model.vocabulary into equal parts, but 65"),
        (EIGHT, {}, {"batch": 6}, "2 x 2 x 1 = 4, but config.train.batch=6 is not a multiple of that; take 8"),
        (MeshConfig(8), {}, {"batch": 8, "accumulation": 2}, "8 x 1 x 2 = 16, but config.train.batch=8 .* take 16"),
    ],
)
def test_sizes_that_do_not_divide(mesh, model, train, message):
    run = make_run(dataclasses.replace(MODEL, **model), mesh=mesh, **train)
    with pytest.raises(ValueError, match=message):
        check_sizes(run, make_mesh(mesh))


def hosts_of_gpus(count, each):
    """Made-up GPUs: each host is a slice of its own."""
    return [
        types.SimpleNamespace(
            id=number, process_index=number // each, slice_index=number // each, platform="gpu", device_kind="H100"
        )
        for number in range(count)
    ]


def test_hosts_of_gpus_are_joined_by_the_outer_axes():
    """Guards against a mesh that jax does not make over several hosts of GPUs, and one whose weights cross the network."""
    placed = over_slices((8, 8, 1), hosts_of_gpus(64, 8))
    assert placed.shape == (8, 8, 1) and {device.id for device in placed.flat} == set(range(64))
    assert all(len({device.slice_index for device in row.flat}) == 1 for row in placed)
    wide = over_slices((1, 16, 1), hosts_of_gpus(16, 8))
    assert [device.slice_index for device in wide.flat] == [0] * 8 + [1] * 8
    assert over_slices((8, 1, 1), hosts_of_gpus(8, 8)) is None
    with pytest.raises(
        ValueError, match="cannot be cut over 24 devices in 3 slices or hosts; make config.train.mesh.data"
    ):
        over_slices((1, 8, 1), hosts_of_gpus(24, 8))


def test_heads_are_not_cut_over_processes():
    """Guards against heads that see the sequences of another process: each reads its own."""
    there = np.array(hosts_of_gpus(8, 4)).reshape(2, 1, 4)
    check_processes(types.SimpleNamespace(devices=there, shape={"data": 2, "fsdp": 1, "tensor": 4}))
    across = types.SimpleNamespace(devices=there.reshape(1, 1, 8), shape={"data": 1, "fsdp": 1, "tensor": 8})
    with pytest.raises(
        ValueError, match="config.train.mesh.tensor=8 cuts heads over devices of the processes 0, 1, but each"
    ):
        check_processes(across)
