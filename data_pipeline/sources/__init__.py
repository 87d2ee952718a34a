"""The config's sources of text: the listing of their files, and reading of their documents.

Read listing, walk, readers. It imports formats, packages and stages.
"""
