"""Near duplicates: the estimate against the exact index, dropped documents and reasons, statistics, titles."""

import dataclasses
import hashlib
import json
import random

import numpy as np
import pytest

from data_pipeline.documents import near_duplicates
from data_pipeline.documents.near_duplicates import (
    Signer,
    band_shape,
    compare_with_exact,
    exact_jaccard,
    grams,
    near_copies,
)
from data_pipeline.documents.stage import DocumentTable, build_documents, document_id, split_of
from data_pipeline.documents.titles import normal_title, read_titles, title_of
from data_pipeline.stages.run import StageError
from retro_jax.config import DataConfig, SourceConfig


def words(seed, count):
    source = random.Random(seed)
    return [f"w{source.randrange(10**9)}" for _ in range(count)]


def by_hand(one, other):
    """The definition: sets of 13 words in a row."""
    sets = [{tuple(text.split()[i : i + 13]) for i in range(len(text.split()) - 12)} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def pair(seed, shared, own):
    """Two texts that begin alike: `shared` words, then `own` of each."""
    head = words(seed, shared)
    return tuple(" ".join(head + words(f"{seed}{side}", own)) for side in "ab")


def test_the_exact_index_is_that_of_the_definition():
    for shared, own in ((0, 40), (60, 40), (100, 20), (100, 3), (100, 0)):
        one, other = pair(shared, shared, own)
        assert exact_jaccard(grams(one), grams(other)) == by_hand(one, other)
    assert exact_jaccard(grams(pair(1, 100, 20)[0]), grams(pair(1, 100, 20)[1])) == 88 / (2 * 108 - 88)


def test_what_a_gram_sees():
    text = " ".join(words(1, 30))
    assert (grams(text) == grams(text.upper().replace(" ", ",\n"))).all(), "case, spaces and punctuation do not count"
    assert len(grams(text)) == 18 and len(grams("one two")) == len(grams("")) == len(grams("... ---")) == 1
    assert grams("one two") != grams("two one") and grams("...") != grams("---")
    assert len(grams("水車は川の流れで回りパンの粉を挽く。")) == 5, "17 letters without spaces are 17 words"


def test_signatures_are_written_down():
    """Guards against changed signatures, which would make another corpus of the same text."""
    found = Signer()("The mill grinds grain into flour, and the baker bakes bread of it, day after day after day.")
    assert found.shape == (128,) and found.dtype == np.uint32
    assert found[:3].tolist() == [458309360, 1330056626, 849393384]
    long = " ".join(words(5, 9000))  # more grams than the library is given at once
    assert (Signer()(long) == Signer()(long)).all()
    assert (Signer()(long) == np.minimum(*(Signer()(part) for part in halves(long)))).all()


def halves(text):
    """Two texts that have the grams of `text` between them."""
    parts = text.split()
    return " ".join(parts[:5000]), " ".join(parts[5000 - 12 :])


def test_the_estimate_keeps_to_its_error():
    """Guards against a biased estimate. Over 300 pairs it is unbiased and errs as binomial sampling does."""
    sign, texts, pairs = Signer(), [], []
    for seed in range(300):
        pairs.append([len(texts), len(texts) + 1])
        texts += pair(seed, 20 + seed % 100, 1 + seed % 37)
    signatures = np.stack([sign(text) for text in texts])
    found = compare_with_exact(signatures, np.array(pairs), texts.__getitem__)
    assert found["pairs"] == 300 and 0.3 < found["mean_exact"] < 0.7
    assert abs(found["mean_error"]) < 4 * found["rms_error_expected"] / 300**0.5
    assert 0.8 < found["rms_error"] / found["rms_error_expected"] < 1.2


@pytest.mark.parametrize("threshold, shape", [(0.8, (25, 5)), (0.5, (64, 2)), (0.95, (10, 12)), (1.0, (8, 16))])
def test_bands_miss_a_pair_at_the_threshold_once_in_a_thousand(threshold, shape):
    bands, rows = band_shape(threshold)
    assert (bands, rows) == shape and (1 - threshold**rows) ** bands <= 1e-3


def corpus(tmp_path, **changes):
    """40 originals, and of each in turn a copy with its last words changed: index about 1, .9, .8, .7, .5."""
    texts = []
    for seed in range(40):
        one, other = pair(seed, 120, (0, 5, 12, 19, 37)[seed % 5])
        texts += [one, other + (" more" if seed % 5 == 0 else "")]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = SourceConfig(path=str(path))
    config = DataConfig(sources={"s": source}, validation_fraction=0.3, near_duplicate_jaccard=0.8, **changes)
    return config, texts


def listing(directory):
    return [json.loads(line) for line in (directory / "dropped.jsonl").read_text().splitlines()]


def test_training_documents_near_a_held_out_one_go(tmp_path):
    """Exactly the pairs of a brute-force comparison, from the training side only, each with its reason."""
    config, texts = corpus(tmp_path)
    manifest = build_documents(tmp_path / "d", config)
    whole = build_documents(tmp_path / "all", dataclasses.replace(config, near_duplicate_jaccard=0))
    before = list(DocumentTable(tmp_path / "all").read())
    held_out = [d for d in before if d.split == "validation"]
    wanted = {
        d.id: max(by_hand(d.text, v.text) for v in held_out)
        for d in before
        if d.split == "train" and any(by_hand(d.text, v.text) >= 0.8 for v in held_out)
    }
    after = list(DocumentTable(tmp_path / "d").read())
    assert {d.id for d in before} - {d.id for d in after} == set(wanted) and len(wanted) > 5
    assert [d for d in after if d.split == "validation"] == held_out
    found = listing(tmp_path / "d")
    assert {what["id"]: what["exact"] for what in found} == {i: round(j, 6) for i, j in wanted.items()}
    validation = {d.id for d in held_out}
    for what in found:
        assert what["reason"] == "near_duplicate" and what["near"]["id"] in validation and what["name"]
        assert abs(what["estimated"] - what["exact"]) < 0.15
    counts = manifest.counts
    assert counts["subsets"]["s"]["dropped"]["near_duplicate"] == counts["near_duplicates"]["training_dropped"]
    assert counts["near_duplicates"]["training_dropped"] == len(wanted) == whole.counts["documents"] - len(after)


def test_statistics_count_documents_with_a_near_copy(tmp_path):
    """Of 80 documents 16 pairs are clearly near (index 1 and .9); those at .7 and .5 are not; the rest is on the edge."""
    config, texts = corpus(tmp_path)
    counts = build_documents(tmp_path / "d", config).counts["near_duplicates"]
    sign = Signer()
    signatures = np.stack([sign(text) for text in texts])
    near, pairs = near_copies(signatures, np.arange(80), 0.8)
    estimates = (signatures[0::2] == signatures[1::2]).mean(axis=1)
    assert near.tolist() == np.repeat(estimates >= 0.8, 2).tolist()
    assert 32 <= near.sum() < 64 and counts["subsets"] == {"s": {"documents": 80, "near": int(near.sum())}}
    assert counts["estimate"]["pairs"] == len(pairs) > 16 and counts["estimate"]["rms_error"] < 0.06
    assert all(a // 2 == b // 2 and a < b for a, b in pairs)


def test_long_runs_of_copies_are_all_found_without_comparing_all_pairs():
    signatures = np.repeat(Signer()(" ".join(words(1, 50)))[None], 500, axis=0)
    near, pairs = near_copies(signatures, np.arange(500), 0.8)
    assert near.all() and len(pairs) == near_duplicates.SAMPLE
    assert not near_copies(signatures[:1], np.arange(1), 0.8)[0].any()


def test_cleaning_is_the_same_whatever_the_order_and_the_units(tmp_path, monkeypatch):
    config, texts = corpus(tmp_path)
    build_documents(tmp_path / "d", config)
    monkeypatch.setattr("data_pipeline.sources.readers.UNIT_FILES", 1)
    folder = tmp_path / "many"
    folder.mkdir()
    shuffled = random.Random(3).sample(texts, len(texts))
    for number in range(7):
        rows = shuffled[number::7]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    again = DataConfig(
        sources={"s": SourceConfig(path=str(folder))}, validation_fraction=0.3, near_duplicate_jaccard=0.8
    )
    build_documents(tmp_path / "again", again)

    def kept(directory):
        return [(d.id, d.split, d.text) for d in DocumentTable(directory).read()]

    assert kept(tmp_path / "d") == kept(tmp_path / "again")
    assert {w["id"] for w in listing(tmp_path / "d")} == {w["id"] for w in listing(tmp_path / "again")}


def test_a_threshold_that_cannot_be_meant_is_said(tmp_path):
    with pytest.raises(
        StageError, match=r"near_duplicate_jaccard=80 must lie in \[0, 1\]: 0 is off, the paper's is 0.8"
    ):
        build_documents(tmp_path, DataConfig(sources={"s": SourceConfig(path="x")}, near_duplicate_jaccard=80))


WIKITEXT = """ \n = Robert Boulter = \n \n Robert Boulter is an English film actor .\n \n = = Career = = \n \n = M @-@ 82 = \n \n x\n"""


def test_titles_of_wikitext_and_lists(tmp_path):
    (tmp_path / "wiki.valid.tokens").write_text(WIKITEXT)
    (tmp_path / "list.txt").write_text("Robert_Boulter\n\nM-82\n")
    expected = {"robertboulter", "m82"}
    assert (
        read_titles(str(tmp_path / "wiki.valid.tokens"), "w")
        == read_titles(str(tmp_path / "list.txt"), "w")
        == expected
    )
    assert normal_title("C++") == "c" and normal_title("!!!") == "!!!" and normal_title("Ｔokyo") == "tokyo"
    assert title_of("", "\n\n= Robert Boulter =\ntext") == title_of("Robert Boulter", "text") == "robertboulter"


def test_training_articles_of_the_evaluation_set_go(tmp_path):
    """The paper's Wikitext rule: by title, from the training side only; the list says so."""
    articles = {f"Article-{n} ({n})": f"text of {n} " * 10 for n in range(20)}
    rows = [{"title": title, "text": text} for title, text in articles.items()]
    (tmp_path / "wiki.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "valid.tokens").write_text("".join(f" = Article @-@ {n} ( {n} ) = \n text\n" for n in range(10)))
    source = SourceConfig(
        path=str(tmp_path / "wiki.jsonl"), title_key="title", evaluation_titles=str(tmp_path / "valid.tokens")
    )
    config = DataConfig(sources={"wiki": source}, validation_fraction=0.3)
    manifest = build_documents(tmp_path / "d", config)
    kept = {d.text: d.split for d in DocumentTable(tmp_path / "d").read()}
    expected = {}
    for n, text in enumerate(articles.values()):
        split = split_of(document_id("wiki", hashlib.sha256(text.encode()).hexdigest()), 0.3)
        if n >= 10 or split == "validation":
            expected[text] = split
    assert kept == expected and set(expected.values()) == {"train", "validation"}
    found = listing(tmp_path / "d")
    assert {what["reason"] for what in found} == {"title"} and len(found) == 20 - len(kept) > 3
    assert manifest.counts["subsets"]["wiki"]["dropped"]["title"] == len(found)
    (tmp_path / "valid.tokens").write_text(" = Other = \n")
    with pytest.raises(StageError, match="what differs: inputs.source wiki"):
        build_documents(tmp_path / "d", config)
