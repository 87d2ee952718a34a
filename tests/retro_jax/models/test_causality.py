"""Which outputs may depend on which inputs: every token and every retrieval is perturbed by itself (paper 2.4).

All perturbations of a kind run as one batch, row by row beside the same number of unperturbed rows: the two runs are
one compiled program, so "unchanged" means bit for bit. Two documents of three chunks and more are packed:

    chunk      0     1     2    |  3     4     5     6
    tokens     0-3   4-7   8-10 |  12-15 16-19 20-23 24-27      (m = 4; position 11 is padding)
"""

import numpy as np
import pytest
from tiny_model import compiled, pack, random_parameters, tiny

from retro_jax.core.dimensions import PADDING

CONFIG = tiny(sequence_length=28)
M, T, C = CONFIG.chunk_length, CONFIG.sequence_length, CONFIG.chunks
PARAMETERS = random_parameters(CONFIG)
PACKED = pack(CONFIG, [11, 16], neighbors=2)
DOCUMENT = np.repeat(PACKED.segments, M)  # of every position
REAL = PACKED.tokens != PADDING
VISIBLE = 1e-4  # the smallest change of a logit that counts as one; logits here are of size 10


def test_every_token_acts_on_itself_and_what_follows_in_its_document():
    """Guards against a token that changes logits before it, also through the encoder's view of the chunk (H_u), with RET fixed."""
    positions = np.flatnonzero(REAL)
    before, after = PACKED.batch(len(positions)), PACKED.batch(len(positions))
    rows = np.arange(len(positions))
    after[0][rows, positions] = (after[0][rows, positions] + 1 + rows % (CONFIG.vocabulary - 1)) % CONFIG.vocabulary
    may_change = (np.arange(T) >= positions[:, None]) & (DOCUMENT == DOCUMENT[positions, None])
    _assert_changes_exactly(before, after, may_change)


@pytest.mark.parametrize("neighbor", [0, 1])
def test_every_retrieval_acts_from_the_end_of_its_chunk_on(neighbor):
    """Guards against neighbors that act too early, too late or not at all.

    RET(C_u) changes the logits at exactly (u+1)m-1 and later, in its own document.
    So the last chunk's neighbors change its last position only, a document whose last chunk is not full (here the
    first) never uses that chunk's, and a document's first m - 1 logits, which predict tokens of its first chunk,
    depend on no retrieval. A neighbor that is missing from the data changes as one that appears.
    """
    chunks = np.arange(C)
    before, after = PACKED.batch(C), PACKED.batch(C)
    drawn = np.random.default_rng(1).integers(0, CONFIG.vocabulary, (C, 2 * M))
    after[2][chunks, chunks, neighbor] = (drawn + (drawn == PACKED.neighbor_tokens[:, neighbor])) % CONFIG.vocabulary
    may_change = (np.arange(T) >= (chunks[:, None] + 1) * M - 1) & (DOCUMENT == PACKED.segments[:, None])
    assert (may_change & REAL).sum(axis=1).tolist() == [8, 4, 0, 13, 9, 5, 1]
    _assert_changes_exactly(before, after, may_change)


def test_prefix_logits_equal_full_logits():
    """Guards against prefixes with other logits.

    For every n in 1..3m, cut at n and padded, the first n logits stay bit for bit.
    """
    packed = pack(CONFIG, [3 * M], neighbors=2)
    lengths = np.arange(1, 3 * M + 1)
    full, cut = packed.batch(len(lengths)), packed.batch(len(lengths))
    gone = np.arange(T) >= lengths[:, None]
    cut[0][gone] = PADDING
    gone_chunks = np.arange(C) * M >= lengths[:, None]
    cut[1][gone_chunks], cut[2][gone_chunks] = PADDING, PADDING
    expected, got = _logits(full), _logits(cut)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[~gone], expected[~gone])


@pytest.mark.parametrize("chunks", [1, 2])
def test_shorter_sequences_give_the_same_logits(chunks):
    """Guards against a fixed number of chunks. The model takes any; only rounding may differ between the two shapes."""
    full = PACKED.batch()
    short = (full[0][:, : chunks * M], full[1][:, :chunks], full[2][:, :chunks])
    got, expected = _logits(short), _logits(full)[:, : chunks * M]
    assert np.abs(got - expected)[:, REAL[: chunks * M]].max() < 1e-5 * np.abs(expected).max()


def test_tokens_do_not_fill_a_part_of_a_chunk():
    tokens, segments, neighbors = PACKED.batch()
    with pytest.raises(ValueError, match="whole number of chunks.*pad them with -1"):
        _logits((tokens[:, :-1], segments, neighbors))


def test_documents_do_not_depend_on_how_they_are_packed():
    """A document alone, and behind another one: the same logits, retrieval and positions included."""
    alone = [array[:, -size:] for array, size in zip(PACKED.batch(), (16, 4, 4), strict=True)]
    got, expected = _logits(alone), _logits(PACKED.batch())[:, -16:]
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def _logits(inputs):
    return np.asarray(compiled(CONFIG)(PARAMETERS, *inputs))


def _assert_changes_exactly(before, after, may_change):
    """Real logits change visibly where they may; everywhere else nothing changes, in the last bit."""
    expected, got = _logits(before), _logits(after)
    change = np.abs(got - expected).max(axis=-1)
    must_change = may_change & REAL
    assert change[must_change].min() > VISIBLE, np.argwhere(must_change & (change <= VISIBLE))
    wrong = np.argwhere((change > 0) & ~may_change)
    assert not len(wrong), f"(perturbation, position) pairs that must not depend: {wrong.tolist()}"
