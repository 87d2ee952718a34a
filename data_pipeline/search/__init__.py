"""Stages 5 and 6: the index, and the nearest chunks of other documents for every chunk.

Read exact, scann, stage, router, routes, routed_index, chunk_search, neighbors, recall, subset, bm25. It imports chunks, encoder and stages.
"""
