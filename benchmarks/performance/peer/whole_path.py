"""The public PyTorch RETRO's own preprocessing (PyPI retro-pytorch) as one side of whole_path.py: text to neighbors.

Nothing of the package is edited, but it is given a BERT, because its own comes by a download of 2021 that current
libraries no longer serve: its globals MODEL and TOKENIZER hold the model of a Hugging Face directory, whose tokenizer
gets back the method `batch_encode_plus` that transformers 5 dropped. `chunks_to_precalculated_knn_` does not hand its
`embed_dim` on, so the default of the function it calls is set. Stages are timed by wrapping the package's functions.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import torch
from retro_pytorch import retrieval
from transformers import AutoTokenizer, BertModel
from worker import serve

# Stage: the functions that make it up. What is left of the last call is the search.
STAGES = {"embeddings": ("chunks_to_embeddings_",), "index": ("memmap_file_to_chunks_", "index_embeddings")}
PACKAGES = ("retro-pytorch", "torch", "transformers", "faiss-cpu", "autofaiss")


class Tokenizer:
    def __init__(self, directory):
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)

    def batch_encode_plus(self, texts, **options):
        return self._tokenizer(texts, **options)


def build(settings):
    torch.set_num_threads(settings["threads"])
    logging.disable(logging.WARNING)  # a line a document, of texts longer than the model's positions
    folder, k = Path(settings["folder"]), settings["k"]
    os.chdir(folder)  # the package writes into ./.tmp
    retrieval.TOKENIZER = Tokenizer(settings["encoder"])
    retrieval.MODEL = BertModel.from_pretrained(settings["encoder"], local_files_only=True).eval()
    retrieval.chunks_to_index_and_embed.__kwdefaults__["embed_dim"] = retrieval.MODEL.config.hidden_size
    seconds = {}
    for stage, functions in STAGES.items():
        for name in functions:
            setattr(retrieval, name, timed(getattr(retrieval, name), stage, seconds))

    def step():
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            started = time.perf_counter()
            counts = retrieval.text_folder_to_chunks_(
                folder=settings["text"],
                chunks_memmap_path="chunks.dat",
                seqs_memmap_path="seqs.dat",
                doc_ids_memmap_path="documents.dat",
                chunk_size=settings["chunk"],
            )
            cut = time.perf_counter()
            found, _ = retrieval.chunks_to_precalculated_knn_(
                num_nearest_neighbors=k,
                num_chunks=counts["chunks"],
                chunk_size=settings["chunk"],
                chunk_memmap_path="chunks.dat",
                doc_ids_memmap_path="documents.dat",
            )
            ended = time.perf_counter()
        parts = {"chunks": cut - started, **seconds, "neighbors": ended - cut - sum(seconds.values())}
        chunks = counts["chunks"]
        np.save("vectors.npy", np.memmap("chunks.dat.embedded", np.float32, "r").reshape(chunks, -1))
        np.save("documents.npy", np.memmap("documents.dat", np.int32, "r")[:chunks])
        np.save("neighbors.npy", np.memmap(found, np.int32, "r").reshape(chunks, k))
        index = json.loads(Path(".tmp/.index/index_infos.json").read_text())
        holds = {"chunks": f"{counts['docs']:,} documents, {chunks:,} chunks", "index": index.get("index_key", "")}
        return {"seconds": parts, "step": ended - started, "holds": holds, "chunks": chunks, "keys": chunks}

    return {"versions": {name: importlib.metadata.version(name) for name in PACKAGES}}, step


def timed(function, stage, seconds):
    def call(*args, **options):
        started = time.perf_counter()
        result = function(*args, **options)
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
        return result

    return call


if __name__ == "__main__":
    serve(build)
