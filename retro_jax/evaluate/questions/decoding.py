"""Greedy answers of a batch of questions in one compiled call, on the mesh and with the shardings of training.

One forward pass for each token, as in `retro_jax.generate.sampling`, over the prompt and the few chunks that an answer
may take.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from retro_jax.config import ModelConfig
from retro_jax.core.dimensions import PADDING, check_ids
from retro_jax.evaluate.questions.layout import decoded_chunks
from retro_jax.models.loss import first_choice
from retro_jax.models.retro import merge
from retro_jax.parallel.on_mesh import OnMesh
from retro_jax.parallel.sharding import Mesh, pin_stream, place_whole, replicated

OTHER = "The questions come from another tokenizer: join them to the data that the model was trained with."


class Decoder:
    """The compiled decoding of one model.

    Args:
      params: placed on the mesh.
      stops: tokens that end an answer.
      limit: tokens of an answer at most, with the one that ends it.
    """

    def __init__(self, config: ModelConfig, params: dict, stops: Bool[np.ndarray, "V"], limit: int, mesh: Mesh):
        if len(stops) != config.vocabulary:
            raise ValueError(
                f"config.model.vocabulary={config.vocabulary}, but the tokenizer has {len(stops)}. {OTHER}"
            )
        self._config, self._params, self._stops, self._mesh = config, params, np.asarray(stops), mesh
        self._run = jax.jit(partial(decode, config, mesh, limit), out_shardings=replicated(mesh))

    def start(self, prompts: Int[np.ndarray, "B P*M"], passages: Int[np.ndarray, "B K R"] | None) -> Int[Array, "B L"]:
        """Sends a batch to the devices and returns without waiting.

        Answers are padded with -1. A row of -1 is padding of the batch.

        Args:
          passages: None skips retrieval.

        Raises:
          ValueError: a token that the model has no row for.
        """
        for what, table in (("Tokens of questions", prompts), ("Tokens of passages", passages)):
            if table is not None:
                check_ids(f"{what}, config.model.vocabulary", table, self._config.vocabulary, OTHER)
        placed = None if passages is None else place_whole(passages, self._mesh)
        return self._run(self._params, self._stops, place_whole(prompts, self._mesh), placed)


def decode(
    config: ModelConfig,
    mesh: Mesh,
    limit: int,
    params: dict,
    stops: Bool[Array, "V"],
    prompts: Int[Array, "B P*M"],
    passages: Int[Array, "B K R"] | None,
) -> Int[Array, "B L"]:
    """The function that `Decoder` compiles: the most likely token, until all rows have met one of `stops`."""
    (batch, start), length = prompts.shape, config.chunk_length
    chunks = decoded_chunks(start, limit, length)
    asked = prompts[:, -1:] != PADDING
    segments = jnp.broadcast_to(jnp.where(asked, 0, PADDING), (batch, chunks))
    neighbors = None
    if passages is not None and config.retrieves:
        none = jnp.full((batch, chunks, *passages.shape[1:]), PADDING, passages.dtype)
        neighbors = none.at[:, start // length - 1].set(passages)

    def unfinished(carry):
        _, done, number = carry
        return (number < limit) & ~done.all()

    def add_token(carry):
        answers, done, number = carry
        both = jnp.concatenate([prompts, answers], axis=1)
        tokens = jnp.pad(both, ((0, 0), (0, length)), constant_values=PADDING)[:, : chunks * length]
        model = merge(config, params)
        hidden = pin_stream(model.hidden(tokens, segments, neighbors, OnMesh(mesh)), mesh)
        last = jax.lax.dynamic_slice_in_dim(hidden, start - 1 + number, 1, axis=1)
        choice = jnp.where(done, PADDING, first_choice(last, model.readout, config.loss_block)[:, 0])
        answers = jax.lax.dynamic_update_slice_in_dim(answers, choice[:, None], number, axis=1)
        return answers, done | stops[jnp.maximum(choice, 0)], number + 1

    answers = jnp.full((batch, limit), PADDING, prompts.dtype)
    return jax.lax.while_loop(unfinished, add_token, (answers, ~asked[:, 0], 0))[0]
