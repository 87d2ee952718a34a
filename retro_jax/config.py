"""Configuration: ml_collections at the edge, frozen dataclasses inside, one strict conversion between them.

A config file under `configs/` returns a ConfigDict with the sections of `RunConfig`. `resolve` turns it into frozen
dataclasses: an unknown key, a wrong type or sizes that do not fit are a ValueError that names the rule, the values and
the remedy. A layer never sees more than the dataclass it needs.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EncoderConfig:
    """The neighbor encoder (paper 2.5, Table 10; heads and feed-forward follow from the parameter counts)."""

    layers: int = 2
    width: int = 896  # d'
    heads: int = 16
    head_dim: int = 64
    feed_forward: int = 3584
    cross_attention_layers: tuple[int, ...] = (1,)  # P_enc, counted from 1; () removes query conditioning


@dataclass(frozen=True)
class ModelConfig:
    """A decoder, and with a non-empty P the encoder and chunked cross-attention of RETRO."""

    vocabulary: int = 128_000
    sequence_length: int = 2048  # T
    chunk_length: int = 64  # M
    layers: int = 12
    width: int = 896  # D
    heads: int = 16
    head_dim: int = 64
    feed_forward: int = 3584
    retrieval_layers: tuple[int, ...] = (6, 9, 12)  # P, counted from 1; () is the baseline decoder
    neighbors: int = 2  # K, how many of the stored neighbors the model reads
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    compute_dtype: str = "bfloat16"  # parameters are always float32
    remat: str = "full"  # "none" | "full" | "dots": what a layer recomputes in its backward pass
    scan: bool = True  # False unrolls the layer stacks; same numbers, longer compilation
    loss_block: int = 8192  # vocabulary entries whose logits exist at once; 0 is the whole vocabulary

    @property
    def chunks(self) -> int:
        return self.sequence_length // self.chunk_length

    @property
    def retrieved_length(self) -> int:
        return 2 * self.chunk_length

    @property
    def retrieves(self) -> bool:
        return bool(self.retrieval_layers)


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh axes; one may be -1 and takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """Optimizer, schedule and cadence. Defaults are the paper's (C.1) where it states them."""

    steps: int = 800_000
    batch: int = 256  # sequences a step, over all devices and accumulation steps
    accumulation: int = 1
    learning_rate: float = 2e-4  # peak
    initial_learning_rate: float = 1e-7
    warmup_steps: int = 750
    final_fraction: float = 0.1  # of the peak, at the last step
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    seed: int = 0
    subset_weights: Mapping[str, float] = field(default_factory=dict)  # {} draws sequences as the shards hold them
    initialize_from: str = ""  # run directory of a baseline; its decoder is loaded before step 0 (retrofit)
    trainable: str = "all"  # "all" | "retrieval": only encoder and CCA (retrofit, paper 4.2)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 0  # 0 keeps all
    retrieval_check_every: int = 500  # 0 never; On / Off / random-neighbor losses, with an alarm
    retrieval_alarm_checks: int = 3  # the alarm: On no better than random in so many checks in a row
    on_spike: str = "none"  # "none" | "skip" that update | "roll_back" to the last checkpoint and leave the batches out
    spike_factor: float = 10.0  # a spike: gradient norm above so many times the running median ...
    spike_window: int = 128  # ... of the last so many steps
    stall_seconds: float = 600.0  # without a sign of progress: phase, host and stacks are printed; 0 never
    wandb_project: str = ""  # Weights & Biases beside metrics.jsonl (extra [wandb]); empty: off
    peak_flops: float = 0.0  # FLOP/s a device for the model FLOP utilization; 0 measures a matrix product at start


@dataclass(frozen=True)
class SourceConfig:
    """One subset's text: a pinned package of `data_pipeline/packages.py`, or files on this machine or in a store."""

    package: str = ""  # a name of the package catalogue
    path: str = ""  # or a file, folder or glob, also as a URL: gs://BUCKET/FOLDER
    format: str = ""  # "text" | "jsonl" | "parquet" | "arrow" | "tfds"; empty: by file name
    text_key: str = "text"  # where the text is in a record, for example data.body
    subset_key: str = ""  # where the subset name is (the Pile: meta.pile_set_name); empty: the source's name
    id_key: str = ""  # where the id is, unique in its subset; empty: a record is what its text is
    title_key: str = ""  # where the title is; empty: the first line of the text
    split: str = ""  # TFDS: one split of the data set; empty: all of them
    evaluation_titles: str = (
        ""  # file of titles, or Wikitext's own text: training documents of such a title are dropped
    )
    license: str = "unknown"
    max_train_bytes: int = 0  # 0 is all; documents are taken in the order of their ids
    max_validation_bytes: int = 0
    max_document_bytes: int = 0  # longer documents are dropped, and counted


