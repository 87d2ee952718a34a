"""Progress bars with an estimate of the time left; on a terminal a bar, in a log lines."""

import sys
import weakref

from tqdm import tqdm

from retro_jax.core.streams import Stream, protect

_bars: weakref.WeakSet = weakref.WeakSet()


class BarLine:
    """The stream of a bar: a terminal's line is redrawn, a log gets a new line each time."""

    def __init__(self, stream: Stream, terminal: bool):
        self._stream, self._terminal, self._last = stream, terminal, ""

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        if self._terminal:
            self._stream.draw(text)
            return
        line = text.replace("\x1b[A", "").strip()
        if line and line != self._last:
            self._stream.draw(f"{line}\n")
            self._last = line


def progress(
    items=None, *, description: str, total: int | None = None, unit: str = "it", initial: int = 0, disable=False
):
    """A tqdm bar on standard error around `items` (or a manual one: `with progress(...) as bar: bar.update(n)`).

    On a terminal it redraws every half second; in a log it prints at most every five. It never raises and never waits for
    whoever reads it.
    """
    protect()
    terminal = sys.stderr.isatty()
    bar = tqdm(
        items,
        desc=description,
        total=total,
        unit=unit,
        initial=initial,
        disable=disable,
        dynamic_ncols=terminal,
        mininterval=0.5 if terminal else 5.0,
        unit_scale=True,
        file=BarLine(sys.stderr, terminal),
    )
    _bars.add(bar)
    return bar


def close_bars() -> None:
    """Closes the bars that an error left open; each keeps its last state on its own line."""
    for bar in list(_bars):
        bar.close()
