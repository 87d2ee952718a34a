"""The flash kernel against the slow twin, run by XLA on this machine (Pallas's interpret mode), and what AUTO chooses."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sharding import EIGHT, make_batch
from tiny_model import TINY, random_parameters
from training_fixture import BASELINE, MODEL, make_run

from retro_jax.config import MeshConfig
from retro_jax.models.counts import executed_flops
from retro_jax.models.decoder import causal_mask
from retro_jax.models.kernels import known
from retro_jax.models.kernels.flash import LONGEST
from retro_jax.models.kernels.flash.attend import attend
from retro_jax.models.kernels.known import Implementation, Use, check_attention, choose, register
from retro_jax.models.kernels.slow import attend_slowly
from retro_jax.models.positions import causal_distances
from retro_jax.parallel.sharding import make_mesh
from retro_jax.preflight import hlo
from retro_jax.preflight.step import abstract_step
from retro_jax.train.step import batch_nll

QUICK = {"xla_backend_optimization_level": 0}  # compile quickly: the kernel as XLA operations is a large program
LEAVES = ("outputs", "content_queries", "position_queries", "keys", "values", "positions")
# (heads, head size, tokens), tiles of 16 tokens: two heads side by side, a third alone, three tiles with padding; one of each.
SHAPES = {"three heads": (3, 64, 37), "one head": (1, 128, 16)}


def inputs(shape, dtype=jnp.float32):
    """Arrays in `dtype`'s values as float32, a mask of several documents with padding, and a cotangent."""
    heads, size, length = SHAPES[shape]
    generator = np.random.default_rng(0)
    shapes = [(heads, 2, length, size)] * 4 + [(heads, length + 1, size), (heads, 2, length, size)]
    arrays = [jnp.asarray(generator.standard_normal(one), dtype).astype(jnp.float32) for one in shapes]
    segments = np.sort(generator.integers(0, 3, (2, length)), 1)
    segments[1, -5:] = -1
    valid = np.ones((2, length), bool)
    valid[1, -5:] = valid[0, 7:10] = False
    valid[0, np.searchsorted(segments[0], 1)] = False  # a document's first token: a query without keys
    return arrays[:5], causal_mask(jnp.asarray(segments), jnp.asarray(valid)), arrays[5]


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def flash_and_gradients(dtype, arrays, mask, cotangent):
    distances = causal_distances(arrays[0].shape[2])
    form = partial(attend, mask=mask, distances=distances, block=16, interpret=True)
    outputs, pull = jax.vjp(form, *(array.astype(dtype) for array in arrays))
    return outputs, *pull(cotangent.astype(dtype))


@jax.jit
def slow_and_gradients(arrays, mask, cotangent):
    distances = causal_distances(arrays[0].shape[2])
    outputs, pull = jax.vjp(lambda *arrays: attend_slowly(*arrays, mask.allowed, distances), *arrays)
    return outputs, *pull(cotangent)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_equals_the_slow_twin_leaf_by_leaf(shape, dtype):
    """Odd lengths, several documents and padding; a relative error of each gradient by itself."""
    arrays, mask, cotangent = inputs(shape, dtype)
    got = flash_and_gradients(dtype, arrays, mask, cotangent)
    for name, found, expected in zip(LEAVES, got, slow_and_gradients(arrays, mask, cotangent), strict=True):
        assert found.dtype == dtype and found.shape == expected.shape
        error = np.linalg.norm(found.astype(np.float32) - expected) / np.linalg.norm(expected)
        assert error < {"float32": 2e-6, "bfloat16": 0.01}[dtype], (name, error)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_query_without_keys_gives_exact_zeros(dtype):
    """Guards against NaN, or a mean over masked keys, in the value or a gradient."""
    arrays, mask, cotangent = inputs("three heads", dtype)
    keyless = ~np.asarray(mask.allowed).any(-1)
    unread = ~np.asarray(mask.allowed).any(-2)
    assert keyless.sum() > 5 and unread.sum() > 5
    arrays[2] = jnp.where(unread[None, :, :, None], 3e4, arrays[2])
    found = dict(zip(LEAVES, flash_and_gradients(dtype, arrays, mask, cotangent), strict=True))
    for name, array in found.items():
        array = np.asarray(array, np.float32)
        assert np.isfinite(array).all(), name
        empty = {"outputs": keyless, "content_queries": keyless, "position_queries": keyless}.get(name, unread)
        assert name == "positions" or not array[:, empty].any(), name


def test_bfloat16_gradients_survive_a_part_that_all_keys_and_values_share():
    """Guards against softmax gradients from a rounded output. What all keys share must cancel."""
    arrays, mask, cotangent = inputs("three heads", jnp.bfloat16)
    arrays[2], arrays[3] = ((0.3 * arrays[2] + 2), arrays[3] + 4)
    arrays = [array.astype(jnp.bfloat16).astype(jnp.float32) for array in arrays]
    got = flash_and_gradients("bfloat16", arrays, mask, cotangent)
    for name, found, expected in zip(LEAVES, got, slow_and_gradients(arrays, mask, cotangent), strict=True):
        error = np.linalg.norm(found.astype(np.float32) - expected) / np.linalg.norm(expected)
        assert error < 0.02, (name, error)


