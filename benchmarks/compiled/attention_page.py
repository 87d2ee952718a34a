"""docs/measured/attention.md from the figures of attention.py."""

from retro_jax.presets.topologies import CHIPS

HEAD = """# Attention

Written by `make attention`; do not edit. "xla" is attention by matmuls and a softmax that the compiler arranges, "flash" the
kernel of `retro_jax/models/kernels/flash`. No TPU was at hand: programs were compiled for absent TPUs, and the
kernel's numbers come from Pallas's interpret mode on a CPU. What its twin for GPUs gave on an H100 and an H200 is in
[decisions](../decisions/model.md). Full steps are in [scaling](scaling.md).

## One layer

Decoder self-attention with its projections, forward and backward, remat full, one sequence of 2,048 tokens, bfloat16. Traffic is
what the compiled program reads from and writes to the device's memory, counted operation by operation with the padding of
layouts, and without what stays in fast memory (`retro_jax/preflight/traffic.py`). The bound is that traffic at the chip's
published rate.

| size | chip | traffic GB, xla | flash | temporaries MB, xla | flash | bound ms, xla | flash |
|---|---|---|---|---|---|---|---|
"""
ERRORS = """
## Errors

Relative error |x - y| / |y| of output and gradients against the slow twin in float64, whose inputs are those of the form under
test: two heads of 64, two sequences of 300 tokens with several documents and padding, tiles of 128.

| precision | attention | {leaves} |
|---|---|{lines}
"""
LOSSES = """
## The quickstart's RETRO trained with either

The first {steps} steps of `make quickstart`, float32, same seed and batches. The largest difference of the loss is {largest:.1e}
nats a token, at step {where}; the mean difference of the last ten is {last:.1e}.

| step | {head} |
|---|{lines}
"""


def page(found: dict) -> str:
    return HEAD + _layers(found["layers"]) + _errors(found["errors"]) + _losses(found.get("losses"))


def _layers(layers: dict) -> str:
    rows = []
    for (size, chip), measured in layers.items():
        if len(measured) < 2:
            continue
        both = [measured[name] for name in ("xla", "flash")]
        rate = CHIPS[chip].memory_bandwidth
        cells = [f"{one['bytes'] / 1e9:.2f}" for one in both] + [f"{one['temporaries'] / 1e6:,.0f}" for one in both]
        cells += [f"{1e3 * one['bytes'] / rate:.2f}" for one in both]
        rows.append("| " + " | ".join([size, chip, *cells]) + " |\n")
    return "".join(rows)


def _errors(errors: dict) -> str:
    leaves = list(next(iter(errors.values())))
    head = ERRORS.format(leaves=" | ".join(leaves), lines="---|" * len(leaves))
    rows = [
        "| " + " | ".join([*name.split(), *(f"{one[leaf]:.1e}" for leaf in leaves)]) + " |\n"
        for name, one in errors.items()
    ]
    return head + "".join(rows)


def _losses(losses: dict | None) -> str:
    if losses is None:
        return "\nThe quickstart's losses were not measured.\n"
    steps = len(losses["xla"])
    gaps = [abs(one - other) for one, other in zip(losses["xla"], losses["flash"], strict=True)]
    head = LOSSES.format(
        steps=steps,
        largest=max(gaps),
        where=gaps.index(max(gaps)) + 1,
        last=sum(gaps[-10:]) / 10,
        head=" | ".join(losses),
        lines="---|" * len(losses),
    )
    shown = [step for step in range(steps) if step in (0, steps - 1) or (step + 1) % 10 == 0]
    rows = [
        "| " + " | ".join([str(step + 1), *(f"{one[step]:.6f}" for one in losses.values())]) + " |\n" for step in shown
    ]
    return head + "".join(rows)
