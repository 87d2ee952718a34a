"""A tensor in a file: its name, shape and type, and a way to read some rows of it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
ROWS = 1 << 24  # numbers that are looked at at once
SHOWN = 5  # names in a message
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Tensor:
    """A stored tensor.

    Attributes:
      read: the rows [start, stop) of the first axis as an array of floats; a view where the file allows it.
    """

    path: Path
    name: str
    dtype: str  # F32, F16, BF16, or a quantization
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]

    def all(self) -> np.ndarray:
        return self.read(0, self.shape[0])

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, some at a time."""
        rows = max(1, ROWS * self.shape[0] // max(1, int(np.prod(self.shape))))
        for start in range(0, self.shape[0], rows):
            yield self.read(start, min(start + rows, self.shape[0]))


def refuse_pointer(path: Path) -> None:
    """Raises ValueError where a file is only a Git LFS pointer to the real one."""
    with open(path, "rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ValueError(f"{path} is a Git LFS pointer, not the file: fetch it with `git lfs pull`.")


def check_finite(tensors: Iterable[Tensor]) -> None:
    """Raises ValueError for the first tensor with infinities or NaN; reads every number once."""
    for tensor in tensors:
        bad = sum(int(np.count_nonzero(~np.isfinite(block.astype(np.float32)))) for block in tensor.blocks())
        if bad:
            half = (
                " Float16 ends at 65,504: the checkpoint was cut when it was converted."
                if tensor.dtype == "F16"
                else ""
            )
            raise ValueError(
                f"{tensor.path} has {bad:,} numbers in {tensor.name} ({tensor.dtype}) that are infinite or not a number."
                f"{half} Fetch the model in float32 or bfloat16."
            )


def shown(names: Iterable[str]) -> str:
    """Some of these names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
