"""Stage 1, documents: every text of every source once, with its subset, its id, its license and its split.

    part-00000.jsonl   a document a line, the training split first, each split in the order of the ids
    lines.npy          int64 [N, 2]: where each line begins in the file, and the UTF-8 bytes of its text
    dropped.jsonl      what cleaning took from the training split, and why (empty without cleaning)

The id of a document is a hash of its subset and its key (a path, a title; of a record its own id, or else the text itself), its split a hash
of the id, and budgets take documents in the order of a third hash: neither changes when the sources are re-ordered or
other documents come or go. Every document read is kept or counted under the reason it was dropped for.

Sources are read unit by unit into `.read/`, each unit a shard of its own that a later run finds again; then what stays
is decided on rows of facts (`data_pipeline/selection.py`) and copied, and `.read/` goes.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.manifests import Manifest, Shard, StageError, fingerprint, read_manifest, run_stage
from data_pipeline.near_duplicates import (
    GRAM,
    PERMUTATIONS,
    Signer,
    compare_with_exact,
    near_copies,
    near_held_out,
    share_by_subset,
)
from data_pipeline.readers import read_unit, source_digest, source_units
from data_pipeline.selection import REASONS, Selection, check_ids
from data_pipeline.spill import Spill, SpillWriter
from data_pipeline.titles import read_titles, title_of
from retro_jax.config import DataConfig, SourceConfig, to_dict
from retro_jax.progress import progress

STAGE = "documents"
SPLITS = ("train", "validation")
PART, LINES, DROPPED = "part-00000.jsonl", "lines.npy", "dropped.jsonl"


@dataclass(frozen=True)
class Document:
    """A kept document."""

    id: int  # 63 bits
    subset: str
    name: str
    split: str  # "train" | "validation"
    license: str
    text: str


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
    _check(config)
    directory, sources = Path(directory), dict(sorted(config.sources.items()))
    facts = {
        "sources": {name: _relevant(source) for name, source in sources.items()},
        "minimum_characters": config.minimum_characters,
        "validation_fraction": config.validation_fraction,
        "near_duplicate_jaccard": config.near_duplicate_jaccard,
    }
    inputs = {f"source {name}": source_digest(name, source) for name, source in sources.items()}
    work = directory / ".read" / fingerprint([facts, inputs])[:16]
    read = partial(run_stage, work, "read", facts, inputs)
    shard = Shard("documents", [PART, LINES, DROPPED], partial(_make, config, sources, read, work))
    manifest = run_stage(directory, STAGE, facts, inputs, [shard])
    shutil.rmtree(directory / ".read", ignore_errors=True)  # our own intermediate files
    return manifest


def _check(config: DataConfig) -> None:
    if not config.sources:
        raise StageError(
            "config.data.sources is empty; name a package or a path, for example sources.mine.path=TEXT.txt."
        )
    if not 0 <= config.validation_fraction < 1:
        raise StageError(f"config.data.validation_fraction={config.validation_fraction} must lie in [0, 1).")
    if not 0 <= config.near_duplicate_jaccard <= 1:
        raise StageError(
            f"config.data.near_duplicate_jaccard={config.near_duplicate_jaccard} must lie in [0, 1]: 0 is off, the "
            "paper's is 0.8."
        )
    if config.max_document_memory <= 0:
        raise StageError(f"config.data.max_document_memory={config.max_document_memory} must be positive; take 2**28.")


def _relevant(source: SourceConfig) -> dict:
    """The source's config without its paths: what the files hold counts (the input's digest), not where they are."""
    facts = to_dict(source)
    del facts["path"]
    if not facts["id_key"]:
        del facts["id_key"]  # a build of before that key is the same
    facts["evaluation_titles"] = bool(facts["evaluation_titles"])
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


def _make(config: DataConfig, sources: Mapping[str, SourceConfig], read, work: Path, temporary: Path) -> dict:
    """The stage's one shard: reads what is not read yet, selects, and copies the lines that stay in their order."""
    shards = []
    for number, (name, source) in enumerate(sources.items()):
        for unit in source_units(name, source):
            stem = f"{len(shards):05d}"
            make = partial(_read_unit, config, number, name, source, unit, stem)
            shards.append(Shard(stem, SpillWriter.files(stem), make))
    counts = dict(read(shards, unit="unit").counts)
    spill = Spill(work, [shard.name for shard in shards])
    check_ids(spill.facts, spill.describe)
    selection = Selection(spill.facts, sources)
    selection.drop_copies()
    selection.drop_over_budget(validation=True)
    selection.drop_titles()
    near = _clean(selection, spill, config.near_duplicate_jaccard, temporary / DROPPED)
    selection.drop_over_budget(validation=False)
    subsets = _subset_counts(counts, selection, spill)
    rows = np.flatnonzero(selection.kept())
    if not len(rows):
        raise StageError(
            f"No document is left: {_summary(subsets)}. Give more text, or lower config.data.minimum_characters."
        )
    rows = rows[np.lexsort((spill.facts["id"][rows], spill.facts["validation"][rows]))]
    lines = spill.copy(rows, temporary / PART)
    np.save(temporary / LINES, lines)
    return {"documents": len(rows), "bytes": int(lines[:, 1].sum()), "subsets": subsets, **near}


