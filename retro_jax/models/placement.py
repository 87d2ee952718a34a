"""What a model asks of the devices that it runs on; `retro_jax.parallel.on_mesh` answers for a mesh."""

from collections.abc import Callable
from typing import Protocol

import jax


class Placement(Protocol):
    """Where streams are held, and how a kernel that the compiler cannot cut runs on several devices."""

    @property
    def platform(self) -> str:
        """The kind of device, as JAX names it: cpu, gpu, tpu."""
        ...

    @property
    def chip(self) -> str:
        """The device's model, as JAX names it: TPU v4, TPU v5p."""
        ...

    def pin(self, stream: jax.Array, looked_up: bool = False) -> jax.Array:
        """Keeps a stream whose first axis is that of sequences where it belongs."""
        ...

    def a_device(self, attend: Callable) -> Callable:
        """`attend(content_queries, position_queries, keys, values, positions, mask)`, run on every device's part."""
        ...


class OneDevice:
    """The compiler places everything: one device."""

    @property
    def platform(self) -> str:
        return jax.default_backend()

    @property
    def chip(self) -> str:
        return jax.devices()[0].device_kind

    def pin(self, stream: jax.Array, looked_up: bool = False) -> jax.Array:
        return stream

    def a_device(self, attend: Callable) -> Callable:
        return attend


ONE_DEVICE = OneDevice()
