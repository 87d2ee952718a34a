"""Checkpoints of files alone, for what looks at files: no arrays, no orbax."""

import json
from pathlib import Path

from retro_jax.run_directory.whole import NEEDED, listing, whole_path


def write_whole(directory: Path, step: int, **facts) -> Path:
    """A folder that counts as the whole checkpoint of `step`; facts replace those in run/data.json."""
    path = Path(directory) / str(step)
    for name in NEEDED:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"{name} of {step}")
    identity = {"config": {}, "fingerprints": {}}
    (path / "run" / "data.json").write_text(json.dumps({"identity": identity, "step": step, **facts}))
    (path / "_CHECKPOINT_METADATA").write_text("{}")
    whole_path(path).write_text(json.dumps(listing(path)))
    return path
