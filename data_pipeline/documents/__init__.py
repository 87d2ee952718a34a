"""Stage 1: the documents with subset, id, license and split, without copies and near duplicates of held-out text.

Read stage, cleaning, selection, near_duplicates, titles, spill. It imports formats, sources and stages.
"""
