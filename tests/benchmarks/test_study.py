"""The study's page on made-up scores: intervals, the rule of verdicts, negative results first, and what is missing."""

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest
from checks import FAILED, FAILS, HOLDS, OPEN, REPRODUCED, UNDECIDED, WAITING, _state, run_check, verdict
from claims import CLAIMS
from page import page, plots
from points import Study
from probe import repeated_runs
from quantities import Estimate, Expression, Ratio, estimate

from retro_jax.core.files import write_json
from retro_jax.evaluate.scores import write_table
from retro_jax.presets.ablations import TABLE_13

DOCUMENTS, CHUNKS, BYTES = 60, 4, 50  # made-up documents, chunks of each, and bytes of a chunk
NOISE = 0.002  # bits per byte, of a seed and of a document
SUBSETS = np.array(["legal"] * 40 + ["wiki"] * 20)
CONDITIONS = ("baseline", "off", "on", "random", "empty", "shuffled", "oracle")
# Bits per byte above the baseline's 2.0, by condition; points change some of them.
USUAL = {"off": 0.01, "on": -0.2, "random": 0.02, "empty": 0.01, "shuffled": 0.0, "oracle": -0.9}


def write_point(workdir, name: str, seed: int, effects: Mapping[str, float]) -> None:
    """A made-up point; On gains three times as much in the second half of a document's chunks, where the overlap is high."""
    folder = workdir / "points" / f"{name},seed={seed}"
    documents = np.random.default_rng(0).normal(0, 0.3, DOCUMENTS)  # how hard each is, for all points alike
    draws = np.random.default_rng([seed, *name.encode()])
    overlap = np.tile([0.0, 0.1, 0.6, 1.0], DOCUMENTS)
    chunk_bytes = np.full(DOCUMENTS * CHUNKS, BYTES)
    per_chunk = list(np.split(chunk_bytes, DOCUMENTS))
    text = {"id": np.arange(DOCUMENTS), "subset": list(SUBSETS), "bytes": np.full(DOCUMENTS, CHUNKS * BYTES)}
    text |= {"chunks": np.full(DOCUMENTS, CHUNKS), "chunk_bytes": per_chunk}
    text["chunk_overlap"] = np.split(overlap, DOCUMENTS)
    scores = folder / "scores" / "held_out"
    write_table(scores / "text-0" / "part-00000.parquet", text)
    places = {"text": "text-0"}
    for condition, effect in {"baseline": 0.0, **USUAL, **effects}.items():
        gains = np.tile([0.5, 0.5, 1.5, 1.5] if condition == "on" else [1.0] * 4, DOCUMENTS)
        level = 2.0 + draws.normal(0, NOISE) + np.repeat(documents + draws.normal(0, NOISE, DOCUMENTS), CHUNKS)
        bits = BYTES * (level + effect * gains)
        places[condition] = f"{condition.replace(' ', '-')}-0"
        columns = {"bits": bits.reshape(DOCUMENTS, CHUNKS).sum(axis=1), "chunk_bits": np.split(bits, DOCUMENTS)}
        write_table(scores / places[condition] / "part-00000.parquet", columns)
    model = {"parameters": 1_000, "baseline_parameters": 800, "settings": {"training_tokens": "9", "chunk_length": 16}}
    results = {"made_from": {"scores": {"held_out": places}}, "sets": {}, "model": model}
    write_json(folder / "results.json", json.loads(json.dumps(results)))


