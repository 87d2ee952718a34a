"""Joined shards: packing on literal cases, every feature read back by plain TFDS, and leaks."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_shards import BOS, EOS, M, Neighbors, Table, build, document, made_up
from places import FIXTURES, ROOT

from data_pipeline import joined
from data_pipeline.joined import build_joined, join
from data_pipeline.stages.run import StageError
from retro_jax.data.joined import open_split, pack, pack_train, pack_validation, windows


def test_pack_train_cuts_every_c_chunks():
    assert pack_train(np.arange(7), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]
    assert pack_train(np.arange(6), 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert pack_train(np.arange(0), 3).tolist() == []


def test_windows_start_half_a_window_apart_and_score_each_chunk_once():
    """(first, end, first scored): after the first window, every scored chunk has half a window before it."""
    assert windows(3, 4) == [(0, 3, 0)]
    assert windows(4, 4) == [(0, 4, 0)]
    assert windows(9, 4) == [(0, 4, 0), (2, 6, 4), (4, 8, 6), (6, 9, 8)]
    assert windows(3, 1) == [(0, 1, 0), (1, 2, 1), (2, 3, 2)]


def test_pack_validation_is_first_fit_in_order():
    """Documents of 3, 2, 1, 5 chunks from chunk 100 on, sequences of 4: the 1 is packed with the 3, not with the 2."""
    ids, scored = pack_validation([(100, 3), (103, 2), (105, 1), (106, 5)], 4)
    assert ids.tolist() == [
        [100, 101, 102, 105],
        [103, 104, -1, -1],
        [106, 107, 108, 109],
        [108, 109, 110, -1],
    ]
    assert scored.astype(int).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]]


def slow_pack_validation(documents, chunks):
    """First fit as two nested loops."""
    sequences = []
    for row, length in documents:
        scored = set()
        start = 0
        while True:
            piece = list(range(start, min(start + chunks, length)))
            marked = [(row + chunk, chunk not in scored) for chunk in piece]
            scored.update(piece)
            for sequence in sequences:
                if len(sequence) + len(piece) <= chunks:
                    sequence.extend(marked)
                    break
            else:
                sequences.append(marked)
            if piece[-1] == length - 1:
                break
            start += max(1, chunks // 2)
    return sequences


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 30), max_size=25), st.integers(1, 9))
def test_pack_validation_equals_the_slow_reference(lengths, chunks):
    starts = np.cumsum([0, *lengths[:-1]]).tolist() if lengths else []
    ids, scored = pack_validation(list(zip(starts, lengths, strict=True)), chunks)
    expected = slow_pack_validation(list(zip(starts, lengths, strict=True)), chunks)
    assert [[(i, bool(s)) for i, s in zip(*row, strict=True) if i >= 0] for row in zip(ids, scored, strict=True)] == (
        expected
    )
    assert sorted(ids[scored].tolist()) == list(range(sum(lengths)))  # every chunk is scored exactly once
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for row in ids:  # two windows of a document never meet: its chunks are one run without repeats
        row = row[row >= 0]
        assert len(set(row.tolist())) == len(row)
        runs = [owner[c] for k, c in enumerate(row) if k == 0 or row[k] != row[k - 1] + 1 or owner[c] != owner[c - 1]]
        assert len(set(runs)) == len(runs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_pack_keeps_subsets_apart_and_documents_in_order(seed, chunks):
    table, _ = made_up(seed)
    packings = pack(table, chunks)
    for split, inside in (("train", lambda i: i < table.database_chunks), ("validation", lambda i: i >= 0)):
        made = packings[split]
        for number, ids in enumerate(made.chunk_ids):
            real = ids[ids >= 0]
            assert inside(real).all()
            names = {table.subset_names[s] for s in table.subsets[real]}
            assert names == {made.subset_of(number)}
        assert list(made.subsets) == [n for n in table.subset_names if n in made.subsets]
    train = packings["train"].chunk_ids
    slow = []
    for subset in range(len(table.subset_names)):
        rows = [row for row in range(table.database_chunks) if table.subsets[row] == subset]
        slow += [rows[k : k + chunks] for k in range(0, len(rows), chunks)]
    assert [[i for i in row if i >= 0] for row in train.tolist()] == slow
    ids, scored = packings["validation"].chunk_ids, packings["validation"].scored
    assert sorted(ids[scored].tolist()) == list(range(table.database_chunks, len(table.tokens)))


def test_an_example_in_full():
    """Two documents in one sequence of 4 chunks of 4: what is stored at each place, written out."""
    table = Table([document(1, 0, 4), document(2, 0, 3)], training=2)
    neighbors = Neighbors(np.array([[2, -1], [2, 3], [0, 1], [-1, -1]]), np.array([[1, 9], [1, 2], [0.5, 0.6], [0, 0]]))
    example = join(np.array([0, 1, 2, 3]), np.ones(4, bool), "train", "wiki", table, neighbors)
    _ = -1
    # chunk          0                     1             2                        3
    assert example["tokens"].tolist() == [
        *(BOS, 1000, 1001, 1002),
        *(1003, EOS, _, _),
        *(BOS, 2000, 2001, 2002),
        *(EOS, _, _, _),
    ]
    # The last target of chunk 0 is the first token of chunk 1; EOS has none, though another document follows.
    assert example["targets"].tolist() == [
        *(1000, 1001, 1002, 1003),
        *(EOS, _, _, _),
        *(2000, 2001, 2002, EOS),
        *(_, _, _, _),
    ]
    assert example["loss_mask"].tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert example["document_ids"].tolist() == [1, 1, 2, 2]
    assert example["neighbor_ids"].tolist() == [[2, -1], [2, 3], [0, 1], [-1, -1]]
    # [N, F]: F is the next chunk of the same document or padding; a missing neighbor is padding.
    assert example["neighbor_tokens"][2].tolist() == [
        [BOS, 1000, 1001, 1002, 1003, EOS, _, _],
        [1003, EOS, _, _, _, _, _, _],
    ]
    assert example["neighbor_tokens"][3].tolist() == [[_] * 8] * 2
    assert example["neighbor_distances"].tolist() == [[1, np.inf], [1, 2], [0.5, pytest.approx(0.6)], [np.inf, np.inf]]
    held_out = join(np.array([2, 3, -1, -1]), np.array([True, True, False, False]), "validation", "w", table, neighbors)
    assert held_out["loss_mask"].tolist() == [1, 1, 1, 0] + [0] * 12  # text only: the target EOS is not scored
    assert held_out["document_ids"].tolist() == [2, 2, -1, -1]
    assert (held_out["neighbor_ids"][2:] == -1).all() and (held_out["neighbor_tokens"][2:] == -1).all()


@pytest.mark.parametrize("sequence_length", [4, 8, 12, 24, 40])
def test_every_text_token_of_held_out_documents_is_scored_once(sequence_length):
    """Guards against tokens scored twice or never.

    The first token is scored, BOS and EOS never, whatever the window.
    """
    table, neighbors = made_up(3)
    packing = pack(table, sequence_length // M)["validation"]
    scored = []
    for number, (ids, marks) in enumerate(zip(packing.chunk_ids, packing.scored, strict=True)):
        example = join(ids, marks, "validation", packing.subset_of(number), table, neighbors)
        scored += example["targets"][example["loss_mask"] > 0].tolist()
    text = [token for _, _, tokens in table.documents[table.training :] for token in tokens[1:-1]]
    assert sorted(scored) == sorted(text)


def test_every_target_of_training_documents_counts_once():
    table, neighbors = made_up(4)
    packing = pack(table, 3)["train"]
    counted = []
    for number, (ids, marks) in enumerate(zip(packing.chunk_ids, packing.scored, strict=True)):
        example = join(ids, marks, "train", packing.subset_of(number), table, neighbors)
        counted += example["targets"][example["loss_mask"] > 0].tolist()
    assert sorted(counted) == sorted(t for _, _, tokens in table.documents[: table.training] for t in tokens[1:])


def test_neighbors_belong_to_chunks_and_survive_another_packing():
    """Guards against neighbors stored by place.

    Whatever the sequence length, a chunk has the neighbors stored under its id.
    """
    table, neighbors = made_up(5)
    for chunks in (1, 3, 5):
        for split, packing in pack(table, chunks).items():
            for number, (ids, marks) in enumerate(zip(packing.chunk_ids, packing.scored, strict=True)):
                example = join(ids, marks, split, packing.subset_of(number), table, neighbors)
                for place, row in enumerate(ids):
                    expected = neighbors.ids[row].tolist() if row >= 0 else [-1] * 3
                    assert example["neighbor_ids"][place].tolist() == expected


@pytest.mark.parametrize(
    ("bad", "reason"), [((0, 1), "own document"), ((0, 10**6), "outside the database"), ((0, -7), "outside")]
)
def test_neighbors_of_other_chunks_are_refused(bad, reason, tmp_path):
    """Guards against a neighbor of the query's own document. The rule is checked again where the leak would happen."""
    table, neighbors = made_up(6, longest=20)
    table.document_ids[1] = table.document_ids[0]
    neighbors.ids[bad[0], 0] = bad[1]
    with pytest.raises(StageError, match=reason):
        build(tmp_path, table, neighbors)


