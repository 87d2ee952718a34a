"""Scores one set under every condition, block by block.

Each condition (conditions.py) is a forward pass over windows of T tokens (paper 5.1: half of a window is context, each text
token is scored once, the first one included). A block is read once; each condition then scores it and writes a part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from retro_jax.core.dimensions import PADDING
from retro_jax.core.progress import progress
from retro_jax.data.manifests import StageError
from retro_jax.evaluate.blocks import Block, block_ranges, open_block
from retro_jax.evaluate.conditions import Asked, Condition
from retro_jax.evaluate.overlap import overlaps
from retro_jax.evaluate.scorers import Scorer
from retro_jax.evaluate.scores import Scores, open_scores, write_plan
from retro_jax.evaluate.sets import Neighbors, TextSet
from retro_jax.parallel.agreement import on_first

AHEAD = 2  # batches in flight at the same time


@dataclass(frozen=True)
class Task:
    """One set, and everything that its scores depend on.

    Attributes:
      token_bytes: UTF-8 bytes of each token of the vocabulary.
      chunks: C, the chunks of a window.
      overlap: share of a window that is context only.
      k: neighbors that the model reads, unless a condition has its own number.
      batch: sequences of a forward pass; the last one is padded.
      seed: of the random and shuffled neighbors.
      overlap_neighbors: stored neighbors that r(C) is computed from (paper 2.6).
      models: what identifies each model ("retro", "baseline"), plain JSON.
      greedy: whether the scorers compute the model's first choice.
      without: ids of documents that are left out of every database.
    """

    text: TextSet
    token_bytes: Int[np.ndarray, "V"]
    chunks: int
    overlap: float
    k: int
    batch: int
    seed: int
    overlap_neighbors: int
    models: Mapping[str, Mapping]
    greedy: bool = False
    without: frozenset[int] = frozenset()
    # Neighbors by (k, share, database).
    _opened: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def ranges(self) -> list[tuple[int, int]]:
        return block_ranges(self.text.edges, self.text.chunk_length)

    def block(self, start: int, stop: int) -> Block:
        return open_block(self.text, start, stop, self.token_bytes, self.chunks, self.overlap)

    def source(self, condition: Condition) -> Neighbors | None:
        """Where the condition's neighbors come from; None where it reads none."""
        if condition.neighbors is None:
            return None
        return self._open(condition.k or self.k, condition.share, condition.database)

    def stored(self) -> Neighbors:
        """The neighbors that the overlap is computed from."""
        return self._open(0, 1.0, "")

    def _open(self, *what) -> Neighbors:
        if what not in self._opened:
            self._opened[what] = self.text.neighbors(*what, **({"without": self.without} if self.without else {}))
        return self._opened[what]


def open_text(task: Task, workdir: Path) -> tuple[Scores, dict]:
    """The columns of the text itself (`text_columns`), and the plan that they depend on."""
    stored = task.stored()
    plan = {
        "text": task.text.fingerprint,
        "neighbors": stored.fingerprint,
        "overlap_neighbors": min(task.overlap_neighbors, stored.stored),
        "token_bytes": int(task.token_bytes.sum()),
    }
    return open_scores(workdir, task.text.name, "text", plan, len(task.ranges())), plan


def open_condition(task: Task, workdir: Path, condition: Condition) -> tuple[Scores, dict]:
    """The scores of a condition, and the plan that they depend on."""
    source = task.source(condition)
    plan = {
        "text": task.text.fingerprint,
        "model": task.models[condition.model],
        "windows": {"chunks": task.chunks, "overlap": task.overlap, "batch": task.batch, "greedy": task.greedy},
        "neighbors": None
        if source is None
        else {"fingerprint": source.fingerprint, "k": condition.k or task.k, "seed": task.seed},
    }
    return open_scores(workdir, task.text.name, condition.name, plan, len(task.ranges())), plan


def score_set(
    task: Task,
    workdir: Path,
    conditions: Sequence[Condition],
    scorer: Callable[[str], Scorer],
    stop: Callable[[], None] = lambda: None,
) -> tuple[Scores, dict[str, Scores]]:
    """Computes the missing scores of a set.

    Args:
      scorer: gives the `Scorer` of "retro" or "baseline"; called when it is needed.
      stop: called after each batch, in the same order on every process; raises to stop.

    Returns:
      The scores of the text and of each condition, complete.

    Raises:
      StageError: a document whose text tokens are not each scored once, or do not add up to the bytes of its text.
    """
    text, text_plan = open_text(task, workdir)
    opened = {one.name: open_condition(task, workdir, one) for one in conditions}
    missing = on_first(
        lambda: {
            "text": text.missing(),
            "conditions": {name: scores.missing() for name, (scores, _) in opened.items()},
        }
    )
    first = jax.process_index() == 0
    if first:
        for scores, plan in [(text, text_plan), *opened.values()]:
            if scores.parts:
                write_plan(scores, plan)
    todo = {name: set(parts) for name, parts in missing["conditions"].items()}
    sizes = np.diff(task.text.edges)
    ranges = task.ranges()
    total = sum(int(sizes[slice(*ranges[part])].sum()) for parts in todo.values() for part in parts)
    with progress(description=f"evaluate {task.text.name}", total=total, unit="chunk") as bar:
        for part, (start, end) in enumerate(ranges):
            wanted = [one for one in conditions if part in todo[one.name]]
            if not wanted and part not in missing["text"]:
                continue
            block = task.block(start, end)
            _check_once(block)
            if first and part in missing["text"]:
                text.write(part, text_columns(task, block))
            for one in wanted:
                bits, hits = score_block(task, block, one, scorer(one.model), part, stop, bar.update)
                if first:
                    opened[one.name][0].write(part, condition_columns(block, bits, hits if task.greedy else None))
    return text, {name: scores for name, (scores, _) in opened.items()}


