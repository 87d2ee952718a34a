"""Interface of what question answering reads: a set of questions with their prompts and passages as tokens.

`data_pipeline.evaluation.questions` opens one; any object with these attributes works.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64


class QuestionSet(Protocol):
    """N questions.

    Attributes:
      fingerprint: changes iff questions, answers or passages change.
      chunk_length: M.
      stored: K, passages of a question at most.
      prompt_chunks: P of each question.
      found: rank, from 1, of the first passage whose R tokens contain an answer; 0: none.
      stops: tokens that end an answer: EOS, and those with a line end.
      facts: plain JSON for the report.
    """

    name: str
    fingerprint: str
    chunk_length: int
    stored: int
    prompt_chunks: Int64[np.ndarray, "N"]
    found: Int64[np.ndarray, "N"]
    stops: Bool[np.ndarray, "V"]
    facts: Mapping[str, Any]

    def __len__(self) -> int: ...

    def prompts(self, numbers: Int[np.ndarray, "B"]) -> Int32[np.ndarray, "B P*M"]:
        """Prompts of questions with the same number of chunks."""
        ...

    def passages(self, numbers: Int[np.ndarray, "B"]) -> Int32[np.ndarray, "B K R"]: ...

    def records(self, start: int, stop: int) -> Sequence[Mapping[str, Any]]:
        """ "id", "question", "answers" of each."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...
