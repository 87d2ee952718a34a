"""Random controls: chunks drawn uniformly from the searched documents."""

import numpy as np
from jaxtyping import Int64

from data_pipeline.database.database import Database
from data_pipeline.database.searched import View, rows_in_view


class Pool:
    """The chunks of a view of a database, to draw from."""

    def __init__(self, database: Database, view: View):
        self._ids, self._gone = rows_in_view(database, view)
        self._documents = database.document_ids[self._ids]
        self._left_out = int(self._gone.sum())
        self._owners, self._sizes = np.unique(self._documents, return_counts=True)

    def draw(self, generator: np.random.Generator, document: int, count: int) -> Int64[np.ndarray, "K"]:
        """Up to `count` distinct chunk ids, none of `document` and none of a removed document."""
        place = int(np.searchsorted(self._owners, document))
        own = int(self._sizes[place]) if place < len(self._owners) and self._owners[place] == document else 0
        # Enough candidates that `count` others remain, even if all of the document's own chunks are among them.
        wanted = min(len(self._ids), count + own + self._left_out)
        candidates = generator.choice(len(self._ids), wanted, replace=False)
        others = (self._documents[candidates] != document) & ~self._gone[candidates]
        return self._ids[candidates[others][:count]]
