"""The peers' side of search.py: Faiss and hnswlib, as their own documentation sets them up for this many keys.

Both product quantizers keep as many bytes a key as SCaNN's hashing does (half a byte for two dimensions) and, as SCaNN
does, score their candidates exactly in the end (RFlat). Both graphs have the same links and the same care in building.
"""

import importlib.metadata
import os

import faiss
import hnswlib
import numpy as np
from indexes import serve_indexes

LINKS, CARE = 32, 200  # of a graph: neighbors a node keeps, and candidates it chooses them from


class Faiss:
    def __init__(self, keys, folder, settings, factory):
        faiss.omp_set_num_threads(settings["threads"])
        self._index = faiss.index_factory(keys.shape[1], factory, faiss.METRIC_L2)
        if "HNSW" in factory:
            self._index.hnsw.efConstruction = CARE
        self._index.train(keys)
        self._index.add(keys)
        path = str(folder / "index")
        faiss.write_index(self._index, path)
        self.bytes = os.path.getsize(path)

    def set(self, **setting):
        if "efSearch" in setting:
            self._index.hnsw.efSearch = setting["efSearch"]
        if "nprobe" in setting:
            faiss.downcast_index(self._index.base_index).nprobe = setting["nprobe"]
            self._index.k_factor = setting["k_factor"]

    def search(self, queries, k):
        return self._index.search(queries, k)[1]


class Hnswlib:
    def __init__(self, keys, folder, settings):
        self._index = hnswlib.Index(space="l2", dim=keys.shape[1])
        self._index.set_num_threads(settings["threads"])
        self._index.init_index(max_elements=len(keys), M=LINKS, ef_construction=CARE, random_seed=0)
        self._index.add_items(keys)
        path = str(folder / "index")
        self._index.save_index(path)
        self.bytes = os.path.getsize(path)

    def set(self, ef):
        self._index.set_ef(ef)

    def search(self, queries, k):
        return self._index.knn_query(queries, k)[0].astype(np.int64)


def make(name, keys, folder, settings):
    lists, width = settings["lists"], keys.shape[1]
    if name == "hnswlib":
        return Hnswlib(keys, folder, settings)
    factories = {  # np: without the polysemous training, minutes for what this search does not use
        "Faiss exact": "Flat",
        "Faiss IVF-PQ": f"IVF{lists},PQ{width // 4}x8np,RFlat",
        "Faiss IVF-PQ fast scan": f"IVF{lists},PQ{width // 2}x4fs,RFlat",
        "Faiss HNSW": f"HNSW{LINKS},Flat",
    }
    return Faiss(keys, folder, settings, factories[name])


if __name__ == "__main__":
    serve_indexes(make, {name: importlib.metadata.version(name) for name in ("faiss-cpu", "hnswlib")})
