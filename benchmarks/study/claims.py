"""The claims: what the paper and its two critics say, and the checks that decide each (checks.py has the rule)."""

from collections.abc import Callable

import numpy as np
from checks import Check, Claim
from points import Study
from quantities import Expression

RECURS, NOVEL = "legal", "wiki"  # subsets: text that recurs in the database, and text that does not
LOW, HIGH = (
    1 / 8,
    1 / 2,
)  # r(C): at most an eighth of a chunk stands in its neighbors (the paper's lowest alpha), or more than half
TOKEN = "bits per token"

Quantity = Callable[[Study], Expression]


def bits(point: str, condition: str = "on", subset: str = RECURS, where=None) -> Quantity:
    return lambda study: study.bits(point, condition, subset, where)


def minus(one: Quantity, other: Quantity, factor: float = 1.0) -> Quantity:
    return lambda study: one(study) - other(study) * factor


def probed(column: str, per: str = "tokens") -> Quantity:
    return lambda study: study.probe("default", column, per)


def low_overlap(overlap: np.ndarray) -> np.ndarray:
    return overlap <= LOW + 1e-9


def high_overlap(overlap: np.ndarray) -> np.ndarray:
    return overlap > HIGH


BASELINE = bits("default", "baseline")


def below(says: str, one: Quantity, other: Quantity, **more) -> Check:
    """One is below the other."""
    return Check(says, minus(one, other), high=0.0, **{"reference": BASELINE, **more})


def near(says: str, one: Quantity, other: Quantity, margin: float) -> Check:
    """They differ by at most a share of the baseline's bits per byte."""
    return Check(f"{says} within {margin:.1%}", minus(one, other), -margin, margin, BASELINE)


def no_better(says: str, one: Quantity, other: Quantity, margin: float) -> Check:
    """One is not below the other by more than a share of the baseline's bits per byte."""
    return Check(f"{says} by no more than {margin:.1%}", minus(one, other), low=-margin, reference=BASELINE)


def gain(where=None, subset: str = RECURS, point: str = "default") -> Quantity:
    """Off minus On: what retrieval is worth to one model."""
    return minus(bits(point, "off", subset, where), bits(point, "on", subset, where))


