"""Stage 1, documents: every text of every source once, with its subset, its id, its license and its split.

    part-00000.jsonl   a document a line, the training split first, each split in the order of the ids
    lines.npy          int64 [N, 2]: where each line begins in the file, and the UTF-8 bytes of its text

The id of a document is a hash of its subset and its key (a path, a title; in JSONL the text itself), its split a hash
of the id, and budgets take documents in the order of a third hash: neither changes when the sources are re-ordered or
other documents come or go. Every document read is kept or counted under the reason it was dropped for.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.manifests import Manifest, Shard, StageError, read_manifest, run_stage
from data_pipeline.readers import Raw, read_source, source_digest
from retro_jax.config import DataConfig, SourceConfig, to_dict
from retro_jax.progress import progress

STAGE = "documents"
SPLITS = ("train", "validation")
PART, LINES = "part-00000.jsonl", "lines.npy"
REASONS = ("language", "short", "long", "duplicate", "budget")


@dataclass(frozen=True)
class Document:
    """A kept document."""

    id: int  # 63 bits
    subset: str
    name: str
    split: str  # "train" | "validation"
    license: str
    text: str


@dataclass
class _Fact:
    """What selection knows of a document; its finished line waits in the spill file."""

    id: int
    source: str
    subset: str
    split: str
    bytes: int
    sha256: bytes
    offset: int
    length: int


def document_id(subset: str, key: str) -> int:
    """The first 63 bits of BLAKE2b over subset and key."""
    return _bits(f"{subset}\0{key}".encode(), b"") >> 1


def split_of(document: int, validation_fraction: float) -> str:
    """The split of a document id: a hash of its own, so that it depends on nothing else."""
    share = _bits(document.to_bytes(8, "big"), b"split") / 2.0**64
    return "validation" if share < validation_fraction else "train"


def _bits(content: bytes, person: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=person).digest(), "big")


def build_documents(directory: Path, config: DataConfig) -> Manifest:
    """Reads all sources of the config into `directory`.

    Raises:
      StageError: input that cannot be read as the config says, no document left, or two documents of one id.
    """
    if not config.sources:
        raise StageError(
            "config.data.sources is empty; name a package or a path, for example sources.mine.path=TEXT.txt."
        )
    if not 0 <= config.validation_fraction < 1:
        raise StageError(f"config.data.validation_fraction={config.validation_fraction} must lie in [0, 1).")
    sources = dict(sorted(config.sources.items()))
    facts = {
        "sources": {name: _relevant(source) for name, source in sources.items()},
        "minimum_characters": config.minimum_characters,
        "validation_fraction": config.validation_fraction,
    }
    inputs = {f"source {name}": source_digest(name, source) for name, source in sources.items()}
    shard = Shard("documents", [PART, LINES], lambda temporary: _write(temporary, config, sources))
    return run_stage(directory, STAGE, facts, inputs, [shard])


def _relevant(source: SourceConfig) -> dict:
    """The source's config without its path: what the files hold counts (the input's digest), not where they are."""
    facts = to_dict(source)
    del facts["path"]
    return facts


def read_documents(directory: Path, start: int = 0, stop: int | None = None) -> Iterator[Document]:
    """Yields documents `start` to `stop` of a finished stage: training split first, each split in the order of ids."""
    offsets = np.load(Path(directory) / LINES, allow_pickle=False)[start:stop, 0]
    with open(Path(directory) / PART, "rb") as file:
        file.seek(int(offsets[0]) if len(offsets) else 0)
        for _ in range(len(offsets)):
            record = json.loads(file.readline())
            del record["sha256"]
            yield Document(**record)


def read_documents_manifest(directory: Path) -> Manifest:
    return read_manifest(directory, STAGE)


def _write(temporary: Path, config: DataConfig, sources: Mapping[str, SourceConfig]) -> dict:
    """Reads all, spills finished lines to disk, selects, and copies the kept lines in order; memory holds facts only."""
    spilled = temporary / "spilled.jsonl"
    counts: dict[str, dict] = {}
    with open(spilled, "wb") as spill:
        facts = list(_spill(spill, config, sources, counts))
    facts = _select(facts, sources, counts)
    if not facts:
        raise StageError(
            f"No document is left: {_summary(counts)}. Give more text, or lower config.data.minimum_characters."
        )
    facts.sort(key=lambda fact: (SPLITS.index(fact.split), fact.id))
    lines = np.zeros((len(facts), 2), np.int64)
    at = 0
    with open(spilled, "rb") as spill, open(temporary / PART, "wb") as part:
        for row, fact in enumerate(facts):
            spill.seek(fact.offset)
            part.write(spill.read(fact.length))
            lines[row] = at, fact.bytes
            at += fact.length
            kept = counts[fact.subset][fact.split]
            kept["documents"] += 1
            kept["bytes"] += fact.bytes
    np.save(temporary / LINES, lines)
    spilled.unlink()
    return {"documents": len(facts), "bytes": int(lines[:, 1].sum()), "subsets": dict(sorted(counts.items()))}


def _spill(spill, config: DataConfig, sources: Mapping[str, SourceConfig], counts: dict) -> Iterator[_Fact]:
    """Yields the facts of the documents that pass alone, their lines written to `spill`; counts those that do not."""
    for source_name, source in sources.items():
        for raw in progress(read_source(source_name, source), description=f"read {source_name}", unit="document"):
            count = counts.setdefault(raw.subset, _new_count(raw.license))
            if raw.license not in count["license"].split("; "):
                count["license"] = "; ".join(sorted({*count["license"].split("; "), raw.license}))
            count["read"] += 1
            content = raw.text.encode()
            reason = raw.dropped
            if not reason and len(raw.text) < config.minimum_characters:
                reason = "short"
            if not reason and 0 < source.max_document_bytes < len(content):
                reason = "long"
            if reason:
                count["dropped"][reason] += 1
                continue
            identity = document_id(raw.subset, raw.key)
            split = split_of(identity, config.validation_fraction)
            line = _line(raw, identity, split, content)
            offset = spill.tell()
            spill.write(line)
            digest = hashlib.sha256(content).digest()
            yield _Fact(identity, source_name, raw.subset, split, len(content), digest, offset, len(line))


def _line(raw: Raw, identity: int, split: str, content: bytes) -> bytes:
    record = {"id": identity, "subset": raw.subset, "name": raw.name, "split": split, "license": raw.license}
    record |= {"sha256": hashlib.sha256(content).hexdigest(), "text": raw.text}
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _new_count(license: str) -> dict:
    return {
        "license": license,
        "read": 0,
        **{split: {"documents": 0, "bytes": 0} for split in SPLITS},
        "dropped": dict.fromkeys(REASONS, 0),
    }


def _select(facts: list[_Fact], sources: Mapping[str, SourceConfig], counts: dict) -> list[_Fact]:
    """Drops exact duplicates over all subsets (the lowest id stays), then what is over its source's budget."""
    lowest: dict[bytes, _Fact] = {}
    by_id: dict[int, _Fact] = {}
    for fact in facts:
        other = by_id.setdefault(fact.id, fact)
        if other.sha256 != fact.sha256:
            raise StageError(
                f"Two documents of subset {fact.subset!r} have the same name but different texts (id {fact.id}, from "
                f"sources {other.source!r} and {fact.source!r}). Rename one of them, or give it a subset of its own."
            )
        if fact.sha256 not in lowest or fact.id < lowest[fact.sha256].id:
            lowest[fact.sha256] = fact
    kept = []
    room = {}
    for name, source in sources.items():
        room[name, "train"], room[name, "validation"] = source.max_train_bytes, source.max_validation_bytes
    taken = dict.fromkeys(room, 0)
    for fact in sorted(facts, key=lambda fact: _bits(fact.id.to_bytes(8, "big"), b"budget")):
        where = (fact.source, fact.split)
        if lowest[fact.sha256] is not fact:
            counts[fact.subset]["dropped"]["duplicate"] += 1
        elif 0 < room[where] < taken[where] + fact.bytes:
            counts[fact.subset]["dropped"]["budget"] += 1
        else:
            taken[where] += fact.bytes
            kept.append(fact)
    return kept


def _summary(counts: Mapping) -> str:
    return (
        "; ".join(
            f"{name}: {count['read']} read, dropped { ({k: n for k, n in count['dropped'].items() if n}) }"
            for name, count in sorted(counts.items())
        )
        or "nothing was read"
    )
