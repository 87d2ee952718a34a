"""Every test sees 8 virtual CPU devices; warnings are errors (pyproject.toml); compilations are kept for the next run."""

import os
import signal
import sys
from pathlib import Path

import pytest

# A shell starts a background job with SIGINT ignored, nohup one with SIGHUP ignored, and every child inherits that: tests that
# send them would wait forever.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)
HERE = Path(__file__).parent
DEVICES = "--xla_force_host_platform_device_count=8"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):  # a worker has it from the process that started it
    os.environ["XLA_FLAGS"] = f"{DEVICES} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests import fixtures, and a few one another, by name: their folders mirror the source and are no packages.
sys.path += sorted({str(path.parent) for path in HERE.rglob("*.py")})
sys.path.append(str(HERE.parent / "benchmarks" / "study"))  # its modules import one another in the same way

from compilation_cache import close_session, open_session  # noqa: E402
from cpu_seconds import function, pytest_runtest_protocol, slow_tests  # noqa: E402, F401

session = open_session(HERE.parent / ".cache" / "jax")


def pytest_addoption(parser):
    parser.addoption(
        "--cpu-seconds", metavar="FILE", help="append each test's processor seconds (fixtures/cpu_seconds.py)"
    )
    parser.addoption("--fast", action="store_true", help="leave out what tests/slow_tests.txt names")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--fast"):
        slow = slow_tests()
        left_out = [item for item in items if function(item.nodeid) in slow]
        items[:] = [item for item in items if function(item.nodeid) not in slow]
        config.hook.pytest_deselected(items=left_out)


def pytest_unconfigure():
    if session is not None:
        close_session(session)


@pytest.fixture(scope="module")
def on_one_device():
    """`retro evaluate` in this process runs on one of the virtual devices: it compiles faster. Meshes are tested in
    test_evaluate_processes.py and test_scoring.py."""
    from one_device import one_device

    from retro_jax.evaluate import models

    def alone(config):
        assert config.data and config.fsdp and config.tensor  # read, as a mesh of all devices would
        return one_device()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "make_mesh", alone)
        yield
