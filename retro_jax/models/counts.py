"""Parameters and FLOPs of a model from its sizes alone: the one place that counts either. Tests compare with the arrays
and with the traced step.

`attentions` and `feed_forwards` say which layers a model has, on how many rows, and of what widths. Every count is a sum
over them, so a field of the config that removes something is honored here once.
"""

import dataclasses
from dataclasses import dataclass

from retro_jax.config import ModelConfig, RunConfig
from retro_jax.models.kernels import flash, flash_gpu

# Kind of attention or feed-forward -> the part of the model that its kernels belong to.
PARTS = {
    "self": "decoder",
    "read": "cross_attention",
    "encoder": "encoder",
    "conditioning": "encoder_cross_attention",
}
# FLOPs of a layer's both passes by the kernels, which keep no scores and which remat does not run again.
KERNEL_FLOPS = {"flash": flash.flops, "flash_gpu": flash_gpu.flops}


@dataclass(frozen=True)
class Attended:
    """One kind of attention: how often it runs, on how many rows of queries and keys, and its widths."""

    layers: int
    rows: int  # of queries, a sequence
    memory_rows: int  # of keys and values, a sequence
    keys: int  # that one query reads
    table: int  # rows of the position table; 0: without positions
    distances: int  # products with them, a query
    width: int
    memory_width: int
    inner: int
    key_inner: int = 0  # of keys and values; 0: as `inner`
    small: int | None = None  # numbers a layer beside kernels and norm; None: u, and v with positions

    def parameters(self) -> int:
        """Of its kernels: query, output and positions have the width of what asks, key and value of what is asked."""
        asking = 3 if self.table else 2
        keys = 2 * self.memory_width * (self.key_inner or self.inner)
        return self.layers * (asking * self.width * self.inner + keys)

    def norms_and_biases(self) -> int:
        usual = self.inner * (2 if self.table else 1)
        return self.layers * (self.width + (usual if self.small is None else self.small))

    def kernel_flops(self) -> int:
        keys = 2 * self.memory_rows * self.memory_width * (self.key_inner or self.inner)
        return 2 * self.layers * (2 * self.rows * self.width * self.inner + keys)

    def score_flops(self) -> int:
        return 2 * self.layers * self.inner * self.rows * (2 * self.keys + self.distances)

    def published_score_flops(self) -> int:
        """With one product a score for its relative position, however few distances there are."""
        return 2 * self.layers * self.inner * self.rows * self.keys * (3 if self.table else 2)

    def table_flops(self) -> int:
        return 2 * self.layers * self.table * self.width * self.inner

    def scores(self, heads: int) -> int:
        """Numbers in the score matrices of one layer, a sequence."""
        return heads * self.rows * self.keys


@dataclass(frozen=True)
class Fed:
    """The feed-forwards of the decoder or of the encoder."""

    layers: int
    rows: int  # a sequence
    width: int
    hidden: int
    kernels: int = 2  # a layer; three with a gate

    def parameters(self) -> int:
        return self.kernels * self.layers * self.width * self.hidden

    def flops(self) -> int:
        return 2 * self.rows * self.parameters()


def attentions(model: ModelConfig) -> dict[str, Attended]:
    """What runs, by kind: self, and with retrieval read (CCA), encoder and conditioning (the encoder's cross-attention)."""
    tokens, inner, encoder = model.sequence_length, model.heads * model.head_dim, model.encoder
    table = tokens + 1 if model.positions == "relative" else 0
    own = Attended(model.layers, tokens, tokens, tokens, table, table, model.width, model.width, inner)
    if model.positions == "rotary":
        key_inner = model.decoder_key_heads * model.head_dim
        small = 2 * model.head_dim * model.query_key_norm + (inner + 2 * key_inner) * model.attention_biases
        own = dataclasses.replace(own, key_inner=key_inner, small=small)
    found = {"self": own}
    if model.retrieves and model.neighbors:
        chunk, length, encoder_inner = model.chunk_length, model.encoded_length, encoder.heads * encoder.head_dim
        rows, readers = model.chunks * model.neighbors * length, len(model.retrieval_layers)
        own, other = (encoder.width, encoder.width, encoder_inner), (encoder.width, model.width, encoder_inner)
        both = chunk + length if model.cross_attention_positions else 0
        found["read"] = Attended(
            readers, tokens, rows, model.neighbors * length, both, both, model.width, encoder.width, inner
        )
        found["encoder"] = Attended(encoder.layers, rows, rows, length, 2 * length, 2 * length, *own)
        found["conditioning"] = Attended(len(encoder.cross_attention_layers), rows, tokens, chunk, both, both, *other)
    return found


