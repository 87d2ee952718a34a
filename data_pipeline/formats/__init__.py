"""Formats of text: opening files, what their bytes say they are, compression, and records of JSON, tables and TFDS.

Read known first: one entry for each format. It imports stages.
"""