TRIED = {**{f"on k={k}": -0.2 - 0.001 * k for k in (3, 5, 10, 20)}, "on k=1": -0.15}
TRIED |= {f"on share={share:g}": -0.02 * number for number, share in enumerate((0.01, 0.03, 0.1, 0.3))}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A study in which N alone is better than both, BM25 differs by seed alone, and rows of Table 13 are missing."""
    root = tmp_path_factory.mktemp("study")
    for seed in (0, 1, 2):
        write_point(root, "default", seed, TRIED)
        write_point(root, "neighbor_only", seed, {"on": -0.4})
        write_point(root, "continuation_only", seed, {"on": -0.1})
        write_point(root, "bm25", seed, {"on": -0.2 + 0.1 * (seed - 1)})
    return root


def checked(workdir, number: str):
    (claim,) = (claim for claim in CLAIMS if claim.number == number)
    return [run_check(check, Study(workdir)) for check in claim.checks]


def test_the_interval_over_seeds_is_students():
    """Guards against seeds that count like documents: three values .1, .2, .3 have t = 4.303 and 0.1 / sqrt(3)."""
    sizes = np.ones(5)
    bits = {seed: np.full(5, value) for seed, value in enumerate((0.1, 0.2, 0.3))}
    found = estimate(Expression((Ratio(1.0, np.arange(5), bits, sizes),)))
    assert found.mean == pytest.approx(0.2)
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


def test_the_interval_over_documents_is_students():
    values = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    found = estimate(Expression((Ratio(1.0, np.arange(5), {0: values}, np.ones(5)),)))
    assert (found.mean, found.high) == (
        pytest.approx(2.0),
        pytest.approx(2.0 + 2.776445 * math.sqrt(2.5 / 5), rel=1e-6),
    )


def test_documents_are_paired_by_id():
    """Guards against a difference of documents that stand in another order."""
    one = Ratio(1.0, np.array([7, 8, 9]), {0: np.array([1.0, 2.0, 3.0])}, np.ones(3))
    other = Ratio(-1.0, np.array([9, 7, 5]), {0: np.array([3.0, 1.0, 50.0])}, np.ones(3))
    assert estimate(Expression((one, other))) == Estimate(0.0, 0.0, 0.0, {0: 0.0}, 2)


@pytest.mark.parametrize(
    ("low", "high", "seeds", "range_", "state"),
    [
        (-0.3, -0.1, (-0.2, -0.1), (-math.inf, 0.0), HOLDS),
        (-0.3, -0.1, (-0.4, 0.1), (-math.inf, 0.0), UNDECIDED),  # seeds differ in sign
        (0.1, 0.3, (0.2, 0.2), (-math.inf, 0.0), FAILS),
        (-0.3, 0.1, (-0.1, -0.1), (-math.inf, 0.0), UNDECIDED),
        (-0.003, 0.002, (-0.1, -0.1), (-math.inf, 0.0), FAILS),  # no difference that counts
        (-0.003, 0.002, (-0.1, 0.1), (-0.01, 0.01), HOLDS),  # a margin asks for no sign
        (-0.003, 0.02, (0.1, 0.1), (-0.01, 0.01), UNDECIDED),
        (0.011, 0.02, (0.1, 0.1), (-0.01, 0.01), FAILS),
        (-0.02, 0.1, (0.1, 0.1), (-0.05, math.inf), HOLDS),
    ],
)
def test_the_state_of_a_check_follows_its_interval(low, high, seeds, range_, state):
    found = Estimate((low + high) / 2, low, high, dict(enumerate(seeds)), 60)
    assert _state(found, *range_, small=0.005) == state


def test_a_claim_that_holds_one_that_fails_one_that_is_open_and_one_without_its_points(workdir):
    assert verdict(checked(workdir, "17")) == REPRODUCED
    ordering = checked(workdir, "21")
    assert [one.state for one in ordering] == [HOLDS, FAILS, HOLDS] and verdict(ordering) == FAILED
    assert verdict(checked(workdir, "D")) == OPEN  # the noise of seeds is larger than the difference
    assert verdict(checked(workdir, "24")) == WAITING
    assert verdict(checked(workdir, "22")) == REPRODUCED and verdict(checked(workdir, "N")) == FAILED


def test_a_claim_is_decided_for_any_shift_of_what_it_compares(workdir):
    """Guards against a check that no data can fail: moved by ten bits per byte either way, every sign turns."""
    study = Study(workdir)
    for claim in CLAIMS:
        for check in claim.checks:
            if run_check(check, study).state == WAITING:
                continue
            found = estimate(check.quantity(study))
            ends = [
                _state(Estimate(at, at - 1, at + 1, {0: at}, found.documents), *_range(check), 0.0)
                for at in (-1e3, 1e3)
            ]
            assert FAILS in ends, (claim.number, check.says)


def _range(check):
    return tuple(end * 2.0 if end else 0.0 for end in (check.low, check.high))


def test_negative_results_stand_first_and_missing_points_are_named(workdir):
    text = page(Study(workdir))
    table = [line for line in text.splitlines() if line.startswith("| ") and "**" in line]
    states = [next(state for state in (FAILED, OPEN, REPRODUCED, WAITING) if f"**{state}**" in line) for line in table]
    assert len(table) == len(CLAIMS)
    assert states == sorted(states, key=(FAILED, OPEN, REPRODUCED, WAITING).index)
    assert "Not finished yet" in text and "all_layers" in text and "retrofit" in text and "large_m16" in text
    for row in TABLE_13:
        assert row.meaning in text and f"{row.bpb:.3f}" in text
    drawn = plots(Study(workdir))
    assert set(drawn) == {"study-rows.svg", "study-overlap.svg"} and "N alone" in drawn["study-rows.svg"]


def test_a_study_of_one_seed_and_one_without_points_have_a_page(tmp_path):
    assert "No point is finished" in page(Study(tmp_path))
    write_point(tmp_path, "default", 0, {})
    text = " ".join(page(Study(tmp_path)).split())
    assert "1,000 parameters" in text and "Seeds a point: 1." in text


def test_gain_by_overlap_is_of_the_chunks_in_its_row(workdir):
    """On gains 0.5 and 1.5 times 0.2 bits per byte, and Off is 0.01 above the baseline."""
    rows = [
        line.split(" | ")
        for line in page(Study(workdir)).splitlines()
        if line.startswith("| 0.0% to") or "87.5% to" in line
    ]
    gains = [float(row[5].split(" ")[0]) for row in rows]
    assert gains == pytest.approx([-0.11, -0.31], abs=0.01)


def test_repeated_runs_are_counted_across_the_edge_of_the_chunk():
    """Guards against a run that starts in the chunk before, one longer than the limit, and padding that matches padding."""
    tokens = np.array([[3, 4, 9, -1]])
    earlier = np.array([[8, 8, 1, 2]])
    neighbors = np.array([[[0, 1, 2, 3, 4, 5, -1, -1]]])
    assert repeated_runs(tokens, earlier, neighbors).tolist() == [[3, 4, 0, 0]]
    long = np.arange(8)[None]
    assert repeated_runs(long, long - 8, long[:, None]).tolist() == [[1, 2, 3, 4, 5, 5, 5, 5]]
