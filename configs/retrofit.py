"""Retrofit (paper 4.2, C.3): adds retrieval to a trained, frozen baseline. Sizes 172m, 425m, 1b5, 7b5; `,smoke`.

    retro train --config=configs/retrofit.py:172m --workdir=runs/172m-retrofit \
        --config.train.initialize_from=runs/132m --config.data.directory=runs/172m/data

Only the neighbor encoder and the chunked cross-attention train (under 10% of the weights at 7.5B), on 6 million
sequences at batch 256: 3% of pre-training, 23,438 steps. `--config.train.trainable=all` trains everything.
Hardware: as configs/retro.py. `:172m,smoke` retrofits `configs/baseline.py:132m,smoke` in a minute on 2 CPU cores.
Expected: Off equals the baseline bit for bit; On ends close to training from scratch (paper Figure 5).
"""

from retro_jax.presets.sizes import BASELINE_OF, RETRO, paper_config, retrofit_schedule, split_argument


def get_config(argument: str = ""):
    config = paper_config(argument, RETRO)
    words = split_argument(argument, [*RETRO, "smoke"])
    config.train.initialize_from = f"runs/{BASELINE_OF[min(words - {'smoke'})]}"  # of the baseline; give your own
    retrofit_schedule(config, shrunk="smoke" in words)
    return config
