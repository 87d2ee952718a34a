"""Sets of questions: each public file form against an obvious computation, resumed joins, and what is refused."""

import gzip
import shutil
from dataclasses import replace

import joined_set
import numpy as np
import pytest
from dying_shards import until_done
from file_contents import contents
from question_files import made_up, write_json, write_lines, write_rows

from data_pipeline.database.retriever import Retriever
from data_pipeline.evaluation.join import join
from data_pipeline.evaluation.questions.join import describe_questions, join_questions
from data_pipeline.evaluation.questions.stored import StoredQuestions, open_question_sets, question_sets
from data_pipeline.evaluation.sets import list_sets
from data_pipeline.stages.run import StageError
from data_pipeline.tokens import Tokenizer
from retro_jax.config import SourceConfig
from retro_jax.data.batches import open_examples
from retro_jax.run_directory.directory import fingerprints

M, K = 32, 3
MODEL = replace(joined_set.MODEL, chunk_length=M, sequence_length=2 * M)
RECORDS = made_up(7)
RECORDS[2] |= {"target": "snow", "answers": ["the snow", "snow"]}
RECORDS[3]["ctxs"] = []
RECORDS[4]["ctxs"] = [{"title": "é", "text": "x " * 60 + RECORDS[4]["answers"][0]}, *RECORDS[4]["ctxs"] * 2]
RECORDS[5]["question"] = "which of all the mills is it that the baker means"
RECORDS[6]["question"] = "the mill on the river " * 20


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("questions")


@pytest.fixture(scope="module")
def run(root):
    return joined_set.make_build(root, MODEL)


@pytest.fixture(scope="module")
def tokenizer(root, run):
    return Tokenizer(root / "data" / "tokenizer")


def source(path):
    return SourceConfig(path=str(path), protocol="questions", role="evaluation")


def join_file(run, root, name, path, **more):
    return join_questions(run, root / "data", name, source(path), K, **more)


def obvious(record, tokenizer):
    """(prompt, passages) as lists, from the paper's words."""
    prompt = [tokenizer.bos, *tokenizer.encode(f"question: {record['question']} \n answer:")]
    prompt = [-1] * (-len(prompt) % M) + prompt
    texts = [f"title: {one['title']}, source: {one['text']}" for one in record["ctxs"][:K]]
    rows = [(tokenizer.encode(text) + [-1] * 2 * M)[: 2 * M] for text in texts]
    return prompt, rows + [[-1] * 2 * M] * (K - len(rows))


@pytest.mark.parametrize("form", ["array", "lines", "packed", "folder"])
def test_every_form_holds_the_same_questions(root, run, tokenizer, form):
    path = root / f"{form}.json"
    if form == "array":
        write_json(path, RECORDS)
    elif form == "lines":
        write_lines(path := root / "nq.jsonl", RECORDS)
    elif form == "packed":
        path = root / "nq.json.gz"
        path.write_bytes(gzip.compress(write_json(root / "plain.json", RECORDS).read_bytes()))
    else:
        path = root / "folder"
        path.mkdir()
        write_json(path / "a.json", RECORDS[:4])
        write_lines(path / "b.jsonl", [])
        write_lines(path / "c.jsonl", RECORDS[4:])
    before = contents(root / "data", without="evaluation")
    counts = join_file(run, root, form, path)
    assert contents(root / "data", without="evaluation") == before
    stored = StoredQuestions(root / "data", form)
    assert len(stored) == 7 == counts["questions"] and stored.stored == K
    for number, record in enumerate(RECORDS):
        prompt, passages = obvious(record, tokenizer)
        assert stored.prompts(np.array([number]))[0].tolist() == prompt
        assert stored.prompt_chunks[number] == len(prompt) // M
        assert stored.passages(np.array([number]))[0].tolist() == passages
        (found,) = stored.records(number, number + 1)
        assert [found[key] for key in ("id", "question", "answers")] == [
            record[key] for key in ("id", "question", "answers")
        ]
        assert found["target"] == record.get("target", record["answers"][0])
    assert [one["id"] for one in stored.records(0, 7)] == [one["id"] for one in RECORDS]
    # The third's passages say another color, the fourth has none, the fifth's first passage is cut before the answer.
    assert stored.found.tolist() == [1, 1, 0, 0, 2, 1, 1]
    assert counts["answerable"] == 5 and counts["passages"] == 5 * 2 + 3
    ends = [one for one in range(tokenizer.vocabulary) if one == tokenizer.eos or "\n" in tokenizer.decode([one])]
    assert np.flatnonzero(stored.stops).tolist() == ends and tokenizer.encode("\n")[-1] in ends
    assert f"{form}: 7 questions, 1.9 passages each from the file" in describe_questions(form, counts)


