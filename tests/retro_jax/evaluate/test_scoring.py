"""What is scored, by whom, with which neighbors; and that it is computed once, whatever happens in between."""

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest
from evaluation_fixture import CHUNKS, MODEL, M, WholeSet, build
from tiny_model import random_parameters

from data_pipeline.documents.stage import DocumentTable
from data_pipeline.stages.run import StageError
from data_pipeline.tokens import read_token_bytes
from retro_jax.config import MeshConfig
from retro_jax.evaluate import blocks
from retro_jax.evaluate.blocks import block_ranges, text_tokens
from retro_jax.evaluate.conditions import CONDITIONS, Asked
from retro_jax.evaluate.metrics import METRICS, Scored
from retro_jax.evaluate.scorers import Scorer
from retro_jax.evaluate.scoring import Task, score_block, score_set
from retro_jax.evaluate.summary import add_up, figures, summarize, table_text
from retro_jax.models.retro import merge
from retro_jax.parallel.sharding import make_mesh, shardings


class Made:
    """A scorer that is a function of (tokens, segments, targets, neighbors) in NumPy."""

    def __init__(self, bits):
        self._bits, self.batches = bits, 0

    def start(self, inputs, neighbors):
        self.batches += 1
        bits = self._bits(inputs["tokens"], inputs["segments"], inputs["targets"], neighbors)
        return bits, (bits == 1.0).astype(np.int8)

    @staticmethod
    def fetch(started):
        return started


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


def echo(tokens, segments, targets, neighbor_tokens):
    """Bits that are the target itself."""
    return np.maximum(targets, 0).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def task(data):
    return Task(
        text=WholeSet(data),
        token_bytes=read_token_bytes(data / "tokenizer"),
        chunks=CHUNKS,
        overlap=0.5,
        k=MODEL.neighbors,
        batch=4,
        seed=0,
        overlap_neighbors=3,
        models={"retro": {"checkpoint": "a"}, "baseline": {"checkpoint": "b"}},
    )


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, so that what is said of one holds over their edges."""
    monkeypatch.setattr(blocks, "TOKENS", 250)
    monkeypatch.setattr(block_ranges, "__defaults__", (250,))


def scored_with(task, workdir, only=tuple(CONDITIONS), **made):
    """Totals of a set under conditions, by made-up models."""
    models = {name: Made(bits) for name, bits in made.items()}
    conditions = [one for one in CONDITIONS.values() if one.model in models and one.name in only]
    text, found = score_set(task, workdir, conditions, models.__getitem__)
    return add_up(text, found, task.text.subset_names), (text, found, models)


@pytest.fixture(scope="module")
def totals(task, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_ranges, "__defaults__", (250,))
        return scored_with(task, tmp_path_factory.mktemp("scores"), retro=reader, baseline=constant)[0]


def test_several_blocks_are_scored(task):
    ranges = task.ranges()
    assert len(ranges) > 3 and ranges[0][0] == 0 and ranges[-1][1] == len(task.text.edges) - 1
    assert all(before[1] == after[0] for before, after in zip(ranges, ranges[1:], strict=False))


def test_controls_are_ordered(totals):
    """A control that reads the same as On, or a condition that reads another's neighbors: oracle < on < random, and off is
    empty, for a model that reads its neighbors."""
    results = summarize(totals, resamples=200, seed=0)
    bpb = results["subsets"]["laws"]["bpb"]
    assert bpb["oracle"] < bpb["on"] < bpb["shuffled"] < bpb["off"]
    assert bpb["on"] < bpb["random"] < bpb["off"]
    assert bpb["empty"] == bpb["off"]
    assert results["verdict"]["subset"] == "laws" and results["verdict"]["seen"]
    assert results["subsets"]["laws"]["overlap"] > results["subsets"]["tales"]["overlap"] + 0.1


def test_a_model_that_ignores_neighbors_shows_no_gain(task, tmp_path):
    """A model that lost its retrieval without notice: all conditions tie, and the verdict says that no effect is shown."""
    results = summarize(scored_with(task, tmp_path, retro=constant)[0], resamples=200, seed=0)
    found = results["all"]
    assert len({value for value in found["bpb"].values() if value is not None}) == 1
    assert found["on_minus_off"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "shown": False}
    assert not results["verdict"]["seen"] and results["verdict"]["text"].startswith("No effect")
    assert found["bpb"]["baseline"] is None and "-" in table_text(results)


def test_bytes_are_those_of_the_scored_text(totals, task, data, monkeypatch):
    """Bytes of BOS, of padding or of other text: each document's are the UTF-8 bytes of its text, no more and no less."""
    sizes = [len(one.text.encode()) for one in DocumentTable(data / "documents").read() if one.split == "validation"]
    assert totals.bytes.tolist() == sizes and sum(sizes) > 0
    longer = [
        dataclasses.replace(one, bytes=one.bytes + (number == 2))
        for number, one in enumerate(task.text.documents(0, 9))
    ]
    monkeypatch.setattr(task.text, "documents", lambda start, stop: longer[start:stop])
    with pytest.raises(StageError, match="document 2 of the evaluation set 'held_out'.* bytes in its tokens and"):
        task.block(0, 4)


