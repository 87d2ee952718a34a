"""What was removed from and added to a finished database, beside the stages of the build, which do not change.

    removed.json          {"documents": [ids], "subsets": [names]} that no search returns
    removed.copy.json     a copy, because removed documents must not return when one file is lost or damaged
    additions/00000/      documents, chunks, embeddings and index of text added later, made by the build's own stages; if the
                          build's index is routed, the keys go to the same shards by its router

`data_pipeline.database.changes` writes it. Both take effect at once in `data_pipeline.database.database`. Chunk ids never change:
those of an addition follow all earlier ones.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.chunks import ChunkTable
from data_pipeline.stages.run import StageError, note
from retro_jax.core.files import DamagedFile, read_json

REMOVED, COPY, ADDITIONS, CONFIG = "removed.json", "removed.copy.json", "additions", "config.json"
FINISHED = "finished.json"  # its counts, written after the last stage; from that stage on the addition is used


@dataclass(frozen=True)
class Removed:
    """The removed documents and subsets."""

    documents: frozenset[int] = frozenset()
    subsets: frozenset[str] = frozenset()

    def rows(self, table: ChunkTable) -> np.ndarray:
        """Bool [N]: which chunks of a table are removed."""
        found = np.isin(table.document_ids[:], np.array(sorted(self.documents), np.int64))
        numbers = [number for number, name in enumerate(table.subset_names) if name in self.subsets]
        return found | np.isin(table.subsets[:], numbers)


def read_removed(data: Path) -> Removed:
    """The union of the two files' lists.

    Raises:
      StageError: a damaged file without an intact copy. It is not read as an empty list.
    """
    found, faults = [], []
    for path in (Path(data) / REMOVED, Path(data) / COPY):
        if not path.exists():
            continue
        try:
            facts = read_json(path, "The documents of the other copy stay removed.", keys=("documents", "subsets"))
            found.append(Removed(frozenset(facts["documents"]), frozenset(facts["subsets"])))
        except (DamagedFile, TypeError) as error:
            faults.append(str(error))
    if faults and not found:
        raise StageError(
            f"{faults[0].partition('. ')[0]}, and there is no whole copy. Restore {data}/{REMOVED} from a backup, or move it "
            f"and {COPY} away and run `retro database remove` again with what it listed."
        )
    if len(found) == 1 and (faults or not (Path(data) / REMOVED).exists()):
        note(faults[0] if faults else f"{data}/{REMOVED} is missing. The documents that {COPY} lists stays removed.")
    return Removed(
        frozenset().union(*(one.documents for one in found)), frozenset().union(*(one.subsets for one in found))
    )


def addition_directories(data: Path) -> list[Path]:
    """Finished additions, in order."""
    found = sorted((Path(data) / ADDITIONS).glob("[0-9]*"))
    return [path for path in found if (path / FINISHED).exists() or (path / "index" / "manifest.json").exists()]
