"""The allocator setting is applied on glibc and nowhere else."""

import platform
import subprocess
import sys

from retro_jax.parallel import runtime

ASK = "from retro_jax.parallel.runtime import keep_memory; print(keep_memory())"


def ask(**environment):
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_set_on_glibc_without_accelerators():
    expected = platform.libc_ver()[0] == "glibc" and not runtime.has_accelerator_plugin()
    assert ask() == str(expected)


def test_a_users_own_tuning_is_left_alone():
    assert ask(MALLOC_ARENA_MAX="4") == "False"
    assert ask(GLIBC_TUNABLES="glibc.malloc.arena_max=4") == "False"


def test_other_c_libraries_and_accelerators_are_left_alone(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert runtime.keep_memory() is False
    monkeypatch.undo()
    monkeypatch.setattr(runtime, "has_accelerator_plugin", lambda: True)
    assert runtime.keep_memory() is False
