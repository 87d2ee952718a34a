"""A finished work directory of every kind of file: build, additions, removals, two runs, an evaluation, a sample.

Everything in it was made by the verbs themselves, in this process, with a made-up encoder and models that compile in
a second. `restore` brings it back to what it was, after a trial that changed it.
"""

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import made_up_encoder
import made_up_text

from data_pipeline.documents.stage import DocumentTable
from launch import build, database, evaluate, sample
from launch.command import run_verb
from launch.reads import READS, is_read
from launch.train import VERB as TRAIN
from retro_jax.train.loop import train

ROOT = Path(__file__).resolve().parents[1]
STEPS = 4


@dataclass(frozen=True)
class Answer:
    """What a verb said: its exit code, None where an exception came through."""

    code: int | None
    out: str
    err: str


def run(main, arguments) -> Answer:
    """A verb's main in this process; an exception that comes through is an answer too, with its traceback as `err`."""
    import traceback

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except Exception:
            code = None
            traceback.print_exc(file=err)
    return Answer(code, out.getvalue(), err.getvalue())


class FinishedRun:
    """WORK is the directory that trials damage; beside it are its inputs, and the copy that it is restored from."""

    def __init__(self, root: Path):
        self.root, self.work, self.copy = root, root / "work", root / "copy"
        made_up_encoder.write(root / "encoder")
        made_up_text.write_folder(root / "text", documents=40)
        made_up_text.write_folder(root / "more", documents=3, seed=7)
        made_up_text.write_folder(root / "extra", documents=2, seed=9)
        self.config = [
            f"--config={ROOT}/configs/own_text.py:{root / 'text'}",
            f"--config.data.encoder={root / 'encoder'}",
            f"--config.model.vocabulary={made_up_text.VOCABULARY}",
            *("--config.model.sequence_length=32", "--config.model.chunk_length=8", "--config.model.layers=2"),
            *("--config.model.width=16", "--config.model.heads=2", "--config.model.head_dim=8"),
            *("--config.model.feed_forward=16", "--config.model.retrieval_layers=(2,)"),
            *("--config.model.encoder.width=16", "--config.model.encoder.heads=2", "--config.model.neighbors=2"),
            *("--config.model.encoder.head_dim=8", "--config.model.encoder.feed_forward=16"),
            *("--config.data.validation_fraction=0.2", "--config.data.shard_chunks=700"),
            *("--config.data.shard_sequences=150", "--config.data.recall_sample=20", "--config.data.rerank=bm25"),
            *("--config.data.exact_below=0", "--config.data.neighbors_stored=4"),
            *(f"--config.train.steps={STEPS}", "--config.train.batch=8", "--config.train.warmup_steps=1"),
            *("--config.train.checkpoint_every=2", "--config.train.log_every=1", "--config.train.peak_flops=1e9"),
            *("--config.train.retrieval_check_every=2", "--config.train.mesh.data=-1"),
            *("--config.evaluate.batch=4", "--config.evaluate.bootstrap=50", "--config.evaluate.passages=2"),
            "--config.sample.tokens=10",
        ]
        for verb in ("build", "baseline", "retro", "add", "remove", "evaluate"):
            answer = self.run(verb)
            assert answer.code == 0, (verb, answer)
            if verb == "build":
                self.documents = [
                    document.id for document in DocumentTable(self.work / "data" / "documents").read(0, 2)
                ]
        shutil.copytree(self.work, self.copy)
        self.files = sorted(str(path.relative_to(self.copy)) for path in self.copy.rglob("*") if path.is_file())

    def flags(self, verb: str) -> list[str]:
        """The flags of the config that a verb reads."""
        keys = {flag: flag.partition("=")[0].removeprefix("--config.") for flag in self.config}
        return [flag for flag, key in keys.items() if key == "--config" or is_read(key, READS[verb])]

    def run(self, verb: str) -> Answer:
        return getattr(self, verb.replace(" ", "_"))()

    def restore(self) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self.copy, self.work)

    # The verbs, as a user gives them.

    def build(self):
        return run(build.main, [*self.flags("build"), f"--workdir={self.work}"])

    def _train(self, name, *changes):
        data = f"--config.data.directory={self.work / 'data'}"
        arguments = [*self.flags("train"), *changes, data, f"--workdir={self.work / name}"]
        return run(lambda argv: run_verb(TRAIN, lambda call: train(call.run, call.workdir) and None, argv), arguments)

    def baseline(self):
        return self._train("baseline", "--config.model.retrieval_layers=()", "--config.train.retrieval_check_every=0")

    def retro(self):
        return self._train("retro")

    def resume(self):
        """A run that was killed after its first checkpoint."""
        checkpoints = self.work / "retro" / "checkpoints"
        shutil.rmtree(checkpoints / str(STEPS), ignore_errors=True)
        (checkpoints / f"{STEPS}.whole.json").unlink(missing_ok=True)
        return self.retro()

    def retrofit(self):
        """A RETRO model around the trained baseline."""
        return self._train("retrofit", f"--config.train.initialize_from={self.work / 'baseline'}")

    def add(self):
        name = "extra" if (self.work / "data" / "additions").exists() else "more"
        source = f"--config.data.sources.{name}.path={self.root / name}"
        return run(database.main, ["add", f"--workdir={self.work}", source])

    def remove(self):
        document = self.documents[self.copy.exists()]  # another one than the finished run removed
        return run(database.main, ["remove", f"--workdir={self.work}", f"--documents={document}"])

    def info(self):
        return run(database.main, ["info", f"--workdir={self.work}"])

    def verify(self):
        return run(database.main, ["verify", f"--workdir={self.work}"])

    def repair(self):
        return run(database.main, ["verify", "--repair", f"--workdir={self.work}"])

    def evaluate(self):
        return run(evaluate.main, [*self.flags("evaluate"), f"--workdir={self.work}"])

    def evaluate_anew(self):
        return run(evaluate.main, [*self.flags("evaluate"), f"--workdir={self.work}", "--config.evaluate.seed=1"])

    def sample(self):
        return run(sample.main, [f"--workdir={self.work}", "--prompt=the grain and the mill of a river in the town"])
