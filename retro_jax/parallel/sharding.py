"""The device mesh and the sharding of every array. The only file that names mesh axes.

Three axes: `data` copies the parameters, `fsdp` cuts them along the width and gathers a layer when it runs, `tensor`
cuts heads, feed-forward and vocabulary so that a layer's matmuls are shared. A batch is cut over data and fsdp
together. Axes are of the Auto kind: the compiler spreads these few decisions over the step, and the step pins the
stream once (`pin_stream`).

A parameter's sharding follows from its name: `LEAVES` gives each name its logical axes, `RULES` each logical axis its
mesh axis. A stack of layers has one axis more in front, which is never cut.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from retro_jax.config import MeshConfig, ModelConfig, RunConfig
from retro_jax.data.batches import Batch

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

RULES = {"width": "fsdp", "heads": "tensor", "feed_forward": "tensor", "vocabulary": "tensor", None: None}

LEAVES = {
    "embedding": ("vocabulary", "width"),
    "unembedding": ("vocabulary", "width"),
    "query": ("width", "heads"),  # heads x head_dim are one axis, heads outermost: a cut falls between heads
    "key": ("width", "heads"),
    "value": ("width", "heads"),
    "position": ("width", "heads"),
    "output": ("heads", "width"),
    "content_bias": ("heads", None),
    "position_bias": ("heads", None),
    "query_bias": ("heads", None),
    "key_bias": ("heads", None),
    "value_bias": ("heads", None),
    "query_norm": (None,),
    "key_norm": (None,),
    "update_gate": (),
    "up": ("width", "feed_forward"),
    "gate": ("width", "feed_forward"),
    "down": ("feed_forward", "width"),
    "norm": (None,),
    "memory_norm": (None,),
    "final_norm": (None,),
}


def mesh_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """The sizes of the mesh axes of `config` over so many devices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = [getattr(config, axis) for axis in AXES]
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if -1 in sizes or np.prod(sizes) != devices:
        asked = ", ".join(f"config.train.mesh.{axis}={getattr(config, axis)}" for axis in AXES)
        raise ValueError(
            f"The mesh sizes multiply to the number of devices, {devices} here, but are {asked}; "
            f"set one of them to -1 and the product of the others to a divisor of {devices}."
        )
    return dict(zip(AXES, sizes, strict=True))


