"""Checkpoints are whole or absent, belong to one run, and survive a change of mesh."""

import dataclasses
import json
import shutil
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from jax.sharding import SingleDeviceSharding
from training_fixture import MODEL, make_run

from retro_jax.config import MeshConfig
from retro_jax.parallel.sharding import make_mesh, shardings
from retro_jax.run_directory import checkpoints as checkpoints_module
from retro_jax.run_directory.checkpoints import Checkpoints
from retro_jax.run_directory.directory import identity
from retro_jax.run_directory.keeping import Keep
from retro_jax.run_directory.plain_path import plain_path
from retro_jax.run_directory.whole import find_fault, listing, newest_whole, steps, whole_path
from retro_jax.train.state import TrainState

RUN = make_run()
FINGERPRINTS = {"tokenizer": "t", "database": "d", "joined": "j"}
OPTIMIZER = optax.adam(1e-3)

# Where a save is broken on purpose, tensorstore's callbacks may reach orbax's event loop after orbax closed it; uvloop then
# raises in a callback of nobody, which pytest reports as an exception ignored in None.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")


def facts(step):
    """The JSON that a loop saves beside the arrays."""
    return {"iterator": {"next_index": step}}


def make_state(step, mesh_config=None, size=4):
    """A small state whose every value depends on the step, on the mesh if one is given."""
    params = {"embedding": jnp.arange(64.0).reshape(16, 4) + step, "layers": {"up": jnp.ones((2, 8, size)) * step}}
    moments = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim else leaf + step, OPTIMIZER.init(params))
    state = TrainState(jnp.int32(step), params, moments)
    if mesh_config is None:
        return jax.device_put(state, SingleDeviceSharding(jax.devices()[0]))
    mesh = make_mesh(mesh_config, jax.devices()[: mesh_config.data * mesh_config.fsdp * mesh_config.tensor])
    return jax.tree.map(jax.device_put, state, shardings(state, mesh))


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def open_checkpoints(directory, run=RUN, fingerprints=FINGERPRINTS, keep=0):
    kept = dataclasses.replace(run, train=dataclasses.replace(run.train, keep_checkpoints=keep))
    return Checkpoints(directory, identity(run, fingerprints), Keep(kept))


def saved(directory, *at, mesh=None, keep=0):
    checkpoints = open_checkpoints(directory, keep=keep)
    for step in at:
        checkpoints.save(step, make_state(step, mesh), facts(step))
    checkpoints.close()
    return checkpoints