def test_dprs_training_files_are_read(root, run):
    record = RECORDS[0] | {"positive_ctxs": RECORDS[1]["ctxs"][:1], "hard_negative_ctxs": RECORDS[2]["ctxs"]}
    del record["ctxs"]
    join_file(run, root, "dpr", write_json(root / "biencoder-nq-dev.json", [record]))
    passages = StoredQuestions(root / "data", "dpr").passages(np.array([0]))[0]
    (wanted,) = [
        obvious({**record, "ctxs": RECORDS[1]["ctxs"][:1] + RECORDS[2]["ctxs"]}, Tokenizer(root / "data/tokenizer"))
    ]
    assert passages.tolist() == wanted[1]


@pytest.mark.parametrize("name", ["nq-test.qa.csv", "NQ-open.dev.jsonl"])
def test_passages_of_plain_questions_are_the_nearest_chunks_of_the_database(root, run, tokenizer, name):
    """One question at a time, by the retriever that sampling uses."""
    plain = [{"question": one["question"], "answers": one["answers"]} for one in RECORDS]
    plain[0]["answers"] = ['the "moon"', "it's", "é"]
    lines = [{"question": one["question"], "answer": one["answers"]} for one in plain]
    path = write_rows(root / name, plain) if name.endswith("csv") else write_lines(root / name, lines)
    counts = join_file(run, root, name, path)
    stored, retriever = StoredQuestions(root / "data", name), Retriever(root / "data", run.data)
    assert counts["retrieved"] and counts["passages"] == 7 * K
    for number, record in enumerate(plain):
        assert stored.records(number, number + 1)[0]["answers"] == record["answers"]
        ids, _ = retriever.search(record["question"], K)
        texts = [tokenizer.decode(row[row >= 0]) for row in retriever.values(ids)]
        ctxs = [{"title": of[1], "text": text} for of, text in zip(retriever.sources(ids), texts, strict=True)]
        assert stored.passages(np.array([number]))[0].tolist() == obvious({**record, "ctxs": ctxs}, tokenizer)[1]


def test_shards_to_train_on(root, run, tokenizer):
    """Against the words of the paper; what does not fit is counted, and the directory is one that `retro train` takes."""
    path = write_json(root / "train.json", RECORDS)
    longer = replace(
        run, model=replace(run.model, sequence_length=3 * M), data=replace(run.data, validation_fraction=0.4)
    )
    counts = join_file(longer, root, "train", path, train=True)
    data = root / "data" / "evaluation" / "train"
    fits = [number for number, one in enumerate(RECORDS) if len(obvious(one, tokenizer)[0]) + 3 <= 3 * M]
    assert counts["too_long"] == 7 - len(fits) and "joined shards of" in describe_questions("train", counts)
    model, seen = replace(longer.model, neighbors=K), {}
    for split in counts["sequences"]:
        examples = open_examples(data / "joined", split, model)
        assert examples.subsets == {"train": (0, counts["sequences"][split])}
        for example in (examples[place] for place in range(len(examples))):
            tokens = [token for token in example["tokens"].tolist() if token >= 0]
            text = tokenizer.decode(tokens)
            number = next(n for n in fits if f"question: {RECORDS[n]['question']} \n" in text)
            seen[number] = split
            prompt, passages = obvious(RECORDS[number], tokenizer)
            answer = [
                *tokenizer.encode(f" {RECORDS[number].get('target', RECORDS[number]['answers'][0])}"),
                tokenizer.eos,
            ]
            used = len(prompt) // M
            whole = [*prompt, *answer, *[-1] * 3 * M][: 3 * M]
            assert example["tokens"].tolist() == whole
            scored = np.flatnonzero(example["loss_mask"])
            assert scored.tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + len(answer)))
            assert example["targets"][scored].tolist() == answer and (np.delete(example["targets"], scored) == -1).all()
            assert example["neighbor_tokens"][used - 1].tolist() == passages
            assert (np.delete(example["neighbor_tokens"], used - 1, axis=0) == -1).all()
            assert ((example["document_ids"] == -1) == (np.array(whole).reshape(3, M) == -1).all(axis=1)).all()
    assert sorted(seen) == fits and set(seen.values()) == {"train", "validation"}
    assert set(fingerprints(data)) == {"tokenizer", "questions", "joined"}
    assert fingerprints(data)["tokenizer"] == tokenizer.fingerprint