@dataclass(frozen=True)
class DataConfig:
    """How `retro build` makes a database and joined shards; `directory` is where the others find them."""

    directory: str = ""  # empty: WORKDIR/data
    sources: Mapping[str, SourceConfig] = field(default_factory=dict)
    minimum_characters: int = 64  # shorter documents are dropped, and counted
    validation_fraction: float = 0.05  # of documents, by a hash of their id
    max_document_memory: int = 1 << 28  # bytes of one document that are read; a larger one stops the build by name
    near_duplicate_jaccard: float = 0.8  # training documents nearer a held-out one go (the paper's figure); 0 is off
    tokenizer: str = ""  # a SentencePiece model file; empty trains one
    encoder: str = ""  # a directory of an encoder (docs/encoders.md); empty: all-MiniLM-L6-v2 from its package
    encoder_batch: int = 16  # texts a batch; 16 fit the caches of a CPU, an accelerator wants some hundred
    embedding_dtype: str = "float32"  # how embeddings are stored: "float32" | "float16"
    exact_below: int = 20_000  # database chunks under which the search is exact
    index_leaves: int = 0  # SCaNN tree leaves; 0: about the square root of the number of chunks
    index_leaves_searched: int = 0  # 0: the fewest that reach recall_target on a sample
    index_reorder: int = (
        0  # candidates scored exactly; 0: 3 to 100 times neighbors_stored, as reads least (20 if leaves are given)
    )
    neighbors_stored: int = 10  # k_max
    recall_sample: int = 1000  # queries on which recall against exact search is measured
    shard_chunks: int = 16_384  # chunks a shard of chunks, embeddings and neighbors
    shard_sequences: int = 1024  # sequences a joined shard
    index_shards: int = 0  # parts of the index, each built and searched alone; 0: one up to two million keys
    recall_target: float = 0.95  # of a sample's recall@k_max; leaves searched and candidates are as few as reach it
    database_fraction: float = 1.0  # share of the documents that is searched, nested: 0.1 holds all of 0.01's
    rerank: str = "none"  # "bm25": of ten times k_max nearest, those that share the rarest words come first


@dataclass(frozen=True)
class EvaluateConfig:
    """Bits per byte by subset, with every control."""

    retro: str = ""  # run directory; empty: WORKDIR/retro
    baseline: str = ""  # empty: WORKDIR/baseline
    batch: int = 16
    bootstrap: int = 2000  # resamples of documents
    seed: int = 0
    overlap_neighbors: int = 10  # neighbors looked at by r(C) (paper 2.6)
    passages: int = 6  # held-out passages shown in the report


@dataclass(frozen=True)
class SampleConfig:
    tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


def default_config():
    """A ConfigDict of every default, for a config file to start from (`sources` and other maps stay open)."""
    import ml_collections

    config = ml_collections.ConfigDict(to_dict(RunConfig()))
    for section in (config.data.sources, config.train.subset_weights):
        section.unlock()
    return config


def to_dict(config) -> dict:
    """A dataclass as plain nested dicts, lists of tuples and all, ready for JSON."""
    return dataclasses.asdict(config)


def completed(config: Mapping) -> dict:
    """Sections of an earlier run's config with the defaults of keys that were added since.

    Every such key's default is what the code did before, so a run can go on under a newer version.
    """
    sections = to_dict(RunConfig())
    return {name: {**sections.get(name, {}), **section} for name, section in config.items()}


def resolve(config: Mapping) -> RunConfig:
    """The frozen form of a ConfigDict or of nested dicts (a run directory's `config.json`), checked.

    Raises:
      ValueError: an unknown key (with the nearest known one), a value of another type, or sizes that do not fit.
    """
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    run = _convert(RunConfig, config, "config")
    check_model(run.model)
    check_train(run.train)
    return run


