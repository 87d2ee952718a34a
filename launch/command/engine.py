"""Flags of the verbs whose shards are made in this process or on a Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager

from absl import flags

FLAGS = ("engine", "address", "accelerator")


def define_flags(
    values: flags.FlagValues, where: str = "where shards are made", asked: str = "what a Ray actor embeds on"
) -> None:
    define = flags.DEFINE_enum
    define("engine", "process", ("process", "ray"), f"{where}: here, or on a Ray cluster", flag_values=values)
    define("accelerator", "none", ("none", "gpu", "tpu"), asked, flag_values=values)
    flags.DEFINE_string(
        "address", "auto", "HOST:PORT of the Ray cluster's head (docs/guides/build_on_ray.md)", flag_values=values
    )


def check_flags(values: flags.FlagValues) -> None:
    """Raises ValueError where a flag of Ray would be ignored."""
    given = {name for name in FLAGS if values[name].value != values[name].default}
    if values.engine == "process" and given & {"address", "accelerator"}:
        raise ValueError(
            f"--address={values.address} and --accelerator={values.accelerator} are of --engine=ray, but --engine=process; "
            "add --engine=ray, or leave them out (in this process jax takes the accelerator it finds)."
        )


@contextmanager
def chosen_engine(values: flags.FlagValues, lock) -> Iterator[None]:
    """Stages run inside of the `with` use the engine of the flags.

    Args:
      lock: the BuildLock that is held.
    """
    if values.engine == "process":
        yield
        return
    from data_pipeline.stages.engine import using
    from data_pipeline.stages.ray import RayEngine

    with RayEngine(values.address, lock, values.accelerator) as engine, using(engine):
        yield