def test_a_killed_join_ends_with_the_same_bytes(root, run, monkeypatch):
    folder = root / "parts"
    folder.mkdir()
    for number in range(3):
        write_lines(folder / f"{number}.jsonl", RECORDS[number * 2 : number * 2 + 2])
    run = replace(run, data=replace(run.data, shard_sequences=2))
    join_file(run, root, "parts", folder, train=True)
    whole = contents(root / "data" / "evaluation" / "parts")
    again = root / "again"
    shutil.copytree(root / "data", again / "data", ignore=shutil.ignore_patterns("evaluation"))
    shards = until_done(monkeypatch, lambda: join_file(run, again, "parts", folder, train=True))
    assert shards > 8 and contents(again / "data" / "evaluation" / "parts") == whole


def test_sets_of_questions_are_no_sets_of_text(root, run):
    for name in ("scored", "trained"):
        join_file(run, root, name, write_json(root / f"{name}.json", RECORDS[:2]))
    names = question_sets(root / "data")
    assert "scored" in names and list_sets(root / "data") == []
    assert set(open_question_sets(root / "data", ["scored", "held_out"])) == {"scored"}
    (root / "data" / "evaluation" / "trained" / "joined").mkdir()
    there = set(open_question_sets(root / "data"))
    assert there == set(names) - {"train", "parts", "trained"}, "none that is trained on"
    assert set(open_question_sets(root / "data", ["trained"])) == {"trained"}


BAD = {"question": "q", "answers": []}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", [RECORDS[0], BAD], r"a.jsonl, line 2: expected one answer or more in 'answers', found none. docs"),
        ("b.json", [RECORDS[0], RECORDS[1], "text"], r"b.json, element 3: expected an object .* found str 'text'"),
        (
            "c.jsonl",
            [RECORDS[0], {"question": "q", "answers": ["a"]}],
            r"c.jsonl, line 2: this question has no passages, but",
        ),
        ("d.jsonl", [], "The files hold no question"),
        ("e.txt", [], r"no file of questions: they end in .json, .jsonl, .ndjson, .tsv, .csv"),
    ],
)
def test_what_is_no_question_is_named_with_its_place(root, run, name, content, said):
    path = (write_json if name.endswith(".json") else write_lines)(root / name, content)
    with pytest.raises(StageError, match=said):
        join_file(run, root, f"bad-{name}", path)


def test_rows_that_are_none_are_named(root, run):
    path = root / "bad.tsv"
    path.write_text("q\t['a']\nq2 ['a']\n")
    with pytest.raises(StageError, match=r"bad.tsv, line 2: expected two columns with a tab between.* found 1"):
        join_file(run, root, "rows", path)
    path.write_bytes(b"q\t['a']\n\xff\t['a']\n")
    with pytest.raises(StageError, match="line 2 is not UTF-8"):
        join_file(run, root, "rows2", path)


def test_a_name_that_is_taken_is_refused(root, run):
    join_file(run, root, "taken", write_json(root / "taken.json", RECORDS[2:4]))
    path = write_json(root / "other.json", RECORDS[:2])
    with pytest.raises(StageError, match="made from another config or input"):
        join_file(run, root, "taken", path)
    with pytest.raises(StageError, match="is a set of text"):
        join_file(run, root, "held_out", path)
    with pytest.raises(StageError, match="'taken' exists already, as a set of questions"):
        join(run, root / "data", "taken", SourceConfig(path=str(root / "text"), role="evaluation"))
    with pytest.raises(StageError, match="questions are not text to score.*retro join --set=new"):
        join(run, root / "data", "new", source(path))  # as a build would
    with pytest.raises(StageError, match="There are no questions 'nq' in"):
        StoredQuestions(root / "data", "nq")
