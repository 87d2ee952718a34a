"""Which checkpoints count, which are deleted, and signs of progress. Files only: nothing is trained."""

import json
import os
import shutil

import pytest
from made_up_checkpoints import write_whole

from retro_jax.config import RunConfig, TrainConfig
from retro_jax.core.files import write_json
from retro_jax.run_directory.keeping import Keep
from retro_jax.run_directory.restart import begin_notes, note_saved, require_no_progress
from retro_jax.run_directory.whole import (
    find_fault,
    find_whole,
    listing,
    make_way,
    newest_whole,
    prune,
    require_whole,
    steps,
    whole_path,
)


def keep(latest, every=0):
    """The newest, and with `every` the target of a roll-back."""
    spikes = {"on_spike": "roll_back", "checkpoint_every": every} if every else {}
    return Keep(RunConfig(train=TrainConfig(keep_checkpoints=latest, **spikes)))


def folders(directory):
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def damage(path):
    """Guards against a check by size: same size, other content."""
    file = path / "params" / "manifest.ocdbt"
    file.write_text(file.read_text().swapcase())


def empty_listing(path):
    whole_path(path).write_text("")


def cut_listing(path):
    whole_path(path).write_bytes(whole_path(path).read_bytes()[:50])


def other_listing(path):
    whole_path(path).write_text("[1, 2]")


def binary_listing(path):
    whole_path(path).write_bytes(b"\xff\x00" * 20)


def folder_for_listing(path):
    whole_path(path).unlink()
    whole_path(path).mkdir()


@pytest.mark.parametrize("spoil", [empty_listing, cut_listing, other_listing, binary_listing, folder_for_listing])
def test_a_damaged_listing_is_a_fault_and_the_older_one_is_taken(tmp_path, capsys, spoil):
    """Guards against an empty whole.json that ends every start with 'Expecting value: line 1 column 1'."""
    write_whole(tmp_path, 3)
    spoil(write_whole(tmp_path, 6))
    assert newest_whole(tmp_path) == 3
    assert "step 6 is not whole (6.whole.json is damaged" in capsys.readouterr().err


def test_an_altered_listing_is_not_taken_for_an_altered_array(tmp_path):
    """Guards against blaming an intact file for a flipped digit in the listing."""
    path = write_whole(tmp_path, 3)
    write_json(whole_path(path), listing(path), seal=True)
    assert find_fault(path) is None
    text = whole_path(path).read_text()
    at = text.index('"sha256": "') + len('"sha256": "')
    whole_path(path).write_text(text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :])
    assert find_fault(path).startswith("3.whole.json is damaged (it was altered")


def test_what_a_restore_needs_must_be_there(tmp_path):
    """Guards against a checkpoint without orbax's manifest, as below a path with brackets."""
    path = write_whole(tmp_path, 3)
    (path / "params" / "manifest.ocdbt").unlink()
    listed = json.loads(whole_path(path).read_text())
    del listed["params/manifest.ocdbt"]
    whole_path(path).write_text(json.dumps(listed))
    assert "params/manifest.ocdbt, which a restore needs, was never written" in find_fault(path)


def test_a_copy_under_another_name_is_not_that_step(tmp_path):
    write_whole(tmp_path, 3)
    shutil.copytree(tmp_path / "3", tmp_path / "20251124")
    shutil.copyfile(tmp_path / "3.whole.json", tmp_path / "20251124.whole.json")
    step, faults = find_whole(tmp_path)
    assert step == 3 and faults == {20251124: "it holds step 3"}


STRAYS = ("20251124", "007", "٣", "²", "12.bak", "-4", "+5", "1_0", " 8")


def test_strays_are_no_checkpoints_and_are_never_touched(tmp_path):
    """Guards against counting folders named by a date: keep=1 then deleted every checkpoint."""
    for name in STRAYS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x")
    for step in (3, 6, 9):
        write_whole(tmp_path, step)
    assert steps(tmp_path) == [3, 6, 9, 20251124]
    prune(tmp_path, keep(1), 9, set())
    assert folders(tmp_path) == sorted([*STRAYS, "9"])
    assert all((tmp_path / name / "mine").exists() for name in STRAYS)
    assert newest_whole(tmp_path) == 9


@pytest.mark.parametrize("spoil", [damage, empty_listing, lambda path: whole_path(path).unlink()])
def test_a_damaged_one_does_not_count_towards_what_is_kept(tmp_path, spoil):
    for step in (3, 6, 9, 12):
        write_whole(tmp_path, step)
    spoil(tmp_path / "9")
    prune(tmp_path, keep(2), 12, {12})
    assert folders(tmp_path) == ["12", "6", "9"]  # the damaged one is neither counted nor deleted


def test_a_later_one_than_the_save_is_neither_counted_nor_deleted(tmp_path):
    """Guards against later steps that a roll-back or a copy left."""
    for step in (3, 6, 9):
        write_whole(tmp_path, step)
    prune(tmp_path, keep(1), 6, set())
    assert folders(tmp_path) == ["6", "9"]


def test_the_target_of_a_roll_back_is_kept(tmp_path):
    """SIGTERM saves between the scheduled steps; a spike then goes back to the schedule."""
    for step in (3, 6, 7):
        write_whole(tmp_path, step)
    prune(tmp_path, keep(1, every=3), 7, set())
    assert folders(tmp_path) == ["6", "7"]
    write_whole(tmp_path, 9)
    prune(tmp_path, keep(1, every=3), 9, set())
    assert folders(tmp_path) == ["9"]


