"""Schedule, decay, clipping and the split into trained and frozen parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from training_fixture import BASELINE, MODEL

from retro_jax.config import TrainConfig
from retro_jax.models.retro import abstract_model
from retro_jax.train.optimizer import decayed, group, join, make_optimizer, schedule, split_trainable

PAPER = TrainConfig(steps=800_000, warmup_steps=750, learning_rate=2e-4, final_fraction=0.1)


def test_schedule_is_the_papers():
    """Guards against another schedule. 1e-7 at 0, the peak at 750, a tenth of it at the last step, a cosine between."""
    rate = schedule(PAPER)
    middle = 750 + (799_999 - 750) / 2
    literal = {0: 1e-7, 375: (1e-7 + 2e-4) / 2, 750: 2e-4, middle: 1.1e-4, 799_999: 2e-5, 900_000: 2e-5}
    for step, value in literal.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5)


@pytest.mark.parametrize(
    "train", [PAPER, TrainConfig(steps=1000, warmup_steps=0, final_fraction=0.0), TrainConfig(steps=1, warmup_steps=0)]
)
def test_schedule_is_optax_warmup_cosine(train):
    """Ours is exact at step 0, where optax's is off by 1.5e-7 of the peak."""
    step = np.unique(np.linspace(0, train.steps + 5, 5000).astype(np.int32))
    peak = train.learning_rate
    theirs = optax.warmup_cosine_decay_schedule(
        train.initial_learning_rate, peak, train.warmup_steps, max(train.steps - 1, 1), peak * train.final_fraction
    )
    np.testing.assert_allclose(schedule(train)(step), theirs(step), rtol=1e-6, atol=2e-7 * peak)


def test_warmup_must_end_before_the_last_step():
    with pytest.raises(ValueError, match="warmup_steps=750 and config.train.steps=20; take at most 18"):
        schedule(TrainConfig(steps=20))


def test_decay_falls_on_matrices_only():
    _, params = abstract_model(MODEL)
    marks = {"/".join(path): mark for path, mark in flatten_dict(decayed(params)).items()}
    assert sorted({path.split("/")[-1] for path, mark in marks.items() if mark}) == [
        *("down", "embedding", "key", "output", "position", "query", "up", "value"),
    ]
    assert sorted({path.split("/")[-1] for path, mark in marks.items() if not mark}) == [
        *("content_bias", "final_norm", "memory_norm", "norm", "position_bias"),
    ]


def test_one_update_by_hand():
    """The first Adam update is -rate * sign(gradient); decay is added to it, and clipping comes first."""
    train = TrainConfig(
        steps=10, warmup_steps=0, learning_rate=0.5, weight_decay=0.1, clip_norm=1.0, beta1=0.0, beta2=0.0, epsilon=1.0
    )
    optimizer = make_optimizer(train)
    params = {"up": jnp.array([[2.0]]), "norm": jnp.array([2.0])}
    grads = {"up": jnp.array([[30.0]]), "norm": jnp.array([40.0])}  # norm 50, clipped to 0.6 and 0.8
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["up"], [[-0.5 * (0.6 / 1.6 + 0.1 * 2.0)]], rtol=1e-6)
    np.testing.assert_allclose(updates["norm"], [-0.5 * (0.8 / 1.8)], rtol=1e-6)


def test_retrieval_alone_trains_encoder_and_cca_and_has_no_other_moments():
    _, params = abstract_model(MODEL)
    trained, frozen = split_trainable(params, "retrieval")
    assert sorted(trained) == ["cross_attention", "encoder"]
    assert sorted(frozen) == ["embedding", "final_norm", "layers"]
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(params)
    train = dataclasses.replace(PAPER, trainable="retrieval")
    state = jax.eval_shape(make_optimizer(train).init, trained)
    held = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert held == 2 * sum(leaf.size for leaf in jax.tree.leaves(trained))


def test_every_parameter_has_a_group():
    _, params = abstract_model(MODEL)
    assert {group(path) for path in flatten_dict(params)} == {"encoder", "cca", "decoder"}
    assert {group(path) for path in flatten_dict(abstract_model(BASELINE)[1])} == {"decoder"}


def test_a_clip_norm_of_zero_turns_clipping_off():
    """Guards against clipping to a norm of 0, which makes every gradient 0."""
    base = TrainConfig(steps=10, warmup_steps=0, learning_rate=0.5, weight_decay=0.0, beta1=0.0, beta2=0.0, epsilon=1.0)
    params, grads = {"up": jnp.array([[2.0]])}, {"up": jnp.array([[30.0]])}

    def update(clip_norm):
        optimizer = make_optimizer(dataclasses.replace(base, clip_norm=clip_norm))
        state = optimizer.init(params)
        return optimizer.update(grads, state, params)[0]["up"], jax.tree.structure(state)

    off, clipped = update(0.0), update(1.0)
    np.testing.assert_allclose(off[0], [[-0.5 * 30 / 31]], rtol=1e-6)
    np.testing.assert_allclose(clipped[0], [[-0.5 * 1 / 2]], rtol=1e-6)
    assert off[1] == clipped[1]  # a checkpoint of one can be read by the other
