"""Evaluation: bits of every held-out token under every condition, sums with intervals, curves by overlap, and the report.

Read conditions, metrics, scoring, overlap, summary, results, plots and tables, report. likelihood answers benchmarks. figures/ draws SVG, templates/ has the pages. It imports config, core, data, models, and what a run directory holds.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "Condition": "conditions",
        "Metric": "metrics",
        "score": "scoring",
        "likelihoods": "likelihood",
        "summarize": "summary",
        "make_report": "report",
        "make_plots": "plots",
    },
)
