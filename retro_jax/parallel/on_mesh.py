"""How a model runs on a mesh: where its streams are held, and how a kernel is given each device's part.

A kernel (Pallas, a library call) is opaque to the compiler, which would gather its inputs on every device. `a_device`
wraps it in a `shard_map`: each device calls it with its own heads and sequences. No other file holds a shard_map.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from retro_jax.parallel.sharding import BATCH_AXES, RULES, Mesh, PartitionSpec, pin_stream


@dataclass(frozen=True)
class OnMesh:
    """The `models.placement.Placement` of a mesh."""

    mesh: Mesh

    @property
    def platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    @property
    def chip(self) -> str:
        return self.mesh.devices.flat[0].device_kind

    def pin(self, stream: jax.Array, looked_up: bool = False) -> jax.Array:
        return pin_stream(stream, self.mesh, looked_up)

    def a_device(self, attend: Callable) -> Callable:
        """Cuts [H, N, ...] arrays by heads and rows, position rows [H, ...] by heads, masks [N, ...] by rows.

        Rows are sequences, chunks or neighbors in the order of sequences, so that a cut falls between sequences.
        """
        if self.mesh.size == 1:
            return attend
        by_head, by_row = PartitionSpec(RULES["heads"]), PartitionSpec(BATCH_AXES)
        by_both = PartitionSpec(RULES["heads"], BATCH_AXES)
        specs = (by_both, by_both, by_both, by_both, by_head, by_row)
        # Kernels do not say over which axes their results vary, which the check would ask for.
        return jax.shard_map(attend, mesh=self.mesh, in_specs=specs, out_specs=by_both, check_vma=False)
