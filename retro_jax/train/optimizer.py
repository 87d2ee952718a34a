"""AdamW with the paper's schedule (C.1), and the split into trained and frozen parameters.

Weight decay covers matrices (kernels and embeddings), not norms and position biases, as is usual; the paper does not
say. Gradients are first clipped to a global norm; the paper does not say either, Gopher clips at 1.
Parameters that do not train have neither gradient nor moments: the optimizer never sees them.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from retro_jax.config import TrainConfig, check_schedule

UNDECAYED = (
    *("norm", "memory_norm", "final_norm", "query_norm", "key_norm"),
    *("content_bias", "position_bias", "query_bias", "key_bias", "value_bias", "update_gate"),
)


def schedule(train: TrainConfig) -> Callable:
    """Learning rate by step: a line from `initial_learning_rate` at step 0 to the peak at step `warmup_steps`, then a
    cosine down to `final_fraction` of the peak at the last step, `steps - 1`.

    Raises:
      ValueError: the warm-up does not rise to the peak before the last step.
    """
    check_schedule(train)
    first, peak, last = train.initial_learning_rate, train.learning_rate, max(train.steps - 1, 1)

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        rising = first + (peak - first) * step / max(train.warmup_steps, 1)
        done = jnp.clip((step - train.warmup_steps) / max(last - train.warmup_steps, 1), 0.0, 1.0)
        falling = peak * (train.final_fraction + (1.0 - train.final_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * done)))
        return jnp.where(step < train.warmup_steps, rising, falling)

    return rate


def make_optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """AdamW over the trainable parameters. Its state holds two moments shaped like them, and step counts."""
    return optax.chain(
        # Both have an empty state, so a checkpoint fits either. Clipping to a norm of 0 would make every gradient 0.
        optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity(),
        optax.adamw(
            schedule(train),
            b1=train.beta1,
            b2=train.beta2,
            eps=train.epsilon,
            weight_decay=train.weight_decay,
            mask=decayed,
        ),
    )


def decayed(params: Mapping) -> dict:
    """True at the leaves with weight decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in UNDECAYED, params)


def group(path: tuple[str, ...]) -> str:
    """The part of the model that the parameter at `path` belongs to: "encoder", "cca" or "decoder"."""
    return {"encoder": "encoder", "cross_attention": "cca"}.get(path[0], "decoder")


def split_trainable(params: Mapping, trainable: str) -> tuple[dict, dict]:
    """(what trains, what is frozen) of "all" or "retrieval" (encoder and CCA); `join` is the inverse."""
    flat = flatten_dict(params)
    chosen = {path: leaf for path, leaf in flat.items() if trainable == "all" or group(path) != "decoder"}
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten_dict(chosen), unflatten_dict(rest)


def join(trained: Mapping, frozen: Mapping) -> dict:
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))
