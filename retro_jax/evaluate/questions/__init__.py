"""Open-domain question answering as the paper does it (4.3, C.4): greedy answers, scored by exact match.

Read question (a record), layout (the places of prompt, answer and passages), matching, sets (the interface),
conditions, decoding, scoring, summary. It imports config, core, data, models, parallel and the rest of evaluate;
reading files and tokenizing are in `data_pipeline.evaluation.questions`.
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "Question": "question",
        "Passage": "question",
        "exact_match": "matching",
        "Decoder": "decoding",
        "QuestionTask": "scoring",
        "evaluate_questions": "scoring",
        "question_scores": "scoring",
        "table_text": "summary",
    },
)
