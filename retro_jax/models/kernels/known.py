"""The implementations of attention: one record each, and the one place to add another.

    register(Implementation("mine", attend, kinds=("self",), platforms=("gpu",), refuse=refuse, a_device=True))

adds one from anywhere before a model runs; `config.model.attention="mine"` then chooses it. Kinds of attention that it
does not declare are computed by FALLBACK. A device, head size or length that it does not take is an error that names it.
AUTO takes, for each attention, the first implementation that is `automatic` for it and takes device and sizes, or else FALLBACK.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
from jaxtyping import Array, Bool, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.core.registry import add
from retro_jax.models.kernels import flash, flash_gpu, xla
from retro_jax.models.placement import ONE_DEVICE, Placement
from retro_jax.models.positions import Distances

# Decoder self-attention, chunked cross-attention, encoder self-attention, and the encoder's cross-attention to its chunk.
KINDS = ("self", "read", "encoder", "conditioning")
FALLBACK = "xla"
AUTO = "auto"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Which keys a query may read: the matrix, and for decoder self-attention the same as ids, which need no matrix.

    Query i may read key j if query_ids[i] == key_ids[j] and j <= i. What an implementation does not use is not computed.
    """

    allowed: Bool[Array, "N #I J"]
    query_ids: Int[Array, "N I"] | None = None
    key_ids: Int[Array, "N J"] | None = None


@dataclass(frozen=True)
class Use:
    """One attention of a model on a device: what an implementation may refuse."""

    kind: str
    platform: str  # of JAX: cpu, gpu, tpu
    head_dim: int
    queries: int
    keys: int
    positions: bool = True  # whether there are position logits
    dtype: str = "bfloat16"  # of its products
    chip: str = ""  # the device's model, as JAX names it: TPU v4, TPU v5; empty: any


@dataclass(frozen=True)
class Implementation:
    """A way to compute attention.

    Attributes:
      name: the value of config.model.attention.
      attend: takes and returns what `xla.attend` does, with a `Mask` in place of the matrix; differentiable.
      kinds: which of KINDS it computes.
      platforms: the devices that it runs on; () is all.
      refuse: why it cannot compute a `Use` (a head size, a length), or None if it can.
      a_device: it sees one device's heads and sequences at a time (`Placement.a_device`), as a kernel does that the
        compiler cannot cut. False leaves the cutting to the compiler.
      automatic: whether AUTO takes it for a `Use` that it does not refuse.
    """

    name: str
    attend: Callable
    kinds: tuple[str, ...] = KINDS
    platforms: tuple[str, ...] = ()
    refuse: Callable[[Use], str | None] = lambda use: None
    a_device: bool = False
    automatic: Callable[[Use], bool] = lambda use: False

    def reason(self, use: Use) -> str | None:
        """Why it cannot compute `use` on that device, or None if it can."""
        if self.platforms and use.platform not in self.platforms:
            return f"it runs on {', '.join(self.platforms)}, and the device is a {use.platform}"
        return self.refuse(use)


IMPLEMENTATIONS: dict[str, Implementation] = {}


def register(implementation: Implementation) -> Implementation:
    """Adds an implementation.

    Raises:
      ValueError: one of that name is there, or a kind that no model has.
    """
    if implementation.name == AUTO:
        raise ValueError(f"config.model.attention={AUTO} chooses by device; give the implementation another name.")
    if unknown := [kind for kind in implementation.kinds if kind not in KINDS]:
        raise ValueError(
            f"Attention is of the kinds {', '.join(KINDS)}, but {implementation.name!r} has {unknown[0]!r}."
        )
    return add(IMPLEMENTATIONS, implementation, "an attention")


