"""Evaluation sets: text that is scored and never trained on, with its neighbors from a database that does not change.

Read it in the order of the data: entries (records of public files), documents (the lines of a set), tables (where a set is),
draws, neighbors, overlap_index, contamination, join (all stages of a set), sets (what `retro evaluate` reads), checks. It imports the stages of the build and the database, and never launch.
"""
