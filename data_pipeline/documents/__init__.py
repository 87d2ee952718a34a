"""Stage 1: every text once, with its subset, id, license and split; copies and near duplicates of held-out text are dropped.

Read stage, cleaning, selection, near_duplicates, titles, spill. It imports formats, sources and stages.
"""
