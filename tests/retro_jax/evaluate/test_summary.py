"""Intervals, the verdict in words, and the table."""

import numpy as np

from retro_jax.evaluate.conditions import CONDITIONS
from retro_jax.evaluate.summary import paired_difference, table_text, verdict


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
    """A gain that any text gives, taken for one of retrieval: below Off is not enough; and the subset that is asked is the one with the highest overlap."""
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
    assert "of a chunk with its neighbors is at most 12.5%: +0.0040 ~ (-0.0002 .. +0.0090)" in text