def feed_forwards(model: ModelConfig) -> dict[str, Fed]:
    """What runs, by kind: self, and with retrieval encoder."""
    kernels = 3 if model.gated_feed_forward else 2
    found = {"self": Fed(model.layers, model.sequence_length, model.width, model.feed_forward, kernels)}
    if model.retrieves and model.neighbors:
        rows, encoder = model.chunks * model.neighbors * model.encoded_length, model.encoder
        found["encoder"] = Fed(encoder.layers, rows, encoder.width, encoder.feed_forward)
    return found


def parameter_counts(model: ModelConfig) -> dict[str, int]:
    """Kernel weights of each part and their "total": embeddings, norm scales and biases aside, as in the paper's Table 2."""
    trained = dataclasses.replace(model, neighbors=1)  # no parameter depends on k, and with 0 nothing of it runs
    counts: dict[str, int] = {}
    for kinds in (attentions(trained), feed_forwards(trained)):
        for kind, layers in kinds.items():
            counts[PARTS[kind]] = counts.get(PARTS[kind], 0) + layers.parameters()
    return {**counts, "total": sum(counts.values())}


def parameter_totals(model: ModelConfig) -> dict[str, int]:
    """All parameters: by part, "embeddings", "norms_and_biases", "non_embedding" (all but embeddings) and "total"."""
    counts, trained = parameter_counts(model), dataclasses.replace(model, neighbors=1)
    kernels, kinds, fed = counts.pop("total"), attentions(trained), feed_forwards(trained)
    embeddings = model.vocabulary * model.width * (1 if model.tied_readout else 2)
    small = sum(kind.norms_and_biases() for kind in kinds.values()) + sum(
        one.layers * one.width for one in fed.values()
    )
    small += model.width
    if model.retrieves:
        embeddings += 0 if model.shared_embeddings else model.vocabulary * model.encoder.width
        memory_norms = kinds["conditioning"].layers * model.width
        small += model.encoder.width + memory_norms + kinds["read"].layers * model.cross_attention_gate
    counts |= {"embeddings": embeddings, "norms_and_biases": small, "non_embedding": kernels + small}
    return {**counts, "total": kernels + small + embeddings}


@dataclass(frozen=True)
class Frozen:
    """What a step leaves out around a frozen decoder (config.train.trainable="retrieval"), in forward passes of each part.

    No weight of the decoder has a gradient, and no layer has a backward pass before the first that reads neighbors: behind its
    self-attention the stream depends on weights that train.
    """

    kernels: float  # of self-attention
    scores: float
    distances: float  # of scores: products with the position table, which is constant
    feed_forward: float

    @staticmethod
    def around(model: ModelConfig) -> "Frozen":
        behind = (model.layers - model.retrieval_layers[0]) / model.layers
        feed_forward = behind + 1 / model.layers
        return Frozen(2 - behind, 2 - 2 * behind, 2 - behind, 2 - feed_forward)


