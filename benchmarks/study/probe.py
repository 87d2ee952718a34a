"""Token by token: what a model copies from its neighbors, and whether it follows a token that is exchanged in the database.

Three measurements over the held-out documents, each as sums by document:

gain_J, tokens_J        Off - On of tokens that end a run of J tokens which the neighbors read here contain (App. E); 5: 5 or more
copy_off, copy_oracle   bits of tokens that their document has for the first time, with retrieval off, and with the true
                        continuation as the nearest neighbor: nothing else has them
swap_TEXT_DATABASE      bits of one token in the middle of every other chunk; text and continuation each have the old or a new one
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from launch.command.config_files import config_of_run
from retro_jax.config import resolve
from retro_jax.core.dimensions import PADDING
from retro_jax.core.files import digest, read_json
from retro_jax.evaluate.blocks import Block
from retro_jax.evaluate.conditions import CONDITIONS, Asked, Condition
from retro_jax.evaluate.evaluation import Evaluation
from retro_jax.evaluate.scores import Scores, write_table
from retro_jax.evaluate.scoring import Task, score_block

LONGEST = 5
SEED = 0
COLUMNS = 16  # of a digest in a file's name


def open_probe(workdir: Path, name: str) -> dict[str, np.ndarray]:
    """The columns of a point, computed where they are missing or older than its results.

    Args:
      workdir: of the study.
      name: of the point, with its seed.
    """
    point = workdir / "points" / name
    made_from = read_json(point / "results.json", "", keys=("made_from",))["made_from"]
    scores = Scores(workdir / "probe" / f"{name}-{digest(made_from)[:COLUMNS]}", 1)
    if scores.missing():
        columns = measure(point)
        write_table(scores.directory / "part-00000.parquet", columns)
    return {key: np.asarray(values) for key, values in scores.read(0).items()}


def measure(point: Path) -> dict:
    """The columns of a point's model, a row for each document."""
    from data_pipeline.evaluation.sets import open_sets

    run = resolve(config_of_run(point))
    task = (evaluation := Evaluation(run, point, open_sets(point / "data", ["held_out"]), {})).tasks["held_out"]
    scorer, found = evaluation.models.scorer("retro", False), []
    for part, (start, stop) in enumerate(task.ranges()):
        block = task.block(start, stop)

        def bits(condition, of=block, part=part):
            return score_block(task, of, condition, scorer, part)[0].astype(np.float64)

        columns = {"id": task.text.document_ids[start:stop]}
        columns["subset"] = [task.text.subset_names[number] for number in task.text.subsets[start:stop]]
        plain = {name: bits(CONDITIONS[name]) for name in ("off", "on", "oracle")}
        columns |= of_runs(task, block, plain) | of_copies(block, plain) | of_swaps(task, block, bits)
        found.append(columns)
    return {key: np.concatenate([np.asarray(columns[key]) for columns in found]) for key in found[0]}


def before(block: Block) -> Int[np.ndarray, "N"]:
    """The chunk before each, of the same document; -1 for the first."""
    same = np.append(False, block.documents[1:] == block.documents[:-1])
    return np.where(same, np.arange(len(same)) - 1, PADDING)


def by_document(block: Block, where: Bool[np.ndarray, "N M"], values: np.ndarray) -> np.ndarray:
    return block.by_document(np.where(where, values, 0.0).sum(axis=1))


def of_runs(task: Task, block: Block, bits: Mapping[str, np.ndarray]) -> dict:
    """Gain by the length of the repeated run."""
    last = before(block)
    source = task.source(CONDITIONS["on"])
    ids = source.find(np.maximum(last, 0) + block.first)[0][:, : task.k]
    neighbors = np.where((last == PADDING)[:, None, None], PADDING, source.value(ids))
    runs = repeated_runs(block.tokens, np.where((last == PADDING)[:, None], PADDING, block.tokens[last]), neighbors)
    counted, found = block.scored & (last != PADDING)[:, None], {}
    for length in range(LONGEST + 1):
        here = counted & (runs == length)
        found[f"gain_{length}"] = by_document(block, here, bits["off"] - bits["on"])
        found[f"tokens_{length}"] = by_document(block, here, np.ones_like(bits["off"]))
    return found


