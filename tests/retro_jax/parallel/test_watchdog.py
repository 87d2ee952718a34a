"""The watchdog names the stuck process, its phase and time, and reports only when one is stuck."""

import json
import time

import pytest

from retro_jax.parallel.watchdog import Watchdog, describe, find_stuck, read_beats


def beat(step, moved, written, phase="step"):
    return {"host": "h", "process": 0, "phase": phase, "step": step, "moved": moved, "written": written}


@pytest.mark.parametrize(
    ("beats", "stuck"),
    [
        ({0: beat(7, 101, 900), 1: beat(7, 100, 900, "read a batch")}, 1),  # the others went on to wait for it
        ({0: beat(7, 100, 900), 1: beat(6, 105, 900)}, 1),  # a clock that is behind does not deceive
        ({0: beat(7, 100, 900), 1: beat(7, 101, 200)}, 1),  # no sign of life: dead, frozen or cut off
        ({0: beat(7, 100, 900), 1: beat(7, 101, 900), 2: None}, 2),
    ],
)
def test_the_one_that_others_wait_for(beats, stuck):
    assert find_stuck(beats, now=901, stall_seconds=600) == stuck


def hang_in(phase, watchdog, seconds):
    watchdog.phase(phase, 5)
    time.sleep(seconds)


def test_a_stall_names_phase_host_step_and_stacks(tmp_path, capfd):
    (tmp_path / "hosts").mkdir()
    other = beat(4, time.time() - 90, time.time(), "read a batch") | {"host": "far-away", "process": 1}
    (tmp_path / "hosts" / "1.json").write_text(json.dumps(other))
    watchdog = Watchdog(tmp_path, 0, 2, stall_seconds=0.3)
    hang_in("retrieval check", watchdog, 1.2)
    watchdog.close("done")
    text = (tmp_path / "stall-0.txt").read_text()
    for where in (text, capfd.readouterr().err):
        assert "in 'retrieval check' at step 5 for" in where
        assert "The one that is stuck: process 1 on far-away: in 'read a batch' at step 4" in where
        assert "hang_in" in where  # the stack
    assert text.count("STALL") == 1  # once a stall
    last = read_beats(tmp_path, 1)[0]
    assert last["phase"] == "done" and last["step"] == 5 and last["written"] >= last["moved"]


def test_a_run_that_moves_is_left_in_peace(tmp_path):
    watchdog = Watchdog(tmp_path, 0, 1, stall_seconds=0.6)
    for step in range(12):
        watchdog.phase("step", step)
        time.sleep(0.1)
    watchdog.close("done")
    assert not (tmp_path / "stall-0.txt").exists()


def test_zero_turns_it_off_but_keeps_the_heartbeat(tmp_path):
    watchdog = Watchdog(tmp_path, 0, 1, stall_seconds=0)
    time.sleep(0.3)
    watchdog.close("preempted")
    assert not (tmp_path / "stall-0.txt").exists()
    assert read_beats(tmp_path, 1)[0]["phase"] == "preempted"


def test_storage_that_refuses_ends_nothing(tmp_path, capfd):
    (tmp_path / "hosts").write_text("a file where the directory should be")
    (tmp_path / "stall-0.txt").mkdir()
    watchdog = Watchdog(tmp_path, 0, 1, stall_seconds=0.2)
    time.sleep(0.6)
    watchdog.close("done")
    assert "STALL" in capfd.readouterr().err


def test_a_process_without_a_heartbeat_is_described():
    assert describe(None, 3) == "process 3: no heartbeat file"


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"host": "a", "phase": "step"}', "\x00\x00"])
def test_a_damaged_heartbeat_is_none(tmp_path, content):
    """Guards against a KeyError in the message about a lost host."""
    (tmp_path / "hosts").mkdir()
    (tmp_path / "hosts" / "1.json").write_text(content)
    beats = read_beats(tmp_path, 2)
    assert beats == {0: None, 1: None} and "no heartbeat file" in describe(beats[1], 1)
