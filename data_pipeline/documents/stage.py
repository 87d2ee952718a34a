"""Stage 1, documents: the texts of all sources with subset, id, license and split; copies are dropped.

    part-00000.jsonl   a document a line, the training split first, each split in the order of the ids over all parts
    lines-00000.npy    int64 [N, 2]: where each line of the part begins, and the UTF-8 bytes of its text
    dropped.jsonl      what cleaning took from the training split, and why (empty without cleaning)

The id of a document is a hash of its subset and its key (a path, a title; of a record its own id, or else the text itself), its split a hash
of the id, and budgets take documents in the order of a third hash: none changes when the sources are re-ordered or
other documents are added or removed. Every document read is kept, or counted under the reason for dropping it.

The manifest's counts say of each source which files were read and which were left out, by ending or reason.

Sources are read unit by unit into `.read/`, each unit a shard that a later run reuses; selection works
on metadata rows (`cleaning.py`); then the parts are written, each a shard too, and `.read/` is deleted.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from data_pipeline.documents.cleaning import DROPPED, PLACES, select
from data_pipeline.documents.near_duplicates import Signer
from data_pipeline.documents.spill import SpillWriter, copy_lines
from data_pipeline.documents.titles import read_titles, title_of
from data_pipeline.sources.listing import Listing, describe_counts
from data_pipeline.sources.readers import list_source, read_unit, source_digest, source_units
from data_pipeline.stages.run import REPAIR, Manifest, Shard, StageError, fingerprint, read_manifest, run_stage
from retro_jax.config import DataConfig, SourceConfig, to_dict
from retro_jax.core.files import load_array
from retro_jax.core.progress import progress
from retro_jax.data.rows import ShardedRows

STAGE = "documents"
PART_BYTES = 1 << 28  # after which another part begins


@dataclass(frozen=True)
class Document:
    """A kept document."""

    id: int  # 63 bits
    subset: str
    name: str
    split: str  # "train" | "validation"
    license: str
    text: str


FIELDS = tuple(field.name for field in fields(Document))


def document_id(subset: str, key: str) -> int:
    """The first 63 bits of BLAKE2b over subset and key."""
    return _bits(f"{subset}\0{key}".encode(), b"") >> 1


def split_of(document: int, validation_fraction: float) -> str:
    """The split of a document id: a hash of its own, so that it depends on nothing else."""
    share = _bits(document.to_bytes(8, "big"), b"split") / 2.0**64
    return "validation" if share < validation_fraction else "train"


def _bits(content: bytes, person: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=person).digest(), "big")


def build_documents(
    directory: Path, config: DataConfig, *, to_train: bool = False, others: Sequence[Path] = ()
) -> Manifest:
    """Reads all sources of the config into `directory`.

    Args:
      to_train: raise an error for text that leaves nothing for the training split, before the stage is written.
      others: finished stages of the same database; a document of one id and text with one of theirs is a duplicate.

    Raises:
      StageError: input that cannot be read as the config says, no document left, or two documents of one id.
    """
    check_settings(config)
    directory, sources, facts = Path(directory), dict(sorted(training_sources(config).items())), stage_config(config)
    listings = {name: list_source(name, source) for name, source in sources.items()}
    inputs = {f"source {name}": source_digest(name, source, listings[name]) for name, source in sources.items()}
    work = directory / ".read" / fingerprint([facts, inputs])[:16]
    shards = partial(_parts, config, sources, listings, facts, inputs, work, to_train, others)
    files = {name: listing.counts() for name, listing in listings.items() if listing}
    manifest = run_stage(directory, STAGE, facts, inputs, shards, counts={"source_files": files} if files else {})
    shutil.rmtree(directory / ".read", ignore_errors=True)  # our own intermediate files
    return manifest


def stage_config(config: DataConfig) -> dict:
    """What the stage depends on beside its input; part of its plan."""
    return {
        "sources": {name: source_facts(source) for name, source in sorted(training_sources(config).items())},
        "minimum_characters": config.minimum_characters,
        "validation_fraction": config.validation_fraction,
        "near_duplicate_jaccard": config.near_duplicate_jaccard,
        "part_bytes": PART_BYTES,
    }


def _parts(
    config: DataConfig,
    sources: Mapping[str, SourceConfig],
    listings: Mapping[str, Listing | None],
    facts: dict,
    inputs: dict,
    work: Path,
    to_train: bool,
    others: Sequence[Path],
) -> list[Shard]:
    """Reads the missing units and selects documents; returns the shards that write the parts."""
    units = []
    for number, (name, source) in enumerate(sources.items()):
        if listing := listings[name]:
            for line in (f"reads {describe_counts(listing.counts())}", *(f"note: {note}" for note in listing.notes)):
                print(f"{name}: {line}", file=sys.stderr, flush=True)
        for unit in source_units(name, source, listings[name]):
            stem = f"{len(units):05d}"
            make = partial(_read_unit, config, number, name, source, unit, stem)
            units.append(Shard(stem, SpillWriter.files(stem), make))
    counts = run_stage(work / "units", "read", facts, inputs, units, unit="unit").counts
    make = partial(
        select,
        work / "units",
        [unit.name for unit in units],
        config.near_duplicate_jaccard,
        sources,
        counts,
        known=partial(_known, others) if others else None,
    )
    found = run_stage(work / "kept", "cleaning", facts, inputs, [Shard("kept", [PLACES, DROPPED], make)]).counts
    if to_train and not any(subset["train"]["documents"] for subset in found["subsets"].values()):
        raise StageError(
            f"Every document fell into the held-out split, so there is nothing to train on. Lower "
            f"config.data.validation_fraction={config.validation_fraction}, or give more text."
        )
    ranges = part_ranges(_places(work)[:, 2], PART_BYTES)
    shards = [Shard("dropped", [DROPPED], partial(_copy_dropped, work / "kept" / DROPPED, dict(found)))]
    for number, (start, stop) in enumerate(ranges):
        names = [f"part-{number:05d}.jsonl", f"lines-{number:05d}.npy"]
        shards.append(Shard(names[0].partition(".")[0], names, partial(_copy_part, work, names, start, stop)))
    return shards


def _places(work: Path) -> Int[np.ndarray, "D 4"]:
    return load_array(work / "kept" / PLACES, "Run the same `retro build` again.", mapped=True)


def part_ranges(lengths: Int[np.ndarray, "D"], part_bytes: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) of documents: a new part begins at the first line after a multiple of `part_bytes`."""
    starts = np.cumsum(lengths) - lengths
    firsts = np.flatnonzero(np.diff(starts // part_bytes, prepend=-1)).tolist()
    return list(zip(firsts, [*firsts[1:], len(lengths)], strict=True))


def _copy_dropped(path: Path, counts: dict, temporary: Path) -> dict:
    shutil.copyfile(path, temporary / DROPPED)
    return counts


def _copy_part(work: Path, names: Sequence[str], start: int, stop: int, temporary: Path) -> dict:
    """One part: the lines of documents [start, stop) from the units that they were read into."""
    places = _places(work)[start:stop]
    lengths, sizes = places[:, 2], places[:, 3]
    copy_lines(work / "units", places[:, :3], temporary / names[0])
    np.save(temporary / names[1], np.stack([np.cumsum(lengths) - lengths, sizes], axis=1))
    return {"documents": stop - start, "bytes": int(sizes.sum())}


def check_settings(config: DataConfig) -> None:
    """Raises StageError where a setting of the stage is outside its range."""
    if not training_sources(config):
        found = f"holds evaluation sets alone ({', '.join(config.sources)})" if config.sources else "is empty"
        raise StageError(
            f"config.data.sources {found}; name a package or a path, for example sources.mine.path=TEXT.txt."
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


def training_sources(config: DataConfig) -> dict[str, SourceConfig]:
    """Those of the config whose text is trained on and searched; the others are evaluation sets."""
    return {name: source for name, source in config.sources.items() if source.role == "train"}


def source_facts(source: SourceConfig) -> dict:
    """The source's config without its paths: the content of files counts (the input's digest), not their place."""
    facts = to_dict(source)
    for key in ("path", "role", "protocol"):  # the protocol is that of an evaluation set, which says it itself
        del facts[key]
    if not facts["id_key"]:
        del facts["id_key"]  # so that builds from before this key stay valid
    facts["evaluation_titles"] = bool(facts["evaluation_titles"])
    return facts


class DocumentTable:
    """A finished documents stage. Documents are numbered in the order of its lines.

    Attributes:
      bytes: Int[np.ndarray, "D"], UTF-8 bytes of each text.
    """

    def __init__(self, directory: Path):
        names = [file.name for file in read_manifest(directory, STAGE, verify=False).files]
        self._parts = [Path(directory) / name for name in names if name.startswith("part-")]
        self._lines = ShardedRows([Path(directory) / name for name in names if name.startswith("lines-")])
        self._first = np.cumsum([0, *self._lines.part_rows])

    @property
    def bytes(self) -> Int[np.ndarray, "D"]:
        return self._lines[:][:, 1]

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yields documents `start` to `stop`: training split first, each split in the order of ids."""
        return read_lines(self.lines(start, stop))

    def records(self) -> Iterator[dict]:
        """Yields the lines of all documents: the fields of `Document`, and "sha256" of the text."""
        return read_records(self.lines())

    def lines(self, start: int = 0, stop: int | None = None) -> list[tuple[Path, int, int]]:
        """Where the lines of documents `start` to `stop` are: (file, the first's offset, how many)."""
        if start < 0:
            raise ValueError(f"Documents are numbered from 0, but document {start} was asked for.")
        stop, found = len(self._lines) if stop is None else min(stop, len(self._lines)), []
        while start < stop:
            part = int(np.searchsorted(self._first, start, side="right")) - 1
            end = min(stop, int(self._first[part + 1]))
            found.append((self._parts[part], int(self._lines[start][0]), end - start))
            start = end
        return found


def read_lines(lines: Sequence[tuple[Path, int, int]]) -> Iterator[Document]:
    """Yields the documents of `DocumentTable.lines`: what a shard reads, without opening a table of all parts."""
    for record in read_records(lines):
        yield Document(**{field: record[field] for field in FIELDS})


def read_records(lines: Sequence[tuple[Path, int, int]]) -> Iterator[dict]:
    """Yields the lines as they were written: the fields of `Document`, "sha256" of the text, and what an evaluation set adds."""
    for path, offset, count in lines:
        with open(path, "rb") as file:
            file.seek(offset)
            for _ in range(count):
                line = file.readline()
                try:
                    yield json.loads(line)
                except ValueError as error:
                    where = f"{path}, byte {file.tell() - len(line):,}"
                    raise StageError(f"{where}: this line is not valid ({error}). {REPAIR}") from None


def read_documents_manifest(directory: Path) -> Manifest:
    return read_manifest(directory, STAGE)


def _known(others: Sequence[Path], ids: frozenset[int]) -> dict[int, str]:
    """The SHA-256 of the text of those `ids` that other stages hold."""
    records = (record for other in others for record in DocumentTable(other).records())
    return {record["id"]: record["sha256"] for record in records if record["id"] in ids}


def _read_unit(
    config: DataConfig, number: int, name: str, source: SourceConfig, unit, stem: str, temporary: Path
) -> dict:
    """Reads one unit: writes lines and metadata of the documents that pass, and counts all."""
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
