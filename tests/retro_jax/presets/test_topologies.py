"""Names of slices, and the errors for wrong ones."""

import pytest

from retro_jax.presets.topologies import CHIPS, parse_topology


@pytest.mark.parametrize(
    ("name", "devices", "gib"),
    [("v5e:16x16", 256, 15.75), ("v5p:8x8x4", 256, 95.74), ("v4-4x4x8", 128, 30.75), ("h100:8", 8, 74.5)],
)
def test_a_slice_by_its_name(name, devices, gib):
    topology = parse_topology(name)
    assert (topology.devices, topology.memory_gib) == (devices, gib)
    assert topology.name == name.replace("-", ":") and topology.word == name.replace(":", "-")


def test_virtual_devices_share_this_machine():
    assert parse_topology("cpu:8").memory_gib == pytest.approx(parse_topology("cpu:1").memory_gib / 8)


def test_many_gpus_are_bound_by_their_network():
    gpus = parse_topology("h100:64")
    assert gpus.link_bandwidth(8) == CHIPS["h100"].link_bandwidth == 9 * gpus.link_bandwidth(64)
    assert parse_topology("v5e:16x16").link_bandwidth(256) == CHIPS["v5e"].link_bandwidth


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5q:8x8", "v5q:8x8 is not known .did you mean .*; take a slice, of any size, of: v4:8x8x4, v5e:16x16"),
        ("tpu", "is not known"),
        ("v5e:4x4x4", "a slice of v5e has 2 positive size.s., as in v5e:16x16"),
        ("v5p:8x8", "a slice of v5p has 3 positive"),
        ("h100:0", "a slice of h100 has 1 positive"),
        ("v5e", "a slice of v5e has 2"),
    ],
)
def test_an_unknown_slice_lists_the_known(name, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(name)