def largest_file(directory):
    return max((file for file in directory.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def test_round_trip_of_state_and_iterator(tmp_path):
    saved(tmp_path, 2, 4)
    found, beside = open_checkpoints(tmp_path).restore(abstract(make_state(0)))
    assert_same(found, make_state(4))
    assert beside == facts(4)
    assert_same(open_checkpoints(tmp_path).restore(abstract(make_state(0)), at_most=3)[0], make_state(2))


def test_an_empty_directory_restores_nothing(tmp_path):
    assert open_checkpoints(tmp_path / "new").restore(abstract(make_state(0))) is None


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    """The next step overwrites the arrays in place; the checkpoint must hold what was given."""
    checkpoints = open_checkpoints(tmp_path)
    state = make_state(7)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    checkpoints.save(7, state, facts(7))
    for _ in range(3):
        state = overwrite(state)
    checkpoints.close()
    assert_same(open_checkpoints(tmp_path).restore(abstract(make_state(0)))[0], make_state(7))


def test_a_save_that_all_have_written_becomes_whole_when_a_process_is_lost(tmp_path, monkeypatch):
    """Only the marker is missing then; a marker that never comes is waited for no longer than allowed."""
    listing, go_on = checkpoints_module.listing, threading.Event()
    monkeypatch.setattr(checkpoints_module, "listing", lambda path: go_on.wait(60) and listing(path))
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.wait_for_marker(60)  # nothing was saved
    checkpoints.save(3, make_state(3), facts(3))
    checkpoints.wait_for_marker(0.1)
    assert newest_whole(tmp_path) is None
    go_on.set()
    checkpoints.wait_for_marker(60)
    assert newest_whole(tmp_path) == 3
    checkpoints.close()


def test_eight_devices_restore_on_four_and_on_one(tmp_path):
    """Another mesh is only a matter of the shardings asked for."""
    saved(tmp_path, 3, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    for mesh in (MeshConfig(data=1, fsdp=2, tensor=2), MeshConfig(data=1), MeshConfig(data=1, fsdp=4, tensor=2)):
        like = make_state(0, mesh)
        found, _ = open_checkpoints(tmp_path).restore(abstract(like))
        assert_same(found, make_state(3))
        jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted.sharding or pytest.fail(str(leaf)), found, like)


def cut_short(directory):
    file = largest_file(directory)
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(directory):
    file = largest_file(directory)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(directory):
    largest_file(directory).unlink()


def lose_the_listing(directory):
    """The state after a kill between orbax's rename and our last write."""
    (directory.parent / f"{directory.name}.whole.json").unlink()


@pytest.mark.parametrize(
    "damage, said",
    [
        (cut_short, " bytes of "),
        (flip_a_bit, "was altered"),
        (lose_a_file, "missing"),
        (lose_the_listing, "whole.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path, capsys, damage, said):
    saved(tmp_path, 2, 4)
    damage(tmp_path / "4")
    found, _ = open_checkpoints(tmp_path).restore(abstract(make_state(0)))
    assert_same(found, make_state(2))
    error = capsys.readouterr().err
    assert "step 4 is not whole" in error and said in error and "going back" in error


def test_a_save_that_was_killed_is_passed_over_and_said_so(tmp_path, capsys):
    saved(tmp_path, 2)
    (tmp_path / "2").rename(tmp_path / "4.orbax-checkpoint-tmp-77")
    saved(tmp_path, 2)
    assert newest_whole(tmp_path) == 2
    assert "4.orbax-checkpoint-tmp-77 was never finished" in capsys.readouterr().err


def test_a_new_save_moves_a_broken_one_aside_and_deletes_nothing(tmp_path, capsys):
    saved(tmp_path, 2, 4)
    cut_short(tmp_path / "4")
    saved(tmp_path, 4)
    assert find_fault(tmp_path / "4") is None
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "4", "4.broken-0"]
    assert "renamed to 4.broken-0" in capsys.readouterr().err


def test_nothing_is_deleted_unless_asked(tmp_path):
    saved(tmp_path / "all", 1, 2, 3)
    assert steps(tmp_path / "all") == [1, 2, 3]
    saved(tmp_path / "two", 1, 2, 3, keep=2)
    assert steps(tmp_path / "two") == [2, 3]
    assert not (tmp_path / "two" / "1.whole.json").exists()


@pytest.mark.parametrize(
    "run, fingerprints, message",
    [
        (make_run(dataclasses.replace(MODEL, feed_forward=64)), {}, r"model.feed_forward \(there 32, now 64\)"),
        (make_run(seed=4, learning_rate=1.0), {}, r"train.learning_rate .*train.seed \(there 3, now 4\)"),
        (RUN, {"tokenizer": "other"}, r"fingerprint of tokenizer \(there 't', now 'other'\)"),
        (RUN, {"database": "other"}, r"fingerprint of database \(there 'd', now 'other'\)"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, run, fingerprints, message):
    """Guards against resuming a run with other data or sizes. Every differing field is named, and the remedy."""
    saved(tmp_path, 2)
    with pytest.raises(ValueError, match=f"belongs to another run: .*{message}.* another --workdir"):
        open_checkpoints(tmp_path, run, FINGERPRINTS | fingerprints).restore(abstract(make_state(0)))
    assert find_fault(tmp_path / "2") is None


def test_cadence_and_mesh_may_change(tmp_path):
    saved(tmp_path, 2)
    run = make_run(dataclasses.replace(MODEL, remat="full"), mesh=MeshConfig(data=4), log_every=7, checkpoint_every=9)
    assert open_checkpoints(tmp_path, run).restore(abstract(make_state(0))) is not None


def test_the_identity_can_be_read_as_json(tmp_path):
    saved(tmp_path, 2)
    written = json.loads((tmp_path / "2" / "run" / "data.json").read_text())
    assert written["identity"]["fingerprints"] == FINGERPRINTS
    assert written["identity"]["config"]["model"]["width"] == MODEL.width


ODD_NAMES = [
    "lr=1e-3,layers=[2,4]",
    "[!x]",
    "what?*",
    "a\\b",
    "with space ",
    "~",
    "gs:",
    "50%25 {x} #1 'a' \"b\" $HOME;&|",
    "line\nbreak",
    "日本",
    "-x",
    "n" * 255,
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_that_a_file_system_takes(tmp_path, name):
    """Guards against a run in 'layers=[2,4]' that cannot be restored, because orbax globs below the path.

    So did one moved there.
    """
    directory = tmp_path / name / "checkpoints"
    saved(directory, 2, 4, keep=1)
    assert steps(directory) == [4]
    assert_same(open_checkpoints(directory).restore(abstract(make_state(0)))[0], make_state(4))
    (tmp_path / "moved").mkdir()
    shutil.copytree(directory, tmp_path / "moved" / "checkpoints")
    assert_same(open_checkpoints(tmp_path / "moved" / "checkpoints").restore(abstract(make_state(0)))[0], make_state(4))


def test_a_link_that_was_cleaned_away_is_made_again(tmp_path):
    checkpoints = open_checkpoints(tmp_path / "[x]")
    checkpoints.save(2, make_state(2), facts(2))
    checkpoints.wait()
    shutil.rmtree(plain_path(tmp_path / "[x]").parent)  # what cleans /tmp does on the tenth day
    checkpoints.save(4, make_state(4), facts(4))
    checkpoints.close()
    assert newest_whole(tmp_path / "[x]") == 4


def test_a_save_that_no_restore_could_open_is_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoints_module, "plain_path", lambda path: path
    )  # as it was: orbax does not merge below [x]
    checkpoints = open_checkpoints(tmp_path / "[x]")
    checkpoints.save(2, make_state(2), facts(2))
    with pytest.raises(
        ValueError, match="was written, but it cannot be restored: the arrays of params are not those saved"
    ):
        checkpoints.wait()
    assert newest_whole(tmp_path / "[x]") is None and not list((tmp_path / "[x]").glob("*.whole.json"))


def test_a_piece_of_an_array_that_is_missing_is_found_before_the_save_counts(tmp_path, monkeypatch):
    """Guards against lost arrays of a process whose folder was not visible when orbax merged."""
    save = checkpoints_module.ocp.save_checkpointables_async

    def lose_a_piece(path, parts):
        save(path, parts).result()
        spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path / 'params'}/"}}
        store = tensorstore.KvStore.open(spec).result()
        piece = next(key for key in store.list().result() if b"/c/" in key)
        store.write(piece, None).result()
        return types.SimpleNamespace(result=lambda: None)

    monkeypatch.setattr(checkpoints_module.ocp, "save_checkpointables_async", lose_a_piece)
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(2, make_state(2, MeshConfig(data=1, fsdp=2, tensor=2)), facts(2))
    with pytest.raises(ValueError, match=r"cannot be restored: params holds \d+ of \d+ pieces"):
        checkpoints.wait()
    assert newest_whole(tmp_path) is None


@pytest.mark.parametrize("keep", [-1, -3])
def test_a_negative_number_to_keep_is_refused(tmp_path, keep):
    """Guards against keep=-1, which deleted every checkpoint, the newest included."""
    with pytest.raises(ValueError, match=f"keep_checkpoints is how many to keep, 0 for all, but is {keep}"):
        open_checkpoints(tmp_path, keep=keep)


def test_an_old_copy_under_another_name_is_refused(tmp_path):
    """Checkpoints of earlier versions store their step in an array, not in a file."""
    saved(tmp_path, 2)
    data = tmp_path / "2" / "run" / "data.json"
    data.write_text(json.dumps({key: value for key, value in json.loads(data.read_text()).items() if key != "step"}))
    whole_path(tmp_path / "2").write_text(json.dumps(listing(tmp_path / "2")))
    assert open_checkpoints(tmp_path).restore(abstract(make_state(0)))[1] == facts(2)
    (tmp_path / "2").rename(tmp_path / "8")
    whole_path(tmp_path / "2").rename(whole_path(tmp_path / "8"))
    with pytest.raises(ValueError, match="8 holds step 2: it is a copy under another name"):
        open_checkpoints(tmp_path).restore(abstract(make_state(0)))
