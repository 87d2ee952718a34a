"""The paper's Table 8 as `config.train.subset_weights`: renormalized with a notice; the drawn frequencies follow it."""

import collections
import logging

from retro_jax.data.batches import sequence_order

WEB = {"en": 0.314, **dict.fromkeys(("ru", "es", "zh", "fr", "de", "pt", "it"), 0.033), "sw": 0.0044, "ur": 0.0011}
WIKIPEDIA = {
    "en": 0.0285,
    **dict.fromkeys(("de", "fr", "ru", "es", "it", "zh", "pt"), 0.003),
    "ur": 0.0001,
    "sw": 0.0004,
}
WEIGHTS = {
    **{f"web_{language}": weight for language, weight in WEB.items()},
    **{f"wikipedia_{language}": weight for language, weight in WIKIPEDIA.items()},
    "books": 0.25,
    "news": 0.1,
    "github": 0.05,
}


def test_table_8_is_renormalized_and_followed(caplog):
    """The printed weights sum to 1.0005. Of 4,000 sequences a quarter is books."""
    subsets = {name: (100 * number, 100 * (number + 1)) for number, name in enumerate(WEIGHTS)}
    with caplog.at_level(logging.WARNING):
        order = sequence_order(subsets, WEIGHTS, seed=0)
    assert "sum to 1.0005 and are renormalized; not drawn: none" in caplog.text
    names, count = list(WEIGHTS), 4_000
    drawn = collections.Counter(names[order[place] // 100] for place in range(count))
    assert (drawn["web_en"], drawn["books"], drawn["github"], drawn["wikipedia_ur"]) == (1255, 1000, 200, 1)
    total = sum(WEIGHTS.values())
    expected = {name: count * weight / total for name, weight in WEIGHTS.items()}
    chi_square = sum((drawn[name] - expected[name]) ** 2 / expected[name] for name in names)
    assert chi_square < 9.5  # the first percentile at 22 degrees of freedom: drawn by quota, steadier than at random