READ = """
import json, sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
found = {}
for split in builder.info.splits:
    source = builder.as_data_source(split)
    found[split] = [
        {name: [str(v.dtype), list(v.shape), v.tolist()] if name != "subset" else v.decode() for name, v in e.items()}
        for e in source
    ]
assert not any(name.split(".")[0] in ("data_pipeline", "retro_jax", "tensorflow") for name in sys.modules)
print(json.dumps(found))
"""


def test_plain_tfds_reads_every_feature(tmp_path):
    """In a process of its own that imports none of our code, and no TensorFlow."""
    table, neighbors = made_up(7)
    manifest = build(tmp_path / "data", table, neighbors)
    run = subprocess.run(
        [sys.executable, "-c", READ, tmp_path / "data"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    found = json.loads(run.stdout)
    packings = pack(table, 4)
    shapes = {
        "tokens": ["int32", [16]],
        "targets": ["int32", [16]],
        "loss_mask": ["float32", [16]],
        "document_ids": ["int64", [4]],
        "neighbor_tokens": ["int32", [4, 3, 8]],
        "neighbor_ids": ["int64", [4, 3]],
        "neighbor_distances": ["float32", [4, 3]],
    }
    assert set(found) == {"train", "validation"}
    for split, examples in found.items():
        packing = packings[split]
        assert len(examples) == len(packing.chunk_ids) == manifest.counts["sequences"][split]
        for number, example in enumerate(examples):
            expected = join(
                packing.chunk_ids[number], packing.scored[number], split, packing.subset_of(number), table, neighbors
            )
            assert set(example) == {*shapes, "subset"}
            assert example["subset"] == expected["subset"]
            for name, (dtype, shape) in shapes.items():
                assert example[name][:2] == [dtype, shape], name
                np.testing.assert_array_equal(np.array(example[name][2]), expected[name], err_msg=name)
    ranges = manifest.counts["subsets"]
    for split, examples in found.items():
        for name, (first, end) in ranges[split].items():
            assert {example["subset"] for example in examples[first:end]} == {name}


def contents(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p.is_file() and p.name != "seconds.json"}


KILLED = """
import os, signal, sys
from pathlib import Path
import data_pipeline.joined as joined
from made_up_shards import build, made_up
calls, real = [0], joined.join
def dying(*arguments):
    calls[0] += 1
    if calls[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
joined.join = dying
build(Path(sys.argv[1]), *made_up(8))
"""


def test_a_killed_build_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, monkeypatch):
    """Guards against a killed build that ends with other bytes.

    SIGKILL inside a shard of another process, then more interruptions.
    """
    build(tmp_path / "whole", *made_up(8))
    whole = contents(tmp_path / "whole")
    assert len(whole) > 6  # several shards of both splits
    there = FIXTURES
    child = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "killed", "11"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{there}"},
        capture_output=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert any((tmp_path / "killed").glob(".writing-*")) and any((tmp_path / "killed").glob("retro_joined-*"))
    calls, real = [0], joined.join

    def failing(*arguments):
        calls[0] += 1
        if calls[0] % 5 == 0:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(joined, "join", failing)
    while not (tmp_path / "killed" / "manifest.json").exists():
        with contextlib.suppress(KeyboardInterrupt):
            build(tmp_path / "killed", *made_up(8))
    assert calls[0] > 10
    assert contents(tmp_path / "killed") == whole


def test_opening_changes_nothing_and_altered_shards_are_refused(tmp_path):
    """Guards against reading that changes files, or damage that is not noticed; a flipped byte or a truncated file is named."""
    table, neighbors = made_up(9)
    build(tmp_path, table, neighbors)
    before = {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")}
    source, manifest = open_split(tmp_path, "validation")
    assert len(list(source)) == manifest.counts["sequences"]["validation"]
    assert {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")} == before
    path = next(tmp_path.glob("*train*00000-of*"))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(StageError, match="was altered"):
        open_split(tmp_path, "train")
    path.write_bytes(data[:-1])
    with pytest.raises(StageError, match="truncated"):
        open_split(tmp_path, "train")


def test_splits_without_text(tmp_path):
    table, neighbors = made_up(10, validation=0)
    build(tmp_path / "a", table, neighbors)
    assert len(open_split(tmp_path / "a", "train")[0])
    with pytest.raises(StageError, match="no validation sequences.*validation_fraction"):
        open_split(tmp_path / "a", "validation")
    table, neighbors = made_up(10, training=0)
    with pytest.raises(StageError, match="No document remains to train on"):
        build(tmp_path / "b", table, neighbors)


def test_sizes_that_do_not_divide(tmp_path):
    with pytest.raises(ValueError, match="sequence_length=18 and the chunks hold 4"):
        build(tmp_path, *made_up(11), sequence_length=18)


def test_scored_targets_of_real_tokens_are_the_bytes_of_the_documents(tmp_path):
    """Guards against bits per byte over other bytes than the text's; here through three stages, with any Unicode."""
    from data_pipeline.chunks import ChunkTable, build_chunks
    from data_pipeline.documents.stage import DocumentTable, build_documents
    from data_pipeline.tokens import Tokenizer, build_tokenizer
    from retro_jax.config import DataConfig, SourceConfig

    rng = np.random.default_rng(0)
    words = ["retrieval", "  two", "naïve", "Ωmega", "猫", "🙂", "\n\n", "chunk", "\u2581", "a", "e\u0301", "0.5%"]
    for number in range(40):
        text = " ".join(rng.choice(words, rng.integers(20, 300)))
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{number}.txt").write_text(text)
    config = DataConfig(sources={"own": SourceConfig(path=str(tmp_path / "text"))}, validation_fraction=0.3)
    places = [tmp_path / name for name in ("documents", "tokenizer", "chunks", "joined")]
    build_documents(places[0], config)
    build_tokenizer(places[1], config, 295, places[0])
    build_chunks(places[2], config, 16, places[0], places[1])
    table, token_bytes = ChunkTable(places[2]), Tokenizer(places[1]).token_bytes
    none = Neighbors(np.full((len(table), 2), -1, np.int64), np.full((len(table), 2), np.inf, np.float32))
    build_joined(places[3], table, none, sequence_length=64, vocabulary=295, shard_sequences=50, inputs={"chunks": "c"})
    for split, text_bytes in (
        (s, sum(len(d.text.encode()) for d in DocumentTable(places[0]).read() if d.split == s))
        for s in ("train", "validation")
    ):
        examples, _ = open_split(places[3], split)
        scored = sum(token_bytes[e["targets"][e["loss_mask"] > 0]].sum() for e in examples)
        assert scored == text_bytes > 1000
