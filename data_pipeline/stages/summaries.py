"""What a finished stage holds, in a few words from the counts and config of its manifest, and the table of a build."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def documents(counts: Mapping, config: Mapping) -> str:
    subsets = counts["subsets"].values()
    held_out = sum(subset["validation"]["documents"] for subset in subsets)
    dropped = sum(sum(subset["dropped"].values()) for subset in subsets)
    return (
        f"{counts['documents']:,} documents of {len(counts['subsets'])} subsets ({held_out:,} held out), "
        f"{counts['bytes'] / 1e6:,.1f} MB; {dropped:,} dropped{_left_out(counts.get('source_files', {}))}"
    )


def tokenizer(counts: Mapping, config: Mapping) -> str:
    return f"{counts['vocabulary']:,} pieces"


def chunks(counts: Mapping, config: Mapping) -> str:
    return f"{counts['chunks']:,} chunks of {counts['chunk_length']} tokens, {counts['database_chunks']:,} of them the database"


def embeddings(counts: Mapping, config: Mapping) -> str:
    windows = counts.get("chunks_in_windows", 0)
    longer = f"; {windows:,} chunks longer than the encoder's positions, in windows" if windows else ""
    return f"{counts['chunks']:,} vectors of {counts['width']}, in {config['compute_dtype']}{longer}"


def lexical(counts: Mapping, config: Mapping) -> str:
    return f"frequencies of tokens in {counts['chunks']:,} chunks"


def index(counts: Mapping, config: Mapping) -> str:
    routing = counts.get("routing")
    visits = f", {routing['visits']:.2g} of {config['shards']} shards visited" if routing else ""
    return f"{counts['kind']}{visits}, recall@{counts['recall']['k']} {counts['recall']['value']:.3f}"


def copies(counts: Mapping, config: Mapping) -> str:
    return f"{counts['in_both']:,} of the database's {counts['documents']:,} documents are of this build too"


def neighbors(counts: Mapping, config: Mapping) -> str:
    stored, chunks, missing = config["neighbors_stored"], counts["chunks"], counts["missing"]
    if not missing:
        return f"{stored} found for each of {chunks:,} chunks"
    mean = stored - missing / chunks
    text = f"up to {stored} stored, {mean:.4g} found on average for each of {chunks:,} chunks"
    without = counts.get("without_neighbors", {})  # missing in builds of earlier versions; incomplete after a repair
    counted = without.get("of") == chunks and without["chunks"]
    return f"{text}; {without['chunks']:,} chunks have none" if counted else text


def joined(counts: Mapping, config: Mapping) -> str:
    sequences = counts["sequences"]
    text = (
        f"{sequences['train']:,} training and {sequences.get('validation', 0):,} validation sequences "
        f"of {config['sequence_length']}"
    )
    if sample := counts.get("retokenized"):
        text += (
            f"; neighbors tokenized again, {sample['tokens'] / sample['chunks']:.3g} tokens a chunk, "
            f"{sample['cut'] / sample['tokens']:.1%} of them cut"
        )
    return text


def _left_out(files: Mapping) -> str:
    """Files of all sources that the documents stage did not read, by ending or reason."""
    numbers: dict[str, int] = {}
    for source in files.values():
        for reason, (count, _) in source["left_out"].items():
            numbers[reason] = numbers.get(reason, 0) + count
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(numbers.items()))
    return f"; left out {sum(numbers.values()):,} files: {reasons}" if numbers else ""


def table(rows: Sequence[tuple[str, str, float, float]], data: Path, elapsed: float) -> str:
    """A table of stages: what each holds, the seconds it took to make, the seconds of this run."""
    width = max(len(text) for _, text, _, _ in rows)
    lines = [f"{'stage':<11}{'holds':<{width}}{'seconds':>10}{'now':>8}"]
    lines += [f"{stage:<11}{text:<{width}}{seconds:>10.1f}{now:>8.1f}" for stage, text, seconds, now in rows]
    return "\n".join(["", *lines, f"{data} is complete; this run took {elapsed:.1f} s."])