def _convert(kind, value, where: str):
    """`value` as `kind` (a dataclass, a tuple of numbers, a map of dataclasses or a plain value)."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a section with keys, but is {value!r}.")
        fields = typing.get_type_hints(kind)
        for key in value:
            if key not in fields:
                near = difflib.get_close_matches(str(key), fields, n=1)
                hint = f"did you mean {where}.{near[0]}?" if near else f"known keys: {', '.join(sorted(fields))}."
                raise ValueError(f"{where}.{key} is not a known config key; {hint}")
        return kind(**{key: _convert(fields[key], item, f"{where}.{key}") for key, item in value.items()})
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{where} must be a tuple of whole numbers such as (6, 9), but is {value!r}.")
        return tuple(_convert(int, item, where) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must map names to values, but is {value!r}.")
        item_kind = typing.get_args(kind)[1]
        items = {str(key): _convert(item_kind, item, f"{where}.{key}") for key, item in value.items()}
        return items
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be of type {kind.__name__}, but is {value!r} ({type(value).__name__}).")
    return value


def check_model(model: ModelConfig) -> None:
    """Raises ValueError where the model's sizes do not fit together."""
    for name in (
        "vocabulary",
        "sequence_length",
        "chunk_length",
        "layers",
        "width",
        "heads",
        "head_dim",
        "feed_forward",
    ):
        _positive(getattr(model, name), f"config.model.{name}")
    if model.sequence_length % model.chunk_length:
        raise ValueError(
            f"A sequence is a whole number of chunks, but config.model.sequence_length={model.sequence_length} is not a "
            f"multiple of config.model.chunk_length={model.chunk_length}; "
            f"take {model.sequence_length // model.chunk_length * model.chunk_length or model.chunk_length}."
        )
    _layer_set(model.retrieval_layers, model.layers, "config.model.retrieval_layers", "config.model.layers")
    if model.neighbors < 0:
        raise ValueError(f"config.model.neighbors counts neighbors and cannot be {model.neighbors}; take 0 or more.")
    _choice(model.compute_dtype, ("bfloat16", "float32"), "config.model.compute_dtype")
    _choice(model.remat, ("none", "full", "dots"), "config.model.remat")
    if model.loss_block < 0:
        raise ValueError(f"config.model.loss_block={model.loss_block} must be 0 (whole vocabulary) or positive.")
    encoder = model.encoder
    for name in ("layers", "width", "heads", "head_dim", "feed_forward"):
        _positive(getattr(encoder, name), f"config.model.encoder.{name}")
    _layer_set(
        encoder.cross_attention_layers,
        encoder.layers,
        "config.model.encoder.cross_attention_layers",
        "config.model.encoder.layers",
    )
    for width, where in ((model.width, "config.model.width"), (encoder.width, "config.model.encoder.width")):
        if width % 2:
            raise ValueError(
                f"Position vectors are pairs of sine and cosine, but {where}={width} is odd; take {width + 1}."
            )


def check_train(train: TrainConfig) -> None:
    """Raises ValueError where the schedule, batch or mesh cannot be meant."""
    for name in (
        "steps",
        "batch",
        "accumulation",
        "log_every",
        "checkpoint_every",
        "retrieval_alarm_checks",
        "spike_window",
    ):
        _positive(getattr(train, name), f"config.train.{name}")
    if train.batch % train.accumulation:
        raise ValueError(
            f"Accumulation cuts a batch into equal parts, but config.train.batch={train.batch} is not a multiple of "
            f"config.train.accumulation={train.accumulation}; take a batch of {train.batch // train.accumulation * train.accumulation or train.accumulation}."
        )
    _choice(train.trainable, ("all", "retrieval"), "config.train.trainable")
    _choice(train.on_spike, ("none", "skip", "roll_back"), "config.train.on_spike")
    if train.spike_factor <= 1:
        raise ValueError(
            f"A spike is a gradient norm above config.train.spike_factor times the usual one, but the factor is "
            f"{train.spike_factor}; take more than 1, e.g. 10."
        )
    if train.stall_seconds < 0:
        raise ValueError(f"config.train.stall_seconds={train.stall_seconds} must be 0 (off) or positive.")
    sizes = dataclasses.asdict(train.mesh)
    if sum(size == -1 for size in sizes.values()) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(
            f"config.train.mesh sizes are positive, at most one of them -1 (the rest of the devices), but are {sizes}."
        )


def _positive(value, where):
    if value <= 0:
        raise ValueError(f"{where} must be positive, but is {value}.")


def _choice(value, choices, where):
    if value not in choices:
        raise ValueError(f"{where} must be one of {', '.join(choices)}, but is {value!r}.")


def _layer_set(layers: tuple[int, ...], last: int, where: str, last_where: str):
    if sorted(set(layers)) != list(layers):
        raise ValueError(f"{where} must be rising layer numbers without repeats, but is {layers}.")
    if layers and (layers[0] < 1 or layers[-1] > last):
        outside = next(layer for layer in layers if layer < 1 or layer > last)
        raise ValueError(
            f"{where} holds layer {outside}, but layers are numbered from 1 to {last_where}={last}; "
            f"remove it or raise {last_where}."
        )
