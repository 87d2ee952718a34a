"""The accelerators that a run can be planned for, by name of a slice: `v5p:8x8x4`, `h100:8`, `cpu:8`.

Figures are the makers' published ones for a device. A JAX device is one chip, on v4 and v5p too, whose two
cores act as one ("megacore"). TPU memory is what the compiler lets a program use, which is a little below the chip's.
"""

import difflib
import math
import os
import re
from dataclasses import dataclass

GIB = 2**30


# Float32 score matrices of one layer's attention that a step's program holds at once, for the estimate of its memory,
# where no compiler could be asked.
LIVE_SCORES = 24


@dataclass(frozen=True)
class Chip:
    """One kind of device. Rates are per second and device."""

    name: str
    dimensions: int  # of a slice's name: 3 for 8x8x4, 2 for 16x16, 1 for a plain count
    memory_gib: float  # what a program may use
    peak_flops: float  # bfloat16 products with float32 sums; 0: not known
    memory_bandwidth: float  # bytes
    link_bandwidth: float  # bytes out of the device over all its links, one way
    compiles: bool = True  # whether a compiler for it works without it
    live_scores: int = (
        LIVE_SCORES  # fitted to the compiler's figures in docs/measured/scaling.md; within a quarter for most sizes. Of GPUs to
        # five programs of 172m compiled on an H100 (docs/decisions/model.md)
    )

    @property
    def platform(self) -> str:
        """The kind of device, as JAX names it."""
        return "cpu" if self.name == "cpu" else "gpu" if self.name in GPUS else "tpu"

    @property
    def device_kind(self) -> str:
        """The model of the device, as JAX names it; empty for a CPU."""
        tpus = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
        return {**tpus, "a100": "NVIDIA A100-SXM4-80GB", "h100": "NVIDIA H100 80GB HBM3"}.get(self.name, "")

    def slice_name(self) -> str:
        return self.name + ":" + {1: "8", 2: "16x16", 3: "8x8x4"}[self.dimensions]


CHIPS = {
    chip.name: chip
    for chip in (
        # Cloud TPU documentation, "TPU v4": 275 TFLOP/s, 32 GiB at 1,228 GB/s, a 3D torus of six links of 50 GB/s.
        Chip("v4", 3, 30.75, 275e12, 1.228e12, 300e9, live_scores=16),
        # "TPU v5e": 197 TFLOP/s, 16 GB at 819 GB/s, a 2D torus, 400 GB/s to and fro together.
        Chip("v5e", 2, 15.75, 197e12, 0.819e12, 200e9, live_scores=40),
        # "TPU v5p": 459 TFLOP/s, 95 GB at 2,765 GB/s, a 3D torus, 4,800 Gbit/s.
        Chip("v5p", 3, 95.74, 459e12, 2.765e12, 600e9, live_scores=16),
        # "TPU v6e": 918 TFLOP/s, 32 GB at 1,638 GB/s, a 2D torus, 800 GB/s to and fro together.
        Chip("v6e", 2, 31.25, 918e12, 1.638e12, 400e9),
        # NVIDIA A100 80GB SXM data sheet: 312 TFLOP/s dense, 2,039 GB/s, NVLink 600 GB/s to and fro together.
        Chip("a100", 1, 74.5, 312e12, 2.039e12, 300e9, compiles=False, live_scores=7),
        # NVIDIA H100 SXM data sheet: 989 TFLOP/s dense, 80 GB at 3,350 GB/s, NVLink 900 GB/s to and fro together.
        Chip("h100", 1, 74.5, 989e12, 3.35e12, 450e9, compiles=False, live_scores=7),
        # Virtual devices on this machine: they share its memory, and their speed is not known.
        Chip("cpu", 1, 0.0, 0.0, 0.0, 0.0),
    )
}
GPUS = ("a100", "h100")
GPUS_A_BOX = 8
NETWORK = 50e9  # bytes a second out of a GPU to another box: 400 Gbit/s InfiniBand, one adapter a GPU


@dataclass(frozen=True)
class Topology:
    """A slice of devices of one kind."""

    chip: Chip
    sizes: tuple[int, ...]

    @property
    def devices(self) -> int:
        return math.prod(self.sizes)

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.sizes))}"

    @property
    def word(self) -> str:
        """The name as a word of a config's argument: no colon."""
        return self.name.replace(":", "-")

    @property
    def memory_gib(self) -> float:
        """Memory that one device's program may use; virtual CPU devices share this machine's."""
        if self.chip.name != "cpu":
            return self.chip.memory_gib
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB / self.devices

    def link_bandwidth(self, span: int) -> float:
        """Bytes a second out of a device that talks within groups of `span` neighbors: GPUs beyond a box by network."""
        return NETWORK if self.chip.name in GPUS and span > GPUS_A_BOX else self.chip.link_bandwidth


def parse_topology(name: str) -> Topology:
    """The topology of `v5p:8x8x4`, `v5e:16x16`, `h100:8`, `cpu:8` (or with '-' for ':').

    Raises:
      ValueError: a device that is not known, or sizes of another form.
    """
    kind, _, sizes = name.lower().replace("-", ":").partition(":")
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1)
        hint = f" (did you mean {CHIPS[near[0]].slice_name()}?)" if near else ""
        known = ", ".join(chip.slice_name() for chip in CHIPS.values())
        raise ValueError(f"--topology={name} is not known{hint}; take a slice, of any size, of: {known}.")
    chip = CHIPS[kind]
    if not re.fullmatch("x".join([r"[1-9]\d*"] * chip.dimensions), sizes):
        raise ValueError(
            f"--topology={name}: a slice of {kind} has {chip.dimensions} positive size(s), as in {chip.slice_name()}."
        )
    return Topology(chip, tuple(int(size) for size in sizes.split("x")))
