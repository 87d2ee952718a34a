"""The compiled training step, and the loss that it shares with evaluation.

Accumulation is by sums: the number of counted targets of the whole batch is known beforehand, every micro-batch adds
its sum of losses divided by it, and so the gradient is that of the large batch, however the counts fall.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from retro_jax.config import ModelConfig, RunConfig
from retro_jax.data.batches import Batch
from retro_jax.models.loss import token_nll
from retro_jax.models.retro import merge
from retro_jax.parallel.on_mesh import OnMesh
from retro_jax.parallel.sharding import Mesh, pin_parameters, pin_stream, replicated
from retro_jax.train.optimizer import group, join, split_trainable
from retro_jax.train.state import TrainState, state_shardings

GROUPS = ("encoder", "cca", "decoder")
NO_LIMIT = np.float32(np.inf)


def batch_nll(
    config: ModelConfig, params: dict, batch: Batch, neighbor_tokens: Array | None, mesh: Mesh
) -> Float[Array, "B T"]:
    """Loss of every token in nats; `neighbor_tokens` None is Retro[Off] (and the baseline)."""
    model = merge(config, params)
    hidden = model.hidden(batch.tokens, batch.segments, neighbor_tokens, OnMesh(mesh))
    targets = jnp.where(batch.loss_mask > 0, batch.targets, -1)
    with jax.named_scope("readout"):
        return token_nll(pin_stream(hidden, mesh), model.readout, targets, config.loss_block)


def make_train_step(
    run: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh, token_bytes: Int[np.ndarray, "V"]
) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
    """The compiled step: (state, batch, limit) -> (state, sums). The state given is donated: its arrays are gone then.

    With config.train.on_spike="skip", a gradient norm above `limit` (a scalar, infinite where left out) leaves
    parameters and moments unchanged, bit for bit; step and learning rate advance.

    The sums (float32 scalars): `nll` nats and `tokens` over counted targets; `text_nll` and `bytes` over those of them
    that stand for text (a document's end has a loss but no bytes); `grad_norm`, `grad_norm_GROUP`, before clipping;
    `skipped`, 1 where the update was skipped.
    """
    table = jnp.asarray(token_bytes, jnp.float32)

    def micro_loss(trained, frozen, batch, total):
        neighbors = batch.neighbor_tokens if run.model.retrieves else None
        nll = batch_nll(run.model, join(trained, frozen), batch, neighbors, mesh)
        lengths = table[jnp.maximum(batch.targets, 0)] * batch.loss_mask
        sums = {"nll": nll.sum(), "text_nll": (nll * (lengths > 0)).sum(), "bytes": lengths.sum()}
        return nll.sum() / total, sums

    def gradients(trained, frozen, batch, total):
        def compute(*arguments):
            grads, sums = jax.grad(micro_loss, has_aux=True)(*arguments)
            return pin_parameters(grads, mesh), sums

        if run.train.accumulation == 1:
            return compute(trained, frozen, batch, total)
        parts = jax.tree.map(lambda array: _micro_batches(array, run.train.accumulation), batch)
        first = jax.tree.map(lambda array: array[0], parts)
        grads, sums = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(compute, trained, frozen, first, total)
        )

        def add(carry, part):
            return jax.tree.map(jnp.add, carry, compute(trained, frozen, part, total)), None

        return jax.lax.scan(add, (pin_parameters(grads, mesh), sums), parts)[0]

    def step(state, batch, limit=NO_LIMIT):
        trained, frozen = split_trainable(state.params, run.train.trainable)
        tokens = batch.loss_mask.sum()
        grads, sums = gradients(trained, frozen, batch, jnp.maximum(tokens, 1.0))
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, trained)
            updated, norms = optax.apply_updates(trained, updates), gradient_norms(grads)
        skipped = norms["grad_norm"] > limit  # never true of NaN: the loop stops on that
        if run.train.on_spike == "skip":
            updated, opt_state = _unless(skipped, (trained, state.opt_state), (updated, opt_state))
        sums = sums | {"tokens": tokens, "skipped": skipped.astype(jnp.float32)} | norms
        return TrainState(state.step + 1, join(updated, frozen), opt_state), sums

    out_shardings = (state_shardings(run, optimizer, mesh), replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def _unless(skipped, before, after):
    """Selects `before` where a step is skipped, except the schedule's count: the learning rate follows the step."""

    def choose(old, new):
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        return jnp.where(skipped, old, new)

    return jax.tree.map(choose, before, after, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))


def _micro_batches(array, parts):
    """[B, ...] as [parts, B / parts, ...]; every part takes rows of every device, so no row moves."""
    return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)


def gradient_norms(grads: dict) -> dict[str, Array]:
    """`grad_norm` of everything and `grad_norm_GROUP` of the groups that train."""
    squares = {name: [] for name in GROUPS}
    for path, leaf in flatten_dict(grads).items():
        squares[group(path)].append(jnp.sum(jnp.square(leaf)))
    sums = {name: sum(terms) for name, terms in squares.items() if terms}
    norms = {f"grad_norm_{name}": jnp.sqrt(total) for name, total in sums.items()}
    return {"grad_norm": jnp.sqrt(sum(sums.values())), **norms}


def make_loss_step(config: ModelConfig, mesh: Mesh, parts: int = 1) -> Callable:
    """Compiled (params, batch, neighbor_tokens or None) -> (nats, counted targets), both summed over the batch.

    Args:
      parts: as config.train.accumulation: so many micro-batches one after the other, in the memory of one.
    """

    def loss(params, batch, neighbor_tokens):
        return batch_nll(config, params, batch, neighbor_tokens, mesh).sum(), batch.loss_mask.sum()

    def in_parts(params, batch, neighbor_tokens):
        def add(sums, part):
            return jax.tree.map(jnp.add, sums, loss(params, *part)), None

        cut = jax.tree.map(lambda array: _micro_batches(array, parts), (batch, neighbor_tokens))
        return jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), cut)[0]

    return jax.jit(loss if parts == 1 else in_parts)