def flops_per_token(model: ModelConfig, trainable: str = "all") -> float:
    """Floating-point operations of one training step per decoder token: forward, and twice that backward.

    Counted are the products of the model as published: kernels, scores and weighted sums over whole rows (causal or
    not), one product more per score for its relative position. Not counted: what remat or the blockwise loss compute
    twice, softmax, norms, lookups, and the position kernels, which act on distances and not on tokens.

    Args:
      trainable: config.train.trainable; what a frozen decoder does without is left out.
    """
    kinds, fed = attentions(model), feed_forwards(model)
    layers = 3 * sum(kind.kernel_flops() + kind.published_score_flops() for kind in kinds.values())
    layers += 3 * sum(one.flops() for one in fed.values())
    readout = 2 * model.width * model.vocabulary
    if trainable == "all":
        return layers / model.sequence_length + 3 * readout
    left = Frozen.around(model)
    layers -= left.kernels * kinds["self"].kernel_flops() + left.scores * kinds["self"].published_score_flops()
    layers -= left.feed_forward * fed["self"].flops()
    return layers / model.sequence_length + 2 * readout


def executed_flops(run: RunConfig, attention: str = "xla") -> float:
    """Floating-point operations of the products of one step over all devices, remat and blockwise loss included.

    `attention` computes the decoder's self-attention: a kernel skips tiles above the diagonal, computes the logits again in
    its backward pass, and is not run again by remat. The logits of a tile's positions count over all its distances.
    Each of `accumulation` parts computes its position tables again; the first reading layer's attention too is counted. Around a
    frozen decoder the count is within a few hundredths.
    """
    model, tokens = run.model, run.model.sequence_length
    kinds, fed = attentions(model), feed_forwards(model)
    feed_forward = sum(one.flops() for one in fed.values())
    # Not computed again: what only the next layer reads. That is the feed-forward's last product, and the output
    # projection where the encoder's call stands between self-attention and the rest of the layer.
    spared = sum(one.flops() / one.kernels for one in fed.values())
    if "read" in kinds:
        spared += 2 * tokens * model.width * kinds["self"].inner
        if kinds["conditioning"].layers:
            spared += 2 * kinds["encoder"].rows * model.encoder.width * kinds["encoder"].inner
    layers = run.train.batch * (sum(kind.kernel_flops() + kind.score_flops() for kind in kinds.values()) + feed_forward)
    tables = run.train.accumulation * sum(kind.table_flops() for kind in kinds.values())
    in_blocks = 0 < model.loss_block < model.vocabulary
    blocks = -(-model.vocabulary // model.loss_block) if in_blocks else 1
    entries = blocks * -(-model.vocabulary // blocks)  # filled up to equal blocks
    readout = run.train.batch * 2 * tokens * model.width * entries
    scores = run.train.batch * sum(kind.score_flops() for kind in kinds.values())
    kernel = 0
    if attention in KERNEL_FLOPS:
        own = run.train.batch * kinds["self"].score_flops()
        layers, scores = layers - own, scores - own
        kernel = KERNEL_FLOPS[attention](run.train.batch, tokens, kinds["self"].inner) * model.layers
    again = {"none": 0.0, "dots": scores, "full": layers + tables - run.train.batch * spared}[model.remat]
    total = 3 * (layers + tables) + kernel + again + (4 if in_blocks else 3) * readout
    if run.train.trainable == "all":
        return total
    return total - _left_out(run, kinds["self"], fed["self"], readout, attention in KERNEL_FLOPS)


def _left_out(run: RunConfig, own: Attended, fed: Fed, readout: float, kernel: bool) -> float:
    """What a frozen decoder does without in one step; of a kernel, which computes all of its gradients, nothing."""
    left, layers = Frozen.around(run.model), run.model.layers
    distances = 2 * own.layers * own.inner * own.rows * own.distances
    scores = 0 if kernel else own.score_flops() - distances
    distances = 0 if kernel else distances
    found = left.kernels * own.kernel_flops() + left.scores * scores + left.distances * distances
    found += left.feed_forward * fed.flops()
    if run.model.remat != "none":  # layers without a backward pass are not run again
        before = run.model.retrieval_layers[0] / layers
        found += before * (scores + distances)
        if run.model.remat == "full":
            found += before * own.kernel_flops() + (before - 1 / layers) * fed.flops() * (1 - 1 / fed.kernels)
    return run.train.batch * found + run.train.accumulation * 2 * own.table_flops() + readout