def choose(name: str, use: Use) -> Implementation:
    """The implementation of that name (or AUTO's choice), or FALLBACK where it does not declare the kind.

    Raises:
      ValueError: no implementation of that name, or one that cannot compute `use`.
    """
    if name == AUTO:
        able = (one for one in IMPLEMENTATIONS.values() if use.kind in one.kinds and one.automatic(use))
        return next((one for one in able if not one.reason(use)), IMPLEMENTATIONS[FALLBACK])
    if name not in IMPLEMENTATIONS:
        near = difflib.get_close_matches(name, IMPLEMENTATIONS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"config.model.attention must be one of {', '.join((AUTO, *IMPLEMENTATIONS))}, but is {name!r}{hint}. "
            f"An implementation of your own is known once its module was imported."
        )
    found = IMPLEMENTATIONS[name]
    if use.kind not in found.kinds:
        return IMPLEMENTATIONS[FALLBACK]
    if reason := found.reason(use):
        raise ValueError(
            f"config.model.attention={name} cannot compute the {use.kind} attention of head_dim={use.head_dim}, "
            f"{use.queries} queries and {use.keys} keys: {reason}. Take config.model.attention={FALLBACK}."
        )
    return found


def uses(model: ModelConfig, platform: str, chip: str = "") -> list[Use]:
    """Every attention of a model at its full lengths."""
    encoder, length, chunk = model.encoder, model.encoded_length, model.chunk_length
    relative = model.positions == "relative"
    found = [Use("self", platform, model.head_dim, model.sequence_length, model.sequence_length, relative)]
    if model.retrieves and model.neighbors:
        keys, positions = model.neighbors * length, model.cross_attention_positions
        found.append(Use("read", platform, model.head_dim, chunk, keys, positions))
        found.append(Use("encoder", platform, encoder.head_dim, length, length))
        if encoder.cross_attention_layers:
            found.append(Use("conditioning", platform, encoder.head_dim, keys, chunk, positions))
    return [replace(use, chip=chip, dtype=model.compute_dtype) for use in found]


def self_attention(model: ModelConfig, platform: str, chip: str = "") -> str:
    """The name of what computes the decoder's self-attention on these devices; raises as `choose`."""
    return choose(model.attention, uses(model, platform, chip)[0]).name


def check_attention(model: ModelConfig, platform: str, chip: str = "") -> None:
    """Raises ValueError where config.model.attention is unknown, or cannot compute this model on these devices."""
    for use in uses(model, platform, chip):
        choose(model.attention, use)


@dataclass(frozen=True)
class Attend:
    """The implementation of that name for one kind of attention, on the devices of `placement`."""

    name: str
    kind: str
    placement: Placement = ONE_DEVICE

    def __call__(
        self,
        content_queries: Float[Array, "H N I S"],
        position_queries: Float[Array, "H N I S"] | None,
        keys: Float[Array, "H N J S"],
        values: Float[Array, "H N J S"],
        positions: Float[Array, "H W S"] | None,
        mask: Mask,
        distances: Distances,
    ) -> Float[Array, "H N I S"]:
        """Arguments as for `xla.attend`; raises as `choose`."""
        sizes = {"head_dim": keys.shape[3], "queries": content_queries.shape[2], "keys": keys.shape[2]}
        more = {"positions": positions is not None, "chip": self.placement.chip, "dtype": keys.dtype.name}
        use = Use(self.kind, self.placement.platform, **sizes, **more)
        found = choose(self.name, use)

        def attend(*arrays):
            return found.attend(*arrays, distances)

        attend = self.placement.a_device(attend) if found.a_device else attend
        return attend(content_queries, position_queries, keys, values, positions, mask)


def _by_matrix(content_queries, position_queries, keys, values, positions, mask, distances):
    return xla.attend(content_queries, position_queries, keys, values, positions, mask.allowed, distances)


def _flash(*arguments):
    from retro_jax.models.kernels.flash.attend import attend  # imports Pallas, which a CPU never needs

    return attend(*arguments)


def _flash_gpu(*arguments):
    from retro_jax.models.kernels.flash_gpu.attend import attend

    return attend(*arguments)


register(Implementation("xla", _by_matrix))
register(Implementation("flash", _flash, ("self",), ("tpu",), flash.refuse, a_device=True, automatic=lambda use: True))
register(
    Implementation(
        "flash_gpu", _flash_gpu, ("self",), ("gpu",), flash_gpu.refuse, a_device=True, automatic=flash_gpu.faster
    )
)
