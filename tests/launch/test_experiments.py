"""The points of the sweeps in `configs/` run in their smoke form: built, trained and evaluated, with two steps and made-up text."""

import subprocess
import sys

import made_up_encoder
import made_up_text
import pytest
from finished_run import run as run_main
from places import ROOT

from launch import build, evaluate
from launch.command.arguments import parse
from launch.command.run import run_verb
from launch.sweep.run import run_tasks, wanted
from launch.sweep.verb import VERB, plan_of
from launch.train import VERB as TRAIN
from retro_jax.train.loop import train

STEPS = 2
SMALL = (
    f"--config.model.vocabulary={made_up_text.VOCABULARY}",
    *(f"--config.train.steps={STEPS}", "--config.train.warmup_steps=0", "--config.train.retrieval_check_every=0"),
    *("--config.train.peak_flops=1e9", "--config.evaluate.bootstrap=50", "--config.evaluate.passages=0"),
)


class Ran:
    """A task that ran in this process."""

    def __init__(self, plan, task, lock):
        mains = {
            "build": build.main,
            "train": lambda argv: run_verb(TRAIN, lambda call: train(call.run, call.workdir) and None, argv),
            "evaluate": evaluate.main,
        }
        self.answer = run_main(mains[task.step.verb], list(task.step.arguments))
        assert self.answer.code == 0, (task.key, self.answer)

    def poll(self):
        return self.answer.code


def run_points(config, workdir, *flags):
    """Runs the points of a sweep; returns their names."""
    argv = [f"--config={config}", f"--workdir={workdir}", *SMALL, *flags]
    plan = plan_of(parse(VERB, argv), argv)
    only = {word.removeprefix("--only=") for word in flags if word.startswith("--only=")}
    points = [one for one in plan.points if not only or one.point.name in only]
    ended = run_tasks(plan, wanted(plan, [one.task for one in points]), start=Ran, say=lambda line: None)
    assert not ended.failed and not ended.blocked
    for one in points:
        assert (workdir / "points" / one.point.name / "results.json").exists()
    return [one.point.name for one in points]


def sources(root, *names):
    """Flags of made-up text for these sources."""
    text = made_up_text.write_folder(root / "text", documents=60)
    encoder = made_up_encoder.write(root / "encoder")
    texts = [f"--config.data.sources.{name}.{key}" for name in names for key in (f"path={text}", "package=")]
    return [*texts, f"--config.data.encoder={encoder}", "--config.data.validation_fraction=0.3"]


def test_a_retrofit_and_an_evaluation_without_overlap_of_the_study(tmp_path):
    """Guards against points that refer to one another and do not run; a retrofit is compared with the decoder it starts from."""
    tiny = ("layers=2", "retrieval_layers=(2,)", "width=16", "heads=2", "head_dim=8", "feed_forward=16", "scan=False")
    tiny += tuple(f"encoder.{size}" for size in ("layers=1", "width=16", "heads=2", "head_dim=8", "feed_forward=16"))
    flags = [f"--config.model.{size}" for size in tiny]
    names = [f"--only={name},seed=0" for name in ("deleted", "retrofit")]
    run_points(f"{ROOT}/configs/study.py:smoke", tmp_path / "work", *sources(tmp_path, "wiki", "legal"), *flags, *names)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["table_13", "table_14"])
def test_every_point_of_a_table(file, tmp_path):
    flags = sources(tmp_path, "wiki", "legal")
    assert len(run_points(f"{ROOT}/configs/{file}.py:smoke", tmp_path / "work", *flags)) >= 8


@pytest.mark.slow
def test_every_point_of_the_retrofits(tmp_path):
    """The decoder that is trained on starts from that of another point, too; the page has a row for each."""
    work = tmp_path / "work"
    flags = [*sources(tmp_path, "wiki", "legal"), "--config.data.near_duplicate_jaccard=0"]
    assert len(run_points(f"{ROOT}/configs/retrofit_imported.py:smoke", work, *flags)) == 4
    command = [sys.executable, f"{ROOT}/benchmarks/study/retrofits.py", work, tmp_path / "page.md"]
    subprocess.run(command, check=True, capture_output=True)
    page = (tmp_path / "page.md").read_text()
    assert "missing" not in page and page.count("| continued | ") == 2


@pytest.mark.slow
def test_every_point_of_the_study(tmp_path):
    """With the builds of its own: BM25, and a tenth of the text."""
    names = run_points(f"{ROOT}/configs/study.py:smoke", tmp_path / "work", *sources(tmp_path, "wiki", "legal"))
    assert {"bm25,seed=0", "tiny,seed=0"} <= set(names)


@pytest.mark.slow
def test_every_point_of_wikitext_103(tmp_path):
    folder = tmp_path / "wikitext-103"
    for name, seed in (("wikitext", 1), ("wikipedia", 2)):
        made_up_text.write_folder(folder / name, documents=40, seed=seed)
    for number, name in enumerate(("valid", "test")):
        articles = [f" = Article {place} = \n\n {made_up_text.text(900 + 10 * number + place)}" for place in range(4)]
        (folder / f"wiki.{name}.tokens").write_text("\n" + "\n".join(articles))
    titles = "".join((folder / f"wiki.{name}.tokens").read_text() for name in ("valid", "test"))
    (folder / "titles.txt").write_text(titles)
    encoder = f"--config.data.encoder={made_up_encoder.write(tmp_path / 'encoder')}"
    names = run_points(f"{ROOT}/configs/wikitext103.py:{folder},smoke", tmp_path / "work", encoder)
    assert names == ["baseline", "retrofit", "from_scratch"]
