"""The GPU kernel against the slow twin, in Pallas's interpret mode, and its lowering to Triton; docs/decisions/model.md has what an H200 gave."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from test_flash import LEAVES, QUICK, inputs, slow_and_gradients

from retro_jax.config import ModelConfig
from retro_jax.models.kernels.flash_gpu import LOGITS_BYTES, flops
from retro_jax.models.kernels.flash_gpu.attend import attend
from retro_jax.models.kernels.flash_gpu.tiles import Tiling
from retro_jax.models.kernels.known import Mask, Use, check_attention, choose
from retro_jax.models.positions import causal_distances


@partial(jax.jit, static_argnums=(0, 4), compiler_options=QUICK)
def flash_and_gradients(dtype, arrays, mask, cotangent, logits_bytes=LOGITS_BYTES):
    distances = causal_distances(arrays[0].shape[2])
    form = partial(attend, mask=mask, distances=distances, block=16, interpret=True, logits_bytes=logits_bytes)
    outputs, pull = jax.vjp(form, *(array.astype(dtype) for array in arrays))
    return outputs, *pull(cotangent.astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_equals_the_slow_twin_leaf_by_leaf(dtype):
    """Odd lengths, several documents, padding, and queries without keys."""
    arrays, mask, cotangent = inputs("three heads", dtype)
    got = flash_and_gradients(dtype, arrays, mask, cotangent)
    for name, found, expected in zip(LEAVES, got, slow_and_gradients(arrays, mask, cotangent), strict=True):
        assert found.dtype == dtype and found.shape == expected.shape
        error = np.linalg.norm(found.astype(np.float32) - expected) / np.linalg.norm(expected)
        assert error < {"float32": 2e-6, "bfloat16": 0.01}[dtype], (name, error)
    keyless = ~np.asarray(mask.allowed).any(-1)
    assert keyless.any() and not np.asarray(got[0], np.float32)[:, keyless].any()


def test_the_backward_pass_takes_the_heads_in_groups():
    """All three heads at once, or one at a time: the same gradients."""
    arguments = inputs("three heads", "float32")
    whole, parts = (flash_and_gradients("float32", *arguments, held) for held in (LOGITS_BYTES, 1))
    for name, one, other in zip(LEAVES, whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6, err_msg=name)
    at_once = [Tiling(16, logits_bytes=100).heads_at_once(12, bytes_a_head) for bytes_a_head in (1, 10, 16, 25, 101)]
    assert at_once == [12, 6, 6, 4, 1]


# JAX 0.12 has it still, and says that a later version will not; the version is pinned.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_lowers_to_triton(dtype):
    """Triton's own rules for shapes and operations, without a GPU."""
    shapes = [jax.ShapeDtypeStruct((2, 1, 200, 64), dtype)] * 4 + [jax.ShapeDtypeStruct((2, 201, 64), dtype)]
    ids = jax.ShapeDtypeStruct((1, 200), jnp.int32)

    def total(*arrays):
        *arrays, query_ids, key_ids = arrays
        return attend(*arrays, Mask(None, query_ids, key_ids), causal_distances(200)).astype(jnp.float32).sum()

    # JAX 0.12 asks for the chip.
    chip = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=chip)):
        traced = jax.jit(jax.grad(total, tuple(range(5)))).trace(*shapes, ids, ids)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 2
    assert text.count("num_stages = 1 : i32") == 2  # with 3 an H200 gave gradients that were wrong by their own size


def test_auto_takes_it_where_it_was_measured_to_be_faster():
    use = Use("self", "gpu", 64, 2048, 2048, chip="NVIDIA H100 80GB HBM3")
    assert choose("auto", use).name == "flash_gpu"
    others = {"chip": "NVIDIA A100-SXM4-80GB"}, {"chip": ""}, {"dtype": "float32"}, {"head_dim": 128}, {"kind": "read"}
    for change in (*others, {"positions": False}):
        assert choose("auto", replace(use, **change)).name == "xla", change
    assert (
        choose("flash_gpu", replace(use, chip="NVIDIA A100-SXM4-80GB", dtype="float32", head_dim=128)).name
        == "flash_gpu"
    )


def test_it_refuses_by_name():
    with pytest.raises(ValueError, match="it runs on gpu, and the device is a cpu. Take config.model.attention=xla"):
        check_attention(ModelConfig(attention="flash_gpu"), "cpu")
    with pytest.raises(ValueError, match="its heads are 16, 32, 64, 128 wide"):
        check_attention(ModelConfig(attention="flash_gpu", head_dim=80), "gpu")


def test_its_operations_are_those_of_its_products():
    """Tile by tile: 10 products in a tile on or below the diagonal, and three over all pairs of a query and a key."""
    rows, length, width = 3, 300, 128
    blocks = 5  # of 64
    product = rows * 2 * 64 * 64 * width
    assert flops(rows, length, width) == sum(
        product * (3 + 10 * (c <= a)) for a in range(blocks) for c in range(blocks)
    )
