"""Evaluation: bits of every token of a set of text under every condition, sums with intervals, and the report.

Read sets, conditions, metrics, protocols/, blocks, scorers, scoring, scores, overlap, summary, passages, evaluation; then results,
export, plots and tables, report, comparison; likelihood answers benchmarks. figures/ draws SVG, templates/ has the pages. It imports config, core, data, models,
parallel, and what a run directory holds.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "Condition": "conditions",
        "Metric": "metrics",
        "Protocol": "protocols",
        "TextSet": "sets",
        "evaluate": "evaluation",
        "compare": "report.comparison",
        "likelihoods": "likelihood",
    },
)
