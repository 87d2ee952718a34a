"""Evaluation: scores sets of text under every condition, sums the scores up with intervals, and writes the report.

Read sets, conditions, metrics, protocols/, blocks, models, scorers, scoring, scores, overlap, summary, evaluation, results; then
questions/ (answers with exact match), report/ (what people look at) and likelihood (answers benchmarks). It imports config, core,
data, models, parallel, and what a run directory holds.
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
