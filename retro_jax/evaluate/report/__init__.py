"""What people look at: the page of an evaluation, its tables, plots and passages, exports, and comparisons of runs.

Read passages, tables, plots and figures/, page and templates/, export, comparison. It reads results.json and scores; it computes no
score. It imports the rest of evaluate, and core.
"""