def make_mesh(config: MeshConfig, devices: Sequence | None = None) -> Mesh:
    """The mesh of `config` over `devices` (default: all).

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes, kinds = tuple(mesh_sizes(config, len(devices)).values()), (AxisType.Auto,) * 3
    if (placed := over_slices(sizes, devices)) is not None:
        return Mesh(placed, AXES, axis_types=kinds)
    try:
        return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=devices)
    except NotImplementedError:  # a size is not a product of the torus' sides: an axis then shares a side with another
        return Mesh(
            mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), AXES, axis_types=kinds
        )


def over_slices(sizes: Sequence[int], devices: Sequence) -> np.ndarray | None:
    """The devices of several slices (of TPUs; of GPUs every host is one) by axis, the outer axes over the network between them.
    None for one slice.

    Raises:
      ValueError: the axes cannot be cut so that each slice holds whole parts.
    """
    left = len({getattr(device, "slice_index", 0) for device in devices})
    if left == 1:
        return None
    across = []
    for size in sizes:
        across.append(math.gcd(size, left))
        left //= across[-1]
    if left > 1:
        asked = ", ".join(f"config.train.mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ValueError(
            f"The mesh ({asked}) cannot be cut over {len(devices)} devices in {left * math.prod(across)} slices or hosts; make "
            f"config.train.mesh.data a multiple of their number."
        )
    inside = [size // part for size, part in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)


def check_processes(mesh: Mesh) -> None:
    """Raises ValueError where devices of several processes work on the same sequences: each process reads sequences of its own."""
    for group in mesh.devices.reshape(-1, mesh.shape["tensor"]):
        processes = sorted({device.process_index for device in group})
        if len(processes) > 1:
            raise ValueError(
                f"config.train.mesh.tensor={mesh.shape['tensor']} cuts heads over devices of the processes "
                f"{', '.join(map(str, processes))}, but each process reads sequences of its own. Take a divisor that stays within a "
                f"process, and more config.train.mesh.fsdp."
            )


def check_model_sizes(model: ModelConfig, mesh: Mesh | Mapping[str, int]) -> None:
    """Raises ValueError where a size of the model cannot be cut as the mesh (or the sizes of its axes) asks."""
    sizes = getattr(mesh, "shape", mesh)
    cuts = [
        ("fsdp", model.width, "config.model.width"),
        ("tensor", model.heads, "config.model.heads"),
        ("tensor", model.decoder_key_heads, "config.model.key_heads"),
        ("tensor", model.feed_forward, "config.model.feed_forward"),
        ("tensor", model.vocabulary, "config.model.vocabulary"),
    ]
    if model.retrieves:
        cuts += [
            ("fsdp", model.encoder.width, "config.model.encoder.width"),
            ("tensor", model.encoder.heads, "config.model.encoder.heads"),
            ("tensor", model.encoder.feed_forward, "config.model.encoder.feed_forward"),
        ]
    for axis, size, where in cuts:
        if size % sizes[axis]:
            raise ValueError(
                f"The mesh axis '{axis}' cuts {where} into equal parts, but {size} is not a multiple of "
                f"{sizes[axis]}; change {where} or take a divisor of {size} for config.train.mesh.{axis}."
            )


def check_sizes(run: RunConfig, mesh: Mesh | Mapping[str, int]) -> None:
    """Raises ValueError where a size of model or batch cannot be cut as the mesh (or the sizes of its axes) asks."""
    sizes, train = getattr(mesh, "shape", mesh), run.train
    check_model_sizes(run.model, mesh)
    parts = sizes["data"] * sizes["fsdp"] * train.accumulation
    if train.batch % parts:
        raise ValueError(
            f"A batch is cut over the mesh axes data and fsdp and over accumulation steps, {sizes['data']} x "
            f"{sizes['fsdp']} x {train.accumulation} = {parts}, but config.train.batch={train.batch} is not a "
            f"multiple of that; take {-(-train.batch // parts) * parts}."
        )


def check_batch(batch: int, mesh: Mesh | Mapping[str, int], where: str) -> None:
    """Raises ValueError where a batch of so many sequences, the setting `where`, cannot be cut over the mesh."""
    sizes = getattr(mesh, "shape", mesh)
    parts = sizes["data"] * sizes["fsdp"]
    if batch % parts:
        raise ValueError(
            f"A batch is cut over the mesh axes data and fsdp, {sizes['data']} x {sizes['fsdp']} = {parts}, but "
            f"{where}={batch} is not a multiple of that; take {-(-batch // parts) * parts}."
        )


def parameter_specs(params: Mapping) -> dict:
    """The PartitionSpec of every leaf of a nested dict of (abstract) parameters."""
    return jax.tree_util.tree_map_with_path(_leaf_spec, params)


def _leaf_spec(path, leaf) -> PartitionSpec:
    name = next(entry.key for entry in reversed(path) if isinstance(entry.key, str))
    if name not in LEAVES:
        raise ValueError(f"The parameter {jax.tree_util.keystr(path)} has no logical axes; add '{name}' to LEAVES.")
    axes = LEAVES[name]
    return PartitionSpec(*[None] * (len(leaf.shape) - len(axes)), *[RULES[axis] for axis in axes])


def shardings(tree, mesh: Mesh):
    """NamedShardings of any tree whose dicts are parameters or mirror them (moments); scalars are replicated."""

    def leaf_sharding(path, leaf):
        spec = PartitionSpec() if len(leaf.shape) == 0 else _leaf_spec(_dict_path(path), leaf)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def _dict_path(path):
    return tuple(entry for entry in path if isinstance(entry, jax.tree_util.DictKey))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch's arrays: by sequences."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This process's part of a batch (NumPy) as global arrays; returns before the copy is done."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch)


def place_whole(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """A full batch that every process holds, cut over the mesh as in training: each device takes its own rows."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, batch_sharding(mesh), lambda part: array[part])


def pin_stream(stream: jax.Array, mesh: Mesh, looked_up: bool = False) -> jax.Array:
    """Constrains a [B, ..., D] stream to be cut by sequences only; otherwise the compiler may replicate it.

    Rows looked up in an embedding are cut along the width first, as the table is: then the tokens travel and the rows
    come back. Otherwise every device would gather the full table and sum its full gradient.
    """
    if mesh.size == 1:
        return stream
    if looked_up:
        by_width = PartitionSpec("data", *[None] * (stream.ndim - 2), "fsdp")
        stream = jax.lax.with_sharding_constraint(stream, NamedSharding(mesh, by_width))
    return jax.lax.with_sharding_constraint(stream, batch_sharding(mesh))


def pin_parameters(tree, mesh: Mesh):
    """Constrains gradients to be cut like their parameters; otherwise their sums may be replicated."""
    return tree if mesh.size == 1 else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def describe(mesh: Mesh, model: ModelConfig) -> str:
    """One line for the log."""
    sizes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in AXES)
    return f"mesh {sizes} on {mesh.devices.size} {mesh.devices.flat[0].platform} device(s), {model.compute_dtype}"


def on_one_device() -> SingleDeviceSharding:
    """Puts everything on this process's first device, for evaluation and sampling."""
    return SingleDeviceSharding(jax.local_devices()[0])
