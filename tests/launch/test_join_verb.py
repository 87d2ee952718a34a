"""`retro join` from the command line: its flags, what it prints and what it refuses."""

import re
import shutil

import joined_set
import pytest
from file_contents import contents
from joined_set import pile, write_records
from question_files import made_up, write_json
from recording import OF_RECORDS, assert_reads, recorded

from data_pipeline.evaluation.sets import list_sets, open_set
from launch.command.reads import OF_QUESTIONS
from launch.join import main


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("join_verb")
    joined_set.make_build(root)
    write_records(root / "val.jsonl")
    return root


def arguments(root, *more):
    return [f"--workdir={root}", "--set=pile", *more]


SOURCE = "--config.data.sources.pile."


def test_a_set_is_joined_and_named_again_without_its_path(root, capsys):
    before = contents(root / "data")
    keys = (f"path={root / 'val.jsonl'}", "subset_key=meta.pile_set_name", "role=evaluation")
    with recorded() as recorder:
        assert main(arguments(root, *(f"{SOURCE}{key}" for key in keys))) == 0
    assert_reads("join", recorder.keys, besides=(*OF_RECORDS, *OF_QUESTIONS))
    assert "pile: 6 documents, 0.00 MB" in capsys.readouterr().out
    assert main(arguments(root, f"--path={root / 'val.jsonl'}", f"{SOURCE}{keys[1]}")) == 0, "it is the same set"
    assert contents(root / "data", without="evaluation") == before and list_sets(root / "data") == ["pile"]
    assert open_set(root / "data", "pile").subset_names == ("mills", "rivers")
    assert main(arguments(root, "--neighbors=6", "--share=0.5")) == 0
    assert "pile: 6 neighbors of each chunk from " in capsys.readouterr().out
    assert open_set(root / "data", "pile").neighbors(k=5, share=0.5).stored == 5
    assert main([f"--workdir={root}", "--set=held_out", "--neighbors=7"]) == 0
    assert open_set(root / "data", "held_out").neighbors(k=7).stored == 7
    assert main([f"--workdir={root}", "--set=held_out", "--without=0.01"]) == 0
    found = open_set(root / "data", "held_out")
    gone = found.overlapping_documents(0.01)
    assert f"; {len(gone)} documents are left out" in capsys.readouterr().out
    assert found.neighbors(without=gone).facts["left_out_documents"] == len(gone)
    assert contents(root / "data", without="evaluation") == before
    assert pile(root / "val.jsonl").subset_key in (root / "data" / "evaluation" / "pile" / "set.json").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--path=x.jsonl"], "--set is missing; it names the set"),
        (["--set=new"], "There is no finished set 'new' in .* and no text was given for it"),
        (["--set=farm", "--config.data.sources.farm.license=CC0"], "the source 'farm' was trained on"),
        (
            ["--set=new", "--path=x.jsonl", "--config.data.sources.farm.license=CC0"],
            "is of another source than --set=new",
        ),
        (["--set=held_out", "--path=x.jsonl"], "has its path and protocol already"),
        (["--set=new", "--path=x.jsonl"], "x.jsonl' does not exist"),
        (["--set=new", "--path=README.md", "--protocol=no"], "There is no protocol 'no'"),
        (["--set=new", "--path=README.md", "--config.data.sources.new.max_document_bytes=9"], "selects training text"),
        (["--set=held_out", "--share=2"], r"must lie in \(0, 1\], but is 2.0"),
        (["--set=held_out", "--without=1.5"], r"threshold of containment must lie in \(0, 1\], but is 1.5"),
        (["--set=held_out", "--neighbors=-2"], "k counts neighbors and cannot be -2"),
        (["--set=held_out", "--address=a:1"], "are of --engine=ray"),
        (["--set=held_out", "--database=/nowhere"], "/nowhere"),
        (
            ["--set=held_out", "--without=0.5", "--database=/nowhere"],
            "--database=/nowhere were never compared with the set",
        ),
        (["--set=held_out", "--config.data.sources.x.path=y"], "is of another source than --set=held_out"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_and_nothing_is_written(root, capsys, flags, words):
    shutil.rmtree(root / "data" / "evaluation", ignore_errors=True)  # so that nothing was made before
    before = contents(root / "data")
    assert main([f"--workdir={root}", *flags]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert contents(root / "data") == before


def test_questions_are_joined_with_shards_to_train_on(root, capsys):
    path = write_json(root / "nq.json", made_up(30))
    before = contents(root / "data", without="evaluation")
    flags = [f"--workdir={root}", "--set=nq", f"--path={path}", "--protocol=questions", "--neighbors=2", "--train"]
    with recorded() as recorder:
        assert main([*flags, "--config.model.sequence_length=128"]) == 0
    assert set(OF_QUESTIONS) <= recorder.keys
    printed = capsys.readouterr().out
    assert "nq: 30 questions, 2.0 passages each from the file" in printed and "nq: joined shards of" in printed
    assert contents(root / "data", without="evaluation") == before and "nq" not in list_sets(root / "data")
    assert (root / "data" / "evaluation" / "nq" / "joined" / "dataset_info.json").exists()
    assert main([f"--workdir={root}", "--set=nq", "--neighbors=2"]) == 0, "it is the same set"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--protocol=questions", "--share=0.5"], "--share, --database and --without are of sets of text"),
        (["--protocol=questions", "--neighbors=-1"], "--neighbors=-1 counts passages"),
        (["--train"], "--train writes shards of questions; it needs --protocol=questions"),
    ],
)
def test_flags_of_questions_that_cannot_be_meant(root, capsys, flags, words):
    path = write_json(root / "some.json", made_up(3))
    assert main([f"--workdir={root}", "--set=some", f"--path={path}", *flags]) != 0
    assert words in capsys.readouterr().err
    assert not (root / "data" / "evaluation" / "some").exists()
