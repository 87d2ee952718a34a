"""The compute dtype of a database is chosen once, recorded, and used by everything that embeds for it later."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import joined_set
import made_up_text
import numpy as np
import pytest
from file_contents import contents
from joined_set import pile, write_records, write_sealed

import data_pipeline.encoder.dtype as dtypes
import data_pipeline.encoder.stage as embeddings
from data_pipeline.chunks import ChunkTable
from data_pipeline.database.retriever import Retriever
from data_pipeline.database.searched import require_same_encoder
from data_pipeline.encoder.bert import FrozenEncoder
from data_pipeline.encoder.dtype import choose_dtype, fastest_dtype
from data_pipeline.encoder.stage import EmbeddingTable, open_encoder
from data_pipeline.evaluation.join import join
from data_pipeline.pipeline import build
from data_pipeline.stages.engine import using
from data_pipeline.stages.run import StageError, read_manifest
from data_pipeline.tokens import Tokenizer
from launch import database
from launch.join import main as join_verb

OTHER = {"float32": "bfloat16", "bfloat16": "float32"}
UNITS = {"float32": "avx2 avx512f", "bfloat16": "avx512_bf16"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this machine one that multiplies a dtype fastest."""

    def choose(dtype):
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor\t: 0\nflags\t\t: fpu {UNITS[dtype]} hypervisor\n")
        monkeypatch.setattr(dtypes, "CPUINFO", path)

    return choose


