"""Writes docs/performance.md from what the benchmarks measured: `python benchmarks/report.py runs/benchmarks docs/performance.md`.

Every figure of that page comes from the JSON files in the given folder; nothing is typed in.
"""

import json
import sys
from pathlib import Path

HEAD = """# Performance

Written by `make benchmark` from its JSON output; do not edit. How each figure is made: [benchmarks/README.md](../benchmarks/README.md).
"""

DIFFERENCES = """The two models are not the same function, and neither was changed to be:

* The peer has rotary positions where RETRO has Transformer-XL's, so it has no position projections and no second
  product of every attention score. That is the difference in parameters besides embeddings, and work that only we do.
* The peer has one input embedding for decoder and encoder, an untied readout with a bias, and absolute positions beside
  the rotary ones. Ours has two embeddings and a tied readout.
* The peer has biases in feed-forward and output projections, a projection behind its encoder, and a null key in
  chunked cross-attention. Ours has masks for documents, padding and missing neighbors throughout.
* The peer's option `heads` has no effect (8 whatever is given); here its default is set to 16, so that both have 16
  heads of 64.
* The peer runs eagerly, as published; ours is compiled. Neither recomputes activations, and both hold all logits.
"""


def main(folder: Path, page: Path) -> None:
    sections = [HEAD]
    for name, write in (("training_step", training_step), ("embedding", embedding), ("search", search)):
        path = folder / f"{name}.json"
        if path.exists():
            sections.append(write(json.loads(path.read_text())))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(sections))


def training_step(result: dict) -> str:
    shape, machine = result["shape"], result["machine"]
    pairs = result["pairs"]
    first = next(iter(pairs.values()))
    flags = ", ".join(machine["matrix_flags"])
    lines = [
        "## A training step against the public PyTorch RETRO",
        "",
        f"The paper's 172M shape: width {shape['width']}, {shape['layers']} layers, {shape['heads']} heads of "
        f"{shape['head_dim']}, retrieval layers {shape['retrieval_layers']}, encoder of {shape['encoder_layers']} layers "
        f"x {shape['encoder_width']}; vocabulary {shape['vocabulary']:,}, sequence {shape['sequence_length']}, "
        f"k = {shape['neighbors']}, batch {shape['batch']}. {result['threads']} threads a side, {result['date']}, on "
        f"{machine['cpus']} CPUs ({machine['processor']}; {flags}), {machine['memory_gib']} GiB.",
        "",
        f"{_versions(first['ours'])} against {_versions(first['peer'])}. Turns alternate between two live processes; "
        f"{len(first['ours']['step']['all'])} turns after {result['warmup']} of warm-up. Seconds are median (minimum); "
        "a ratio below 1 means that we are faster, and is the median over turns.",
        "",
        "| precision, allocator | part | ours | peer | ours / peer |",
        "|---|---|---|---|---|",
    ]
    for name, pair in pairs.items():
        for time, title in (("forward_backward", "loss and gradients"), ("step", "with clipping and AdamW")):
            ratio = pair["ratio"][time]["by_turn"]["median"]
            cells = (name.replace(":", ", "), title, _seconds(pair["ours"][time]), _seconds(pair["peer"][time]))
            lines.append(f"| {' | '.join(cells)} | {ratio:.2f} |")
    lines += [
        "",
        "The allocator setting is glibc's, the same on both sides: `tuned` keeps freed memory in one arena instead of "
        "returning it to the kernel (`benchmarks/worker.py`). bfloat16 is autocast for the peer, compute dtype for us; "
        "parameters and optimizer state are float32 on both sides.",
        "",
        "| precision, allocator | side | first turn s | compile s | page faults a turn | peak memory GiB | loss, first to last |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pair in pairs.items():
        for side in ("ours", "peer"):
            facts = pair[side]
            compiling = f"{facts['compile_seconds']:.0f}" if "compile_seconds" in facts else "-"
            lines.append(
                f"| {name.replace(':', ', ')} | {side} | {facts['first_turn_seconds']:.1f} | {compiling} "
                f"| {facts['page_faults']:,} | {facts['peak_rss_bytes'] / 2**30:.1f} "
                f"| {facts['losses'][0]:.2f} to {facts['losses'][-1]:.2f} |"
            )
    lines += ["", *_rates(pairs), "", *_parameters(first), "", DIFFERENCES]
    return "\n".join(lines)


def embedding(result: dict) -> str:
    lines = [
        "## The frozen encoder against PyTorch",
        "",
        f"all-MiniLM-L6-v2 on {result['chunks']:,} chunks of {result['pieces_a_chunk']:.0f} word pieces on average, "
        f"{result['threads']} threads a side, {result['allocator']} allocator, {result['date']}. Sides take turns; the "
        "time is from pieces to vectors. The last column is the share of the rate of one plain matrix product.",
        "",
        "| side | chunks/s, median | seconds, median (minimum) | GFLOP/s | of a plain product |",
        "|---|---|---|---|---|",
    ]
    for name, side in result["sides"].items():
        cells = (name, f"{side['chunks_a_second']['median']:.0f}", _seconds(side["seconds"]), f"{side['gflops']:.0f}")
        lines.append(f"| {' | '.join(cells)} | {side['share_of_matmul']:.0%} |")
    ratios = ", ".join(f"{name} {turns['median']:.2f}" for name, turns in result["ratios"].items())
    return "\n".join([*lines, "", f"Seconds by seconds, median over turns: {ratios}.", ""])


def search(result: dict) -> str:
    settings = result["settings"]
    lines = [
        "## SCaNN beside exact search",
        "",
        f"{result['keys']:,} keys of width {result['width']}, {result['queries']:,} queries that are not among them, "
        f"{result['date']}. SCaNN: {settings['leaves']} leaves, {settings['leaves_searched']} searched, "
        f"{settings['reorder']} candidates scored exactly; built in {result['build_seconds']:.1f} s, "
        f"{result['index_bytes'] / 2**20:.1f} MiB.",
        "",
        f"| search | queries/s | recall@{result['k']} |",
        "|---|---|---|",
    ]
    for name, rate in result["queries_a_second"].items():
        lines.append(f"| {name} | {rate:,.0f} | {result['recall'][name]:.3f} |")
    return "\n".join([*lines, ""])


def _rates(pairs: dict) -> list[str]:
    """How far our step is from the products it consists of."""
    lines = []
    for name, pair in pairs.items():
        ours = pair["ours"]
        floor = ours["gflop"] / ours["matmul_gflops"]
        share = floor / ours["forward_backward"]["min"]
        lines.append(
            f"* {name.replace(':', ', ')}: {ours['gflop']:,.0f} GFLOP a step; one large product runs at "
            f"{ours['matmul_gflops']:,.0f} GFLOP/s, so {floor:.1f} s is the floor, and our fastest turn is at {share:.0%} of that rate."
        )
    return lines


def _parameters(pair: dict) -> list[str]:
    ours, peer = pair["ours"]["parameters"], pair["peer"]["parameters"]
    return [
        f"Parameters: ours {ours['all']:,} ({ours['rest']:,} besides embeddings), peer {peer['all']:,} "
        f"({peer['rest']:,} besides embeddings and readout)."
    ]


def _versions(side: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in side["versions"].items())


def _seconds(time: dict) -> str:
    return f"{time['median']:.2f} ({time['min']:.2f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
