"""Scoring: the scored tokens, their neighbors, and the sums over them."""

import dataclasses

import jax
import numpy as np
import pytest
from evaluation_fixture import CHUNKS, MODEL, M, build
from tiny_model import random_parameters

from data_pipeline.chunks import ChunkTable
from data_pipeline.documents.stage import DocumentTable
from data_pipeline.stages.run import StageError
from data_pipeline.tokens import read_token_bytes
from retro_jax.data.batches import Batch, validation_examples
from retro_jax.evaluate.conditions import CONDITIONS, Asked, OtherChunks
from retro_jax.evaluate.scoring import check_bytes, make_scorer, score, text_tokens
from retro_jax.evaluate.summary import figures, paired_difference, summarize, table_text, verdict
from retro_jax.models.retro import merge

SETTINGS = {"batch": 4, "seed": 0, "overlap_neighbors": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def parts(data):
    return (
        validation_examples(data / "joined", MODEL),
        ChunkTable(data / "chunks"),
        read_token_bytes(data / "tokenizer"),
    )


def reader(tokens, segments, targets, neighbor_tokens):
    """A model that copies: 1 bit where the last token and the target follow each other in what the chunk retrieved,
    4 bits elsewhere; it reads the neighbors of the chunk at hand from its last position on, as CCA does."""
    bits = np.where(targets < 0, 0.0, 4.0).astype(np.float32)
    if neighbor_tokens is None:
        return bits
    for b, p in np.argwhere(targets >= 0):
        chunk = (p + 1) // M - 1
        if chunk >= 0 and segments[b, chunk] == segments[b, p // M]:
            retrieved = neighbor_tokens[b, chunk]
            pair = (retrieved[:, :-1] == tokens[b, p]) & (retrieved[:, 1:] == targets[b, p])
            bits[b, p] = 1.0 if pair.any() else 4.0
    return bits


def constant(tokens, segments, targets, neighbor_tokens):
    return np.where(targets < 0, 0.0, 2.0).astype(np.float32)


@pytest.fixture(scope="module")
def held_out(parts):
    return score(*parts, MODEL, {"retro": reader, "baseline": constant}, **SETTINGS)


def test_controls_are_ordered(held_out, parts):
    """Guards against retrieval that does nothing.

    Oracle < On < random, and Off is empty, for a model that reads its neighbors.
    """
    results = summarize(held_out, parts[1].subset_names, resamples=200, seed=0)
    bpb = results["subsets"]["laws"]["bpb"]
    assert bpb["oracle"] < bpb["on"] < bpb["shuffled"] < bpb["off"]
    assert bpb["on"] < bpb["random"] < bpb["off"]
    assert bpb["empty"] == bpb["off"]
    assert results["verdict"]["subset"] == "laws" and results["verdict"]["seen"]
    assert results["subsets"]["laws"]["overlap"] > results["subsets"]["tales"]["overlap"] + 0.1


def test_a_model_that_ignores_neighbors_shows_no_gain(parts):
    """Guards against a gain reported for a model that ignores its neighbors.

    All conditions tie and no effect is reported.
    """
    held_out = score(*parts, MODEL, {"retro": constant}, **SETTINGS)
    results = summarize(held_out, parts[1].subset_names, resamples=200, seed=0)
    figures = results["all"]
    assert len({value for value in figures["bpb"].values() if value is not None}) == 1
    assert figures["on_minus_off"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "shown": False}
    assert not results["verdict"]["seen"] and results["verdict"]["text"].startswith("No effect")
    assert figures["bpb"]["baseline"] is None and "-" in table_text(results)


def test_bytes_are_those_of_the_scored_text(held_out, parts, data):
    """Guards against bits per byte over other bytes.

    Those of each held-out document's tokens are the UTF-8 bytes of its text.
    """
    validation = [document for document in DocumentTable(data / "documents").read() if document.split == "validation"]
    sizes = np.array([len(document.text.encode()) for document in validation])
    assert held_out.bytes.sum() == sizes.sum() > 0
    check_bytes(held_out, sizes)
    assert np.array_equal(DocumentTable(data / "documents").bytes[-len(sizes) :], sizes)
    with pytest.raises(StageError, match="document 2 has .* scored bytes"):
        check_bytes(held_out, sizes + (np.arange(len(sizes)) == 2))
    with pytest.raises(StageError, match="scored bytes"):
        check_bytes(held_out, sizes[:-1])


def test_perplexity_and_bpb_are_weighted_by_tokens_and_bytes(held_out):
    """Guards against a mean over documents. Sums over all tokens come first and one division last."""
    bits = np.where(held_out.scored, np.where(held_out.documents == 0, 8.0, 1.0)[:, None], 0.0)
    changed = dataclasses.replace(held_out, bits={"off": bits, "on": bits, "random": bits})
    found = figures(changed, np.ones(len(bits), bool), 50, 0)
    first = held_out.scored[held_out.documents == 0].sum()
    total = held_out.scored.sum()
    mean_bits = (8 * first + (total - first)) / total
    assert np.isclose(found["perplexity"]["on"], 2**mean_bits, rtol=1e-9)
    assert np.isclose(found["bpb"]["on"], (8 * first + (total - first)) / held_out.bytes.sum(), rtol=1e-9)
    documents = held_out.documents.max() + 1
    assert not np.isclose(found["perplexity"]["on"], (2**8 + (documents - 1) * 2) / documents, rtol=0.05)


def test_every_text_token_counts_once_and_a_constant_model_scores_its_constant(parts):
    held_out = score(*parts, MODEL, {"retro": constant}, **SETTINGS)
    assert np.array_equal(held_out.bits["off"], 2.0 * held_out.scored)
    assert np.array_equal(held_out.bits["random"], 2.0 * held_out.scored)


def test_batch_size_changes_no_figure(held_out, parts):
    again = score(*parts, MODEL, {"retro": reader, "baseline": constant}, **{**SETTINGS, "batch": 3})
    for condition in ("baseline", "off", "on", "random", "empty", "oracle"):  # "shuffled" is over a batch
        assert np.array_equal(held_out.bits[condition], again.bits[condition]), condition
    assert np.array_equal(held_out.overlap, again.overlap)
    assert np.array_equal(held_out.neighbor_ids, again.neighbor_ids)


def test_bits_stand_at_the_place_of_the_token_they_predict(parts):
    """A scorer whose bits are the target itself: the table then is the table of text tokens."""

    def echo(tokens, segments, targets, neighbor_tokens):
        return np.maximum(targets, 0).astype(np.float32)

    held_out = score(*parts, MODEL, {"retro": echo}, **SETTINGS)
    tokens = np.asarray(parts[1].tokens)[held_out.first :]
    assert np.array_equal(held_out.bits["on"], tokens * held_out.scored)


def test_text_tokens_leave_out_bos_eos_and_padding():
    tokens = np.array([[1, 5, 6, 7], [8, 2, -1, -1], [1, 9, 9, 9], [2, -1, -1, -1]])
    assert text_tokens(tokens, np.array([70, 70, 71, 71])).tolist() == [
        [0, 1, 1, 1],
        [1, 0, 0, 0],
        [0, 1, 1, 1],
        [0, 0, 0, 0],
    ]


@dataclasses.dataclass
class SmallTable:
    """Six chunks of two tokens; documents 7, 8 and 9 are the database, 10 is held out."""

    database_chunks = 5
    document_ids = np.array([7, 7, 8, 8, 9, 10])
    tokens = np.arange(12).reshape(6, 2)

    def value(self, ids):
        return np.where((ids >= 0)[..., None], np.maximum(ids, 0)[..., None] * 10 + np.arange(4), -1)


def test_random_neighbors_are_of_other_documents_and_a_function_of_seed_and_chunk():
    """Guards against a random neighbor of the chunk's own document, or a lookup of a padding id."""
    others = OtherChunks(SmallTable(), seed=5)
    ids, counts = np.array([[0, 5, -1]]), np.array([[2, 3, 0]])
    drawn = others.draw(ids, counts, width=3)
    assert set(drawn[0, 0, :2]) <= {2, 3, 4} and drawn[0, 0, 2] == -1 and len(set(drawn[0, 0, :2])) == 2
    assert set(drawn[0, 1]) <= {0, 1, 2, 3, 4} and len(set(drawn[0, 1])) == 3
    assert drawn[0, 2].tolist() == [-1, -1, -1]
    assert np.array_equal(others.draw(ids[:, ::-1], counts[:, ::-1], 3)[:, ::-1], drawn)
    assert not np.array_equal(OtherChunks(SmallTable(), seed=6).draw(ids, counts, 3), drawn)


def test_random_neighbors_are_not_of_what_was_removed():
    """Nor do they become fewer for it."""
    removed = np.array([False, False, True, False, False, False])
    for seed in range(20):
        drawn = OtherChunks(SmallTable(), seed, removed).draw(np.array([0, 5]), np.array([2, 4]), 4)
        assert set(drawn[0].tolist()) == {3, 4, -1} and set(drawn[1].tolist()) == {0, 1, 3, 4}


def test_random_neighbors_are_uniform():
    table = SmallTable()
    counts = np.zeros(5)
    for seed in range(300):
        np.add.at(counts, OtherChunks(table, seed).draw(np.array([0]), np.array([1]), 1)[0], 1)
    assert counts[:2].tolist() == [0, 0] and (counts[2:] > 75).all()


def test_a_database_without_enough_others_leaves_neighbors_missing():
    others = OtherChunks(SmallTable(), seed=0)
    drawn = others.draw(np.array([0]), np.array([4]), 4)[0]
    assert sorted(drawn.tolist()) == [-1, 2, 3, 4] and drawn[-1] == -1


def test_neighbors_of_each_condition():
    real = np.array([[[[1, 1, 1, 1], [2, 2, 2, 2]], [[3, 3, 3, 3], [-1, -1, -1, -1]]]])
    batch = Batch(np.zeros((1, 4)), np.zeros((1, 4)), np.ones((1, 4)), np.array([[0, 0]]), real)
    ids, others = np.array([[4, 5]]), OtherChunks(SmallTable(), seed=0)

    def given(name):
        return CONDITIONS[name].neighbors(Asked(batch, ids, others, 0))

    assert CONDITIONS["off"].neighbors is None and CONDITIONS["baseline"].neighbors is None
    assert np.array_equal(given("on"), real)
    assert (given("empty") == -1).all() and given("empty").shape == real.shape
    assert given("oracle").tolist() == [[[[40, 41, 42, 43], [2, 2, 2, 2]], [[50, 51, 52, 53], [-1, -1, -1, -1]]]]
    assert np.array_equal(given("shuffled"), real[:, ::-1])
    there = (given("random") >= 0).all(-1)
    assert there.tolist() == [[[True, True], [True, False]]]  # as many as the real set has


def test_the_compiled_scorer_is_the_models_loss(parts):
    params = random_parameters(MODEL)
    example = parts[0][0]
    tokens, targets = example["tokens"][None], np.where(example["loss_mask"] > 0, example["targets"], -1)[None]
    segments = np.zeros((1, CHUNKS), np.int32)
    bits = np.asarray(make_scorer(MODEL, params)(tokens, segments, targets, None))
    logits = jax.jit(lambda params: jax.nn.log_softmax(merge(MODEL, params)(tokens, segments, None)))(params)
    expected = -np.take_along_axis(np.asarray(logits), np.maximum(targets, 0)[..., None], -1)[..., 0] / np.log(2)
    assert np.allclose(bits, np.where(targets >= 0, expected, 0), rtol=1e-5, atol=1e-5)


def test_shards_of_another_build_are_refused(parts):
    examples, table, token_bytes = parts

    class Altered(list):
        def __getitems__(self, numbers):
            return [self[number] for number in numbers]

    altered = Altered(dict(examples[number]) for number in range(len(examples)))
    altered[1]["tokens"] = np.roll(altered[1]["tokens"], 1)
    with pytest.raises(StageError, match="do not hold the tokens of the chunks"):
        score(altered, table, token_bytes, MODEL, {"retro": constant}, **SETTINGS)
    with pytest.raises(StageError, match="validation sequences"):
        score(Altered(altered[:1]), table, token_bytes, MODEL, {"retro": constant}, **SETTINGS)
    altered = Altered(dict(examples[number]) for number in range(len(examples)))
    altered[1]["loss_mask"] = np.zeros_like(altered[1]["loss_mask"])
    with pytest.raises(StageError, match="exactly once, but token . of chunk .* 0 times"):
        score(altered, table, token_bytes, MODEL, {"retro": constant}, **SETTINGS)


def test_bootstrap_interval_covers_the_mean_and_draws_documents():
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 500, 200).astype(float)
    differences = -0.1 * sizes + rng.normal(0, 20, 200)
    found = paired_difference(differences, sizes, 2000, 0)
    assert np.isclose(found["mean"], differences.sum() / sizes.sum())
    residual = differences - found["mean"] * sizes
    error = np.sqrt((residual**2).sum()) / sizes.sum()  # of a ratio of sums
    assert np.isclose(found["high"] - found["low"], 2 * 1.96 * error, rtol=0.1)
    assert found == paired_difference(differences, sizes, 2000, 0)


def test_one_document_has_no_interval():
    found = paired_difference(np.array([-3.0]), np.array([10.0]), 100, 0)
    assert found == {"mean": -0.3, "low": None, "high": None, "shown": False}


def test_what_is_shown_does_not_hang_on_the_draw_of_resamples():
    """An end of the interval that is above 0 by one seed and below it by another shows nothing."""
    rng = np.random.default_rng(1)
    sizes = np.full(200, 100.0)
    noise = rng.normal(0, 20, 200)
    noise -= noise.mean()
    error = noise.std() / np.sqrt(len(noise)) / 100

    def found(deviations, resamples, seed):
        return paired_difference(noise - deviations * error * 100, sizes, resamples, seed)

    ends = [found(1.96, 500, seed)["high"] for seed in range(20)]
    assert min(ends) < 0 < max(ends)
    assert not any(found(1.96, 500, seed)["shown"] for seed in range(20))
    assert all(found(3.5, 500, seed)["shown"] for seed in range(20))
    assert all(found(-3.5, 500, seed)["shown"] for seed in range(5))  # above 0 is a difference as well
    assert not found(9.0, 100, 0)["shown"]  # too few resamples
    assert found(2.3, 10_000, 0)["shown"] and not found(2.3, 500, 0)["shown"]  # more of them know the end better


def test_a_gain_that_random_neighbors_give_too_is_no_effect():
    """Guards against a gain that random neighbors give too. The subset with the highest overlap decides."""
    below = {"mean": -0.2, "low": -0.3, "high": -0.1, "shown": True}
    above = {"mean": 0.2, "low": 0.1, "high": 0.3, "shown": True}
    tie = {"mean": -0.01, "low": -0.05, "high": 0.03, "shown": False}
    low = {"overlap": 0.1, "on_minus_off": tie, "on_minus_random": tie}

    def seen(off, random):
        return verdict({"low": low, "high": {"overlap": 0.6, "on_minus_off": off, "on_minus_random": random}})

    assert seen(below, below)["seen"] and seen(below, below)["subset"] == "high"
    assert not seen(below, tie)["seen"] and not seen(tie, below)["seen"]
    assert not seen(below, above)["seen"]
    assert not seen(below, {"mean": -0.2, "low": None, "high": None, "shown": False})["seen"]


def test_the_table_has_both_intervals_and_marks_what_is_not_shown():
    below = {"mean": -0.2, "low": -0.3, "high": -0.1, "shown": True}
    tie = {"mean": 0.004, "low": -0.0002, "high": 0.009, "shown": False}
    bpb = dict.fromkeys(CONDITIONS, 2.0)
    figures = {"bytes": 10, "overlap": 0.5, "bpb": bpb, "on_minus_off": below, "on_minus_baseline": tie}
    results = {"subsets": {"wiki": figures}, "all": {**figures, "on_minus_baseline": below}}
    text = table_text({**results, "leakage": {"all": {"on_minus_off_at_lowest_alpha": tie}}})
    head, wiki, everything = text.splitlines()[:3]
    assert head.count("95% interval") == 2 and "on - baseline" in head
    assert "-0.2000  -0.3000 .. -0.1000" in wiki and "+0.0040 ~  -0.0002 .. +0.0090" in wiki
    assert "~" not in everything and "~ no difference is shown" in text
    assert "of a chunk stands in its neighbors: +0.0040 ~ (-0.0002 .. +0.0090)" in text
