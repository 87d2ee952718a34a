"""The lm_eval model "retro": a trained run and its database, answering log likelihoods and generation.

import launch.harness.model
lm_eval.simple_evaluate(model="retro", model_args={"workdir": "runs/mine", "retrieval": "on"}, tasks=["arc_easy"])
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from launch.command.arguments import parse
from launch.sample import VERB, open_model, require_retrieval
from retro_jax.config import SampleConfig
from retro_jax.core.progress import progress
from retro_jax.evaluate.likelihood import Likelihood, Text, continuation, likelihoods, whole
from retro_jax.generate.sampling import sample

OPTIONS = {"neighbors": "model.neighbors", "data": "data.directory", "encoder": "data.encoder"}
GENERATED = 256  # tokens at most where a task does not say, as lm_eval's own models do
HONORED = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")
WITHOUT_EFFECT = {"num_beams": 1, "repetition_penalty": 1, "num_return_sequences": 1}


@register_model("retro")
class RetroLM(LM):
    """A trained model under lm_eval.

    Args:
      workdir: of `retro train`, as for `retro sample`.
      retrieval: "on" or "off".
      neighbors: K, where it is not that of training.
      data, encoder: config.data.directory and config.data.encoder, where they are not those of the run.
      batch_size: windows of full length in a forward pass; lm_eval's --batch_size.
      max_batch_size, device: lm_eval gives them to every model; JAX chooses the device.

    Raises:
      ValueError, StageError: what `retro sample` refuses, an option that is not known, a batch size that is no number.
    """

    def __init__(
        self,
        workdir: str = "",
        retrieval: str | bool = "on",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options,
    ):
        super().__init__()
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            known = ", ".join(("workdir", "retrieval", *OPTIONS))
            raise ValueError(f"--model_args has {unknown[0]!r}, which model retro does not know; it takes {known}.")
        if not workdir:
            raise ValueError("--model_args names no model; for example --model_args workdir=runs/mine,retrieval=on.")
        wanted = {True: "on", False: "off"}.get(retrieval, retrieval)  # YAML reads on and off as true and false
        if wanted not in ("on", "off"):
            raise ValueError(f"--model_args retrieval={retrieval} must be on or off.")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(
                f"--batch_size {batch_size} must be a number of 1 or more: model retro finds no size itself."
            )
        overrides = [f"--config.{OPTIONS[name]}={value}" for name, value in options.items() if value is not None]
        run = parse(VERB, [f"--workdir={workdir}", *overrides]).run
        self._retrieval, self._batch, self._workdir = wanted == "on", int(batch_size), Path(workdir)
        if self._retrieval:
            require_retrieval(run, self._workdir)
        self._opened = open_model(run, self._workdir, self._retrieval, "harness")
        self._find = None if self._opened.retriever is None else self._neighbors

    def _neighbors(self, texts: Sequence[str]):
        retriever = self._opened.retriever
        return retriever.values(retriever.search_all(texts, self._opened.model.neighbors)[0])

    def _score(self, texts: list[Text], description: str, greedy: bool) -> list[Likelihood]:
        opened = self._opened
        return likelihoods(
            opened.model,
            opened.params,
            opened.tokenizer,
            texts,
            self._find,
            batch=self._batch,
            greedy=greedy,
            description=description,
        )

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """(nats of the continuation, whether greedy decoding would give it) of each (context, continuation)."""
        pairs = [request.args for request in requests]
        texts = [continuation(self._opened.tokenizer, *pair) for pair in pairs]
        answers = [(one.nats, one.greedy) for one in self._score(texts, "loglikelihood", greedy=True)]
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(self, requests) -> list[float]:
        """Nats of each whole text after BOS, in the windows of `retro evaluate`."""
        texts = [whole(self._opened.tokenizer, request.args[0]) for request in requests]
        answers = [one.nats for one in self._score(texts, "loglikelihood_rolling", greedy=False)]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return answers

    def generate_until(self, requests) -> list[str]:
        """The continuation of each context, cut before the first of the task's strings, at EOS or at max_gen_toks."""
        asked = [settings_of(request.args[1], seed) for seed, request in enumerate(requests)]
        answers, opened = [], self._opened
        pairs = zip(requests, asked, strict=True)
        for request, (settings, until) in progress(pairs, description="generate", total=len(requests), unit="request"):
            drawn = sample(
                opened.model,
                opened.params,
                opened.tokenizer,
                request.args[0],
                settings,
                opened.retriever,
                until=until,
            )
            answers.append(drawn.continuation)
            self.cache_hook.add_partial("generate_until", request.args, drawn.continuation)
        return answers

    def get_model_info(self) -> dict:
        """What lm_eval keeps in its results file beside the model's name."""
        opened = self._opened
        database = opened.retriever.database.version if opened.retriever is not None else None
        return {
            "model_num_parameters": int(sum(np.size(leaf) for leaf in _leaves(opened.params))),
            "model_dtype": opened.model.compute_dtype,
            "step": opened.step,
            "retrieval": "on" if self._retrieval else "off",
            "neighbors": opened.model.neighbors if self._retrieval else 0,
            "database_version": database,
        }


def _leaves(params):
    if not isinstance(params, dict):
        return [params]
    return [leaf for child in params.values() for leaf in _leaves(child)]


def settings_of(given: dict, seed: int) -> tuple[SampleConfig, list[str]]:
    """Settings of sampling and the strings that end it, from a task's `generation_kwargs`.

    Raises:
      ValueError: a setting that would change the text and that this model does not have.
    """
    wanted = dict(normalize_gen_kwargs(given, GENERATED))
    drawn = bool(wanted["do_sample"]) and float(wanted["temperature"]) > 0
    for name, value in wanted.items():
        harmless = value is None or value == WITHOUT_EFFECT.get(name) or (name == "top_k" and not drawn)
        if name not in HONORED and not harmless:
            raise ValueError(
                f"The task's generation_kwargs have {name}={value!r}, which model retro does not know; it takes "
                f"{', '.join(HONORED)}. Change it with --gen_kwargs or in the task."
            )
    settings = SampleConfig(
        tokens=wanted["max_gen_toks"],
        temperature=float(wanted["temperature"]) if drawn else 0.0,
        top_p=float(wanted.get("top_p") or 1.0),
        seed=seed,
    )
    return settings, [stop for stop in wanted["until"] if stop]
