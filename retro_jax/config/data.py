"""`config.data`: the text, and how `retro build` turns it into a database and joined shards."""

from collections.abc import Mapping
from dataclasses import dataclass

from retro_jax.config.settings import NAME, TEXT, Named, Number, at_least, between, one_of, setting

SHARE = between(0, 1)


@dataclass(frozen=True)
class SourceConfig:
    """One subset's text: a pinned package of `data_pipeline/packages/catalogue.py`, or files on this machine or in a store."""

    role: str = setting(
        "train",
        one_of("train", "evaluation"),
        "Use of the text: train (trained on and searched, a share of it held out) or evaluation (a set that is only scored).",
    )
    protocol: str = setting(
        "documents", NAME, "How records of an evaluation set are read and scored (docs/guides/evaluation_sets.md)."
    )
    package: str = setting("", TEXT, "Name in the package catalog; empty: the text is at `path`.")
    path: str = setting("", TEXT, "A file, folder or glob, also as a URL (gs://BUCKET/FOLDER); empty: a package.")
    format: str = setting(
        "", TEXT, "Format of the files: text, jsonl, parquet, arrow, tfds, or one that was added; empty: by file name."
    )
    text_key: str = setting("text", NAME, "Key of the text in a record, for example data.body.")
    subset_key: str = setting(
        "", TEXT, "Key of the subset name (the Pile: meta.pile_set_name); empty: the source's name."
    )
    id_key: str = setting("", TEXT, "Key of the id, unique in its subset; empty: the text identifies the record.")
    title_key: str = setting("", TEXT, "Key of the title; empty: the first line of the text.")
    split: str = setting("", TEXT, "One split of a TFDS data set; empty: all of them.")
    evaluation_titles: str = setting(
        "", TEXT, "File of titles, or Wikitext's own text: training documents of such a title are dropped; empty: none."
    )
    license: str = setting("unknown", TEXT, "License of the text, for the report.")
    max_train_bytes: int = setting(
        0, at_least(0), "Bytes of training text, in the order of the documents' ids; 0: all."
    )
    max_validation_bytes: int = setting(0, at_least(0), "Bytes of held-out text, in the order of the ids; 0: all.")
    max_document_bytes: int = setting(0, at_least(0), "Longer documents are dropped, and counted; 0: none.")


@dataclass(frozen=True)
class DataConfig:
    """How `retro build` makes a database and joined shards; the other commands read them from `directory`."""

    directory: str = setting("", TEXT, "Where the stages of `retro build` are; empty: WORKDIR/data.")
    sources: Mapping[str, SourceConfig] = setting({}, Named(), "The text, by source; a source is a subset.")
    minimum_characters: int = setting(64, at_least(0), "Shorter documents are dropped, and counted.")
    validation_fraction: float = setting(
        0.05, Number(0, 1, below=True), "Share of documents held out, by a hash of their id."
    )
    max_document_memory: int = setting(
        1 << 28,
        at_least(1),
        "The most bytes that one document may have; a larger one stops the build with an error that names it.",
    )
    near_duplicate_jaccard: float = setting(
        0.8, SHARE, "Training documents nearer to a held-out one are dropped (the paper's figure); 0 turns it off."
    )
    tokenizer: str = setting(
        "",
        TEXT,
        "A SentencePiece model, or a byte-level tokenizer.json of Hugging Face; empty trains a SentencePiece model.",
    )
    encoder: str = setting(
        "", TEXT, "A directory of an encoder (docs/guides/encoders.md); empty: all-MiniLM-L6-v2 from its package."
    )
    encoder_dtype: str = setting(
        "auto",
        one_of("auto", "float32", "bfloat16"),
        "Type of the encoder's matmuls: auto (that of the database; a new one takes what its first machine multiplies "
        "fastest), float32 or bfloat16.",
    )
    encoder_batch: int = setting(
        16,
        at_least(1),
        "Texts embedded in one batch; 16 suits a CPU's caches, a few hundred an accelerator.",
    )
    embedding_dtype: str = setting("float32", one_of("float32", "float16"), "Type in which embeddings are stored.")
    exact_below: int = setting(20_000, at_least(0), "Below this number of database chunks the search is exact.")
    index_leaves: int = setting(0, at_least(0), "SCaNN tree leaves; 0: about the square root of the number of chunks.")
    index_leaves_searched: int = setting(
        0, at_least(0), "Leaves that a query searches; 0 = automatic: the fewest that reach recall_target on a sample."
    )
    index_reorder: int = setting(
        0,
        at_least(0),
        "Candidates that are scored exactly; 0: the cheapest of 3 to 100 times neighbors_stored that reaches recall_target "
        "(20 times if leaves are given).",
    )
    database: str = setting(
        "",
        TEXT,
        "Data directory of another build whose database is searched in place of one of this text; of another tokenizer, its "
        "text is tokenized again (docs/guides/interchange.md). Empty: this text.",
    )
    neighbors_stored: int = setting(10, at_least(1), "Neighbors stored for each chunk (k_max).")
    recall_sample: int = setting(1000, at_least(1), "Queries on which recall against exact search is measured.")
    shard_chunks: int = setting(16_384, at_least(1), "Chunks in a shard of chunks, embeddings and neighbors.")
    shard_sequences: int = setting(1024, at_least(1), "Sequences in a joined shard.")
    index_shards: int = setting(
        0,
        at_least(0),
        "Parts of the index, each built and searched alone; 0: one up to two million keys. With SCaNN a query visits some "
        "(a key lies in two of them), with exact search all.",
    )
    index_shards_visited: int = setting(
        0, at_least(0), "Index shards that a query visits; 0 = automatic: those near it that reach recall_target."
    )
    recall_target: float = setting(
        0.95, SHARE, "Recall@k_max on the sample that the search reaches with as few leaves and candidates as possible."
    )
    database_fraction: float = setting(
        1.0, Number(0, 1, above=True), "Share of the documents that is searched, nested: 0.1 holds all of 0.01's."
    )
    rerank: str = setting(
        "none",
        one_of("none", "bm25"),
        "Order of the neighbors; bm25: of ten times k_max nearest, those that share the rarest words come first.",
    )


def check_data(data: DataConfig) -> None:
    """Raises ValueError where settings of the search, each in its range, do not fit together."""
    if 0 < data.index_leaves < data.index_leaves_searched:
        raise ValueError(
            f"A query reads at most all leaves, but config.data.index_leaves_searched={data.index_leaves_searched} is more "
            f"than config.data.index_leaves={data.index_leaves}; lower it, or take 0 for the fewest that reach "
            f"config.data.recall_target."
        )
    if 0 < data.index_shards < data.index_shards_visited:
        raise ValueError(
            f"A query visits at most all index shards, but config.data.index_shards_visited={data.index_shards_visited} is "
            f"more than config.data.index_shards={data.index_shards}; lower it, or take 0 for as many as reach "
            f"config.data.recall_target."
        )
    if 0 < data.index_reorder < data.neighbors_stored:
        raise ValueError(
            f"config.data.index_reorder={data.index_reorder} candidates cannot give "
            f"config.data.neighbors_stored={data.neighbors_stored} neighbors; take some ten times as many, or 0 to "
            f"leave it to config.data.recall_target."
        )
