"""Rules of selection: copies, titles, near duplicates and budgets, over one metadata row a document.

A row takes 56 bytes of memory whatever the document's size; texts are read again only where two are compared.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Bool, Int

from data_pipeline.stages.run import StageError
from retro_jax.config import SourceConfig

FACT = np.dtype(
    [
        ("id", "<i8"),
        ("order", "<u8"),  # in which budgets take documents
        ("digest", "<u8", 2),  # of the text
        ("bytes", "<i8"),  # of the text
        ("length", "<i8"),  # of its line
        ("subset", "<u4"),
        ("source", "<u2"),
        ("validation", "?"),
        ("title", "?"),  # its title is that of an evaluation article
    ]
)
SPLITS = ("train", "validation")
REASONS = ("language", "unreadable", "null", "short", "long", "duplicate", "title", "near_duplicate", "budget")


class Selection:
    """The decision on each document: kept, or dropped for one reason."""

    def __init__(self, facts: np.ndarray, sources: Mapping[str, SourceConfig]):
        self.facts, self._sources = facts, sources
        self._reasons = np.zeros(len(facts), np.uint8)  # 0 is kept, else 1 + the number of the reason

    def rows(self, *, validation: bool) -> Int[np.ndarray, "K"]:
        """The kept rows of a split."""
        return np.flatnonzero((self._reasons == 0) & (self.facts["validation"] == validation))

    def kept(self) -> Bool[np.ndarray, "D"]:
        return self._reasons == 0

    def drop(self, rows: Iterable[int], reason: str) -> None:
        self._reasons[np.asarray(rows, np.int64)] = 1 + REASONS.index(reason)

    def dropped(self, reason: str) -> Bool[np.ndarray, "D"]:
        return self._reasons == 1 + REASONS.index(reason)

    def drop_copies(self) -> None:
        """Drops copies: of equal texts, over all subsets and splits, the lowest id stays; of one id, the first read."""
        digest = self.facts["digest"]
        order = np.lexsort((self.facts["id"], digest[:, 1], digest[:, 0]))
        again = (digest[order[1:]] == digest[order[:-1]]).all(axis=1)
        self.drop(order[1:][again], "duplicate")

    def drop_known(self, digests: Mapping[int, str]) -> None:
        """Drops documents of one id and text with one that the database holds: SHA-256 by id."""
        for row, id in enumerate(self.facts["id"].tolist()):
            if id in digests and self.facts["digest"][row].tobytes() == bytes.fromhex(digests[id])[:16]:
                self.drop([row], "duplicate")

    def drop_titles(self) -> None:
        """Drops training documents with the title of an evaluation article."""
        rows = self.rows(validation=False)
        self.drop(rows[self.facts["title"][rows]], "title")

    def drop_over_budget(self, *, validation: bool) -> None:
        """Drops documents beyond a source's budget, in hash order; a later document that fits is kept."""
        rows = self.rows(validation=validation)
        rows = rows[np.argsort(self.facts["order"][rows], kind="stable")]
        for number, source in enumerate(self._sources.values()):
            room = source.max_validation_bytes if validation else source.max_train_bytes
            taken, over = 0, []
            if room <= 0:
                continue
            for row in rows[self.facts["source"][rows] == number].tolist():
                size = int(self.facts["bytes"][row])
                if taken + size > room:
                    over.append(row)
                else:
                    taken += size
            self.drop(over, "budget")


def check_ids(facts: np.ndarray, describe: Callable[[int], str]) -> None:
    """Raises StageError where two different texts have one id."""
    order = np.argsort(facts["id"], kind="stable")
    one, other = order[:-1], order[1:]
    clash = (facts["id"][one] == facts["id"][other]) & (facts["digest"][one] != facts["digest"][other]).any(axis=1)
    if clash.any():
        first = int(np.flatnonzero(clash)[0])
        raise StageError(
            f"Two documents have the same name or id but different texts (in this database {facts['id'][one[first]]}): "
            f"{describe(int(one[first]))} and {describe(int(other[first]))}. Rename one of them, or give it a subset of "
            "its own; records whose ids are no ids do without config.data.sources.NAME.id_key."
        )
