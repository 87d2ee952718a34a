"""How the tasks of a sweep are run: order, failures, claims, what is finished; with made-up processes."""

import json
import os
import signal
import threading
import time

import pytest
from made_up_checkpoints import write_whole
from test_planner import at_the_root, planned  # noqa: F401

from launch.sweep import run as running
from launch.sweep.run import run_tasks, wanted
from launch.sweep.state import check_identity, claim, is_done, last_line, log_path, make_links, read_state, write_plan
from retro_jax.parallel.preemption import Interrupted

POINTS = [("a", {"train.learning_rate": 1e-3}), ("b", {"train.learning_rate": 2e-3})]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(running, "POLL", 0.001)
    monkeypatch.setattr(running, "ELSEWHERE", 0.01)
    monkeypatch.setattr("launch.sweep.state._result", lambda task: "made" if task.directory.exists() else None)


class Process:
    """A made-up process of a task: it makes what the task would, or fails."""

    def __init__(self, calls, codes):
        self.calls, self.codes = calls, codes

    def __call__(self, plan, task, lock):
        self.calls.append(task.key)
        self.code = next((code for part, code in self.codes.items() if part in task.key), 0)
        log = log_path(plan.workdir, task.key)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"$ python -m launch.{task.step.verb}\nfirst\nthe last line\n\n")
        if not self.code:
            task.directory.mkdir(parents=True, exist_ok=True)
            if task.step.verb == "train":
                write_whole(task.directory / "checkpoints", task.run.train.steps)
        return Ended(self.code)


class Ended:
    def __init__(self, code):
        self.code = code

    def poll(self):
        return self.code

    def signal(self, number):
        raise AssertionError


def run(plan, codes=None, **options):
    calls, said = [], []
    keys = wanted(plan, [one.task for one in plan.points])
    ended = run_tasks(plan, keys, start=Process(calls, codes or {}), say=said.append, **options)
    return calls, ended, said


def test_every_task_runs_once_after_what_it_needs_and_a_second_call_runs_nothing(tmp_path):
    plan = planned(POINTS, tmp_path / "s")
    calls, ended, _ = run(plan)
    assert sorted(calls) == sorted(plan.tasks) and len(calls) == 7 and not ended.failed
    for key, task in plan.tasks.items():
        assert all(calls.index(need) < calls.index(key) for need in task.needs)
    assert run(plan)[0] == []
    point = tmp_path / "s" / "points" / "a"
    assert os.readlink(point / "data") == f"../../data/{plan.points[0].data.directory.name}"
    assert (point / "retro" / "checkpoints").is_dir() and (point / "baseline" / "checkpoints").is_dir()


def test_a_failed_task_stops_only_what_needs_it_and_is_tried_again(tmp_path):
    plan = planned(POINTS, tmp_path / "s")
    lost = plan.points[0].model.task
    calls, ended, said = run(plan, {lost: 3})
    assert set(ended.failed) == {lost} and ended.blocked == {plan.points[0].task: lost}
    assert plan.points[1].task in calls and is_done(plan.workdir, plan.tasks[plan.points[1].task])
    note = ended.failed[lost]
    assert note["code"] == 3 and note["line"] == "the last line" and note["log"].endswith(f"logs/{lost}.log")
    assert any("FAILED with exit code 3: the last line" in line for line in said)
    assert read_state(plan.workdir, lost)["state"] == "failed"
    assert set(run(plan)[0]) == {lost, plan.points[0].task}


def test_a_lost_result_is_made_again_and_its_training_is_not(tmp_path):
    plan = planned(POINTS[:1], tmp_path / "s")
    run(plan)
    (task,) = (plan.tasks[one.task] for one in plan.points)
    (tmp_path / "s" / "state" / f"{task.key}.json").write_text("{")
    assert run(plan)[0] == [task.key]


def test_a_set_that_is_joined_later_and_a_changed_database_are_evaluated(tmp_path):
    """Guards against results that stay as they are when `retro join` or `retro database` has changed their data."""
    plan = planned([("a", {}), ("b", {"evaluate.sets": ("held_out",)})], tmp_path / "s")
    run(plan)
    (plan.points[0].data.directory / "evaluation" / "held_out").mkdir(parents=True)
    assert run(plan)[0] == []
    (plan.points[0].data.directory / "evaluation" / "words").mkdir()
    assert run(plan)[0] == ["evaluate-a"]
    (plan.points[0].data.directory / "removed.json").write_text("{}")
    assert run(plan)[0] == ["evaluate-a", "evaluate-b"] and run(plan)[0] == []


def test_a_damaged_checkpoint_is_trained_again_only_where_it_is_needed(tmp_path):
    plan = planned(POINTS, tmp_path / "s")
    run(plan)
    for one in plan.points:
        (one.model.directory / "checkpoints" / str(one.run.train.steps) / "run" / "data.json").unlink()
    (tmp_path / "s" / "state" / f"{plan.points[0].task}.json").unlink()
    assert run(plan)[0] == [plan.points[0].model.task, plan.points[0].task]


def test_a_task_that_another_process_works_on_is_waited_for(tmp_path):
    """Guards against two processes that do one step; the lock of a process that was killed is free."""
    plan = planned(POINTS[:1], tmp_path / "s")
    build = plan.points[0].data.task
    lock = claim(plan.workdir, plan.tasks[build].writes)
    lock.acquire()
    said, calls, held = [], [], [True]

    def end():
        held.clear()
        lock.release()

    other = threading.Timer(0.3, end)
    other.start()

    class Watched(Process):
        def __call__(self, plan, task, lock):
            assert not held
            return super().__call__(plan, task, lock)

    run_tasks(plan, wanted(plan, [plan.points[0].task]), start=Watched(calls, {}), say=said.append)
    assert "process" in said[0] and f"{os.getpid()}" in said[0] and "waiting for it" in said[0]
    assert len([line for line in said if "waiting" in line]) == 1 and calls[0] == build and len(calls) == 4