def test_tokens_of_another_vocabulary_are_refused(task):
    with pytest.raises(ValueError, match="Tokens of the evaluation set 'held_out' in documents 0 to 3"):
        dataclasses.replace(task, token_bytes=task.token_bytes[:7]).block(0, 3)


def test_figures_are_weighted_by_tokens_and_bytes(totals):
    """A mean over documents in place of the sums: all sums come first, one division last."""
    first = np.arange(len(totals.bytes)) == 0
    bits = totals.tokens * np.where(first, 8.0, 1.0)
    changed = dataclasses.replace(totals, bits=dict.fromkeys(totals.bits, bits))
    found = figures(changed, np.ones(len(bits), bool), 50, 0)
    mean_bits = (8 * totals.tokens[0] + totals.tokens[1:].sum()) / totals.tokens.sum()
    assert np.isclose(found["perplexity"]["on"], 2**mean_bits, rtol=1e-9)
    assert np.isclose(found["bpb"]["on"], bits.sum() / totals.bytes.sum(), rtol=1e-9)
    assert not np.isclose(found["perplexity"]["on"], (2**8 + (len(bits) - 1) * 2) / len(bits), rtol=0.05)


def test_every_text_token_counts_once_and_a_constant_model_scores_its_constant(task, tmp_path):
    totals, _ = scored_with(task, tmp_path, retro=constant)
    assert np.array_equal(totals.bits["off"], 2.0 * totals.tokens)
    assert np.array_equal(totals.bits["random"], 2.0 * totals.tokens)


@pytest.mark.parametrize("overlap", [0.5, 0.75])
def test_bits_stand_at_the_place_of_the_token_they_predict(task, overlap):
    """A scorer whose bits are the target itself: the table then is the table of text tokens."""
    changed = dataclasses.replace(task, overlap=overlap)
    for part, (start, stop) in enumerate(changed.ranges()):
        block = changed.block(start, stop)
        bits, _ = score_block(changed, block, CONDITIONS["on"], Made(echo), part)
        assert np.array_equal(bits, block.tokens * block.scored)
        rows = slice(task.text.edges[start], task.text.edges[stop])
        assert np.array_equal(block.tokens, np.asarray(task.text.table.tokens)[task.text.first :][rows])


def test_a_targets_document_is_that_of_its_position(task):
    """A document's last position predicts nothing, also where the next document follows in the table."""
    block = task.block(0, len(task.text.edges) - 1)
    ends = np.cumsum(np.bincount(block.documents)) - 1
    assert (block.targets[ends, -1] == -1).all()
    flat, owners = block.tokens.reshape(-1), np.repeat(block.documents, M)
    for place in np.flatnonzero(block.targets.reshape(-1) >= 0):
        assert owners[place] == owners[place + 1] and block.targets.reshape(-1)[place] == flat[place + 1]


def test_more_overlap_means_more_windows(task):
    """An overlap that is read and then forgotten: windows of 6 chunks start 3 apart, or 1 apart with three quarters."""
    counts = [
        len(dataclasses.replace(task, overlap=overlap).block(0, len(task.text.edges) - 1).windows)
        for overlap in (0.5, 0.75)
    ]
    assert counts[1] > counts[0]


def test_batch_size_changes_no_figure(totals, task, tmp_path):
    again, _ = scored_with(dataclasses.replace(task, batch=3), tmp_path, retro=reader, baseline=constant)
    for condition in ("baseline", "off", "on", "random", "empty", "oracle"):  # "shuffled" is over a batch
        assert np.array_equal(totals.bits[condition], again.bits[condition]), condition
    assert np.array_equal(totals.bin_bytes, again.bin_bytes)


def test_blocks_change_no_figure(totals, task, tmp_path, monkeypatch):
    monkeypatch.setattr(block_ranges, "__defaults__", (10**6,))
    assert len(task.ranges()) == 1
    again, _ = scored_with(task, tmp_path, retro=reader, baseline=constant)
    for condition in ("baseline", "off", "on", "random", "empty", "oracle"):
        assert np.array_equal(totals.bits[condition], again.bits[condition]), condition
        assert np.allclose(totals.bin_bits[condition], again.bin_bits[condition])
    assert np.array_equal(totals.low_bytes, again.low_bytes) and np.allclose(totals.low_gap, again.low_gap)


