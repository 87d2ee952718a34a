"""Table 13 of the paper as data: the change of the config and the published figure of each row.

{row.name: row.overrides(model) for row in TABLE_13}     # what a sweep yields (configs/table_13.py, configs/study.py)
"""

from collections.abc import Callable
from dataclasses import dataclass

from retro_jax.config import ModelConfig
from retro_jax.presets.overrides import Overrides


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      name: of the point of a sweep.
      group: what the row varies, as in the table.
      meaning: the change, in words.
      bpb: C4 bits per byte in the paper, after 157B tokens of the 172M model.
      overrides: the change, for a model.
    """

    name: str
    group: str
    meaning: str
    bpb: float
    overrides: Callable[[ModelConfig], Overrides]


def _set(**changes) -> Callable[[ModelConfig], Overrides]:
    return lambda model: {f"model.{key}": value for key, value in changes.items()}


def _layers(chosen: Callable[[int], tuple[int, ...]]) -> Callable[[ModelConfig], Overrides]:
    return lambda model: {"model.retrieval_layers": chosen(model.layers)}


def _shared(model: ModelConfig) -> Overrides:
    return {"model.shared_embeddings": True, "model.encoder.width": model.width}  # one table serves one width


def _deeper(model: ModelConfig) -> Overrides:
    return {"model.encoder.layers": 3 * model.encoder.layers}  # 6 where the default has the paper's 2


TABLE_13 = (
    Row("default", "model", "RETRO", 0.822, _set()),
    Row(
        "no_query_conditioning",
        "model",
        "the encoder does not read the decoder",
        0.829,
        lambda model: {"model.encoder.cross_attention_layers": ()},
    ),
    Row("no_positions", "model", "no positions in cross-attention", 0.826, _set(cross_attention_positions=False)),
    Row("shared_embeddings", "model", "one embedding for decoder and encoder", 0.823, _shared),
    Row("deeper_encoder", "model", "an encoder three times as deep", 0.821, _deeper),
    Row("neighbor_only", "values", "N alone", 0.950, _set(neighbor_parts="neighbor")),
    Row("continuation_only", "values", "F alone", 0.895, _set(neighbor_parts="continuation")),
    Row("no_retrieval", "values", "no retrieval", 0.987, _set(retrieval_layers=())),
    Row("train_k_1", "neighbors in training", "k = 1", 0.858, _set(neighbors=1)),
    Row("train_k_4", "neighbors in training", "k = 4", 0.847, _set(neighbors=4)),
    Row("first_layer", "layers with cross-attention", "the first", 0.827, _layers(lambda last: (1,))),
    Row("middle_layer", "layers with cross-attention", "the middle one", 0.823, _layers(lambda last: (last // 2,))),
    Row("last_layer", "layers with cross-attention", "the last", 0.831, _layers(lambda last: (last,))),
    Row("all_layers", "layers with cross-attention", "all", 0.860, _layers(lambda last: tuple(range(1, last + 1)))),
    Row(
        "thirds_from_1",
        "layers with cross-attention",
        "every third from 1",
        0.823,
        _layers(lambda last: tuple(range(1, last + 1, 3))),
    ),
)
ROWS = {row.name: row for row in TABLE_13}
