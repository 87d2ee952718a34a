"""Question answering (paper 4.3, C.4): a trained RETRO model, all of its weights, fine-tuned on questions with passages.

    retro join --config=configs/questions.py:7b5 --workdir=runs/7b5 --set=nq --path=train.json --protocol=questions --train
    retro train --config=configs/questions.py:7b5 --workdir=runs/7b5-nq \
        --config.train.initialize_from=runs/7b5 --config.data.directory=runs/7b5/data/evaluation/nq

The paper's schedule: 25,000 steps of 128 questions with 20 passages each, learning rate up to 1e-6 in 750 steps, then a
cosine to 1e-7. Its dropout in the decoder has no rate stated and is left out. Sizes 172m, 425m, 1b5, 7b5; `,smoke` trains on
a laptop what `configs/retro.py:172m,smoke` built and trained.
Hardware: as configs/retro.py; a sequence has two chunks. Expected, from the paper's Table 5: 45.5% exact match on Natural
Questions at 7.5B (30.4% closed book). Not reproduced here: no package holds the questions.
"""

from retro_jax.evaluate.questions.layout import PASSAGES
from retro_jax.presets.sizes import RETRO, paper_config, split_argument

STEPS, BATCH, RATE = 25_000, 128, 1e-6


def get_config(argument: str = ""):
    config = paper_config(argument, RETRO)
    smoke = "smoke" in split_argument(argument, [*RETRO, "smoke"])
    # The prompt ends the first chunk, or the second of a long question; an answer is shorter than a chunk.
    config.model.sequence_length = (4 if smoke else 2) * config.model.chunk_length
    config.model.neighbors = PASSAGES
    if not smoke:
        config.train.update(steps=STEPS, batch=BATCH, learning_rate=RATE, final_fraction=0.1, warmup_steps=750)
    return config