def test_through_the_model_on_a_mesh(monkeypatch):
    """Eight devices, two parts of the heads, layers scanned and recomputed: the loss and every gradient of the default.

    Guards against a cut between the wrong heads or sequences, and a gradient of u, v or W_R that is lost on the way.
    """
    monkeypatch.setattr(known, "IMPLEMENTATIONS", dict(known.IMPLEMENTATIONS))
    register(Implementation("interpreted", partial(attend, block=8, interpret=True), ("self",), a_device=True))
    batch = make_batch()

    def gradients(name, mesh):
        model = dataclasses.replace(MODEL, attention=name, layers=2, retrieval_layers=(2,), head_dim=16, remat="full")
        run = make_run(model)
        loss = jax.value_and_grad(lambda params: batch_nll(run.model, params, batch, batch.neighbor_tokens, mesh).sum())
        return jax.jit(loss, compiler_options=QUICK)(random_parameters(run.model))

    alone = gradients("xla", make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    together = gradients("interpreted", make_mesh(EIGHT))
    for (path, got), expected in zip(
        jax.tree_util.tree_leaves_with_path(together), jax.tree.leaves(alone), strict=True
    ):
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(got / scale, expected / scale, atol=5e-5, err_msg=jax.tree_util.keystr(path))


def kernels(jaxpr, name):
    """Calls of a kernel whose results are used: JAX keeps the others in the traced program, and XLA drops them."""
    used = {id(variable) for equation in jaxpr.eqns for variable in equation.invars} | set(map(id, jaxpr.outvars))
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found = equation.params["name"] == name
            count += found and any(id(variable) in used for variable in equation.outvars)
        else:
            count += sum(kernels(inner, name) for value in equation.params.values() for inner in hlo.inner(value))
    return count


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_does_not_run_the_forward_kernel_twice(remat, monkeypatch):
    """Guards against results without a name, which remat would compute again in the backward pass."""
    monkeypatch.setattr(known, "IMPLEMENTATIONS", dict(known.IMPLEMENTATIONS))
    register(Implementation("interpreted", partial(attend, interpret=True), ("self",), a_device=True))
    model = dataclasses.replace(BASELINE, attention="interpreted", head_dim=16, layers=2, remat=remat, scan=False)
    mesh, batch = make_mesh(EIGHT), make_batch()
    loss = jax.grad(lambda params: batch_nll(model, params, batch, None, mesh).sum())
    jaxpr = jax.make_jaxpr(loss)(random_parameters(model)).jaxpr
    assert kernels(jaxpr, "flash_forward") == kernels(jaxpr, "flash_backward") == model.layers


def test_what_the_kernel_does_not_take_is_refused_by_name():
    model = dataclasses.replace(TINY, attention="flash", head_dim=64)
    check_attention(model, "tpu", "TPU v5")
    for change, chip, message in (
        ({}, None, "it runs on tpu, and the device is a cpu. Take config.model.attention=xla"),
        ({}, "TPU v4", "a TPU v4 cannot rotate each row by another number of places"),
        ({"head_dim": 48}, "TPU v5", "head_dim=48, 24 queries and 24 keys: its heads are 16, 32, 64 or a multiple of 128"),
        ({"sequence_length": 8_256}, "TPU v5", f"it holds all keys of a head in fast memory, at most {LONGEST:,}"),
        ({"head_dim": 256, "sequence_length": 4_160}, "TPU v5", f"at most {LONGEST // 2:,}"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            check_attention(dataclasses.replace(model, **change), "tpu" if chip else "cpu", chip or "")


def test_the_automatic_choice():
    """flash on a TPU that takes it, for the decoder alone; XLA elsewhere and where flash would be refused."""
    use = Use("self", "tpu", 64, 2048, 2048, chip="TPU v5")
    assert choose("auto", use).name == "flash"
    for other in ({"platform": "cpu"}, {"platform": "gpu"}, {"chip": "TPU v4"}, {"head_dim": 80}, {"kind": "read"}):
        assert choose("auto", dataclasses.replace(use, **other)).name == "xla"
    check_attention(TINY, "cpu")
    with pytest.raises(ValueError, match="config.model.attention=auto chooses by device"):
        register(Implementation("auto", attend))


@pytest.mark.parametrize("chip", ["TPU v5 lite", "TPU v5", "TPU v6 lite"])
def test_the_kernel_lowers_for_absent_tpus(chip):
    """Mosaic's own rules for shapes and operations, without a TPU's compiler; `make test-tpu` compiles."""
    shapes = [jax.ShapeDtypeStruct((2, 1, 600, 64), jnp.bfloat16)] * 4
    shapes.append(jax.ShapeDtypeStruct((2, 601, 64), jnp.bfloat16))
    ids = jax.ShapeDtypeStruct((1, 600), jnp.int32)

    def total(*arrays):
        *arrays, query_ids, key_ids = arrays
        mask = known.Mask(None, query_ids, key_ids)
        return attend(*arrays, mask, causal_distances(600)).astype(jnp.float32).sum()

    device = jax.sharding.AbstractDevice(device_kind=chip, num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(total, tuple(range(5)))).trace(*shapes, ids, ids)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 2


def test_counted_flops_are_those_of_the_traced_step(monkeypatch):
    """Exact to the last product: the kernel's tiles, and no second forward pass under remat."""
    monkeypatch.setattr(known, "IMPLEMENTATIONS", dict(known.IMPLEMENTATIONS))
    register(Implementation("interpreted", partial(attend, interpret=True), ("self",), a_device=True))
    model = dataclasses.replace(BASELINE, attention="interpreted", head_dim=64, layers=2, remat="full")
    run = make_run(model, accumulation=2, mesh=MeshConfig(1, 1, 1))
    step, arguments = abstract_step(run, jax.devices()[:1])
    assert hlo.traced_flops(step.trace(*arguments).jaxpr.jaxpr) == executed_flops(run, "flash")
    assert executed_flops(run, "flash") != executed_flops(run)
