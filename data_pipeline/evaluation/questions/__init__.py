"""Sets of questions beside a finished database: reads files of FiD's and DPR's formats into prompts and passages as
tokens.

Read records (the files), stage (what is stored), stored (what evaluation reads), shards (what `retro train` reads), join (all
of it, for `retro join --protocol=questions`). The record of a question and the layout of its tokens are defined in
`retro_jax.evaluate.questions`. It imports the stages of the build and the database, and never launch.
"""