def score_block(
    task: Task,
    block: Block,
    condition: Condition,
    scorer: Scorer,
    part: int,
    stop: Callable[[], None] = lambda: None,
    done: Callable[[int], object] = lambda chunks: None,
) -> tuple[Float[np.ndarray, "N M"], Int[np.ndarray, "N M"]]:
    """Bits and hits of every token of a block; 0 where nothing is scored.

    Args:
      part: the block's number; it is part of the seed of what is drawn over a batch.
      done: called with the number of chunks that a batch scored.
    """
    bits, hits = np.zeros(block.tokens.shape, np.float32), np.zeros(block.tokens.shape, np.int8)
    source = task.source(condition)
    waiting: list = []

    def collect(rows, targets, marked, started):
        counts = (targets != PADDING).reshape(*rows.shape, -1)
        places = block.places(rows)[counts]
        for table, found in zip((bits, hits), scorer.fetch(started), strict=True):
            table.reshape(-1)[places] = found.reshape(counts.shape)[counts]
        done(marked)

    starts = range(0, len(block.windows), task.batch)
    for number, start in enumerate(starts):
        rows, inputs = block.inputs(slice(start, start + task.batch), task.batch)
        neighbors = None
        if condition.neighbors is not None:
            whole = np.where(rows == PADDING, PADDING, rows + block.first)
            seeds = (task.seed + number + part * (1 << 20), task.seed)
            asked = Asked(whole, task.text, source, condition.k or task.k, *seeds)
            neighbors = condition.neighbors(asked)
        marked = int(block.marks[start : start + task.batch].sum())
        waiting.append((rows, inputs["targets"], marked, scorer.start(inputs, neighbors)))
        if len(waiting) == AHEAD:
            collect(*waiting.pop(0))
        stop()
    for one in waiting:
        collect(*one)
    return bits, hits


def text_columns(task: Task, block: Block) -> dict:
    """The columns of the text's part."""
    rows = np.arange(len(block.tokens))
    source = task.stored()
    ids = source.find(rows + block.first)[0][:, : task.overlap_neighbors]
    found = overlaps(block.tokens, source.value(ids), task.token_bytes)
    tokens = block.chunk_sums(block.scored)
    count = len(block.facts)
    numbers = np.arange(block.start, block.start + count)
    cuts = np.flatnonzero(np.diff(block.documents)) + 1
    return {
        "number": numbers,
        "id": np.asarray(task.text.document_ids[block.start : block.start + count]),
        "name": [document.name for document in block.facts],
        "subset": [task.text.subset_names[one] for one in task.text.subsets[block.start : block.start + count]],
        "bytes": block.by_document(block.chunk_sums(block.bytes)).astype(np.int64),
        "tokens": block.by_document(tokens).astype(np.int64),
        "words": np.array([document.words for document in block.facts], np.int64),
        "chunks": np.bincount(block.documents, minlength=count),
        "chunk_bytes": np.split(block.chunk_sums(block.bytes), cuts),
        "chunk_overlap": np.split(found, cuts),
    }


def condition_columns(block: Block, bits: Float[np.ndarray, "N M"], hits: Int[np.ndarray, "N M"] | None) -> dict:
    """The columns of a condition's part; hits are -1 where they were not computed."""
    chunk_bits = block.chunk_sums(bits)
    return {
        "number": np.arange(block.start, block.start + len(block.facts)),
        "bits": block.by_document(chunk_bits),
        "hits": np.full(len(block.facts), -1)
        if hits is None
        else block.by_document(block.chunk_sums(hits)).astype(int),
        "chunk_bits": np.split(chunk_bits, np.flatnonzero(np.diff(block.documents)) + 1),
    }


def _check_once(block: Block) -> None:
    """Raises StageError unless every scored token of the block is predicted in exactly one window."""
    times = np.zeros(block.tokens.shape, np.int8)
    rows, inputs = block.inputs(slice(0, len(block.windows)), len(block.windows))
    counts = (inputs["targets"] != PADDING).reshape(*rows.shape, -1)
    np.add.at(times.reshape(-1), block.places(rows)[counts], 1)
    if not np.array_equal(times, block.scored):
        row, place = np.argwhere(times != block.scored)[0]
        raise StageError(
            f"Every text token must be scored exactly once, but token {place} of chunk {row + block.first} would be "
            f"scored {times[row, place]} times: the documents and chunks do not come from one build. Run `retro build` into "
            f"another --workdir."
        )
