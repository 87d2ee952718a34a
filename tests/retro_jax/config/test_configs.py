"""Every config resolves and has the paper's numbers, and mistakes come with a suggestion."""

import dataclasses

import pytest
from decoder_kinds import KINDS
from places import ROOT

from launch.command.config_files import load_config
from retro_jax.config import EncoderConfig, ModelConfig, RunConfig, resolve, to_dict
from retro_jax.core.files import write_json

CONFIGS = ROOT / "configs"
RETRO = ("172m", "425m", "1b5", "7b5")
BASELINE = ("132m", "368m", "1b3", "7b")


def run_config(file, argument=""):
    return resolve(load_config(f"{CONFIGS / file}.py:{argument}" if argument else f"{CONFIGS / file}.py"))


@pytest.mark.parametrize(
    ("retro", "baseline", "shape", "retrieval_layers", "rate", "batch", "steps"),
    [
        # d, d_ffw, heads, head size, layers: paper Table 2; P: every third from 6; rate, batch: Table 10; steps: C.1
        ("172m", "132m", (896, 3584, 16, 64, 12), (6, 9, 12), 2e-4, 256, 800_000),
        ("425m", "368m", (1536, 6144, 12, 128, 12), (6, 9, 12), 2e-4, 256, 800_000),
        ("1b5", "1b3", (2048, 8192, 16, 128, 24), (6, 9, 12, 15, 18, 21, 24), 2e-4, 256, 800_000),
        ("7b5", "7b", (4096, 16384, 32, 128, 32), (6, 9, 12, 15, 18, 21, 24, 27, 30), 1e-4, 1024, 200_000),
    ],
)
def test_the_papers_numbers(retro, baseline, shape, retrieval_layers, rate, batch, steps):
    """Guards against P counted from 0, or taken from Table 10. It counts from 1 and follows the parameter counts."""
    run = run_config("retro", retro)
    model, train = run.model, run.train
    assert (model.width, model.feed_forward, model.heads, model.head_dim, model.layers) == shape
    assert model.retrieval_layers == retrieval_layers
    assert (model.vocabulary, model.sequence_length, model.chunk_length, model.neighbors) == (128_000, 2048, 64, 2)
    assert model.encoder == EncoderConfig(2, 896, 16, 64, 3584, (1,))
    assert (train.learning_rate, train.batch, train.steps) == (rate, batch, steps)
    assert (train.initial_learning_rate, train.warmup_steps, train.final_fraction) == (1e-7, 750, 0.1)
    assert train.weight_decay == 0.1
    assert train.steps * train.batch * model.sequence_length == 419_430_400_000
    plain = run_config("baseline", baseline)
    assert plain.model == dataclasses.replace(model, retrieval_layers=())
    assert plain.train == train and plain.data == run.data
    fitted = run_config("retrofit", retro)
    assert fitted.model == model
    assert (fitted.train.trainable, fitted.train.batch, fitted.train.steps) == ("retrieval", 256, 23_438)
    assert (fitted.train.learning_rate, fitted.train.initialize_from) == (rate, f"runs/{baseline}")
    asked = run_config("questions", retro)
    assert asked.model == dataclasses.replace(model, neighbors=20, sequence_length=128)
    schedule = asked.train.steps, asked.train.batch, asked.train.learning_rate, asked.train.warmup_steps
    assert schedule == (25_000, 128, 1e-6, 750) and asked.train.final_fraction * 1e-6 == pytest.approx(1e-7)


@pytest.mark.parametrize(
    ("file", "argument"),
    [("retro", f"{size},smoke") for size in RETRO]
    + [("baseline", f"{size},smoke") for size in BASELINE]
    + [(file, f"{size},smoke") for file in ("retrofit", "questions") for size in RETRO]
    + [(file, argument) for file in ("quickstart", "study", "table_13", "table_14") for argument in ("", "smoke")]
    + [("wikitext103", "FOLDER"), ("wikitext103", "FOLDER,smoke")]
    + [("own_text", "TEXT.txt"), ("own_text", "TEXT,smoke"), ("own_text", "a,b,425m"), ("own_text", "x,425m,smoke")],
)
def test_every_config_resolves(file, argument):
    run = run_config(file, argument)
    assert run.data.sources
    if "smoke" in argument:
        assert run.model.width <= 64 and run.model.vocabulary <= 1024 and run.train.steps <= 100
        assert run.model.retrieves == (file != "baseline")


