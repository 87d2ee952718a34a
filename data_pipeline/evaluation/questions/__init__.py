"""Sets of questions beside a finished database: files of FiD's and DPR's formats to prompts and passages as tokens.

Read records (the files), stage (what is stored), stored (what evaluation reads), shards (what `retro train` reads), join (all
of it, for `retro join --protocol=questions`). What a question is and where its tokens stand are in
`retro_jax.evaluate.questions`. It imports the stages of the build and the database, and never launch.
"""
