"""The GPU kernel against the slow twin, in Pallas's interpret mode, and its lowering to Triton; docs/decisions/model.md has what an H200 gave."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_flash import LEAVES, QUICK, inputs, slow_and_gradients

from retro_jax.config import ModelConfig
from retro_jax.models.kernels.flash_gpu.attend import attend
from retro_jax.models.kernels.known import Mask, Use, check_attention, choose
from retro_jax.models.positions import causal_distances


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def flash_and_gradients(dtype, arrays, mask, cotangent):
    distances = causal_distances(arrays[0].shape[2])
    form = partial(attend, mask=mask, distances=distances, block=16, interpret=True)
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_lowers_to_triton(dtype):
    """Triton's own rules for shapes and operations, without a GPU."""
    shapes = [jax.ShapeDtypeStruct((2, 1, 200, 64), dtype)] * 4 + [jax.ShapeDtypeStruct((2, 201, 64), dtype)]
    ids = jax.ShapeDtypeStruct((1, 200), jnp.int32)

    def total(*arrays):
        *arrays, query_ids, key_ids = arrays
        return attend(*arrays, Mask(None, query_ids, key_ids), causal_distances(200)).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, tuple(range(5)))).trace(*shapes, ids, ids)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 4
    assert text.count("num_stages = 1 : i32") == 4  # with 3 an H200 gave gradients that were wrong by their own size


def test_it_is_chosen_by_name_alone_and_refuses_by_name():
    use = Use("self", "gpu", 64, 2048, 2048)
    assert choose("flash_gpu", use).name == "flash_gpu" and choose("auto", use).name == "xla"
    with pytest.raises(ValueError, match="it runs on gpu, and the device is a cpu. Take config.model.attention=xla"):
        check_attention(ModelConfig(attention="flash_gpu"), "cpu")
    with pytest.raises(ValueError, match="its heads are 16, 32, 64, 128 wide"):
        check_attention(ModelConfig(attention="flash_gpu", head_dim=80), "gpu")
