"""Next-token loss that never holds all logits: forward and backward pass run over blocks of the vocabulary.

At the paper's shape (256 x 2048 tokens, 128,000 entries) float32 logits would take 268 GB and their gradient as much
again. `token_nll` keeps one block of them at a time: the forward pass carries a running maximum and sum (the online
log-sum-exp), the backward pass recomputes each block from the saved log-sum-exp. The price is one more matmul with
the embedding; the memory is that of one block.

Block j holds the entries j, j + n, j + 2n, ... of n blocks, not a run of neighbors: the vocabulary axis can then be
sharded over the mesh and every device still holds its part of every block.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_nll(
    hidden: Float[Array, "B T D"], embedding: Float[Array, "V D"], targets: Int[Array, "B T"], block: int
) -> Float[Array, "B T"]:
    """Negative log likelihood in nats of every target, float32.

    Args:
      hidden: the decoder's last stream, in compute dtype; products are summed up in float32.
      embedding: the readout; cast to the dtype of `hidden`.
      targets: entries of the vocabulary; a negative one gives 0 (and no gradient).
      block: how many vocabulary entries have logits at once; 0 is all of them, kept for the backward pass.
    """
    embedding = embedding.astype(hidden.dtype)
    flat_hidden = hidden.reshape(-1, hidden.shape[-1])
    flat_targets = targets.reshape(-1)
    vocabulary = embedding.shape[0]
    if block == 0 or block >= vocabulary:
        nll = _direct_nll(flat_hidden, embedding, flat_targets)
    else:
        nll = _block_nll(-(-vocabulary // block), flat_hidden, embedding, flat_targets)
    return nll.reshape(targets.shape)


def first_choice(hidden: Float[Array, "B T D"], embedding: Float[Array, "V D"], block: int) -> Int[Array, "B T"]:
    """The entry with the largest logit at every position, the lowest of equals; arguments as for `token_nll`."""
    embedding = embedding.astype(hidden.dtype)
    flat, vocabulary = hidden.reshape(-1, hidden.shape[-1]), embedding.shape[0]
    blocks = -(-vocabulary // block) if block else 1
    table = _interleave(embedding, blocks)

    def look_at(carry, number):
        best, choice = carry
        logits, entries = _block_logits(flat, table, number, vocabulary)
        largest = logits.max(axis=1)
        first = jnp.where(logits == largest[:, None], entries, vocabulary).min(axis=1)
        better = (largest > best) | ((largest == best) & (first < choice))
        return (jnp.where(better, largest, best), jnp.where(better, first, choice)), None

    start = (jnp.full(len(flat), -jnp.inf), jnp.full(len(flat), vocabulary, jnp.int32))
    (_, choice), _ = jax.lax.scan(look_at, start, jnp.arange(blocks))
    return choice.reshape(hidden.shape[:-1])


def _direct_nll(hidden, embedding, targets):
    """[N] from all logits at once: the twin of the blocks in tests, and faster where the logits fit."""
    logits = _logits(hidden, embedding)
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, None], axis=1)[:, 0]
    return jnp.where(targets >= 0, jax.nn.logsumexp(logits, axis=1) - chosen, 0.0)


@jax.custom_vjp
def _logits(hidden, embedding):
    return jnp.einsum("nd,vd->nv", hidden, embedding, preferred_element_type=jnp.float32)


def _logits_forward(hidden, embedding):
    return _logits(hidden, embedding), (hidden, embedding)


def _logits_backward(saved, gradient):
    """Casts cotangents, because the transposed matmuls would otherwise have a float32 side."""
    hidden, embedding = saved
    gradient = gradient.astype(hidden.dtype)
    return _hidden_gradient(gradient, embedding).astype(hidden.dtype), _row_gradient(gradient, hidden).astype(
        embedding.dtype
    )


_logits.defvjp(_logits_forward, _logits_backward)


def _hidden_gradient(gradient, rows):
    return jnp.einsum("nv,vd->nd", gradient, rows, preferred_element_type=jnp.float32)


def _row_gradient(gradient, hidden):
    """[V, D]; the dummy axis makes XLA's CPU backend use the bfloat16 matrix unit, which it does not for a product
    that contracts the first axis of its left side."""
    return jnp.einsum("znv,znd->vd", gradient[None], hidden[None], preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _block_nll(blocks, hidden, embedding, targets):
    return _block_forward(blocks, hidden, embedding, targets)[0]


def _block_forward(blocks, hidden, embedding, targets):
    table, vocabulary = _interleave(embedding, blocks), embedding.shape[0]

    def add_block(carry, block):
        maximum, total, chosen = carry
        logits, entries = _block_logits(hidden, table, block, vocabulary)
        new_maximum = jnp.maximum(maximum, logits.max(axis=1))
        total = total * jnp.exp(maximum - new_maximum) + jnp.exp(logits - new_maximum[:, None]).sum(axis=1)
        chosen = chosen + jnp.where(entries == targets[:, None], logits, 0.0).sum(axis=1)
        return (new_maximum, total, chosen), None

    tokens = hidden.shape[0]
    start = (jnp.full(tokens, -jnp.inf), jnp.zeros(tokens), jnp.zeros(tokens))
    (maximum, total, chosen), _ = jax.lax.scan(add_block, start, jnp.arange(blocks))
    log_total = maximum + jnp.log(total)
    nll = jnp.where(targets >= 0, log_total - chosen, 0.0)
    return nll, (hidden, embedding, targets, log_total)


def _block_backward(blocks, saved, gradient):
    hidden, embedding, targets, log_total = saved
    table, vocabulary = _interleave(embedding, blocks), embedding.shape[0]
    weight = jnp.where(targets >= 0, gradient, 0.0)[:, None]

    def add_block(hidden_gradient, block):
        logits, entries = _block_logits(hidden, table, block, vocabulary)
        probabilities = jnp.exp(logits - log_total[:, None])
        logit_gradient = ((probabilities - (entries == targets[:, None])) * weight).astype(hidden.dtype)
        hidden_gradient = hidden_gradient + _hidden_gradient(logit_gradient, table[:, block])
        return hidden_gradient, _row_gradient(logit_gradient, hidden).astype(embedding.dtype)

    start = jnp.zeros(hidden.shape, jnp.float32)
    hidden_gradient, rows = jax.lax.scan(add_block, start, jnp.arange(blocks))
    embedding_gradient = rows.swapaxes(0, 1).reshape(-1, hidden.shape[1])[:vocabulary]
    return hidden_gradient.astype(hidden.dtype), embedding_gradient, None


_block_nll.defvjp(_block_forward, _block_backward)


def _interleave(embedding, blocks):
    """[V, D] as [entries of a block, blocks, D], padded with zeros where V is not a multiple."""
    padding = -embedding.shape[0] % blocks
    return jnp.pad(embedding, ((0, padding), (0, 0))).reshape(-1, blocks, embedding.shape[1])


def _block_logits(hidden, table, block, vocabulary):
    """Float32 logits [N, entries] of one block (-inf on the padding) and the entries' numbers [1, entries]."""
    rows = table[:, block]
    logits = jnp.einsum("nd,vd->nv", hidden, rows, preferred_element_type=jnp.float32)
    entries = (jnp.arange(table.shape[0]) * table.shape[1] + block)[None]
    return jnp.where(entries < vocabulary, logits, -jnp.inf), entries
