"""Settings of a process that must be made before jax starts."""

import ctypes
import importlib.util
import os
import platform

# glibc's mallopt parameters (malloc.h).
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
KEEP_EVERYTHING = 2**31 - 1


def keep_memory() -> bool:
    """Makes glibc keep freed memory instead of returning it to the system; True if it was set.

    XLA's CPU backend frees its buffers after every step, and glibc returns large ones at once: each step then faults
    all its pages in again. One arena, no mapped blocks and no trimming take a quarter off the CPU time of a small step, for
    about twice the resident memory (docs/decisions/model.md). It must come before jax makes its threads. It changes nothing for
    other C libraries, machines with an accelerator, and users who tune the allocator themselves.
    """
    tuned = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if tuned or platform.libc_ver()[0] != "glibc" or has_accelerator_plugin():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, KEEP_EVERYTHING), (ARENA_MAX, 1))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])


def has_accelerator_plugin() -> bool:
    """Whether jax could run on something other than the CPU here."""
    return any(importlib.util.find_spec(name) is not None for name in ("jax_plugins", "libtpu"))
