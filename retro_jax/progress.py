"""Progress with an estimate, for anything over a few seconds; lines in a log, a bar on a terminal."""

import sys

from tqdm import tqdm


def progress(
    items=None, *, description: str, total: int | None = None, unit: str = "it", initial: int = 0, disable=False
):
    """A tqdm bar on standard error around `items` (or a manual one: `bar.update(n)`, `bar.close()`).

    On a terminal it redraws every half second; in a log it prints at most every five.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=description,
        total=total,
        unit=unit,
        initial=initial,
        disable=disable,
        dynamic_ncols=terminal,
        mininterval=0.5 if terminal else 5.0,
        unit_scale=True,
        file=sys.stderr,
    )
