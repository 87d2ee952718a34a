"""Every config field declares range and documentation, and a value outside is refused by name."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from retro_jax.config import RunConfig, SourceConfig, declarations, resolve, to_dict
from retro_jax.config.page import config_page
from retro_jax.config.settings import INT64, Choice, Named, Names, Number, Numbers, Rising, Text

DECLARED = list(declarations(RunConfig))
VALUES = [one for one in DECLARED if one.setting.range is not None]


def outside(declared):
    """Values that the field must refuse, from the declaration's data, not from its `holds`."""
    allowed = declared.setting.range
    match allowed:
        case Number():
            return numbers_outside(allowed, declared.kind)
        case Choice():
            texts = st.text(max_size=8).filter(lambda text: text not in allowed.values)
            return st.one_of(texts, st.integers(), st.none())  # a switch is neither 0 nor 1
        case Text():
            cut = st.tuples(st.text(max_size=5), st.text(max_size=5)).map("\0".join)
            return st.one_of(cut, st.integers(), st.none(), *([] if allowed.empty else [st.text(" \n", max_size=3)]))
        case Rising():
            below = st.integers(max_value=0).map(lambda layer: [layer])
            twice = st.integers(1, 9).map(lambda layer: [layer, layer])
            falling = st.integers(2, 9).map(lambda layer: [layer, layer - 1])
            return st.one_of(below, twice, falling, st.just([True]), st.just([2**40]), st.just("12"), st.just(1))
        case Names():
            return st.one_of(st.just([""]), st.just(["a", "a"]), st.just(["a\0b"]), st.just([1]), st.just("held_out"))
        case Numbers():
            edge = [allowed.low - 1] if not allowed.open else [allowed.low]
            return st.one_of(
                st.just(edge), st.just([0.5, 0.5]), st.just([2, 2]), st.just([True]), st.just("12"), st.just(1)
            )
        case Named(each=None):
            return st.one_of(st.just({"": {}}), st.just({"a\0b": {}}), st.just("own"))
        case Named():
            bad = numbers_outside(allowed.each, float).map(lambda value: {"wiki": value})
            return st.one_of(bad, st.just({"": 1.0}), st.just([0.5]))
    raise AssertionError(f"{declared.key} has a range that this test does not know")


def numbers_outside(allowed, kind):
    whole = kind is int
    found = [st.booleans(), st.text(max_size=3), st.none(), st.just(10**400)]
    low, high = math.ceil(allowed.low), allowed.high
    below = st.integers(max_value=low if allowed.above else low - 1)
    found.append(below.filter(lambda value: value != allowed.also))
    if whole:
        found += [st.floats(), st.integers(min_value=(INT64 if high is None else high) + 1)]
    else:
        found += [st.sampled_from([math.nan, math.inf, -math.inf])]
        found += [st.floats(max_value=allowed.low, exclude_max=not allowed.above, allow_infinity=False)]
        found += [] if high is None else [st.floats(min_value=high, exclude_min=not allowed.below)]
    return st.one_of(found)


def placed(key, value):
    """The default config as nested dicts with one value changed, and where a message names it."""
    config = to_dict(RunConfig())
    config["data"]["sources"] = {"NAME": to_dict(SourceConfig(path="text"))}
    *parents, last = key.split(".")
    node = config
    for part in parents:
        node = node[part]
    node[last] = value
    return config


def test_every_field_has_a_range_and_a_documentation():
    assert len(DECLARED) >= 98
    for one in DECLARED:
        doc = one.setting.doc
        assert doc[0].isupper() and doc.endswith(".") and len(doc) > 8, one.key
        assert one.setting.range is not None or dataclasses.is_dataclass(one.kind), one.key
        if one.setting.range is not None:
            assert one.setting.range.holds(one.default), one.key
            assert resolve(placed(one.key, one.default if one.key != "data.sources" else {}))


