"""A made-up model scored by windows, chunks and scored tokens, against sums over whole documents: every protocol's figures.

The made-up tokens are pieces of one to three bytes, so that many hold no whole character, as byte fallback gives them.
"""

from collections import defaultdict
from itertools import cycle

import made_up_sets
import numpy as np
import pytest
from made_up_sets import PILE, WIKI_RAW, WIKI_TOKENS

from retro_jax.data.windows import windows
from retro_jax.evaluate.protocols import EvaluationText, get, scored_tokens

M, CHUNKS = 4, 8  # tokens of a chunk, chunks of a window
BOS, EOS = b"<bos>", b"<eos>"


def tokens_of(text: str) -> list[bytes]:
    data, at, tokens = text.encode(), 0, []
    for size in cycle((1, 3, 2)):
        if at >= len(data):
            return tokens
        tokens.append(data[at : at + size])
        at += size


def bits_of(token: bytes) -> float:
    """What the made-up model asks for a token; a power of two apart, so that sums are exact."""
    return (sum(token) % 37 + 1) / 8


def is_first_choice(token: bytes) -> bool:
    return sum(token) % 3 > 0


def score(one: EvaluationText, overlap: float) -> dict:
    """As an evaluation does: a grid of chunks from BOS to EOS, windows over it, and each window's scored chunks."""
    sequence = [BOS, *tokens_of(one.text), EOS]
    chunks = -(-len(sequence) // M)
    grid = sequence + [b""] * (chunks * M - len(sequence))
    sizes = np.array([0 if token in (BOS, EOS) else len(token) for token in grid]).reshape(chunks, M)
    mask, counted = scored_tokens(sizes, one.scored)
    bits = np.array([bits_of(token) for token in grid]).reshape(chunks, M) * mask
    hits = np.array([is_first_choice(token) for token in grid]).reshape(chunks, M) & mask
    found = defaultdict(float)
    for _, end, scored in windows(chunks, CHUNKS, overlap):
        found["bits"] += bits[scored:end].sum()
        found["bytes"] += counted[scored:end].sum()
        found["tokens"] += mask[scored:end].sum()
        found["hits"] += hits[scored:end].sum()
    return found


def score_by_hand(text: str, scored: str | None = None) -> dict:
    """Sums over the tokens of the text that hold a byte of its end `scored`."""
    whole, end = len(text.encode()), 0
    start = whole - len(scored.encode()) if scored is not None else 0
    found = {"bits": 0.0, "bytes": whole - start, "tokens": 0, "hits": 0}
    for token in tokens_of(text):
        end += len(token)
        if end > start:
            found["bits"] += bits_of(token)
            found["tokens"] += 1
            found["hits"] += is_first_choice(token)
    return found


def read(name: str, path) -> list[EvaluationText]:
    protocol = get(name)
    given = made_up_sets.records(path, protocol.form_of(path.name.removesuffix(".gz").removesuffix(".zst")))
    return [text for _, text in protocol.texts(given) if isinstance(text, EvaluationText)]


# A document of several windows, one of nearly a window, one that ends with a chunk, one shorter than a chunk, of one token
# (its first piece has one byte), and an empty one.
DOCUMENTS = ["Tōkyō 日本 🜁 " * 20, "The end. " * 5, "1234567890", "ab", "a", ""]


@pytest.mark.parametrize("overlap", [0.5, 0.75, 0.875])
def test_bits_per_byte_of_documents_is_their_sum_whatever_the_overlap(tmp_path, overlap):
    found = [score(one, overlap) for one in read("documents", made_up_sets.write_c4(tmp_path, DOCUMENTS))]
    assert found == [score_by_hand(text) for text in DOCUMENTS]
    assert found[-2]["tokens"] == 1 and found[-1] == {"bits": 0, "bytes": 0, "tokens": 0, "hits": 0}


@pytest.mark.parametrize(("text", "name"), [(WIKI_RAW, "wiki.test.raw"), (WIKI_TOKENS, "wiki.test.tokens")])
@pytest.mark.parametrize("protocol", ["wikitext103", "wikitext103_75", "wikitext103_50"])
def test_word_perplexity_is_that_of_the_whole_file(tmp_path, protocol, text, name):
    """Bits of the articles over words and ends of lines of the file; cutting it loses and repeats none of them."""
    read_texts = read(protocol, made_up_sets.write_wikitext(tmp_path, text, name))
    bits = sum(score(one, get(protocol).overlap)["bits"] for one in read_texts)
    articles = ["".join(lines) for lines in _articles_by_hand(text)]
    by_hand = sum(score_by_hand(article)["bits"] for article in articles)
    words = sum(len(line.split()) + 1 for line in text.split("\n")[:-1])
    assert 2 ** (bits / sum(one.words for one in read_texts)) == 2 ** (by_hand / words)


def _articles_by_hand(text):
    titles = (" = Hollow Lantern = \n", " = A = b ( equation ) = \n", " = Tōkyō 日本 = \n")
    articles = [[]]
    for line in text.split("\n")[:-1]:
        if line + "\n" in titles[1:]:
            articles.append([])
        articles[-1].append(line + "\n")
    return articles


def test_bits_per_byte_of_the_pile_by_subset(tmp_path):
    found, by_hand = defaultdict(list), defaultdict(list)
    for one in read("pile", made_up_sets.write_pile(tmp_path)):
        found[one.subset].append(score(one, get("pile").overlap))
    for name, text in PILE:
        by_hand[name].append(score_by_hand(text))
    assert set(found) == {"arxiv", "github", "wikipedia_en", "gutenberg_pg_19"}
    for ours, theirs in (("arxiv", "ArXiv"), ("github", "Github"), ("wikipedia_en", "Wikipedia (en)")):
        assert found[ours] == by_hand[theirs]


def test_bits_per_byte_of_summaries(tmp_path):
    found = [score(one, get("curation").overlap) for one in read("curation", made_up_sets.write_curation(tmp_path))]
    kept = [(article, summary) for _, article, summary, *_ in made_up_sets.CURATION if article and summary]
    assert found == [score_by_hand(f"{article} TL;DR: {summary}", summary) for article, summary in kept]


@pytest.mark.parametrize("write", [made_up_sets.write_lambada_plain, made_up_sets.write_lambada_openai])
def test_accuracy_of_last_words(tmp_path, write):
    """A word counts if all its tokens are first choices; one passage is shorter than a chunk, and has no context."""
    texts = read("lambada", write(tmp_path))
    found = [score(one, get("lambada").overlap) for one in texts]
    by_hand = [score_by_hand(one.text, one.text.split()[-1]) for one in texts]
    assert found == by_hand
    right = [all(is_first_choice(token) for token in _last_word(one.text)) for one in texts]
    assert [one["hits"] == one["tokens"] for one in found] == right
    assert len(set(right)) == 2, "the made-up passages hold both cases"


def _last_word(text):
    """The tokens that hold a byte of the last word, from the end."""
    left, held = len(text.split()[-1].encode()), []
    for token in reversed(tokens_of(text)):
        if left <= 0:
            break
        held.append(token)
        left -= len(token)
    return held
