"""The identity of a run: the config fields that may not change between two starts."""

from collections.abc import Mapping

# Fields that may change between starts of one run: none of them changes the meaning of its numbers.
FREE_FIELDS = {
    "train.mesh",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_also",
    "train.keep_metric",
    "train.retrieval_check_every",
    "train.peak_flops",
    "train.initialize_from",
    "train.stall_seconds",
    "train.on_spike",
    "train.spike_factor",
    "train.spike_window",
    "train.retrieval_alarm_checks",
    "train.wandb_project",
    "model.attention",  # "auto" is another implementation on another device
    "model.remat",
    "model.scan",
    "model.loss_block",
}


def _as_json(value):
    """As it comes back from a file: a tuple becomes a list."""
    return list(value) if isinstance(value, tuple) else value


def differing_fields(found: Mapping, wanted: Mapping, prefix: str = "") -> list[str]:
    """Lists the differing leaves of nested dicts that matter (`FREE_FIELDS` do not)."""
    lines = []
    for key in sorted(set(found) | set(wanted)):
        one, other, where = found.get(key), wanted.get(key), f"{prefix}{key}"
        if where in FREE_FIELDS:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += differing_fields(one, other, f"{where}.")
        elif _as_json(one) != _as_json(other):
            lines.append(f"{where} (there {one!r:.60}, now {other!r:.60})")
    return lines
