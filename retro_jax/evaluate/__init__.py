"""Evaluation: scores sets of text under every condition, sums the scores up with intervals, and writes the report.

Read sets, conditions, metrics, protocols/, blocks, scorers, scoring, scores, overlap, summary, passages, evaluation;
then results, export, plots and tables, report, comparison. likelihood scores texts for benchmarks. figures/ draws SVG;
templates/ has the pages. The package imports config, core, data, models, parallel and run_directory, the metrics of
train and the windows of generate.
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
