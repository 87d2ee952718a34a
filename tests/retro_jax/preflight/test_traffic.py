"""The memory traffic of compiled programs: by hand, and of a program of this machine's compiler."""

import jax
import jax.numpy as jnp
import pytest

from retro_jax.preflight.traffic import buffer_bytes, memory_traffic

STEP = """HloModule step

%fused_slice (p.0: f32[7,8,128], p.1: s32[]) -> f32[8,128] {
  %p.0 = f32[7,8,128]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %part = f32[1,8,128]{2,1,0} dynamic-slice(%p.0, %p.1, %p.1, %p.1), dynamic_slice_sizes={1,8,128}
  ROOT %flat = f32[8,128]{1,0} bitcast(%part)
}

%fused_update (q.0: f32[7,8,128], q.1: f32[1,8,128], q.2: s32[]) -> f32[7,8,128] {
  %q.0 = f32[7,8,128]{2,1,0} parameter(0)
  %q.1 = f32[1,8,128]{2,1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  ROOT %updated = f32[7,8,128]{2,1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %q.2, %q.2)
}

%body (b: (s32[], f32[7,8,128])) -> (s32[], f32[7,8,128]) {
  %b = (s32[], f32[7,8,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %stack = f32[7,8,128]{2,1,0} get-tuple-element(%b), index=1
  %row = f32[8,128]{1,0} fusion(%stack, %i), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(step)/while/body/encoder/self_attention/slice"}
  %fast = f32[8,128]{1,0:T(8,128)S(1)} negate(%row), metadata={op_name="jit(step)/transpose(jvp(readout))/neg"}
  %slow = f32[1,8,128]{2,1,0} reshape(%fast), metadata={op_name="jit(step)/jvp(readout)/reshape"}
  %new = f32[7,8,128]{2,1,0} fusion(%stack, %slow, %i), kind=kLoop, calls=%fused_update
  ROOT %out = (s32[], f32[7,8,128]{2,1,0}) tuple(%i, %new)
}

%condition (c: (s32[], f32[7,8,128])) -> pred[] {
  %c = (s32[], f32[7,8,128]{2,1,0}) parameter(0)
  ROOT %limit = pred[] constant(true)
}

ENTRY %main (p: (s32[], f32[7,8,128])) -> f32[7,8,128] {
  %p = (s32[], f32[7,8,128]{2,1,0}) parameter(0)
  %loop = (s32[], f32[7,8,128]{2,1,0}) while(%p), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %all = f32[7,8,128]{2,1,0} get-tuple-element(%loop), index=1
  %begun = (f32[7,8,128]{2,1,0}, f32[7,8,128]{2,1,0}, u32[]) copy-start(%all)
  %kernel = f32[7,8,128]{2,1,0} custom-call(%all, %all), custom_call_target="tpu_custom_call"
  ROOT %ended = f32[7,8,128]{2,1,0} copy-done(%begun)
}
"""


def test_operations_count_as_often_as_their_loop_turns_and_parts_as_parts():
    """A row is 4,096 bytes. Guards against whole stacks for slices and updates, and against loops counted once."""
    row, index = 8 * 128 * 4, 4
    assert memory_traffic(STEP) == {
        "encoder": 7 * (2 * row + index),  # a slice of the stack: read, written; the outer scope counts
        "readout": 7 * 2 * row,  # one read, one written; the rest stays in fast memory
        "other": 7 * (2 * row + index) + 7 * row * 2 + 7 * row * 3,  # update, copy, kernel
    }


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[3,5]{1,0}", 60),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 2 * 8 * 128),
        ("bf16[3,200]{0,1:T(8,128)(2,1)}", 2 * 200 * 128),
        ("f32[100]{0:T(1024)}", 4096),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 0),
        ("(f32[2]{0}, (s32[], pred[3]{0}))", 8 + 4 + 3),
    ],
)
def test_buffers_have_the_padding_of_their_layout(shape, size):
    assert buffer_bytes(shape) == size


def test_a_compiled_loop_moves_what_its_turns_do():
    """Five products of one matrix with another: at least their operands and results, and not the stack in each turn."""

    def turns(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 256), (5, 256, 256))]
    moved = sum(memory_traffic(jax.jit(turns).lower(*arrays).compile().as_text()).values())
    assert 5 * 3 * 256 * 256 * 4 <= moved <= 2.5 * 5 * 3 * 256 * 256 * 4
