"""The compute dtype of a database's embeddings: chosen once, recorded by the stage, used by all that embeds for it later.

choose_dtype(config.encoder_dtype, embeddings)      for the stage itself: what it records, else by config and device
require_dtype(config.encoder_dtype, embeddings)     for a query: what the finished stage records
"""

from pathlib import Path

from data_pipeline.stages.engine import current_engine
from data_pipeline.stages.run import StageError, read_manifest, read_plan, something_made
from retro_jax.core.files import DamagedFile, read_json

STAGE = "embeddings"
AUTO = "auto"
CPUINFO = Path("/proc/cpuinfo")
UNITS = ("avx512_bf16", "amx_bf16")  # of x86, as Linux names them; other processors emulate bfloat16 by float32


def fastest_dtype() -> str:
    """bfloat16 where the device multiplies it faster: accelerators, and processors with units for it; else float32.

    The device is that of this process, or the accelerators that a Ray build was given.
    """
    import jax

    if current_engine().accelerated or jax.default_backend() != "cpu":
        return "bfloat16"
    flags = CPUINFO.read_text(encoding="utf-8").split() if CPUINFO.exists() else ()
    return "bfloat16" if any(unit in flags for unit in UNITS) else "float32"


def recorded_dtype(embeddings: Path) -> str | None:
    """What the stage in this directory, begun or finished, was made with; None where it holds no record."""
    if (plan := read_plan(embeddings)) is not None:
        return plan["config"].get("compute_dtype")
    try:
        return read_json(embeddings / "manifest.json", "", keys=("config",))["config"].get("compute_dtype")
    except DamagedFile:
        return None


def choose_dtype(asked: str, embeddings: Path) -> str:
    """The compute dtype of a stage that is made, continued or repaired in this directory.

    Args:
      asked: config.data.encoder_dtype.

    Raises:
      StageError: vectors of another dtype than the one asked for are there.
    """
    recorded = recorded_dtype(embeddings)
    if recorded is not None and (asked == AUTO or something_made(embeddings)):
        _require(asked, recorded, embeddings)
        return recorded
    return fastest_dtype() if asked == AUTO else asked


def require_dtype(asked: str, embeddings: Path) -> str:
    """The compute dtype of a finished stage.

    Raises:
      StageError: it is not the one asked for.
    """
    recorded = read_manifest(embeddings, STAGE, verify=False).config["compute_dtype"]
    _require(asked, recorded, embeddings)
    return recorded


def _require(asked: str, recorded: str, embeddings: Path) -> None:
    if asked not in (AUTO, recorded):
        raise StageError(
            f"A database is embedded with one dtype, but config.data.encoder_dtype={asked} was asked for and {embeddings} "
            f"was made with {recorded}. Nothing was changed. Take config.data.encoder_dtype={AUTO}, which is the recorded "
            f"one, or build in another --workdir."
        )
