"""Every test sees 8 virtual CPU devices; warnings are errors (pyproject.toml)."""

import os
import sys
from pathlib import Path

import pytest

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests import fixtures, and a few one another, by name: their folders mirror the source and are no packages.
sys.path += sorted({str(path.parent) for path in Path(__file__).parent.rglob("*.py")})


@pytest.fixture(scope="module")
def on_one_device():
    """`retro evaluate` in this process runs on one of the virtual devices: it compiles faster. Meshes are tested in
    test_evaluate_processes.py and test_scoring.py."""
    import jax

    from retro_jax.config import MeshConfig
    from retro_jax.evaluate import evaluation

    make_mesh = evaluation.make_mesh

    def alone(config):
        assert config.data and config.fsdp and config.tensor  # read, as a mesh of all devices would
        return make_mesh(MeshConfig(data=1), jax.devices()[:1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "make_mesh", alone)
        yield
