"""The layout of a question, its answer and its passages in a sequence (paper C.4).

    chunk         0 .. P-1                              P ..
    tokens        - - - BOS question: ... answer:       answer EOS - -
    neighbors     of chunk P-1 alone: its passages      none

The prompt is padded on the left, so that "answer:" ends chunk P - 1 (the first chunk, unless the question is longer).
Its last token is the first that reads the passages, by the shift of chunked cross-attention, and it predicts the first
token of the answer. The next M - 1 tokens read them too; the rest of a longer answer is decoded without them.

Every document of pre-training begins with BOS, and so does a prompt; the paper does not say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Int32

from retro_jax.core.dimensions import PADDING

PASSAGES = 20  # as in the paper, where more do not help (4.3)


def prompt_text(question: str) -> str:
    return f"question: {question} \n answer:"


def answer_text(answer: str) -> str:
    return f" {answer}"


def passage_text(title: str, text: str) -> str:
    return f"title: {title}, source: {text}"


def prompt_row(tokens: Sequence[int], chunk_length: int) -> Int32[np.ndarray, " P*M"]:
    """A prompt as complete chunks, padded on the left."""
    row = np.full(-(-len(tokens) // chunk_length) * chunk_length, PADDING, np.int32)
    row[len(row) - len(tokens) :] = tokens
    return row


def passage_row(tokens: Sequence[int], length: int) -> Int32[np.ndarray, " R"]:
    """A passage cut or padded to `length`."""
    row = np.full(length, PADDING, np.int32)
    cut = tokens[:length]
    row[: len(cut)] = cut
    return row


def decoded_chunks(prompt_length: int, limit: int, chunk_length: int) -> int:
    """Chunks of a sequence in which an answer of up to `limit` tokens is decoded; its last token is never read."""
    return -(-(prompt_length + limit - 1) // chunk_length)


@dataclass(frozen=True)
class Example:
    """A question with its answer, to train on."""

    tokens: Int32[np.ndarray, "T"]
    targets: Int32[np.ndarray, "T"]  # answer and EOS; -1 elsewhere
    loss_mask: Float32[np.ndarray, "T"]
    neighbor_tokens: Int32[np.ndarray, "C K R"]
    chunks: int  # with a token


def example(
    prompt: Int[np.ndarray, " P*M"],
    answer: Sequence[int],
    eos: int,
    passages: Int[np.ndarray, "K R"],
    chunk_length: int,
    chunks: int,
) -> Example | None:
    """The training example of `chunks` chunks; None where the answer does not fit.

    The loss falls on the answer's tokens and EOS. The paper does not say where it falls.
    """
    length, start = chunks * chunk_length, len(prompt)
    if start + len(answer) > length:
        return None
    tokens, targets = np.full(length, PADDING, np.int32), np.full(length, PADDING, np.int32)
    whole = np.concatenate([prompt, answer, [eos]])[:length]
    tokens[: len(whole)] = whole
    targets[start - 1 : start + len(answer)] = [*answer, eos]
    neighbors = np.full((chunks, *passages.shape), PADDING, np.int32)
    neighbors[start // chunk_length - 1] = passages
    used = -(-len(whole) // chunk_length)
    return Example(tokens, targets, (targets != PADDING).astype(np.float32), neighbors, used)
