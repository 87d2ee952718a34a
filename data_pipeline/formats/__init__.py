"""File formats: opening files, detecting their content, compression, and records of JSON, tables and TFDS.

Read known first: one entry for each format. It imports stages.
"""
