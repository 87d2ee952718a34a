"""Contamination of a set, compared with sets of tuples and with every pair of positions."""

import json
import random
import shutil
from dataclasses import replace

import joined_set
import numpy as np
import pytest
from file_contents import contents
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.database import changes
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.evaluation import contamination
from data_pipeline.evaluation.join import join
from data_pipeline.evaluation.overlap_index import OverlapIndex, common_run, compare_slow, windows
from data_pipeline.evaluation.sets import open_set
from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig


def text(source: random.Random, words: int, letters: str) -> str:
    return " ".join(source.choice(letters) for _ in range(words))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(["ab", "abcdefgh", "0"]))
def test_agrees_with_sets_of_tuples_and_every_pair_of_places(seed, letters):
    """Texts with copied parts, short and empty texts, and texts that repeat one word."""
    source = random.Random(seed)
    parts = [text(source, source.choice([1, 5, 13, 20, 40]), letters) for _ in range(4)]

    def document() -> str:
        chosen = [source.choice([*parts, text(source, source.randint(0, 20), letters)]) for _ in range(3)]
        return source.choice(["", "!?", parts[0], ", ".join(chosen), " ".join(chosen).upper()])

    mine, training = [document() for _ in range(5)], [document() for _ in range(6)]
    index, longest = OverlapIndex(mine), np.zeros(5, np.int64)
    best = np.zeros((5, 3))
    for other in training:
        found, expected = index.compare(other, longest), [compare_slow(one, other) for one in mine]
        assert found.documents.tolist() == [number for number, one in enumerate(expected) if one[0]]
        np.testing.assert_allclose(found.containment, [one[0] for one in expected if one[0]], rtol=1e-12)
        np.testing.assert_allclose(found.jaccard, [one[1] for one in expected if one[0]], rtol=1e-12)
        best = np.maximum(best, expected)
        assert longest.tolist() == best[:, 2].tolist()


def test_a_short_text_within_a_long_one_is_found_though_the_jaccard_index_is_small():
    source = random.Random(1)
    words = [f"w{number}" for number in range(3000)]
    short = " ".join(source.sample(words, 60))
    long = f"{' '.join(source.sample(words, 700))} {short} {' '.join(source.sample(words, 700))}"
    longest = np.zeros(1, np.int64)
    found = OverlapIndex([short]).compare(long, longest)
    assert found.containment.tolist() == [1.0] and found.jaccard[0] < 0.05 and longest.tolist() == [60]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 13, 30])
def test_windows_are_equal_where_the_words_are(length):
    words = np.random.default_rng(0).integers(0, 2, 200).astype(np.uint64)
    tuples = [tuple(words[start : start + length]) for start in range(200 - length + 1)]
    found = windows(words, length)
    assert len(found) == len(tuples)
    assert len(set(found.tolist())) == len(set(tuples))
    assert common_run(words[20 : 20 + length], words) == length


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("contamination")


@pytest.fixture(scope="module")
def run(root):
    return joined_set.make_build(root)


@pytest.fixture(scope="module")
def texts(root, run):
    """Two copies of training documents, one half of another among new text, one that is new, and an empty one."""
    documents = list(DocumentTable(root / "data" / "documents").read(0, 3))
    half = documents[2].text.split()
    new = " ".join(f"new{number}" for number in range(len(half) // 2))
    found = [documents[0].text, documents[1].text.upper(), " ".join(half[: len(half) // 2]) + " " + new, new, ""]
    (root / "set.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in found), encoding="utf-8")
    return documents, found


def test_a_join_reports_what_is_in_training_documents(root, run, texts, monkeypatch):
    """The result over several shards equals the comparison of every pair of documents."""
    monkeypatch.setattr(contamination, "SHARD_BYTES", 2000)
    data, (documents, mine) = root / "data", texts
    counts = join(run, data, "mine", SourceConfig(path=str(root / "set.jsonl"), role="evaluation"))
    assert counts["contaminated"] == 2 and counts["copies"] == 1, "one copy to the byte, one in capitals"
    training = [one for one in DocumentTable(data / "documents").read() if one.split == "train"]
    pairs = np.array([[compare_slow(one, other.text) for other in training] for one in mine])
    directory = data / "evaluation" / "mine" / "contamination"
    assert len(list(directory.glob("part-*.training.npy"))) > 2
    best = np.load(directory / "contamination.npy")
    for column, name in enumerate(("containment", "jaccard", "run")):
        np.testing.assert_allclose(best[name], pairs[:, :, column].max(axis=1), rtol=1e-12)
        for row, id in enumerate(best[f"{name}_id"].tolist()):
            there = [
                other.id for other, pair in zip(training, pairs[row], strict=True) if pair[column] == best[name][row]
            ]
            assert id in there if best[name][row] else id == -1
    found = open_set(data, "mine")
    assert found.contaminated(0.8).tolist() == [True, True, False, False, False]
    assert found.contaminated(0.2).tolist() == [True, True, True, False, False]
    held = {other.id for other, pair in zip(training, pairs[:, :, 0].max(axis=0), strict=True) if pair >= 0.8}
    assert found.overlapping_documents(0.8) == held >= {documents[0].id, documents[1].id}
    shown = json.loads((directory / "histograms.json").read_text())
    assert shown["containment"]["documents"][-1] == 2 and sum(shown["jaccard"]["documents"]) == len(mine)
    assert shown["run"]["documents"][0] == (best["run"] < 13).sum()
    for threshold in (0, 1.1):
        with pytest.raises(ValueError, match=r"threshold of containment must lie in \(0, 1\]"):
            found.contaminated(threshold)


def test_a_value_on_an_edge_is_in_the_bin_that_begins_there():
    best = np.zeros(4, contamination.RECORD)
    best["containment"] = [0.0, 3 / 10, 0.3 - 1e-6, 1.0]
    best["run"] = [0, 13, 12, 5000]
    found = contamination.histograms(best)
    assert found["containment"]["documents"] == [1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1]
    assert found["run"]["documents"] == [2, 1, 0, 0, 0, 0, 0, 1]


def test_held_out_text_and_additions_are_compared_too(root, run, texts, tmp_path):
    """After an addition the comparison is refused as incomplete; the next join compares with the addition alone."""
    data = tmp_path / "data"
    shutil.copytree(root / "data", data)
    found = open_set(data, "held_out")
    with pytest.raises(StageError, match=r"'held_out' was not compared .* retro join --workdir=.* --set=held_out"):
        found.contaminated(0.8)
    contamination.build_contamination(found.tables)
    assert not found.contaminated(0.8).any()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "later.txt").write_text("Before. " + found.document(0).text + " after", newline="")
    new = {"news": SourceConfig(path=str(tmp_path / "new"))}
    changes.add(data, replace(run, data=replace(run.data, sources=new)), new, root / "encoder")
    with pytest.raises(StageError, match="not compared with the training documents .*additions/00000/documents"):
        found.contaminated(0.8)
    before = contents(data / "evaluation" / "held_out" / "contamination")
    contamination.build_contamination(found.tables)
    assert contents(data / "evaluation" / "held_out" / "contamination") == before
    assert found.contaminated(0.8).tolist() == [True] + [False] * (len(found) - 1)
    (added,) = DocumentTable(data / "additions" / "00000" / "documents").read()
    assert found.overlapping_documents(0.8) == {added.id}