def repeated_runs(
    tokens: Int[np.ndarray, "N M"], earlier: Int[np.ndarray, "N M"], neighbors: Int[np.ndarray, "N K R"]
) -> Int[np.ndarray, "N M"]:
    """Of each token, how many tokens up to and with it stand in a neighbor in one run; at most LONGEST.

    Args:
      earlier: the chunk before each, into which a run may reach.
      neighbors: that the chunk's tokens are predicted with.
    """
    length = tokens.shape[1]
    text = np.concatenate([earlier[:, -LONGEST:], tokens], axis=1)
    shifted = np.full((*neighbors.shape[:2], neighbors.shape[2] + LONGEST), PADDING)
    shifted[:, :, LONGEST:] = neighbors
    found = np.zeros(tokens.shape, np.int64)
    still = np.ones((*tokens.shape, neighbors.shape[1], neighbors.shape[2]), bool)
    reach = min(LONGEST, earlier.shape[1])
    for back in range(LONGEST):
        column = np.arange(length) + reach - back
        own = np.where(column >= 0, text[:, np.maximum(column, 0)], PADDING)[:, :, None, None]
        theirs = shifted[:, None, :, LONGEST - back : shifted.shape[2] - back]
        still &= (own == theirs) & (own != PADDING)
        found += still.any(axis=(2, 3))
    return found


def of_copies(block: Block, bits: Mapping[str, np.ndarray]) -> dict:
    """Bits of tokens that are new to their document, in chunks that have one before them."""
    new = np.zeros(block.tokens.shape, bool)
    for document in range(len(block.facts)):
        rows = np.flatnonzero(block.documents == document)
        _, first = np.unique(block.tokens[rows], return_index=True)
        new[rows[0] :].reshape(-1)[first] = True
    here = block.scored & new & (before(block) != PADDING)[:, None]
    return {
        "copy_tokens": by_document(block, here, np.ones_like(bits["off"])),
        "copy_off": by_document(block, here, bits["off"]),
        "copy_oracle": by_document(block, here, bits["oracle"]),
    }


def of_swaps(task: Task, block: Block, bits) -> dict:
    """Bits of exchanged tokens, by text and database."""
    changed, here = exchange(block)
    texts = {"old": block, "new": with_tokens(block, changed)}
    found = {"swap_tokens": by_document(block, here, np.ones(here.shape))}
    for text, of in texts.items():
        found[f"swap_{text}_off"] = by_document(block, here, bits(CONDITIONS["off"], of))
        for database, table in (("old", block.tokens), ("new", changed)):
            found[f"swap_{text}_{database}"] = by_document(block, here, bits(retrieving(block, table), of))
    return found


def exchange(block: Block) -> tuple[Int[np.ndarray, "N M"], Bool[np.ndarray, "N M"]]:
    """The tokens with one of every other chunk exchanged for another scored token, and where."""
    first = np.searchsorted(block.documents, block.documents)
    odd = (np.arange(len(block.tokens)) - first) % 2 == 1
    here = np.zeros(block.tokens.shape, bool)
    here[:, block.tokens.shape[1] // 2] = odd
    here &= block.scored
    changed, pool = block.tokens.copy(), block.tokens[block.scored]
    changed[here] = np.random.default_rng(SEED).choice(pool, int(here.sum()))
    return changed, here & (changed != block.tokens)


def with_tokens(block: Block, tokens: Int[np.ndarray, "N M"]) -> Block:
    """The block with other tokens at the same places, as text and as targets."""
    following = np.append(tokens.reshape(-1)[1:], PADDING).reshape(tokens.shape)
    return replace(block, tokens=tokens, targets=np.where(block.targets == PADDING, PADDING, following))


def retrieving(block: Block, table: Int[np.ndarray, "N M"]) -> Condition:
    """A condition whose nearest neighbor is the chunk itself with its continuation in `table`."""
    last = before(block)
    following = np.append(last[1:] != PADDING, False)  # whether the next chunk is of the same document

    def neighbors(asked: Asked):
        rows = np.where(asked.rows == PADDING, 0, asked.rows - block.first)
        after = np.where(following[rows][..., None], table[np.minimum(rows + 1, len(table) - 1)], PADDING)
        pair = np.concatenate([table[rows], after], axis=-1)
        found = asked.real.copy()
        found[:, :, 0] = np.where((asked.rows == PADDING)[..., None], PADDING, pair)
        return found

    return Condition("exchanged", "a database with exchanged tokens", "#000000", neighbors=neighbors)