def test_text_tokens_leave_out_bos_eos_and_padding():
    tokens = np.array([[1, 5, 6, 7], [8, 2, -1, -1], [1, 9, 9, 9], [2, -1, -1, -1]])
    assert text_tokens(tokens, np.array([0, 0, 1, 1])).astype(int).tolist() == [
        [0, 1, 1, 1],
        [1, 0, 0, 0],
        [0, 1, 1, 1],
        [0, 0, 0, 0],
    ]


def test_only_the_bytes_that_the_protocol_names_are_scored(task, data, tmp_path):
    """A context that counts: the bits and bytes of a document are those of its scored range."""
    changed = dataclasses.replace(task, text=WholeSet(data, scored=(10, 25), words=3))
    totals, _ = scored_with(changed, tmp_path, retro=constant)
    assert (totals.bytes == 15).all() and (totals.words == 3).all()
    assert (totals.tokens < 16).all() and np.array_equal(totals.bits["on"], 2.0 * totals.tokens)
    found = figures(totals, np.ones(len(totals.bytes), bool), 50, 0)
    assert np.isclose(found["word_perplexity"]["on"], 2 ** (2 * totals.tokens.sum() / (3 * len(totals.bytes))))


def test_accuracy_counts_documents_whose_tokens_are_all_hit(task, tmp_path):
    totals, _ = scored_with(dataclasses.replace(task, greedy=True), tmp_path, retro=reader)
    assert (totals.hits["off"] == 0).all() and totals.hits["oracle"].sum() > 0
    one = Scored(np.zeros(3), np.ones(3), np.array([2, 2, 0]), np.zeros(3), np.array([2, 1, 0]))
    assert METRICS["accuracy"].value(one) == 0.5, "a document without a scored token is no success"
    unseen = dataclasses.replace(one, hits=np.full(3, -1))
    assert METRICS["accuracy"].value(unseen) is None and METRICS["word_perplexity"].value(one) is None


def test_contaminated_documents_can_be_left_out(task, tmp_path):
    everything, (text, found, _) = scored_with(task, tmp_path, retro=reader)
    keep = np.arange(len(everything.bytes)) % 2 == 1
    part = add_up(text, found, task.text.subset_names, keep)
    assert np.array_equal(part.bytes, everything.bytes[keep])
    assert part.bin_bytes.sum() == part.bytes.sum() < everything.bin_bytes.sum()
    assert np.isclose(part.bin_bits["on"].sum(), part.bits["on"].sum())


def test_neighbors_of_each_condition(task):
    text, source = task.text, task.text.neighbors()
    rows = np.array([[0, 1, 2], [int(text.edges[1]) - 1, int(text.edges[-1]) - 1, -1]])
    asked = Asked(rows, text, source, 2, 0, 0)
    ids = np.where((rows >= 0)[..., None], source.find(np.maximum(rows, 0))[0][..., :2], -1)
    real = source.value(ids)

    def given(name):
        return CONDITIONS[name].neighbors(asked)

    assert CONDITIONS["off"].neighbors is None and CONDITIONS["baseline"].neighbors is None
    assert np.array_equal(given("on"), real)
    assert (given("empty") == -1).all() and given("empty").shape == real.shape
    oracle = given("oracle")
    table = np.asarray(text.table.tokens)[text.first :]
    assert np.array_equal(oracle[0, 0, 0], np.concatenate([table[0], table[1]]))
    assert np.array_equal(oracle[1, 0, 0], np.concatenate([table[rows[1, 0]], np.full(M, -1)])), (
        "a document's last chunk"
    )
    assert np.array_equal(oracle[1, 1, 0, M:], np.full(M, -1)) and (oracle[1, 2] == -1).all()
    assert np.array_equal(oracle[:, :, 1:], real[:, :, 1:])
    mixed, kept = given("shuffled"), rows >= 0
    assert sorted(map(bytes, mixed[kept])) == sorted(map(bytes, real[kept]))
    assert not any(np.array_equal(a, b) and (b >= 0).any() for a, b in zip(mixed[kept], real[kept], strict=True))
    there = (given("random") >= 0).any(-1)
    assert np.array_equal(there.sum(-1), (ids >= 0).sum(-1)), "as many as the real set has"


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_the_compiled_scorer_is_the_models_loss(task, sizes):
    """On one device and on eight."""
    params, block = random_parameters(MODEL), task.block(0, 3)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    placed = jax.device_put(params, shardings(params, mesh))
    _, inputs = block.inputs(slice(0, 4), 4)
    tokens, segments = inputs["tokens"], inputs["segments"]
    logits = np.asarray(
        jax.jit(lambda params: jax.nn.log_softmax(merge(MODEL, params)(tokens, segments, None)))(params)
    )
    targets = np.where(np.arange(tokens.shape[1]) % 3 == 0, logits.argmax(-1), inputs["targets"])
    targets = np.where(inputs["targets"] < 0, -1, targets).astype(np.int32)
    started = Scorer(MODEL, placed, mesh, greedy=True).start({**inputs, "targets": targets}, None)
    bits, hits = Scorer.fetch(started)
    expected = -np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0] / np.log(2)
    assert np.allclose(bits, np.where(targets >= 0, expected, 0), rtol=1e-5, atol=1e-5)
    assert np.array_equal(hits, (logits.argmax(-1) == targets) & (targets >= 0)) and hits.sum() > 0