def _read_unit(
    config: DataConfig, number: int, name: str, source: SourceConfig, unit, stem: str, temporary: Path
) -> dict:
    """One shard of reading: the lines and facts of the documents that pass alone; counts of all."""
    titles = frozenset()
    if source.evaluation_titles:
        titles = read_titles(source.evaluation_titles, f"config.data.sources.{name}.evaluation_titles")
    counts: dict = {"read": {}, "licenses": {}, "dropped": {}}
    signer = Signer() if config.near_duplicate_jaccard else None
    with SpillWriter(temporary, stem) as writer:
        raws = read_unit(name, source, unit, config.max_document_memory)
        for raw in progress(raws, description=f"read {name}", unit="document"):
            counts["read"][raw.subset] = counts["read"].get(raw.subset, 0) + 1
            counts["licenses"].setdefault(raw.subset, {})[raw.license] = 1
            content = raw.text.encode()
            reason = raw.dropped
            if not reason and len(raw.text) < config.minimum_characters:
                reason = "short"
            if not reason and 0 < source.max_document_bytes < len(content):
                reason = "long"
            if reason:
                dropped = counts["dropped"].setdefault(raw.subset, {})
                dropped[reason] = dropped.get(reason, 0) + 1
                continue
            identity = document_id(raw.subset, raw.key)
            split = split_of(identity, config.validation_fraction)
            digest = hashlib.sha256(content)
            writer.add(
                _line(raw, identity, split, digest.hexdigest()),
                raw.subset,
                signer(raw.text) if signer else None,
                id=identity,
                order=_bits(identity.to_bytes(8, "big"), b"budget"),
                digest=np.frombuffer(digest.digest()[:16], "<u8"),
                bytes=len(content),
                source=number,
                validation=split == "validation",
                title=bool(titles) and title_of(raw.title, raw.text) in titles,
            )
    return counts


def _line(raw, identity: int, split: str, sha256: str) -> bytes:
    record = {"id": identity, "subset": raw.subset, "name": raw.name, "split": split, "license": raw.license}
    return json.dumps(record | {"sha256": sha256, "text": raw.text}, ensure_ascii=False).encode() + b"\n"


def _clean(selection: Selection, spill: Spill, threshold: float, path: Path) -> dict:
    """Drops training documents near a held-out one and lists what cleaning dropped; statistics for the manifest."""
    with open(path, "w", encoding="utf-8") as listing:
        for row in np.flatnonzero(selection.dropped("title")).tolist():
            listing.write(json.dumps({"reason": "title", **spill.facts_of(row)}, ensure_ascii=False) + "\n")
        if not threshold:
            return {}
        signatures = spill.signatures(PERMUTATIONS)
        training, held_out = selection.rows(validation=False), selection.rows(validation=True)
        gone = []
        for near in near_held_out(signatures, training, held_out, threshold, spill.text):
            gone.append(near.row)
            what = {"reason": "near_duplicate", **spill.facts_of(near.row), "near": spill.facts_of(near.near)}
            what |= {"estimated": near.estimated, "exact": near.exact}
            listing.write(json.dumps(what, ensure_ascii=False) + "\n")
    rows = np.flatnonzero(selection.kept())
    found, pairs = near_copies(signatures, rows, threshold)
    selection.drop(gone, "near_duplicate")
    facts = {"jaccard": threshold, "gram": GRAM, "permutations": PERMUTATIONS, "training_dropped": len(gone)}
    facts["subsets"] = share_by_subset(found, spill.subsets, spill.facts["subset"][rows])
    return {"near_duplicates": {**facts, "estimate": compare_with_exact(signatures, pairs, spill.text)}}


def _subset_counts(counts: Mapping, selection: Selection, spill: Spill) -> dict:
    """Of each subset: licenses, documents read, kept by split, dropped by reason."""
    subsets = {}
    for name in sorted(counts.get("read", {})):
        mine = spill.facts["subset"] == spill.subsets.index(name) if name in spill.subsets else np.zeros(0, bool)
        dropped = dict.fromkeys(REASONS, 0) | counts["dropped"].get(name, {})
        for reason in REASONS:
            dropped[reason] += int((mine & selection.dropped(reason)).sum()) if len(mine) else 0
        subset = {"license": "; ".join(sorted(counts["licenses"][name])), "read": counts["read"][name]}
        for split in SPLITS:
            held = (
                mine & selection.kept() & (spill.facts["validation"] == (split == "validation")) if len(mine) else mine
            )
            size = int(spill.facts["bytes"][held].sum()) if len(mine) else 0
            subset[split] = {"documents": int(held.sum()), "bytes": size}
        subsets[name] = {**subset, "dropped": dropped}
    return subsets


def _summary(counts: Mapping) -> str:
    return (
        "; ".join(
            f"{name}: {count['read']} read, dropped { ({k: n for k, n in count['dropped'].items() if n}) }"
            for name, count in sorted(counts.items())
        )
        or "nothing was read"
    )
