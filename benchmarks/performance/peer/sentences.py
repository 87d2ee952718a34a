"""The peer's side of embedding.py from text to vectors: sentence-transformers' own `encode`, with its defaults.

It reads the same Hugging Face directory, cuts the texts into word pieces, sorts them by length and embeds 32 a batch;
bfloat16 is the whole model in bfloat16, as `model_kwargs` loads it.
"""

import importlib.metadata
import json
import time
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from worker import serve


def build(settings):
    torch.set_num_threads(settings["threads"])
    model = SentenceTransformer(
        settings["encoder"],
        device="cpu",
        local_files_only=True,
        model_kwargs={"dtype": getattr(torch, settings["precision"])},
    )
    texts = json.loads(Path(settings["texts"]).read_text())

    def step(of):
        started = time.perf_counter()
        model.encode(texts, show_progress_bar=False)
        return {"step": time.perf_counter() - started}

    first = step("text")["step"]
    np.save(settings["vectors"], model.encode(texts, show_progress_bar=False).astype(np.float32))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "sentence-transformers")}
    return {"versions": versions, "modules": [type(part).__name__ for part in model], "first_seconds": first}, step


if __name__ == "__main__":
    serve(build)
