"""Our models under lm-evaluation-harness: likelihoods of held-out documents are those of `retro evaluate`.

Tests with the mark `harness` run the real package (`make test-harness`) on data sets of its own format.
"""

import json
import math
import os
import re
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from places import ROOT
from test_sample_verb import make_run

from data_pipeline.database.retriever import Retriever
from data_pipeline.documents.stage import DocumentTable
from launch.command.arguments import parse
from launch.harness.__main__ import main, with_model
from launch.sample import VERB, open_model
from retro_jax.data.batches import make_batch, validation_examples
from retro_jax.evaluate.likelihood import continuation, likelihoods, whole
from retro_jax.generate.sampling import sample
from retro_jax.models.loss import token_nll
from retro_jax.models.retro import merge

GUIDE = ROOT / "docs" / "guides" / "harness.md"
TASKS = {
    "retro_choice": """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "retro_last": """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{choices[0]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "retro_continue": """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("harness"), "retro", "baseline")


@pytest.fixture(scope="module")
def documents(root):
    """Texts of the held-out documents."""
    found = [one.text for one in DocumentTable(root / "data" / "documents").read() if one.split == "validation"]
    assert len(found) >= 3
    return found


@pytest.fixture(scope="module")
def opened(root):
    return open_model(parse(VERB, [f"--workdir={root}"]).run, root, True, "test")


def find_with(opened):
    return lambda texts: opened.retriever.values(opened.retriever.search_all(texts, opened.model.neighbors)[0])


def nats_of_the_shards(opened, directory, on):
    """Sum over the scored targets of the validation shards, each sequence by itself, with their stored neighbors."""
    model = opened.model

    @jax.jit
    def nll(params, tokens, segments, targets, neighbors):
        merged = merge(model, params)
        return token_nll(merged.hidden(tokens, segments, neighbors), merged.readout, targets, 0)

    total, bytes_ = 0.0, 0
    examples = validation_examples(directory, model)
    for number in range(len(examples)):
        batch = make_batch([examples[number]], model.neighbors)
        targets = np.where(batch.loss_mask > 0, batch.targets, -1)
        found = nll(opened.params, batch.tokens, batch.segments, targets, batch.neighbor_tokens if on else None)
        total += float(np.asarray(found, np.float64).sum())
        bytes_ += int(opened.tokenizer.token_bytes[np.maximum(targets, 0)][targets >= 0].sum())
    return total, bytes_


@pytest.mark.parametrize("on", [False, True])
def test_whole_documents_have_the_bits_of_the_held_out_shards(root, documents, opened, on):
    """Windows, chunks, neighbors and sums are those of the joined shards, which know nothing of this path."""
    expected, bytes_ = nats_of_the_shards(opened, root / "data" / "joined", on)
    assert bytes_ == sum(len(text.encode()) for text in documents)
    texts = [whole(opened.tokenizer, text) for text in documents]
    assert max(len(text.tokens) for text in texts) > 2 * opened.model.sequence_length
    find = find_with(opened) if on else None
    found = likelihoods(opened.model, opened.params, opened.tokenizer, texts, find, batch=2, greedy=False)
    assert -sum(one.nats for one in found) == pytest.approx(expected, rel=1e-6)
    cut = [len(text) // 2 for text in documents]
    pairs = [(text[:end], text[end:]) for text, end in zip(documents, cut, strict=True)]
    halves = [continuation(opened.tokenizer, *pair) for pair in pairs]
    heads = [type(half)(half.tokens[: half.first], 1) for half in halves]
    parts = likelihoods(opened.model, opened.params, opened.tokenizer, [*heads, *halves], find, batch=2)
    assert -sum(one.nats for one in parts) == pytest.approx(expected, rel=1e-6)


def test_many_searches_are_as_many_single_ones(root, documents):
    retriever = Retriever(root / "data", parse(VERB, [f"--workdir={root}"]).run.data)
    texts = ["", "mill", documents[0][:40], documents[1][:25], "mill"]
    ids, distances = retriever.search_all(texts, 3)
    assert retriever.values(ids).shape[:2] == (5, 3)
    for row, text in enumerate(texts):
        one, measured = retriever.search(text, 3)
        assert np.array_equal(ids[row], one) and np.allclose(distances[row], measured, atol=1e-3)


def test_the_model_is_chosen_where_the_command_line_names_none():
    assert with_model(["--tasks", "a"]) == ["run", "--model", "retro", "--tasks", "a"]
    assert with_model(["run", "--tasks", "a"]) == ["run", "--model", "retro", "--tasks", "a"]
    assert with_model(["ls", "tasks"]) == ["ls", "tasks"]
    for named in (["--model", "hf"], ["-M", "hf"], ["--model=hf"], ["--config", "a.yaml"]):
        assert with_model(named) == ["run", *named]


def test_without_the_package_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    assert main(["--tasks", "a"]) == 2
    assert "pip install 'retro_jax[build,harness]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, documents):
    """A folder of tasks of lm_eval's own format, with their data beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"text": text} for text in documents]
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    rows = []
    for number, text in enumerate(documents * 3):
        end = text.rindex(" ", 0, len(text) // (1 + number % 3) - number % 5)  # chunks end elsewhere each time
        choices = [text[end : end + 9], " the mill and the river", " bread"]
        rows.append({"context": text[:end], "choices": choices, "answer": 0})
    (folder / "choices.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    head = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: '{folder / 'choices.jsonl'}'}}}}\ntest_split: test\n"
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}{task}")
    (example,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.S)
    assert "my_task/my_text.jsonl" in example
    (folder / "my_text.yaml").write_text(example.replace("my_task/my_text.jsonl", str(folder / "texts.jsonl")))
    return folder


def run_harness(tasks, out, model_args, *more, names=("my_text", *TASKS)):
    """The command as a user pastes it, in a process without network; the finished process."""
    words = ["--model_args", model_args, "--tasks", ",".join(names), "--include_path", tasks, "--output_path", out]
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"), "1")
    return subprocess.run(
        [sys.executable, "-m", "launch.harness", *map(str, words), "--log_samples", *more],
        cwd=ROOT,
        env={**os.environ, **offline, "HF_HOME": str(tasks / "cache"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def results_of(out):
    path = next(out.rglob("results_*.json"))
    samples = {}
    for name in ("my_text", *TASKS):
        lines = next(out.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines()
        samples[name] = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
    return json.loads(path.read_text()), samples


@pytest.mark.harness
@pytest.mark.parametrize("retrieval", ["off", "on"])
def test_the_real_harness_gives_our_figures(root, tasks, documents, opened, tmp_path, retrieval):
    """Bits per byte are those of `retro evaluate`; likelihoods and text those of the functions tested above."""
    done = run_harness(tasks, tmp_path, f"workdir={root},retrieval={retrieval}", "--batch_size", "4")
    assert done.returncode == 0, done.stderr[-3000:]
    results, samples = results_of(tmp_path)
    assert results["config"]["retrieval"] == retrieval and results["config"]["step"] == 4
    assert (results["config"]["database_version"] is not None) == (retrieval == "on")

    found = results["results"]["my_text"]["bits_per_byte,none"]
    evaluated = subprocess.run(
        [sys.executable, "-m", "launch", "evaluate", f"--workdir={root}"], cwd=ROOT, capture_output=True, text=True
    )
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    ours = json.loads((root / "results.json").read_text())["all"]
    assert found == pytest.approx(ours["bpb"][retrieval], rel=1e-6)
    assert not math.isclose(ours["bpb"]["on"], ours["bpb"]["off"], rel_tol=1e-4)

    find = find_with(opened) if retrieval == "on" else None
    model, params, tokenizer = opened.model, opened.params, opened.tokenizer
    for sample_, one in zip(samples["retro_last"], samples["retro_choice"], strict=True):
        pairs = [(one["doc"]["context"], choice) for choice in one["doc"]["choices"]]
        texts = [continuation(tokenizer, *pair) for pair in pairs]
        expected = likelihoods(model, params, tokenizer, texts, find, batch=1)
        for answer, likelihood in zip(one["filtered_resps"], expected, strict=True):
            assert float(answer[0]) == pytest.approx(likelihood.nats, rel=1e-5)
            assert str(answer[1]) == str(likelihood.greedy)
        assert float(sample_["filtered_resps"][0][0]) == pytest.approx(expected[0].nats, rel=1e-5)
    greedy = parse(VERB, [f"--workdir={root}", "--config.sample.temperature=0", "--config.sample.tokens=12"]).run.sample
    for sample_ in samples["retro_continue"]:
        retriever = opened.retriever if find else None
        drawn = sample(model, params, tokenizer, sample_["doc"]["context"], greedy, retriever)
        assert sample_["filtered_resps"] == [drawn.continuation.partition("e")[0]]


@pytest.mark.harness
def test_the_real_harness_reads_a_baseline_and_refuses_by_name(root, tasks, tmp_path):
    done = run_harness(
        tasks,
        tmp_path / "out",
        f"workdir={root / 'baseline'},retrieval=off,data={root / 'data'}",
        "--batch_size",
        "2",
        names=["retro_last"],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    done = run_harness(
        tasks, tmp_path / "refused", f"workdir={root}", "--gen_kwargs", "num_beams=4", names=["retro_continue"]
    )
    assert done.returncode == 2 and "generation_kwargs have num_beams=4" in done.stderr, done.stderr[-3000:]
    assert "Traceback" not in done.stderr


@pytest.mark.harness
@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ("workdir={root}/baseline,data={root}/data", "has no retrieval layers \\(a baseline\\)"),
        ("workdir={root},neighbors=11", "config.model.neighbors=11, but the database"),
        ("workdir={root},retrieval=maybe", "retrieval=maybe must be on or off"),
        ("workdir={root},neighbor=1", "has 'neighbor', which model retro does not know"),
        ("workdir={root}/nothing", "holds no trained model"),
        ("retrieval=on", "--model_args names no model"),
        ("workdir={root},batch_size=auto", "--batch_size auto must be a number"),
        ("workdir={root},batch_size=0", "--batch_size 0 must be a number of 1 or more"),
    ],
)
def test_a_mistake_in_the_arguments_is_refused_by_name(root, model_args, message):
    model = lm_eval_model()
    with pytest.raises(ValueError, match=message):
        model.create_from_arg_string(model_args.format(root=root), {"device": None, "max_batch_size": None})


@pytest.mark.harness
def test_on_and_off_may_be_true_and_false(root):
    """YAML reads `retrieval: off` of a config file as false."""
    model = lm_eval_model().create_from_arg_obj({"workdir": str(root), "retrieval": False, "neighbors": None})
    assert model.get_model_info()["retrieval"] == "off"


def lm_eval_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package
        from lm_eval.api.registry import get_model

        import launch.harness.model  # noqa: F401

        return get_model("retro")


@pytest.mark.harness
def test_settings_of_generation():
    from launch.harness.model import settings_of

    settings, until = settings_of({"until": "\n", "max_gen_toks": 7}, 3)
    assert (settings.tokens, settings.temperature, settings.seed, until) == (7, 0.0, 3, ["\n"])
    settings, until = settings_of({"until": ["a", ""], "do_sample": True, "temperature": 0.5, "top_p": 0.9}, 0)
    assert (settings.tokens, settings.temperature, settings.top_p, until) == (256, 0.5, 0.9, ["a"])
    assert settings_of({"do_sample": False, "top_k": 5, "num_beams": 1}, 0)[0].temperature == 0.0
    with pytest.raises(ValueError, match="generation_kwargs have top_k=5"):
        settings_of({"do_sample": True, "temperature": 1.0, "top_k": 5}, 0)
