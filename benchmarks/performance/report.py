"""Writes docs/measured/performance.md from the benchmarks' results: `python benchmarks/performance/report.py runs/benchmarks docs/measured/performance.md`.

Every figure of that page comes from the JSON files in the given folder; nothing is typed in.
"""

import json
import sys
from pathlib import Path

from machine import describe, describe_state

HEAD = """# Performance

Written by `make benchmark` from its JSON output; do not edit. How each figure is made: [benchmarks/README.md](../../benchmarks/README.md).
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

WHOLE_PATH_DIFFERENCES = """The two do not do the same things, and neither was changed to:

* Ours trains a SentencePiece model on the text and checks that every document's tokens give its bytes back; the peer
  cuts with the BERT's own WordPiece vocabulary, which does not give the text back. So chunks and their number differ.
* Ours drops short and doubled documents, holds some out of the database, writes every stage with checksums, and
  measures the recall of its index; the peer does none of this.
* The peer embeds the word pieces of a chunk as they were cut, with a [CLS] before each and one more before a document's
  first, and leaves [CLS] out of the mean, which it does not scale to length 1; ours decodes a chunk to text, cuts that
  into word pieces, and takes the mean over all, scaled to length 1.
* The peer takes the 10 + k + 1 nearest, drops the first as the query itself, and empties those of the same document, so
  a chunk may keep fewer than k; ours searches on until it has k of other documents.