@pytest.fixture(scope="module", params=OTHER)
def made(request, tmp_path_factory):
    """(root, config, dtype) of a build on a machine of either kind."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "cpuinfo").write_text(f"flags : {UNITS[request.param]}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dtypes, "CPUINFO", root / "cpuinfo")
        run = joined_set.make_build(root, shard_chunks=50)
    write_records(root / "val.jsonl")
    return root, run, request.param


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2", "float32"),
        ("avx2 avx512f avx512_vnni avx512_bf16", "bfloat16"),
        ("amx_bf16 amx_tile", "bfloat16"),
        ("asimd bf16", "float32"),
        (None, "float32"),
    ],
)
def test_a_processor_with_units_for_it_takes_bfloat16(tmp_path, monkeypatch, flags, expected):
    """Guards against bfloat16 that is emulated: 1.45 times the time of float32. None: not Linux."""
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(dtypes, "CPUINFO", tmp_path / "cpuinfo")
    assert fastest_dtype() == expected
    with using(SimpleNamespace(accelerated=True)):
        assert fastest_dtype() == "bfloat16"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fastest_dtype() == "bfloat16"


def test_the_choice_is_recorded_and_is_what_was_computed(made):
    root, _, dtype = made
    manifest = read_manifest(root / "data/embeddings", "embeddings")
    encoder = FrozenEncoder(root / "encoder", compute_dtype=dtype)
    assert manifest.config["compute_dtype"] == dtype and manifest.config["encoder"] == encoder.fingerprint
    tokens = ChunkTable(root / "data/chunks").tokens[3]
    text = Tokenizer(root / "data/tokenizer").decode(tokens[tokens >= 0])
    stored = EmbeddingTable(root / "data/embeddings")[3]
    assert np.array_equal(encoder.embed([text])[0], stored)
    other = FrozenEncoder(root / "encoder", compute_dtype=OTHER[dtype])
    assert not np.array_equal(other.embed([text])[0], stored)


def test_a_killed_build_continues_in_its_dtype_on_another_machine(made, tmp_path, machine, monkeypatch):
    root, run, dtype = made
    shutil.copytree(root / "data", tmp_path / "data", ignore=shutil.ignore_patterns("evaluation"))
    whole = contents(tmp_path / "data")
    for stage in ("embeddings", "index", "neighbors", "joined"):
        shutil.rmtree(tmp_path / "data" / stage)
    (tmp_path / "data/config.json").unlink()
    machine(dtype)
    save, calls = np.save, []

    def dying(path, array):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(embeddings.np, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        build(run, tmp_path)
    monkeypatch.setattr(embeddings.np, "save", save)
    machine(OTHER[dtype])
    assert choose_dtype("auto", tmp_path / "data/embeddings") == dtype
    build(run, tmp_path)
    assert contents(tmp_path / "data") == whole


def test_everything_that_embeds_later_takes_the_recorded_dtype(made, tmp_path, machine, capsys):
    """Guards against a query, a set, an addition or a repair in the dtype of the machine that it runs on.

    The config of the build is one of an earlier version, which had no such setting.
    """
    root, run, dtype = made
    shutil.copytree(root, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    data, more = tmp_path / "run/data", [f"--workdir={tmp_path / 'run'}"]
    facts = json.loads((data / "config.json").read_text())
    del facts["data"]["encoder_dtype"], facts["sha256"]
    write_sealed(data / "config.json", facts)
    machine(OTHER[dtype])
    table, stored = ChunkTable(data / "chunks"), EmbeddingTable(data / "embeddings")
    tokens = table.tokens[:][3]
    text = Tokenizer(data / "tokenizer").decode(tokens[tokens >= 0])
    ids, distances = Retriever(data, run.data).search(text, 1)
    assert ids[0] == 3 and distances[0] == 0
    join(run, data, "pile", pile(root / "val.jsonl"))
    made_up_text.write_folder(tmp_path / "new", documents=2, seed=5)
    assert database.main(["add", *more, f"--config.data.sources.news.path={tmp_path / 'new'}"]) == 0
    for place in ("evaluation/pile", "additions/00000"):
        assert read_manifest(data / place / "embeddings", "embeddings").config["compute_dtype"] == dtype
    assert database.main(["verify", "--all", *more]) == 0
    whole = contents(data / "embeddings")
    (data / "embeddings/.parts/embeddings-00001.json").unlink()
    assert database.main(["verify", "--repair", *more]) == 0
    assert contents(data / "embeddings") == whole
    facts = json.loads((data / "embeddings/plan.json").read_text())
    del facts["sha256"]
    write_sealed(data / "embeddings/plan.json", facts | {"inputs": {**facts["inputs"], "chunks": "others"}})
    assert database.main(["verify", "--repair", *more]) == 0  # the whole stage
    assert (data / "embeddings.damaged-0").exists() and contents(data / "embeddings") == whole
    assert np.array_equal(EmbeddingTable(data / "embeddings")[:], stored[:])
    capsys.readouterr()


def test_another_dtype_than_the_recorded_one_is_refused_with_both_and_the_remedy(made, capsys):
    root, run, dtype = made
    before = contents(root / "data")
    other = dataclasses.replace(run, data=dataclasses.replace(run.data, encoder_dtype=OTHER[dtype]))
    message = rf"config.data.encoder_dtype={OTHER[dtype]} was asked for .* was made with {dtype}.*encoder_dtype=auto"
    with pytest.raises(StageError, match=message):
        build(other, root)
    with pytest.raises(StageError, match=message):
        Retriever(root / "data", other.data)
    with pytest.raises(StageError, match=message):
        join(other, root / "data", "pile", pile(root / "val.jsonl"))
    asked, place = f"--config.data.encoder_dtype={OTHER[dtype]}", f"--workdir={root}"
    new = f"--config.data.sources.news.path={root / 'text'}"
    for verb, argv in (
        (database.main, ["verify", place]),
        (database.main, ["verify", "--repair", place]),
        (database.main, ["add", place, new]),
        (join_verb, [place, "--set=pile", f"--path={root / 'val.jsonl'}"]),
    ):
        assert verb([*argv, asked]) == 2
        said = capsys.readouterr().err
        assert f"encoder_dtype={OTHER[dtype]} was asked for" in said and f"was made with {dtype}" in said, argv
    assert contents(root / "data") == before
    same = dataclasses.replace(run, data=dataclasses.replace(run.data, encoder_dtype=dtype))
    build(same, root)
    assert open_encoder(root / "data/embeddings", root / "encoder", dtype).compute_dtype == dtype
    build(run, root)  # its own config again


def test_a_stage_of_which_nothing_was_made_takes_the_dtype_asked_for(made, tmp_path):
    root, _, dtype = made
    (tmp_path / "embeddings").mkdir()
    shutil.copy(root / "data/embeddings/plan.json", tmp_path / "embeddings/plan.json")
    assert choose_dtype(OTHER[dtype], tmp_path / "embeddings") == OTHER[dtype]
    assert choose_dtype("auto", tmp_path / "embeddings") == dtype


def test_a_second_database_of_another_dtype_is_refused_with_the_setting_that_makes_one(made, tmp_path):
    root, run, dtype = made
    data = dataclasses.replace(run.data, encoder_dtype=OTHER[dtype])
    build(dataclasses.replace(run, data=data), tmp_path)
    with pytest.raises(StageError, match=f"another encoder than .*config.data.encoder_dtype={dtype}"):
        require_same_encoder(root / "data", tmp_path / "data")