@pytest.mark.parametrize("declared", VALUES, ids=lambda one: one.key)
def test_a_value_out_of_range_is_refused_by_name_and_range(declared):
    @settings(max_examples=25, deadline=None, database=None)
    @given(outside(declared))
    def refused(value):
        with pytest.raises(ValueError) as caught:
            resolve(placed(declared.key, value))
        message = str(caught.value)
        assert f"config.{declared.key}" in message and len(message) < 400
        text = getattr(declared.setting.range, "each", None) or declared.setting.range
        phrases = (text.text, "must be of type", "must map names", "must be a tuple", "A name in", "up to 1.79769e+308")
        assert any(phrase in message for phrase in phrases)

    refused()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "train.clip_norm",
            -1.0,
            "clip_norm must be 0 or more, but is -1.0. .*0 turns clipping off. The default is 1.0.",
        ),
        ("train.learning_rate", -1e-3, "learning_rate must be above 0, but is -0.001"),
        ("train.learning_rate", math.nan, "must be a finite number, above 0, but is nan"),
        ("train.beta2", 1.5, "beta2 must be 0 or more and below 1, but is 1.5"),
        ("train.epsilon", -1.0, "epsilon must be above 0"),
        ("train.final_fraction", -3.0, "final_fraction must be from 0 to 1"),
        ("train.warmup_steps", -5, "warmup_steps must be 0 or more"),
        ("train.retrieval_check_every", -1, "retrieval_check_every must be 0 or more.* 0 turns them off"),
        ("train.keep_checkpoints", -1, "keep_checkpoints must be 0 or more.* 0 keeps all"),
        ("train.seed", 2**32, "seed must be from 0 to 4294967295"),
        ("train.on_spike", "skipp", r"must be one of none, skip, roll_back, but is 'skipp' \(did you mean skip\?\)"),
        ("train.mesh.data", 0, "mesh.data must be 1 or more|from 1 to 2147483647, or -1"),
        ("train.subset_weights", {"wiki": -0.5}, "config.train.subset_weights.wiki must be 0 or more, but is -0.5"),
        ("train.subset_weights", {"wiki": 0.0}, "subset_weights are all 0"),
        ("train.steps", 2**70, "a number of 71 bits"),
        ("data.tokenizer", "a\0b", "without NUL characters"),
        ("data.sources.NAME.text_key", "", "config.data.sources.NAME.text_key must be .* not empty"),
        ("sample.top_p", 0.0, "top_p must be above 0 and at most 1"),
        ("evaluate.bootstrap", 5, "bootstrap must be 40 or more"),
    ],
)
def test_messages(key, value, message):
    with pytest.raises(ValueError, match=message):
        resolve(placed(key, value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.warmup_steps": 800_000}, "take at most 799998 warm-up steps"),
        ({"train.learning_rate": 1e-9}, "initial_learning_rate=1e-07 is above config.train.learning_rate=1e-09"),
        ({"train.mesh.fsdp": -1}, "At most one size of config.train.mesh is -1"),
        ({"train.accumulation": 3}, "take a batch of 255"),
        ({"data.index_leaves": 10, "data.index_leaves_searched": 11}, "index_leaves_searched=11 is more than .*=10"),
        ({"data.index_reorder": 9}, "9 candidates cannot give config.data.neighbors_stored=10"),
        ({"model.retrieval_layers": [13]}, "holds layer 13"),
        ({"model.width": 897}, "take 898"),
    ],
)
def test_values_that_do_not_fit_together(changes, message):
    config = to_dict(RunConfig())
    for key, value in changes.items():
        section, *parents, last = key.split(".")
        node = config[section]
        for part in parents:
            node = node[part]
        node[last] = value
    with pytest.raises(ValueError, match=message):
        resolve(config)


def test_limits_and_special_values_are_accepted():
    for key, value in {
        "train.clip_norm": 0,
        "train.beta1": 0.0,
        "train.weight_decay": 0.0,
        "train.mesh.data": -1,
        "train.final_fraction": 1.0,
        "train.seed": 2**32 - 1,
        "train.warmup_steps": 0,
        "model.retrieval_layers": [],
        "model.neighbors": 0,
        "data.validation_fraction": 0.0,
        "data.database_fraction": 1,
        "sample.temperature": 0,
        "evaluate.passages": 0,
    }.items():
        assert resolve(placed(key, value))


def test_the_page_of_settings_is_made_from_the_declarations():
    """docs/config.md holds every setting; `make config-page` rewrites it."""
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == config_page()
    assert config_page().count("\n| `") == sum(one.setting.range is not None for one in declarations(RunConfig))