* The peer runs in float32, 16 chunks a batch in the order of the text.
"""


def main(folder: Path, page: Path) -> None:
    sections, machines = [HEAD], []
    for name, write in (
        ("training_step", training_step),
        ("embedding", embedding),
        ("search", search),
        ("whole_path", whole_path),
    ):
        path = folder / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            machines.append(describe(result["machine"]))
            sections.append(write(result))
    # One line where all were measured on one machine, as `make benchmark` does.
    sections.insert(1, "".join(f"Measured on {line}.\n" for line in dict.fromkeys(machines)))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(sections))


def training_step(result: dict) -> str:
    shape = result["shape"]
    pairs = result["pairs"]
    first = next(iter(pairs.values()))
    lines = [
        "## A training step against the public PyTorch RETRO",
        "",
        f"The paper's 172M shape: width {shape['width']}, {shape['layers']} layers, {shape['heads']} heads of "
        f"{shape['head_dim']}, retrieval layers {shape['retrieval_layers']}, encoder of {shape['encoder_layers']} layers "
        f"x {shape['encoder_width']}; vocabulary {shape['vocabulary']:,}, sequence {shape['sequence_length']}, "
        f"k = {shape['neighbors']}, batch {shape['batch']}. {result['threads']} threads a side, {result['date']}.",
        "",
        f"{_versions(first['ours'])} against {_versions(first['peer'])}. Turns alternate between two live processes; "
        f"{len(first['ours']['step']['all'])} turns after {result['warmup']} of warm-up. Seconds are median (minimum); "
        "a ratio below 1 means that we are faster, and is the median over turns.",
        "",
        "| precision, allocator | part | ours | peer | ours / peer | machine |",
        "|---|---|---|---|---|---|",
    ]
    for name, pair in pairs.items():
        for time, title in (("forward_backward", "loss and gradients"), ("step", "with clipping and AdamW")):
            ratio = pair["ratio"][time]["by_turn"]["median"]
            cells = (name.replace(":", ", "), title, _seconds(pair["ours"][time]), _seconds(pair["peer"][time]))
            lines.append(f"| {' | '.join(cells)} | {ratio:.2f} | {describe_state(pair['state'])} |")
    lines += [
        "",
        "The allocator setting is glibc's, the same on both sides: `tuned` keeps freed memory in one arena instead of "
        "returning it to the kernel (`benchmarks/performance/worker.py`). bfloat16 is autocast for the peer, compute dtype for us; "
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
    sizes = [size for size in result["sizes"].values()]
    versions = next((side["versions"] for side in sizes[0]["sides"].values() if "versions" in side), {})
    lines = [
        "## The frozen encoder against PyTorch and sentence-transformers",
        "",
        f"all-MiniLM-L6-v2, {result['threads']} threads a side, {result['allocator']} allocator, {result['date']}. Sides take "
        "turns; the time is from word pieces to vectors, or from text to vectors with each side's own tokenizing and "
        f"sorting{', ' + _versions({'versions': versions}) if versions else ''}. The last column is the share of the rate of "
        "one plain matmul.",
        "",
    ]
    return "\n".join([*lines, *(line for size in sizes for line in _embedding_of(size))])


def _embedding_of(size: dict) -> list[str]:
    """The comparison on one number of chunks."""
    lines = [
        f"### {size['chunks']:,} chunks",
        "",
        f"{size['pieces_a_chunk']:.0f} word pieces on average; our padding adds {size['padding']:.0%}. Machine: "
        f"{describe_state(size['state'])}{_loads(size)}.",
        "",
        "| side | chunks/s, median | seconds, median (minimum) | GFLOP/s | of a plain product |",
        "|---|---|---|---|---|",
    ]
    for name, side in size["sides"].items():
        cells = (name, f"{side['chunks_a_second']['median']:.0f}", _seconds(side["seconds"]), f"{side['gflops']:.0f}")
        share = f"{side['share_of_matmul']:.0%}" if "share_of_matmul" in side else "-"
        lines.append(f"| {' | '.join(cells)} | {share} |")
    head = "Seconds by seconds, median over turns (below 1 the first is faster):"
    lines += ["", *_ratio_lines(head, size["ratios"])]
    if size.get("cosines"):
        lines += ["", "The vectors of the same texts:", ""]
        for pair, cosine in size["cosines"].items():
            lines.append(f"* {pair}: cosine at least {cosine['min']:.6f}, {cosine['mean']:.6f} on average")
    return [*lines, ""]


def search(result: dict) -> str:
    k, single = result["k"], result["single"]
    lines = [
        "## SCaNN against exact search, Faiss and hnswlib",
        "",
        f"{result['keys']:,} keys of width {result['width']} ({result['data']}), {result['queries']:,} queries that are not "
        f"among them, {result['threads']} threads a side, {result['date']}; machine {describe_state(result['state'])}{_loads(result)}; "
        f"{_versions(result)}. Every index is set, on other queries, until recall@{k} reaches "
        f'{result["target"]}: "as built" is what `retro build` chooses by the cost of a query, without a clock; all others '
        "are the fastest of a finer series. A batch is all queries at once over all threads, which is how a build asks; "
        f"one by one is {single} queries, each a call. Bytes are of the files; in memory our search holds the keys once "
        "more than SCaNN's files do.",
        "",
        f"| search | set to | built in s | MiB | recall@{k} | queries/s, batch | queries/s, one by one |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, index in result["indexes"].items():
        setting = ", ".join(
            f"{key} {value}" for key, value in (index["setting"] or {}).items() if key not in ("kind", "metric")
        )
        built = "as above" if index["build_seconds"] is None else f"{index['build_seconds']:.1f}"
        size = "as above" if index["bytes"] is None else f"{index['bytes'] / 2**20:.1f}"
        rates = [f"{index['queries_a_second'][way]:,.0f}" for way in ("batch", "one by one")]
        cells = (name, setting or "-", built, size, f"{index['recall']:.3f}", *rates)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Seconds by seconds, median over turns; below 1 SCaNN is faster.", ""]
    lines += ["| SCaNN / other | batch | one by one |", "|---|---|---|"]
    for pair, turns in result["ratios"]["batch"].items():
        lines.append(f"| {pair} | {turns['median']:.2f} | {result['ratios']['one by one'][pair]['median']:.2f} |")
    lines += ["", "Where the time of our batches goes, by Python's profiler; SCaNN's own call is one function:", ""]
    for name, index in result["indexes"].items():
        if "profile" not in index:
            continue
        functions = index["profile"]["functions"]
        total = sum(function["seconds"] for function in functions)
        parts = ", ".join(
            f"{function['function'].strip('<>')} {function['seconds'] / total:.0%}" for function in functions[:3]
        )
        calls = ", ".join(f"{way} {seconds:.3f} s" for way, seconds in index["profile"]["parts"].items())
        lines.append(f"* {name}: {parts}" + (f"; that call, queries {calls}" if calls else ""))
    return "\n".join([*lines, ""])


def whole_path(result: dict) -> str:
    sides = result["sides"]
    lines = [
        "## From text to neighbors against the public RETRO's preprocessing",
        "",
        f"{result['bytes'] / 1e6:.2f} MB of {' and '.join(result['packages'])}, {result['documents']:,} files, chunks of "
        f"{result['chunk']} tokens, {result['k']} neighbors, all-MiniLM-L6-v2, {result['threads']} threads a side, "
        f"{result['date']}; machine {describe_state(result['state'])}{_loads(result)}. Each turn is a new process, so ours compiles in each; imports are not counted. "
        f"Recall@{result['k']} is of {result['sample']:,} chunks, over each side's own vectors and by its own rule of "
        "which chunks may be neighbors.",
        "",
        "| side | seconds, median (minimum) | chunks | chunks/s | MB/s | recall | left empty | peak memory GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, side in sides.items():
        cells = (name, _seconds(side["seconds"]), f"{side['chunks']:,}", f"{side['chunks_a_second']:.0f}")
        cells += (f"{side['megabytes_a_second']:.3f}", f"{side['recall']:.3f}", f"{side['empty']:.1%}")
        lines.append(f"| {' | '.join(cells)} | {side['peak_rss_bytes'] / 2**30:.1f} |")
    lines += ["", *_ratio_lines("Seconds by seconds, median over turns (below 1 ours is faster):", result["ratios"])]
    names = list(dict.fromkeys(stage for side in sides.values() for stage in side["stages"]))
    lines += ["", f"| stage, median s | {' | '.join(sides)} |", f"|---|{'---|' * len(sides)}"]
    for stage in names:
        cells = (
            f"{side['stages'][stage]['median']:.1f}" if stage in side["stages"] else "-" for side in sides.values()
        )
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    compiling = ", ".join(
        f"{side['compile_seconds']['median']:.1f} s ({name})"
        for name, side in sides.items()
        if "compile_seconds" in side
    )
    lines += ["", f"Of the embeddings' seconds XLA compiles for {compiling}.", ""]
    for name, side in sides.items():
        holds = "; ".join(f"{stage}: {text}" for stage, text in side["holds"].items() if text)
        lines.append(f"* {name} ({_versions(side)}): {holds}")
    return "\n".join([*lines, "", WHOLE_PATH_DIFFERENCES])


def _ratio_lines(head: str, ratios: dict) -> list[str]:
    return [head, "", *(f"* {pair}: {turns['median']:.2f}" for pair, turns in ratios.items())] if ratios else []


def _loads(result: dict) -> str:
    """The load average before each turn: our own sides, waiting or working, are part of it."""
    return f", load before the turns {min(result['load_before_turns']):.1f} to {max(result['load_before_turns']):.1f}"


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
