"""Every test sees 8 virtual CPU devices; warnings are errors (pyproject.toml)."""

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests import fixtures, and a few one another, by name: their folders mirror the source and are no packages.
sys.path += sorted({str(path.parent) for path in Path(__file__).parent.rglob("*.py")})
