"""`retro build` from the command line with all real stages, except a tiny made-up encoder."""

import errno
import os

import made_up_encoder
import made_up_text
import pytest
from file_contents import contents
from recording import OF_RECORDS, assert_reads, recorded

from data_pipeline.stages import run as manifests
from data_pipeline.stages.summaries import table
from launch.build import main
from retro_jax.parallel.preemption import SIGNALS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("build")
    made_up_encoder.write(root / "encoder")
    made_up_text.write_folder(root / "text", documents=24)
    return root


def arguments(root, workdir, *more):
    return [
        f"--config=configs/own_text.py:{root / 'text'}",
        f"--workdir={workdir}",
        f"--config.data.encoder={root / 'encoder'}",
        f"--config.model.vocabulary={made_up_text.VOCABULARY}",
        "--config.model.sequence_length=32",
        "--config.model.chunk_length=8",
        "--config.data.validation_fraction=0.2",
        "--config.data.shard_chunks=400",
        "--config.data.shard_sequences=100",
        "--config.data.recall_sample=20",
        *more,
    ]


@pytest.fixture(scope="module")
def whole(root):
    with recorded() as recorder:
        assert main(arguments(root, root / "whole")) == 0
    assert_reads("build", recorder.keys, besides=OF_RECORDS)  # a text file has no keys
    return contents(root / "whole")


def test_a_build_says_what_it_made_and_a_second_one_makes_nothing(root, whole, capsys):
    stages = {name.split("/")[1] for name in whole} - {"config.json"}
    assert stages == {"documents", "tokenizer", "chunks", "embeddings", "index", "neighbors", "joined"}
    times = {path: path.stat().st_mtime_ns for path in (root / "whole").rglob("*")}
    assert main(arguments(root, root / "whole")) == 0
    out, err = capsys.readouterr()
    for words in ("24 documents", "340 pieces", "chunks of 8 tokens", "recall@10 1.000", "validation sequences of 32"):
        assert words in out
    assert "[7/7] joined" in err
    assert {path: path.stat().st_mtime_ns for path in (root / "whole").rglob("*")} == times


def test_a_build_interrupted_at_every_other_shard_ends_with_the_same_bytes(root, whole, monkeypatch, capsys):
    """Guards against a killed build that ends with other bytes, over all seven stages; sometimes the disk is full instead."""
    real, calls, codes = manifests._make_shard, [0], []

    def failing(directory, shard, thing):
        part = real(directory, shard, thing)
        calls[0] += 1
        if calls[0] % 5 == 0:
            os.kill(os.getpid(), SIGNALS[calls[0] // 5 % 3])
        if calls[0] % 7 == 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(directory / shard.name))
        return part

    monkeypatch.setattr(manifests, "_make_shard", failing)
    while not codes or codes[-1] != 0:
        codes.append(main(arguments(root, root / "interrupted")))
        assert codes[-1] in (0, 3, 75, 130) and len(codes) < 30
    assert codes.count(75) > 1 and 130 in codes and 3 in codes
    assert contents(root / "interrupted") == whole
    err = capsys.readouterr().err
    for number in SIGNALS:
        assert f"interrupted by {number.name}. Finished files are kept" in err
    assert "the disk is full" in err


def test_another_config_is_refused_and_nothing_changes(root, whole, capsys):
    assert main(arguments(root, root / "whole", "--config.model.chunk_length=16")) == 2
    err = capsys.readouterr().err
    assert "chunk_length (there 8, now 16)" in err and "Use another --workdir" in err and "Traceback" not in err
    assert contents(root / "whole") == whole


def test_text_that_is_not_there_or_not_text_and_then_mended(root, tmp_path, capsys):
    """Each mistake is named and does not block the next attempt in the same directory."""
    folder = tmp_path / "text"

    def attempt():
        code = main(
            [argument.replace(str(root / "text"), str(folder)) for argument in arguments(root, tmp_path / "run")]
        )
        return code, capsys.readouterr().err

    assert attempt()[0] == 2
    made_up_text.write_folder(folder, documents=24)
    (folder / "x.txt").write_bytes(b"caf\xe9 " * 40)
    code, err = attempt()
    assert code == 2 and "UTF-8" in err and "x.txt" in err
    (folder / "x.txt").unlink()
    (folder / "y.jsonl").write_text('{"text": "' + "word " * 30 + '"}\n{"text": \n')
    code, err = attempt()
    assert code == 2 and "line 2" in err and "y.jsonl" in err
    (folder / "y.jsonl").unlink()
    assert attempt()[0] == 0


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ("model.vocabulary=4095", "config.model.vocabulary=4,095 does not fit"),
        ("data.validation_fraction=0.99999", "nothing to train on"),
        ("data.minimum_characters=1000000", "No document is left"),
        ("data.embedding_dtype=float8", "embedding_dtype"),
        ("data.neighbors_stored=0", "neighbors_stored"),
        ("data.index_shards=1000000", "index_shards"),
        ("data.rerank=bm26", "rerank"),
        ("data.encoder=nowhere", "nowhere"),
    ],
)
def test_a_first_start_with_a_mistyped_setting_does_not_use_up_the_directory(
    root, whole, tmp_path, mistake, named, capsys
):
    """Guards against a directory claimed before the checks: the corrected command ends like a first one."""
    assert main([*arguments(root, tmp_path / "run"), f"--config.{mistake}"]) == 2
    assert named in capsys.readouterr().err
    assert main(arguments(root, tmp_path / "run")) == 0
    found = contents(tmp_path / "run")
    assert {
        name for name in whole | found if name != "data/config.json" and found.get(name) != whole.get(name)
    } == set()


def test_summary_lines_up():
    rows = [("documents", "2 documents", 1.25, 0.0), ("joined", "3 training sequences", 10.0, 9.5)]
    assert table(rows, "runs/x/data", 9.5).splitlines() == [
        "",
        "stage      holds                  seconds     now",
        "documents  2 documents                1.2     0.0",
        "joined     3 training sequences      10.0     9.5",
        "runs/x/data is complete; this run took 9.5 s.",
    ]
