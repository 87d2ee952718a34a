"""Table 15 of the paper: bits per byte on the subsets of the Pile, and the same layout with the columns of a run added."""

from collections.abc import Mapping

COLUMNS = ("7B baseline", "GPT-3", "Jurassic-1 178B", "Gopher 280B", "Retro 7.5B")
TABLE_15 = {
    "arxiv": (0.742, 0.838, 0.680, 0.641, 0.714),
    "books3": (0.792, 0.802, 0.835, 0.706, 0.653),
    "dm_mathematics": (1.177, 1.371, 1.037, 1.135, 1.164),
    "freelaw": (0.576, 0.612, 0.514, 0.506, 0.499),
    "github": (0.420, 0.645, 0.358, 0.367, 0.199),
    "gutenberg_pg_19": (0.803, 1.163, 0.890, 0.652, 0.400),
    "hackernews": (0.971, 0.975, 0.869, 0.888, 0.860),
    "nih_exporter": (0.650, 0.612, 0.590, 0.590, 0.635),
    "opensubtitles": (0.974, 0.932, 0.879, 0.894, 0.930),
    "philpapers": (0.760, 0.723, 0.742, 0.682, 0.699),
    "pile_cc": (0.771, 0.698, 0.669, 0.688, 0.626),
    "pubmed_abstracts": (0.639, 0.625, 0.587, 0.578, 0.542),
    "pubmed_central": (0.588, 0.690, 0.579, 0.512, 0.419),
    "stackexchange": (0.714, 0.773, 0.655, 0.638, 0.624),
    "ubuntu_irc": (1.200, 0.946, 0.857, 1.081, 1.178),
    "uspto_backgrounds": (0.603, 0.566, 0.537, 0.545, 0.583),
}


def layout(
    ours: Mapping[str, Mapping[str, float]],
) -> tuple[tuple[str, ...], list[tuple[str, *tuple[float | None, ...]]]]:
    """The table with our columns after the paper's.

    Args:
      ours: subset -> condition -> bits per byte.

    Returns:
      The header, and rows in the paper's order, then subsets of ours that the paper does not list. None where there is
      no figure.
    """
    conditions = list(dict.fromkeys(name for figures in ours.values() for name in figures))
    nothing = (None,) * len(COLUMNS)
    rows = [
        (subset, *TABLE_15.get(subset, nothing), *(ours.get(subset, {}).get(name) for name in conditions))
        for subset in dict.fromkeys([*TABLE_15, *ours])
    ]
    return ("subset", *COLUMNS, *conditions), rows
