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

    def draw(
        self, generator: np.random.Generator, documents: Int64[np.ndarray, "N"], count: int
    ) -> Int64[np.ndarray, "K"]:
        """Up to `count` distinct chunk ids, none of `documents` and none of a removed document."""
        places = np.minimum(np.searchsorted(self._owners, documents), len(self._owners) - 1)
        own = int(self._sizes[places[self._owners[places] == documents]].sum())
        # Enough candidates that `count` others remain, even if all of the document's own chunks are among them.
        wanted = min(len(self._ids), count + own + self._left_out)
        candidates = generator.choice(len(self._ids), wanted, replace=False)
        others = ~np.isin(self._documents[candidates], documents) & ~self._gone[candidates]
        return self._ids[candidates[others][:count]]