ON, OFF = bits("default"), bits("default", "off")
CLAIMS = (
    Claim(
        "17",
        "Retrieval lowers the loss where the database has related text, and random neighbors do not",
        "On 16% below the baseline on C4 (Table 14)",
        (
            below("On below Off", ON, OFF),
            below("On below random neighbors", ON, bits("default", "random")),
            below("On below the baseline", ON, BASELINE),
            no_better("random neighbors better than Off", bits("default", "random"), OFF, 0.005),
        ),
    ),
    Claim(
        "18",
        "Without retrieval a RETRO model is as good as its baseline",
        "the same to 0.01 bits per byte on C4, 1% (Table 14); at this scale 3% is allowed",
        (near("Off and the baseline equal", OFF, BASELINE, 0.03),),
    ),
    Claim(
        "19",
        "More database, fewer bits",
        ".97 with a thousandth, .96 with 1%, .94 with 10%, .82 with all (Table 14, 172M)",
        (
            below("all of the database below 1%", ON, bits("default", "on share=0.01")),
            below("all below 30%", ON, bits("default", "on share=0.3")),
            no_better("3% worse than 1%", bits("default", "on share=0.01"), bits("default", "on share=0.03"), 0.005),
            no_better("10% worse than 3%", bits("default", "on share=0.03"), bits("default", "on share=0.1"), 0.005),
            no_better("30% worse than 10%", bits("default", "on share=0.1"), bits("default", "on share=0.3"), 0.005),
        ),
    ),
    Claim(
        "20",
        "More neighbors at evaluation than in training help, up to about ten",
        ".84 at k = 1, .83 at 2, .82 at 3 to 30 (Table 14, 172M)",
        (
            below("k = 2 below k = 1", ON, bits("default", "on k=1")),
            below("k = 10 below k = 2", bits("default", "on k=10"), ON),
            no_better("k = 20 better than k = 10", bits("default", "on k=20"), bits("default", "on k=10"), 0.005),
        ),
    ),
    Claim(
        "21",
        "The neighbor and its continuation both count, the continuation more",
        ".987 without retrieval, .950 with N alone, .895 with F alone, .822 with both (Table 13)",
        (
            below("N alone below the baseline", bits("neighbor_only"), BASELINE),
            below("F alone below N alone", bits("continuation_only"), bits("neighbor_only")),
            below("both below F alone", ON, bits("continuation_only")),
        ),
    ),
    Claim(
        "22",
        "The gain is larger where chunks overlap with their neighbors",
        "bits per byte fall more steeply with the overlap for RETRO (Figure 6)",
        (
            Check(
                "gain above an overlap of 50% larger than at 12.5% or less",
                minus(gain(high_overlap), gain(low_overlap)),
                low=0.0,
                reference=BASELINE,
            ),
        ),
    ),
    Claim(
        "23a",
        "Query conditioning and positions in cross-attention help a little",
        ".829 and .826 without, .822 with (Table 13)",
        (
            no_better("no query conditioning better", bits("no_query_conditioning"), ON, 0.01),
            no_better("no positions better", bits("no_positions"), ON, 0.01),
        ),
    ),
    Claim(
        "23b",
        "Shared embeddings and a deeper encoder change little",
        ".823 and .821 against .822 (Table 13)",
        (
            near("shared embeddings equal", bits("shared_embeddings"), ON, 0.01),
            near("deeper encoder equal", bits("deeper_encoder"), ON, 0.01),
        ),
    ),
    Claim(
        "23c",
        "Cross-attention in every layer is not better than in some",
        ".860 in all layers, .822 in every third (Table 13)",
        (no_better("all layers better", bits("all_layers"), ON, 0.005),),
    ),
    Claim(
        "23d",
        "Two neighbors are the best number in training",
        ".858 with 1, .847 with 4, .822 with 2 (Table 13)",
        (
            below("k = 2 in training below 1", ON, bits("train_k_1")),
            no_better("k = 4 in training better than 2", bits("train_k_4"), ON, 0.005),
        ),
    ),
    Claim(
        "24",
        "A retrofit of 3% to 10% of the steps passes its baseline, comes close to training from scratch, and keeps Off",
        "Figure 5; Off the same bit for bit (4.2)",
        (
            below("retrofit (10% of the steps) below its baseline", bits("retrofit"), BASELINE),
            Check(
                "retrofit above training from scratch by no more than 2.0%",
                minus(bits("retrofit"), ON),
                high=0.02,
                reference=BASELINE,
            ),
            Check("Off of the retrofit equal to its baseline", minus(bits("retrofit", "off"), BASELINE), -1e-6, 1e-6),
        ),
    ),
    Claim(
        "25",
        "A token that only the continuation of a neighbor has is predicted from there",
        "copied spans are nearly certain (Tables 16 to 19)",
        (
            Check(
                "with the true continuation retrieved, half of Off's bits or fewer",
                minus(probed("copy_oracle", "copy_tokens"), probed("copy_off", "copy_tokens"), 0.5),
                high=0.0,
                unit=TOKEN,
            ),
            Check(
                "gain larger where 5 tokens or more repeat the neighbors than where none does",
                minus(probed("gain_5", "tokens_5"), probed("gain_0", "tokens_0")),
                low=0.0,
                unit=TOKEN,
            ),
        ),
    ),
    Claim(
        "26",
        "A changed database changes predictions without training",
        "the reason for retrieval (1, 2.4)",
        (
            Check(
                "a token that was exchanged in the database is likelier there",
                minus(probed("swap_new_new", "swap_tokens"), probed("swap_new_old", "swap_tokens")),
                high=0.0,
                unit=TOKEN,
            ),
            Check(
                "and the true token less likely",
                minus(probed("swap_old_new", "swap_tokens"), probed("swap_old_old", "swap_tokens")),
                low=0.0,
                unit=TOKEN,
            ),
            below("On with overlapping documents below On without them", ON, bits("deleted")),
        ),
    ),
    Claim(
        "27",
        "Trained from scratch on a tiny corpus RETRO over-fits more than its baseline",
        "weaker than the baseline on Wikitext-103 (4.1)",
        (
            below(
                "baseline below On with a tenth of the text",
                bits("tiny", "baseline", ""),
                bits("tiny", "on", ""),
            ),
            below(
                "Off - baseline smaller with all of the text than with a tenth",
                minus(bits("default", "off", ""), bits("default", "baseline", "")),
                minus(bits("tiny", "off", ""), bits("tiny", "baseline", "")),
            ),
        ),
    ),
    Claim(
        "P",
        "RETRO is below its baseline even where nothing overlaps",
        "down to an overlap of 12.5% on C4, Wikitext-103 and Curation (Figure 6)",
        (
            below(
                "On below the baseline at 12.5% or less, all text",
                bits("default", "on", "", low_overlap),
                bits("default", "baseline", "", low_overlap),
            ),
        ),
    ),
    Claim(
        "N",
        "The gain comes largely from overlap; without it there is nearly none (Norlund et al. 2023)",
        "no table was found",
        (
            Check(
                "gain at 12.5% or less within 0.5% of the baseline, all text",
                gain(low_overlap, ""),
                -0.005,
                0.005,
                bits("default", "baseline", "", low_overlap),
            ),
            Check(
                "gain above 50% larger than at 12.5% or less, all text",
                minus(gain(high_overlap, ""), gain(low_overlap, "")),
                low=0.0,
                reference=bits("default", "baseline", ""),
            ),
        ),
    ),
    Claim(
        "D",
        "Neighbors re-ranked by BM25 lower the loss further (Doostmohammadi et al. 2023)",
        "a part of the 13.7% of perplexity that BM25 alone gives",
        (below("On with BM25 below On", bits("bm25"), ON),),
    ),
)
