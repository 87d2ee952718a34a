"""Figures as SVG: charts.py has a function for each kind, svg.py draws and is the one file that imports matplotlib.

A figure is a string: standalone as a file, and inline in a page, where text, axes and grid take the page's color and font.
Equal arguments give equal bytes. It imports nothing else of the package.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "Interval": "charts",
        "Series": "charts",
        "bars": "charts",
        "dots": "charts",
        "histogram": "charts",
        "lines": "charts",
    },
)
