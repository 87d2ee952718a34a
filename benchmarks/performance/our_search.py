"""Our side of search.py: SCaNN as `data_pipeline.search.scann` builds, tunes and searches it, and exact search."""

import importlib.metadata
import time
from dataclasses import asdict, replace

import numpy as np
from indexes import serve_indexes

from data_pipeline.search.exact import ExactSearcher
from data_pipeline.search.recall import QuerySample
from data_pipeline.search.scann import ScannSearcher, build_scann, choose_settings, tune
from retro_jax.config import DataConfig


class Scann:
    def __init__(self, keys, folder, settings):
        self._config = DataConfig(exact_below=0, neighbors_stored=settings["k"], recall_target=settings["target"])
        chosen = choose_settings(len(keys), self._config)
        build_scann(folder, keys, chosen)
        self._keys, self._searcher = keys, ScannSearcher(folder, keys, chosen)
        self.bytes = sum(path.stat().st_size for path in folder.iterdir())

    def choose(self, queries) -> dict:
        """The settings that a build finds for the recall target on a sample; here the sample is `queries`."""
        sample = QuerySample(queries, self._config.neighbors_stored, len(queries))
        ids = np.arange(len(self._keys)) + len(queries)  # a sample's own rows do not count, and no key is one of these
        sample.compare(ids, self._keys)
        chosen, recall = tune(self._searcher, ids, sample, self._config)
        self._searcher.settings = chosen
        return {"setting": asdict(chosen), "recall": recall}

    def parts(self, queries, k) -> dict:
        """Seconds of the library's call as we make it, one query at a time so that results do not depend on the batch
        (`ScannSearcher.search`), and in the library's own batches, which share work between queries."""
        settings, seconds = self._searcher.settings, {}
        for name, batch in (("each by itself", 1), ("in batches of 256", 256)):
            started = time.perf_counter()
            self._searcher._index.search_batched_parallel(
                queries,
                final_num_neighbors=k,
                pre_reorder_num_neighbors=settings.reorder,
                leaves_to_search=settings.leaves_searched,
                batch_size=batch,
            )
            seconds[name] = time.perf_counter() - started
        return seconds

    def set(self, **setting):
        self._searcher.settings = replace(self._searcher.settings, **setting)

    def search(self, queries, k):
        return self._searcher.search(queries, k)[0]


class Exact:
    bytes = 0

    def __init__(self, keys, folder, settings):
        self._searcher = ExactSearcher(keys)

    def search(self, queries, k):
        return self._searcher.search(queries, k)[0]


def make(name, keys, folder, settings):
    return (Exact if name == "exact" else Scann)(keys, folder, settings)


if __name__ == "__main__":
    serve_indexes(make, {name: importlib.metadata.version(name) for name in ("scann", "numpy")})
