"""The models of an evaluation: where they are, whether they belong to the data, and their parameters on the mesh."""

import dataclasses
import sys
from pathlib import Path

import jax

from retro_jax.config import RUNTIME, ModelConfig, RunConfig, at_run_time
from retro_jax.core.files import file_sha256
from retro_jax.data.manifests import require_fingerprint
from retro_jax.evaluate.scorers import Scorer
from retro_jax.models.kernels.known import check_attention
from retro_jax.models.placement import ONE_DEVICE
from retro_jax.parallel.sharding import check_batch, check_model_sizes, make_mesh
from retro_jax.run_directory.checkpoints import load_fingerprints, load_params, read_config
from retro_jax.run_directory.directory import QUESTIONS, fingerprints
from retro_jax.run_directory.places import model_directory
from retro_jax.run_directory.whole import require_whole, whole_path

LENGTHS = ("sequence_length", "chunk_length")


class Models:
    """ "retro" and, where one was trained, "baseline"; or "baseline" alone.

    Attributes:
      runs, steps, trained: run directory, step of the checkpoint, and config, by name.
      main: "retro", or "baseline" where that is alone.
      model: the config of the main model with the settings of this evaluation.
      mesh: the devices.

    Raises:
      ValueError, StageError: a model that is missing, has no retrieval layers, or was trained on other data; a batch that the
        mesh cannot cut.
    """

    def __init__(self, run: RunConfig, workdir: Path, data: Path):
        self.runs = find_runs(run, workdir)
        self.steps = {name: _checked_step(name, directory, data) for name, directory in self.runs.items()}
        self.trained = {name: read_config(directory) for name, directory in self.runs.items()}
        self.main = "retro" if "retro" in self.runs else "baseline"
        self.model = _model(run, self.trained[self.main], self.runs[self.main], self.main)
        self.mesh = make_mesh(run.train.mesh)
        check_model_sizes(self.model, self.mesh)
        check_batch(run.evaluate.batch, self.mesh, "config.evaluate.batch")
        self._scorers: dict[tuple[str, bool], Scorer] = {}
        self._params: dict[str, dict] = {}

    def identities(self) -> dict[str, dict]:
        """What identifies each model: its checkpoint's files and the settings of the forward pass."""
        return {name: self._identity(name) for name in self.runs}

    def _identity(self, name: str) -> dict:
        path = self.runs[name] / "checkpoints" / str(self.steps[name])
        same = {key: getattr(self.model, key) for key in RUNTIME if key != "neighbors"}
        return {"checkpoint": file_sha256(whole_path(path)), **same}

    def scorer(self, name: str, greedy: bool) -> Scorer:
        """The compiled forward pass of a model; the first call loads the checkpoint."""
        if (name, greedy) not in self._scorers:
            self._scorers[name, greedy] = Scorer(*self.load(name), self.mesh, greedy)
        return self._scorers[name, greedy]

    def load(self, name: str) -> tuple[ModelConfig, dict]:
        """A model with the settings of this evaluation, and its parameters; the first call loads them."""
        if name not in self._params:
            self._params[name], _, _ = load_params(self.runs[name], self.steps[name], self.mesh)
        model, keys = self.trained[name].model, RUNTIME
        if not model.retrieves:  # no weight of it depends on lengths, and an imported one was trained with others
            keys = (*RUNTIME, *LENGTHS)
        return dataclasses.replace(model, **{key: getattr(self.model, key) for key in keys}), self._params[name]


def _model(run: RunConfig, trained: RunConfig, directory: Path, name: str) -> ModelConfig:
    if name == "baseline":
        if run.model.retrieves:
            raise ValueError(
                f"{directory.parent} holds a baseline and no RETRO model, but the config has "
                f"config.model.retrieval_layers={run.model.retrieval_layers}. Train it with `retro train "
                f"--workdir={directory.parent / 'retro'}`, or leave --config out to evaluate the baseline alone."
            )
        return at_run_time(trained.model, run.model, directory)
    if not trained.model.retrieves:
        raise ValueError(
            f"{directory} holds a model without retrieval layers; name a RETRO model with --config.evaluate.retro."
        )
    model = at_run_time(trained.model, run.model, directory)
    check_attention(model, ONE_DEVICE.platform, ONE_DEVICE.chip)
    if not model.neighbors:
        raise ValueError(
            "config.model.neighbors=0 leaves nothing to evaluate: On would equal Off. Take 1 or more; the condition 'off' is "
            "evaluated in any case."
        )
    return model


def find_runs(run: RunConfig, workdir: Path) -> dict[str, Path]:
    """{"baseline": directory, "retro": directory}; of a work directory with a baseline alone, that.

    Without a baseline, which is logged, "retro" alone.
    """
    runs = {"retro": Path(run.evaluate.retro or model_directory(workdir))}
    baseline = Path(run.evaluate.baseline or workdir / "baseline")
    if not run.evaluate.retro and runs["retro"] == baseline:
        return {"baseline": baseline}
    if run.evaluate.baseline or baseline.exists():
        return {"baseline": baseline, **runs}
    if jax.process_index() == 0:
        print(
            f"evaluate: there is no baseline in {baseline}, so its column stays empty. To train one: retro train "
            f"--config.model.retrieval_layers='()' --workdir={baseline} --config.data.directory={workdir / 'data'}",
            file=sys.stderr,
        )
    return runs


def _checked_step(name: str, directory: Path, data: Path) -> int:
    """The step of a run's newest whole checkpoint.

    Raises:
      ValueError: no whole checkpoint.
      StageError: a model that was trained with another tokenizer, database or shards than those in `data`.
    """
    try:
        step = require_whole(directory)
    except ValueError as error:
        raise ValueError(f"{error} Choose the {name} model with --config.evaluate.{name}=DIRECTORY.") from None
    current, trained = fingerprints(data), load_fingerprints(directory, step)
    if QUESTIONS in trained and QUESTIONS not in current:  # fine-tuned on questions: it belongs to no database
        trained = {"tokenizer": trained["tokenizer"]}
    for what, found in trained.items():
        require_fingerprint(
            f"{what} in {data}",
            current[what],
            found,
            f"That is what {directory} (step {step}) was trained with: evaluate it with its own data "
            f"(--config.data.directory).",
        )
    return step
