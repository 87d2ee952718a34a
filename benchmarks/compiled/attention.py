"""Decoder self-attention with and without the flash kernel; writes docs/measured/attention.md.

    .venv-tpu/bin/python benchmarks/compiled/attention.py runs/attention docs/measured/attention.md     # or: make attention

Layers are compiled for TPUs that do not exist here; errors and losses come from the kernel in Pallas's interpret mode on this
machine. Each figure is one JSON file in the given folder, so an interrupted run continues. `--data` is the data directory of
a finished `make quickstart`; without one the losses are left out.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # before jax starts

import jax
import jax.numpy as jnp
import numpy as np
from attention_page import page
from flax import nnx

from launch.command.config_files import load_config
from retro_jax.config import MeshConfig, resolve
from retro_jax.data.batches import train_iterator
from retro_jax.models.attention import Attention
from retro_jax.models.decoder import causal_mask
from retro_jax.models.kernels.flash.attend import attend
from retro_jax.models.kernels.known import Attend, Implementation, register
from retro_jax.models.kernels.slow import attend_slowly
from retro_jax.models.layers import ATTENDED
from retro_jax.models.positions import causal_distances, position_table
from retro_jax.parallel.on_mesh import OnMesh
from retro_jax.parallel.sharding import make_mesh, place_batch, replicated
from retro_jax.preflight.compile import _devices
from retro_jax.preflight.traffic import memory_traffic
from retro_jax.presets.sizes import RETRO
from retro_jax.presets.topologies import parse_topology
from retro_jax.train.optimizer import make_optimizer
from retro_jax.train.state import create_state
from retro_jax.train.step import make_train_step

ROOT = Path(__file__).resolve().parents[2]
SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
STEPS = 50
INTERPRETED = register(
    # Of small tiles: a kernel's program is as long as its tiles have rows, and long ones overflow the stack of XLA's CPU compiler.
    Implementation("interpreted", partial(attend, block=64, interpret=True), kinds=("self",), a_device=True)
).name


def layer(size: str, chip: str, attention: str) -> dict:
    """Memory traffic and temporaries of one self-attention layer, a sequence of 2,048 tokens, remat full, both passes."""
    sizes, topology, length = RETRO[size], parse_topology(SLICES[chip]), 2_048
    mesh = make_mesh(MeshConfig(1, 1, 1), _devices(topology)[:1])
    shape = (sizes.width, sizes.width, sizes.heads, sizes.head_dim, 1.0)
    graph, state = nnx.split(nnx.eval_shape(lambda: Attention(*shape, nnx.Rngs(0))))
    attend = Attend(attention, "self", OnMesh(mesh))

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(ATTENDED))
    def update(weights, x, segments, valid):
        positions = position_table(causal_distances(length), sizes.width, x.dtype)
        return x + nnx.merge(graph, weights).to_self(x, causal_mask(segments, valid), positions, attend)

    def loss(*arguments):
        return jnp.sum(update(*arguments).astype(jnp.float32) ** 2)

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

    weights = jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype), state)
    inputs = array((1, length, sizes.width), jnp.bfloat16), array((1, 32), jnp.int32), array((1, length), bool)
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(weights, *inputs).compile()
    return {
        "bytes": sum(memory_traffic(compiled.as_text()).values()),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "seconds": time.perf_counter() - started,
    }


def errors() -> dict:
    """Relative errors of output and gradients against the slow twin in float64: "dtype", "attention" -> leaf -> error."""
    heads, rows, length, width = 2, 2, 300, 64
    generator, found = np.random.default_rng(0), {}
    shapes = [(heads, rows, length, width)] * 4 + [(heads, length + 1, width), (heads, rows, length, width)]
    drawn = [generator.standard_normal(shape) for shape in shapes]
    segments = np.sort(generator.integers(0, 3, (rows, length)), 1)
    valid = generator.random((rows, length)) < 0.9
    leaves = ("outputs", "content queries", "position queries", "keys", "values", "positions")

    def gradients(form, dtype, arrays):
        mask = causal_mask(jnp.asarray(segments), jnp.asarray(valid))
        arrays = [jnp.asarray(array, dtype) for array in arrays]
        outputs, pull = jax.vjp(partial(form, mask=mask, distances=causal_distances(length)), *arrays[:5])
        return [np.asarray(array, np.float64) for array in (outputs, *pull(arrays[5]))]

    def slow(*arrays, mask, distances):
        return attend_slowly(*arrays, mask.allowed, distances)

    def by_xla(*arrays, mask, distances):
        return Attend("xla", "self")(*arrays, mask, distances)

    for dtype in ("float32", "bfloat16"):
        rounded = [np.asarray(jnp.asarray(array, dtype), np.float64) for array in drawn]
        with jax.enable_x64(True):
            exact = gradients(slow, "float64", rounded)
        for name, form in (("xla", by_xla), ("flash", partial(attend, block=128, interpret=True))):
            got = gradients(jax.jit(form, static_argnames="distances"), dtype, rounded)
            pairs = zip(leaves, got, exact, strict=True)
            found[f"{dtype} {name}"] = {
                leaf: float(np.linalg.norm(one - other) / np.linalg.norm(other)) for leaf, one, other in pairs
            }
    return found


def losses(data: Path, attention: str) -> list[float]:
    """Nats a token of the quickstart's RETRO over its first STEPS steps."""
    run = resolve(load_config(f"{ROOT}/configs/quickstart.py"))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, attention=attention, scan=True))
    mesh, optimizer = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), make_optimizer(run.train)
    step = make_train_step(run, optimizer, mesh, np.load(data / "tokenizer" / "token_bytes.npy"))
    state, found = create_state(run, optimizer, mesh), []
    iterator = train_iterator(data / "joined", run.model, run.train)
    for _ in range(STEPS):
        state, sums = step(state, place_batch(next(iterator), mesh))
        found.append(float(sums["nll"] / sums["tokens"]))
    return found


def kept(folder: Path, name: str, measure: Callable[[], object]) -> object:
    """The figure of that name: from its file, or measured and written."""
    path = folder / f"{name}.json"
    if not path.exists():
        print(f"attention: {name}", file=sys.stderr, flush=True)
        found = {"value": measure(), "date": time.strftime("%Y-%m-%d")}
        folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".partial").write_text(json.dumps(found, indent=2))
        path.with_suffix(".partial").replace(path)
    return json.loads(path.read_text())["value"]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "runs" / "quickstart" / "data")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args(argv)
    found: dict = {"errors": kept(options.folder, "errors", errors), "layers": {}}
    if (options.data / "joined").exists():
        names = {"xla": "xla", "flash": INTERPRETED}
        found["losses"] = {
            name: kept(options.folder, f"losses-{name}", partial(losses, options.data, attention))
            for name, attention in names.items()
        }
    for size in RETRO:
        for chip in SLICES:
            names = {name: f"layer-{size}-{chip}-{name}" for name in ("xla", "flash")}
            found["layers"][size, chip] = {
                name: kept(options.folder, file, partial(layer, size, chip, name)) for name, file in names.items()
            }
            options.page.write_text(page(found))


if __name__ == "__main__":
    main(sys.argv[1:])
