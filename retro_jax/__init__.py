"""retro_jax: retrieval-enhanced language models (RETRO, Borgeaud et al., arXiv 2112.04426) in JAX and Flax.

    import retro_jax as rx

    run = rx.presets.retro("172m,smoke")             # or rx.RunConfig(...)
    params = rx.models.initialize(run.model, seed=0)
    state = rx.train.train(run, "runs/tiny")         # on the joined shards that data_pipeline.build wrote
    model, run, step = rx.train.load("runs/tiny")

Read it in the order of the data: config, core, data, models, parallel, train, run_directory, evaluate, sweep (the
results of `retro sweep`), generate; then preflight and presets, which plan runs on machines that you do not have. Public names are
imported when they are first used.

It imports neither data_pipeline nor launch, and none of the packages that only a build needs (SCaNN, tokenizers, pyarrow).
"""

from retro_jax.core.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {"RunConfig": "config"},
    (
        "config",
        "core",
        "data",
        "models",
        "parallel",
        "train",
        "run_directory",
        "evaluate",
        "generate",
        "preflight",
        "presets",
    ),
)
