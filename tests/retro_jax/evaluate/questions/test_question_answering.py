"""From files to exact match: a small RETRO model learns to read the answer out of its passages, by the real stages."""

from dataclasses import replace

import jax.numpy as jnp
import made_up_text
import pytest
from one_device import one_device
from question_files import made_up, write_json

from data_pipeline.chunks import build_chunks
from data_pipeline.documents.stage import build_documents
from data_pipeline.evaluation.questions.join import join_questions
from data_pipeline.evaluation.questions.stored import StoredQuestions
from data_pipeline.tokens import Tokenizer, build_tokenizer
from retro_jax.config import DataConfig, EncoderConfig, MeshConfig, ModelConfig, RunConfig, SourceConfig, TrainConfig
from retro_jax.evaluate.questions.decoding import Decoder
from retro_jax.evaluate.questions.scoring import QuestionTask, evaluate_questions
from retro_jax.models.retro import initialize
from retro_jax.run_directory import directory as run_directory
from retro_jax.run_directory.checkpoints import Checkpoints, load_params
from retro_jax.train.loop import train
from retro_jax.train.state import TrainState

M = 32
MODEL = ModelConfig(
    vocabulary=made_up_text.VOCABULARY,
    sequence_length=2 * M,
    chunk_length=M,
    layers=2,
    width=32,
    heads=2,
    head_dim=16,
    feed_forward=64,
    retrieval_layers=(1, 2),
    neighbors=1,
    encoder=EncoderConfig(layers=1, width=32, heads=2, head_dim=16, feed_forward=64),
    compute_dtype="float32",
    remat="none",
    scan=False,
    loss_block=0,
)
TRAIN = TrainConfig(
    steps=150,
    batch=32,
    learning_rate=1e-2,
    warmup_steps=10,
    mesh=MeshConfig(),
    log_every=50,
    checkpoint_every=150,
    retrieval_check_every=0,
    peak_flops=1e9,
)
RUN = RunConfig(model=MODEL, train=TRAIN)


def build(root):
    """The stages that questions need of a build, and a RETRO run with its first weights."""
    data, sources = root / "data", {"farm": SourceConfig(path=str(made_up_text.write_folder(root / "text")))}
    config = DataConfig(sources=sources, validation_fraction=0.2)
    build_documents(data / "documents", config)
    build_tokenizer(data / "tokenizer", config, MODEL.vocabulary, data / "documents")
    build_chunks(data / "chunks", config, M, data / "documents", data / "tokenizer")
    prints = {"tokenizer": Tokenizer(data / "tokenizer").fingerprint, "database": "none", "joined": "none"}
    run_directory.claim(root / "retro", RUN, prints)
    checkpoints = Checkpoints(root / "retro" / "checkpoints", run_directory.identity(RUN, prints))
    checkpoints.save(1, TrainState(jnp.int32(1), initialize(MODEL, 0), {"count": jnp.int32(0)}), {})
    checkpoints.close()
    return data


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    root = tmp_path_factory.mktemp("answering")
    data = build(root)
    for name, count in (("train", 2000), ("test", 60)):
        path = write_json(root / f"{name}.json", made_up(count, seed=len(name), passages=1))
        run = replace(RUN, data=DataConfig(validation_fraction=0.0))
        join_questions(run, data, name, SourceConfig(path=str(path)), passages=1, train=name == "train")
    fine = replace(
        RUN,
        train=replace(TRAIN, initialize_from=str(root / "retro")),
        data=DataConfig(directory=str(data / "evaluation" / "train")),
    )
    train(fine, root / "fine")
    params, trained, step = load_params(root / "fine")
    assert step == TRAIN.steps
    questions = StoredQuestions(data, "test")
    task = QuestionTask(questions, k=1, batch=20, limit=8, seed=0, models={"retro": {"step": step}})
    decoder = Decoder(trained.model, params, questions.stops, task.limit, one_device())
    return evaluate_questions(task, root / "results", lambda name: decoder, resamples=500)


def test_passages_that_hold_the_answer_are_read(figures):
    """Guards against passages, targets or positions that do not belong together anywhere between file and answer."""
    found = {name: one["mean"] for name, one in figures["exact_match"].items()}
    assert found["on"] > 0.9, found
    assert max(found["off"], found["random"], found["empty"]) < 0.5, found
    assert figures["differences"]["on_minus_off"]["shown"] and figures["differences"]["on_minus_random"]["shown"]
    assert figures["verdict"]["seen"] and figures["answerable"] == 1.0
