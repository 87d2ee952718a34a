"""`config.train`: optimizer, schedule, cadence and the device mesh."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from retro_jax.config.settings import (
    INT32,
    SEED,
    TEXT,
    Named,
    Number,
    above,
    at_least,
    between,
    one_of,
    section,
    setting,
)

AXIS = Number(1, INT32, also=-1)
SHARE = between(0, 1)
MOMENT = Number(0, 1, below=True)


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh axes; one may be -1 and takes the remaining devices."""

    data: int = setting(-1, AXIS, "Copies of the parameters; -1 takes the remaining devices.")
    fsdp: int = setting(1, AXIS, "Parts that parameters are cut into along the width; -1 takes the remaining devices.")
    tensor: int = setting(1, AXIS, "Parts that heads and vocabulary are cut into; -1 takes the remaining devices.")


@dataclass(frozen=True)
class TrainConfig:
    """Optimizer, schedule and cadence. Defaults are the paper's (C.1) where it states them."""

    steps: int = setting(800_000, between(1, INT32), "Optimizer steps of the run.")
    batch: int = setting(256, between(1, INT32), "Sequences a step, over all devices and accumulation steps.")
    accumulation: int = setting(1, between(1, INT32), "Parts of a batch that are computed one after the other.")
    learning_rate: float = setting(2e-4, above(0), "Peak learning rate, reached at warmup_steps.")
    initial_learning_rate: float = setting(1e-7, at_least(0), "Learning rate at step 0, before the warm-up.")
    warmup_steps: int = setting(750, at_least(0), "Steps of linear warm-up; 0 starts at the peak.")
    final_fraction: float = setting(0.1, SHARE, "Learning rate at the last step, as a share of the peak.")
    weight_decay: float = setting(0.1, at_least(0), "Decoupled weight decay of matrices; 0 turns it off.")
    beta1: float = setting(0.9, MOMENT, "AdamW's decay rate of the first moment.")
    beta2: float = setting(0.95, MOMENT, "AdamW's decay rate of the second moment.")
    epsilon: float = setting(1e-8, above(0), "AdamW's epsilon, added to the root of the second moment.")
    clip_norm: float = setting(1.0, at_least(0), "Gradients are clipped to this global norm; 0 turns clipping off.")
    seed: int = setting(0, SEED, "Seed of the initial parameters and of the order of sequences.")
    subset_weights: Mapping[str, float] = setting(
        {}, Named(at_least(0)), "Share of each subset among the sequences; {} draws them as the shards hold them."
    )
    initialize_from: str = setting(
        "",
        TEXT,
        "Run directory whose weights are loaded before step 0: of a baseline the decoder (retrofit), of a RETRO model all "
        "(fine-tuning); empty: none.",
    )
    trainable: str = setting(
        "all", one_of("all", "retrieval"), "What trains; retrieval: only encoder and CCA (retrofit, paper 4.2)."
    )
    mesh: MeshConfig = section(MeshConfig, "The device mesh.")
    log_every: int = setting(10, at_least(1), "Steps between lines of metrics.")
    checkpoint_every: int = setting(1000, at_least(1), "Steps between checkpoints.")
    keep_checkpoints: int = setting(0, at_least(0), "How many of the newest checkpoints are kept; 0 keeps all.")
    keep_also: Mapping[str, int] = setting(
        {},
        Named(at_least(1)),
        "Checkpoints kept besides the newest, a number for each policy: latest (how many), every (multiples of so many "
        "steps), best (how many with the lowest keep_metric).",
    )
    keep_metric: str = setting(
        "validation_loss_on",
        one_of("validation_loss_on", "validation_loss_off", "validation_loss_random", "loss", "bpb"),
        "Metric of keep_also.best; the lowest is the best.",
    )
    retrieval_check_every: int = setting(
        500, at_least(0), "Steps between validation losses with On, Off and random neighbors; 0 turns them off."
    )
    retrieval_alarm_checks: int = setting(
        3, at_least(1), "An alarm is logged when On is no better than random neighbors in this many checks in a row."
    )
    on_spike: str = setting(
        "none",
        one_of("none", "skip", "roll_back"),
        "What follows a spike of the gradient norm: nothing, that update is skipped, or the run returns to the last "
        "checkpoint and leaves the batches out.",
    )
    spike_factor: float = setting(
        10.0, above(1), "A spike is a gradient norm above so many times the median of spike_window steps."
    )
    spike_window: int = setting(128, between(1, INT32), "Steps whose median gradient norm a spike is measured by.")
    stall_seconds: float = setting(
        600.0, at_least(0), "Seconds without progress after which phase, host and stacks are printed; 0 turns it off."
    )
    wandb_project: str = setting("", TEXT, "Weights & Biases project beside metrics.jsonl (extra [wandb]); empty: off.")
    peak_flops: float = setting(
        0.0, at_least(0), "FLOP/s a device, for the model FLOP utilization; 0 measures a matmul at the start."
    )


def check_train(train: TrainConfig) -> None:
    """Raises ValueError where schedule, batch or mesh, each value in its range, do not fit together."""
    if train.batch % train.accumulation:
        raise ValueError(
            f"Accumulation cuts a batch into equal parts, but config.train.batch={train.batch} is not a multiple of "
            f"config.train.accumulation={train.accumulation}; take a batch of {train.batch // train.accumulation * train.accumulation or train.accumulation}."
        )
    check_schedule(train)
    if train.subset_weights and not any(train.subset_weights.values()):
        raise ValueError("config.train.subset_weights are all 0; give at least one subset a positive weight.")
    if train.keep_also and not train.keep_checkpoints:
        raise ValueError(
            f"config.train.keep_checkpoints=0 keeps every checkpoint, so config.train.keep_also={dict(train.keep_also)} "
            f"would change nothing; set keep_checkpoints to 1 or more."
        )
    sizes = dataclasses.asdict(train.mesh)
    if sum(size == -1 for size in sizes.values()) > 1:
        raise ValueError(
            f"At most one size of config.train.mesh is -1 (the rest of the devices), but they are {sizes}."
        )


def check_schedule(train: TrainConfig) -> None:
    """Raises ValueError where the warm-up does not rise to the peak before the last step."""
    if train.warmup_steps >= train.steps - 1 and train.warmup_steps > 0:
        raise ValueError(
            f"The learning rate peaks before the last step, but config.train.warmup_steps={train.warmup_steps} and "
            f"config.train.steps={train.steps}; take at most {max(train.steps - 2, 0)} warm-up steps."
        )
    if train.warmup_steps and train.initial_learning_rate > train.learning_rate:
        raise ValueError(
            f"The warm-up rises to the peak, but config.train.initial_learning_rate={train.initial_learning_rate:g} is "
            f"above config.train.learning_rate={train.learning_rate:g}; lower the first, or take "
            f"config.train.warmup_steps=0."
        )