def test_a_killed_evaluation_scores_only_what_is_missing(task, tmp_path):
    """Parts that are there are kept, a damaged one is scored again, and the figures are those of an undisturbed run."""
    whole, (text, found, models) = scored_with(task, tmp_path / "whole", retro=reader)
    files = sorted(path for path in (tmp_path / "whole").rglob("*.parquet"))
    content = {path: path.read_bytes() for path in files}
    assert models["retro"].batches > 20

    def stop_at(batch):
        count = iter(range(10**6))

        def stop():
            if next(count) == batch:
                raise KeyboardInterrupt

        return stop

    for batch in (0, 7, 23):
        with pytest.raises(KeyboardInterrupt):
            conditions = [one for one in CONDITIONS.values() if one.model == "retro"]
            score_set(task, tmp_path / "killed", conditions, lambda name: Made(reader), stop_at(batch))
    files[1].write_bytes(content[files[1]][:-30])
    files[2].unlink()
    again, (_, _, models) = scored_with(task, tmp_path / "whole", retro=reader)
    assert {path: path.read_bytes() for path in files} == content
    assert 0 < models["retro"].batches < 10
    resumed, _ = scored_with(task, tmp_path / "killed", retro=reader)
    for other in (again, resumed):
        assert all(np.array_equal(whole.bits[name], other.bits[name]) for name in whole.bits)
    assert scored_with(task, tmp_path / "whole", retro=reader)[1][2]["retro"].batches == 0


@pytest.mark.parametrize("change", [{"seed": 1}, {"k": 1}, {"batch": 3}, {"models": {"retro": {"checkpoint": "c"}}}])
def test_other_scores_have_another_place(task, tmp_path, change):
    """Scores of another seed, model or number of neighbors are never taken for these."""
    scored_with(task, tmp_path, retro=constant)
    _, (_, _, models) = scored_with(dataclasses.replace(task, **change), tmp_path, retro=constant)
    assert models["retro"].batches > 0
    _, (_, _, models) = scored_with(task, tmp_path, retro=constant)
    assert models["retro"].batches == 0


class Repeated(WholeSet):
    """A set of any size that takes no memory: its documents are those of the fixture again and again."""

    def __init__(self, data, documents):
        super().__init__(data)
        self._edges, self._count = self.edges, len(self.subsets)
        self.edges = np.append(0, np.cumsum(np.diff(self._edges)[np.arange(documents) % self._count]))
        self.subsets, self.document_ids = np.resize(self.subsets, documents), np.arange(documents)

    def _own(self, rows):
        return np.asarray(rows) % self._edges[-1]

    def tokens(self, rows):
        return super().tokens(self._own(rows))

    def documents(self, start, stop):
        everything = super().documents(0, self._count)
        return [everything[number % self._count] for number in range(start, stop)]

    def neighbors(self, k=0, share=1.0, database=""):
        source, own = super().neighbors(), self._own
        find = source.find
        source.find = lambda rows: find(own(rows))
        return source


def test_memory_does_not_grow_with_the_set(data, task, tmp_path, monkeypatch):
    """Ten times the documents, the same memory: only sums of a few numbers a document and condition are held."""
    monkeypatch.setattr(block_ranges, "__defaults__", (2000,))
    peaks = {}
    for documents in (50, 500):
        changed = dataclasses.replace(task, text=Repeated(data, documents))
        tracemalloc.start()
        totals, (_, _, models) = scored_with(changed, tmp_path / str(documents), ("off", "on"), retro=constant)
        peaks[documents] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(totals.bytes) == documents and models["retro"].batches > documents / 8
    everything = int(changed.text.edges[-1]) * M * 4 * 2  # the bits of all tokens under both conditions
    assert peaks[500] - peaks[50] < 500 * 300 < everything
