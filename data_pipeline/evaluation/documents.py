"""Documents of an evaluation set: every record of its files is one document, in the order of the files and their records.

    part-00000.jsonl   a document a line, as `retro build` writes them, with "scored" and "words" where the protocol gives them
    lines-00000.npy    int64 [N, 2]: where each line of the part begins, and the UTF-8 bytes of its text

Copies, short and empty texts are documents too, so that totals can be compared with those of the public file. Only
records without text are left out, and counted: null in JSON, or what a package cannot read. The id of a document is a
hash of the set, the file and the place in it.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.documents.selection import SPLITS
from data_pipeline.documents.stage import STAGE, document_id, source_facts
from data_pipeline.evaluation.entries import Entry, list_set, read_entries
from data_pipeline.sources.readers import Unit, source_digest, source_units
from data_pipeline.stages.run import Manifest, Shard, StageError, run_stage
from retro_jax.config import DataConfig, SourceConfig
from retro_jax.core.progress import progress

SPLIT = SPLITS[1]


def build_set_documents(directory: Path, name: str, source: SourceConfig, config: DataConfig) -> Manifest:
    """Reads the files of a source into `directory`.

    Args:
      name: of the set.
      source: where its text is; `source.protocol` says how a record is read.
      config: only `max_document_memory` is used.

    Raises:
      StageError: files that do not follow the protocol, a scored range outside of its text, or no document.
    """
    listing = list_set(name, source)
    shards = []
    for number, unit in enumerate(source_units(name, source, listing)):
        files = [f"part-{number:05d}.jsonl", f"lines-{number:05d}.npy"]
        make = partial(_make, name, source, unit, config.max_document_memory, files)
        shards.append(Shard(files[0].partition(".")[0], files, make))
    facts = set_facts(name, source)
    inputs = {f"source {name}": source_digest(name, source, listing)}
    counts = {"source_files": {name: listing.counts()}} if listing else {}
    some = Shard("some", [], partial(_require_some, Path(directory)))
    return run_stage(directory, STAGE, facts, inputs, shards, counts=counts, last=some)


def set_facts(name: str, source: SourceConfig) -> dict:
    """What the stage depends on besides its files; part of its plan."""
    return {"set": name, "protocol": source.protocol, "source": source_facts(source)}


def _require_some(directory: Path, temporary: Path) -> dict:
    """Raises StageError for a set without documents; a last step that writes nothing."""
    if not any(path.stat().st_size for path in directory.glob("part-*.jsonl")):
        raise StageError(
            f"The files of the set hold no document, so there is nothing to score. Move {directory.parent} away and give "
            f"other files with --path."
        )
    return {}


def _make(name: str, source: SourceConfig, unit: Unit, limit: int, files: list[str], temporary: Path) -> dict:
    """One part: the documents of one unit of the source."""
    counts: dict = {"documents": 0, "bytes": 0, "subsets": {}}
    lines, offset, places = [], 0, {}
    with open(temporary / files[0], "wb") as output:
        for entry in progress(read_entries(name, source, unit, limit), description=f"read {name}", unit="document"):
            subset = counts["subsets"].setdefault(entry.subset, _empty(entry.license))
            subset["read"] += 1
            if entry.dropped:
                subset["dropped"][entry.dropped] = subset["dropped"].get(entry.dropped, 0) + 1
                continue
            content = entry.text.encode()
            check_ranges(entry, len(content))
            places[entry.place] = again = places.get(entry.place, 0) + 1  # titles of a package may repeat
            place = entry.place if again == 1 else f"{entry.place}#{again}"
            line = _line(entry, document_id(f"evaluation\0{name}", place), content)
            output.write(line)
            lines.append((offset, len(content)))
            offset += len(line)
            for total in (counts, subset[SPLIT]):
                total["documents"] += 1
                total["bytes"] += len(content)
    np.save(temporary / files[1], np.array(lines, np.int64).reshape(-1, 2))
    return counts


def _empty(license: str) -> dict:
    splits = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    return {"license": license, "read": 0, **splits, "dropped": {}}


def _line(entry: Entry, identity: int, content: bytes) -> bytes:
    record = {"id": identity, "subset": entry.subset, "name": entry.name, "split": SPLIT, "license": entry.license}
    if entry.scored:
        record["scored"] = [list(pair) for pair in entry.scored]
    if entry.words:
        record["words"] = entry.words
    record |= {"sha256": hashlib.sha256(content).hexdigest(), "text": entry.text}
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def check_ranges(entry: Entry, size: int) -> None:
    """Raises StageError where scored byte ranges are not rising, disjoint and inside of the text."""
    end = 0
    for start, stop in entry.scored:
        if not end <= start < stop <= size:
            raise StageError(
                f"{entry.name}: scored byte ranges must rise and lie inside of the text's {size:,} bytes, but one is "
                f"[{start}, {stop}). The protocol that read it is wrong."
            )
        end = stop