def test_nothing_waits_where_no_other_process_works(tmp_path, monkeypatch):
    """Guards against a pause of seconds between a task that has ended and the next."""
    slept = []
    monkeypatch.setattr(running.time, "sleep", slept.append)

    class Takes(Process):
        """Processes that end at the second look."""

        def __call__(self, plan, task, lock):
            super().__call__(plan, task, lock)
            looks = iter([None, self.code])
            ended = Ended(self.code)
            ended.poll = lambda: next(looks)
            return ended

    plan, calls = planned(POINTS, tmp_path / "s"), []
    run_tasks(plan, wanted(plan, [one.task for one in plan.points]), start=Takes(calls, {}), say=lambda line: None)
    assert len(calls) == 7 and slept == [running.POLL] * 7


def test_several_run_at_once_where_asked_and_none_before_what_it_needs(tmp_path):
    plan = planned(POINTS, tmp_path / "s")
    together, most = set(), []

    class Slow(Process):
        def __call__(self, plan, task, lock):
            assert not together & set(task.needs)
            super().__call__(plan, task, lock)
            together.add(task.key)
            most.append(len(together))
            looks = iter([None, None, 0])

            class Later(Ended):
                def poll(self):
                    code = next(looks)
                    if code == 0:
                        together.discard(task.key)
                    return code

            return Later(0)

    run_tasks(plan, wanted(plan, [one.task for one in plan.points]), 2, Slow([], {}), lambda line: None)
    assert max(most) == 2


def test_shares_of_one_database_are_built_one_after_the_other(tmp_path):
    """Guards against a build that meets the lock of the other share's and fails."""
    plan = planned(None, tmp_path / "s", grid="data.database_fraction=0.5,1.0")
    building, most = set(), []

    class Slow(Process):
        def __call__(self, plan, task, lock):
            super().__call__(plan, task, lock)
            if task.step.verb == "build":
                building.add(task.key)
                most.append(len(building))
            looks = iter([None, None, 0])

            class Later(Ended):
                def poll(self):
                    if (code := next(looks)) == 0:
                        building.discard(task.key)
                    return code

            return Later(0)

    ended = run_tasks(plan, wanted(plan, [one.task for one in plan.points]), 4, Slow([], {}), lambda line: None)
    assert most == [1, 1] and not ended.failed and not ended.blocked


def test_a_signal_is_handed_on_and_nothing_new_starts(tmp_path):
    plan, got, calls = planned(POINTS, tmp_path / "s"), [], []

    class Stopped(Ended):
        def poll(self):
            if not got:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
            return 75 if got else None

        def signal(self, number):
            got.append(number)

    def start(plan, task, lock):
        calls.append(task.key)
        return Stopped(75)

    with pytest.raises(Interrupted):
        run_tasks(plan, wanted(plan, [one.task for one in plan.points]), start=start, say=lambda line: None)
    assert got == [signal.SIGTERM] and len(calls) == 1
    assert read_state(plan.workdir, calls[0]) == {}


def test_a_directory_of_another_sweep_is_refused_by_field(tmp_path):
    plan = planned(POINTS, tmp_path / "s")
    write_plan(plan)
    other = json.loads(json.dumps(plan.base))
    other["model"]["width"] = 32
    with pytest.raises(ValueError, match=r"belongs to a sweep of another config: model.width \(there 64, now 32\)"):
        check_identity(planned(POINTS, tmp_path / "s", base=other))


@pytest.mark.parametrize("name", ["retro", "data/documents"])
def test_the_directory_of_a_run_is_refused(tmp_path, name):
    (tmp_path / "s" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"is the work directory of a run .it has {name}., not of a sweep"):
        check_identity(planned(POINTS, tmp_path / "s"))


def test_a_changed_sweep_says_which_points_are_new_removed_or_changed(tmp_path):
    first = planned([*POINTS, ("c", {})], tmp_path / "s")
    assert check_identity(first) == {"new": [], "removed": [], "changed": []}
    write_plan(first)
    changed = planned([POINTS[0], ("b", {"train.learning_rate": 5e-3}), ("d", {})], tmp_path / "s")
    assert check_identity(changed) == {"new": ["d"], "removed": ["c"], "changed": ["b"]}


def test_a_changed_point_is_linked_to_its_new_run(tmp_path):
    for rate in (1e-3, 2e-3):
        plan = planned([("a", {"train.learning_rate": rate})], tmp_path / "s")
        run(plan)
        assert (tmp_path / "s/points/a/retro").resolve() == plan.points[0].model.directory.resolve()
    assert len(list((tmp_path / "s/runs").iterdir())) == 4


def test_a_folder_in_the_place_of_a_link_is_refused(tmp_path):
    plan = planned(POINTS[:1], tmp_path / "s")
    (tmp_path / "s/points/a/retro").mkdir(parents=True)
    with pytest.raises(ValueError, match="points/a/retro must be a link"):
        make_links(plan.tasks[plan.points[0].task])


def test_the_last_line_of_a_log(tmp_path):
    assert last_line(tmp_path / "none") == ""
    (tmp_path / "log").write_bytes(b"$ command\n\n  error: it \xff broke \n \n")
    assert last_line(tmp_path / "log") == "error: it \ufffd broke"
