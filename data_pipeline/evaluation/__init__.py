"""Evaluation sets: text that is scored and never trained on, with its neighbors from a database that does not change.

Read it in the order of the data: protocols (which one reads a file), documents (the lines of a set), searched (the database
as neighbors are searched in it), neighbors, contamination, join (all stages of a set), sets (what `retro evaluate` reads).
It imports the stages of the build and the database, and never launch.
"""