def test_a_link_is_not_ours_to_delete(tmp_path):
    for step in (3, 6):
        write_whole(tmp_path, step)
    (tmp_path / "3").rename(tmp_path / "elsewhere")
    (tmp_path / "3").symlink_to(tmp_path / "elsewhere")
    prune(tmp_path, keep(1), 6, set())
    assert find_fault(tmp_path / "3") is None


def test_deleting_goes_on_where_it_was_killed(tmp_path):
    for step in (3, 6):
        write_whole(tmp_path, step)
    (tmp_path / "3").rename(tmp_path / "3.pruned")
    prune(tmp_path, keep(1), 6, set())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6", "6.whole.json"]


def test_what_stands_in_the_way_is_renamed_with_its_listing(tmp_path):
    write_whole(tmp_path, 3)
    os.symlink(tmp_path / "nowhere", tmp_path / "6")
    for step in (3, 6):
        make_way(tmp_path / str(step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["3.broken-0", "3.broken-0.whole.json", "6.broken-0"]


def test_a_reader_is_told_the_fault_of_each(tmp_path):
    for step in (3, 6):
        empty_listing(write_whole(tmp_path / "checkpoints", step))
    with pytest.raises(ValueError, match=r"no whole checkpoint: step 6 \(6.whole.json is damaged.*step 3 \(3.whole"):
        require_whole(tmp_path)
    with pytest.raises(ValueError, match=r"at step 6 \(6.whole.json is damaged .*of the steps \[3, 6\]"):
        require_whole(tmp_path, 6)


def write_metrics(workdir, last, name="metrics.jsonl"):
    lines = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, last + 1))
    (workdir / name).write_text(lines)


def checkpoints_gone(workdir):
    note_saved(workdir, 6)
    return "saved.json: step 6 was saved"


def old_run_whose_metrics_speak(workdir):
    write_metrics(workdir, 7)
    return "metrics.jsonl reaches step 7"


def abandoned_metrics_speak(workdir):
    write_metrics(workdir, 7, "metrics.abandoned.jsonl")
    return "metrics.abandoned.jsonl reaches step 7"


def all_saves_refused(workdir):
    begin_notes(workdir, 0)
    write_metrics(workdir, 9)
    return "metrics.jsonl reaches step 9"


def all_damaged(workdir):
    for step in (3, 6):
        damage(write_whole(workdir / "checkpoints", step))
    return r"step 6 \(params/manifest.ocdbt was altered\); step 3 \(params/manifest.ocdbt was altered\)"


def old_half_written(workdir):
    empty = write_whole(workdir / "checkpoints", 3)
    whole_path(empty).unlink()
    return r"checkpoints/3 is there.*step 3 \(3.whole.json was not written\)"


SIGNS = [
    checkpoints_gone,
    old_run_whose_metrics_speak,
    abandoned_metrics_speak,
    all_saves_refused,
    all_damaged,
    old_half_written,
]


@pytest.mark.parametrize("make", SIGNS)
def test_progress_without_a_whole_checkpoint_stops_and_restart_says_yes(tmp_path, make, capsys):
    said = make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"shows progress.*{said}.*--restart"):
        require_no_progress(tmp_path, 3)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    require_no_progress(tmp_path, 3, restart=True)
    aside = tmp_path / "before.restart-0"
    assert {aside / path.relative_to(tmp_path): content for path, content in before.items()} == {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert "starting again from step 0" in capsys.readouterr().err
    require_no_progress(tmp_path, 3)  # and then it is a new run


def nothing(workdir):
    pass


def killed_before_the_first_save_is_due(workdir):
    write_metrics(workdir, 2)


def killed_in_the_first_save(workdir):
    """The first save ends before the second begins, at step 6."""
    begin_notes(workdir, 0)
    write_metrics(workdir, 6)
    whole_path(write_whole(workdir / "checkpoints", 3)).unlink()


def a_stray_folder(workdir):
    (workdir / "checkpoints" / "20251124").mkdir(parents=True)


@pytest.mark.parametrize(
    "make", [nothing, killed_before_the_first_save_is_due, killed_in_the_first_save, a_stray_folder]
)
def test_a_run_that_could_have_no_checkpoint_just_begins(tmp_path, make):
    make(tmp_path)
    require_no_progress(tmp_path, 3)


def test_the_interval_is_that_of_the_run_before(tmp_path):
    """Guards against a larger checkpoint_every that hides earlier checkpoints."""
    (tmp_path / "config.json").write_text(json.dumps({"train": {"checkpoint_every": 3}}))
    write_metrics(tmp_path, 7)
    with pytest.raises(ValueError, match="shows progress"):
        require_no_progress(tmp_path, 1000)


def test_a_damaged_note_is_put_aside_and_made_anew(tmp_path, capsys):
    (tmp_path / "saved.json").write_text("{")
    begin_notes(tmp_path, 6)
    assert json.loads((tmp_path / "saved.json").read_text()) == {"step": 6}
    assert (tmp_path / "saved.json.damaged-0").read_text() == "{"
    assert "saved.json is damaged" in capsys.readouterr().err
