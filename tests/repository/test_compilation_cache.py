"""The compilation cache of the tests: a loaded program gives the same bits, and only whole ones of this machine are kept."""

import os
import zlib

import compilation_cache
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation_cache import close_session, open_session, store
from jax.experimental.compilation_cache import compilation_cache as cache
from tiny_model import pack, random_parameters, tiny

from retro_jax.models.loss import token_nll
from retro_jax.models.retro import merge

HIT = "/jax/compilation_cache/cache_hits"
CPU = "processor: 0\nmodel name: A\ncpu MHz: {mhz}\nflags: sse avx{more}\n"


@pytest.fixture
def folder(tmp_path):
    """folder(DIRECTORY) makes JAX forget what it compiled, and use the cache there."""
    before = jax.config.jax_compilation_cache_dir

    def use(directory):
        jax.clear_caches()
        cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", str(directory) or None)

    yield use
    use(before or "")


def test_a_loaded_program_gives_the_bits_of_a_compiled_one(folder, tmp_path):
    """Loss and gradients of a model: compiled into an empty cache, and loaded from it."""
    config = tiny(encoder={"layers": 1}, layers=1, retrieval_layers=(1,))
    params, batch = random_parameters(config), pack(config, [9, 7], 2).batch(2)
    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name == HIT else None)

    def loss(params, tokens, segments, neighbors):
        model = merge(config, params)
        return token_nll(model.hidden(tokens, segments, neighbors), model.readout, jnp.abs(tokens), 0).mean()

    def bits(directory):
        folder(directory)
        hits.clear()
        found = jax.jit(jax.value_and_grad(loss))(params, *batch)
        return [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(found))], len(hits)

    compiled, loaded = bits(tmp_path / "one")
    assert loaded == 0
    (tmp_path / "one").rename(tmp_path / "two")  # the next session has another folder
    again, loaded = bits(tmp_path / "two")
    assert loaded >= 1 and again == compiled


def test_another_processor_has_a_store_of_its_own(tmp_path):
    """A program with instructions that a machine lacks would end the process there."""
    found = []
    for number, text in enumerate(
        [CPU.format(mhz=2000, more=""), CPU.format(mhz=3000, more=""), CPU.format(mhz=2000, more=" avx512f")]
    ):
        path = tmp_path / f"cpuinfo-{number}"
        path.write_text(text)
        found.append(store(tmp_path, path))
    assert found[0] == found[1] != found[2]


def test_programs_move_from_session_to_session_but_half_ones(tmp_path, monkeypatch):
    monkeypatch.delenv(compilation_cache.VARIABLE, raising=False)
    session = open_session(tmp_path)
    assert os.environ[compilation_cache.VARIABLE] == str(session) and list(session.iterdir()) == []
    content = zlib.compress(os.urandom(1000))
    (session / "jit_whole-cache").write_bytes(content)
    (session / "jit_half-cache").write_bytes(content[:500])
    assert close_session(session) == 1 and not session.exists()
    again = open_session(tmp_path)  # as a worker does, whose environment has its parent's folder
    assert [path.name for path in again.iterdir()] == ["jit_whole-cache"]
    assert (again / "jit_whole-cache").read_bytes() == content
    assert close_session(again) == 0


def test_the_cache_of_a_caller_stays(tmp_path, monkeypatch):
    """`make mutations` names one of its own."""
    monkeypatch.setenv(compilation_cache.VARIABLE, str(tmp_path / "theirs"))
    assert open_session(tmp_path / "ours") is None
    assert os.environ[compilation_cache.VARIABLE] == str(tmp_path / "theirs")


def test_a_store_that_is_too_large_starts_again(tmp_path, monkeypatch):
    monkeypatch.delenv(compilation_cache.VARIABLE, raising=False)
    monkeypatch.setattr(compilation_cache, "LARGEST", 10)
    session = open_session(tmp_path)
    (session / "jit_one-cache").write_bytes(zlib.compress(os.urandom(100)))
    assert close_session(session) == 1
    assert list(open_session(tmp_path).iterdir()) == []