def test_a_smoke_baseline_reads_the_shards_of_its_smoke_retro():
    retro, baseline = run_config("retro", "172m,smoke"), run_config("baseline", "132m,smoke")
    assert retro.data == baseline.data
    assert dataclasses.replace(retro.model, retrieval_layers=()) == baseline.model


def test_own_text_takes_the_path_as_it_is():
    assert run_config("own_text", "a,b:c/d.jsonl").data.sources["own"].path == "a,b:c/d.jsonl"
    sized = run_config("own_text", "texts,1b5")
    assert sized.data.sources["own"].path == "texts" and sized.model == run_config("retro", "1b5").model


@pytest.mark.parametrize(
    ("file", "argument", "message"),
    [
        ("retro", "127m", "'127m' is not an argument of this config; did you mean '172m'"),
        ("retro", "172m,smok", "did you mean 'smoke'"),
        ("retro", "", "One size is needed.*choose from 172m, 425m, 1b5, 7b5"),
        ("retro", "172m,425m", "One size is needed after the colon, but there are 2"),
        ("baseline", "172m", "did you mean '132m'"),
        ("quickstart", "smokey", "did you mean 'smoke'"),
        ("own_text", "", "path of your text is missing"),
        ("own_text", "x,172m,425m", "One size at most"),
    ],
)
def test_arguments_that_are_not_known(file, argument, message):
    with pytest.raises(ValueError, match=message):
        run_config(file, argument)


def test_an_unknown_key_is_an_error():
    """Guards against a dropped key, which would leave a size unchanged: of the decoder, its encoder and training."""
    for section, known in (({"model": {"widht": 4}}, "model.width"), ({"train": {"stepz": 1}}, "train.steps")):
        with pytest.raises(ValueError, match=rf"is not a known config key; did you mean config.{known}\?"):
            resolve(section)
    with pytest.raises(ValueError, match="config.model.encoder.hidden is not a known config key; known keys: cross_"):
        resolve({"model": {"encoder": {"hidden": 4}}})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_a_config_file_opens_with_its_command_hardware_and_expected_result(path):
    opening = path.read_text().split('"""')[1]
    assert f"configs/{path.name}" in opening
    assert "Hardware:" in opening and "Expected" in opening


def test_an_imported_model_gets_retrieval_around_its_frozen_decoder(tmp_path):
    model = dataclasses.replace(ModelConfig(), retrieval_layers=(), layers=30, **KINDS["llama"])
    write_json(tmp_path / "config.json", to_dict(RunConfig(model=model)))
    run = run_config("imported", str(tmp_path))
    decoder = dataclasses.replace(run.model, retrieval_layers=(), shared_embeddings=False, encoder=model.encoder)
    assert decoder == model and run.model.retrieval_layers == tuple(range(6, 31, 3))
    assert run.model.encoder.width == model.width and run.model.shared_embeddings
    assert (run.train.trainable, run.train.initialize_from) == ("retrieval", str(tmp_path))
    assert (run.train.batch, run.train.steps) == (256, 23_438)
    assert run_config("imported", f"{tmp_path},smoke").train.steps == 20
    laptop = run_config("imported", f"{tmp_path},laptop")
    assert (laptop.train.batch, laptop.train.steps, laptop.model.sequence_length) == (4, 600, 256)
    assert laptop.evaluate.baseline == str(tmp_path) and set(laptop.data.sources) == {"wiki", "legal"}
    with pytest.raises(ValueError, match="takes a run directory, RUN, RUN,laptop or RUN,smoke"):
        run_config("imported", "")
